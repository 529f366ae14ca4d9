"""The hand-written sample corpus and a tiny BERT from scratch: under two minutes.

Shows the whole pipeline on Chinese and accented text and NIL mentions. A model this
small, without pretrained weights, learns little beyond the training sentences.
"""

from pathlib import Path

from bert_export.config import default_config

DATA = Path(__file__).resolve().parent.parent / "data"


def get_config():
    """See `bert_export.config` for every option."""
    config = default_config()
    config.name = "sample_linker"
    config.corpus.entities = str(DATA / "entities.jsonl")
    config.corpus.mentions = str(DATA / "mentions.jsonl")
    config.corpus.dev_fraction = 0.15
    config.corpus.test_fraction = 0.15
    config.features.max_seq_length = 64
    config.features.num_shards = 1
    config.model.bert_config = str(DATA / "bert_config.json")
    config.model.vocab = str(DATA / "vocab.txt")
    config.train.epochs = 20.0
    config.train.learning_rate = 3e-4
    config.train.save_checkpoints_steps = 100
    # Latencies of a model this small say nothing.
    config.export.benchmark = False
    config.gate.golden_mentions = str(DATA / "golden.jsonl")
    # So few mentions cannot tell models apart any closer.
    config.gate.max_drop = 25.0
    config.gate.golden_max_drop = 25.0
    return config

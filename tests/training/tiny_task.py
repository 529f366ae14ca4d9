"""A task that a tiny BERT learns in seconds, prepared with the product's own writer.

A text says where to look, 'left' or 'right', and the entities are named after what
is found there: of each mention's candidates the gold one fits the text.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from pathlib import Path
from typing import Any

from bert_export.config import Config, FeaturesConfig, TrainConfig
from bert_export.corpus.records import BadRecords, Mention
from bert_export.features.pairs import PairEncoder
from bert_export.features.records import RecordSet, write_split
from bert_export.features.spec import FeatureSpec
from bert_export.features.tokenizer import WordPiece
from bert_export.modeling.bert_config import BertConfig
from bert_export.training.model_fn import ModelParams

FEATURES = FeaturesConfig(max_seq_length=16, num_shards=3)
NO_SPANS = dataclasses.replace(FEATURES, span_fields=())
WORDS = [f"w{number}" for number in range(10)]
SIDES = {"left": "red", "right": "blue"}
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *SIDES, *SIDES.values(), "x"]
ENTITIES = {
    f"{colour}-{word}": f"{colour} {word}"
    for colour in SIDES.values()
    for word in WORDS
}
BERT = BertConfig(
    vocab_size=len(VOCAB),
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=16,
    # So that runs can be compared number by number.
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    initializer_range=0.1,
)


def mentions(count: int, seed: int, nil: float = 0.0) -> list[Mention]:
    """Random mentions of 2 to 4 candidates, one of them gold unless it is NIL."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        side = rng.choice(list(SIDES))
        before = rng.choices(WORDS, k=rng.randint(0, 4))
        text = " ".join([*before, side, "x", *rng.choices(WORDS, k=2)])
        start = text.index("x")
        colours = [colour for colour in SIDES.values() if colour != SIDES[side]]
        wrong = [f"{colours[0]}-{word}" for word in WORDS]
        candidates = rng.sample(wrong, rng.randint(2, 4))
        gold = None
        if rng.random() >= nil:
            gold = f"{SIDES[side]}-{rng.choice(WORDS)}"
            candidates[rng.randrange(len(candidates))] = gold
        found.append(Mention(text, start, start + 1, gold, tuple(candidates)))
    return found


@functools.cache
def _encoder(features: FeaturesConfig) -> PairEncoder:
    return PairEncoder(WordPiece(VOCAB, features), features)


def write(
    directory: Path,
    split: str,
    count: int,
    seed: int = 0,
    nil: float = 0.0,
    features: FeaturesConfig = FEATURES,
) -> RecordSet:
    """A split of `count` random mentions."""
    return write_split(
        mentions(count, seed, nil),
        ENTITIES,
        _encoder(features),
        directory,
        split,
        fingerprint="tiny",
        num_shards=features.num_shards,
        bad=BadRecords(),
        progress=False,
    )


def config(features: FeaturesConfig = FEATURES, **train: Any) -> Config:
    """A config with quick training."""
    return Config(
        features=features,
        train=TrainConfig(**{"learning_rate": 3e-3, "log_steps": 10} | train),
    )


def params(of: Config, num_train_steps: int, **changed: Any) -> ModelParams:
    """The model_fn's params for a config."""
    spec = FeatureSpec.from_config(of.features)
    made = ModelParams(spec, BERT, of.train, num_train_steps, pretrained=None)
    return dataclasses.replace(made, **changed)

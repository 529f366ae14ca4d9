"""The page's pairs are those of training."""

from __future__ import annotations

import dataclasses
import random

import pytest
import tensorflow as tf

from bert_export.config import FeaturesConfig
from bert_export.features.pairs import PairEncoder
from tests import tiny_text
from tests.page import modules

WORDS = (
    *("bank", "river", "unableing", "money", "北京", "한국", "é", "qqq", "😀"),
    *("\u200d", "\u0301", "[MASK]", "ab", "the", "ΟΣ", " ", ""),
)


def random_pairs(count: int) -> list[tuple[str, int, int, str]]:
    rng = random.Random(23)
    pairs = []
    for number in range(count):
        text = " ".join(rng.choices(WORDS, k=rng.choice((1, 2, 5, 20, 60))))
        start = rng.randint(-1 if number % 50 == 0 else 0, len(text))
        end = start + rng.choice((0, 1, 2, 4, 9, 25))
        if number % 50:
            end = min(end, len(text))
        candidate = " ".join(rng.choices(WORDS, k=rng.choice((0, 1, 4, 8, 40))))
        pairs.append((text, start, end, candidate))
    for mention, candidate in tiny_text.pairs():
        pairs.append((mention.text, mention.start, mention.end, candidate))
    return pairs


@pytest.mark.parametrize("marker", ["", '"'])
@pytest.mark.parametrize("max_seq_length", [13, 20, 64])
def test_pairs_are_those_of_training(marker: str, max_seq_length: int) -> None:
    features = FeaturesConfig(max_seq_length=max_seq_length, mention_marker=marker)
    pairs = random_pairs(700)
    text, start, end, candidate = (tf.constant(column) for column in zip(*pairs))
    encoded = PairEncoder(tiny_text.TOKENIZER, features)(text, start, end, candidate)
    found = modules.encode(
        vocab=tiny_text.VOCAB,
        characters=modules.characters(),
        features=dataclasses.asdict(features),
        pairs=pairs,
    )
    ok = encoded.ok.numpy().tolist()
    assert 100 < sum(ok) < len(ok)
    rows = zip(
        encoded.input_ids.to_list(),
        encoded.segment_ids.to_list(),
        encoded.start_ps.numpy().tolist(),
        encoded.end_ps.numpy().tolist(),
    )
    for pair, good, row, ours in zip(pairs, ok, rows, found, strict=True):
        assert good == ("problem" not in ours), pair
        if good:
            keys = ("inputIds", "segmentIds", "startPs", "endPs")
            assert tuple(ours[key] for key in keys) == row, pair

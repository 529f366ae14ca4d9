"""Tiny linkers and random batches that the modeling tests share."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from bert_export.modeling.bert_config import BertConfig
from bert_export.modeling.linker import Linker

TINY = BertConfig(
    vocab_size=60,
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=32,
    max_position_embeddings=24,
)


VARIANTS = {
    "bert": TINY,
    "albert": dataclasses.replace(
        TINY,
        model_type="albert",
        num_hidden_layers=5,
        num_hidden_groups=2,
        inner_group_num=2,
        embedding_size=8,
        hidden_act="gelu_new",
    ),
    "electra": dataclasses.replace(TINY, model_type="electra", embedding_size=8),
    "distilbert": dataclasses.replace(TINY, model_type="distilbert", type_vocab_size=0),
}


def tiny_linker(spans: int = 2, config: BertConfig = TINY, seed: int = 0) -> Linker:
    """A linker in which every variable matters: none is 0 or 1 throughout."""
    linker = Linker(config, spans)
    rng = np.random.default_rng(seed)
    for variable in linker.variables:
        noise = rng.normal(0.0, 0.25, variable.shape)
        centre = 1.0 if variable.name.endswith("gamma:0") else 0.0
        variable.assign((centre + noise).astype(np.float32))
    return linker


class Batch(NamedTuple):
    """A Linker's arguments, as int64 arrays."""

    input_ids: np.ndarray
    input_mask: np.ndarray
    segment_ids: np.ndarray
    span_positions: np.ndarray | None


def random_batch(
    mask: np.ndarray, spans: int = 2, config: BertConfig = TINY, seed: int = 0
) -> Batch:
    """Random ids for a mask [batch, seq_length]; spans are on its real tokens.

    What the mask hides is random, too: nothing may depend on it.
    """
    rng = np.random.default_rng(seed)
    real = mask != 0
    real[:, 0] = True
    positions = [sorted(rng.choice(np.flatnonzero(row), size=spans)) for row in real]
    return Batch(
        rng.integers(0, config.vocab_size, mask.shape),
        mask.astype(np.int64),
        rng.integers(0, config.type_vocab_size or 2, mask.shape),
        np.array(positions, np.int64) if spans else None,
    )


def masks() -> dict[str, np.ndarray]:
    """Every kind of mask [batch, seq_length] that a batch may come with."""
    rng = np.random.default_rng(7)
    lengths = np.array([[3], [9], [5], [12], [1], [7]])
    ragged = (np.arange(12) < lengths).astype(np.int64)
    kinds = {
        "ragged": ragged,
        "padded beyond the longest": np.pad(ragged, [(0, 0), (0, 6)]),
        "holes": (rng.random([6, 14]) < 0.6).astype(np.int64),
        "an empty row": ragged * np.array([[1], [1], [0], [1], [1], [1]]),
        "first and last rows empty": ragged * np.array([[0], [1], [1], [1], [1], [0]]),
        "all rows empty": np.zeros([4, 8], np.int64),
        "length one": np.ones([5, 1], np.int64),
        "a single row": ragged[1:2],
        "full length": np.ones([3, TINY.max_position_embeddings], np.int64),
        "first token hidden": 1 - np.eye(1, 10, dtype=np.int64).repeat(3, axis=0),
        "other numbers than 1": ragged * 5,
    }
    return kinds


def loss_of(logits: tf.Tensor) -> tf.Tensor:
    """A scalar loss that weighs every row and class differently.

    Small enough for rounding not to show in gradients that are truly zero.
    """
    size = tf.size(logits, tf.int32)
    weights = tf.reshape(tf.cos(tf.cast(tf.range(size), tf.float32)), tf.shape(logits))
    return 0.1 * tf.reduce_mean(weights * tf.nn.log_softmax(logits))

"""BERT's forward pass in float64 numpy, written from the paper: a second opinion."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from bert_export.modeling.bert_config import BertConfig

_erf = np.vectorize(math.erf, otypes=[np.float64])


def hidden_states(
    weights: Mapping[str, np.ndarray],
    config: BertConfig,
    input_ids: np.ndarray,
    input_mask: np.ndarray,
    segment_ids: np.ndarray,
) -> np.ndarray:
    """The last layer's output, [batch, seq_length, hidden] float64.

    `weights` are keyed by Google's names; the three inputs are [batch, seq_length].
    """
    weights = {name: value.astype(np.float64) for name, value in weights.items()}

    def dense(name: str, x: np.ndarray) -> np.ndarray:
        return x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        deviation = np.sqrt(
            (centred**2).mean(-1, keepdims=True) + config.layer_norm_eps
        )
        return centred / deviation * weights[f"{name}/gamma"] + weights[f"{name}/beta"]

    batch, seq_length = input_ids.shape
    heads, size = config.num_attention_heads, config.head_size

    def split(x: np.ndarray) -> np.ndarray:
        return x.reshape(batch, seq_length, heads, size).transpose(0, 2, 1, 3)

    x = norm(
        "bert/embeddings/LayerNorm",
        weights["bert/embeddings/word_embeddings"][input_ids]
        + weights["bert/embeddings/position_embeddings"][np.arange(seq_length)]
        + weights["bert/embeddings/token_type_embeddings"][segment_ids],
    )
    for n in range(config.num_hidden_layers):
        layer = f"bert/encoder/layer_{n}"
        query, key, value = (
            split(dense(f"{layer}/attention/self/{name}", x))
            for name in ("query", "key", "value")
        )
        scores = query @ key.swapaxes(-1, -2) / math.sqrt(size)
        scores = np.where(input_mask[:, None, None, :] != 0, scores, -np.inf)
        weighted = np.exp(scores - scores.max(-1, keepdims=True))
        context = weighted / weighted.sum(-1, keepdims=True) @ value
        context = context.transpose(0, 2, 1, 3).reshape(batch, seq_length, -1)
        x = norm(
            f"{layer}/attention/output/LayerNorm",
            x + dense(f"{layer}/attention/output/dense", context),
        )
        inner = dense(f"{layer}/intermediate/dense", x)
        inner = inner * 0.5 * (1.0 + _erf(inner / math.sqrt(2.0)))
        x = norm(f"{layer}/output/LayerNorm", x + dense(f"{layer}/output/dense", inner))
    return x

"""BERT's forward pass in float64 numpy, written from the papers: a second opinion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

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

    def gelu(x: np.ndarray) -> np.ndarray:
        if config.hidden_act == "gelu":
            return x * 0.5 * (1.0 + _erf(x / math.sqrt(2.0)))
        return x * 0.5 * (1.0 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    summed = (
        weights["bert/embeddings/word_embeddings"][input_ids]
        + weights["bert/embeddings/position_embeddings"][np.arange(seq_length)]
    )
    if config.model_type != "distilbert":
        summed += weights["bert/embeddings/token_type_embeddings"][segment_ids]
    x = norm("bert/embeddings/LayerNorm", summed)
    if config.model_type == "albert":
        x = dense("bert/encoder/embedding_hidden_mapping_in", x)
    if config.model_type == "electra":
        x = dense("bert/embeddings_project", x)
    for layer in _layers(config):
        query, key, value = (
            split(dense(f"{layer.attends}/{name}", x))
            for name in ("query", "key", "value")
        )
        scores = query @ key.swapaxes(-1, -2) / math.sqrt(size)
        scores = np.where(input_mask[:, None, None, :] != 0, scores, -np.inf)
        weighted = np.exp(scores - scores.max(-1, keepdims=True))
        context = weighted / weighted.sum(-1, keepdims=True) @ value
        context = context.transpose(0, 2, 1, 3).reshape(batch, seq_length, -1)
        x = norm(layer.attention_norm, x + dense(layer.attention_output, context))
        inner = gelu(dense(layer.intermediate, x))
        x = norm(layer.output_norm, x + dense(layer.output, inner))
    return x


class _Names(NamedTuple):
    attends: str
    attention_output: str
    attention_norm: str
    intermediate: str
    output: str
    output_norm: str


def _layers(config: BertConfig) -> list[_Names]:
    """What each layer reads, one after the other."""
    if config.model_type != "albert":
        return [
            _Names(
                f"bert/encoder/layer_{n}/attention/self",
                f"bert/encoder/layer_{n}/attention/output/dense",
                f"bert/encoder/layer_{n}/attention/output/LayerNorm",
                f"bert/encoder/layer_{n}/intermediate/dense",
                f"bert/encoder/layer_{n}/output/dense",
                f"bert/encoder/layer_{n}/output/LayerNorm",
            )
            for n in range(config.num_hidden_layers)
        ]
    assert config.num_hidden_groups is not None
    names = []
    for n in range(config.num_hidden_layers):
        group = math.floor(n * config.num_hidden_groups / config.num_hidden_layers)
        for inner in range(config.inner_group_num):
            scope = f"bert/encoder/transformer/group_{group}/inner_group_{inner}"
            names.append(
                _Names(
                    f"{scope}/attention_1/self",
                    f"{scope}/attention_1/output/dense",
                    f"{scope}/LayerNorm",
                    f"{scope}/ffn_1/intermediate/dense",
                    f"{scope}/ffn_1/intermediate/output/dense",
                    f"{scope}/LayerNorm_1",
                )
            )
    return names

"""Linkers of each variant of BERT with random weights, as if they had been trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf

from bert_export.config import FeaturesConfig
from bert_export.export.linker_graph import TrainedLinker
from bert_export.features.tokenizer import Tokenizer
from bert_export.modeling.bert_config import BertConfig
from tests import tiny_artifact
from tests.modeling.linkers import tiny_linker

_SIZES = {
    "vocab_size": len(tiny_artifact.VOCAB),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 24,
}
VARIANTS = {
    "bert": BertConfig(**_SIZES),
    "bert_gelu_new": BertConfig(**_SIZES, hidden_act="gelu_new"),
    "albert": BertConfig(
        **_SIZES, model_type="albert", embedding_size=8, num_hidden_groups=1
    ),
    "electra": BertConfig(**_SIZES, model_type="electra", embedding_size=8),
    "electra_base": BertConfig(**_SIZES, model_type="electra"),
    "distilbert": BertConfig(**_SIZES, model_type="distilbert", type_vocab_size=0),
}
_FEATURES = FeaturesConfig(max_seq_length=20)


def trained(
    variant: str,
    directory: Path,
    features: FeaturesConfig = _FEATURES,
    tokenizer: Tokenizer = tiny_artifact.TOKENIZER,
) -> TrainedLinker:
    """Writes a checkpoint of a linker into a directory that may not exist."""
    directory.mkdir(parents=True, exist_ok=True)
    config = VARIANTS[variant]
    linker = tiny_linker(len(features.span_fields), config)
    prefix = str(directory / "model.ckpt-1")
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=[
            variable.name.removesuffix(":0") for variable in linker.variables
        ],
        shape_and_slices=[""] * len(linker.variables),
        tensors=[variable.read_value() for variable in linker.variables],
    )
    return TrainedLinker(prefix, config, features, tokenizer)


def requests(model: TrainedLinker, rows: int = 5) -> dict[str, np.ndarray]:
    """Random features by name, int64; rows of different lengths."""
    rng = np.random.default_rng(4)
    spec, length = model.spec, 18
    lengths = rng.integers(4, length + 1, size=rows)
    lengths[0] = length
    mask = (np.arange(length) < lengths[:, np.newaxis]).astype(np.int64)
    values = (
        rng.integers(4, model.bert.vocab_size, mask.shape) * mask,
        mask,
        np.sort(rng.integers(2, size=mask.shape)) * mask,
    )
    features = dict(zip(spec.sequence_names, values))
    spans = np.sort([rng.integers(lengths) for _ in spec.span_fields], axis=0)
    features.update(zip(spec.span_fields, spans))
    return features

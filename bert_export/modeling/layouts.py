"""How frameworks name and lay out an encoder's weights: one table for each.

Ours are the names of Google's TensorFlow 1 checkpoints, always under `bert/`:
`bert/encoder/layer_{n}/...` of BERT, ELECTRA and DistilBERT, and
`bert/encoder/transformer/group_{g}/inner_group_{i}/...` of ALBERT, whose layers share
their variables. Kernels are [inputs, outputs].
"""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Iterable, Sequence

import numpy as np


class Transform(enum.Enum):
    """How a tensor's shape differs from ours."""

    SAME = "same"
    # PyTorch's linear layers keep [outputs, inputs].
    TRANSPOSED = "transposed"
    # Keras's attention keeps heads apart: [inputs, heads, head_size], and biases
    # [heads, head_size]; of its output layer [heads, head_size, outputs].
    HEADS_LAST = "heads last"
    HEADS_FIRST = "heads first"

    def our_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape that a tensor of theirs has here.

        A tensor of another rank than the transform is for keeps its shape, which
        will not fit.
        """
        shape = tuple(shape)
        if self is Transform.TRANSPOSED:
            return shape[::-1]
        if self is Transform.HEADS_LAST and len(shape) >= 2:
            return (*shape[:-2], shape[-2] * shape[-1])
        if self is Transform.HEADS_FIRST and len(shape) >= 2:
            return (shape[0] * shape[1], *shape[2:])
        return shape

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """A tensor of theirs as ours."""
        turned = array.T if self is Transform.TRANSPOSED else array
        return np.ascontiguousarray(turned).reshape(self.our_shape(array.shape))

    def from_ours(self, array: np.ndarray, heads: int) -> np.ndarray:
        """A tensor of ours as theirs; `heads` is the encoder's number of them."""
        if self is Transform.TRANSPOSED:
            return np.ascontiguousarray(array.T)
        if self is Transform.HEADS_LAST:
            return array.reshape(*array.shape[:-1], heads, -1)
        if self is Transform.HEADS_FIRST:
            return array.reshape(heads, -1, *array.shape[1:])
        return array


# The tensors of a kind of module: theirs, ours, and the transform.
Kind = tuple[tuple[str, str, Transform], ...]
_TORCH_EMBEDDING: Kind = ((".weight", "", Transform.SAME),)
_TORCH_DENSE: Kind = (
    (".weight", "/kernel", Transform.TRANSPOSED),
    (".bias", "/bias", Transform.SAME),
)
_TORCH_NORM: Kind = (
    (".weight", "/gamma", Transform.SAME),
    (".bias", "/beta", Transform.SAME),
    # Checkpoints of 2018 and 2019; never written.
    (".gamma", "/gamma", Transform.SAME),
    (".beta", "/beta", Transform.SAME),
)
_EMBEDDING: Kind = (("", "", Transform.SAME),)
_DENSE: Kind = (
    ("/kernel", "/kernel", Transform.SAME),
    ("/bias", "/bias", Transform.SAME),
)
_NORM: Kind = (
    ("/gamma", "/gamma", Transform.SAME),
    ("/beta", "/beta", Transform.SAME),
)
_KERAS_EMBEDDING: Kind = (("/embeddings", "", Transform.SAME),)
_KERAS_TO_HEADS: Kind = (
    ("/kernel", "/kernel", Transform.HEADS_LAST),
    ("/bias", "/bias", Transform.HEADS_LAST),
)
_KERAS_FROM_HEADS: Kind = (
    ("/kernel", "/kernel", Transform.HEADS_FIRST),
    ("/bias", "/bias", Transform.SAME),
)

# Ours.
_LAYER = "bert/encoder/layer_{n}"
_BLOCK = "bert/encoder/transformer/group_{g}/inner_group_{i}"
_ONLY_BLOCK = "bert/encoder/transformer/group_0/inner_group_0"

_TORCH_EMBEDDINGS = (
    ("embeddings.word_embeddings", "bert/embeddings/word_embeddings", _TORCH_EMBEDDING),
    (
        "embeddings.position_embeddings",
        "bert/embeddings/position_embeddings",
        _TORCH_EMBEDDING,
    ),
    (
        "embeddings.token_type_embeddings",
        "bert/embeddings/token_type_embeddings",
        _TORCH_EMBEDDING,
    ),
    ("embeddings.LayerNorm", "bert/embeddings/LayerNorm", _TORCH_NORM),
)
_TORCH_LAYER = (
    (
        "encoder.layer.{n}.attention.self.query",
        f"{_LAYER}/attention/self/query",
        _TORCH_DENSE,
    ),
    (
        "encoder.layer.{n}.attention.self.key",
        f"{_LAYER}/attention/self/key",
        _TORCH_DENSE,
    ),
    (
        "encoder.layer.{n}.attention.self.value",
        f"{_LAYER}/attention/self/value",
        _TORCH_DENSE,
    ),
    (
        "encoder.layer.{n}.attention.output.dense",
        f"{_LAYER}/attention/output/dense",
        _TORCH_DENSE,
    ),
    (
        "encoder.layer.{n}.attention.output.LayerNorm",
        f"{_LAYER}/attention/output/LayerNorm",
        _TORCH_NORM,
    ),
    (
        "encoder.layer.{n}.intermediate.dense",
        f"{_LAYER}/intermediate/dense",
        _TORCH_DENSE,
    ),
    ("encoder.layer.{n}.output.dense", f"{_LAYER}/output/dense", _TORCH_DENSE),
    ("encoder.layer.{n}.output.LayerNorm", f"{_LAYER}/output/LayerNorm", _TORCH_NORM),
)
_TORCH_BLOCK = "encoder.albert_layer_groups.{g}.albert_layers.{i}"

# Modules of each layout: theirs, ours, and what tensors such a module has. {n} is a
# layer's number, {g} that of ALBERT's group and {i} that inside the group.
LAYOUTS: dict[str, tuple[tuple[str, str, Kind], ...]] = {
    # google-research's TensorFlow 1 checkpoints of BERT, ALBERT and ELECTRA.
    "google": tuple(
        (name, name, kind)
        for name, kind in (
            ("bert/embeddings/word_embeddings", _EMBEDDING),
            ("bert/embeddings/position_embeddings", _EMBEDDING),
            ("bert/embeddings/token_type_embeddings", _EMBEDDING),
            ("bert/embeddings/LayerNorm", _NORM),
            ("bert/embeddings_project", _DENSE),
            ("bert/encoder/embedding_hidden_mapping_in", _DENSE),
            (f"{_LAYER}/attention/self/query", _DENSE),
            (f"{_LAYER}/attention/self/key", _DENSE),
            (f"{_LAYER}/attention/self/value", _DENSE),
            (f"{_LAYER}/attention/output/dense", _DENSE),
            (f"{_LAYER}/attention/output/LayerNorm", _NORM),
            (f"{_LAYER}/intermediate/dense", _DENSE),
            (f"{_LAYER}/output/dense", _DENSE),
            (f"{_LAYER}/output/LayerNorm", _NORM),
            (f"{_BLOCK}/attention_1/self/query", _DENSE),
            (f"{_BLOCK}/attention_1/self/key", _DENSE),
            (f"{_BLOCK}/attention_1/self/value", _DENSE),
            (f"{_BLOCK}/attention_1/output/dense", _DENSE),
            (f"{_BLOCK}/LayerNorm", _NORM),
            (f"{_BLOCK}/ffn_1/intermediate/dense", _DENSE),
            (f"{_BLOCK}/ffn_1/intermediate/output/dense", _DENSE),
            (f"{_BLOCK}/LayerNorm_1", _NORM),
            ("bert/pooler/dense", _DENSE),
        )
    ),
    # transformers' BertModel.
    "huggingface_bert": (
        *_TORCH_EMBEDDINGS,
        *_TORCH_LAYER,
        ("pooler.dense", "bert/pooler/dense", _TORCH_DENSE),
    ),
    # transformers' ElectraModel.
    "huggingface_electra": (
        *_TORCH_EMBEDDINGS,
        ("embeddings_project", "bert/embeddings_project", _TORCH_DENSE),
        *_TORCH_LAYER,
    ),
    # transformers' AlbertModel.
    "huggingface_albert": (
        *_TORCH_EMBEDDINGS,
        (
            "encoder.embedding_hidden_mapping_in",
            "bert/encoder/embedding_hidden_mapping_in",
            _TORCH_DENSE,
        ),
        (
            f"{_TORCH_BLOCK}.attention.query",
            f"{_BLOCK}/attention_1/self/query",
            _TORCH_DENSE,
        ),
        (
            f"{_TORCH_BLOCK}.attention.key",
            f"{_BLOCK}/attention_1/self/key",
            _TORCH_DENSE,
        ),
        (
            f"{_TORCH_BLOCK}.attention.value",
            f"{_BLOCK}/attention_1/self/value",
            _TORCH_DENSE,
        ),
        (
            f"{_TORCH_BLOCK}.attention.dense",
            f"{_BLOCK}/attention_1/output/dense",
            _TORCH_DENSE,
        ),
        (f"{_TORCH_BLOCK}.attention.LayerNorm", f"{_BLOCK}/LayerNorm", _TORCH_NORM),
        (f"{_TORCH_BLOCK}.ffn", f"{_BLOCK}/ffn_1/intermediate/dense", _TORCH_DENSE),
        (
            f"{_TORCH_BLOCK}.ffn_output",
            f"{_BLOCK}/ffn_1/intermediate/output/dense",
            _TORCH_DENSE,
        ),
        (
            f"{_TORCH_BLOCK}.full_layer_layer_norm",
            f"{_BLOCK}/LayerNorm_1",
            _TORCH_NORM,
        ),
        ("pooler", "bert/pooler/dense", _TORCH_DENSE),
    ),
    # transformers' DistilBertModel.
    "huggingface_distilbert": (
        *(row for row in _TORCH_EMBEDDINGS if "token_type" not in row[0]),
        (
            "transformer.layer.{n}.attention.q_lin",
            f"{_LAYER}/attention/self/query",
            _TORCH_DENSE,
        ),
        (
            "transformer.layer.{n}.attention.k_lin",
            f"{_LAYER}/attention/self/key",
            _TORCH_DENSE,
        ),
        (
            "transformer.layer.{n}.attention.v_lin",
            f"{_LAYER}/attention/self/value",
            _TORCH_DENSE,
        ),
        (
            "transformer.layer.{n}.attention.out_lin",
            f"{_LAYER}/attention/output/dense",
            _TORCH_DENSE,
        ),
        (
            "transformer.layer.{n}.sa_layer_norm",
            f"{_LAYER}/attention/output/LayerNorm",
            _TORCH_NORM,
        ),
        (
            "transformer.layer.{n}.ffn.lin1",
            f"{_LAYER}/intermediate/dense",
            _TORCH_DENSE,
        ),
        ("transformer.layer.{n}.ffn.lin2", f"{_LAYER}/output/dense", _TORCH_DENSE),
        (
            "transformer.layer.{n}.output_layer_norm",
            f"{_LAYER}/output/LayerNorm",
            _TORCH_NORM,
        ),
    ),
    # The variables of TensorFlow Hub's TF2 encoders, version 3 up, and of
    # tf-models-official's BertEncoder, which they were made of.
    "hub_tf2": (
        ("word_embeddings", "bert/embeddings/word_embeddings", _KERAS_EMBEDDING),
        ("position_embedding", "bert/embeddings/position_embeddings", _KERAS_EMBEDDING),
        ("type_embeddings", "bert/embeddings/token_type_embeddings", _KERAS_EMBEDDING),
        ("embeddings/layer_norm", "bert/embeddings/LayerNorm", _NORM),
        (
            "transformer/layer_{n}/self_attention/query",
            f"{_LAYER}/attention/self/query",
            _KERAS_TO_HEADS,
        ),
        (
            "transformer/layer_{n}/self_attention/key",
            f"{_LAYER}/attention/self/key",
            _KERAS_TO_HEADS,
        ),
        (
            "transformer/layer_{n}/self_attention/value",
            f"{_LAYER}/attention/self/value",
            _KERAS_TO_HEADS,
        ),
        (
            "transformer/layer_{n}/self_attention/attention_output",
            f"{_LAYER}/attention/output/dense",
            _KERAS_FROM_HEADS,
        ),
        (
            # Of 2020; never written.
            "transformer/layer_{n}/self_attention_output",
            f"{_LAYER}/attention/output/dense",
            _KERAS_FROM_HEADS,
        ),
        (
            "transformer/layer_{n}/self_attention_layer_norm",
            f"{_LAYER}/attention/output/LayerNorm",
            _NORM,
        ),
        ("transformer/layer_{n}/intermediate", f"{_LAYER}/intermediate/dense", _DENSE),
        ("transformer/layer_{n}/output", f"{_LAYER}/output/dense", _DENSE),
        (
            "transformer/layer_{n}/output_layer_norm",
            f"{_LAYER}/output/LayerNorm",
            _NORM,
        ),
        ("pooler_transform", "bert/pooler/dense", _DENSE),
    ),
    # Of its AlbertEncoder.
    "hub_tf2_albert": (
        ("word_embeddings", "bert/embeddings/word_embeddings", _KERAS_EMBEDDING),
        ("position_embedding", "bert/embeddings/position_embeddings", _KERAS_EMBEDDING),
        ("type_embeddings", "bert/embeddings/token_type_embeddings", _KERAS_EMBEDDING),
        ("embeddings/layer_norm", "bert/embeddings/LayerNorm", _NORM),
        (
            "embedding_projection",
            "bert/encoder/embedding_hidden_mapping_in",
            _DENSE,
        ),
        (
            "transformer/self_attention/query",
            f"{_ONLY_BLOCK}/attention_1/self/query",
            _KERAS_TO_HEADS,
        ),
        (
            "transformer/self_attention/key",
            f"{_ONLY_BLOCK}/attention_1/self/key",
            _KERAS_TO_HEADS,
        ),
        (
            "transformer/self_attention/value",
            f"{_ONLY_BLOCK}/attention_1/self/value",
            _KERAS_TO_HEADS,
        ),
        (
            "transformer/self_attention/attention_output",
            f"{_ONLY_BLOCK}/attention_1/output/dense",
            _KERAS_FROM_HEADS,
        ),
        (
            "transformer/self_attention_layer_norm",
            f"{_ONLY_BLOCK}/LayerNorm",
            _NORM,
        ),
        (
            "transformer/intermediate",
            f"{_ONLY_BLOCK}/ffn_1/intermediate/dense",
            _DENSE,
        ),
        (
            "transformer/output",
            f"{_ONLY_BLOCK}/ffn_1/intermediate/output/dense",
            _DENSE,
        ),
        ("transformer/output_layer_norm", f"{_ONLY_BLOCK}/LayerNorm_1", _NORM),
        ("pooler_transform", "bert/pooler/dense", _DENSE),
    ),
}

# What may stand before a layout's names: models with a head, and how they were saved.
_PREFIXES: dict[str, str] = {
    # As if the names in the table had no `bert/`.
    "google": "(?:module/)?(?:(?:bert|electra)/)?",
    "huggingface_bert": r"(?:bert\.)?",
    "huggingface_electra": r"(?:discriminator\.)?(?:electra\.)?",
    "huggingface_albert": r"(?:albert\.)?",
    "huggingface_distilbert": r"(?:distilbert\.)?",
    "hub_tf2": "",
    "hub_tf2_albert": "",
}

WORD_EMBEDDINGS = "bert/embeddings/word_embeddings"


def to_ours(layout: str, name: str) -> tuple[str, Transform] | None:
    """What a tensor of a layout is called here.

    Args:
      layout: one of LAYOUTS.
      name: the tensor's, there; without the `:0` of TensorFlow's variables.

    Returns:
      Our name, and the transform from theirs to ours; None if it is no weight of an
      encoder, such as a head's.
    """
    for pattern, ours, transform in _readers(layout):
        if match := pattern.fullmatch(name):
            return ours.format(**match.groupdict()), transform
    return None


def from_ours(layout: str, name: str) -> tuple[str, Transform]:
    """What a variable of ours is called in a layout, without any prefix.

    Args:
      layout: one of LAYOUTS.
      name: ours, without `:0`.

    Returns:
      Their name, and the transform (whose `from_ours` makes theirs).

    Raises:
      KeyError: the layout has no such variable.
    """
    for pattern, theirs, transform in _writers(layout):
        if match := pattern.fullmatch(name):
            return theirs.format(**match.groupdict()), transform
    raise KeyError(f"the layout {layout} has no {name}")


def recognize(names: Iterable[str]) -> str | None:
    """The layout that most of the names belong to; None without word embeddings."""
    names = list(names)
    counts = {}
    for layout in LAYOUTS:
        ours = [found[0] for name in names if (found := to_ours(layout, name))]
        if WORD_EMBEDDINGS in ours:
            counts[layout] = len(ours)
    return max(counts, key=lambda layout: counts[layout], default=None)


@functools.cache
def _readers(layout: str) -> list[tuple[re.Pattern[str], str, Transform]]:
    """For every tensor: theirs, with any prefix; ours, to be filled in; transform."""
    return [
        (
            re.compile(
                _PREFIXES[layout] + _regex((theirs + there).removeprefix("bert/"))
            ),
            ours + here,
            transform,
        )
        for theirs, ours, kind in LAYOUTS[layout]
        for there, here, transform in kind
    ]


@functools.cache
def _writers(layout: str) -> list[tuple[re.Pattern[str], str, Transform]]:
    """For every tensor: ours; theirs, to be filled in; transform."""
    return [
        (re.compile(_regex(ours + here)), theirs + there, transform)
        for theirs, ours, kind in LAYOUTS[layout]
        for there, here, transform in kind
    ]


def _regex(name: str) -> str:
    """A name with {n}, {g} and {i} as a pattern with groups of these names."""
    return re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", re.escape(name))

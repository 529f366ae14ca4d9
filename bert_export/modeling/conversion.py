"""Weights of any known layout, and their conversion to a checkpoint with our names."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from bert_export.errors import UserError
from bert_export.files import new_directory, sha256_file
from bert_export.modeling import checkpoint, hugging_face, layouts
from bert_export.modeling.bert_config import BertConfig
from bert_export.modeling.encoder import BertEncoder
from bert_export.modeling.layouts import Transform
from bert_export.modeling.stored import StoredTensor

CHECKPOINT_NAME = "bert_model.ckpt"
# Part of the fingerprint; to be raised when the conversion changes.
FORMAT = "2"
# The encoder's weights that heads of ours do not read.
POOLER = "bert/pooler/"
# Names that a message lists.
_LISTED = 4


@dataclasses.dataclass(frozen=True)
class Source:
    """Weights somewhere; only names and shapes have been read."""

    # One of hugging_face.WEIGHTS_FILES, or a checkpoint's prefix.
    path: Path
    # One of LAYOUTS.
    layout: str
    # By our names where the layout has them, else by the file's.
    tensors: Mapping[str, tuple[StoredTensor, Transform]]
    # Whether it is a checkpoint that needs no conversion.
    is_ours: bool

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes, as they are here, of what belongs to an encoder."""
        return {
            name: transform.our_shape(tensor.shape)
            for name, (tensor, transform) in self.tensors.items()
            if layouts.to_ours("google", name)
        }


def open_source(path: Path) -> Source:
    """Reads the names and shapes of weights.

    Args:
      path: one of hugging_face.WEIGHTS_FILES, or a TensorFlow checkpoint's prefix.

    Raises:
      UserError: the file is damaged, its layout is none of LAYOUTS, or several of its
        tensors have one name here.
    """
    is_checkpoint = path.name not in hugging_face.WEIGHTS_FILES
    stored = (
        checkpoint.tensors(str(path)) if is_checkpoint else hugging_face.tensors(path)
    )
    layout = layouts.recognize(stored)
    if layout is None:
        raise UserError(
            f"{path}: the weights of no encoder that is known: found the names "
            f"{_some(sorted(stored)) or 'none'}; expected those of BERT, ALBERT, "
            "ELECTRA or DistilBERT as google-research, transformers or TensorFlow "
            "Hub call them"
        )
    tensors: dict[str, tuple[StoredTensor, Transform]] = {}
    theirs: dict[str, str] = {}
    for name, tensor in stored.items():
        ours, transform = layouts.to_ours(layout, name) or (name, Transform.SAME)
        if ours in tensors:
            raise UserError(
                f"{path}: both {theirs[ours]} and {name} are {ours} here; expected "
                "the weights of one encoder"
            )
        tensors[ours] = tensor, transform
        theirs[ours] = name
    is_ours = (
        is_checkpoint
        and all(name == ours for ours, name in theirs.items())
        # Not so where the names come from TF2's graph of objects.
        and checkpoint.open_reader(str(path)).has_tensor(layouts.WORD_EMBEDDINGS)
    )
    return Source(path, layout, tensors, is_ours)


def check(source: Source, config: BertConfig, config_path: Path) -> None:
    """Checks that weights are those of the encoder that a config describes.

    Raises:
      UserError: they are not; the message says in what.
    """
    found = source.shapes
    expected = {
        variable.op.name: tuple(variable.shape.as_list())
        for variable in _variables(config)
    }
    wrong = [
        f"{name} is {_show(getattr(config, name))}, but the weights have {_show(value)}"
        for name, value in sizes(found).items()
        if getattr(config, name) != value
    ]
    if not wrong:
        wrong = [
            f"{name} is {list(found[name])}, expected {list(shape)}"
            for name, shape in sorted(expected.items())
            if name in found and found[name] != shape
        ]
        if missing := sorted(expected.keys() - found.keys()):
            wrong.append(f"the weights lack {_some(missing)}")
        if unknown := sorted(
            name
            for name in found.keys() - expected.keys()
            if not name.startswith(POOLER)
        ):
            wrong.append(f"the weights have {_some(unknown)}, too")
    if wrong:
        raise UserError(
            f"{config_path}: this {config.model_type} does not fit the weights in "
            f"{source.path} ({source.layout}): {'; '.join(wrong)}"
        )


def sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int | None]:
    """What an encoder's variables, by our names, tell of its BertConfig's sizes."""
    result: dict[str, int | None] = {"type_vocab_size": 0}
    for table, size in (
        ("word", "vocab_size"),
        ("position", "max_position_embeddings"),
        ("token_type", "type_vocab_size"),
    ):
        if len(shape := shapes.get(f"bert/embeddings/{table}_embeddings", ())) == 2:
            result[size] = shape[0]
    numbers = _counts(shapes)
    if numbers["layer"]:
        result["num_hidden_layers"] = numbers["layer"]
    if numbers["group"]:
        result["num_hidden_groups"] = numbers["group"]
        result["inner_group_num"] = numbers["inner_group"]
    for name, shape in shapes.items():
        if name.endswith("intermediate/dense/kernel") and len(shape) == 2:
            result["hidden_size"], result["intermediate_size"] = shape
        if name.endswith(("embeddings_project/kernel", "mapping_in/kernel")):
            result["embedding_size"] = shape[0]
    return result


def _counts(names: Iterable[str]) -> dict[str, int]:
    """How many layers, groups and inner groups variables are numbered with."""
    return {
        kind: max(
            (
                int(match[1]) + 1
                for name in names
                if (match := re.search(rf"/{kind}_(\d+)/", name))
            ),
            default=0,
        )
        for kind in ("layer", "group", "inner_group")
    }


def convert(source: Source, cache_dir: Path) -> str:
    """Writes weights as a checkpoint with Google's names, unless it is there.

    Args:
      source: float16 and bfloat16 become float32.
      cache_dir: gets a directory named by the files' fingerprint.

    Returns:
      The checkpoint's prefix.

    Raises:
      UserError: a file is damaged.
    """
    directory = cache_dir / f"{_fingerprint(source.path)[:16]}-{FORMAT}"
    if not directory.exists():
        values = {
            name: transform.to_ours(tensor.read())
            for name, (tensor, transform) in source.tensors.items()
        }
        with new_directory(directory) as partial:
            write_checkpoint(partial, values)
    return str(directory / CHECKPOINT_NAME)


def write_checkpoint(directory: Path, values: Mapping[str, np.ndarray]) -> None:
    """Writes tensors by name as the checkpoint CHECKPOINT_NAME."""
    with tf.init_scope():  # Eager, whatever graph is being built.
        tf.raw_ops.SaveV2(
            prefix=str(directory / CHECKPOINT_NAME),
            tensor_names=list(values),
            shape_and_slices=[""] * len(values),
            tensors=list(values.values()),
        )


def _fingerprint(path: Path) -> str:
    """Hex digits that tell weights from others."""
    if path.name not in hugging_face.WEIGHTS_FILES:
        # It has the checksums of all tensors.
        return sha256_file(f"{path}.index")
    digests = [sha256_file(file) for file in hugging_face.files(path)]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _variables(config: BertConfig) -> tuple[tf.Variable, ...]:
    with tf.Graph().as_default():
        return BertEncoder(config).variables


def _some(names: list[str]) -> str:
    """The first names, and how many more there are."""
    listed = ", ".join(names[:_LISTED])
    more = len(names) - _LISTED
    return f"{listed} and {more} more" if more > 0 else listed


def _show(value: int | None) -> str:
    return "unset" if value is None else str(value)

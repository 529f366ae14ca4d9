"""The weights in a TensorFlow checkpoint: named as in TF1, or TF2's object graph."""

from __future__ import annotations

import collections
import functools

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import trackable_object_graph_pb2

from bert_export.errors import UserError
from bert_export.modeling import layouts
from bert_export.modeling.stored import StoredTensor

# A training checkpoint's variables that are no weights, by how they end.
NO_WEIGHTS = (
    *("/adam_m", "/adam_v", "/Adam", "/Adam_1", "beta1_power", "beta2_power"),
    *("global_step", "save_counter", "_CHECKPOINTABLE_OBJECT_GRAPH"),
)
# What TensorFlow's checkpoint reader turns a damaged file's error into, by its kind.
_READ_ERRORS = (ValueError, RuntimeError, LookupError, tf.errors.OpError)
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_SLOT = "/.OPTIMIZER_SLOT/"


def open_reader(prefix: str) -> tf.train.CheckpointReader:
    """A reader of a checkpoint's index; UserError if that is damaged."""
    try:
        return tf.train.load_checkpoint(prefix)
    except _READ_ERRORS as error:
        raise UserError(f"{prefix}: cannot read the checkpoint: {error}") from error


def read(prefix: str, reader: tf.train.CheckpointReader, name: str) -> np.ndarray:
    """A tensor, held against its checksum; UserError if it is damaged."""
    try:
        return reader.get_tensor(name)
    except _READ_ERRORS as error:
        raise UserError(
            f"{prefix}: cannot read {name}; the checkpoint's data file is damaged or "
            f"incomplete: {error}"
        ) from error


def tensors(prefix: str) -> dict[str, StoredTensor]:
    """The tensors of floats by their names; moments of an optimizer left out.

    TF2 checkpoints keep variables under their places in a graph of objects, such as
    `model/layers/0/kernel/.ATTRIBUTES/VARIABLE_VALUE`, and in that graph the names
    the variables had. They are returned under the latter if those are an encoder's,
    else under their places.

    Raises:
      UserError: the checkpoint is damaged.
    """
    reader = open_reader(prefix)
    types = reader.get_variable_to_dtype_map()
    shapes = reader.get_variable_to_shape_map()

    def stored(key: str) -> StoredTensor:
        return StoredTensor(
            tuple(shapes[key]), functools.partial(_read_floats, prefix, reader, key)
        )

    keys = {
        key: key
        for key in sorted(shapes)
        if types[key].is_floating and not key.endswith(NO_WEIGHTS) and _SLOT not in key
    }
    if _OBJECT_GRAPH in shapes:
        names = _object_names(prefix, reader)
        named = {names[key]: key for key in keys if key in names}
        if layouts.recognize(named):
            keys = named
        else:
            # A slash in an attribute's name is written as .S.
            keys = {
                key.removesuffix(_VALUE).replace(".S", "/"): key
                for key in keys.values()
            }
    return {name: stored(key) for name, key in keys.items()}


def _object_names(prefix: str, reader: tf.train.CheckpointReader) -> dict[str, str]:
    """By key, the names that variables had; those that several had are left out."""
    graph = trackable_object_graph_pb2.TrackableObjectGraph.FromString(
        read(prefix, reader, _OBJECT_GRAPH)
    )
    names = {
        attribute.checkpoint_key: attribute.full_name
        for node in graph.nodes
        for attribute in node.attributes
        if attribute.full_name
    }
    counts = collections.Counter(names.values())
    return {key: name for key, name in names.items() if counts[name] == 1}


def _read_floats(
    prefix: str, reader: tf.train.CheckpointReader, key: str
) -> np.ndarray:
    return read(prefix, reader, key).astype(np.float32)

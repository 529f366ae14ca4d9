"""The frozen_graph format: one GraphDef file with the weights as constants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf

from bert_export.errors import StageError
from bert_export.export import linker_graph
from bert_export.export.session_graph import serialize, write_whole

FILE = "frozen_graph.pb"

_HALVES = {"bfloat16": tf.bfloat16, "float16": tf.float16}
# Smaller matrices keep float32, as biases, norms and the mask's large number do.
_SMALLEST = 256


def write(
    model: linker_graph.TrainedLinker,
    staging: Path,
    precision: str,
    calibration: list[dict[str, np.ndarray]],
) -> list[str]:
    """Writes FILE: placeholders named as the features, outputs as in `OUTPUTS`.

    Args:
      model: what to write.
      staging: an existing directory.
      precision: 'float32', 'bfloat16' or 'float16', in which matrices are stored.
      calibration: not needed here.

    Returns:
      Sentences on what was decided.

    Raises:
      StageError: a weight is too large for float16.
    """
    del calibration
    graph_def = linker_graph.freeze(model, checked=True)
    notes = []
    if precision != "float32":
        graph_def = store_as_half(graph_def, _HALVES[precision])
        notes.append(
            f"weight matrices are stored in {precision} and "
            "computed with in float32: the file is half as large, memory and speed are "
            "those of float32 at best"
        )
    write_whole(staging / FILE, serialize(graph_def))
    return notes


def store_as_half(
    graph_def: tf.compat.v1.GraphDef, dtype: tf.DType
) -> tf.compat.v1.GraphDef:
    """Stores large float32 matrices in half the bytes.

    Each constant becomes a constant NAME/half and a Cast NAME back to float32. Of a
    table that rows are gathered from, only these rows are cast.

    Args:
      graph_def: the graph; not changed. Constants inside functions stay as they are.
      dtype: tf.float16 or tf.bfloat16.

    Raises:
      StageError: a finite number becomes infinite.
    """
    result = tf.compat.v1.GraphDef()
    result.versions.CopyFrom(graph_def.versions)
    result.library.CopyFrom(graph_def.library)
    halves = set()
    for node in graph_def.node:
        if node.op == "Const" and node.attr["dtype"].type == tf.float32:
            value = tf.make_ndarray(node.attr["value"].tensor)
            if value.ndim > 1 and value.size >= _SMALLEST:
                result.node.append(_half_constant(node, value, dtype))
                halves.add(node.name)
    gathers = {
        node.name: node.input[0]
        for node in graph_def.node
        if node.op == "GatherV2" and node.input[0] in halves
    }
    read_whole = {
        name.lstrip("^").partition(":")[0]
        for node in graph_def.node
        for name in node.input[1 if node.name in gathers else 0 :]
    }
    for node in graph_def.node:
        if node.name in gathers:
            gather = result.node.add()
            gather.CopyFrom(node)
            gather.name = f"{node.name}/half"
            gather.input[0] = f"{node.input[0]}/half"
            gather.attr["Tparams"].type = dtype.as_datatype_enum
            result.node.append(_cast(node.name, dtype))
        elif node.name not in halves:
            result.node.append(node)
        elif node.name in read_whole or node.name not in gathers.values():
            result.node.append(_cast(node.name, dtype))
    return result


def _half_constant(
    node: tf.compat.v1.NodeDef, value: np.ndarray, dtype: tf.DType
) -> tf.compat.v1.NodeDef:
    with np.errstate(over="ignore"):
        half = value.astype(dtype.as_numpy_dtype)
    lost = np.isfinite(value) & ~np.isfinite(half.astype(np.float32))
    if lost.any():
        raise StageError(
            f"{node.name}: {np.abs(value[lost]).max():g} is too large for "
            f"{dtype.name}; export float32 or bfloat16"
        )
    constant = tf.compat.v1.NodeDef()
    constant.CopyFrom(node)
    constant.name = f"{node.name}/half"
    constant.attr["dtype"].type = dtype.as_datatype_enum
    # tf.make_tensor_proto would spend three bytes on a bfloat16.
    tensor = constant.attr["value"].tensor
    tensor.Clear()
    tensor.dtype = dtype.as_datatype_enum
    tensor.tensor_shape.CopyFrom(tf.TensorShape(value.shape).as_proto())
    tensor.tensor_content = half.tobytes()
    return constant


def _cast(name: str, dtype: tf.DType) -> tf.compat.v1.NodeDef:
    """A node `name` that casts `name`/half to float32."""
    node = tf.compat.v1.NodeDef(name=name, op="Cast", input=[f"{name}/half"])
    node.attr["SrcT"].type = dtype.as_datatype_enum
    node.attr["DstT"].type = tf.float32.as_datatype_enum
    return node

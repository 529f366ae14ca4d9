"""Writes the linker as a TensorFlow.js graph model, in float32 and compressed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow.python.framework import op_def_registry

from bert_export.errors import StageError
from bert_export.export import extras, saved_model, tfjs_operations
from bert_export.export.linker_graph import OUTPUTS, TrainedLinker, freeze

# The extra, and the packages of it that are imported.
REQUIRES = ("tfjs", "tensorflowjs")

MODEL_FILE = "model.json"
# The key of model.json's userDefinedMetadata under which `metadata` stands.
METADATA = "bert_export"
FORMAT_VERSION = 1

# Smaller weights keep float32: biases, norms, the mask's large number.
_SMALLEST = 1024
_AXIS = "gather_rows/last_axis"
# What becomes of products without what is fused into them.
_FUSED = {
    "_FusedMatMul": "MatMul",
    "_FusedConv2D": "Conv2D",
    "FusedDepthwiseConv2dNative": "DepthwiseConv2dNative",
}


def write(
    model: TrainedLinker,
    staging: Path,
    precision: str,
    calibration: list[dict[str, np.ndarray]],
) -> list[str]:
    """Writes `model.json` and its weight shards: a tfjs_graph_model.

    Inputs have the features' names and are int32, as JavaScript has no int64:
    sequences [batch, seq_length], span positions [batch]; all dimensions are each
    request's. Outputs are `probabilities` [batch, 2] and `score` [batch], float32.
    No operation's output has a shape that JavaScript could learn only by waiting for
    values, so both `predict` and `executeAsync` work.

    Args:
      model: what to write.
      staging: an existing directory.
      precision: 'float32'; 'float16' and 'uint8' store matrices and embedding tables
        so. All are computed with in float32.
      calibration: not needed here.

    Returns:
      Sentences on what was decided.

    Raises:
      UserError: tensorflowjs is missing.
      StageError: an operation has no TensorFlow.js counterpart, or the precision is
        none of these.
    """
    del calibration
    extras.require(*REQUIRES)
    notes = {
        "float32": [],
        "float16": [
            "weights are stored in float16 and expanded to float32 when the model is "
            "loaded: memory and speed are those of float32"
        ],
        "uint8": [
            "matrices and embedding tables are stored in uint8, with one scale a "
            "column, and expanded to float32 when the model is loaded: memory and "
            "speed are those of float32"
        ],
    }
    if precision not in notes:
        raise StageError(f"tfjs: there is no precision {precision}")
    graph_def = list_true_by_sorting(freeze(model, checked=False, integers=tf.int32))
    tfjs_operations.check(graph_def)
    signature = _signature(graph_def)
    with extras.quiet():
        # Takes seconds: it brings two other frameworks along.
        from tensorflowjs.converters import tf_saved_model_conversion_v2 as converter

        with tf.Graph().as_default() as graph:
            tf.import_graph_def(graph_def, name="")
            graph_def = converter.optimize_graph(graph, signature)
        graph_def = share_equal(gather_rows(unfuse(graph_def, everything=True)))
        if precision == "uint8":
            graph_def = scale_columns(graph_def)
        tfjs_operations.check(graph_def)
        weights = converter.extract_weights(graph_def)
        large = [
            weight["name"]
            for weight in weights[0]
            if weight["data"].ndim == 2 and weight["data"].size >= _SMALLEST
        ]
        converter.write_artifacts(
            # Without its weights, which have just been taken out.
            json_format.MessageToDict(graph_def),
            weights,
            str(staging / MODEL_FILE),
            tf.__version__,
            signature,
            quantization_dtype_map=None
            if precision == "float32"
            else {precision: large},
            metadata={
                METADATA: metadata(model, precision),
                # With these names predict() returns an object in place of an array.
                "structuredOutputKeys": list(
                    json_format.MessageToDict(signature)["outputs"]
                ),
            },
        )
    return notes[precision]


def metadata(model: TrainedLinker, precision: str) -> dict[str, Any]:
    """What a client needs to know besides the graph, for JSON.

    Returns:
      `format_version`, `precision`, `signature` (inputs and outputs as in a
      manifest's contract), `features` (the config's section of that name) and
      `vocab`, the vocabulary's path beside model.json.
    """
    contract = saved_model.contract(model.spec, "int32")[saved_model.TENSORS_SIGNATURE]
    return {
        "format_version": FORMAT_VERSION,
        "precision": precision,
        "signature": {key: contract[key] for key in ("inputs", "outputs")},
        "features": dataclasses.asdict(model.features),
        "vocab": saved_model.vocab_path(model.features.tokenizer),
    }


def _signature(graph_def: tf.compat.v1.GraphDef) -> meta_graph_pb2.SignatureDef:
    """The graph's placeholders and OUTPUTS under their own names."""
    signature = meta_graph_pb2.SignatureDef()
    for node in graph_def.node:
        if node.op == "Placeholder":
            described = signature.inputs[node.name]
            described.name = f"{node.name}:0"
            described.dtype = node.attr["dtype"].type
            described.tensor_shape.CopyFrom(node.attr["shape"].shape)
    for name, shape in zip(OUTPUTS, ([None, 2], [None])):
        described = signature.outputs[name]
        described.name = f"{name}:0"
        described.dtype = tf.float32.as_datatype_enum
        described.tensor_shape.CopyFrom(tf.TensorShape(shape).as_proto())
    return signature


# --- what suits JavaScript's kernels better ------------------------------------------


def list_true_by_sorting(graph_def: tf.compat.v1.GraphDef) -> tf.compat.v1.GraphDef:
    """Replaces `Where`, for which JavaScript has to wait, on vectors.

    The indices of a vector's true elements, ascending, are those of its n largest
    elements after the element at i was replaced by size - i if it is true, by 0
    otherwise; n is how many are true.

    Args:
      graph_def: the graph; not changed. Every `Where` in it reads a vector.
    """
    result = _like(graph_def)
    for node in graph_def.node:
        if node.op != "Where":
            result.node.append(node)
            continue
        with tf.Graph().as_default() as graph:
            flat = tf.compat.v1.placeholder(tf.bool, [None], name="flat")
            true = tf.cast(flat, tf.int32)
            from_the_end = tf.range(tf.size(flat), 0, -1)
            _, indices = tf.math.top_k(true * from_the_end, tf.reduce_sum(true))
            tf.cast(indices[:, tf.newaxis], tf.int64, name="indices")
        for part in graph.as_graph_def().node:
            if part.name == "flat":
                continue
            added = result.node.add()
            added.CopyFrom(part)
            added.name = (
                node.name if part.name == "indices" else f"{node.name}/{part.name}"
            )
            added.input[:] = [
                node.input[0] if name == "flat" else f"{node.name}/{name}"
                for name in part.input
            ]
    return result


def unfuse(
    graph_def: tf.compat.v1.GraphDef, everything: bool = False
) -> tf.compat.v1.GraphDef:
    """Takes out of matrix products and convolutions what no kernel does along.

    The converter calls whatever is added to a product its bias, a residual connection
    and a matrix [1, columns] included (its normalize_bias_add looks at no shapes), and
    TensorFlow's optimizer then fuses bias and activation into the product. But a fused
    bias has to be a vector ("_FusedMatMul only supports rank-1 bias"), and of
    activations TensorFlow.js lacks GELU.

    Args:
      graph_def: a graph that the converter has optimized; not changed.
      everything: also take out what kernels do along. tfjs-node does a fused matrix
        product step by step and with seven kernels more; the linker takes a quarter
        less time without, and in WASM the same.
    """
    vectors = {
        node.name
        for node in graph_def.node
        if node.op == "Const" and _is_vector(node.attr["value"].tensor.tensor_shape)
    }
    result = _like(graph_def)
    for node in graph_def.node:
        fused = list(node.attr["fused_ops"].list.s) if node.op in _FUSED else []
        activation = fused[1].decode() if len(fused) > 1 else ""
        has_vector = fused[:1] == [b"BiasAdd"] and node.input[2] in vectors
        is_known = has_vector and activation != "GeluExact"
        if not fused or (is_known and not everything):
            result.node.append(node)
            continue
        product = result.node.add()
        product.CopyFrom(node)
        product.name = f"{node.name}/product"
        if has_vector and not everything:
            product.attr["fused_ops"].list.s[:] = fused[:1]
            summed = product.name
        else:
            _make_plain(product)
            summed = f"{node.name}/sum" if activation else node.name
            _add(result, summed, "AddV2", product.name, node.input[2])
        if activation == "GeluExact":
            _add_gelu(result, node.name, summed)
        elif activation:
            added = _add(result, node.name, activation, summed, *node.input[3:])
            if activation == "LeakyRelu":
                added.attr["alpha"].f = node.attr["leakyrelu_alpha"].f
    return result


def _is_vector(shape: Any) -> bool:
    """Whether a TensorShapeProto is that of a bias; [1] may be broadcast."""
    return len(shape.dim) == 1 and shape.dim[0].size > 1


def _make_plain(node: tf.compat.v1.NodeDef) -> None:
    """Takes bias and activation from a fused node."""
    node.op = _FUSED[node.op]
    del node.input[2:]
    known = {attr.name for attr in op_def_registry.get(node.op).attr}
    for name in set(node.attr) - known:
        del node.attr[name]


def _add_gelu(graph_def: tf.compat.v1.GraphDef, name: str, x: str) -> None:
    """Adds exact GELU (arXiv:1606.08415): x / 2 (1 + erf(x / sqrt(2)))."""
    for constant, value in (("sqrt_half", 0.5**0.5), ("half", 0.5), ("one", 1.0)):
        graph_def.node.append(_constant(f"{name}/{constant}", np.float32(value)))
    _add(graph_def, f"{name}/scaled", "Mul", x, f"{name}/sqrt_half")
    _add(graph_def, f"{name}/erf", "Erf", f"{name}/scaled")
    _add(graph_def, f"{name}/plus_one", "AddV2", f"{name}/erf", f"{name}/one")
    _add(graph_def, f"{name}/halved", "Mul", x, f"{name}/half")
    _add(graph_def, name, "Mul", f"{name}/halved", f"{name}/plus_one")


def gather_rows(graph_def: tf.compat.v1.GraphDef) -> tf.compat.v1.GraphDef:
    """Gathers from axis 0 with `GatherNd`.

    The WASM backend's copies whole rows, its `GatherV2` finds the place of each
    element by itself: the linker takes two thirds of the time.
    """
    values = {
        node.name: tf.make_ndarray(node.attr["value"].tensor)
        for node in graph_def.node
        if node.op == "Const" and not node.attr["value"].tensor.tensor_shape.dim
    }
    result = _like(graph_def)
    columns: dict[str, str] = {}  # by name of the indices
    for node in graph_def.node:
        if (
            node.op != "GatherV2"
            or node.attr["batch_dims"].i
            or values.get(node.input[2]) != 0
        ):
            result.node.append(node)
            continue
        rows, indices = node.input[:2]
        if indices not in columns:
            columns[indices] = f"gather_rows/{len(columns)}"
            column = result.node.add(
                name=columns[indices], op="ExpandDims", input=[indices, _AXIS]
            )
            column.attr["T"].type = node.attr["Tindices"].type
            column.attr["Tdim"].type = tf.int32.as_datatype_enum
        gather = result.node.add(
            name=node.name, op="GatherNd", input=[rows, columns[indices]]
        )
        gather.attr["Tparams"].type = node.attr["Tparams"].type
        gather.attr["Tindices"].type = node.attr["Tindices"].type
    if columns:
        result.node.append(_constant(_AXIS, np.int32(-1)))
    return result


def split_training_norms(graph_def: tf.compat.v1.GraphDef) -> tf.compat.v1.GraphDef:
    """Takes apart batch norms that normalise by the batch's own moments.

    Keras' LayerNormalization is one, over a reshaped tensor. TensorFlow.js has only
    those that are given the moments, and computes NaN.

    Args:
      graph_def: a graph; not changed. A norm whose moments are read, too, stays.
    """
    read = {
        name.partition(":")[0]
        for node in graph_def.node
        for name in node.input
        if name.partition(":")[2] not in ("", "0")
    }
    result = _like(graph_def)
    for node in graph_def.node:
        if (
            not node.op.startswith("FusedBatchNorm")
            or not node.attr["is_training"].b
            or node.name in read
        ):
            result.node.append(node)
            continue
        name, (x, scale, offset) = node.name, node.input[:3]
        channels_first = node.attr["data_format"].s == b"NCHW"
        for constant, value in (
            ("axes", np.array([0, 2, 3] if channels_first else [0, 1, 2], np.int32)),
            (
                "shape",
                np.array([1, -1, 1, 1] if channels_first else [1, 1, 1, -1], np.int32),
            ),
            ("epsilon", np.float32(node.attr["epsilon"].f)),
        ):
            result.node.append(_constant(f"{name}/{constant}", value))
        _add_mean(result, f"{name}/mean", x, f"{name}/axes")
        _add(result, f"{name}/squares", "SquaredDifference", x, f"{name}/mean")
        _add_mean(result, f"{name}/variance", f"{name}/squares", f"{name}/axes")
        _add(result, f"{name}/stable", "AddV2", f"{name}/variance", f"{name}/epsilon")
        _add(result, f"{name}/inverse", "Rsqrt", f"{name}/stable")
        _add(result, f"{name}/centred", "Sub", x, f"{name}/mean")
        _add(result, f"{name}/normal", "Mul", f"{name}/centred", f"{name}/inverse")
        for part, vector in (("scale", scale), ("offset", offset)):
            reshape = _add(result, f"{name}/{part}", "Reshape", vector, f"{name}/shape")
            reshape.attr["Tshape"].type = tf.int32.as_datatype_enum
        _add(result, f"{name}/scaled", "Mul", f"{name}/normal", f"{name}/scale")
        _add(result, name, "AddV2", f"{name}/scaled", f"{name}/offset")
    return result


def _add_mean(graph_def: tf.compat.v1.GraphDef, name: str, x: str, axes: str) -> None:
    node = _add(graph_def, name, "Mean", x, axes)
    node.attr["Tidx"].type = tf.int32.as_datatype_enum
    node.attr["keep_dims"].b = True


def share_equal(graph_def: tf.compat.v1.GraphDef) -> tf.compat.v1.GraphDef:
    """Computes once what is computed several times, such as shapes in each layer.

    Args:
      graph_def: a graph of operations without side effects or randomness; not changed.
    """
    while True:
        first: dict[bytes, str] = {}
        same_as: dict[str, str] = {}
        for node in graph_def.node:
            # Comparing weights would take longer than it is worth.
            if node.name in OUTPUTS or node.ByteSize() > _SMALLEST:
                continue
            key = tf.compat.v1.NodeDef()
            key.CopyFrom(node)
            # Placeholders differ by nothing else.
            key.name = node.name if node.op == "Placeholder" else ""
            name = first.setdefault(
                key.SerializeToString(deterministic=True), node.name
            )
            if name != node.name:
                same_as[node.name] = name
        if not same_as:
            return graph_def
        result = _like(graph_def)
        for node in graph_def.node:
            if node.name not in same_as:
                kept = result.node.add()
                kept.CopyFrom(node)
                for index, source in enumerate(kept.input):
                    name, colon, output = source.partition(":")
                    kept.input[index] = same_as.get(name, name) + colon + output
        # What reads the same now may be equal itself.
        graph_def = result


def scale_columns(graph_def: tf.compat.v1.GraphDef) -> tf.compat.v1.GraphDef:
    """Divides each column of a matrix by its largest magnitude, its product by that.

    TensorFlow.js's uint8 has one scale a weight. With a column's own scale before it,
    the linker's scores move by a fifth as much.

    Args:
      graph_def: the graph, after `unfuse` and `gather_rows`; not changed. Scaled are
        the large matrices of matrix products and of gathered rows.
    """
    matrices = {}
    for node in graph_def.node:
        tensor = node.attr["value"].tensor
        if node.op == "Const" and len(tensor.tensor_shape.dim) == 2:
            value = tf.make_ndarray(tensor)
            if value.dtype == np.float32 and value.size >= _SMALLEST:
                matrices[node.name] = value
    readers: dict[str, list[tf.compat.v1.NodeDef]] = {}
    for node in graph_def.node:
        for name in node.input:
            if name in matrices:
                readers.setdefault(name, []).append(node)
    result = _like(graph_def)
    scaled: dict[str, str] = {}  # the matrix by what multiplies with it
    for name, (reader, *others) in readers.items():
        is_product = (
            reader.op == "MatMul"
            and reader.input[1] == name
            and not reader.attr["transpose_b"].b
        )
        is_table = reader.op == "GatherNd" and reader.input[0] == name
        if not others and (is_product or is_table):
            scaled[reader.name] = name
            largest = np.abs(matrices[name]).max(axis=0)  # [columns]
            scale = np.where(largest > 0, largest, np.float32(1))
            result.node.append(_constant(name, matrices[name] / scale))
            result.node.append(_constant(f"{name}/scale", scale))
    for node in graph_def.node:
        if node.name in scaled:
            product = result.node.add()
            product.CopyFrom(node)
            product.name = f"{node.name}/unscaled"
            _add(result, node.name, "Mul", product.name, f"{scaled[node.name]}/scale")
        elif node.name not in scaled.values():
            result.node.append(node)
    return result


def _like(graph_def: tf.compat.v1.GraphDef) -> tf.compat.v1.GraphDef:
    """A graph without nodes, otherwise as this one."""
    result = tf.compat.v1.GraphDef()
    result.versions.CopyFrom(graph_def.versions)
    result.library.CopyFrom(graph_def.library)
    return result


def _add(
    graph_def: tf.compat.v1.GraphDef, name: str, operation: str, *inputs: str
) -> tf.compat.v1.NodeDef:
    """Adds an operation on float32."""
    node = graph_def.node.add(name=name, op=operation, input=inputs)
    node.attr["T"].type = tf.float32.as_datatype_enum
    return node


def _constant(name: str, value: np.ndarray | np.generic) -> tf.compat.v1.NodeDef:
    node = tf.compat.v1.NodeDef(name=name, op="Const")
    node.attr["dtype"].type = tf.as_dtype(value.dtype).as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
    return node

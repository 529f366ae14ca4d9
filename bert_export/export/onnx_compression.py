"""Compresses an ONNX linker: weights in half precision or int8, embeddings included.

What was compared on a MiniLM linker (6 layers, hidden 384), as held-out link
accuracy, top-1 decisions changed of 700 mentions, root mean square of the change of
scores, and time for a mention with 6 candidates against float32, which has 55.6 %:

| weights and activations | accuracy | changed | score change | time |
| --- | --- | --- | --- | --- |
| quantize_dynamic of ONNX Runtime, per channel | 55.3 % | 44 | 0.16 | 0.6 |
| a scale a token (what `quantize` does) | 56.0 % | 26 | 0.08 | 0.5 |
| MatMulNBits with 8 bits, blocks of 64 | 55.7 % | 8 | 0.05 | 1.4 |

The first has one activation scale for all tokens of a batch, so that a score depends
on what else is in the batch. The last is closest, but slower than float32.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

# Stands for 0 among uint8 activations: processors multiply uint8 by int8.
_ZERO = 128
# The kernels that `calibrate` quantizes. On 400 dev mentions of the same linker, one
# group at a time (see scripts/measure_sensitivity.py), scores changed by: attention
# output 0.02, query, key and value 0.07, both feed-forward matmuls 0.13 each. All
# together: 0.20, and 7.5 % of the top-1 decisions changed.
STATIC = re.compile("/attention/")


def store_half(model: Any) -> list[str]:
    """Stores weights in float16; they are cast to float32 when the model is loaded.

    Half the size, the speed and (about) the outputs of float32: ONNX Runtime's CPU
    provider has few kernels for half precision and would cast around each other.

    Args:
      model: an `onnx.ModelProto`, changed in place.

    Returns:
      Notes.
    """
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in _weights(model.graph):
        name, half = tensor.name, f"{tensor.name}/float16"
        value = numpy_helper.to_array(tensor)
        limit = np.finfo(np.float16).max
        value = np.clip(value, -limit, limit).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(value, half))
        casts.append(
            helper.make_node("Cast", [half], [name], name, to=TensorProto.FLOAT)
        )
    _set_nodes(model.graph, [*casts, *model.graph.node])
    return ["weights are stored in float16 and computed with in float32"]


def quantize(model: Any) -> list[str]:
    """Quantizes embedding tables and all matmuls with weights to int8.

    A table's rows have a scale each, and what is looked up is scaled. A matmul's
    weights have a scale a column, its activations one a token, taken as the model
    runs: a pair's score does not depend on its batch. Matmuls of two activations stay
    in float32. All operators are standard ones.

    Args:
      model: an `onnx.ModelProto`, changed in place. Matmuls that `calibrate` has
        quantized are left as they are.

    Returns:
      Notes.
    """
    from onnx import numpy_helper

    graph = model.graph
    weights = {tensor.name: tensor for tensor in _weights(graph)}
    nodes: list[Any] = []
    quantized: set[str] = set()
    matmuls = 0
    for node in graph.node:
        if node.op_type == "Gather" and node.input[0] in weights:
            nodes += _quantized_lookup(graph, node, weights[node.input[0]])
        elif node.op_type == "MatMul" and node.input[1] in weights:
            # Query, key and value read the same tokens.
            if node.input[0] not in quantized:
                quantized.add(node.input[0])
                nodes += _quantized_tokens(node.input[0])
            nodes += _integer_matmul(graph, node, weights[node.input[1]])
            matmuls += 1
        else:
            nodes.append(node)
    for name, value in (
        ("int8/zero", np.uint8(_ZERO)),
        ("int8/one", np.float32(1)),
        ("int8/inverse_limit", np.float32(1 / 127)),
        # The scale of a token of zeros must not be 0.
        ("int8/tiny", np.float32(1e-12)),
        ("int8/column", np.array([1], np.int64)),
    ):
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    _set_nodes(graph, nodes)
    remove_unused(graph)
    return [
        f"{matmuls} matmuls have int8 weights, and activations that are quantized "
        "token by token as the model runs"
    ]


def calibrate(
    model: Any,
    requests: list[dict[str, np.ndarray]],
    kernels: re.Pattern[str] = STATIC,
) -> tuple[Any, list[str]]:
    """Quantizes matmuls with ranges measured on requests.

    They get one range for all their activations and a scale for each column of
    weights. ONNX Runtime's quantizer finds the ranges and writes its QDQ format.

    Args:
      model: an `onnx.ModelProto`.
      requests: batches of inputs, by name.
      kernels: found in the names of the kernels to quantize.

    Returns:
      The quantized model, and notes.
    """
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        """Hands out the requests."""

        def __init__(self) -> None:
            self._requests: Iterator[dict[str, np.ndarray]] = iter(requests)

        def get_next(self) -> Any:
            return next(self._requests, None)

    weights = {tensor.name for tensor in _weights(model.graph)}
    static = [
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul"
        and node.input[1] in weights
        and kernels.search(node.input[1])
    ]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "static.onnx"
        quantization.quantize_static(
            model,
            path,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=static,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options={
                "MatMulConstBOnly": True,
                # Sums feed LayerNorm, GELU and softmax, which stay in float32.
                "OpTypesToExcludeOutputQuantization": ["MatMul"],
            },
        )
        quantized = onnx.load(str(path))
    _multiply_integers(quantized.graph)
    note = (
        f"{len(static)} matmuls have activation ranges measured on "
        f"{sum(len(next(iter(batch.values()))) for batch in requests)} requests"
    )
    return quantized, [note]


def _multiply_integers(graph: Any) -> None:
    """Multiplies in int8 where QDQ format dequantizes both factors of a matmul.

    ONNX Runtime does so itself unless it has fused a bias with the matmul before, as
    here: then it dequantizes the weights in every request, which takes longer than
    float32 does. Whatever else reads what the matmuls read, such as the residual
    connections, gets it as it was before it was quantized.
    """
    from onnx import TensorProto, helper, numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    dequantized = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "DequantizeLinear"
    }
    before = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "QuantizeLinear"
    }
    nodes = []
    for node in graph.node:
        if node.op_type != "MatMul" or not set(node.input) <= dequantized.keys():
            for place, name in enumerate(node.input):
                if name in dequantized and dequantized[name].input[0] in before:
                    node.input[place] = before[dequantized[name].input[0]]
            nodes.append(node)
            continue
        x, x_scale, x_zero = dequantized[node.input[0]].input
        weights, scales, _ = dequantized[node.input[1]].input
        (output,) = node.output
        sums, cast, scale = (f"{output}/{part}" for part in ("int32", "float", "scale"))
        value = np.multiply(
            *(numpy_helper.to_array(constants[name]) for name in (x_scale, scales))
        )
        graph.initializer.append(numpy_helper.from_array(value, scale))
        nodes += [
            helper.make_node("MatMulInteger", [x, weights, x_zero], [sums]),
            helper.make_node("Cast", [sums], [cast], to=TensorProto.FLOAT),
            helper.make_node("Mul", [cast, scale], [output], node.name),
        ]
    _set_nodes(graph, nodes)


def remove_unused(graph: Any) -> None:
    """Removes nodes and initializers that no output depends on, and shape hints."""
    read = {value.name for value in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if not read.isdisjoint(node.output):
            read.update(node.input)
            nodes.append(node)
    _set_nodes(graph, nodes[::-1])
    for place in reversed(range(len(graph.initializer))):
        if graph.initializer[place].name not in read:
            del graph.initializer[place]
    del graph.value_info[:]


def _weights(graph: Any) -> list[Any]:
    """Float32 matrices; not the head's and the segments', with a side of 2."""
    from onnx import TensorProto

    return [
        tensor
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.FLOAT
        and len(tensor.dims) == 2
        and min(tensor.dims) > 2
    ]


def _quantized_lookup(graph: Any, node: Any, table: Any) -> list[Any]:
    """Nodes that look up int8 rows [.., width] and their scales [.., 1]."""
    from onnx import TensorProto, helper, numpy_helper

    name = table.name
    rows, scales = _int8_rows(numpy_helper.to_array(table))
    graph.initializer.append(numpy_helper.from_array(rows, f"{name}/int8"))
    graph.initializer.append(numpy_helper.from_array(scales, f"{name}/scales"))
    indices, (output,) = node.input[1], node.output
    found, cast, scale = (f"{output}/{part}" for part in ("int8", "float", "scale"))
    return [
        helper.make_node("Gather", [f"{name}/int8", indices], [found], found),
        helper.make_node("Cast", [found], [cast], cast, to=TensorProto.FLOAT),
        helper.make_node("Gather", [f"{name}/scales", indices], [scale], scale),
        helper.make_node("Mul", [cast, scale], [output], node.name),
    ]


def _quantized_tokens(x: str) -> list[Any]:
    """Nodes that quantize `x` [tokens, width] to uint8 around _ZERO, token by token.

    They make `x/float` of the same shape, integers from -127 to 127, and `x/scale`
    [tokens, 1].
    """
    from onnx import helper, numpy_helper

    zero = numpy_helper.from_array(np.array([_ZERO], np.uint8))
    make = helper.make_node
    return [
        make("Abs", [x], [f"{x}/abs"]),
        make("ReduceMax", [f"{x}/abs"], [f"{x}/max"], axes=[-1], keepdims=0),
        make("Max", [f"{x}/max", "int8/tiny"], [f"{x}/limit"]),
        make("Mul", [f"{x}/limit", "int8/inverse_limit"], [f"{x}/scales"]),
        # Zero points have the scales' shape.
        make("Shape", [f"{x}/scales"], [f"{x}/shape"]),
        make("ConstantOfShape", [f"{x}/shape"], [f"{x}/zeros"], value=zero),
        make(
            "QuantizeLinear",
            [x, f"{x}/scales", f"{x}/zeros"],
            [f"{x}/uint8"],
            axis=0,
        ),
        make("Unsqueeze", [f"{x}/scales", "int8/column"], [f"{x}/scale"]),
        # One scale for all: each token's own is multiplied with its products.
        make(
            "DequantizeLinear", [f"{x}/uint8", "int8/one", "int8/zero"], [f"{x}/float"]
        ),
    ]


def _integer_matmul(graph: Any, node: Any, kernel: Any) -> list[Any]:
    """Nodes that multiply what `_quantized_tokens` has made by int8 weights.

    Runtimes make one integer product of a matmul whose factors are dequantized.
    """
    from onnx import helper, numpy_helper

    (x, name), (output,) = node.input, node.output
    stored = {tensor.name for tensor in graph.initializer}
    columns, scales = _int8_rows(numpy_helper.to_array(kernel).T)
    for suffix, value in (
        ("int8", np.ascontiguousarray(columns.T)),
        ("scales", scales[:, 0]),
        ("zeros", np.zeros(len(scales), np.int8)),
    ):
        # ALBERT's layers share their kernels.
        if f"{name}/{suffix}" not in stored:
            tensor = numpy_helper.from_array(value, f"{name}/{suffix}")
            graph.initializer.append(tensor)
    weights, product = f"{output}/weights", f"{output}/product"
    make = helper.make_node
    parts = [f"{name}/{suffix}" for suffix in ("int8", "scales", "zeros")]
    return [
        make("DequantizeLinear", parts, [weights], axis=1),
        make("MatMul", [f"{x}/float", weights], [product]),
        make("Mul", [product, f"{x}/scale"], [output], node.name),
    ]


def _int8_rows(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantizes each row of [rows, width] around 0.

    Returns:
      int8 [rows, width] in -127..127, and float32 scales [rows, 1].
    """
    scales = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    scales[scales == 0] = 1
    return np.rint(values / scales).astype(np.int8), scales


def _set_nodes(graph: Any, nodes: list[Any]) -> None:
    del graph.node[:]
    graph.node.extend(nodes)

"""Writes the linker as an ONNX model for ONNX Runtime, in float32 and compressed."""

from __future__ import annotations

import collections
import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bert_export.errors import StageError
from bert_export.export import extras, onnx_compression
from bert_export.export.linker_graph import OUTPUTS, TrainedLinker, freeze

# The extra, and the packages of it that are imported.
REQUIRES = ("onnx", "onnx", "onnxruntime", "tf2onnx")

MODEL_FILE = "model.onnx"
# The first with LayerNormalization.
OPSET = 17
_POSITIONS = "bert/embeddings/position_embeddings"
# What x / sqrt(2) reads.
_SQRT_2 = "sqrt_2"


def write(
    model: TrainedLinker,
    staging: Path,
    precision: str,
    calibration: list[dict[str, np.ndarray]],
) -> list[str]:
    """Writes `model.onnx`.

    Inputs have the features' names and are int64: sequences [batch, seq_length], span
    positions [batch]. Outputs are `probabilities` [batch, 2] and `score` [batch],
    float32. ONNX has no assertions: of malformed requests only those are refused
    whose types, ranks or indices the runtime refuses.

    Args:
      model: what to write.
      staging: an existing directory.
      precision: 'float32', 'float16', 'int8_dynamic' or 'int8_calibrated'; see
        `onnx_compression`.
      calibration: batches of real requests by feature name, int64; read for
        'int8_calibrated' only.

    Returns:
      Sentences on what was decided.

    Raises:
      UserError: a package of the extra `onnx` is missing.
      StageError: an operation cannot be converted, or there is nothing to calibrate
        with.
    """
    extras.require(*REQUIRES)
    import onnx

    if precision == "int8_calibrated" and not calibration:
        raise StageError("onnx: int8_calibrated needs calibration requests, found none")
    with _quiet():
        converted = convert(model)
        notes = []
        positions = model.bert.max_position_embeddings
        if positions > model.spec.max_seq_length:
            notes.append(
                f"{model.spec.max_seq_length} of {positions} position embeddings are "
                "stored: longer requests are refused"
            )
        if precision == "float16":
            notes += onnx_compression.store_half(converted)
        elif precision == "int8_dynamic":
            notes += onnx_compression.quantize(converted)
        elif precision == "int8_calibrated":
            converted, static = onnx_compression.calibrate(converted, calibration)
            notes += static + onnx_compression.quantize(converted)
        onnx.checker.check_model(converted)
        onnx.save(converted, str(staging / MODEL_FILE))
    return notes


def convert(model: TrainedLinker) -> Any:
    """The serving graph as an `onnx.ModelProto` in float32, standard operators only.

    Initializers have the names of the checkpoint's variables. Position embeddings
    beyond max_seq_length are left out.

    Raises:
      StageError: an operation has no counterpart in ONNX; it is named.
    """
    import tf2onnx
    from onnx import numpy_helper

    graph_def = freeze(model, checked=False)
    converted, _ = tf2onnx.convert.from_graph_def(
        graph_def,
        input_names=[f"{name}:0" for name in model.input_names],
        output_names=[f"{name}:0" for name in OUTPUTS],
        opset=OPSET,
        tensors_to_rename={
            f"{name}:0": name for name in (*model.input_names, *OUTPUTS)
        },
    )
    graph = converted.graph
    graph.name = "linker"
    if foreign := {node.op_type for node in graph.node if node.domain}:
        raise StageError(f"ONNX has no counterpart of {', '.join(sorted(foreign))}")
    _name_variables(graph, graph_def)
    for tensor in graph.initializer:
        if tensor.name == _POSITIONS:
            rows = numpy_helper.to_array(tensor)[: model.spec.max_seq_length]
            tensor.CopyFrom(numpy_helper.from_array(rows, _POSITIONS))
    for value in (*graph.input, *graph.output):
        dims = value.type.tensor_type.shape.dim
        for dim, name in zip(dims, ("batch", "seq_length")):
            if not dim.dim_value:
                dim.dim_param = name
    _fuse_layer_norms(graph)
    _spell_gelus(graph)
    _allow_empty_batches(graph)
    onnx_compression.remove_unused(graph)
    return converted


def _name_variables(graph: Any, graph_def: Any) -> None:
    """Names initializers after variables; tf2onnx has them named after their reads."""
    constants = {node.name for node in graph_def.node if node.op == "Const"}
    names = {f"{name}:0": name for name in constants}
    for node in graph_def.node:
        if node.op == "Identity" and node.input[0] in constants:
            names[f"{node.name}:0"] = node.input[0]
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def _fuse_layer_norms(graph: Any) -> None:
    """Makes a LayerNormalization of each `modeling.layers.LayerNorm`.

    Its last operations are x * scale + (beta - mean * scale), where scale is
    gamma / sqrt(variance + epsilon). ONNX Runtime does not recognise that form, and
    runs each of its ten operations over the whole tensor.
    """
    from onnx import helper, numpy_helper

    stored = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    uses: collections.Counter[str] = collections.Counter()

    def split(node: Any) -> tuple[str, str]:
        """The names of an operation's stored operand and of its computed one."""
        one, other = node.input
        return (one, other) if one in stored else (other, one)

    for place, node in enumerate(graph.node):
        if node.op_type != "Add":
            continue
        terms = {
            producers[name].op_type: producers[name]
            for name in node.input
            if name in producers
        }
        if set(terms) != {"Mul", "Sub"} or terms["Sub"].input[0] not in stored:
            continue
        x, scale = terms["Mul"].input
        gamma, inverse = split(producers[scale])
        root = producers[producers[inverse].input[0]]
        epsilon, _ = split(producers[root.input[0]])
        # Nodes need names of their own, and layers of ALBERT share their norms.
        name = gamma.rpartition("/")[0]
        uses[name] += 1
        fused = helper.make_node(
            "LayerNormalization",
            [x, gamma, terms["Sub"].input[0]],
            list(node.output),
            name=name if uses[name] == 1 else f"{name}/{uses[name] - 1}",
            epsilon=float(numpy_helper.to_array(stored[epsilon])),
        )
        graph.node[place].CopyFrom(fused)


def _spell_gelus(graph: Any) -> None:
    """Writes GELU's erf(x * 0.707) as erf(x / 1.414), which ONNX Runtime fuses."""
    from onnx import numpy_helper

    stored = {tensor.name for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type == "Erf":
            scaled = producers[node.input[0]]
            (x,) = (name for name in scaled.input if name not in stored)
            scaled.op_type = "Div"
            scaled.input[:] = [x, _SQRT_2]
    graph.initializer.append(numpy_helper.from_array(np.sqrt(np.float32(2)), _SQRT_2))


def _allow_empty_batches(graph: Any) -> None:
    """Lets a computed shape's 0 mean 0; ONNX else copies the input's dimension."""
    from onnx import helper

    stored = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[1] not in stored:
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("allowzero", 1))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the converters' warnings, which are about their own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)

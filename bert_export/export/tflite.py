"""Writes the linker as a TFLite model for LiteRT, in float32 and compressed."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from bert_export.errors import StageError
from bert_export.export import extras
from bert_export.export.linker_graph import OUTPUTS, TrainedLinker, freeze
from bert_export.export.saved_model import TENSORS_SIGNATURE

# The extra, and the packages of it that are imported.
REQUIRES = ("tflite", "ai_edge_litert", "ai_edge_quantizer")

MODEL_FILE = "model.tflite"


def write(
    model: TrainedLinker,
    staging: Path,
    precision: str,
    calibration: list[dict[str, np.ndarray]],
) -> list[str]:
    """Writes `model.tflite`: built-in operations only.

    Its one signature is TENSORS_SIGNATURE. Inputs have the features' names and are
    int64: sequences [batch, seq_length], span positions [batch]; all dimensions are
    each request's. Outputs are `probabilities` [batch, 2] and `score` [batch], float32.
    TFLite has no assertions.

    Args:
      model: what to write.
      staging: an existing directory.
      precision: 'float32'; 'float16' stores the weights so; 'int8_dynamic' stores
        matrices and embedding tables in int8, a scale a row, and quantises the
        matrices' inputs with ranges of each request; 'int8_calibrated' does so with
        ranges from calibration, for matrices that take it well.
      calibration: batches of real requests by feature name, int64; read for
        'int8_calibrated' only.

    Returns:
      Sentences on what was decided.

    Raises:
      UserError: a package of the extra `tflite` is missing.
      StageError: an operation has no TFLite counterpart, there is nothing to
        calibrate with, or the precision is none of these.
    """
    extras.require(*REQUIRES)
    if precision == "int8_calibrated" and not calibration:
        raise StageError(
            "tflite: int8_calibrated needs calibration requests, found none"
        )
    graph_def = freeze(model, checked=False)
    with extras.quiet():
        if precision == "float32":
            content = convert(graph_def, model.input_names)
            notes = []
        elif precision == "float16":
            content = convert(graph_def, model.input_names, float16=True)
            notes = [
                "weights are stored in float16 and expanded to float32 when the model "
                "is loaded: memory and speed are those of float32"
            ]
        elif precision in ("int8_dynamic", "int8_calibrated"):
            content = convert(quantize_embeddings(graph_def), model.input_names)
            content, notes = _quantize(
                content, model, calibration if precision == "int8_calibrated" else []
            )
        else:
            raise StageError(f"tflite: there is no precision {precision}")
    (staging / MODEL_FILE).write_bytes(content)
    return notes


def convert(
    graph_def: tf.compat.v1.GraphDef,
    input_names: Sequence[str],
    float16: bool = False,
) -> bytes:
    """The TFLite model of a frozen graph.

    Args:
      graph_def: as from `freeze`.
      input_names: its placeholders.
      float16: store weights in float16.

    Raises:
      StageError: an operation has no TFLite counterpart.
    """
    from tensorflow.lite.python.convert import ConverterError

    with tempfile.TemporaryDirectory() as parent:
        # Through a SavedModel, as only its signatures keep their names.
        directory = str(Path(parent) / "saved_model")
        with tf.Graph().as_default() as graph, tf.compat.v1.Session() as session:
            tf.graph_util.import_graph_def(graph_def, name="")
            signature = tf.compat.v1.saved_model.predict_signature_def(
                {name: graph.get_tensor_by_name(f"{name}:0") for name in input_names},
                {name: graph.get_tensor_by_name(f"{name}:0") for name in OUTPUTS},
            )
            builder = tf.compat.v1.saved_model.Builder(directory)
            builder.add_meta_graph_and_variables(
                session, [tf.saved_model.SERVING], {TENSORS_SIGNATURE: signature}
            )
            builder.save()
        converter = tf.lite.TFLiteConverter.from_saved_model(
            directory, signature_keys=[TENSORS_SIGNATURE]
        )
        if float16:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        try:
            return converter.convert()
        except ConverterError as error:
            named = re.findall(r"^(?:TF Select|Flex|Custom) ops: .*", str(error), re.M)
            what = "; ".join(named) or str(error).strip().partition("\n")[0]
            raise StageError(
                f"tflite: operations without a TFLite counterpart: {what}"
            ) from error


def quantize_embeddings(graph_def: tf.compat.v1.GraphDef) -> tf.compat.v1.GraphDef:
    """Stores the tables that rows are gathered from in int8, with a scale a row.

    TFLite's own quantised gather has one scale for a whole table. Here the int8 row
    is gathered, cast and multiplied by its scale, so nothing else is expanded.

    Args:
      graph_def: a frozen graph; not changed.
    """
    constants = {node.name: node for node in graph_def.node if node.op == "Const"}
    aliases = {
        node.name: node.input[0] for node in graph_def.node if node.op == "Identity"
    }
    result = tf.compat.v1.GraphDef(versions=graph_def.versions)
    for node in graph_def.node:
        table = None
        if node.op == "GatherV2":
            source = node.input[0]
            while source in aliases:
                source = aliases[source]
            if source in constants:
                table = tf.make_ndarray(constants[source].attr["value"].tensor)
        if table is not None and table.ndim == 2 and table.dtype == np.float32:
            result.node.extend(_int8_gather(node, table))
        else:
            result.node.append(node)
    return tf.compat.v1.graph_util.extract_sub_graph(result, list(OUTPUTS))


def _int8_gather(
    node: tf.compat.v1.NodeDef, table: np.ndarray
) -> list[tf.compat.v1.NodeDef]:
    """Nodes that gather from `table` [rows, width] in int8; one is named as `node`."""
    largest = np.abs(table).max(axis=1, keepdims=True)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    with tf.Graph().as_default() as graph:
        rows = tf.compat.v1.placeholder(
            tf.as_dtype(node.attr["Tindices"].type), [None], "rows"
        )
        with tf.name_scope(node.name):
            values = tf.gather(np.round(table / scale).astype(np.int8), rows)
            result = tf.cast(values, tf.float32) * tf.gather(scale, rows)
    nodes = [part for part in graph.as_graph_def().node if part.name != rows.op.name]
    for part in nodes:
        if part.name == result.op.name:
            part.name = node.name
        for number, source in enumerate(part.input):
            if source == rows.op.name:
                part.input[number] = node.input[1]
    return nodes


def _quantize(
    content: bytes, model: TrainedLinker, calibration: list[dict[str, np.ndarray]]
) -> tuple[bytes, list[str]]:
    """Quantises the matrix products with weights, a scale an output channel.

    Args:
      content: the TFLite model.
      model: what it was made of.
      calibration: requests from which ranges of inputs and outputs come; [] to
        compute them for each request.

    Returns:
      The model, and sentences on what was decided.
    """
    from ai_edge_quantizer import qtyping, quantizer

    operation = qtyping.TFLOperationName.FULLY_CONNECTED
    quantize = quantizer.Quantizer(bytearray(content))
    quantize.add_dynamic_config(".*", operation, num_bits=8)
    if not calibration:
        return bytes(quantize.quantize().quantized_model), [
            "matrices and embedding tables are stored in int8 with a scale a row; the "
            "inputs of matrix products are quantised with the ranges of each request, "
            "everything else is computed in float32"
        ]
    # Measured on WordNet mentions: the feed-forward networks' second products, whose
    # inputs have outliers, and the head lose most with fixed ranges; with all of
    # TFLite's operations in int8, attention's mask of -1e9 leaves scores no digits.
    names = [
        name
        for name, outputs, inputs in _products(content)
        if inputs == model.bert.hidden_size and outputs > 2
    ]
    for name in names:
        quantize.add_static_config(
            f"^{re.escape(name)};?$",
            operation,
            activation_num_bits=8,
            weight_num_bits=8,
        )
    ranges = quantize.calibrate({TENSORS_SIGNATURE: calibration})
    requests = sum(len(batch[model.input_names[0]]) for batch in calibration)
    return bytes(quantize.quantize(ranges).quantized_model), [
        f"{len(names)} matrix products are computed in int8 with ranges from "
        f"{requests} calibration requests; the feed-forward networks' second products "
        "and the head take the ranges of each request, as fixed ones cost accuracy",
        "attention's own products, LayerNorm and GELU are computed in float32: in "
        "int8, link accuracy is lost",
    ]


def _products(content: bytes) -> list[tuple[str, int, int]]:
    """(output's name, outputs, inputs) of each product with a weight matrix."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    parsed: Any = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    products = []
    for graph in parsed.subgraphs:
        for operator in graph.operators:
            code = parsed.operatorCodes[operator.opcodeIndex].builtinCode
            if code == schema.BuiltinOperator.FULLY_CONNECTED:
                name = graph.tensors[operator.outputs[0]].name.decode()
                outputs, inputs = graph.tensors[operator.inputs[1]].shape
                products.append((name, int(outputs), int(inputs)))
    return products

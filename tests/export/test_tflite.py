"""The tflite format against `estimator.predict`, in each precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from bert_export.errors import StageError
from bert_export.export import linker_graph, tflite
from tests.export import other_runtimes

pytest.importorskip("ai_edge_litert")
pytest.importorskip("ai_edge_quantizer")

# Largest differences of the probabilities. The tiny model's weights are few and large.
TOLERANCES = {
    "float32": 1e-5,
    "float16": 1e-2,
    "int8_dynamic": 0.1,
    "int8_calibrated": 0.15,
}


def write(directory: Path, precision: str, calibration=None) -> list[str]:
    if calibration is None:
        calibration = other_runtimes.batches(32, 16)
    return tflite.write(other_runtimes.model(), directory, precision, calibration)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    directories = {}
    for precision in TOLERANCES:
        directories[precision] = tmp_path_factory.mktemp(precision)
        write(directories[precision], precision)
    return directories


def read(directory: Path):
    from ai_edge_litert.tools import flatbuffer_utils

    content = bytearray((directory / "model.tflite").read_bytes())
    return flatbuffer_utils.read_model_from_bytearray(content)


@pytest.mark.parametrize("precision", TOLERANCES)
def test_answers_as_the_estimator_without_tensorflow(artifacts, precision):
    difference = other_runtimes.largest_difference(
        other_runtimes.TFLITE, artifacts[precision]
    )
    assert difference <= TOLERANCES[precision]
    # What is compressed cannot be exact.
    assert (difference > 1e-5) == (precision != "float32")


@pytest.mark.parametrize("precision", TOLERANCES)
def test_one_signature_of_plain_names(artifacts, precision):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(artifacts[precision] / "model.tflite"))
    assert list(interpreter.get_signature_list()) == ["tensors"]
    runner = interpreter.get_signature_runner("tensors")
    inputs, outputs = (
        {name: (v["dtype"], list(v["shape_signature"])) for name, v in details.items()}
        for details in (runner.get_input_details(), runner.get_output_details())
    )
    assert inputs == {
        "input_ids": (np.int64, [-1, -1]),
        "input_mask": (np.int64, [-1, -1]),
        "segment_ids": (np.int64, [-1, -1]),
        "start_ps": (np.int64, [-1]),
        "end_ps": (np.int64, [-1]),
    }
    assert outputs == {
        "probabilities": (np.float32, [-1, 2]),
        "score": (np.float32, [-1]),
    }


@pytest.mark.parametrize("precision", TOLERANCES)
def test_builtin_operations_only(artifacts, precision):
    from ai_edge_litert import schema_py_generated as schema

    codes = read(artifacts[precision]).operatorCodes
    assert schema.BuiltinOperator.GELU in {code.builtinCode for code in codes}
    for code in codes:
        assert code.builtinCode != schema.BuiltinOperator.CUSTOM
        assert code.customCode is None


def test_compressed_weights_are_smaller(artifacts):
    def weights(precision):
        return sum(
            len(buffer.data)
            for buffer in read(artifacts[precision]).buffers
            if buffer.data is not None and len(buffer.data) >= 256
        )

    assert weights("float16") < 0.6 * weights("float32")
    assert weights("int8_dynamic") < 0.5 * weights("float32")
    assert weights("int8_calibrated") < 0.5 * weights("float32")


@pytest.mark.parametrize("precision", ["int8_dynamic", "int8_calibrated"])
def test_embedding_tables_and_matrices_are_8_bit(artifacts, precision):
    from ai_edge_litert import schema_py_generated as schema

    parsed = read(artifacts[precision])
    matrices = [
        tensor.type
        for tensor in parsed.subgraphs[0].tensors
        if len(tensor.shape) == 2
        and min(tensor.shape) > 1
        and parsed.buffers[tensor.buffer].data is not None
        and len(parsed.buffers[tensor.buffer].data)
    ]
    # Three tables, six matrices a layer, the head's.
    assert len(matrices) == 3 + 2 * 6 + 1
    assert set(matrices) == {schema.TensorType.INT8}


def test_calibration_decides_the_ranges(artifacts, tmp_path):
    (other,) = other_runtimes.batches(4)
    other["input_ids"][:] = 7
    write(tmp_path, "int8_calibrated", [other])
    right = other_runtimes.largest_difference(
        other_runtimes.TFLITE, artifacts["int8_calibrated"]
    )
    assert right < other_runtimes.largest_difference(other_runtimes.TFLITE, tmp_path)


def test_the_same_input_gives_the_same_bytes_and_notes(artifacts, tmp_path, capfd):
    first, second = write(tmp_path, "int8_calibrated")
    # Queries, keys, values, attention's output and the first feed-forward, twice.
    assert first.startswith("10 matrix products")
    assert "48 calibration requests" in first
    assert "attention" in second
    first = (artifacts["int8_calibrated"] / "model.tflite").read_bytes()
    assert (tmp_path / "model.tflite").read_bytes() == first
    assert capfd.readouterr().out == ""


def test_int8_tables_are_close_and_rows_have_their_own_scale():
    table = np.random.default_rng(1).normal(size=(50, 8)).astype(np.float32)
    table[3] *= 1000
    table[4] = 0
    with tf.Graph().as_default() as graph:
        rows = tf.compat.v1.placeholder(tf.int32, [None], "rows")
        for name in linker_graph.OUTPUTS:
            tf.gather(tf.identity(table), rows, name=name)
    graph_def = tflite.quantize_embeddings(graph.as_graph_def())
    constants = [
        tf.make_ndarray(node.attr["value"].tensor)
        for node in graph_def.node
        if node.op == "Const"
    ]
    assert not [c for c in constants if c.dtype == np.float32 and c.size == table.size]
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.graph_util.import_graph_def(graph_def, name="")
        found = session.run("score:0", {"rows:0": np.arange(50)})
    steps = np.abs(table).max(axis=1, keepdims=True) / 127
    assert (np.abs(found - table) <= steps / 2 + 1e-6).all()
    assert np.abs(found - table).max() > 0


def test_an_operation_without_counterpart_is_named():
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, 2], "x")
        tf.identity(tf.math.betainc(x, x, x), "probabilities")
        tf.identity(x[:, 0], "score")
    with pytest.raises(StageError, match="Betainc"):
        tflite.convert(graph.as_graph_def(), ["x"])


@pytest.mark.parametrize(
    ("precision", "calibration", "message"),
    [
        ("int8_calibrated", [], "needs calibration requests"),
        ("bfloat16", None, "no precision bfloat16"),
    ],
)
def test_refuses(tmp_path, precision, calibration, message):
    with pytest.raises(StageError, match=message):
        write(tmp_path, precision, calibration)
    assert not list(tmp_path.iterdir())

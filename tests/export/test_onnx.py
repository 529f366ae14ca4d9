"""ONNX models against `estimator.predict`, in each precision."""

from __future__ import annotations

import base64
import collections
import subprocess
import sys
import textwrap

import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from onnx import numpy_helper

from bert_export.config import PRECISIONS, FeaturesConfig
from bert_export.errors import StageError, UserError
from bert_export.export import extras, linker_graph, requests
from bert_export.export import onnx as onnx_format
from tests import tiny_artifact

# Largest differences of the score. The tiny model's weights are 25 times as large as a
# trained BERT's, so that scores differ visibly, and so do roundings.
TOLERANCES = {
    "float32": 1e-5,
    "float16": 1e-2,
    "int8_dynamic": 0.6,
    "int8_calibrated": 0.8,
}
LAYERS = tiny_artifact.BERT.num_hidden_layers
WORD = "bert/embeddings/word_embeddings"
POSITION = "bert/embeddings/position_embeddings"
QUERY = "bert/encoder/layer_0/attention/self/query/kernel"
FEED_FORWARD = "bert/encoder/layer_0/intermediate/dense/kernel"


def batch_of(rows, longest=0):
    """Rows of (ids, mask, segments, first, last) as a request, 0-padded."""
    longest = max(longest, *(len(row[0]) for row in rows))
    names = ("input_ids", "input_mask", "segment_ids")
    batch = {
        name: np.array(
            [np.pad(row[place], (0, longest - len(row[place]))) for row in rows],
            np.int64,
        )
        for place, name in enumerate(names)
    }
    batch["start_ps"] = np.array([row[3] for row in rows], np.int64)
    batch["end_ps"] = np.array([row[4] for row in rows], np.int64)
    return batch


@pytest.fixture(scope="module")
def golden():
    """What the trained model predicts: rows of `batch_of`, and answers."""
    trained = tiny_artifact.trained()
    recorded = requests.record_golden(
        trained.estimator, trained.checkpoint, trained.examples, trained.spec
    )["requests"]
    rows = []
    for request in recorded:
        example = tf.train.Example.FromString(base64.b64decode(request["example"]))
        values = {k: v.int64_list.value for k, v in example.features.feature.items()}
        rows.append(
            (
                values["input_ids"],
                values["input_mask"],
                values["segment_ids"],
                values["start_ps"][0],
                values["end_ps"][0],
            )
        )
    return rows, np.array([[*r["probabilities"], r["score"]] for r in recorded])


@pytest.fixture(scope="module")
def model():
    return linker_graph.TrainedLinker(
        tiny_artifact.trained().checkpoint,
        tiny_artifact.BERT,
        FeaturesConfig(max_seq_length=20),
        tiny_artifact.TOKENIZER,
    )


@pytest.fixture(scope="module")
def write(model, golden, tmp_path_factory):
    """Writes the model in a precision; returns its file and notes, once each."""
    written = {}

    def get(precision):
        if precision not in written:
            directory = tmp_path_factory.mktemp(precision)
            notes = onnx_format.write(
                model, directory, precision, [batch_of(golden[0][:16])]
            )
            (file,) = directory.iterdir()
            assert file.name == "model.onnx"
            written[precision] = file, notes
        return written[precision]

    return get


def load(file):
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def predict(session, batch):
    """[batch, 3]: the probabilities and the score."""
    probabilities, score = session.run(["probabilities", "score"], batch)
    assert probabilities.dtype == score.dtype == np.float32
    return np.concatenate([probabilities, score[:, np.newaxis]], axis=1)


def initializers(file):
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(file).graph.initializer}


def operations(file):
    return collections.Counter(node.op_type for node in onnx.load(file).graph.node)


@pytest.fixture(scope="module", params=PRECISIONS["onnx"])
def artifact(request, write):
    file, _ = write(request.param)
    return request.param, load(file)


def test_predicts_what_the_trained_model_predicts(artifact, golden):
    precision, session = artifact
    rows, answers = golden
    difference = abs(predict(session, batch_of(rows)) - answers)
    assert difference.max() < TOLERANCES[precision]
    assert difference.mean() < TOLERANCES[precision] / 4


@pytest.mark.parametrize("size", [1, 2, 33])
def test_a_score_depends_neither_on_its_batch_nor_on_padding(artifact, golden, size):
    _, session = artifact
    rows = (golden[0] * 2)[:size]
    alone = np.concatenate([predict(session, batch_of([row])) for row in rows])
    for longest in (0, 20, 31):
        together = predict(session, batch_of(rows, longest))
        np.testing.assert_allclose(together, alone, atol=2e-5)


def test_masks(artifact, golden):
    _, session = artifact
    batch = batch_of(golden[0][:4])
    before = predict(session, batch)
    batch["input_mask"][1] = 0
    after = predict(session, batch)
    assert np.isfinite(after).all()
    others = [0, 2, 3]
    np.testing.assert_allclose(after[others], before[others], atol=2e-5)
    assert not np.allclose(after[1], before[1], atol=1e-3)
    # What is masked has no influence.
    batch["input_ids"][1, 1:] = 7
    np.testing.assert_allclose(predict(session, batch), after, atol=2e-5)


def test_an_empty_batch(artifact, golden):
    _, session = artifact
    empty = {name: value[:0] for name, value in batch_of(golden[0]).items()}
    assert predict(session, empty).shape == (0, 3)


def test_signature(artifact):
    _, session = artifact
    sequence, span = ["batch", "seq_length"], ["batch"]
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("input_ids", "tensor(int64)", sequence),
        ("input_mask", "tensor(int64)", sequence),
        ("segment_ids", "tensor(int64)", sequence),
        ("start_ps", "tensor(int64)", span),
        ("end_ps", "tensor(int64)", span),
    ]
    assert [(o.name, o.type, o.shape) for o in session.get_outputs()] == [
        ("probabilities", "tensor(float)", ["batch", 2]),
        ("score", "tensor(float)", ["batch"]),
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda batch: batch.pop("end_ps"),
        lambda batch: batch.update(input_ids=batch["input_ids"].astype(np.int32)),
        lambda batch: batch.update(start_ps=batch["start_ps"][:, np.newaxis]),
        lambda batch: batch.update(input_ids=batch["input_ids"] + 1000),
        lambda batch: batch.update(segment_ids=batch["segment_ids"] + 2),
    ],
    ids=["missing", "type", "rank", "not in the vocabulary", "no such segment"],
)
def test_requests_that_the_runtime_refuses(write, golden, change):
    session = load(write("float32")[0])
    batch = batch_of(golden[0])
    change(batch)
    # Some are ValueErrors, the others come from the runtime's C++.
    with pytest.raises(Exception, match=r"end_ps|data type|start_ps|out of|bounds"):
        session.run(None, batch)


def test_rows_longer_than_max_seq_length_are_refused(write):
    file, notes = write("float32")
    assert initializers(file)[POSITION].shape == (20, 16)
    assert "20 of 24 position embeddings" in notes[0]
    ids = [5] * 21
    with pytest.raises(Exception, match="out of data bounds"):
        predict(load(file), batch_of([(ids, [1] * 21, [0] * 21, 1, 1)]))


def test_a_position_outside_the_row_reads_the_first_token(write, golden):
    session = load(write("float32")[0])
    batch = batch_of(golden[0])
    batch["start_ps"][:], batch["end_ps"][:] = 99, -1
    outside = predict(session, batch)
    batch["start_ps"][:], batch["end_ps"][:] = 0, 0
    np.testing.assert_array_equal(predict(session, batch), outside)


@pytest.fixture
def optimized(tmp_path):
    """The operations that ONNX Runtime makes of a file."""

    def get(file):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])
        return operations(options.optimized_model_filepath)

    return get


def test_float32_is_in_operations_that_the_runtime_fuses(write, optimized):
    file, _ = write("float32")
    assert operations(file)["LayerNormalization"] == 2 * LAYERS + 1
    found = optimized(file)
    assert found["Gelu"] + found["BiasGelu"] == LAYERS
    assert found["Erf"] == 0
    # Scores: with the key transposed and the query scaled in the product.
    assert found["FusedMatMul"] == LAYERS
    # Of the last layer: few rows are read. The others are of index vectors.
    assert found["Transpose"] == 5
    assert found["Gemm"] == 6 * LAYERS + 1


@pytest.mark.parametrize("precision", PRECISIONS["onnx"])
def test_only_standard_operations(write, precision):
    file, _ = write(precision)
    assert {node.domain for node in onnx.load(file).graph.node} <= {"", "ai.onnx"}


def test_initializers_are_the_checkpoints_variables(write):
    stored = initializers(write("float32")[0])
    reader = tf.train.load_checkpoint(tiny_artifact.trained().checkpoint)
    for name in (WORD, QUERY, FEED_FORWARD, "linker/kernel"):
        np.testing.assert_array_equal(stored[name], reader.get_tensor(name))


def test_sizes(write):
    """Weights, which are most of a real model."""

    def size(precision):
        stored = initializers(write(precision)[0])
        return sum(v.nbytes for k, v in stored.items() if k.startswith(WORD))

    assert size("float16") == size("float32") / 2
    # A byte each, and a scale a row of 16.
    for precision in ("int8_dynamic", "int8_calibrated"):
        assert size(precision) == size("float32") / 4 + 4 * tiny_artifact.TOKENIZER.size


def test_int8_weights(write, optimized):
    stored = initializers(write("int8_dynamic")[0])
    reader = tf.train.load_checkpoint(tiny_artifact.trained().checkpoint)
    for name in (WORD, POSITION):
        rows, scales = stored[f"{name}/int8"], stored[f"{name}/scales"]
        assert rows.dtype == np.int8
        table = reader.get_tensor(name)[: len(rows)]
        # Half a step of the row's own scale.
        assert (abs(rows * scales - table) <= scales * 0.5001).all()
    kernel, scales = stored[f"{QUERY}/int8"], stored[f"{QUERY}/scales"]
    assert kernel.dtype == np.int8
    assert (abs(kernel * scales - reader.get_tensor(QUERY)) <= scales * 0.5001).all()
    assert not {WORD, POSITION, QUERY, FEED_FORWARD} & set(stored)
    found = optimized(write("int8_dynamic")[0])
    assert found["MatMulIntegerToFloat"] == 6 * LAYERS
    # No weight is expanded in a request.
    assert found["DequantizeLinear"] == 0


def test_attention_is_calibrated_and_feed_forward_is_not(write, optimized):
    file, notes = write("int8_calibrated")
    found = optimized(file)
    # All of them multiply integers; no weight is expanded in a request.
    assert found["MatMulInteger"] == 4 * LAYERS
    assert found["MatMulIntegerToFloat"] == 2 * LAYERS
    assert found["DequantizeLinear"] == 0
    stored = initializers(file)
    assert not {QUERY, FEED_FORWARD, WORD} & set(stored)
    assert stored[f"{QUERY}_quantized"].dtype == np.int8
    assert "8 matmuls have activation ranges measured on 16 requests" in notes[1]


def test_ranges_come_from_the_calibration_requests(model, write, golden, tmp_path):
    few = [batch_of([([5] * 4, [1] * 4, [0] * 4, 1, 1)])]
    onnx_format.write(model, tmp_path, "int8_calibrated", few)
    one, other = (
        {
            name: float(value)
            for name, value in initializers(file).items()
            if name.endswith("_scale") and value.shape == ()
        }
        for file in (write("int8_calibrated")[0], tmp_path / "model.onnx")
    )
    assert one.keys() == other.keys()
    assert len(one) == 2 * LAYERS + 1
    assert all(one[name] > other[name] for name in one)


def test_calibration_without_requests_is_refused(model, tmp_path):
    with pytest.raises(StageError, match="needs calibration requests"):
        onnx_format.write(model, tmp_path, "int8_calibrated", [])
    assert not list(tmp_path.iterdir())


def test_other_names_and_no_spans(tmp_path):
    features = FeaturesConfig(
        max_seq_length=20, input_ids="ids", label_ids="y", span_fields=()
    )
    trained = tiny_artifact.train(tmp_path / "pairs", features)
    model = linker_graph.TrainedLinker(
        trained.checkpoint, tiny_artifact.BERT, features, tiny_artifact.TOKENIZER
    )
    onnx_format.write(model, tmp_path, "float32", [])
    session = load(tmp_path / "model.onnx")
    names = ["ids", "input_mask", "segment_ids"]
    assert [value.name for value in session.get_inputs()] == names
    batch = {name: np.ones([3, 7], np.int64) for name in names}
    assert predict(session, batch).shape == (3, 3)


def test_a_missing_package_names_the_extra():
    with pytest.raises(UserError, match=r"no_such_module.*'bert_export\[onnx\]'"):
        extras.require("onnx", "json", "no_such_module")
    script = """
        import importlib.machinery, pathlib

        find = importlib.machinery.PathFinder.find_spec
        importlib.machinery.PathFinder.find_spec = (
            lambda name, *args: None if name == "onnxruntime" else find(name, *args)
        )
        from bert_export.errors import UserError
        from bert_export.export import onnx
        try:
            onnx.write(None, pathlib.Path("."), "float32", [])
        except UserError as error:
            print(error)
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert "onnxruntime" in process.stdout
    assert "pip install 'bert_export[onnx]'" in process.stdout


def test_nothing_is_printed_and_logging_is_as_before(model, tmp_path, capfd, caplog):
    import logging

    before = logging.root.manager.disable
    onnx_format.write(model, tmp_path, "float32", [])
    assert logging.root.manager.disable == before
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")

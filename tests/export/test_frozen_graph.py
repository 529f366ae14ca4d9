"""The frozen_graph format against `estimator.predict`, in each precision."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from bert_export.config import FeaturesConfig
from bert_export.errors import StageError
from bert_export.export import frozen_graph, linker_graph, requests
from bert_export.export.frozen_graph import store_as_half
from tests import tiny_artifact

v1 = tf.compat.v1
# Largest differences of the probabilities and the score.
TOLERANCES = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 5e-2}


def trained_linker(trained, features=None):
    return linker_graph.TrainedLinker(
        trained.checkpoint,
        tiny_artifact.BERT,
        features or FeaturesConfig(max_seq_length=20),
        tiny_artifact.TOKENIZER,
    )


@pytest.fixture(scope="module")
def model():
    return trained_linker(tiny_artifact.trained())


@pytest.fixture(scope="module")
def golden():
    """What the trained model predicts: requests as arrays, one a row, and answers."""
    trained = tiny_artifact.trained()
    recorded = requests.record_golden(
        trained.estimator, trained.checkpoint, trained.examples, trained.spec
    )["requests"]
    rows = []
    for request in recorded:
        example = tf.train.Example.FromString(base64.b64decode(request["example"]))
        rows.append(
            {k: v.int64_list.value for k, v in example.features.feature.items()}
        )
    probabilities = np.array([request["probabilities"] for request in recorded])
    return rows, probabilities, np.array([request["score"] for request in recorded])


@pytest.fixture(scope="module", params=TOLERANCES)
def artifact(request, model, tmp_path_factory):
    """A precision and its frozen graph."""
    directory = tmp_path_factory.mktemp(request.param)
    notes = frozen_graph.write(model, directory, request.param, [])
    assert [p.name for p in directory.iterdir()] == ["frozen_graph.pb"]
    assert bool(notes) == (request.param != "float32")
    return request.param, directory / "frozen_graph.pb"


class Session:
    """A frozen graph, loaded."""

    def __init__(self, path: Path):
        self.graph_def = v1.GraphDef.FromString(path.read_bytes())
        with tf.Graph().as_default() as graph:
            tf.import_graph_def(self.graph_def, name="")
        self._session = v1.Session(graph=graph)

    def __call__(self, features):
        feed = {f"{name}:0": value for name, value in features.items()}
        return self._session.run(["probabilities:0", "score:0"], feed)


@pytest.fixture(scope="module")
def frozen(artifact):
    return artifact[0], Session(artifact[1])


def batch(rows, spec, length=None):
    """Rows as tensors, padded to the longest or to `length`."""
    longest = length or max(len(row[spec.input_ids]) for row in rows)
    features = {
        name: np.array(
            [[*row[name], *[0] * (longest - len(row[name]))] for row in rows], np.int64
        )
        for name in spec.sequence_names
    }
    for name in spec.span_fields:
        features[name] = np.array([row[name][0] for row in rows], np.int64)
    return features


def assert_close(precision, found, probabilities, score):
    tolerance = TOLERANCES[precision]
    np.testing.assert_allclose(found[0], probabilities, rtol=0, atol=tolerance)
    np.testing.assert_allclose(found[1], score, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("size", [1, 3, 32])
@pytest.mark.parametrize("length", [None, 20], ids=["trimmed", "padded"])
def test_gives_the_predictions_of_the_estimator(frozen, golden, size, length):
    precision, session = frozen
    spec = tiny_artifact.trained().spec
    rows, probabilities, score = golden
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        found = session(batch(rows[part], spec, length))
        assert found[0].dtype == found[1].dtype == np.float32
        assert_close(precision, found, probabilities[part], score[part])


def test_half_precisions_are_not_float32(frozen, golden):
    """Or the test above would pass for what was never stored as halves."""
    precision, session = frozen
    rows, probabilities, _ = golden
    found = session(batch(rows, tiny_artifact.trained().spec))
    largest = np.abs(found[0] - probabilities).max()
    assert (largest > 1e-6) == (precision != "float32")


def test_an_empty_row_is_finite_and_alters_no_other(frozen, golden):
    precision, session = frozen
    spec = tiny_artifact.trained().spec
    rows, probabilities, score = golden
    features = batch(rows[:4], spec)
    for name in features:
        features[name][2] = 0
    found = session(features)
    others = [0, 1, 3]
    assert np.isfinite(found[0]).all()
    assert np.isfinite(found[1]).all()
    assert_close(
        precision, [f[others] for f in found], probabilities[others], score[others]
    )


def test_no_row(frozen):
    spec = tiny_artifact.trained().spec
    features = {name: np.zeros([0, 5], np.int64) for name in spec.sequence_names}
    features.update({name: np.zeros([0], np.int64) for name in spec.span_fields})
    probabilities, score = frozen[1](features)
    assert probabilities.shape == (0, 2)
    assert score.shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.update(start_ps=f["start_ps"] - 90), "start_ps: expected the"),
        (lambda f: f.update(end_ps=f["end_ps"] + 90), "end_ps: expected the index"),
        (lambda f: f.update(end_ps=f["start_ps"], start_ps=f["end_ps"]), "at most end"),
        (lambda f: f["input_mask"].__setitem__((0, -1), 2), "expected 0 and 1"),
        (lambda f: f.update(segment_ids=f["segment_ids"][:, 1:]), "expected the shape"),
        (lambda f: f.update(start_ps=f["start_ps"][1:]), "expected one value a row"),
        (lambda f: f.update(input_ids=f["input_ids"] + 999), "below_vocab_size"),
        (
            lambda f: f.update(
                {k: np.tile(v, 3) for k, v in list(f.items()) if v.ndim == 2}
            ),
            "expected at most 20 tokens",
        ),
    ],
)
def test_malformed_requests_are_refused(frozen, golden, change, message):
    _, session = frozen
    rows, probabilities, _ = golden
    features = batch(rows[:3], tiny_artifact.trained().spec, 20)
    change(features)
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        session(features)
    found = session(batch(rows[:1], tiny_artifact.trained().spec))
    np.testing.assert_allclose(found[0], probabilities[:1], atol=5e-2)


def test_the_graph_has_the_features_for_inputs_and_nothing_of_training(artifact):
    precision, path = artifact
    graph_def = v1.GraphDef.FromString(path.read_bytes())
    placeholders = [n for n in graph_def.node if n.op == "Placeholder"]
    assert [n.name for n in placeholders] == [
        *tiny_artifact.trained().spec.sequence_names,
        *tiny_artifact.trained().spec.span_fields,
    ]
    assert {n.attr["dtype"].type for n in placeholders} == {tf.int64}
    functions = [n for f in graph_def.library.function for n in f.node_def]
    for node in [*graph_def.node, *functions]:
        assert not node.op.startswith(("Var", "ReadVariable", "Assign"))
        assert node.op not in ("StopGradient", "CheckNumerics")
        assert not node.device
        assert all(value.WhichOneof("value") for value in node.attr.values())
    half = {"float16": tf.float16, "bfloat16": tf.bfloat16}.get(precision)
    large = [
        node
        for node in graph_def.node
        if node.op == "Const"
        and len(node.attr["value"].tensor.tensor_shape.dim) > 1
        and tf.make_ndarray(node.attr["value"].tensor).size >= 256
    ]
    # The word and position tables; of each of two layers six matrices.
    assert len(large) == 14
    assert {n.attr["dtype"].type for n in large} == {half or tf.float32}


def test_half_as_large(model, tmp_path):
    """Where a table outweighs the nodes, as in a real model."""
    graph_def = linker_graph.freeze(model, checked=True)
    for node in graph_def.node:
        if node.name == "bert/embeddings/word_embeddings":
            table = tf.make_ndarray(node.attr["value"].tensor)
            large = np.random.default_rng(1).normal(size=[50000, table.shape[1]])
            node.attr["value"].tensor.CopyFrom(
                tf.make_tensor_proto(large.astype(np.float32))
            )
    for dtype in (tf.float16, tf.bfloat16):
        size = store_as_half(graph_def, dtype).ByteSize()
        assert size < 0.53 * graph_def.ByteSize()


def test_without_span_fields(tmp_path):
    features = FeaturesConfig(max_seq_length=20, span_fields=())
    trained = tiny_artifact.train(tmp_path / "pairs", features)
    frozen_graph.write(trained_linker(trained, features), tmp_path, "float32", [])
    recorded = requests.record_golden(
        trained.estimator, trained.checkpoint, trained.examples[:8], trained.spec
    )["requests"]
    session = Session(tmp_path / "frozen_graph.pb")
    for request, example in zip(recorded, trained.examples):
        parsed = tf.train.Example.FromString(example).features.feature
        row = {name: value.int64_list.value for name, value in parsed.items()}
        found = session(batch([row], trained.spec))
        assert_close("float32", found, [request["probabilities"]], [request["score"]])


def test_loads_as_the_page_says(artifact, golden):
    """In TensorFlow 2, inside a function."""
    precision, path = artifact
    graph_def = v1.GraphDef.FromString(path.read_bytes())

    @tf.function(reduce_retracing=True)
    def predict(features):
        feed = {f"{name}:0": value for name, value in features.items()}
        return tf.import_graph_def(graph_def, feed, ["probabilities:0", "score:0"])

    rows, probabilities, score = golden
    spec = tiny_artifact.trained().spec
    for part in (slice(0, 32), slice(0, 1), slice(0, 9)):
        features = batch(rows[part], spec)
        found = predict({name: tf.constant(v) for name, v in features.items()})
        assert_close(precision, found, probabilities[part], score[part])
    features["input_mask"][0, -1] = -1
    with pytest.raises(tf.errors.InvalidArgumentError, match="expected 0 and 1"):
        predict({name: tf.constant(v) for name, v in features.items()})


def graph_of(value):
    with tf.Graph().as_default() as graph:
        weights = tf.constant(value, name="weights")
        ids = v1.placeholder(tf.int32, [None], "ids")
        tf.gather(weights, ids, name="rows")
        return graph.as_graph_def()


@pytest.mark.parametrize("large", [65520.0, -1e9])
def test_what_overflows_float16_is_refused(large):
    value = np.zeros([64, 64], np.float32)
    value[3, 5] = large
    graph_def = graph_of(value)
    with pytest.raises(StageError, match=r"weights: \S+ is too large for float16"):
        store_as_half(graph_def, tf.float16)
    store_as_half(graph_def, tf.bfloat16)


def test_only_gathered_rows_are_cast_and_others_still_read_the_whole():
    value = np.random.default_rng(2).normal(size=[64, 64]).astype(np.float32)
    half = store_as_half(graph_of(value), tf.float16)
    by_name = {node.name: node for node in half.node}
    assert "weights" not in by_name
    assert list(by_name["rows/half"].input[:2]) == ["weights/half", "ids"]
    with tf.Graph().as_default():
        tf.import_graph_def(graph_of(value), name="")
        weights = v1.get_default_graph().get_tensor_by_name("weights:0")
        tf.matmul(weights, weights, name="square")
        both = store_as_half(v1.get_default_graph().as_graph_def(), tf.float16)
    with tf.Graph().as_default(), v1.Session() as session:
        tf.import_graph_def(both, name="")
        rows, square = session.run(["rows:0", "square:0"], {"ids:0": [7, 0]})
    rounded = value.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(rows, rounded[[7, 0]])
    np.testing.assert_allclose(square, rounded @ rounded, rtol=1e-4, atol=1e-4)

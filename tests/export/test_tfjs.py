"""The tfjs format: what is written, and that each rewriting keeps the numbers."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import json_format

from bert_export.config import FeaturesConfig
from bert_export.errors import StageError
from bert_export.export import linker_graph, tfjs, tfjs_operations, tfjs_page
from tests import sentencepiece_models, tiny_artifact
from tests.export import other_runtimes
from tests.page import tiny_page

pytest.importorskip("tensorflowjs", reason="pip install 'bert_export[tfjs]'")
v1 = tf.compat.v1
PRECISIONS = ("float32", "float16", "uint8")
# Largest differences of the probabilities. The tiny linker's weights are twenty times
# as large as BERT's, and so is what rounding them does.
TOLERANCES = {"float32": 1e-5, "float16": 5e-3, "uint8": 0.1}
BYTES = {"float32": 4, "float16": 2, "uint8": 1}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """A directory and what `write` said, by precision."""
    result = {}
    for precision in PRECISIONS:
        directory = tmp_path_factory.mktemp(precision)
        notes = tfjs.write(other_runtimes.model(), directory, precision, [])
        result[precision] = directory, notes
    return result


def read(directory):
    """model.json as JSON, and the weights by name, expanded."""
    from tensorflowjs import read_weights

    model = json.loads((directory / "model.json").read_text(encoding="utf-8"))
    groups = read_weights.read_weights(model["weightsManifest"], str(directory))
    return model, {
        weight["name"]: weight["data"] for group in groups for weight in group
    }


def graph_of(directory):
    """The graph with its weights back in it."""
    model, weights = read(directory)
    graph_def = v1.GraphDef()
    json_format.ParseDict(model["modelTopology"], graph_def)
    for node in graph_def.node:
        if node.op == "Const":
            dtype = tf.as_dtype(node.attr["dtype"].type)
            value = weights[node.name].astype(dtype.as_numpy_dtype)
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
    return graph_def


def answer(graph_def, outputs, features):
    with tf.Graph().as_default() as graph, v1.Session(graph=graph) as session:
        tf.import_graph_def(graph_def, name="")
        return session.run(
            [f"{name}:0" for name in outputs],
            {f"{name}:0": value for name, value in features.items()},
        )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_computes_what_the_trained_model_predicts(artifacts, precision):
    graph_def = graph_of(artifacts[precision][0])
    right = other_runtimes.expected()
    requests = other_runtimes.batches(1, 6, 32)
    requests += other_runtimes.batches(6, padded=True)
    for batch in requests:
        found = answer(graph_def, linker_graph.OUTPUTS, batch)
        size = len(found[1])
        np.testing.assert_allclose(
            found[0], right["probabilities"][:size], rtol=0, atol=TOLERANCES[precision]
        )


def test_a_row_of_zeros_is_finite_and_leaves_the_others_alone(artifacts):
    graph_def = graph_of(artifacts["float32"][0])
    (batch,) = other_runtimes.batches(3)
    for value in batch.values():
        value[1] = 0
    probabilities, score = answer(graph_def, linker_graph.OUTPUTS, batch)
    assert np.isfinite(score).all()
    right = other_runtimes.expected()["probabilities"]
    np.testing.assert_allclose(probabilities[[0, 2]], right[[0, 2]], atol=1e-5)


def test_masks_with_holes(artifacts):
    graph_def = graph_of(artifacts["float32"][0])
    plain = linker_graph.freeze(other_runtimes.model(), checked=False)
    (batch,) = other_runtimes.batches(5)
    batch["input_mask"] = batch["input_mask"] * (
        np.random.default_rng(1).random(batch["input_mask"].shape) < 0.7
    )
    np.testing.assert_allclose(
        answer(graph_def, linker_graph.OUTPUTS, batch)[1],
        answer(plain, linker_graph.OUTPUTS, batch)[1],
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_signature_and_metadata(artifacts, precision):
    model, _ = read(artifacts[precision][0])
    assert model["format"] == "graph-model"
    inputs = model["signature"]["inputs"]
    assert inputs.keys() == {*other_runtimes.model().input_names}
    assert {described["dtype"] for described in inputs.values()} == {"DT_INT32"}
    assert inputs["input_ids"]["tensorShape"]["dim"] == [{"size": "-1"}] * 2
    assert inputs["end_ps"]["tensorShape"]["dim"] == [{"size": "-1"}]
    outputs = model["signature"]["outputs"]
    assert outputs["probabilities"]["tensorShape"]["dim"][1] == {"size": "2"}
    assert outputs["score"]["name"] == "score:0"
    # In the order of the signature's outputs, which is that of predict()'s.
    keys = model["userDefinedMetadata"]["structuredOutputKeys"]
    assert keys == list(outputs)
    ours = model["userDefinedMetadata"]["bert_export"]
    assert ours["format_version"] == 1
    assert ours["precision"] == precision
    assert ours["vocab"] == "assets.extra/vocab.txt"
    assert ours["features"]["max_seq_length"] == 20
    assert ours["features"]["span_fields"] == ["start_ps", "end_ps"]
    assert ours["signature"]["inputs"]["input_ids"] == {
        "dtype": "int32",
        "shape": [-1, -1],
    }
    assert ours["signature"]["outputs"]["score"] == {"dtype": "float32", "shape": [-1]}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_large_weights_are_stored_in_the_precision(artifacts, precision):
    directory, notes = artifacts[precision]
    model, _ = read(directory)
    weights = list(
        itertools.chain(*(group["weights"] for group in model["weightsManifest"]))
    )
    word = next(w for w in weights if w["name"].endswith("word_embeddings"))
    stored = word.get("quantization", {"dtype": "float32"})["dtype"]
    assert stored == precision
    assert bool(notes) == (precision != "float32")
    # What is stored is as long as what is declared.
    size = sum(
        int(np.prod(w["shape"]))
        * BYTES.get(w.get("quantization", {"dtype": "float32"})["dtype"])
        for w in weights
    )
    assert sum(path.stat().st_size for path in directory.glob("*.bin")) == size


def test_no_operation_makes_javascript_wait(artifacts):
    """Where, NonMaxSuppression and control flow need `executeAsync`."""
    model, _ = read(artifacts["float32"][0])
    operations = {node["op"] for node in model["modelTopology"]["node"]}
    assert not operations & {"Where", "Unique", "If", "While", "Switch", "Merge"}
    assert "TopKV2" in operations
    # tfjs-node takes longer for fused products.
    assert "MatMul" in operations
    assert "_FusedMatMul" not in operations


def test_what_is_equal_is_computed_once(artifacts):
    """As are the shapes and the mask that each layer asks for."""
    model, _ = read(artifacts["float32"][0])
    nodes = model["modelTopology"]["node"]
    for operation in ("Shape", "Unpack", "Sub", "Pack"):
        inputs = [tuple(node["input"]) for node in nodes if node["op"] == operation]
        assert len(set(inputs)) == len(inputs), operation


def test_sharing_keeps_the_numbers():
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 3], name="x")
        y = v1.placeholder(tf.float32, [None, 3], name="y")
        once, again = (tf.exp(x + 1.0) * (y + 1.0) for _ in range(2))
        first, second = (tf.unstack(tf.concat([x, y], 1), 6, 1) for _ in range(2))
        tf.identity(once + 2 * again + (x + y), name="probabilities")
        tf.add_n([first[0], second[0], second[5]], name="score")
    graph_def = graph.as_graph_def()
    shared = tfjs.share_equal(graph_def)
    operations = [node.op for node in shared.node]
    assert operations.count("Exp") == 1
    assert operations.count("Unpack") == 1
    assert operations.count("Placeholder") == 2
    rng = np.random.default_rng(5)
    features = {"x": rng.normal(size=(4, 3)), "y": rng.normal(size=(4, 3))}
    outputs = linker_graph.OUTPUTS
    for found, right in zip(
        answer(shared, outputs, features), answer(graph_def, outputs, features)
    ):
        np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize("flags", ["1", "0", "0110100", "1" * 9, "0" * 5, "10" * 40])
def test_true_elements_are_listed_as_by_where(flags):
    with tf.Graph().as_default() as graph:
        flat = v1.placeholder(tf.bool, [None], name="flat")
        tf.identity(tf.reshape(tf.where(flat), [-1]), name="out")
    value = np.array([flag == "1" for flag in flags])
    rewritten = tfjs.list_true_by_sorting(graph.as_graph_def())
    assert "Where" not in {node.op for node in rewritten.node}
    (found,) = answer(rewritten, ["out"], {"flat": value})
    np.testing.assert_array_equal(found, np.flatnonzero(value))
    assert found.dtype == np.int64


def fuse(operation, fused, *inputs, **attributes):
    """A fused product of placeholder x and what else there is, as grappler makes it."""
    with tf.Graph().as_default() as graph:
        v1.placeholder(tf.float32, name="x")
        v1.placeholder(tf.float32, name="residual")
        rng = np.random.default_rng(3)
        tf.constant(rng.normal(size=(8, 4)).astype(np.float32), name="kernel")
        tf.constant(rng.normal(size=(1, 1, 8, 4)).astype(np.float32), name="filter")
        tf.constant(rng.normal(size=4).astype(np.float32), name="vector")
        tf.constant(rng.normal(size=(1, 4)).astype(np.float32), name="row")
        tf.constant(np.float32([3]), name="single")
    graph_def = graph.as_graph_def()
    node = graph_def.node.add(name="out", op=operation, input=["x", *inputs])
    node.attr["T"].type = tf.float32.as_datatype_enum
    node.attr["num_args"].i = 1
    node.attr["fused_ops"].list.s.extend(fused)
    if operation == "_FusedConv2D":
        node.attr["strides"].list.i.extend([1] * 4)
        node.attr["padding"].s = b"SAME"
    for name, value in attributes.items():
        node.attr[name].f = value
    return graph_def


GELU = [b"BiasAdd", b"GeluExact"]
LEAKY = [b"BiasAdd", b"LeakyRelu"]


@pytest.mark.parametrize(
    ("kernel", "bias", "fused", "fused_after"),
    [
        ("kernel", "vector", [b"BiasAdd"], [[b"BiasAdd"]]),
        ("kernel", "vector", [b"BiasAdd", b"Relu"], [[b"BiasAdd", b"Relu"]]),
        ("kernel", "vector", GELU, [[b"BiasAdd"]]),
        ("kernel", "row", [b"BiasAdd"], []),
        ("kernel", "row", GELU, []),
        ("kernel", "single", [b"BiasAdd"], []),
        ("kernel", "residual", [b"BiasAdd"], []),
        ("kernel", "residual", [b"BiasAdd", b"Relu"], []),
        ("kernel", "residual", LEAKY, []),
        ("filter", "residual", [b"BiasAdd", b"Relu6"], []),
        ("filter", "residual", [b"BiasAdd", b"Elu"], []),
    ],
)
def test_what_no_kernel_does_along_is_taken_out_of_products(
    kernel, bias, fused, fused_after
):
    """A residual connection, a matrix [1, columns], and GELU."""
    operation = "_FusedMatMul" if kernel == "kernel" else "_FusedConv2D"
    attributes = {"leakyrelu_alpha": 0.3} if fused == LEAKY else {}
    graph_def = fuse(operation, fused, kernel, bias, **attributes)
    rewritten = tfjs.unfuse(graph_def)
    left = [
        list(node.attr["fused_ops"].list.s)
        for node in rewritten.node
        if node.op == operation
    ]
    assert left == fused_after

    rng = np.random.default_rng(4)
    shape = (5,) if kernel == "kernel" else (2, 3, 5)
    x = rng.normal(size=(*shape, 8)).astype(np.float32)
    residual = rng.normal(size=(*shape, 4)).astype(np.float32)
    values = {
        node.name: tf.make_ndarray(node.attr["value"].tensor)
        for node in graph_def.node
        if node.op == "Const"
    }
    added = values.get(bias, residual)
    right = tf.constant(x @ values[kernel].reshape(8, 4) + added)
    for name in fused[1:]:
        right = {
            b"Relu": tf.nn.relu,
            b"Relu6": tf.nn.relu6,
            b"Elu": tf.nn.elu,
            b"LeakyRelu": lambda value: tf.nn.leaky_relu(value, 0.3),
            b"GeluExact": tf.nn.gelu,
        }[name](right)
    whole = tfjs.unfuse(graph_def, everything=True)
    assert operation not in {node.op for node in whole.node}
    for each in (rewritten, whole):
        (found,) = answer(each, ["out"], {"x": x, "residual": residual})
        np.testing.assert_allclose(found, right.numpy(), rtol=1e-5, atol=1e-5)


def test_only_rows_of_axis_0_are_gathered_otherwise():
    with tf.Graph().as_default() as graph:
        indices = v1.placeholder(tf.int32, [None], name="indices")
        table = tf.constant(np.arange(20, dtype=np.float32).reshape(5, 4))
        tf.gather(table, indices, name="rows")
        tf.gather(table, indices, axis=1, name="columns")
    rewritten = tfjs.gather_rows(graph.as_graph_def())
    operations = {node.name: node.op for node in rewritten.node}
    assert operations["rows"] == "GatherNd"
    assert operations["columns"] == "GatherV2"
    value = np.array([3, 0, 3])
    for name in ("rows", "columns"):
        np.testing.assert_array_equal(
            answer(rewritten, [name], {"indices": value})[0],
            answer(graph.as_graph_def(), [name], {"indices": value})[0],
        )


def test_columns_are_scaled_and_nothing_else_changes():
    """A column of zeros stays one, and a matrix that is used twice is left alone."""
    rng = np.random.default_rng(2)
    kernel = rng.normal(size=(32, 64)).astype(np.float32)
    kernel *= np.logspace(-2, 0, 64, dtype=np.float32)
    kernel[:, 5] = 0
    shared = rng.normal(size=(64, 64), scale=0.1).astype(np.float32)
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 32], name="x")
        product = tf.matmul(x, tf.constant(kernel, name="kernel"), name="dense")
        twice = tf.constant(shared, name="shared")
        tf.identity(tf.matmul(tf.matmul(product, twice), twice), name="out")
    graph_def = graph.as_graph_def()
    scaled = tfjs.scale_columns(graph_def)
    values = {
        node.name: tf.make_ndarray(node.attr["value"].tensor)
        for node in scaled.node
        if node.op == "Const"
    }
    largest = np.abs(values["kernel"]).max(axis=0)
    np.testing.assert_allclose(np.delete(largest, 5), 1)
    assert largest[5] == 0
    np.testing.assert_array_equal(values["shared"], shared)
    features = {"x": rng.normal(size=(3, 32))}
    for name in ("dense", "out"):
        np.testing.assert_allclose(
            answer(scaled, [name], features)[0],
            answer(graph_def, [name], features)[0],
            rtol=1e-5,
            atol=1e-3,
        )


def test_operations_stand_in_the_scopes_of_their_layers():
    """So that a complaint about an operation says whose it is."""
    graph_def = linker_graph.freeze(other_runtimes.model(), checked=False)
    for operation, places in {
        "MatMul": {"bert/encoder/layer_0/intermediate/dense", "linker"},
        "Softmax": {"bert/encoder/layer_1/attention/self"},
        "Erf": {"bert/encoder/layer_0/Gelu"},
        "Rsqrt": {"bert/embeddings/LayerNorm/batchnorm"},
    }.items():
        scopes = {
            node.name.rpartition("/")[0]
            for node in graph_def.node
            if node.op == operation
        }
        assert places <= scopes, operation
    broken = v1.GraphDef()
    broken.CopyFrom(graph_def)
    for node in broken.node:
        if node.op == "Softmax":
            node.op = "SoftmaxOfTomorrow"
    with pytest.raises(
        StageError, match=r"SoftmaxOfTomorrow \(bert/encoder/layer_0/attention/self"
    ):
        tfjs_operations.check(broken)


def test_refuses_a_precision_it_does_not_have(tmp_path):
    with pytest.raises(StageError, match="no precision int8_dynamic"):
        tfjs.write(other_runtimes.model(), tmp_path, "int8_dynamic", [])
    assert not list(tmp_path.iterdir())


def test_a_sentencepiece_vocabulary_is_named_and_gets_no_page(tmp_path):
    features = FeaturesConfig(max_seq_length=20, tokenizer="sentencepiece")
    model = dataclasses.replace(
        other_runtimes.model(),
        features=features,
        tokenizer=sentencepiece_models.tokenizer(),
    )
    metadata = tfjs.metadata(model, "float32")
    assert metadata["vocab"] == "assets.extra/spiece.model"
    assert metadata["features"]["tokenizer"] == "sentencepiece"
    (note,) = tfjs_page.write(
        tmp_path,
        tiny_page.corpus(),
        tmp_path,
        name="tiny",
        features=features,
        nil_threshold=0.5,
        examples=[],
    )
    assert note.startswith("there is no linking page: ")
    assert "assets.extra/spiece.model" in note
    assert not list(tmp_path.iterdir())


def test_a_plain_pair_classifier_has_no_span_inputs(tmp_path):
    features = FeaturesConfig(max_seq_length=20, span_fields=())
    trained = tiny_artifact.train(tmp_path / "trained", features)
    model = linker_graph.TrainedLinker(
        trained.checkpoint, tiny_artifact.BERT, features, tiny_artifact.TOKENIZER
    )
    (tmp_path / "artifact").mkdir()
    tfjs.write(model, tmp_path / "artifact", "float32", [])
    inputs = read(tmp_path / "artifact")[0]["signature"]["inputs"]
    assert inputs.keys() == {"input_ids", "input_mask", "segment_ids"}

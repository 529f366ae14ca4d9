"""Any model becomes a TensorFlow.js model that gives the same numbers in Node.js."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

pytest.importorskip("tensorflowjs", reason="pip install 'bert_export[tfjs]'")

import tf_keras

from bert_export import javascript
from bert_export.errors import StageError, UserError
from bert_export.export import tfjs_layers, tfjs_model
from bert_export.export.tfjs_convert import METADATA, convert

GRAPH = "tfjs_graph_model"
LAYERS = "tfjs_layers_model"
layers = tf_keras.layers


@pytest.fixture(scope="module", autouse=True)
def packages() -> Path:
    """Everything here is run in Node.js."""
    try:
        return javascript.packages()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def cnn() -> Any:
    """Convolutions, a batch norm and GELU; two inputs and two outputs."""
    tf_keras.utils.set_random_seed(1)
    image = layers.Input((8, 8, 3), name="image")
    extra = layers.Input((4,), name="extra")
    values = layers.Conv2D(4, 3, activation="relu", name="conv")(image)
    values = layers.BatchNormalization(name="norm")(values)
    values = layers.Flatten()(values)
    values = layers.Concatenate()([values, extra])
    values = layers.Dense(12, activation="gelu", name="hidden")(values)
    model = tf_keras.Model(
        [image, extra],
        [
            layers.Dense(3, activation="softmax", name="scores")(values),
            layers.Dense(1, name="area")(values),
        ],
    )
    model.get_layer("norm").set_weights(
        [
            np.array(v, np.float32)
            for v in ([1, 2, 3, 4], [0, 1, 0, 1], [1] * 4, [4] * 4)
        ]
    )
    return model


@pytest.fixture(scope="module")
def cnn_file(cnn, tmp_path_factory):
    path = tmp_path_factory.mktemp("with a blank") / "cnn.h5"
    cnn.save(path)
    return path


@pytest.fixture(scope="module")
def layers_model(cnn_file):
    path = cnn_file.with_name("layers")
    convert("keras", LAYERS, str(cnn_file), path)
    return path


@pytest.fixture
def harmed(layers_model, tmp_path):
    """A copy of the layers model, to be harmed."""
    return Path(shutil.copytree(layers_model, tmp_path / "harmed"))


@pytest.mark.parametrize("epsilon", [1e-2, 1e-5])
def test_layer_normalisation_and_residual_connections(tmp_path, epsilon):
    """TensorFlow.js has no kernel for what TensorFlow makes of either."""
    tf_keras.utils.set_random_seed(2)
    x = layers.Input((5, 8))
    y = layers.Dense(8, activation="gelu")(x)
    y = layers.LayerNormalization(
        epsilon=epsilon, gamma_initializer="random_normal", beta_initializer="ones"
    )(layers.Add()([x, y]))
    row = layers.Lambda(lambda y: y[:, 0])(y)
    summed = layers.Dense(8, use_bias=False)(row) + row
    model = tf_keras.Model(x, layers.Dense(3)(summed))
    batch = np.random.default_rng(3).normal(size=(4, 5, 8)).astype(np.float32)
    right = model(batch).numpy()
    tf.saved_model.save(model, str(tmp_path / "saved"))
    # A process of its own: the command chooses how TensorFlow optimizes.
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bert_export", "convert_tfjs"),
            *("--input_format=tf_saved_model", tmp_path / "saved", tmp_path / "graph"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "largest difference from the source" in done.stdout
    (name,) = _content(tmp_path / "graph")["signature"]["inputs"]
    (output,) = _content(tmp_path / "graph")["signature"]["outputs"]
    found = tfjs_model.run(
        tmp_path / "graph" / "model.json", tfjs_model.GRAPH, [{name: batch}], [output]
    )
    np.testing.assert_allclose(found.batches[0][0], right, atol=1e-6)


def _content(path: Path) -> dict[str, Any]:
    return json.loads((path / "model.json").read_text())


def _made(path: Path) -> dict[str, Any]:
    return _content(path)["userDefinedMetadata"][METADATA]


def _batch(cnn: Any, size: int) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    random = np.random.default_rng(size)
    batch = {
        "image": random.normal(size=(size, 8, 8, 3)).astype(np.float32),
        "extra": random.normal(size=(size, 4)).astype(np.float32),
    }
    return batch, [one.numpy() for one in cnn([batch["image"], batch["extra"]])]


def _refused(kind: type[Exception], match: str, *arguments: Any, **options: Any) -> str:
    """Asserts that a conversion is refused and leaves nothing; returns the message."""
    output = Path(arguments[3])
    before = sorted(output.parent.iterdir()) if output.parent.is_dir() else None
    with pytest.raises(kind, match=match) as raised:
        convert(*arguments, **options)
    if before is not None:
        assert sorted(output.parent.iterdir()) == before
    return str(raised.value)


# --- conversions ---------------------------------------------------------------------


def _keras_file(cnn_file: Path, suffix: str) -> str:
    path = cnn_file.with_name(f"again{suffix}")
    if not path.exists():
        tf_keras.models.load_model(cnn_file, compile=False).save(path)
    return str(path)


@pytest.mark.parametrize("suffix", [".h5", ".keras", "_saved_model"])
def test_keras_to_graph_model(cnn, cnn_file, tmp_path, suffix):
    source = _keras_file(cnn_file, suffix)
    converted = convert("keras", GRAPH, source, tmp_path / "out")
    content = _content(tmp_path / "out")
    assert content["format"] == "graph-model"
    assert set(content["signature"]["inputs"]) == {"image", "extra"}
    assert set(content["signature"]["outputs"]) == {"scores", "area"}
    # A size that the conversion itself has not tried.
    batch, expected = _batch(cnn, 5)
    found = tfjs_model.run(
        tmp_path / "out" / "model.json", tfjs_model.GRAPH, [batch], ["scores", "area"]
    )
    assert found.call == "predict"
    for one, other in zip(expected, found.batches[0]):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert "ran in Node.js with predict()" in converted.check
    assert "no fit()" in converted.table()
    assert _made(tmp_path / "out")["notes"] == list(converted.notes)


@pytest.mark.parametrize("suffix", [".h5", ".keras", "_saved_model"])
def test_keras_to_layers_model(cnn, cnn_file, tmp_path, suffix):
    source = _keras_file(cnn_file, suffix)
    converted = convert("keras", LAYERS, source, tmp_path / "out")
    assert _content(tmp_path / "out")["format"] == "layers-model"
    batch, expected = _batch(cnn, 5)
    found = tfjs_model.run(tmp_path / "out" / "model.json", tfjs_model.LAYERS, [batch])
    for one, other in zip(expected, found.batches[0]):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert "call compile() before fit()" in converted.table()


def test_layers_model_to_graph_model(cnn, layers_model, tmp_path):
    convert(LAYERS, GRAPH, str(layers_model / "model.json"), tmp_path / "out")
    batch, expected = _batch(cnn, 5)
    found = tfjs_model.run(
        tmp_path / "out" / "model.json", tfjs_model.GRAPH, [batch], ["scores", "area"]
    )
    for one, other in zip(expected, found.batches[0]):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_layers_model_written_by_javascript(packages, tmp_path):
    """Its names and defaults are not Keras' own."""
    script = tmp_path / "save.cjs"
    script.write_text(
        """
        const [packages, directory] = process.argv.slice(2);
        const tf = require(packages + '/node_modules/@tensorflow/tfjs');
        const {writeFileSync} = require('fs');
        const model = tf.sequential({layers: [
          tf.layers.conv2d({inputShape: [8, 8, 3], filters: 4, kernelSize: 3}),
          tf.layers.batchNormalization(),
          tf.layers.reshape({targetShape: [36, 4]}),
          tf.layers.gru({units: 3}),
        ]});
        model.save(tf.io.withSaveHandler(async (artifacts) => {
          const {weightData, weightSpecs, modelTopology} = artifacts;
          writeFileSync(directory + '/weights.bin', Buffer.from(weightData));
          writeFileSync(directory + '/model.json', JSON.stringify({
            modelTopology, format: 'layers-model',
            weightsManifest: [{paths: ['./weights.bin'], weights: weightSpecs}],
          }));
          return {modelArtifactsInfo: {dateSaved: new Date(0)}};
        }));
        """
    )
    source = tmp_path / "source"
    source.mkdir()
    subprocess.run(
        [javascript.node(), script, packages, source], check=True, capture_output=True
    )
    converted = convert(LAYERS, GRAPH, str(source), tmp_path / "out")
    assert re.search(
        r"executeAsync.*difference from the source \d.\de-0[78]", converted.check
    )


def _wide(path: Path) -> Path:
    """A model with a table of more than 1024 numbers."""
    tf_keras.utils.set_random_seed(1)
    model = tf_keras.Sequential(
        [layers.Input((6,), dtype="int32"), layers.Embedding(200, 16), layers.Flatten()]
    )
    model.add(layers.Dense(3))
    model.save(path)
    return path


@pytest.mark.parametrize("output_format", [GRAPH, LAYERS])
@pytest.mark.parametrize(("quantization", "bits"), [("float16", 16), ("uint8", 8)])
def test_quantization(tmp_path, output_format, quantization, bits):
    source = _wide(tmp_path / "wide.h5")
    whole = convert("keras", output_format, str(source), tmp_path / "whole")
    small = convert(
        "keras",
        output_format,
        str(source),
        tmp_path / "small",
        quantization=quantization,
    )
    sizes = [
        sum(file.stat().st_size for file in one.path.glob("*.bin"))
        for one in (whole, small)
    ]
    assert sizes[0] - sizes[1] == 200 * 16 * (32 - bits) // 8
    assert _made(small.path)["quantization"] == quantization
    difference = float(small.check.rpartition(" ")[2])
    assert 1e-6 < difference < 0.01
    assert f"stored in {quantization}" in small.table()


def test_layers_model_to_layers_model_quantizes(tmp_path):
    convert("keras", LAYERS, str(_wide(tmp_path / "w.h5")), tmp_path / "whole")
    once = convert(
        LAYERS, LAYERS, str(tmp_path / "whole"), tmp_path / "u16", quantization="uint16"
    )
    assert 0 < float(once.check.rpartition(" ")[2]) < 1e-4
    twice = convert(
        LAYERS, LAYERS, str(tmp_path / "u16"), tmp_path / "u8", quantization="uint8"
    )
    assert "what that lost stays lost" in twice.table()
    _refused(
        UserError,
        "already; add --quantization",
        LAYERS,
        LAYERS,
        str(tmp_path / "whole"),
        tmp_path / "out",
    )


class _Module(tf.Module):
    def __init__(self) -> None:
        self.weight = tf.Variable(np.linspace(-1, 1, 12, dtype=np.float32))

    @tf.function
    def __call__(self, values: tf.Tensor, training: bool = False) -> tf.Tensor:
        product = tf.matmul(values, tf.reshape(self.weight, [3, 4]))
        return product * 2.0 if training else product

    def sums(self, ids: tf.Tensor, values: tf.Tensor) -> dict[str, tf.Tensor]:
        values = tf.gather(values, ids)
        return {"total": tf.reduce_sum(values, 1), "first": ids[:, 0] * 2}


def test_saved_model_with_signatures(tmp_path):
    module = _Module()
    sums = tf.function(module.sums).get_concrete_function(
        tf.TensorSpec([None, None], tf.int64, name="ids"),
        tf.TensorSpec([None], tf.float32, name="values"),
    )
    call = module.__call__.get_concrete_function(tf.TensorSpec([None, 3], name="x"))
    source = str(tmp_path / "source")
    tf.saved_model.save(module, source, {"sums": sums, "call": call})
    message = _refused(
        UserError,
        "choose with --signature",
        "tf_saved_model",
        GRAPH,
        source,
        tmp_path / "out",
    )
    assert "call, sums" in message
    _refused(
        UserError,
        "no signature none",
        "tf_saved_model",
        GRAPH,
        source,
        tmp_path / "out",
        signature="none",
    )
    _refused(
        UserError,
        "cannot load",
        "tf_saved_model",
        GRAPH,
        source,
        tmp_path / "out",
        saved_model_tags="train",
    )
    converted = convert(
        "tf_saved_model", GRAPH, source, tmp_path / "out", signature="sums"
    )
    assert converted.inputs == ("ids int64 [?, ?]", "values float32 [?]")
    assert [one.split()[0] for one in converted.outputs] == ["first", "total"]
    assert "64-bit integers are int32" in converted.table()


def test_hub_module_of_tf2(tmp_path):
    """Such a module may have a call, but no signature."""
    module = _Module()
    for training in (True, False):
        module.__call__.get_concrete_function(tf.TensorSpec([None, 3]), training)
    source = tmp_path / "source"
    tf.saved_model.save(module, str(source))
    convert("tf_hub", GRAPH, str(source), tmp_path / "out")
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    found = tfjs_model.run(
        tmp_path / "out" / "model.json",
        tfjs_model.GRAPH,
        [{"inputs": values}],
        ["output"],
    )
    np.testing.assert_allclose(found.batches[0][0], module(values), rtol=1e-5)


def test_hub_module_of_tf1(tmp_path):
    """A graph without tags, with variables of TensorFlow 1, beside a marker."""
    v1 = tf.compat.v1
    source = tmp_path / "source"
    with tf.Graph().as_default(), v1.Session() as session:
        features = v1.placeholder(tf.float32, [None, 3], "x")
        weight = v1.get_variable(
            "weight", [3, 2], initializer=v1.ones_initializer(), use_resource=False
        )
        result = tf.nn.relu(features @ weight)
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(source))
        signatures = {
            name: v1.saved_model.predict_signature_def({"x": features}, {"y": one})
            for name, one in (("default", result), ("double", result * 2))
        }
        builder.add_meta_graph_and_variables(session, [], signatures)
        builder.save()
    (source / "tfhub_module.pb").write_bytes(b"\x08\x03")
    for signature, factor in ((None, 1), ("double", 2)):
        output = tmp_path / f"out{factor}"
        convert("tf_hub", GRAPH, str(source), output, signature=signature)
        ones = np.ones((2, 3), np.float32)
        found = tfjs_model.run(
            output / "model.json", tfjs_model.GRAPH, [{"x": ones}], ["y"]
        )
        assert found.batches[0][0].tolist() == [[3 * factor] * 2] * 2


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """Two outputs, one of which TensorFlow.js cannot compute."""
    path = tmp_path_factory.mktemp("frozen") / "graph.pb"
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, 3], "x")
        hidden = tf.nn.relu(x - 0.5, name="hidden")
        tf.math.segment_sum(hidden, tf.range(tf.shape(x)[0]), name="encoder/sums")
        tf.split(hidden, 3, axis=1, name="parts")
        path.write_bytes(graph.as_graph_def().SerializeToString())
    return str(path)


def test_frozen_graph(frozen, tmp_path):
    # Its outputs are the nodes that nothing reads.
    message = _refused(
        StageError,
        "does not have 1 operation",
        "tf_frozen_model",
        GRAPH,
        frozen,
        tmp_path / "out",
    )
    assert "SegmentSum (encoder)" in message
    converted = convert(
        "tf_frozen_model",
        GRAPH,
        frozen,
        tmp_path / "out",
        output_node_names="parts:1, hidden:0",
    )
    assert converted.inputs == ("x float32 [?, 3]",)
    values = np.array([[0.0, 1.0, 2.0]], np.float32)
    found = tfjs_model.run(
        tmp_path / "out" / "model.json",
        tfjs_model.GRAPH,
        [{"x": values}],
        ["parts:1", "hidden"],
    )
    assert [one.tolist() for one in found.batches[0]] == [[[0.5]], [[0, 0.5, 1.5]]]


def test_input_that_no_output_needs(tmp_path):
    @tf.function
    def first(x: tf.Tensor, unused: tf.Tensor) -> dict[str, tf.Tensor]:
        del unused
        return {"y": x * 2}

    spec = tf.TensorSpec([4, 2])
    module = tf.Module()
    tf.saved_model.save(
        module, str(tmp_path / "source"), first.get_concrete_function(spec, spec)
    )
    converted = convert(
        "tf_saved_model", GRAPH, str(tmp_path / "source"), tmp_path / "out"
    )
    assert converted.inputs == ("unused float32 [4, 2]", "x float32 [4, 2]")
    assert "x takes batches of 4 only" in converted.table()


# --- recurrent layers ----------------------------------------------------------------

# What docs/formats/tfjs_convert.md says: how a layers model, made from Keras, and a
# graph model, made from Keras or from that layers model, run. None is refused.
WORKS = ("predict", "executeAsync")
UNROLLED = ("predict", "predict")
STATEFUL = ("predict", None)
RESET_AFTER = (None, "executeAsync")


def _rnn_cases():
    for name in ("SimpleRNN", "LSTM", "GRU"):
        options = {"reset_after": False} if name == "GRU" else {}
        for more, kind, expected in (
            ({}, "plain", WORKS),
            ({}, "any length", WORKS),
            ({}, "mask", WORKS),
            ({}, "bidirectional", WORKS),
            ({"return_sequences": True}, "plain", WORKS),
            ({"return_sequences": True}, "bidirectional", WORKS),
            ({"return_sequences": True}, "mask", WORKS),
            ({"go_backwards": True}, "plain", WORKS),
            ({"activation": "relu"}, "plain", WORKS),
            ({"unroll": True}, "plain", UNROLLED),
            ({"stateful": True}, "plain", STATEFUL),
        ):
            yield name, {**options, **more}, kind, expected
    for more, kind in (
        ({}, "plain"),
        ({}, "mask"),
        ({}, "bidirectional"),
        ({"return_sequences": True}, "plain"),
    ):
        yield "GRU", {"reset_after": True, **more}, kind, RESET_AFTER


def _rnn(name: str, options: dict[str, Any], kind: str, path: Path) -> str:
    tf_keras.backend.clear_session()
    tf_keras.utils.set_random_seed(1)
    size = 2 if options.get("stateful") else None
    if kind == "mask":
        ids = layers.Input((5,), size, dtype="int32")
        model = tf_keras.Sequential([ids, layers.Embedding(7, 3, mask_zero=True)])
    else:
        length = None if kind == "any length" else 5
        model = tf_keras.Sequential([layers.Input((length, 3), size)])
    layer = getattr(layers, name)(4, name="recurrent", **options)
    if kind == "bidirectional":
        layer = layers.Bidirectional(layer, name="both")
    model.add(layer)
    random = np.random.default_rng(1)
    model.set_weights(
        [w + random.normal(scale=0.3, size=w.shape) for w in model.get_weights()]
    )
    model.save(path)
    return str(path)


def _check_rnn(name, options, kind, expected, tmp_path):
    """All three conversions; each compares numbers for two sizes of batches."""
    source = _rnn(name, options, kind, tmp_path / "rnn.h5")
    to_layers, to_graph = expected
    graph_sources = [("keras", source)]
    if to_layers is None:
        _refused(
            StageError,
            "no reset_after=True",
            "keras",
            LAYERS,
            source,
            tmp_path / "layers",
        )
    else:
        converted = convert("keras", LAYERS, source, tmp_path / "layers")
        assert f"with {to_layers}()" in converted.check
        graph_sources.append((LAYERS, str(tmp_path / "layers")))
    for number, (input_format, path) in enumerate(graph_sources):
        output = tmp_path / f"graph{number}"
        if to_graph is None:
            _refused(
                StageError,
                r"recurrent \(\w+\): keeps its state",
                input_format,
                GRAPH,
                path,
                output,
            )
            continue
        converted = convert(input_format, GRAPH, path, output)
        assert f"with {to_graph}()" in converted.check
        assert ("executeAsync() only" in converted.table()) == (to_graph != "predict")


@pytest.mark.parametrize(
    ("name", "options", "kind", "expected"),
    [
        # The default converter's graph of this one does not end.
        ("SimpleRNN", {"return_sequences": True}, "plain", WORKS),
        ("LSTM", {}, "mask", WORKS),
        ("GRU", {"reset_after": True}, "plain", RESET_AFTER),
        ("LSTM", {"stateful": True}, "plain", STATEFUL),
        ("LSTM", {"unroll": True}, "plain", UNROLLED),
    ],
)
def test_recurrent_layers(name, options, kind, expected, tmp_path):
    _check_rnn(name, options, kind, expected, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "kind", "expected"), [*_rnn_cases()])
def test_every_recurrent_layer(name, options, kind, expected, tmp_path):
    _check_rnn(name, options, kind, expected, tmp_path)


# --- layers and operations that cannot be converted ----------------------------------


class _Twice(layers.Layer):
    def call(self, values: tf.Tensor) -> tf.Tensor:
        return values * 2


@functools.cache
def _odd_layers() -> Any:
    values = layers.Input((4,), name="x")
    outputs = layers.Dense(4, activation="exponential", name="steep")(values)
    outputs = _Twice(name="twice")(outputs)
    outputs = layers.Lambda(lambda one: one + 1, name="plus")(outputs)
    return tf_keras.Model(values, outputs * 3)


@pytest.mark.parametrize("suffix", [".h5", ".keras", ""])
def test_layers_are_named_before_conversion(tmp_path, suffix):
    source = str(tmp_path / f"odd{suffix}")
    _odd_layers().save(source)
    message = _refused(
        StageError,
        "4 layers cannot be converted to tfjs_layers_model",
        "keras",
        LAYERS,
        source,
        tmp_path / "out",
    )
    assert "  steep (Dense): tfjs-layers has no activation exponential\n" in message
    assert "  twice (_Twice): tfjs-layers has no such layer\n" in message
    assert "  plus (Lambda): holds Python code\n" in message
    assert "(TFOpLambda): tfjs-layers has no such layer\n" in message
    if suffix:
        message = _refused(
            StageError,
            "2 layers cannot be converted to tfjs_graph_model",
            "keras",
            GRAPH,
            source,
            tmp_path / "out",
        )
        assert "  twice (_Twice): Keras has no such layer" in message
        assert "  plus (Lambda): holds Python code" in message
    else:
        # Its graph is there, too, and needs no layers.
        convert("keras", GRAPH, source, tmp_path / "out")


def test_layers_inside_of_models_and_wrappers_are_named(tmp_path):
    inner = tf_keras.Sequential(
        [layers.Input((4, 2)), layers.Bidirectional(layers.GRU(2, name="gate"))],
        name="inner",
    )
    model = tf_keras.Sequential(
        [layers.Input((4, 2)), inner, layers.UnitNormalization()]
    )
    model.save(tmp_path / "nested.h5")
    message = _refused(
        StageError,
        "2 layers",
        "keras",
        LAYERS,
        str(tmp_path / "nested.h5"),
        tmp_path / "out",
    )
    assert "gate (GRU): tfjs-layers has no reset_after=True" in message
    assert "(UnitNormalization): tfjs-layers has no such layer" in message


def test_layer_that_keras_lacks(harmed, tmp_path):
    path = harmed / "model.json"
    path.write_text(path.read_text().replace('"Flatten"', '"Flattest"'))
    message = _refused(
        StageError,
        "1 layer cannot be converted",
        LAYERS,
        GRAPH,
        str(harmed),
        tmp_path / "out",
    )
    assert "flatten (Flattest): Keras has no such layer" in message


def test_list_of_layers_is_the_runtimes_own(packages):
    """Whatever the runtime knows and Keras calls a layer, and nothing else."""
    program = (
        "const tf = require(process.argv[1] + '/node_modules/@tensorflow/tfjs');"
        "const {classNameMap} = tf.serialization.SerializationMap.getMap();"
        "process.stdout.write('\\n' + JSON.stringify(Object.keys(classNameMap)));"
    )
    process = subprocess.run(
        [javascript.node(), "-e", program, packages],
        capture_output=True,
        text=True,
        check=True,
    )
    known = set(json.loads(process.stdout.splitlines()[-1]))
    assert set(tfjs_layers.TFJS_LAYERS) <= known
    assert {
        name
        for name in known
        if isinstance(getattr(layers, name, None), type)
        and issubclass(getattr(layers, name), layers.Layer)
        and name != "Identity"  # an initializer
    } <= set(tfjs_layers.TFJS_LAYERS)


def _saved(function: Any, path: Path) -> str:
    tf.saved_model.save(tf.Module(), str(path), function.get_concrete_function())
    return str(path)


def test_unsupported_operation(tmp_path):
    @tf.function(input_signature=[tf.TensorSpec([None], name="x")])
    def model(x):
        with tf.name_scope("head/gamma"):
            return {"y": tf.math.lgamma(x)}

    _refused(
        StageError,
        r"does not have 1 operation of this model: Lgamma \(head/gamma\)",
        "tf_saved_model",
        GRAPH,
        _saved(model, tmp_path / "source"),
        tmp_path / "out",
    )


def test_branch_that_is_a_constant(tmp_path):
    """TensorFlow.js would give 1 for whatever x, without a word."""

    @tf.function(input_signature=[tf.TensorSpec([None], name="x")])
    def model(x):
        positive = tf.reduce_sum(x) > 0
        return {"y": tf.cond(positive, lambda: tf.constant(1), lambda: tf.constant(2))}

    _refused(
        StageError,
        "branch is a constant",
        "tf_saved_model",
        GRAPH,
        _saved(model, tmp_path / "source"),
        tmp_path / "out",
    )


def test_condition_and_loop(tmp_path):
    @tf.function(input_signature=[tf.TensorSpec([None], name="x")])
    def model(x):
        start = tf.cond(tf.reduce_sum(x) > 1, lambda: x * 2, lambda: x - 1)
        rounds = tf.constant(0)
        while tf.reduce_sum(start) < 50:
            start += tf.abs(x) + 1
            rounds += 1
        return {"sum": start, "rounds": rounds}

    converted = convert(
        "tf_saved_model", GRAPH, _saved(model, tmp_path / "source"), tmp_path / "out"
    )
    assert "executeAsync() only" in converted.table()
    batches = [{"x": np.full(3, v, np.float32)} for v in (2, -2)]
    found = tfjs_model.run(
        tmp_path / "out" / "model.json", tfjs_model.GRAPH, batches, ["rounds", "sum"]
    )
    for batch, (rounds, total) in zip(batches, found.batches):
        expected = model(batch["x"])
        assert rounds == expected["rounds"]
        np.testing.assert_allclose(total, expected["sum"])


# --- bad input -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "input_format", ["tf_saved_model", "tf_frozen_model", "tf_hub"]
)
def test_impossible_combination(tmp_path, input_format):
    message = _refused(
        UserError,
        f"{input_format} cannot become {LAYERS}",
        input_format,
        LAYERS,
        "anything",
        tmp_path / "out",
    )
    assert message.endswith("possible: --output_format=tfjs_graph_model")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("arguments", "options", "match"),
    [
        (("onnx", GRAPH), {}, "--input_format=onnx: expected one of tfjs_layers_model"),
        (("keras", "keras"), {}, "keras cannot become keras; possible"),
        (("keras", GRAPH), {"quantization": "int4"}, "expected one of float16, uint8"),
        (("keras", GRAPH), {"signature": "x"}, "--signature and"),
        (("keras", GRAPH), {"output_node_names": "x"}, "--output_node_names is for"),
    ],
)
def test_bad_options(tmp_path, arguments, options, match):
    _refused(UserError, match, *arguments, "anything", tmp_path / "out", **options)


def test_output_is_never_overwritten(cnn_file, tmp_path):
    (tmp_path / "out").mkdir()
    _refused(UserError, "exists", "keras", GRAPH, str(cnn_file), tmp_path / "out")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    _refused(UserError, "exists", "keras", GRAPH, str(cnn_file), tmp_path / "link")


def test_output_cannot_be_written(cnn_file, tmp_path):
    (tmp_path / "file").touch()
    for parent in ("file", "missing"):
        _refused(
            UserError,
            "cannot write in",
            "keras",
            GRAPH,
            str(cnn_file),
            tmp_path / parent / "out",
        )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_output_without_permission(cnn_file, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    _refused(
        UserError,
        "Permission denied",
        "keras",
        GRAPH,
        str(cnn_file),
        tmp_path / "closed" / "out",
    )


def _truncate(directory: Path) -> None:
    (shard,) = directory.glob("*.bin")
    shard.write_bytes(shard.read_bytes()[:-10])


def _lengthen(directory: Path) -> None:
    (shard,) = directory.glob("*.bin")
    shard.write_bytes(shard.read_bytes() + b"1234")


def _remove(directory: Path) -> None:
    (shard,) = directory.glob("*.bin")
    shard.unlink()


def _text(text: str) -> Callable[[Path], Any]:
    return lambda directory: (directory / "model.json").write_text(text)


@pytest.mark.parametrize(
    ("harm", "match"),
    [
        (_truncate, r"group1-shard1of1.bin: truncated: .* has? \d+|truncated"),
        (_lengthen, "group1-shard1of1.bin: too long"),
        (_remove, "names the weight file group1-shard1of1.bin, which is missing"),
        (_text("{"), r"model.json: not JSON \(Expecting"),
        (_text("[]"), "no TensorFlow.js model: expected modelTopology"),
        (
            _text('{"modelTopology": {"node": []}, "weightsManifest": []}'),
            "this is a tfjs_graph_model, expected a tfjs_layers_model",
        ),
        (lambda directory: (directory / "model.json").unlink(), "no model.json in it"),
        (shutil.rmtree, "there is no such file or directory"),
    ],
)
def test_harmed_layers_model(harmed, tmp_path, harm, match):
    harm(harmed)
    _refused(UserError, match, LAYERS, GRAPH, str(harmed), tmp_path / "out")


def test_truncated_shard_of_several(layers_model, tmp_path):
    """The shard that is not as long as the others is named."""
    content = _content(layers_model)
    data = (layers_model / "group1-shard1of1.bin").read_bytes()
    third = -(-len(data) // 3)
    names = [f"part{n}.bin" for n in range(3)]
    for number, name in enumerate(names):
        part = data[number * third : (number + 1) * third]
        (tmp_path / name).write_bytes(part[: third - 7] if number == 1 else part)
    content["weightsManifest"][0]["paths"] = names
    (tmp_path / "model.json").write_text(json.dumps(content))
    _refused(
        UserError,
        "part1.bin: truncated: the 3 weight files have",
        LAYERS,
        GRAPH,
        str(tmp_path),
        tmp_path / "out",
    )


def test_weights_of_another_model(harmed, tmp_path):
    path = harmed / "model.json"
    path.write_text(path.read_text().replace('"hidden/kernel"', '"other/kernel"'))
    _refused(
        UserError,
        "Keras cannot rebuild its layers with these weights: KeyError",
        LAYERS,
        GRAPH,
        str(harmed),
        tmp_path / "out",
    )


def test_graph_model_is_no_saved_model(cnn_file, tmp_path):
    convert("keras", GRAPH, str(cnn_file), tmp_path / "graph")
    for input_format, match in (
        (LAYERS, "this is a tfjs_graph_model, expected a tfjs_layers_model"),
        ("tf_saved_model", "a TensorFlow.js model, no SavedModel"),
        ("keras", "there is no saved_model.pb|a TensorFlow.js model"),
    ):
        _refused(
            UserError,
            match,
            input_format,
            GRAPH,
            str(tmp_path / "graph"),
            tmp_path / "out",
        )


@pytest.mark.parametrize(
    ("input_format", "name", "content", "match"),
    [
        ("keras", "x.h5", b"text", "not a Keras model"),
        ("keras", "x.keras", b"text", "not a Keras model"),
        ("keras", "missing.h5", None, "there is no such file"),
        ("tf_frozen_model", "x.pb", b"text", "not a frozen graph"),
        ("tf_frozen_model", "x.pb", b"", "not a frozen graph"),
        ("tf_frozen_model", "missing.pb", None, "cannot be read: No such file"),
        ("tf_saved_model", "x", b"text", "not a SavedModel: no directory"),
        ("tf_hub", "missing", None, "begins with https://"),
    ],
)
def test_no_model(tmp_path, input_format, name, content, match):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    _refused(
        UserError, match, input_format, GRAPH, str(tmp_path / name), tmp_path / "out"
    )


def test_directory_that_is_no_model(tmp_path):
    (tmp_path / "empty").mkdir()
    for input_format in (
        LAYERS,
        "keras",
        "tf_saved_model",
        "tf_frozen_model",
        "tf_hub",
    ):
        _refused(
            UserError,
            "empty",
            input_format,
            GRAPH,
            str(tmp_path / "empty"),
            tmp_path / "out",
        )


def test_damaged_saved_model(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"\x00" * 9)
    _refused(
        UserError,
        "cannot load this SavedModel",
        "tf_saved_model",
        GRAPH,
        str(tmp_path),
        tmp_path / "out",
    )


def test_weights_without_layers(cnn, tmp_path):
    cnn.save_weights(tmp_path / "only.weights.h5")
    cnn.save_weights(tmp_path / "only.h5", save_format="h5")
    _refused(
        UserError,
        r"save with model.save\(\)",
        "keras",
        LAYERS,
        str(tmp_path / "only.h5"),
        tmp_path / "out",
    )


def test_frozen_graph_with_variables(tmp_path):
    with tf.Graph().as_default() as graph:
        tf.compat.v1.get_variable("weight", [3])
    (tmp_path / "x.pb").write_bytes(graph.as_graph_def().SerializeToString())
    _refused(
        UserError,
        "not frozen: weight",
        "tf_frozen_model",
        GRAPH,
        str(tmp_path / "x.pb"),
        tmp_path / "out",
    )


def test_missing_output_node(frozen, tmp_path):
    _refused(
        UserError,
        "has no node 'hiden'\n  closest: hidden",
        "tf_frozen_model",
        GRAPH,
        frozen,
        tmp_path / "out",
        output_node_names="hiden",
    )


def test_without_node_the_check_is_skipped(cnn_file, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    converted = convert("keras", GRAPH, str(cnn_file), tmp_path / "out")
    assert converted.check.startswith(
        "weights complete; not run: Node.js was not found"
    )
    assert _made(tmp_path / "out")["check"] == converted.check


def test_screen_stays_clean(cnn_file, tmp_path, capfd):
    convert("keras", GRAPH, str(cnn_file), tmp_path / "graph")
    convert("keras", LAYERS, str(cnn_file), tmp_path / "layers")
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""

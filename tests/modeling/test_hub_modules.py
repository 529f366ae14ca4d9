"""TensorFlow Hub modules as weights: real ones of TF1 and TF2, and damaged ones."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from bert_export.config import ModelConfig
from bert_export.errors import UserError
from bert_export.features.tokenizer import load_vocab
from bert_export.modeling import hub, layouts, weights
from bert_export.modeling.bert_config import BertConfig
from bert_export.modeling.encoder import BertEncoder
from tests import environments, tiny_artifact
from tests.modeling.linkers import TINY, tiny_linker

SCRIPTS = Path(__file__).parents[1] / "hub"
TOLERANCE = 1e-5
# The last release with TF1's API.
TF1_HUB = ("tensorflow-hub==0.15.0",)
# The exporter, and what it imports that TensorFlow's environment lacks.
OFFICIAL = (
    "tf-models-official==2.15.0",
    "gin-config==0.5.0",
    "tensorflow-model-optimization==0.8.1",
    "dm-tree==0.1.10",
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    directory = tmp_path / "a cache"
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(directory))
    return directory


def make_modules(script: str, packages: Path, directory: Path) -> Path:
    vocab = directory / "vocab.txt"
    vocab.write_bytes(tiny_artifact.TOKENIZER.content)
    process = subprocess.run(
        [sys.executable, SCRIPTS / script, packages, vocab, directory],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return directory


@pytest.fixture(scope="module")
def tf1(tmp_path_factory) -> Path:
    packages = environments.without_dependencies(*TF1_HUB)
    return make_modules("tf1_module.py", packages, tmp_path_factory.mktemp("tf 1"))


@pytest.fixture(scope="module")
def tf2(tmp_path_factory) -> Path:
    packages = environments.without_dependencies(*OFFICIAL)
    return make_modules("tf2_modules.py", packages, tmp_path_factory.mktemp("tf 2"))


def assert_same_states(made: Path, pretrained: str, tmp_path: Path) -> BertConfig:
    """Our encoder, made as for training, against the module's own answers."""
    files = weights.pretrained_files(pretrained)
    assert files.bert_config is not None
    config = BertConfig.from_json(files.bert_config)
    weights.check_pretrained(pretrained, config, files.bert_config)
    encoder = BertEncoder(config)
    prefix = weights.prepare_checkpoint(pretrained, tmp_path)
    weights.initialize(prefix, encoder.variables)
    expected = dict(np.load(made / "expected.npz"))
    states = expected.pop("states")
    ids, mask, segments = expected.values()
    reads = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    real = mask != 0
    for padded in (False, True):
        found = encoder(ids, mask, segments, reads, padded=padded).numpy()
        np.testing.assert_allclose(found[real], states[real], atol=TOLERANCE, rtol=0)
    assert states[real].std(axis=0).min() > 0.02
    assert files.vocab is not None
    assert load_vocab(files.vocab) == tiny_artifact.VOCAB
    return config


@pytest.mark.parametrize(
    ("name", "heads", "activation", "lower_case"),
    [("uncased", 4, "gelu_new", True), ("cased", 2, "gelu", False)],
)
def test_tf1_module(tf1, tmp_path, name, heads, activation, lower_case):
    config = assert_same_states(tf1 / name, str(tf1 / name / "module"), tmp_path)
    # Neither is in the variables' shapes.
    assert (config.num_attention_heads, config.hidden_act) == (heads, activation)
    assert (config.hidden_size, config.num_hidden_layers) == (16, 2)
    model = ModelConfig(pretrained=str(tf1 / name / "module"))
    weights.check_module(model, config, lower_case)
    with pytest.raises(UserError, match=f"features.lower_case={lower_case}$"):
        weights.check_module(model, config, not lower_case)


def test_another_activation_is_noticed(tf1, cache):
    with pytest.raises(UserError, match=r"other hidden states .* differ by 0\.\d+ at"):
        hub.convert(str(tf1 / "relu" / "module"))
    assert not list(cache.glob("*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layers"),
    [("legacy", 3), ("bert", 2), ("bert_with_mlm", 2), ("albert", 3)],
)
def test_official_tf2_module(tf2, tmp_path, name, layers):
    module = str(tf2 / name / "module")
    config = assert_same_states(tf2 / name, module, tmp_path)
    # As tf-models-official computes "gelu".
    assert config.hidden_act == "gelu_new"
    assert (config.num_hidden_layers, config.num_attention_heads) == (layers, 4)
    assert config.model_type == ("albert" if name == "albert" else "bert")
    weights.check_module(ModelConfig(pretrained=module), config, name != "legacy")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["legacy", "bert", "bert_with_mlm", "albert"])
def test_official_tf2_checkpoint(tf2, tmp_path, name):
    """What tf-models-official saves while it trains: a graph of objects."""
    files = weights.pretrained_files(str(tf2 / name / "module"))
    assert files.bert_config is not None
    assert files.vocab is not None
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    for file in (tf2 / name).glob("checkpoint-1.*"):
        shutil.copy(file, directory)
    shutil.copy(files.bert_config, directory / "bert_config.json")
    shutil.copy(files.vocab, directory / "vocab.txt")
    assert_same_states(tf2 / name, str(directory), tmp_path)


# --- modules of ours, which are made in a moment ------------------------------------

SPECS = [tf.TensorSpec([None, None], tf.int32) for _ in range(3)]
NAMES = ("input_word_ids", "input_mask", "input_type_ids")


def write_module(directory: Path, style: str = "", vocab: bool = True) -> Path:
    """A module with the variables of TF2's encoders.

    Args:
      directory: is made.
      style: '2020' for names and lists as at that time; 'text' for one that takes
        strings; 'pooled' for one without hidden states.
      vocab: whether it has a vocabulary.
    """
    linker = tiny_linker(config=TINY)
    root = tf.train.Checkpoint(encoder=linker.encoder)
    root.variables = []
    for variable in linker.encoder.variables:
        name, transform = layouts.from_ours("hub_tf2", variable.name[:-2])
        if style == "2020":
            name = name.replace("self_attention/attention_out", "self_attention_out")
        value = transform.from_ours(variable.numpy(), TINY.num_attention_heads)
        root.variables.append(tf.Variable(value, name=name))

    def states(ids, mask, segments):
        reads = tf.tile(tf.range(tf.shape(ids)[1])[tf.newaxis], [tf.shape(ids)[0], 1])
        return linker.encoder(ids, mask, segments, reads, padded=True)

    def as_dict(inputs):
        found = states(*(inputs[name] for name in NAMES))
        if style == "pooled":
            return {"pooled_output": found[:, 0]}
        return {"sequence_output": found, "pooled_output": found[:, 0]}

    def as_list(inputs):
        found = states(*inputs)
        return [found[:, 0], found]

    def of_text(text):
        return tf.strings.length(text)

    function, signature = {
        "2020": (as_list, SPECS),
        "text": (of_text, tf.TensorSpec([None], tf.string)),
    }.get(style, (as_dict, dict(zip(NAMES, SPECS))))
    root.__call__ = tf.function(function, input_signature=[signature])
    directory.mkdir(parents=True)
    if vocab:
        file = directory / "vocab.txt"
        file.write_bytes(tiny_artifact.TOKENIZER.content)
        root.vocab_file = tf.saved_model.Asset(str(file))
    root.do_lower_case = tf.Variable(True, trainable=False)
    tf.saved_model.save(root, str(directory))
    return directory


@pytest.fixture(scope="module")
def module(tmp_path_factory) -> Path:
    return write_module(tmp_path_factory.mktemp("ours") / "module")


def archive(module: Path, path: Path) -> Path:
    with tarfile.open(path, "w:gz") as file:
        file.add(module, ".")
    return path


def assert_tinys_weights(pretrained: str, workdir: Path) -> None:
    files = weights.pretrained_files(pretrained)
    assert files.bert_config is not None
    config = BertConfig.from_json(files.bert_config)
    assert config.num_attention_heads == TINY.num_attention_heads
    assert config.hidden_act == "gelu"
    encoder = BertEncoder(config)
    prefix = weights.prepare_checkpoint(pretrained, workdir)
    weights.initialize(prefix, encoder.variables)
    for ours, theirs in zip(encoder.variables, tiny_linker().encoder.variables):
        np.testing.assert_array_equal(ours, theirs, err_msg=ours.name)


def test_a_directory_an_archive_and_a_handle(module, tmp_path, cache):
    packed = archive(module, tmp_path / "module.tar.gz")
    # As tensorflow_hub keeps what it has once fetched.
    address = "https://example.org/a_bert/1"
    shutil.copytree(module, cache / hashlib.sha1(address.encode()).hexdigest())
    for pretrained in (str(module), f"hub:{module}", str(packed), f"hub:{packed}"):
        assert_tinys_weights(pretrained, tmp_path)
    assert_tinys_weights(f"hub:{address}", tmp_path)


def test_modules_of_2020(tmp_path):
    assert_tinys_weights(str(write_module(tmp_path / "module", "2020")), tmp_path)


def test_it_is_converted_once(module, cache):
    first = hub.convert(str(module))
    (first / "bert_config.json").write_text("{}")
    assert hub.convert(str(module)) == first
    assert (first / "bert_config.json").read_text() == "{}"
    assert [path.name for path in cache.iterdir()] == [first.name]


def test_config_that_contradicts(module, tmp_path):
    model = ModelConfig(pretrained=str(module))
    config = BertConfig.from_json(weights.bert_config_path(model))
    weights.check_module(model, config, True)
    for change, message in (
        ({"num_attention_heads": 2}, "num_attention_heads is 2, but .* with 4"),
        ({"hidden_act": "gelu_new"}, "hidden_act is gelu_new, but .* with gelu"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05, but .* with 1e-12"),
    ):
        with pytest.raises(UserError, match=f"^model.bert_config: {message}"):
            weights.check_module(model, dataclasses.replace(config, **change), True)
    # A vocabulary of one's own may be for other text.
    own = ModelConfig(pretrained=str(module), vocab=str(tmp_path / "vocab.txt"))
    weights.check_module(own, config, False)


def test_without_vocabulary(tmp_path):
    pretrained = str(write_module(tmp_path / "module", vocab=False))
    assert weights.pretrained_files(pretrained).vocab is None
    with pytest.raises(UserError, match=r"model.vocab is not set, and there is no vo"):
        weights.vocab_path(ModelConfig(pretrained=pretrained))


def one_line(handle: str, cache: Path) -> str:
    with pytest.raises(UserError) as caught:
        weights.pretrained_files(handle)
    assert not list(cache.glob("bert_export-*"))
    message = str(caught.value)
    assert "\n" not in message
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize("style", ["text", "pooled"])
def test_no_encoder(tmp_path, cache, style):
    directory = write_module(tmp_path / "module", style)
    message = one_line(str(directory), cache)
    assert message.startswith(f"{directory}: no BERT encoder of TensorFlow Hub; found")
    assert "embeddings/layer_norm/beta" in message


def test_something_else(tmp_path, cache):
    root = tf.train.Checkpoint(weight=tf.Variable([1.0], name="weight"))
    root.variables = [root.weight]
    tf.saved_model.save(root, str(tmp_path / "other"))
    message = one_line(str(tmp_path / "other"), cache)
    assert "no BERT encoder of TensorFlow Hub; found the variables weight" in message


def test_damaged(module, tmp_path, cache):
    broken = Path(shutil.copytree(module, tmp_path / "broken"))
    (data,) = broken.glob("variables/*.data-*")
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    assert "it may be damaged or incomplete" in one_line(str(broken), cache)

    broken = Path(shutil.copytree(module, tmp_path / "cut"))
    graph = broken / "saved_model.pb"
    graph.write_bytes(graph.read_bytes()[:1000])
    assert "it may be damaged or incomplete" in one_line(str(broken), cache)

    packed = archive(module, tmp_path / "module.tar.gz")
    content = packed.read_bytes()
    for cut in (content[: len(content) // 2], b"no archive"):
        packed.write_bytes(cut)
        message = one_line(str(packed), cache)
        assert message.startswith(f"{packed}: cannot unpack the archive")
    (tmp_path / "a.txt").write_text("x")
    with tarfile.open(packed, "w:gz") as file:
        file.add(tmp_path / "a.txt", "a.txt")
    assert "no saved_model.pb in the archive" in one_line(str(packed), cache)


@pytest.mark.parametrize(
    ("handle", "why"),
    [
        ("hub:google/bert", "cannot get this module: google/bert does not exist"),
        # A domain that never has an address (RFC 2606).
        ("hub:https://bert.invalid/1", "cannot get this module: "),
        ("hub:{empty}", "there is no saved_model.pb in "),
    ],
)
def test_out_of_reach(tmp_path, cache, handle, why):
    handle = handle.format(empty=tmp_path)
    message = one_line(handle, cache)
    assert why in message

"""The huggingface format: in transformers, in sentence-transformers, and read again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from bert_export.config import FeaturesConfig, Target
from bert_export.errors import StageError, UserError
from bert_export.export import huggingface
from bert_export.export.linker_graph import TrainedLinker
from bert_export.features.tokenizer import Tokenizer, WordPiece, load_vocab
from bert_export.modeling import weights
from bert_export.modeling.bert_config import BertConfig
from bert_export.modeling.encoder import BertEncoder
from bert_export.training.model_fn import compute_logits, to_predictions
from bert_export.verification import proof
from tests import (
    environments,
    sentencepiece_models,
    tiny_artifact,
    torch_environment,
)
from tests.export.trained_variants import VARIANTS, requests, trained
from tests.modeling.linkers import tiny_linker
from tests.verification import tiny_formats

TOLERANCE = 1e-5
SCRIPT = Path(__file__).with_name("load_in_transformers.py")


def write(variant: str, directory: Path, **options) -> tuple[TrainedLinker, Path]:
    model = trained(variant, directory / "trained", **options)
    written = directory / "a directory"
    written.mkdir()
    huggingface.write(model, written, "float32", [])
    return model, written


@pytest.mark.parametrize("variant", VARIANTS)
def test_read_in_again(tmp_path, variant):
    model, directory = write(variant, tmp_path)
    features = {name: tf.constant(v) for name, v in requests(model).items()}
    linker = tiny_linker(2, model.bert)
    expected = to_predictions(compute_logits(linker, model.spec, features))
    found = huggingface.reload(directory, model.spec)(**features)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=TOLERANCE, rtol=TOLERANCE)
    assert np.std(found["score"]) > 0.1

    # As pretrained weights, with nothing left over or missing.
    files = weights.pretrained_files(str(directory))
    assert files.bert_config is not None
    assert files.vocab is not None
    bert = BertConfig.from_json(files.bert_config)
    weights.check_pretrained(str(directory), bert, files.bert_config)
    encoder = BertEncoder(bert)
    prefix = weights.prepare_checkpoint(str(directory), tmp_path)
    report = weights.initialize(prefix, encoder.variables)
    assert (report.new, report.unused) == ((), ())
    for ours, theirs in zip(encoder.variables, linker.encoder.variables):
        np.testing.assert_array_equal(ours, theirs, err_msg=ours.name)
    assert bert.approximate_gelu == model.bert.approximate_gelu


def test_names_are_those_of_transformers(tmp_path):
    _, directory = write("bert", tmp_path)
    names = safetensors.numpy.load_file(directory / "model.safetensors")
    assert "encoder.layer.1.attention.self.query.weight" in names
    assert len(names) == 5 + 2 * 16
    head = safetensors.numpy.load_file(directory / "linker_head.safetensors")
    shapes = {name: value.shape for name, value in head.items()}
    assert shapes == {"weight": (2, 48), "bias": (2,)}


def test_vocabulary(tmp_path):
    features = FeaturesConfig(max_seq_length=20, lower_case=False)
    _, directory = write("bert", tmp_path, features=features)
    for name in ("vocab.txt", "tokenizer.json"):
        assert load_vocab(directory / name) == tiny_artifact.VOCAB
    config = json.loads((directory / "tokenizer_config.json").read_text())
    assert config["do_lower_case"] is False
    # The vocabulary has none.
    assert config["mask_token"] is None


def test_a_pair_classifier_has_a_head_without_spans(tmp_path):
    features = FeaturesConfig(max_seq_length=20, span_fields=())
    _, directory = write("bert", tmp_path, features=features)
    head = safetensors.numpy.load_file(directory / "linker_head.safetensors")
    assert head["weight"].shape == (2, 16)
    card = (directory / "README.md").read_text()
    assert "start_ps" not in card
    assert "torch.nn.Linear(16, 2)" in card


def test_sentencepiece_goes_without_a_tokenizer_of_transformers(tmp_path):
    """A wrong one is worse than none."""
    tokenizer = sentencepiece_models.tokenizer("unigram")
    features = FeaturesConfig(max_seq_length=20, tokenizer="sentencepiece")
    _, directory = write("bert", tmp_path, features=features, tokenizer=tokenizer)
    assert (directory / "spiece.model").read_bytes() == tokenizer.content
    assert not list(directory.glob("*token*"))
    assert not (directory / "modules.json").exists()
    card = (directory / "README.md").read_text()
    assert "AutoTokenizer" not in card
    assert "sentencepiece library" in card


def test_refuses_other_precisions(tmp_path):
    with pytest.raises(StageError, match="no precision float16"):
        huggingface.write(tiny_formats.model(), tmp_path, "float16", [])
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("huggingface")
    huggingface.write(tiny_formats.model(), directory, "float32", [])
    return tiny_formats.describe(directory, Target("huggingface", "float32"))


def test_proof(artifact):
    held_out = tiny_formats.held_out().path
    result = proof.prove(artifact, held_out, 0.5, benchmark=False)
    assert result["figures"]["max_difference"] <= TOLERANCE
    assert {"replay", "held_out", "decisions"} <= {c["name"] for c in result["checks"]}


def test_proof_finds_swapped_weights(artifact, tmp_path):
    spoilt = Path(shutil.copytree(artifact, tmp_path / "spoilt"))
    path = spoilt / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    layer = "encoder.layer.0.attention.self"
    key, value = f"{layer}.key.weight", f"{layer}.value.weight"
    tensors[key], tensors[value] = tensors[value], tensors[key]
    safetensors.numpy.save_file(tensors, path)
    tiny_formats.rehash(spoilt)
    with pytest.raises(StageError, match="replay: 32 requests: "):
        proof.check(spoilt)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.safetensors", "the file may be incomplete"),
        ("linker_head.safetensors", "cannot read the head"),
    ],
)
def test_damaged(artifact, tmp_path, name, message):
    spoilt = Path(shutil.copytree(artifact, tmp_path / "spoilt"))
    content = (spoilt / name).read_bytes()
    (spoilt / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=message):
        huggingface.reload(spoilt, tiny_formats.model().spec)


# --- in the libraries that it is for ------------------------------------------------

TEXTS = [
    "the w1 of W2, and w3w4",
    "W1 é [SEP] w5's [MASK]",
    "北京 w6 w7  w8\tw9",
    "w10",
    "",
]
WORDS = ["the", "of", "and", ",", "'", "s", "e", "[", "]", "sep", "mask", "北", "京"]


def word_pieces(lower_case: bool) -> tuple[FeaturesConfig, Tokenizer]:
    features = FeaturesConfig(max_seq_length=20, lower_case=lower_case)
    vocab = [*tiny_artifact.VOCAB[:40], *WORDS, *(f"##w{n}" for n in range(11))]
    return features, WordPiece(vocab, features)


@pytest.fixture(scope="module")
def in_transformers(tmp_path_factory) -> Path:
    """Every variant, and what transformers makes of it."""
    python = torch_environment.interpreter()
    root = tmp_path_factory.mktemp("with a blank")
    for number, variant in enumerate(VARIANTS):
        features, tokenizer = word_pieces(lower_case=number % 2 == 0)
        directory = root / variant
        directory.mkdir()
        options = {"features": features, "tokenizer": tokenizer}
        model, _ = write(variant, directory, **options)
        np.savez(directory / "requests.npz", **requests(model))
        linker = tiny_linker(2, model.bert)
        tensors = {name: tf.constant(v) for name, v in requests(model).items()}
        logits = compute_logits(linker, model.spec, tensors)
        np.savez(directory / "expected.npz", **to_predictions(logits))
        (directory / "texts.json").write_text(json.dumps(TEXTS))
        ids = tokenizer.tokenize(tf.constant(TEXTS)).to_list()
        (directory / "ids.json").write_text(json.dumps(ids))
    process = environments.run(python, "-I", SCRIPT, root)
    assert process.returncode == 0, process.stderr[-3000:]
    return root


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_transformers_computes_the_same(in_transformers, variant):
    directory = in_transformers / variant
    expected = np.load(directory / "expected.npz")
    found = np.load(directory / "answers.npz")
    np.testing.assert_allclose(
        found["score"], expected["score"], atol=TOLERANCE, rtol=TOLERANCE
    )
    states = found["states"]
    mask = np.load(directory / "requests.npz")["input_mask"] != 0
    encoder = tiny_linker(2, VARIANTS[variant]).encoder
    features = np.load(directory / "requests.npz")
    ids = features["input_ids"]
    reads = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    ours = encoder(ids, features["input_mask"], features["segment_ids"], reads)
    np.testing.assert_allclose(states[mask], ours.numpy()[mask], atol=TOLERANCE)
    # A pooler is all that transformers may miss, and nothing is left over.
    loaded = json.loads((directory / "loaded.json").read_text())
    assert loaded["unexpected"] == []
    assert all("pooler" in name for name in loaded["missing"])
    assert loaded["class"] == huggingface._CLASSES[VARIANTS[variant].model_type]


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_transformers_tokenizes_the_same(in_transformers, variant):
    directory = in_transformers / variant
    expected = json.loads((directory / "ids.json").read_text())
    tokenized = json.loads((directory / "tokenized.json").read_text())
    assert tokenized["ids"] == expected
    assert len({piece for row in expected for piece in row}) > 15
    cls, sep = 2, 3
    pair = [cls, *expected[0], sep, *expected[2], sep]
    assert tokenized["pair"]["input_ids"] == pair
    first = len(expected[0]) + 2
    segments = [0] * first + [1] * (len(pair) - first)
    assert tokenized["pair"]["token_type_ids"] == segments


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_sentence_transformers_embeds(in_transformers, variant):
    found = np.load(in_transformers / variant / "embeddings.npz")
    np.testing.assert_allclose(found["embeddings"], found["cls"], atol=TOLERANCE)
    assert found["embeddings"].shape == (len(TEXTS), 16)
    assert found["max_seq_length"] == 20

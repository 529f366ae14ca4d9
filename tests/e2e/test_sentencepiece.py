"""The sample corpus with a SentencePiece vocabulary, through every stage."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import tensorflow as tf

from bert_export import config_file, pipeline
from bert_export.config import Config, FeaturesConfig, ModelConfig, resolve
from bert_export.corpus import jsonl
from bert_export.corpus.corpus import entity_text, load_corpus
from bert_export.corpus.records import BadRecords
from bert_export.errors import UserError
from bert_export.features.tokenizer import Tokenizer, load_tokenizer
from bert_export.files import sha256_file
from bert_export.linking import ArtifactLinker
from bert_export.modeling import weights
from tests import sentencepiece_models
from tests.command_line import ROOT


@dataclasses.dataclass(frozen=True)
class Ran:
    """What `run` left behind. Not to be changed."""

    config: Config
    workdir: Path
    artifacts: dict[str, Path]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    directory = tmp_path_factory.mktemp("with a blank")
    model = directory / "some.model"
    model.write_bytes(sentencepiece_models.model())
    bert = json.loads((ROOT / "data" / "bert_config.json").read_text())
    for name, spare in (("bert_config.json", 0), ("too_small.json", -1)):
        bert["vocab_size"] = sentencepiece_models.tokenizer().size + spare
        (directory / name).write_text(json.dumps(bert))
    values = config_file.get_config(str(ROOT / "configs" / "sample.py"))
    values.features.tokenizer = "sentencepiece"
    values.model.vocab = str(model)
    values.model.bert_config = str(directory / "bert_config.json")
    values.train.max_steps = 5
    values.export.formats = ("saved_model", "serving_model", "onnx")
    values.export.proof_mentions = 10
    return resolve(values)


@pytest.fixture(scope="module")
def ran(config, tmp_path_factory) -> Ran:
    workdir = tmp_path_factory.mktemp("run") / "work"
    return Ran(config, workdir, pipeline.run(config, workdir))


@pytest.mark.slow
def test_every_artifact_has_the_model_and_is_proven(ran):
    model = sentencepiece_models.model()
    for name in ("saved_model", "serving_model", "onnx"):
        artifact = ran.artifacts[name]
        assert (artifact / "assets.extra" / "spiece.model").read_bytes() == model
        assert not list(artifact.rglob("vocab.txt"))
        manifest = json.loads((artifact / "manifest.json").read_text())
        assert manifest["tokenizer"] == {
            "type": "sentencepiece",
            "file": "assets.extra/spiece.model",
        }
        assert "assets.extra/spiece.model" in manifest["files"]
        proof = json.loads((artifact / "proof.json").read_text())
        assert proof["passed"] is True
    serving = ran.artifacts["serving_model"]
    assert (serving / "assets" / "spiece.model").read_bytes() == model
    smoke_test = json.loads((serving / "smoke_test.json").read_text())
    results = {check["name"]: check["result"] for check in smoke_test["checks"]}
    assert set(results.values()) == {"passed"}
    assert {"vocabulary", "replay:text:session", "link:function"} <= set(results)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["saved_model", "serving_model"])
def test_link(ran, name):
    """By tensors made here; the serving_model's graph makes the same of the text."""
    linker = ArtifactLinker(ran.artifacts[name])
    mention = jsonl.parse_marked_text("A year on [[Mercury]] is short.")
    (linked,) = linker.link([mention])
    assert len(linked.candidates) == 4
    if name == "serving_model":
        texts = [entity_text(candidate.entity) for candidate in linked.candidates]
        answer = tf.saved_model.load(str(ran.artifacts[name])).signatures["link"](
            text=tf.constant(mention.text),
            mention_start=tf.constant(mention.start, tf.int64),
            mention_end=tf.constant(mention.end, tf.int64),
            candidates=tf.constant(texts),
        )
        scores = [candidate.score for candidate in linked.candidates]
        assert answer["score"].numpy().tolist() == pytest.approx(scores, abs=1e-5)


def test_records_are_made_anew_for_another_tokenizer(config, tmp_path):
    corpus = load_corpus(config.corpus, tmp_path, BadRecords())

    def fingerprint(tokenizer: Tokenizer, /, **changed: str) -> str:
        features = dataclasses.replace(config.features, **changed)
        changed_config = dataclasses.replace(config, features=features)
        return pipeline._data_fingerprint(changed_config, corpus, tokenizer)

    sentencepiece = load_tokenizer(config.model.vocab, config.features)
    wordpiece = load_tokenizer(ROOT / "data" / "vocab.txt", FeaturesConfig())
    different = {
        fingerprint(sentencepiece),
        fingerprint(sentencepiece, cls_token="<s>"),
        fingerprint(sentencepiece_models.tokenizer("bpe")),
        fingerprint(wordpiece, tokenizer="wordpiece"),
    }
    assert len(different) == 4
    # What was hashed before there was a choice: such records stay valid.
    features = dataclasses.asdict(config.features)
    for key in ("tokenizer", "cls_token", "sep_token", "pad_token", "unk_token"):
        del features[key]
    parts = {
        "format": 1,
        "files": {role: sha256_file(file) for role, file in corpus.files.items()},
        "fractions": [config.corpus.dev_fraction, config.corpus.test_fraction],
        "max_candidates": config.corpus.max_candidates,
        "features": features,
        "vocab": wordpiece.vocab,
    }
    before = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    assert fingerprint(wordpiece, tokenizer="wordpiece") == before


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        (
            "features",
            {"tokenizer": "wordpiece"},
            r"some.model: a SentencePiece model; .* features.tokenizer to 'sentencepi",
        ),
        (
            "model",
            {"vocab": str(ROOT / "data" / "vocab.txt")},
            r"vocab.txt: not a SentencePiece model, .*tokenizer to 'wordpiece'",
        ),
        (
            "features",
            {"sep_token": "</s"},
            r"features.sep_token: the model has no control or user-defined .* '</s'",
        ),
        (
            "model",
            {"bert_config": "{}/too_small.json"},
            r"some.model: 1165 word pieces, but the BERT config's vocab_size is 1164",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(config, tmp_path, section, change, message):
    directory = Path(config.model.vocab).parent
    change = {key: value.format(directory) for key, value in change.items()}
    part = dataclasses.replace(getattr(config, section), **change)
    with pytest.raises(UserError, match=message) as error:
        pipeline.prepare(dataclasses.replace(config, **{section: part}), tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "records").exists()


def test_vocabularies_beside_the_weights(tmp_path):
    (tmp_path / "bert_model.ckpt.index").write_bytes(b"")
    (tmp_path / "vocab.txt").write_text("")
    model = ModelConfig(pretrained=str(tmp_path))
    with pytest.raises(
        UserError, match=r"there is no spiece\.model or sentencepiece\."
    ):
        weights.vocab_path(model, "sentencepiece")
    for name in ("tokenizer.model", "sentencepiece.bpe.model", "spiece.model"):
        (tmp_path / name).write_bytes(b"")
        assert weights.vocab_path(model, "sentencepiece") == tmp_path / name
    assert weights.vocab_path(model) == tmp_path / "vocab.txt"

"""The smoke test on a serving_model with a SentencePiece vocabulary."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bert_export.config import FeaturesConfig
from bert_export.release import manifest
from bert_export.verification import run
from tests import sentencepiece_models, tiny_text
from tests.verification.test_smoke_test_texts import rehash, text_failures

# Together about a minute.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["unigram", "identity"])
def good(request, tmp_path_factory) -> Path:
    """Lower-cased, and with pieces for nothing but white space."""
    directory = tmp_path_factory.mktemp(request.param)
    features = FeaturesConfig(
        tokenizer="sentencepiece",
        max_seq_length=20,
        lower_case=request.param == "unigram",
        mention_marker="" if request.param == "unigram" else "</s>",
    )
    tokenizer = sentencepiece_models.tokenizer(request.param, features.lower_case)
    model = tiny_text.linker(directory, features, tokenizer)
    return tiny_text.export(model, directory / "artifact")


def test_a_good_artifact_passes_in_a_process_of_its_own(good):
    result = run.run_smoke_test(good)
    assert {check["result"] for check in result["checks"]} == {"passed"}
    (vocabulary,) = (c for c in result["checks"] if c["name"] == "vocabulary")
    assert vocabulary["detail"].endswith(" word pieces")


def test_altered_vocabularies(good, tmp_path):
    artifact = Path(shutil.copytree(good, tmp_path / "artifact"))
    path = artifact / "assets" / "spiece.model"
    path.write_bytes(sentencepiece_models.model("bpe"))
    rehash(artifact)
    found = text_failures(artifact)
    assert found["vocabulary"] == (
        "assets/spiece.model differs from assets.extra/spiece.model"
    )
    shutil.copy(path, artifact / "assets.extra" / "spiece.model")
    rehash(artifact)
    found = text_failures(artifact)
    assert "was recorded as the word pieces" in found["vocabulary"]
    path.write_bytes(b"not a model")
    shutil.copy(path, artifact / "assets.extra" / "spiece.model")
    rehash(artifact)
    assert "vocabulary" in text_failures(artifact)


def test_altered_case(good, tmp_path):
    """Candidates were tokenized in lower case, the manifest says otherwise."""
    artifact = Path(shutil.copytree(good, tmp_path / "artifact"))
    content = manifest.read(artifact)
    features = content["config"]["features"]
    features["lower_case"] = not features["lower_case"]
    manifest.write(artifact, content)
    assert "vocabulary" in text_failures(artifact)

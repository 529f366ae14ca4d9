"""Defects planted in a serving_model, each found by the check that is meant to."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from bert_export.export import serving_model
from bert_export.features.tokenizer import WordPiece
from bert_export.release import manifest
from bert_export.verification import run, smoke_test
from tests import tiny_text


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A copy of the good artifact, to be spoilt."""
    return Path(shutil.copytree(tiny_text.artifact(), tmp_path / "artifact"))


def failures(artifact: Path) -> dict[str, str]:
    checks = smoke_test.check_artifact(artifact)
    return {c["name"]: c["detail"] for c in checks if c["result"] == "failed"}


def text_failures(artifact: Path) -> dict[str, str]:
    """Those of the checks on text, and of what they need."""
    found = smoke_test.Artifact(artifact)
    checks: list[dict[str, str]] = []
    smoke_test.run_check(checks, "manifest", smoke_test.check_manifest, found)
    smoke_test.run_check(checks, "graph", smoke_test.check_graph, found)
    smoke_test.run_check(checks, "load", smoke_test.check_load, found)
    smoke_test.check_texts(found, checks)
    smoke_test.run_check(checks, "warmup", smoke_test.check_warmup, found)
    return {c["name"]: c["detail"] for c in checks if c["result"] == "failed"}


def rehash(artifact: Path) -> None:
    """Makes the manifest agree with the files, so that their sums tell nothing."""
    content = manifest.read(artifact)
    content["files"] = manifest.list_files(artifact)
    manifest.write(artifact, content)


def edit_texts(artifact: Path, edit: Callable[[list[dict[str, Any]]], None]) -> None:
    path = artifact / smoke_test.GOLDEN_TEXTS
    golden = json.loads(path.read_text())
    edit(golden["requests"])
    path.write_text(json.dumps(golden))
    rehash(artifact)


def rewrite(artifact: Path, model: Any) -> None:
    """Puts another export of the model's own files into the artifact."""
    shutil.rmtree(artifact / "variables")
    shutil.rmtree(artifact / "assets")
    serving_model.write(model, artifact, "float32", [])
    rehash(artifact)


def test_a_good_artifact_passes_in_a_process_of_its_own(artifact, capsys):
    result = run.run_smoke_test(artifact)
    assert {check["result"] for check in result["checks"]} == {"passed"}
    names = {check["name"] for check in result["checks"]}
    assert {
        "vocabulary",
        "signature:text",
        "signature:link",
        "replay:text:session",
        "replay:text:function",
        "batch_sizes:text",
        "link:session",
        "link:function",
        "malformed:text",
        "malformed:link",
        "isolation",
    } <= names
    assert "tensorflow_text" in result["versions"]


@pytest.mark.parametrize("signature", ["text", "link"])
def test_missing_signature(artifact, signature):
    path = artifact / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    del saved.meta_graphs[0].signature_def[signature]
    path.write_bytes(saved.SerializeToString())
    rehash(artifact)
    found = failures(artifact)
    assert f"signature {signature!r} is missing" in found["signatures"]
    assert found[f"signature:{signature}"] == "missing"
    assert not any("tensors" in name for name in found)


def test_altered_vocabulary(artifact):
    """Two word pieces swapped: ids move."""
    path = artifact / "assets/vocab.txt"
    pieces = path.read_text().split("\n")
    first, second = pieces.index("place"), pieces.index("river")
    pieces[first], pieces[second] = pieces[second], pieces[first]
    path.write_text("\n".join(pieces))
    rehash(artifact)
    found = text_failures(artifact)
    assert set(found) == {"vocabulary"}
    assert "differs from assets.extra/vocab.txt" in found["vocabulary"]
    # Both copies alike.
    shutil.copy(path, artifact / "assets.extra/vocab.txt")
    rehash(artifact)
    found = text_failures(artifact)
    assert set(found) == {"vocabulary"}
    assert "the candidate of golden text 0" in found["vocabulary"]


def test_graph_with_another_vocabulary(artifact):
    """The tokenizer in the graph is what is wrong."""
    pieces = list(tiny_text.VOCAB)
    first, second = pieces.index("bank"), pieces.index("river")
    pieces[first], pieces[second] = pieces[second], pieces[first]
    rewrite(
        artifact, dataclasses.replace(tiny_text.shared(), tokenizer=WordPiece(pieces))
    )
    found = text_failures(artifact)
    for loader in ("session", "function"):
        assert "differs by" in found[f"replay:text:{loader}"]
    assert "vocabulary" in found


def test_graph_that_cuts_elsewhere(artifact):
    """Markers that training did not have: the text is no longer what was prepared."""
    features = dataclasses.replace(tiny_text.FEATURES, mention_marker='"')
    rewrite(artifact, dataclasses.replace(tiny_text.shared(), features=features))
    found = text_failures(artifact)
    assert "differs by" in found["replay:text:session"]
    assert "vocabulary" not in found


def test_altered_golden_text(artifact):
    def move(requests):
        requests[0]["mention_start"] -= 4

    edit_texts(artifact, move)
    found = text_failures(artifact)
    assert "9 texts" in found["replay:text:session"]
    assert "row 0" in found["replay:text:function"]


def test_altered_golden_score(artifact):
    def tamper(requests):
        requests[2]["score"] += 1e-3

    edit_texts(artifact, tamper)
    assert "row 2" in text_failures(artifact)["replay:text:session"]


def test_no_golden_text(artifact):
    edit_texts(artifact, list.clear)
    assert text_failures(artifact)["golden_texts"] == "no golden request in text"
    (artifact / smoke_test.GOLDEN_TEXTS).unlink()
    rehash(artifact)
    assert "golden_texts.json" in text_failures(artifact)["golden_texts"]


def test_unchecked_mentions(artifact, monkeypatch):
    monkeypatch.setattr(serving_model.ServingModel, "_mention_checks", lambda *args: [])
    rewrite(artifact, tiny_text.shared())
    found = text_failures(artifact)
    assert set(found) == {"malformed:text", "malformed:link"}
    assert "mention that ends behind the text: answered" in found["malformed:text"]
    assert "mention of white space: answered" in found["malformed:link"]


def test_link_that_ignores_nil(artifact, monkeypatch):
    link = serving_model.ServingModel.link

    def without_nil(self, text, mention_start, mention_end, candidates):
        outputs = link(self, text, mention_start, mention_end, candidates)
        return {**outputs, "nil_probability": tf.constant(0.0)}

    monkeypatch.setattr(serving_model.ServingModel, "link", without_nil)
    rewrite(artifact, tiny_text.shared())
    found = text_failures(artifact)
    assert set(found) == {"link:session", "link:function"}
    assert "0 candidates: nil_probability differs by 1" in found["link:session"]


def test_warmup_without_text(artifact):
    path = str(artifact / smoke_test.WARMUP)
    logs = [log.numpy() for log in tf.data.TFRecordDataset(path)]
    assert len(logs) == 3
    with tf.io.TFRecordWriter(path) as writer:
        for log in logs[:2]:
            writer.write(log)
    rehash(artifact)
    assert set(text_failures(artifact)) == {"warmup"}


def test_half_precision(tmp_path):
    """Held to the manifest's tolerance, and to its own answers."""
    artifact = tiny_text.export(tiny_text.shared(), tmp_path / "a", "float16")
    assert not failures(artifact)
    content = manifest.read(artifact)
    content["tolerance"] = {"probabilities": 1e-5}
    manifest.write(artifact, content)
    found = text_failures(artifact)
    assert "(allowed: 1e-05)" in found["replay:text:session"]

"""What the demo server refuses to serve, and what it says then."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest

from bert_export import demo_server
from bert_export.errors import UserError
from tests.page import tiny_page


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_page.artifact(), tmp_path / "artifact"))


def assert_refused(artifact: Path, message: str) -> None:
    with pytest.raises(UserError, match=message):
        demo_server.serve(artifact, 0)


def test_no_directory(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nothing", "there is no directory .*nothing")


def test_no_model(tmp_path: Path) -> None:
    assert_refused(tmp_path, r"has no model\.json; expected a version directory")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weightsManifest": [3]}', "\ufeff{"]
)
def test_a_model_that_is_none(artifact: Path, text: str) -> None:
    (artifact / "model.json").write_text(text)
    assert_refused(artifact, r"model\.json describes no TensorFlow\.js model")


def test_a_model_that_names_a_missing_file(artifact: Path) -> None:
    path = artifact / "model.json"
    model = json.loads(path.read_text())
    model["weightsManifest"][0]["paths"].append("group1-shard9of9.bin")
    path.write_text(json.dumps(model))
    assert_refused(artifact, r"names group1-shard9of9\.bin, which does not exist")


def test_a_truncated_shard_with_and_without_a_manifest(artifact: Path) -> None:
    shard = next(artifact.glob("*.bin"))
    whole = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-1])
    assert_refused(artifact, f"have {whole - 1} bytes, expected {whole}; one of")
    manifest = {"files": {shard.name: {"bytes": whole}}}
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    assert_refused(artifact, rf"{shard.name} has {whole - 1} bytes, expected {whole};")


@pytest.mark.parametrize("name", ["assets.extra/vocab.txt", "page/index.html"])
def test_other_missing_files(artifact: Path, name: str) -> None:
    (artifact / name).unlink()
    assert_refused(artifact, name)


def test_a_tokenizer_that_the_page_lacks(artifact: Path) -> None:
    path = artifact / "model.json"
    model = json.loads(path.read_text())
    features = model["userDefinedMetadata"]["bert_export"]["features"]
    assert features["tokenizer"] == "wordpiece"
    features["tokenizer"] = "sentencepiece"
    path.write_text(json.dumps(model))
    assert_refused(artifact, "no linking page, as the page cannot tokenize with sente")
    # Of before there was a choice.
    del features["tokenizer"]
    path.write_text(json.dumps(model))
    demo_server.check(artifact)


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1 is taken"):
            demo_server.serve(tiny_page.artifact(), port)


def test_a_port_that_is_none() -> None:
    with pytest.raises(UserError, match="expected 0 to 65535"):
        demo_server.serve(tiny_page.artifact(), 70000)

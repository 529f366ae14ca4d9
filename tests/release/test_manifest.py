"""The manifest: contract, files, and reading it back."""

from __future__ import annotations

import hashlib
import json

import pytest

from bert_export.config import PRECISIONS, Target
from bert_export.errors import UserError
from bert_export.features.spec import FeatureSpec
from bert_export.release import manifest
from tests import tiny_artifact

OUTPUTS = {
    "probabilities": {"dtype": "float32", "shape": [-1, 2]},
    "score": {"dtype": "float32", "shape": [-1]},
}


def test_contract_is_the_specs():
    contract = manifest.signature_contract(
        FeatureSpec(max_seq_length=64, input_ids="ids", span_fields=("a", "b"))
    )
    sequence = {"dtype": "int64", "shape": [-1, -1]}
    scalar = {"dtype": "int64", "shape": [-1]}
    method_name = "tensorflow/serving/predict"
    assert contract == {
        "serving_default": {
            "inputs": {"examples": {"dtype": "string", "shape": [-1]}},
            "outputs": OUTPUTS,
            "method_name": method_name,
        },
        "tensors": {
            "inputs": {
                "ids": sequence,
                "input_mask": sequence,
                "segment_ids": sequence,
                "a": scalar,
                "b": scalar,
            },
            "outputs": OUTPUTS,
            "method_name": method_name,
        },
    }


def test_contract_without_spans():
    contract = manifest.signature_contract(
        FeatureSpec(max_seq_length=64, span_fields=())
    )
    assert list(contract["tensors"]["inputs"]) == [
        "input_ids",
        "input_mask",
        "segment_ids",
    ]


def test_contract_of_the_other_runtimes():
    spec = FeatureSpec(max_seq_length=64)
    contract = manifest.signature_contract(spec)["tensors"]
    for format_name in ("frozen_graph", "onnx", "openvino"):
        assert manifest.signature_contract(spec, format_name) == {
            "tensors": {
                "inputs": contract["inputs"],
                "outputs": contract["outputs"],
            }
        }


def test_contract_of_the_serving_model():
    contract = manifest.signature_contract(
        FeatureSpec(max_seq_length=64), "serving_model"
    )
    plain = manifest.signature_contract(FeatureSpec(max_seq_length=64))
    assert list(contract) == ["serving_default", "tensors", "text", "link"]
    assert {name: contract[name] for name in plain} == plain


def test_every_precision_has_a_tolerance():
    precisions = {name for names in PRECISIONS.values() for name in names}
    assert set(manifest.TOLERANCES) == precisions
    # Only float32 can be held to the score, which grows without bound.
    for precision, tolerance in manifest.TOLERANCES.items():
        assert ("score" in tolerance) == (precision == "float32")


def test_manifest_of_another_format(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"1234")
    trained = tiny_artifact.trained()
    content = manifest.build(
        tmp_path,
        name="tiny",
        spec=trained.spec,
        checkpoint_path=trained.checkpoint,
        config={},
        metrics={},
        data_fingerprint="0" * 64,
        target=Target("onnx", "int8_dynamic"),
        notes=["3 matrices kept in float32"],
    )
    assert (content["format"], content["precision"]) == ("onnx", "int8_dynamic")
    assert list(content["contract"]) == ["tensors"]
    assert content["tolerance"] == manifest.TOLERANCES["int8_dynamic"]
    assert content["notes"] == ["3 matrices kept in float32"]
    assert list(content["files"]) == ["model.onnx"]


def test_manifest_of_an_artifact():
    content = manifest.read(tiny_artifact.artifact())
    assert list(content) == [
        "format_version",
        "name",
        "created",
        "format",
        "precision",
        "contract",
        "tolerance",
        "max_seq_length",
        "features",
        "tokenizer",
        "encoder",
        "config",
        "metrics",
        "data_fingerprint",
        "checkpoint",
        "packages",
        "notes",
        "files",
    ]
    assert (content["format"], content["precision"]) == ("saved_model", "float32")
    assert content["tolerance"] == {"probabilities": 1e-4, "score": 1e-4}
    assert content["notes"] == []
    assert content["checkpoint"] == {"path": "model.ckpt-2", "global_step": 2}
    assert content["max_seq_length"] == 20
    assert content["features"]["span_fields"] == ["start_ps", "end_ps"]
    assert {"python", "tensorflow", "numpy"} <= set(content["packages"])
    paths = {"files": {}, "contract": {}, "tokenizer": {}}
    assert "/" not in json.dumps(content | paths)
    assert content["tokenizer"] == {
        "type": "wordpiece",
        "file": "assets.extra/vocab.txt",
    }


def test_every_file_is_listed_but_the_manifest_and_the_tests_results(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_bytes(b"1234")
    (tmp_path / "a").write_bytes(b"")
    for name in ("manifest.json", "smoke_test.json", "proof.json"):
        (tmp_path / name).write_text("{}")
    files = manifest.list_files(tmp_path)
    assert list(files) == ["a", "sub/b"]
    sha256 = hashlib.sha256(b"1234").hexdigest()
    assert files["sub/b"] == {"sha256": sha256, "bytes": 4}


def test_same_manifest_same_bytes(tmp_path):
    content = manifest.read(tiny_artifact.artifact())
    path = manifest.write(tmp_path, content)
    original = tiny_artifact.artifact() / "manifest.json"
    assert path.read_bytes() == original.read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "expected the directory of an exported version"),
        ("{", "not JSON"),
        ("[1]", "format_version is None, expected 1"),
        ('{"format_version": 2}', "format_version is 2, expected 1"),
    ],
)
def test_unreadable_manifest(tmp_path, text, message):
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        manifest.read(tmp_path)
    assert str(tmp_path / "manifest.json") in str(caught.value)


def test_metrics_must_be_numbers(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        manifest.write(tmp_path, {"metrics": {"loss": float("nan")}})
    assert list(tmp_path.iterdir()) == []

"""The manifest: what an artifact promises, what made it, and the sum of every file."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from bert_export.config import Target
from bert_export.errors import UserError
from bert_export.export import saved_model, serving_model
from bert_export.export.publish import PROOF_FILE, SMOKE_TEST_FILE
from bert_export.features.spec import FeatureSpec
from bert_export.files import sha256_file, write_text
from bert_export.training.model_fn import PROBABILITIES, SCORE

MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 1
# Written after the manifest, hence not in it.
_NOT_LISTED = (MANIFEST_FILE, SMOKE_TEST_FILE, PROOF_FILE)
# By precision, how far an artifact's answers to the golden requests may be from the
# trained model's: the probabilities, absolutely, and the score, absolutely up to 1
# and relatively above. float32 allows for another order of summation in another
# runtime. The others are no measure of quality, which is the link accuracy that the
# proof holds them to: they catch a model that is wired wrongly.
TOLERANCES: dict[str, dict[str, float]] = {
    "float32": {PROBABILITIES: 1e-4, SCORE: 1e-4},
    "float16": {PROBABILITIES: 0.02},
    "bfloat16": {PROBABILITIES: 0.1},
    "int8_dynamic": {PROBABILITIES: 0.35},
    "int8_calibrated": {PROBABILITIES: 0.35},
}
_SAVED_MODEL = Target("saved_model", "float32")
_METHOD = "tensorflow/serving/predict"
_PACKAGES = (
    "ai-edge-litert",
    "bert-export",
    "nncf",
    "numpy",
    "onnx",
    "onnxruntime",
    "openvino",
    "protobuf",
    "tensorflow",
    "tensorflow-estimator",
    "tensorflow-serving-api",
    "tensorflow-text",
    "tf2onnx",
)


def signature_contract(
    spec: FeatureSpec, format_name: str = "saved_model"
) -> dict[str, Any]:
    """What clients may rely on: each signature's inputs and outputs.

    Derived from the features alone. Nothing is read back from an artifact, so that
    an artifact that differs is caught.

    Returns:
      By signature name: `inputs` and `outputs` (by name: `dtype`, and `shape` with
      -1 for a dimension that requests choose), and of SavedModels `method_name`.
      The formats of other runtimes have one signature, `tensors`.
    """
    if format_name == "serving_model":
        return serving_model.contract(spec)
    outputs = {
        PROBABILITIES: {"dtype": "float32", "shape": [-1, 2]},
        SCORE: {"dtype": "float32", "shape": [-1]},
    }
    tensors = {
        name: {
            "dtype": "int64",
            "shape": [-1] if name in spec.span_fields else [-1, -1],
        }
        for name in saved_model.serving_input_names(spec)
    }
    if format_name != "saved_model":
        return {saved_model.TENSORS_SIGNATURE: {"inputs": tensors, "outputs": outputs}}
    examples = {saved_model.EXAMPLES_INPUT: {"dtype": "string", "shape": [-1]}}
    return {
        name: {"inputs": inputs, "outputs": outputs, "method_name": _METHOD}
        for name, inputs in (
            (saved_model.EXAMPLES_SIGNATURE, examples),
            (saved_model.TENSORS_SIGNATURE, tensors),
        )
    }


def list_files(artifact_dir: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file but the manifest and the results of its tests.

    Returns:
      By path relative to the artifact, sorted: `{"sha256": hex, "bytes": int}`.
    """
    root = Path(artifact_dir)
    files = {}
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root).as_posix()
        if path.is_file() and relative not in _NOT_LISTED:
            files[relative] = {
                "sha256": sha256_file(path),
                "bytes": path.stat().st_size,
            }
    return files


def build(
    artifact_dir: str | os.PathLike[str],
    *,
    name: str,
    spec: FeatureSpec,
    checkpoint_path: str,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    data_fingerprint: str,
    target: Target = _SAVED_MODEL,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Describes a complete artifact.

    Args:
      artifact_dir: the artifact, all its files written.
      name: the model's name.
      spec: the features it reads.
      checkpoint_path: the prefix of the checkpoint it was made from.
      config: the resolved config of the run, as JSON values.
      metrics: the checkpoint's evaluation, as JSON values.
      data_fingerprint: identifies the training data.
      target: the artifact's format and precision.
      notes: sentences on what was decided or is lost in this format.

    Returns:
      The manifest as JSON values, in the order in which it is written.
    """
    return {
        "format_version": FORMAT_VERSION,
        "name": name,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(
            timespec="seconds"
        ),
        "format": target.format,
        "precision": target.precision,
        "contract": signature_contract(spec, target.format),
        "tolerance": TOLERANCES[target.precision],
        "max_seq_length": spec.max_seq_length,
        "features": dataclasses.asdict(spec),
        "config": dict(config),
        "metrics": dict(metrics),
        "data_fingerprint": data_fingerprint,
        "checkpoint": {
            "path": os.path.basename(checkpoint_path),
            "global_step": _global_step(checkpoint_path),
        },
        "packages": _packages(),
        "notes": list(notes),
        "files": list_files(artifact_dir),
    }


def write(artifact_dir: str | os.PathLike[str], manifest: Mapping[str, Any]) -> Path:
    """Writes a manifest into its artifact; returns the file."""
    path = Path(artifact_dir) / MANIFEST_FILE
    text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")
    return path


def read(artifact_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads an artifact's manifest.

    Raises:
      UserError: there is none, or it is not one of this format.
    """
    path = Path(artifact_dir) / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; expected the directory of an exported version"
        ) from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    found = manifest.get("format_version") if isinstance(manifest, dict) else None
    if found != FORMAT_VERSION:
        raise UserError(
            f"{path}: format_version is {found!r}, expected {FORMAT_VERSION}; "
            "export the model again with this bert_export"
        )
    return manifest


def _global_step(checkpoint_path: str) -> int | None:
    """The optimizer steps behind a checkpoint, None where it does not count them."""
    reader = tf.train.load_checkpoint(checkpoint_path)
    name = tf.compat.v1.GraphKeys.GLOBAL_STEP
    return int(reader.get_tensor(name)) if reader.has_tensor(name) else None


def _packages() -> dict[str, str]:
    """The versions of Python and of the packages that shape an artifact."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            # TensorFlow also comes under other names, such as tensorflow-cpu.
            continue
    return found

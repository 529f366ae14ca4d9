"""The manifest: what an artifact promises, what made it, and the sum of every file."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_export.config import Target
from bert_export.export import hub, saved_model, serving_model
from bert_export.features.spec import FeatureSpec
from bert_export.files import list_directory, write_text
from bert_export.release.manifest_file import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    NOT_LISTED,
    packages,
)
from bert_export.release.manifest_file import read as read
from bert_export.training.estimator import recorded_step
from bert_export.verification.proof import TOLERANCES

_SAVED_MODEL = Target("saved_model", "float32")


def signature_contract(
    spec: FeatureSpec, format_name: str = "saved_model", hidden_size: int = -1
) -> dict[str, Any]:
    """What clients may rely on: each signature's inputs and outputs.

    Derived from the features alone. Nothing is read back from an artifact, so that
    an artifact that differs is caught.

    Args:
      spec: the features.
      format_name: the artifact's format.
      hidden_size: the encoder's; only a hub module returns its hidden states.

    Returns:
      By signature name: `inputs` and `outputs` (by name: `dtype`, and `shape` with
      -1 for a dimension that requests choose), and of SavedModels `method_name`.
      The formats of other runtimes have one signature, `tensors`.
    """
    if format_name == "serving_model":
        return serving_model.contract(spec)
    if format_name == "hub":
        return hub.contract(spec, hidden_size)
    # JavaScript has no int64.
    integers = "int32" if format_name == "tfjs" else "int64"
    contract = saved_model.contract(spec, integers)
    if format_name == "saved_model":
        return contract
    tensors = contract[saved_model.TENSORS_SIGNATURE]
    del tensors["method_name"]
    return {saved_model.TENSORS_SIGNATURE: tensors}


def list_files(artifact_dir: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file but the manifest and the results of its tests.

    Returns:
      By path relative to the artifact, sorted: `{"sha256": hex, "bytes": int}`.
    """
    return list_directory(artifact_dir, leave_out=NOT_LISTED)


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
    encoder: Mapping[str, Any] | None = None,
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
      encoder: its BERT config, variant included, as JSON values.
      notes: sentences on what was decided or is lost in this format.

    Returns:
      The manifest as JSON values, in the order in which it is written.
    """
    # A config of before there was a choice does not say.
    tokenizer = config.get("features", {}).get("tokenizer", "wordpiece")
    encoder = dict(encoder or {})
    hidden_size = encoder.get("hidden_size", -1)
    return {
        "format_version": FORMAT_VERSION,
        "name": name,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(
            timespec="seconds"
        ),
        "format": target.format,
        "precision": target.precision,
        "contract": signature_contract(spec, target.format, hidden_size),
        "tolerance": TOLERANCES[target.precision],
        "max_seq_length": spec.max_seq_length,
        "features": dataclasses.asdict(spec),
        "tokenizer": {
            "type": tokenizer,
            "file": saved_model.vocab_path(tokenizer),
        },
        "encoder": encoder,
        "config": dict(config),
        "metrics": dict(metrics),
        "data_fingerprint": data_fingerprint,
        "checkpoint": {
            "path": os.path.basename(checkpoint_path),
            "global_step": recorded_step(checkpoint_path),
        },
        "packages": packages(),
        "notes": list(notes),
        "files": list_files(artifact_dir),
    }


def write(artifact_dir: str | os.PathLike[str], manifest: Mapping[str, Any]) -> Path:
    """Writes a manifest into its artifact; returns the file."""
    path = Path(artifact_dir) / MANIFEST_FILE
    text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")
    return path

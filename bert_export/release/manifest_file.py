"""Reads a version's manifest.json; needs no TensorFlow."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from pathlib import Path, PurePosixPath
from typing import Any

from bert_export.errors import UserError
from bert_export.export.publish import PROOF_FILE, SMOKE_TEST_FILE
from bert_export.files import sha256_file

MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 1
# Written after the manifest, hence not in it.
NOT_LISTED = (MANIFEST_FILE, SMOKE_TEST_FILE, PROOF_FILE)
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
    "tensorflow-hub",
    "tensorflow-serving-api",
    "tensorflow-text",
    "tensorflowjs",
)


def read(artifact_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads an artifact's manifest.

    Raises:
      UserError: there is none, or it is not one of this format.
    """
    path = Path(artifact_dir) / MANIFEST_FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; expected the directory of an exported version"
        ) from error
    return parse(content, str(path))


def parse(content: bytes, path: str) -> dict[str, Any]:
    """The manifest in a file's bytes.

    Args:
      content: the bytes.
      path: the file, for messages.

    Raises:
      UserError: it is not a manifest of this format, or lists a file outside of its
        directory.
    """
    try:
        manifest = json.loads(content)
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    found = manifest.get("format_version") if isinstance(manifest, dict) else None
    if found != FORMAT_VERSION:
        raise UserError(
            f"{path}: format_version is {found!r}, expected {FORMAT_VERSION}; "
            "export the model again with this bert_export"
        )
    files = manifest.get("files", {})
    if not isinstance(files, dict) or not all(map(_is_listing, files.values())):
        raise UserError(f"{path}: files: expected sha256 and bytes by path")
    for name in files:
        if not is_inside(name):
            raise UserError(
                f"{path}: files: expected paths inside of the directory, found {name!r}"
            )
    return manifest


def read_verified(artifact_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads an artifact's manifest and holds every file against it.

    To be called before a model is loaded: what was damaged on its way, or half
    copied, is no model.

    Raises:
      UserError: there is no manifest, or a file is missing or has other content.
    """
    manifest = read(artifact_dir)
    for name, listed in manifest.get("files", {}).items():
        path = Path(artifact_dir, name)
        if not path.is_file():
            raise UserError(
                f"{path}: missing, though the manifest lists it; copy or "
                "export the artifact again, whole"
            )
        if sha256_file(path) != listed["sha256"]:
            raise UserError(
                f"{path}: other content than in the manifest; copy or "
                "export the artifact again"
            )
    return manifest


def _is_listing(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() >= {"sha256", "bytes"}


def is_inside(path: str) -> bool:
    """Whether a path from JSON stays below the directory that it is relative to."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not (
        path.startswith("/") or ".." in parts or "\\" in path or "\0" in path
    )


def packages() -> dict[str, str]:
    """By name, the versions of Python and of the packages that shape an artifact."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            # TensorFlow also comes under other names, such as tensorflow-cpu.
            continue
    return found

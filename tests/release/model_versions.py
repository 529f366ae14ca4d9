"""Small exported versions for a model base, and what it should hold; no TensorFlow."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

MANIFEST = "manifest.json"
MARKERS = {"saved_model": "saved_model.pb", "onnx": MANIFEST}


def make(
    directory: Path, content: str, target: str = "saved_model", repeat: int = 5_000
) -> Path:
    """Writes the files of an artifact, with a manifest that lists them."""
    files = {
        "assets.extra/vocab.txt": b"[PAD]\n" * 100,
        "variables/variables.data-00000-of-00001": content.encode() * repeat,
        "variables/variables.index": content.encode(),
        "saved_model.pb": content.encode() * 500,
    }
    if target != "saved_model":
        files = {"model.onnx": content.encode() * 700, "vocab.txt": b"[PAD]\n"}
    listed = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        for name, data in files.items()
    }
    manifest = {
        "format_version": 1,
        "format": target,
        "metrics": {"link_accuracy": 0.75, "mrr": 0.8, "nil": {"f1": 0.5}},
        "content": content,
        "files": listed,
    }
    files[MANIFEST] = json.dumps(manifest).encode()
    files["proof.json"] = b"{}"
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    return directory


def make_all(directory: Path, content: str, repeat: int = 5_000) -> dict[str, Path]:
    """A saved_model and an onnx artifact."""
    return {
        target: make(directory / target, f"{target} {content} ", target, repeat)
        for target in MARKERS
    }


def content(version: Path) -> str:
    """What the version was made with."""
    return json.loads((version / MANIFEST).read_bytes())["content"].split()[-1]


def damage(version: Path) -> str:
    """What a program that loads a version would stumble over; '' for nothing."""
    try:
        files = json.loads((version / MANIFEST).read_bytes())["files"]
        for name, listed in files.items():
            data = (version / name).read_bytes()
            if hashlib.sha256(data).hexdigest() != listed["sha256"]:
                return f"{name}: {len(data)} bytes of {listed['bytes']}"
    except (OSError, ValueError) as error:
        return repr(error)
    return ""


def tree(base: Path) -> set[str]:
    """Every file and directory but those inside of versions."""
    found = set()
    for directory, names, files in os.walk(base):
        relative = Path(directory).relative_to(base)
        found |= {(relative / name).as_posix() for name in [*names, *files]}
        names[:] = [n for n in names if not n.isdigit() and "withdrawn" not in n]
    return found

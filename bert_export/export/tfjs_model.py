"""Reads a stored TensorFlow.js model, checks that it is whole, runs it in Node.js."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_export import javascript
from bert_export.errors import StageError, UserError

MODEL_FILE = "model.json"
GRAPH = "graph-model"
LAYERS = "layers-model"
_FORMATS = {GRAPH: "tfjs_graph_model", LAYERS: "tfjs_layers_model"}
_RUNNER = Path(__file__).with_name("tfjs_run.mjs")
_SECONDS = 600
_DTYPES = {"float32": np.float32, "int32": np.int32, "bool": np.bool_}


@dataclasses.dataclass(frozen=True)
class Run:
    """What a model gave in Node.js."""

    call: str  # predict or executeAsync
    why: str  # TensorFlow.js' reason where predict does not do
    batches: list[list[np.ndarray]]  # by batch, the outputs


def find(path: str | os.PathLike[str]) -> Path:
    """The model.json that a path means: itself, or the one in the directory.

    Raises:
      UserError: there is none.
    """
    given = Path(path)
    if given.is_file():
        return given
    if not given.exists():
        raise UserError(f"{given}: there is no such file or directory")
    found = given / MODEL_FILE
    if not found.is_file():
        raise UserError(
            f"{given}: not a TensorFlow.js model: there is no {MODEL_FILE} in it"
        )
    return found


def read(path: Path, kind: str | None = None) -> dict[str, Any]:
    """Reads model.json and makes sure that its weight files are there and whole.

    Args:
      path: the file.
      kind: GRAPH or LAYERS where only that will do.

    Returns:
      The file's content.

    Raises:
      UserError: it is no such model, or incomplete; the message names the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(
            f"{path}: not JSON ({error}); copy the model again, or name the model.json "
            "of a TensorFlow.js model"
        ) from error
    found = _kind(content)
    if found is None:
        raise UserError(
            f"{path}: JSON, but no TensorFlow.js model: expected modelTopology and "
            "weightsManifest"
        )
    if kind is not None and found != kind:
        raise UserError(
            f"{path}: this is a {_FORMATS[found]}, expected a {_FORMATS[kind]}"
        )
    _check_weights(path, content["weightsManifest"])
    return content


def topology(content: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a layers model: its class_name and config, as Keras writes them."""
    found = content["modelTopology"]
    return found.get("model_config", found)


def run(
    path: Path,
    kind: str,
    batches: Sequence[Mapping[str, np.ndarray]],
    outputs: Sequence[str] = (),
) -> Run:
    """Runs a model in Node.js with TensorFlow.js' plain JavaScript backend.

    Args:
      path: its model.json.
      kind: GRAPH or LAYERS.
      batches: by input name, numbers or booleans of the input's shape.
      outputs: the names to compute. LAYERS computes all, and puts them in this order
        where it knows the names.

    Raises:
      UserError: Node.js or its packages are missing.
      StageError: TensorFlow.js cannot load or run the model; the message is its own.
    """
    node, packages = javascript.node(), javascript.packages()
    request = {
        "model": os.fspath(path.resolve()),
        "kind": kind,
        "outputs": list(outputs),
        "batches": [{k: _encode(v) for k, v in batch.items()} for batch in batches],
    }
    with tempfile.TemporaryDirectory() as directory:
        asked, answered = Path(directory, "request.json"), Path(directory, "answer")
        asked.write_text(json.dumps(request), encoding="utf-8")
        try:
            process = subprocess.run(
                [node, _RUNNER, packages, asked, answered],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise StageError(f"Node.js did not end within {_SECONDS} s") from error
        if not answered.exists():
            said = process.stderr.strip().splitlines()[-1:] or ["no message"]
            raise StageError(f"Node.js ended with {process.returncode}: {said[0]}")
        answer = json.loads(answered.read_text(encoding="utf-8"))
    if "error" in answer:
        raise StageError(str(answer["error"]).strip() or "an error without a message")
    decoded = [[_decode(one) for one in batch] for batch in answer["batches"]]
    return Run(answer["call"], answer["why"], decoded)


def error_line(error: Exception) -> str:
    """The line of an error that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.endswith("Graph execution error:")]
    return f"{type(error).__name__}: {said[0] if said else 'no message'}"


def _kind(content: Any) -> str | None:
    if not isinstance(content, dict):
        return None
    found, manifest = content.get("modelTopology"), content.get("weightsManifest")
    if not isinstance(found, dict) or not isinstance(manifest, list):
        return None
    if "node" in found:
        return GRAPH
    return LAYERS if "model_config" in found or "class_name" in found else None


def _check_weights(path: Path, manifest: list[Any]) -> None:
    """Raises UserError where a weight file is missing, too short or too long."""
    try:
        for group in manifest:
            sizes = {}
            for name in group["paths"]:
                file = path.parent / name
                if not file.is_file():
                    raise UserError(
                        f"{path}: names the weight file {name}, which is missing from "
                        f"{path.parent}; copy it there"
                    )
                sizes[name] = file.stat().st_size
            expected, exact = _bytes(group["weights"])
            total = sum(sizes.values())
            if total < expected or (exact and total > expected):
                # Shards are of one size, but for the last.
                largest = max(sizes.values(), default=0)
                full = [name for name in sizes if sizes[name] == largest]
                odd = [name for name in [*sizes][:-1] if name not in full]
                suspect = (odd or [*sizes][-1:] or ["no file"])[0]
                raise UserError(
                    f"{path.parent / suspect}: "
                    f"{'truncated' if total < expected else 'too long'}: the "
                    f"{len(sizes)} weight files have {total} bytes, {path.name} "
                    f"wants {expected}; copy the model again"
                )
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: its weightsManifest is none: {type(error).__name__} {error}"
        ) from error


def _bytes(weights: list[Any]) -> tuple[int, bool]:
    """The bytes that weights take, and whether it cannot be more."""
    total, exact = 0, True
    for weight in weights:
        count = math.prod(weight["shape"])
        if weight["dtype"] == "string":
            # Each string has its length before it.
            total, exact = total + 4 * count, False
        else:
            stored = weight.get("quantization", weight)["dtype"]
            total += count * np.dtype(stored).itemsize
    return total, exact


def _encode(array: np.ndarray) -> dict[str, Any]:
    """TensorFlow.js has three types of numbers; wider ones are narrowed."""
    name = {"f": "float32", "b": "bool"}.get(array.dtype.kind, "int32")
    data = np.ascontiguousarray(array, _DTYPES[name]).tobytes()
    return {
        "shape": list(array.shape),
        "dtype": name,
        "data": base64.b64encode(data).decode(),
    }


def _decode(tensor: Mapping[str, Any]) -> np.ndarray:
    if tensor["dtype"] not in _DTYPES:
        raise StageError(f"an output is {tensor['dtype']}, which cannot be compared")
    data = base64.b64decode(tensor["data"])
    return np.frombuffer(data, _DTYPES[tensor["dtype"]]).reshape(tensor["shape"])

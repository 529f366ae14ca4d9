"""The weights in a Hugging Face directory: safetensors or PyTorch's, whole or sharded.

Sharded weights come with an index, JSON with `weight_map`: each tensor's file.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import safetensors

from bert_export.errors import UserError
from bert_export.modeling import pytorch_bin
from bert_export.modeling.stored import StoredTensor

# Those that are preferred first.
WEIGHTS_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def files(weights: Path) -> list[Path]:
    """The files that hold the tensors.

    Args:
      weights: one of WEIGHTS_FILES; for sharded weights, the index.

    Raises:
      UserError: an index cannot be read, or names a file that is not beside it.
    """
    if weights.suffix != ".json":
        return [weights]
    return [weights.with_name(name) for name in sorted(set(_index(weights).values()))]


def tensors(weights: Path) -> dict[str, StoredTensor]:
    """The tensors of floats by their names there; float16 and bfloat16 become float32.

    Args:
      weights: one of WEIGHTS_FILES.

    Raises:
      UserError: a file is missing or damaged.
    """
    found: dict[str, StoredTensor] = {}
    for file in files(weights):
        found.update(
            _safetensors(file)
            if file.suffix == ".safetensors"
            else pytorch_bin.tensors(file)
        )
    return found


def _index(path: Path) -> dict[str, str]:
    """Each tensor's file, a plain name, as a checked index says."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        shards = set(index.values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: cannot read the index of the weights' files: "
            f"{type(error).__name__}: {error}"
        ) from error
    suffix = ".safetensors" if "safetensors" in path.name else ".bin"
    for shard in sorted(shards, key=str):
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise UserError(
                f"{path}: expected names of files beside it, found {shard!r}"
            )
        if not shard.endswith(suffix):
            raise UserError(
                f"{path}: expected names ending in {suffix}, found {shard!r}"
            )
        if not path.with_name(shard).is_file():
            raise UserError(f"{path}: there is no {shard} beside it")
    return index


def _safetensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of floats in one file, of which the header is read."""
    found = {}
    try:
        with safetensors.safe_open(path, framework="np") as file:
            for name in list(file.keys()):
                stored = file.get_slice(name)
                if stored.get_dtype().startswith(("F", "BF")):
                    found[name] = StoredTensor(
                        tuple(stored.get_shape()), functools.partial(_read, path, name)
                    )
    except (OSError, safetensors.SafetensorError) as error:
        raise _damaged(path, error) from error
    return found


def _read(path: Path, name: str) -> np.ndarray:
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return file.get_tensor(name).astype(np.float32)
    except (OSError, safetensors.SafetensorError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path}: cannot read the weights, the file may be incomplete: {error}"
    )

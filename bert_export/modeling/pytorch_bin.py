"""Tensors in PyTorch's own files (`pytorch_model.bin`), read without running them.

Such a file is a pickle, which may call any function. `torch.load(weights_only=True)`
builds tensors and plain containers alone and refuses everything else.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from bert_export.errors import UserError
from bert_export.modeling.stored import StoredTensor


def tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of floats in a file, by their names there.

    Files since PyTorch 1.6 are mapped into memory, and their tensors read one by one.

    Raises:
      UserError: torch is not installed; the file is damaged, holds something else
        than tensors, or wants to call functions.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path}: to read PyTorch's files takes torch, which cannot be found: "
            "pip install 'bert_export[pytorch]'"
        ) from error
    try:
        # Older files are no zip archives, and cannot be mapped.
        loaded = torch.load(
            path,
            map_location="cpu",
            weights_only=True,
            mmap=zipfile.is_zipfile(path),
        )
    except pickle.UnpicklingError as error:
        foreign = re.search(r"GLOBAL (?!torch)(\w+(?:\.\w+)+)", str(error))
        raise UserError(
            f"{path}: refused, it asks for {foreign[1]}, and a file of weights holds "
            "nothing but tensors"
            if foreign
            else f"{path}: cannot read the weights, the file is damaged or holds "
            "something else than tensors"
        ) from error
    # What a damaged archive's reader raises depends on where the damage is.
    except (OSError, EOFError, RuntimeError, ValueError, LookupError) as error:
        raise UserError(
            f"{path}: cannot read the weights, the file may be incomplete: "
            f"{str(error).split('. ')[0] if str(error) else type(error).__name__}"
        ) from error
    if not isinstance(loaded, dict) or not all(
        isinstance(value, torch.Tensor) for value in loaded.values()
    ):
        raise UserError(
            f"{path}: expected tensors by name (a state_dict), found "
            f"{_describe(loaded)}"
        )
    return {
        str(name): _stored(value)
        for name, value in loaded.items()
        if value.is_floating_point()
    }


def _stored(tensor: Any) -> StoredTensor:
    def read() -> np.ndarray:
        return tensor.detach().float().numpy()

    return StoredTensor(tuple(tensor.shape), read)


def _describe(value: object) -> str:
    """What a file holds in place of tensors by name."""
    if not isinstance(value, dict):
        return f"a {type(value).__name__}"
    entries = [f"{name} ({type(entry).__name__})" for name, entry in value.items()]
    return f"entries {', '.join(entries[:3])}{', …' if len(entries) > 3 else ''}"

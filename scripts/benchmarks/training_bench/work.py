"""What all contenders train on, as make_work.py leaves it and they read it.

Runs in Python 3.7, too, which TensorFlow 1.15 needs.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

# Of a directory of work.
ABOUT = "work.json"
TEXTS = "texts.json"
PAIRS = "pairs.npz"
# The config that our own training reads.
CONFIG = "config.json"


def about(directory: str) -> dict[str, Any]:
    """Where the weights are, and the numbers that all train with."""
    return _json(directory, ABOUT)


def texts(directory: str, split: str) -> list[list[str]]:
    """[text, candidate's text] of each pair of 'train' or 'test'."""
    return _json(directory, TEXTS)[split]


def pairs(directory: str, split: str) -> tuple[list[dict[str, list[int]]], list[int]]:
    """The encoded pairs of 'train' or 'test', and their labels.

    A pair is {"input_ids": [...], "token_type_ids": [...]}, as long as it is.
    """
    with np.load(os.path.join(directory, PAIRS)) as arrays:
        tokens = {
            name: np.split(
                arrays[f"{split}_{name}"],
                np.cumsum(arrays[f"{split}_lengths"])[:-1],
            )
            for name in ("input_ids", "token_type_ids")
        }
        labels = arrays[f"{split}_labels"].tolist()
    rows = zip(tokens["input_ids"], tokens["token_type_ids"])
    return [
        {"input_ids": ids.tolist(), "token_type_ids": types.tolist()}
        for ids, types in rows
    ], labels


def _json(directory: str, name: str) -> Any:
    with open(os.path.join(directory, name), encoding="utf-8") as file:
        return json.load(file)

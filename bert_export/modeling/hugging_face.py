"""Hugging Face's BERT weights (`model.safetensors`) as a TensorFlow checkpoint."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors
import tensorflow as tf

from bert_export.errors import UserError
from bert_export.files import sha256_file

WEIGHTS_FILE = "model.safetensors"
CHECKPOINT_NAME = "bert_model.ckpt"
# Part of the fingerprint; to be raised when the conversion changes.
FORMAT = "1"

# What a module's tensors are called: there, here, and whether to transpose (PyTorch's
# linear layers keep [outputs, inputs], TensorFlow's kernels [inputs, outputs]).
EMBEDDING = {"weight": ("", False)}
DENSE = {"weight": ("/kernel", True), "bias": ("/bias", False)}
LAYER_NORM = {
    "weight": ("/gamma", False),
    "bias": ("/beta", False),
    # Checkpoints of 2018 and 2019.
    "gamma": ("/gamma", False),
    "beta": ("/beta", False),
}
# Modules: theirs, Google's, kind. {n} is the layer's number.
MODULES = (
    ("embeddings.word_embeddings", "bert/embeddings/word_embeddings", EMBEDDING),
    (
        "embeddings.position_embeddings",
        "bert/embeddings/position_embeddings",
        EMBEDDING,
    ),
    (
        "embeddings.token_type_embeddings",
        "bert/embeddings/token_type_embeddings",
        EMBEDDING,
    ),
    ("embeddings.LayerNorm", "bert/embeddings/LayerNorm", LAYER_NORM),
    *(
        (f"encoder.layer.{{n}}.{theirs}", f"bert/encoder/layer_{{n}}/{ours}", kind)
        for theirs, ours, kind in (
            ("attention.self.query", "attention/self/query", DENSE),
            ("attention.self.key", "attention/self/key", DENSE),
            ("attention.self.value", "attention/self/value", DENSE),
            ("attention.output.dense", "attention/output/dense", DENSE),
            ("attention.output.LayerNorm", "attention/output/LayerNorm", LAYER_NORM),
            ("intermediate.dense", "intermediate/dense", DENSE),
            ("output.dense", "output/dense", DENSE),
            ("output.LayerNorm", "output/LayerNorm", LAYER_NORM),
        )
    ),
    ("pooler.dense", "bert/pooler/dense", DENSE),
)
NAMES = {
    f"{theirs}.{tensor}": (ours + suffix, transpose)
    for theirs, ours, kind in MODULES
    for tensor, (suffix, transpose) in kind.items()
}


def google_name(name: str) -> tuple[str, bool]:
    """A tensor's name in Google's checkpoints, and whether it is transposed there.

    A name that BERT does not have (a head's) is returned as it is.
    """
    name = name.removeprefix("bert.")
    pattern = re.sub(r"(?<=^encoder\.layer\.)\d+", "{n}", name)
    if pattern not in NAMES:
        return name, False
    ours, transpose = NAMES[pattern]
    number = re.search(r"\d+", name)
    return ours.format(n=number[0] if number else ""), transpose


def convert(weights: Path, cache_dir: Path) -> str:
    """Writes the weights as a checkpoint with Google's names, unless it is there.

    Args:
      weights: a `model.safetensors`; float16 and bfloat16 become float32.
      cache_dir: gets a directory named by the file's fingerprint.

    Returns:
      The checkpoint's prefix.

    Raises:
      UserError: the file is damaged.
    """
    directory = cache_dir / f"{sha256_file(weights)[:16]}-{FORMAT}"
    if not directory.exists():
        partial = directory.with_name(f"{directory.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            tensors = dict(_read(weights))
            with tf.init_scope():  # Eager, whatever graph is being built.
                tf.raw_ops.SaveV2(
                    prefix=str(partial / CHECKPOINT_NAME),
                    tensor_names=list(tensors),
                    shape_and_slices=[""] * len(tensors),
                    tensors=list(tensors.values()),
                )
            partial.replace(directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return str(directory / CHECKPOINT_NAME)


def _read(weights: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (Google's name, float32 array) for each tensor of floats."""
    try:
        with safetensors.safe_open(weights, framework="np") as file:
            names = file.keys()
            for key in names:
                if key.endswith("embeddings.position_ids"):  # 0, 1, 2 …: no weight.
                    continue
                name, transpose = google_name(key)
                array = file.get_tensor(key).astype(np.float32)
                yield name, np.ascontiguousarray(array.T if transpose else array)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(
            f"{weights}: cannot read the weights, the file may be incomplete: {error}"
        ) from error

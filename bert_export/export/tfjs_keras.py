"""Reads stored Keras models, without running code that is in them."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError

from bert_export.errors import UserError
from bert_export.export import extras
from bert_export.export.session_graph import Input
from bert_export.export.tfjs_model import error_line


def stored_config(path: Path) -> dict[str, Any]:
    """class_name and config of a stored Keras model; none of its code is run.

    Raises:
      UserError: it is no such model, holds weights only, or was written by Keras 3.
    """
    if not path.exists():
        raise UserError(f"{path}: there is no such file or directory")
    try:
        if path.is_dir():
            version, config = "2", _saved_model_config(path)
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                version = json.loads(file.read("metadata.json"))["keras_version"]
                config = json.loads(file.read("config.json"))
        else:
            import h5py

            with h5py.File(path, "r") as file:
                if "model_config" not in file.attrs:
                    raise UserError(
                        f"{path}: holds weights, but not the layers they belong to; "
                        "save with model.save(), not save_weights()"
                    )
                version = str(file.attrs.get("keras_version", "2"))
                config = json.loads(file.attrs["model_config"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: not a Keras model (.h5, .keras or Keras SavedModel), or damaged: "
            f"{error_line(error)}"
        ) from error
    if not version.startswith("2"):
        raise UserError(
            f"{path}: written by Keras {version}, which Keras 2 cannot read; write a "
            "SavedModel with model.export(DIR) and take --input_format=tf_saved_model"
        )
    return config


def _saved_model_config(path: Path) -> dict[str, Any]:
    metadata = path / "keras_metadata.pb"
    if not metadata.is_file():
        raise UserError(
            f"{path}: not a SavedModel of Keras 2: there is no keras_metadata.pb in "
            f"it; any SavedModel can become a tfjs_graph_model with "
            "--input_format=tf_saved_model"
        )
    with extras.quiet():
        from tf_keras.protobuf import saved_metadata_pb2

    try:
        nodes = saved_metadata_pb2.SavedMetadata.FromString(metadata.read_bytes()).nodes
    except DecodeError as error:
        raise ValueError("keras_metadata.pb is damaged") from error
    for node in nodes:
        if node.node_path == "root":
            return json.loads(node.metadata)
    raise ValueError("keras_metadata.pb has no model")


def load(path: Path) -> Any:
    """Rebuilds a stored model, not compiled.

    Raises:
      UserError: Keras cannot, or it does not know its inputs.
    """
    with extras.quiet():
        import tf_keras

        try:
            model = tf_keras.models.load_model(path, compile=False)
        except Exception as error:  # h5py's, TensorFlow's and Python's own
            raise UserError(
                f"{path}: Keras cannot load it: {error_line(error)}"
            ) from error
    if not getattr(model, "inputs", None):
        raise UserError(
            f"{path}: the model does not know its inputs' shapes; build it, save it "
            "again"
        )
    return model


def knows(kind: str) -> bool:
    """Whether Keras 2 has a layer of this class."""
    with extras.quiet():
        import tf_keras
    operations = ("TFOpLambda", "SlicingOpLambda", "ClassMethod", "InstanceMethod")
    return hasattr(tf_keras.layers, kind) or kind in operations


def inputs_of(model: Any) -> tuple[Input, ...]:
    """The inputs of a model, in its order, by names that a signature can have."""
    return tuple(
        Input(re.sub(r"\W", "_", name), "", tf.as_dtype(one.dtype), one.shape, False)
        for name, one in zip(model.input_names, model.inputs)
    )


def table_rows(model: Any) -> dict[str, int]:
    """By input, the rows of the smallest table of the model, where it has any."""
    rows = [
        layer.input_dim
        for layer in model._flatten_layers()
        if type(layer).__name__ == "Embedding"
    ]
    return {i.name: min(rows) for i in inputs_of(model)} if rows else {}

"""Writes a model of the table as LayersModel and as GraphModel, with its input."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from keras_models import Row
from names import FROZEN, GRAPH, INPUTS, LAYERS, SAVED

from bert_export.config import Target
from bert_export.export import extras, formats, linker_graph, tfjs_convert


def write(row: Row, directory: Path) -> dict[str, Any]:
    """Writes DIRECTORY/layers, DIRECTORY/graph and DIRECTORY/inputs.json.

    Returns:
      What is known of the model, for the report; `expected` has Keras' own outputs,
      flat.
    """
    directory.mkdir(parents=True)
    with extras.quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorflowjs import converters

        converters.save_keras_model(row.model, str(directory / LAYERS))
        tf.saved_model.save(row.model, str(directory / "saved_model"))
    tfjs_convert.convert(
        "tf_saved_model",
        "tfjs_graph_model",
        str(directory / "saved_model"),
        directory / GRAPH,
    )
    _write_inputs(directory, row.inputs)
    return {
        "name": row.name,
        "title": row.title,
        "parameters": row.model.count_params(),
        "inputs": {name: list(value.shape) for name, value in row.inputs.items()},
        "expected": row.model(row.inputs).numpy().ravel().tolist(),
    }


def write_exported(
    model: linker_graph.TrainedLinker, inputs: dict[str, np.ndarray], directory: Path
) -> None:
    """Writes what bert-export does, and the same graph for TensorFlow.

    DIRECTORY has graph, frozen.pb, saved_model and inputs.json.
    """
    (directory / GRAPH).mkdir(parents=True)
    formats.write(Target("tfjs", "float32"), model, directory / GRAPH, [])
    graph = linker_graph.freeze(model, checked=False, integers=tf.int32)
    (directory / FROZEN).write_bytes(graph.SerializeToString())
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        outputs = tf.import_graph_def(
            graph,
            name="",
            return_elements=[f"{name}:0" for name in linker_graph.OUTPUTS],
        )
        tf.compat.v1.saved_model.simple_save(
            session,
            str(directory / SAVED),
            {
                name: session.graph.get_tensor_by_name(f"{name}:0")
                for name in model.input_names
            },
            dict(zip(linker_graph.OUTPUTS, outputs)),
        )
    _write_inputs(directory, inputs)


def _write_inputs(directory: Path, inputs: dict[str, np.ndarray]) -> None:
    values = {
        name: {
            "shape": value.shape,
            "dtype": "float32" if value.dtype == np.float32 else "int32",
            "values": value.ravel().tolist(),
        }
        for name, value in inputs.items()
    }
    (directory / INPUTS).write_text(json.dumps(values), "utf-8")

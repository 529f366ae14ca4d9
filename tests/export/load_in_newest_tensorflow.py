"""Answers requests with a serving_model and a frozen graph; run by another TensorFlow.

    python load_in_newest_tensorflow.py DIRECTORY

DIRECTORY holds `serving_model/`, `frozen_graph.pb` and `inputs.json`; the answers go to
`outputs.json`. Knows TensorFlow's public names alone, as a consumer would.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_text

DTYPES = {"string": tf.string, "int64": tf.int64}


def lists(outputs: dict[str, tf.Tensor]) -> dict[str, list]:
    return {name: np.asarray(value).tolist() for name, value in outputs.items()}


def main(directory: Path) -> None:
    inputs = json.loads((directory / "inputs.json").read_text())
    loaded = tf.saved_model.load(str(directory / "serving_model"))
    outputs = {"versions": [tf.__version__, tensorflow_text.__version__]}
    for signature in ("text", "link", "tensors"):
        tensors = {
            name: tf.constant(value, DTYPES[dtype])
            for name, (dtype, value) in inputs[signature].items()
        }
        outputs[signature] = lists(loaded.signatures[signature](**tensors))

    graph_def = tf.compat.v1.GraphDef()
    graph_def.ParseFromString((directory / "frozen_graph.pb").read_bytes())
    names = list(inputs["tensors"])
    wrapped = tf.compat.v1.wrap_function(
        lambda: tf.compat.v1.import_graph_def(graph_def, name=""), []
    )
    frozen = wrapped.prune(
        [f"{name}:0" for name in names],
        {name: f"{name}:0" for name in ("probabilities", "score")},
    )
    tensors = [tf.constant(inputs["tensors"][name][1], tf.int64) for name in names]
    outputs["frozen_graph"] = lists(frozen(*tensors))
    (directory / "outputs.json").write_text(json.dumps(outputs))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

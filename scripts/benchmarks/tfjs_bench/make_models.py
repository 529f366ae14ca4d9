"""Writes the models of the table into a directory, for measure.py.

Usage: python make_models.py DIRECTORY quick|full [WORKDIR]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# With oneDNN, TensorFlow's optimizer makes one operation of a layer normalization,
# which TensorFlow.js lacks. Read when TensorFlow is imported.
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
# It tells of graphics cards that it does not find as of errors.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import artifacts
import keras_models
import linkers
from names import EXPORTED, MODELS_FILE

from bert_export.errors import UserError
from bert_export.files import write_json


def main(directory: str, size: str, workdir: str | None = None) -> None:
    """Writes DIRECTORY/NAME of each model, and what is known of them."""
    root = Path(directory)
    quick = size == "quick"
    if workdir:
        weights = "those of the run that was named"
        model, inputs = linkers.trained(Path(workdir))
    elif quick:
        weights = "random ones of a tiny BERT"
        model, inputs = linkers.untrained(linkers.TINY, root)
    else:
        weights = "MiniLM-L6, with a head that was not trained"
        model, inputs = linkers.untrained(linkers.MINILM, root)
    rows = [keras_models.mlp("mlp_small", (32, 64, 64, 10))]
    if quick:
        rows.append(keras_models.mobilenet_v2(96, 0.35))
    else:
        rows.append(keras_models.mlp("mlp", (784, 512, 512, 10)))
        rows.append(keras_models.mobilenet_v2(224, 1.0))
    rows.append(keras_models.linker(model, inputs))
    models = []
    for row in rows:
        print(f"making {row.title}", file=sys.stderr, flush=True)
        models.append(artifacts.write(row, root / row.name))
    print("exporting the linker", file=sys.stderr, flush=True)
    artifacts.write_exported(model, inputs, root / EXPORTED)
    mask = inputs[model.spec.input_mask]
    write_json(
        root / MODELS_FILE,
        {
            "models": models,
            "linker": {
                "weights": weights,
                "pairs": len(mask),
                "tokens": int(mask.sum()),
                "longest": mask.shape[1],
            },
        },
    )


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)

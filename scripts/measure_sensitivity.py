"""Measures which matmuls of a trained linker bear int8, for ONNX.

Quantizes one group of matmuls at a time with ranges from training requests, then all
of them, then all of them token by token, and compares with float32 on dev mentions.

Usage: .venv/bin/python scripts/measure_sensitivity.py WORKDIR CHECKPOINT [MENTIONS]
"""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path

# TensorFlow reads this when it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import onnx
import onnxruntime
import tensorflow as tf
from tabulate import tabulate

from bert_export.config import read_json, resolve
from bert_export.export import linker_graph, onnx_compression, onnx_graph
from bert_export.features.records import RecordSet
from bert_export.features.tokenizer import load_tokenizer
from bert_export.modeling import weights
from bert_export.modeling.bert_config import BertConfig

# The converters warn of their own insides.
logging.disable(logging.WARNING)

GROUPS = {
    "query, key, value": "/attention/self/",
    "attention output": "/attention/output/",
    "feed-forward, first": "/intermediate/",
    "feed-forward, second": r"/layer_\d+/output/",
    "all": "",
}


def requests(
    model: linker_graph.TrainedLinker, records: RecordSet, count: int
) -> list[dict[str, np.ndarray]]:
    """The first `count` mentions of a split, one a batch."""
    spec = model.spec
    sizes = records.mention_sizes[:count]
    files = tf.data.TFRecordDataset([str(file) for file in records.files])
    examples = list(files.take(int(sizes.sum())).as_numpy_iterator())
    batches = []
    for end, size in zip(np.cumsum(sizes), sizes):
        parsed = spec.parse(examples[end - size : end], spec.serving_parsing_spec())
        batches.append({name: parsed[name].numpy() for name in model.input_names})
    return batches


def scores(
    converted: onnx.ModelProto, batches: list[dict[str, np.ndarray]]
) -> list[np.ndarray]:
    """Each mention's scores of its candidates."""
    session = onnxruntime.InferenceSession(
        converted.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return [session.run(["score"], batch)[0] for batch in batches]


def main(workdir: str, checkpoint: str, mentions: str = "500") -> None:
    """Prints the table."""
    config = resolve(read_json(Path(workdir) / "config.json"))
    model = linker_graph.TrainedLinker(
        checkpoint,
        BertConfig.from_json(weights.bert_config_path(config.model)),
        config.features,
        load_tokenizer(
            weights.vocab_path(config.model, config.features.tokenizer),
            config.features,
        ),
    )
    directory = Path(workdir) / "records"
    calibration = requests(model, RecordSet.load(directory, "train"), 64)
    dev = RecordSet.load(directory, "dev")
    batches = requests(model, dev, int(mentions))
    gold = dev.gold[: len(batches)]
    reference = scores(onnx_graph.build(model), batches)

    def row(name: str, converted: onnx.ModelProto) -> list[object]:
        found = scores(converted, batches)
        change = np.concatenate(found) - np.concatenate(reference)
        best = np.array([values.argmax() for values in found])
        before = np.array([values.argmax() for values in reference])
        return [
            name,
            f"{100 * np.mean(best == gold):.1f} %",
            int(np.sum(best != before)),
            f"{np.sqrt(np.mean(change**2)):.3f}",
        ]

    rows = [row("none", onnx_graph.build(model))]
    for name, kernels in GROUPS.items():
        calibrated, _ = onnx_compression.calibrate(
            onnx_graph.build(model), calibration, re.compile(kernels)
        )
        rows.append(row(name, calibrated))
    tokenwise = onnx_graph.build(model)
    onnx_compression.quantize(tokenwise)
    rows.append(row("all, token by token, and embeddings", tokenwise))
    headers = ["quantized", "link accuracy", "changed", "score change (RMS)"]
    print(f"{len(batches)} dev mentions")
    print(tabulate(rows, headers=headers, disable_numparse=True))


if __name__ == "__main__":
    main(*sys.argv[1:])

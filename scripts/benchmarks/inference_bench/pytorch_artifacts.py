"""Writes what CrossEncoder's backends load, with sentence-transformers' own exporters.

Run by the PyTorch peer's interpreter: DIRECTORY/torch is there; DIRECTORY/onnx and
DIRECTORY/openvino are made. TEXTS.json has texts to calibrate with.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
import tempfile

# It is quiet about what it cannot report.
os.environ["NNCF_CI"] = "1"

from sentence_transformers import CrossEncoder
from sentence_transformers.backend import (
    export_dynamic_quantized_onnx_model,
    export_optimized_onnx_model,
    export_static_quantized_openvino_model,
)


def main() -> None:
    """Writes them."""
    directory, texts = sys.argv[1:]
    source = f"{directory}/torch"
    for backend in ("onnx", "openvino"):
        # Of an interrupted run.
        shutil.rmtree(f"{directory}/{backend}", ignore_errors=True)
    target = f"{directory}/onnx"
    options = {"export": True, "provider": "CPUExecutionProvider"}
    model = CrossEncoder(source, backend="onnx", model_kwargs=options)
    model.save_pretrained(target)
    export_dynamic_quantized_onnx_model(model, "avx512_vnni", target)
    export_optimized_onnx_model(model, "O3", target)
    target = f"{directory}/openvino"
    model = CrossEncoder(source, backend="openvino", model_kwargs={"export": True})
    model.save_pretrained(target)
    with tempfile.TemporaryDirectory() as temporary:
        with (
            open(texts, encoding="utf-8") as file,
            open(f"{temporary}/train.csv", "w", encoding="utf-8") as table,
        ):
            writer = csv.writer(table)
            writer.writerow(["text"])
            writer.writerows([text] for text in json.load(file))
        export_static_quantized_openvino_model(
            model, None, target, temporary, "default", "train", "text"
        )


if __name__ == "__main__":
    main()

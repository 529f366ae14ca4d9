"""Writes the linker as an ONNX model for ONNX Runtime, in float32 and compressed."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bert_export.errors import StageError
from bert_export.export import extras, onnx_compression, onnx_graph
from bert_export.export.linker_graph import TrainedLinker

# The extra, and the packages of it that are imported.
REQUIRES = ("onnx", "onnx", "onnxruntime")

MODEL_FILE = "model.onnx"


def write(
    model: TrainedLinker,
    staging: Path,
    precision: str,
    calibration: list[dict[str, np.ndarray]],
) -> list[str]:
    """Writes `model.onnx`.

    Inputs have the features' names and are int64: sequences [batch, seq_length], span
    positions [batch]. Outputs are `probabilities` [batch, 2] and `score` [batch],
    float32. ONNX has no assertions: of malformed requests only those are refused
    whose types, ranks or indices the runtime refuses.

    Args:
      model: what to write.
      staging: an existing directory.
      precision: 'float32', 'float16', 'int8_dynamic' or 'int8_calibrated'; see
        `onnx_compression`.
      calibration: batches of real requests by feature name, int64; read for
        'int8_calibrated' only.

    Returns:
      Sentences on what was decided.

    Raises:
      UserError: a package of the extra `onnx` is missing.
      StageError: there is nothing to calibrate with.
    """
    extras.require(*REQUIRES)
    import onnx

    if precision == "int8_calibrated" and not calibration:
        raise StageError("onnx: int8_calibrated needs calibration requests, found none")
    with _quiet():
        converted = onnx_graph.build(model)
        notes = []
        positions = model.bert.max_position_embeddings
        if positions > model.spec.max_seq_length:
            notes.append(
                f"{model.spec.max_seq_length} of {positions} position embeddings are "
                "stored: longer requests are refused"
            )
        if precision == "float16":
            notes += onnx_compression.store_half(converted)
        elif precision == "int8_dynamic":
            notes += onnx_compression.quantize(converted)
        elif precision == "int8_calibrated":
            converted, static = onnx_compression.calibrate(converted, calibration)
            notes += static + onnx_compression.quantize(converted)
        onnx.checker.check_model(converted)
        onnx.save(converted, str(staging / MODEL_FILE))
    return notes


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the quantizer's warnings, which are about its own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)

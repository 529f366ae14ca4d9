"""Writes the linker as an OpenVINO IR, in float32 and compressed."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bert_export.errors import StageError
from bert_export.export import extras, onnx_graph
from bert_export.export.linker_graph import OUTPUTS, TrainedLinker

# The extra, and the packages of it that are imported.
REQUIRES = ("openvino", "openvino", "nncf", "onnx")

MODEL_FILE = "model.xml"
# Where OpenVINO looks for the weights of that.
WEIGHTS_FILE = "model.bin"


def write(
    model: TrainedLinker,
    staging: Path,
    precision: str,
    calibration: list[dict[str, np.ndarray]],
) -> list[str]:
    """Writes `model.xml` and `model.bin`.

    Inputs have the features' names and are int64: sequences [batch, seq_length], span
    positions [batch]. Outputs are `probabilities` [batch, 2] and `score` [batch],
    float32. The IR has no assertions.

    Args:
      model: what to write.
      staging: an existing directory.
      precision: 'float32'; 'float16' stores the weights so; 'int8_dynamic' stores
        matrices and embedding tables in 8 bits, a scale and a zero point a channel
        (https://docs.openvino.ai, "weight compression"); 'int8_calibrated' also
        computes matrix products in 8 bits, with ranges from calibration and
        SmoothQuant (arXiv:2211.10438).
      calibration: batches of real requests by feature name, int64; read for
        'int8_calibrated' only.

    Returns:
      Sentences on what was decided.

    Raises:
      UserError: a package of the extra `openvino` is missing.
      StageError: there is nothing to calibrate with, or the precision is none of
        these.
    """
    extras.require(*REQUIRES)
    if precision == "int8_calibrated" and not calibration:
        raise StageError(
            "openvino: int8_calibrated needs calibration requests, found none"
        )
    with _quiet():
        import openvino

        converted = _convert(model)
        if precision == "float32":
            notes = [
                "CPUs with bfloat16 compute in it unless told otherwise: compile with "
                "INFERENCE_PRECISION_HINT=f32 for float32's numbers"
            ]
        elif precision == "float16":
            notes = [
                "weights are stored in float16; the processor computes in its own "
                "default precision"
            ]
        elif precision == "int8_dynamic":
            converted = _compress_weights(converted)
            notes = [
                "matrices and embedding tables are stored in int8, a scale and a zero "
                "point a channel; where the CPU has int8 dot products, OpenVINO also "
                "quantises the products' inputs at run time"
            ]
        elif precision == "int8_calibrated":
            converted = _quantize(converted, calibration)
            requests = sum(len(batch[model.input_names[0]]) for batch in calibration)
            notes = [
                "matrix products are computed in int8, with SmoothQuant and ranges "
                f"from {requests} calibration requests; LayerNorm, GELU and softmax "
                "are computed in floating point"
            ]
        else:
            raise StageError(f"openvino: there is no precision {precision}")
        _name_operations(converted)
        openvino.save_model(
            converted, staging / MODEL_FILE, compress_to_fp16=precision == "float16"
        )
    return notes


def _convert(model: TrainedLinker) -> Any:
    """The `openvino.Model` of the graph that is also the ONNX format's."""
    import onnx
    import openvino

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "linker.onnx"
        onnx.save(onnx_graph.build(model), str(path))
        converted = openvino.convert_model(path)
    for port in (*converted.inputs, *converted.outputs):
        # Outputs also have the name of what they are a copy of.
        port.get_tensor().set_names(port.get_names() & {*model.input_names, *OUTPUTS})
    # The quantizer goes through operations in the order of their names.
    _name_operations(converted)
    return converted


def _name_operations(model: Any) -> None:
    """Renames operations that are named after a counter of the whole process."""
    for number, operation in enumerate(model.get_ordered_ops()):
        if re.fullmatch(r"[A-Za-z]+_\d+", operation.get_friendly_name()):
            kind = operation.get_type_name()
            operation.set_friendly_name(f"{kind}_{number}")


def _compress_weights(model: Any) -> Any:
    import nncf

    return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)


def _quantize(model: Any, calibration: list[dict[str, np.ndarray]]) -> Any:
    import nncf

    return nncf.quantize(
        model,
        nncf.Dataset(calibration),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(calibration),
        fast_bias_correction=True,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No telemetry from openvino and nncf, and nothing on standard output.

    Both go without the package openvino_telemetry where it cannot be imported, and
    nncf needs the variable, besides.
    """
    telemetry = "openvino_telemetry"
    if telemetry not in sys.modules:
        sys.modules[telemetry] = None  # type: ignore[assignment]
    os.environ.setdefault("NNCF_CI", "1")
    import nncf

    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        yield

"""A worker with bert_export's artifacts for ONNX Runtime and OpenVINO.

It is all that a consumer needs: the runtime, numpy and, for text, a tokenizer.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from answering import main
from arrays import padded

Arrays = dict[str, np.ndarray]
_HINTS = {"openvino": "f32", "openvino_bfloat16": "bf16"}


def load(contender: str, directory: str) -> dict[str, Any]:
    """By measure, how a request is prepared and answered."""
    runtime = _onnx if contender.startswith("onnx") else _openvino
    answer = runtime(contender, Path(directory))
    ways: dict[str, Any] = {"ids": (_arrays, answer)}
    if importlib.util.find_spec("tokenizers"):
        encode = _tokenizer(Path(directory))
        ways["text"] = (
            lambda request: list(zip(request["marked"], request["candidates"])),
            lambda pairs: answer(encode(pairs)),
        )
    return ways


def _arrays(request: dict[str, Any]) -> Arrays:
    """int64 [pairs, longest] by feature name."""
    return dict(zip(("input_ids", "input_mask", "segment_ids"), padded(request)))


def _tokenizer(directory: Path) -> Callable[[list[tuple[str, str]]], Arrays]:
    """What makes arrays [pairs, longest] of pairs of strings."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.enable_truncation(128)
    tokenizer.enable_padding()

    def encode(pairs: list[tuple[str, str]]) -> Arrays:
        encoded = tokenizer.encode_batch(pairs)
        return {
            "input_ids": np.array([row.ids for row in encoded]),
            "input_mask": np.array([row.attention_mask for row in encoded]),
            "segment_ids": np.array([row.type_ids for row in encoded]),
        }

    return encode


def _onnx(contender: str, directory: Path) -> Callable[[Arrays], np.ndarray]:
    del contender
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
    session = onnxruntime.InferenceSession(
        str(directory / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    return lambda arrays: session.run(["score"], arrays)[0]


def _openvino(contender: str, directory: Path) -> Callable[[Arrays], np.ndarray]:
    # A measurement does not report to anybody.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    options = {"INFERENCE_NUM_THREADS": int(os.environ["OMP_NUM_THREADS"])}
    # Else it takes bfloat16 where the CPU has it, for what is not int8.
    if contender in _HINTS:
        options["INFERENCE_PRECISION_HINT"] = _HINTS[contender]
    model = openvino.Core().compile_model(str(directory / "model.xml"), "CPU", options)
    request = model.create_infer_request()

    def answer(arrays: Arrays) -> np.ndarray:
        request.infer({name: openvino.Tensor(array) for name, array in arrays.items()})
        return request.get_tensor("score").data.copy()

    return answer


if __name__ == "__main__":
    main(load)

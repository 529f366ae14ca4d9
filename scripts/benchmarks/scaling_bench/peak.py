"""The rate at which this machine multiplies matrices at best, which bounds the rest.

Usage: python peak.py [THREADS] [SECONDS]; prints JSON: by precision and engine,
floating-point (or integer) operations a second.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

# (rows, inputs, outputs): squares, and the feed-forward network over many tokens.
SHAPES = ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 384, 1536), (2048, 768, 3072))
THREADS = 2
SECONDS = 0.4


def measure(
    threads: int = THREADS, seconds: float = SECONDS
) -> dict[str, dict[str, float]]:
    """Operations a second by precision and engine: of the best run of any shape.

    TensorFlow takes its threads when the process' first operation runs, so that a
    process can measure one number of them only.

    Args:
      threads: that an engine may use.
      seconds: for each shape, precision and engine.
    """
    rates: dict[str, dict[str, float]] = {"float32": {}, "bfloat16": {}, "int8": {}}
    for precision, engine, prepare in (
        ("float32", "tensorflow", _tensorflow),
        ("bfloat16", "tensorflow", _tensorflow),
        ("float32", "onnxruntime", _onnxruntime),
        ("int8", "onnxruntime", _onnxruntime),
    ):
        rates[precision][engine] = max(
            2 * rows * inputs * outputs / _fastest(run, seconds)
            for rows, inputs, outputs in SHAPES
            for run in [prepare(rows, inputs, outputs, precision, threads)]
        )
    return rates


def best(rates: dict[str, dict[str, float]]) -> dict[str, float]:
    """The peak by precision: that of the better engine."""
    return {precision: max(found.values()) for precision, found in rates.items()}


def _fastest(run: Callable[[], Any], seconds: float) -> float:
    """Seconds of the fastest run; the first one, which prepares, does not count."""
    run()
    times = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def _tensorflow(
    rows: int, inputs: int, outputs: int, precision: str, threads: int
) -> Callable[[], Any]:
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # What has run already set them.
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    x, kernel = (
        tf.cast(tf.random.normal(shape), precision)
        for shape in ([rows, inputs], [inputs, outputs])
    )
    return lambda: tf.matmul(x, kernel).shape


def _onnxruntime(
    rows: int, inputs: int, outputs: int, precision: str, threads: int
) -> Callable[[], Any]:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(1)
    if precision == "int8":
        operation, types = "MatMulInteger", (TensorProto.UINT8, TensorProto.INT32)
        x = random.integers(256, size=[rows, inputs], dtype=np.uint8)
        kernel = random.integers(-127, 128, size=[inputs, outputs]).astype(np.int8)
    else:
        operation, types = "MatMul", (TensorProto.FLOAT, TensorProto.FLOAT)
        x = random.normal(size=[rows, inputs]).astype(np.float32)
        kernel = random.normal(size=[inputs, outputs]).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node(operation, ["x", "kernel"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", types[0], [rows, inputs])],
        [helper.make_tensor_value_info("y", types[1], [rows, outputs])],
        # Constant, as weights are: the runtime may rearrange them once.
        [numpy_helper.from_array(kernel, "kernel")],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"x": x})


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    print(
        json.dumps(
            measure(
                int(sys.argv[1]) if len(sys.argv) > 1 else THREADS,
                float(sys.argv[2]) if len(sys.argv) > 2 else SECONDS,
            )
        )
    )

"""Runs one kind of model as measure.py says: a JSON line in, one out.

Usage: python worker.py KIND THREADS, KIND as in names.py.
"""

from __future__ import annotations

import collections
import contextlib
import io
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from names import MODEL, ONNX, ONNX_INT8, SAVED_MODEL, TRAINING, TRAINING_BFLOAT16

from bert_export.config import FeaturesConfig, TrainConfig, read_json
from bert_export.export.saved_model import TENSORS_SIGNATURE
from bert_export.features.spec import MENTION_ID, FeatureSpec
from bert_export.modeling.bert_config import BertConfig
from bert_export.modeling.precision import bfloat16_session_config
from bert_export.training.model_fn import PROBABILITIES, ModelParams, model_fn

Arrays = dict[str, np.ndarray]
# Candidates of a generated mention, about WordNet's mean.
CANDIDATES = 6
# Operations that only call others, which have times of their own.
_CALLS = {"PartitionedCall", "StatefulPartitionedCall"}


class OnnxModel:
    """A model in ONNX Runtime."""

    def __init__(self, directory: Path, threads: int, profile: Path | None = None):
        """Loads DIRECTORY/model.onnx."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        self.session = onnxruntime.InferenceSession(
            str(directory / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def run(self, arrays: Arrays) -> None:
        """From arrays to arrays."""
        self.session.run([PROBABILITIES], arrays)


class SavedModel:
    """A SavedModel in TensorFlow, by its signature of tensors."""

    def __init__(self, directory: Path):
        """Loads it."""
        self._loaded = tf.saved_model.load(str(directory))
        self._signature = self._loaded.signatures[TENSORS_SIGNATURE]

    def run(self, arrays: Arrays) -> None:
        """From arrays to arrays."""
        tensors = {name: tf.constant(value) for name, value in arrays.items()}
        self._signature(**tensors)[PROBABILITIES].numpy()


class TrainingStep:
    """The Estimator's training graph; what the input_fn gives is fed."""

    def __init__(self, bert: BertConfig, features: FeaturesConfig, bfloat16: bool):
        """Builds it with random weights."""
        spec = FeatureSpec.from_config(features)
        sequences = {*spec.sequence_names}
        names = (*spec.sequence_names, *spec.span_fields, spec.label_ids, MENTION_ID)
        params = ModelParams(
            spec, bert, TrainConfig(), num_train_steps=10**6, pretrained=None
        )
        with tf.Graph().as_default():
            tf.compat.v1.set_random_seed(17)
            self._inputs = {
                name: tf.compat.v1.placeholder(
                    tf.int64, [None, None] if name in sequences else [None]
                )
                for name in names
            }
            given = dict(self._inputs)
            labels = {name: given.pop(name) for name in (spec.label_ids, MENTION_ID)}
            with contextlib.redirect_stdout(io.StringIO()):  # It tells of its weights.
                self._train = model_fn(
                    given, labels, tf.estimator.ModeKeys.TRAIN, {"model": params}
                ).train_op
            self._session = tf.compat.v1.Session(
                config=bfloat16_session_config() if bfloat16 else None
            )
            self._session.run(tf.compat.v1.global_variables_initializer())

    def run(self, arrays: Arrays) -> None:
        """One step."""
        self._session.run(
            self._train, {self._inputs[name]: arrays[name] for name in self._inputs}
        )


class Bench:
    """One model at a time, and generated requests for it."""

    def __init__(self, kind: str, threads: int):
        """Nothing is loaded yet."""
        self._kind = kind
        self._threads = threads

    def load(self, directory: str) -> None:
        """Takes a model in place of the one before.

        Args:
          directory: of one number of layers.
        """
        self._directory = Path(directory)
        self._bert = BertConfig(**read_json(self._directory / MODEL)["bert"])
        self._features = FeaturesConfig(
            max_seq_length=self._bert.max_position_embeddings
        )
        self._spec = FeatureSpec.from_config(self._features)
        self._model = self._open()

    def _open(self, profile: Path | None = None) -> Any:
        if self._kind in (ONNX, ONNX_INT8):
            return OnnxModel(self._directory / self._kind, self._threads, profile)
        if self._kind == SAVED_MODEL:
            return SavedModel(self._directory / self._kind)
        bfloat16 = self._kind == TRAINING_BFLOAT16
        return TrainingStep(self._bert, self._features, bfloat16)

    def time(
        self, requests: list[list[int]], seconds: float, least: int
    ) -> list[float]:
        """Milliseconds of runs, over the requests in turns.

        Args:
          requests: tokens of each pair, by request.
          seconds: to go on for.
          least: runs.
        """
        batches = [self._arrays(lengths) for lengths in requests]
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < least or time.perf_counter() < end:
            batch = batches[len(times) % len(batches)]
            began = time.perf_counter()
            self._model.run(batch)
            times.append((time.perf_counter() - began) * 1000)
        return times

    def profile(self, requests: list[list[int]]) -> dict[str, dict[str, float]]:
        """By operation: milliseconds and executions in a run, means over requests."""
        batches = [self._arrays(lengths) for lengths in requests]
        with tempfile.TemporaryDirectory() as directory:
            if self._kind in (ONNX, ONNX_INT8):
                model = self._open(Path(directory) / "profile")
                # What is seen for the first time takes longer.
                for batch in [*batches, *batches]:
                    model.run(batch)
                path = Path(model.session.end_profiling())
                operations = _read_onnx_profile(path, len(batches))
            else:
                for batch in batches:
                    self._model.run(batch)
                # Level 3 includes operations that TensorFlow takes for cheap.
                options = tf.profiler.experimental.ProfilerOptions(host_tracer_level=3)
                with tf.profiler.experimental.Profile(directory, options):
                    for batch in batches:
                        self._model.run(batch)
                (trace,) = Path(directory).rglob("*.xplane.pb")
                operations = _read_trace(trace)
        totals: dict[str, dict[str, float]] = collections.defaultdict(
            lambda: {"ms": 0.0, "count": 0.0}
        )
        for operation, milliseconds in operations:
            totals[operation]["ms"] += milliseconds / len(batches)
            totals[operation]["count"] += 1 / len(batches)
        return totals

    def _arrays(self, lengths: Sequence[int]) -> Arrays:
        """Random tokens of these lengths, padded to the longest."""
        spec = self._spec
        shape = len(lengths), max(lengths)
        real = np.arange(shape[1]) < np.array(lengths)[:, np.newaxis]
        random = np.random.default_rng(1)
        ids = random.integers(self._bert.vocab_size, size=shape)
        rows = np.arange(shape[0])
        arrays = {
            spec.input_ids: ids * real,
            spec.input_mask: real,
            spec.segment_ids: (np.arange(shape[1]) >= shape[1] // 2) & real,
            **{
                name: np.minimum(rows % 5 + 1, min(lengths) - 1)
                for name in spec.span_fields
            },
        }
        if self._kind in (TRAINING, TRAINING_BFLOAT16):
            arrays[spec.label_ids] = rows % CANDIDATES == 0
            arrays[MENTION_ID] = rows // CANDIDATES
        return {name: value.astype(np.int64) for name, value in arrays.items()}


def _read_onnx_profile(path: Path, skipped: int) -> list[tuple[str, float]]:
    """Operation and milliseconds of each kernel, after as many runs as are skipped."""
    events = json.loads(path.read_text("utf-8"))
    runs = sorted(event["ts"] for event in events if event["name"] == "model_run")
    return [
        (event["args"]["op_name"], event["dur"] / 1000)
        for event in events
        if event["cat"] == "Node"
        and event["name"].endswith("_kernel_time")
        and event["ts"] >= runs[skipped]
    ]


def _read_trace(path: Path) -> list[tuple[str, float]]:
    """Operation and milliseconds of each kernel on the CPU in a profiler's trace."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace.FromString(path.read_bytes())
    operations = []
    for plane in space.planes:
        if plane.name != "/host:CPU":
            continue
        for line in plane.lines:
            for event in line.events:
                name, colon, operation = plane.event_metadata[
                    event.metadata_id
                ].name.rpartition(":")
                # 'NAME:OPERATION'; C++ scopes have '::' in their names.
                if not colon or not operation or name.endswith(":"):
                    continue
                if operation.isidentifier() and operation not in _CALLS:
                    operations.append((operation, event.duration_ps / 1e9))
    return operations


def _cause(error: Exception) -> str:
    """One line; TensorFlow's messages are of many, with the cause after the node."""
    lines = [line for line in str(error).splitlines() if line] or [""]
    found = (
        after for node, after in itertools.pairwise(lines) if node.startswith("Node:")
    )
    return f"{type(error).__name__}: {next(found, lines[0])}"


def main() -> None:
    """Answers calls until the input ends."""
    bench = Bench(sys.argv[1], int(sys.argv[2]))
    tf.compat.v1.logging.set_verbosity(tf.compat.v1.logging.ERROR)
    print(json.dumps({"result": "ready"}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"result": getattr(bench, request["call"])(*request["args"])}
        except Exception as error:
            answer = {"error": f"{sys.argv[1]}: {_cause(error)}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

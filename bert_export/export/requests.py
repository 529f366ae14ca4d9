"""Real requests stored in an artifact: golden ones to replay, others to warm up."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from bert_export.errors import StageError
from bert_export.export import saved_model
from bert_export.features.spec import FeatureSpec
from bert_export.training.model_fn import PROBABILITIES, SCORE

GOLDEN_FILE = "golden_requests.json"
# The name that TF Serving looks for.
WARMUP_FILE = "tf_serving_warmup_requests"
_GOLDEN_FORMAT = 1
_GOLDEN_BATCH = 8


def record_golden(
    estimator: Any,
    checkpoint_path: str,
    examples: Sequence[bytes],
    spec: FeatureSpec,
) -> dict[str, Any]:
    """Records what the trained model itself predicts for some requests.

    `estimator.predict` runs over exactly these examples, in order and in small
    batches of mixed lengths: nothing of the export is involved.

    Args:
      estimator: the trained Estimator.
      checkpoint_path: the checkpoint's prefix, the one that is exported.
      examples: serialized tf.Examples of the spec.
      spec: the features.

    Returns:
      The golden requests: `{"format_version": 1, "requests": [{"example": base64,
      "probabilities": [float, float], "score": float}]}`. The floats are exact:
      a float32 survives the way through a Python float and JSON unchanged.

    Raises:
      StageError: there is no example, or a prediction is not finite.
    """
    serialized = list(examples)
    if not serialized:
        raise StageError("no example to record golden requests from; expected some")

    # TPUEstimator insists on passing params.
    def input_fn(params: object = None) -> tf.data.Dataset:
        del params
        return (
            tf.data.Dataset.from_tensor_slices(serialized)
            .batch(_GOLDEN_BATCH)
            .map(lambda batch: spec.parse(batch, spec.serving_parsing_spec()))
        )

    predictions = list(estimator.predict(input_fn, checkpoint_path=checkpoint_path))
    requests = []
    for number, (example, row) in enumerate(zip(serialized, predictions, strict=True)):
        probabilities = np.asarray(row[PROBABILITIES])
        score = np.asarray(row[SCORE])
        if not (np.isfinite(probabilities).all() and np.isfinite(score).all()):
            raise StageError(
                f"the trained model predicts {probabilities} with score {score} for "
                f"golden request {number}; the checkpoint {checkpoint_path} is not "
                "fit to be exported"
            )
        requests.append(
            {
                "example": base64.b64encode(example).decode("ascii"),
                "probabilities": [float(value) for value in probabilities],
                "score": float(score),
            }
        )
    return {"format_version": _GOLDEN_FORMAT, "requests": requests}


def write_golden(artifact_dir: str | os.PathLike[str], golden: dict[str, Any]) -> Path:
    """Writes golden requests into an artifact's `assets.extra`; returns the file."""
    path = Path(artifact_dir) / saved_model.ASSETS_EXTRA / GOLDEN_FILE
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
    return path


def write_warmup(
    artifact_dir: str | os.PathLike[str],
    model_name: str,
    examples: Sequence[bytes],
    spec: FeatureSpec,
) -> Path:
    """Writes the requests that TF Serving replays before a version takes traffic.

    Two requests: all examples as one batch for EXAMPLES_SIGNATURE, and the same
    batch as raw tensors for TENSORS_SIGNATURE. The format is TF Serving's: a TFRecord
    of `PredictionLog`
    (https://www.tensorflow.org/tfx/serving/saved_model_warmup).

    Args:
      artifact_dir: the artifact.
      model_name: the name in each request's `model_spec`.
      examples: serialized tf.Examples of the spec, at least one.
      spec: the features.

    Returns:
      The file.
    """
    path = Path(artifact_dir) / saved_model.ASSETS_EXTRA / WARMUP_FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in (
            (
                saved_model.EXAMPLES_SIGNATURE,
                {saved_model.EXAMPLES_INPUT: np.array(list(examples), dtype=object)},
            ),
            (saved_model.TENSORS_SIGNATURE, _dense_batch(examples, spec)),
        ):
            request = predict_pb2.PredictRequest()
            request.model_spec.name = model_name
            request.model_spec.signature_name = signature
            for name, value in inputs.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
            log = prediction_log_pb2.PredictionLog(
                predict_log=prediction_log_pb2.PredictLog(request=request)
            )
            writer.write(log.SerializeToString(deterministic=True))
    return path


def _dense_batch(examples: Sequence[bytes], spec: FeatureSpec) -> dict[str, np.ndarray]:
    """The features of a batch as arrays, sequences padded to the longest.

    Returns:
      int64 arrays by feature name: [batch, seq_length], span fields [batch].
    """
    features = [tf.train.Example.FromString(example).features for example in examples]
    batch = {}
    for name in saved_model.serving_input_names(spec):
        rows = [row.feature[name].int64_list.value for row in features]
        if name in spec.span_fields:
            batch[name] = np.array([row[0] for row in rows], dtype=np.int64)
        else:
            batch[name] = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
            for number, row in enumerate(rows):
                batch[name][number, : len(row)] = row
    return batch

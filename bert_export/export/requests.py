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

from bert_export.corpus.records import Mention
from bert_export.errors import StageError
from bert_export.export import saved_model, serving_model
from bert_export.features.pairs import PairEncoder
from bert_export.features.spec import FeatureSpec
from bert_export.training.model_fn import PROBABILITIES, SCORE

GOLDEN_FILE = "golden_requests.json"
GOLDEN_TEXTS_FILE = "golden_texts.json"
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


def record_golden_texts(
    estimator: Any,
    checkpoint_path: str,
    pairs: Sequence[tuple[Mention, str]],
    encoder: PairEncoder,
    spec: FeatureSpec,
) -> dict[str, Any]:
    """Records what the trained model predicts for mentions and candidates in text.

    They are prepared as the training data were, and go to `estimator.predict` as
    tf.Examples.

    Args:
      estimator: the trained Estimator.
      checkpoint_path: the checkpoint's prefix, the one that is exported.
      pairs: mentions, each with the text of a candidate.
      encoder: prepared the training data.
      spec: the features.

    Returns:
      `{"format_version": 1, "requests": [{"text": str, "mention_start": int,
      "mention_end": int, "candidate": str, "example": base64, "probabilities":
      [float, float], "score": float}]}`; offsets in code points.

    Raises:
      StageError: no pair can be encoded (those that cannot are left out, as they are
        of the training data), or a prediction is not finite.
    """
    mentions = [mention for mention, _ in pairs]
    encoded = encoder(
        tf.constant([mention.text for mention in mentions], tf.string),
        tf.constant([mention.start for mention in mentions], tf.int64),
        tf.constant([mention.end for mention in mentions], tf.int64),
        tf.constant([candidate for _, candidate in pairs], tf.string),
    )
    good = encoded.ok.numpy()
    examples = spec.serialize(encoded.features(spec)).numpy()[good].tolist()
    golden = record_golden(estimator, checkpoint_path, examples, spec)
    texts = [pair for pair, ok in zip(pairs, good, strict=True) if ok]
    golden["requests"] = [
        {
            "text": mention.text,
            "mention_start": mention.start,
            "mention_end": mention.end,
            "candidate": candidate,
            **request,
        }
        for (mention, candidate), request in zip(texts, golden["requests"], strict=True)
    ]
    return golden


def write_golden(artifact_dir: str | os.PathLike[str], golden: dict[str, Any]) -> Path:
    """Writes golden requests into an artifact's `assets.extra`; returns the file."""
    return _write_golden(artifact_dir, GOLDEN_FILE, golden)


def write_golden_texts(
    artifact_dir: str | os.PathLike[str], golden: dict[str, Any]
) -> Path:
    """Writes golden texts into an artifact's `assets.extra`; returns the file."""
    return _write_golden(artifact_dir, GOLDEN_TEXTS_FILE, golden)


def _write_golden(
    artifact_dir: str | os.PathLike[str], name: str, golden: dict[str, Any]
) -> Path:
    path = Path(artifact_dir) / saved_model.ASSETS_EXTRA / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
    return path


def write_warmup(
    artifact_dir: str | os.PathLike[str],
    model_name: str,
    examples: Sequence[bytes],
    spec: FeatureSpec,
    golden_texts: dict[str, Any] | None = None,
) -> Path:
    """Writes the requests that TF Serving replays before a version takes traffic.

    All examples as one batch for EXAMPLES_SIGNATURE, the same batch as raw tensors
    for TENSORS_SIGNATURE, and as many golden texts for TEXT_SIGNATURE. None for
    LINK_SIGNATURE: a server that batches refuses its scalars, and with a refused
    warm-up request the version. The format is TF Serving's: a TFRecord of
    `PredictionLog` (https://www.tensorflow.org/tfx/serving/saved_model_warmup).

    Args:
      artifact_dir: the artifact.
      model_name: the name in each request's `model_spec`.
      examples: serialized tf.Examples of the spec, at least one.
      spec: the features.
      golden_texts: of `record_golden_texts`, for a serving_model.

    Returns:
      The file.
    """
    batches = {
        saved_model.EXAMPLES_SIGNATURE: {
            saved_model.EXAMPLES_INPUT: np.array(list(examples), dtype=object)
        },
        saved_model.TENSORS_SIGNATURE: dense_batch(examples, spec),
    }
    if golden_texts is not None:
        texts = golden_texts["requests"][: len(examples)]
        batches[serving_model.TEXT_SIGNATURE] = {
            "text": np.array([text["text"] for text in texts], dtype=object),
            "mention_start": np.array([text["mention_start"] for text in texts]),
            "mention_end": np.array([text["mention_end"] for text in texts]),
            "candidate": np.array([text["candidate"] for text in texts], dtype=object),
        }
    path = Path(artifact_dir) / saved_model.ASSETS_EXTRA / WARMUP_FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in batches.items():
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


def dense_batch(examples: Sequence[bytes], spec: FeatureSpec) -> dict[str, np.ndarray]:
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

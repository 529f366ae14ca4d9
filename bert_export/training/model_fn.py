"""The Estimator's model_fn: one linker, three modes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from bert_export.config import TrainConfig
from bert_export.features.spec import MENTION_ID, FeatureSpec
from bert_export.modeling.bert_config import BertConfig
from bert_export.modeling.linker import Linker
from bert_export.modeling.optimizer import create_train_op
from bert_export.modeling.weights import initialize
from bert_export.training import loss as losses
from bert_export.training.halves import compute_in_halves
from bert_export.training.multi_worker import add_up

# The model's outputs, by the names that every artifact keeps.
PROBABILITIES = "probabilities"
SCORE = "score"


@dataclasses.dataclass(frozen=True)
class ModelParams:
    """What the model_fn needs to know beyond features and mode."""

    spec: FeatureSpec
    bert: BertConfig
    train: TrainConfig
    num_train_steps: int
    # Prefix of the checkpoint that the first step starts from; None: random weights.
    pretrained: str | None


def model_fn(
    features: dict[str, tf.Tensor],
    labels: dict[str, tf.Tensor] | None,
    mode: str,
    params: dict[str, Any],
) -> tf.estimator.EstimatorSpec | tf.compat.v1.estimator.tpu.TPUEstimatorSpec:
    """Builds the graph of a mode.

    Args:
      features: the spec's sequences [pairs, seq_length] and span positions [pairs],
        int64.
      labels: label_ids and mention_id, [pairs] int64; None when predicting.
      mode: a `tf.estimator.ModeKeys`.
      params: {"model": ModelParams}; TPUEstimator adds its batch_size.

    Returns:
      The mode's spec. Predictions are `probabilities` [pairs, 2] (no link, link) and
      `score` [pairs], the log-odds of a link; both float32.
    """
    model: ModelParams = params["model"]
    spec = model.spec
    training = mode == tf.estimator.ModeKeys.TRAIN
    linker = Linker(model.bert, num_span_fields=len(spec.span_fields))
    logits = compute_logits_in_halves(linker, spec, features, training)
    if mode == tf.estimator.ModeKeys.PREDICT:
        predictions = to_predictions(logits)
        return _estimator_spec(
            model,
            mode=mode,
            predictions=predictions,
            export_outputs={
                tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY: (
                    tf.estimator.export.PredictOutput(predictions)
                )
            },
        )

    assert labels is not None
    scores = losses.link_scores(logits)
    label_ids, mention_ids = labels[spec.label_ids], labels[MENTION_ID]
    loss = losses.pointwise_loss(logits, label_ids, add_up)
    if model.train.loss == "listwise":
        loss *= model.train.pointwise_weight
        loss += losses.listwise_loss(scores, label_ids, mention_ids, add_up)
    hits, weights = losses.top1_hits(scores, label_ids, mention_ids)
    if not training:

        def metric_fn(hits: tf.Tensor, weights: tf.Tensor) -> dict[str, Any]:
            return {"link_accuracy": tf.compat.v1.metrics.mean(hits, weights)}

        return _estimator_spec(
            model, mode=mode, loss=loss, metrics=(metric_fn, [hits, weights])
        )

    if model.pretrained is None:
        print("weights: random, or those of the checkpoint that training goes on from")
    else:
        report = initialize(model.pretrained, tf.compat.v1.trainable_variables())
        print(f"weights: {model.pretrained}: {report}")
    tf.compat.v1.summary.scalar(
        "link_accuracy",
        tf.math.divide_no_nan(tf.reduce_sum(hits * weights), tf.reduce_sum(weights)),
    )
    train_op = create_train_op(
        loss,
        learning_rate=model.train.learning_rate,
        num_train_steps=model.num_train_steps,
        num_warmup_steps=round(model.train.warmup_fraction * model.num_train_steps),
        weight_decay=model.train.weight_decay,
        clip_norm=model.train.clip_norm,
        add_up=add_up,
    )
    return _estimator_spec(model, mode=mode, loss=add_up(loss), train_op=train_op)


def compute_logits(
    linker: Linker,
    spec: FeatureSpec,
    features: Mapping[str, tf.Tensor],
    training: bool = False,
    padded: bool = False,
) -> tf.Tensor:
    """Runs the linker on named features.

    Args:
      linker: the model.
      spec: names its features.
      features: sequences [pairs, seq_length] and span positions [pairs], integers.
      training: whether dropout applies.
      padded: compute padding, too (see `BertEncoder`).

    Returns:
      Logits [pairs, 2] float32: not this candidate, this candidate.
    """
    spans = [features[name] for name in spec.span_fields]
    return linker(
        features[spec.input_ids],
        features[spec.input_mask],
        features[spec.segment_ids],
        tf.stack(spans, axis=1) if spans else None,
        training=training,
        padded=padded,
    )


def compute_logits_in_halves(
    linker: Linker,
    spec: FeatureSpec,
    features: Mapping[str, tf.Tensor],
    training: bool = False,
) -> tf.Tensor:
    """`compute_logits` where TensorFlow runs it, by two cores or more."""
    return compute_in_halves(
        lambda rows: compute_logits(linker, spec, rows, training),
        {name: features[name] for name in (*spec.sequence_names, *spec.span_fields)},
        features[spec.input_mask],
    )


def to_predictions(logits: tf.Tensor) -> dict[str, tf.Tensor]:
    """What a model answers: `probabilities` [pairs, 2] and `score` [pairs] float32."""
    return {PROBABILITIES: tf.nn.softmax(logits), SCORE: losses.link_scores(logits)}


def _estimator_spec(model: ModelParams, metrics: Any = None, **kwargs: Any) -> Any:
    if model.train.use_tpu:
        return tf.compat.v1.estimator.tpu.TPUEstimatorSpec(
            eval_metrics=metrics, **kwargs
        )
    if metrics is not None:
        metric_fn, arguments = metrics
        kwargs["eval_metric_ops"] = metric_fn(*arguments)
    return tf.estimator.EstimatorSpec(**kwargs)

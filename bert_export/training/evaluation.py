"""Scores a split with `estimator.predict` and measures it."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from tabulate import tabulate
from tqdm import tqdm

from bert_export.errors import UserError
from bert_export.features.records import RecordSet
from bert_export.features.spec import FeatureSpec
from bert_export.training.input_fn import ordered_input_fn
from bert_export.training.metrics import Ranking, choose_nil_threshold, link_metrics
from bert_export.training.model_fn import PROBABILITIES, SCORE


def rank_split(
    estimator: tf.compat.v1.estimator.Estimator,
    checkpoint: str,
    records: RecordSet,
    spec: FeatureSpec,
    mentions_per_batch: int,
) -> Ranking:
    """Scores all pairs of a split.

    Args:
      estimator: of the model.
      checkpoint: prefix of the weights to use.
      records: the split.
      spec: its features.
      mentions_per_batch: whole mentions a batch.

    Returns:
      The scores beside the records' gold.
    """
    scores = np.empty(records.num_records, np.float64)
    probabilities = np.empty(records.num_records, np.float64)
    predictions = estimator.predict(
        ordered_input_fn(records, spec, mentions_per_batch), checkpoint_path=checkpoint
    )
    for row, prediction in enumerate(
        tqdm(
            predictions,
            total=records.num_records,
            unit="pair",
            desc=f"evaluate {records.split}",
            disable=None,
        )
    ):
        scores[row] = prediction[SCORE]
        probabilities[row] = prediction[PROBABILITIES][1]
    return Ranking(
        scores,
        probabilities,
        records.mention_sizes,
        records.gold,
        records.no_candidates["nil"],
        records.no_candidates["missed"],
    )


def evaluate(
    estimator: tf.compat.v1.estimator.Estimator,
    checkpoint: str,
    dev: RecordSet,
    reported: RecordSet,
    spec: FeatureSpec,
    mentions_per_batch: int,
) -> dict[str, Any]:
    """Measures `reported`, with the NIL threshold chosen on `dev`.

    Args:
      estimator: of the model.
      checkpoint: prefix of the weights to use.
      dev: the split to choose the threshold on; only scored if it has NIL mentions.
      reported: the split to measure.
      spec: the features of both.
      mentions_per_batch: whole mentions a batch.

    Returns:
      The figures of `link_metrics`, and the split's name.

    Raises:
      UserError: the split has no mention with candidates.
    """
    if not reported.num_mentions:
        raise UserError(
            f"the {reported.split} split has no mention with candidates to evaluate; "
            f"set config.corpus.{reported.split}_mentions or "
            f"config.corpus.{reported.split}_fraction, or config.eval.split"
        )
    ranking = rank_split(estimator, checkpoint, reported, spec, mentions_per_batch)
    threshold = None
    if dev.num_mentions and (dev.gold < 0).any():
        dev_ranking = (
            ranking
            if dev.split == reported.split
            else rank_split(estimator, checkpoint, dev, spec, mentions_per_batch)
        )
        threshold = choose_nil_threshold(dev_ranking)
    return {"split": reported.split, **link_metrics(ranking, threshold)}


def metrics_table(metrics: dict[str, Any]) -> str:
    """The figures of `evaluate` as a table for people, in percent."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    baselines = metrics["baselines"]
    rows = [
        [
            f"all {metrics['split']} mentions",
            metrics["mentions"],
            percent(metrics["link_accuracy"]),
            percent(baselines["first_candidate"]),
            percent(baselines["random"]),
        ]
    ]
    for group in metrics["by_candidates"]:
        rows.append(
            [
                f"with {group['candidates']} candidates",
                group["mentions"],
                percent(group["link_accuracy"]),
                percent(group["first_candidate"]),
                percent(group["random"]),
            ]
        )
    table = tabulate(
        rows,
        headers=["", "mentions", "link accuracy %", "first candidate %", "random %"],
        disable_numparse=True,
        colalign=("left", "right", "right", "right", "right"),
    )
    lines = [
        f"MRR {percent(metrics['mrr'])} %, "
        f"ROC-AUC of pairs {percent(metrics['roc_auc'])} %, "
        f"candidate recall {percent(metrics['candidate_recall'])} %"
    ]
    if nil := metrics["nil"]:
        lines.append(
            f"NIL at a threshold of {nil['threshold']:.3f}: "
            f"precision {percent(nil['precision'])} %, "
            f"recall {percent(nil['recall'])} %, {nil['mentions']} mentions"
        )
    return "\n".join([table, "", *lines])

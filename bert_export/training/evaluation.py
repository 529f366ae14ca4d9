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
from bert_export.training.input_fn import chosen_mentions, ordered_input_fn
from bert_export.training.metrics import Ranking, choose_nil_threshold, link_metrics
from bert_export.training.model_fn import PROBABILITIES, SCORE


def rank_split(
    estimator: tf.compat.v1.estimator.Estimator,
    checkpoint: str,
    records: RecordSet,
    spec: FeatureSpec,
    mentions_per_batch: int,
    max_mentions: int | None = None,
) -> Ranking:
    """Scores the pairs of a split.

    Args:
      estimator: of the model.
      checkpoint: prefix of the weights to use.
      records: the split.
      spec: its features.
      mentions_per_batch: whole mentions a batch.
      max_mentions: only so many, spread over the split; None for all.

    Returns:
      The scores beside the records' gold.
    """
    chosen = chosen_mentions(records, max_mentions)
    sizes = records.mention_sizes[chosen]
    scores = np.empty(sizes.sum(), np.float64)
    probabilities = np.empty(sizes.sum(), np.float64)
    predictions = estimator.predict(
        ordered_input_fn(records, spec, mentions_per_batch, max_mentions),
        checkpoint_path=checkpoint,
    )
    for row, prediction in enumerate(
        tqdm(
            predictions,
            total=len(scores),
            unit="pair",
            desc=f"evaluate {records.split}",
            disable=None,
        )
    ):
        scores[row] = prediction[SCORE]
        probabilities[row] = prediction[PROBABILITIES][1]
    # Mentions without candidates have no records to choose from.
    share = len(chosen) / max(1, records.num_mentions)
    return Ranking(
        scores,
        probabilities,
        sizes,
        records.gold[chosen],
        round(share * records.no_candidates["nil"]),
        round(share * records.no_candidates["missed"]),
    )


def evaluate(
    estimator: tf.compat.v1.estimator.Estimator,
    checkpoint: str,
    dev: RecordSet,
    reported: RecordSet,
    spec: FeatureSpec,
    mentions_per_batch: int,
    max_mentions: int | None = None,
) -> dict[str, Any]:
    """Measures `reported`, with the NIL threshold chosen on `dev`.

    Args:
      estimator: of the model.
      checkpoint: prefix of the weights to use.
      dev: the split to choose the threshold on; only scored if it has NIL mentions.
      reported: the split to measure.
      spec: the features of both.
      mentions_per_batch: whole mentions a batch.
      max_mentions: only so many of each split; None for all.

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

    def rank(records: RecordSet) -> Ranking:
        return rank_split(
            estimator, checkpoint, records, spec, mentions_per_batch, max_mentions
        )

    ranking = rank(reported)
    threshold = None
    if dev.num_mentions and (dev.gold < 0).any():
        same = dev.split == reported.split
        threshold = choose_nil_threshold(ranking if same else rank(dev))
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
        number = group["candidates"]
        rows.append(
            [
                f"with {number} candidate{'s' if number != '1' else ''}",
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

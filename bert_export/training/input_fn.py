"""Batches of whole mentions out of the prepared TFRecords."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from bert_export.features.records import RecordSet
from bert_export.features.spec import MENTION_ID, FeatureSpec

# TPUEstimator insists on passing params; nothing here depends on them.
InputFn = Callable[..., tf.data.Dataset]

# Records read at a time before they are cut into mentions.
_READ_BATCH = 1024


def train_input_fn(
    records: RecordSet,
    spec: FeatureSpec,
    mentions_per_batch: int,
    shuffle_mentions: int,
    seed: int,
    first_step: int,
    worker: int = 0,
    num_workers: int = 1,
) -> InputFn:
    """Endless shuffled batches; the order is a function of the seed alone.

    Args:
      records: the training split.
      spec: the features to parse.
      mentions_per_batch: whole mentions a batch; their candidates are its rows.
      shuffle_mentions: mentions held in memory, as serialized records, to shuffle.
      seed: of the shuffling, which differs from epoch to epoch.
      first_step: batches to leave out, so that a run that resumes at this step sees
        the batches that the interrupted run would have seen.
      worker: whose part of each batch to give, from 0.
      num_workers: parts that a batch is cut into.

    Returns:
      An input_fn of (features, labels): sequences [pairs, longest in batch] int64,
      everything else [pairs] int64.
    """

    def input_fn(params: object = None) -> tf.data.Dataset:
        del params
        mentions = _mentions(records).shuffle(shuffle_mentions, seed).repeat()
        batches = mentions.ragged_batch(mentions_per_batch).skip(first_step)
        if num_workers > 1:
            first, end = (
                part * mentions_per_batch // num_workers
                for part in (worker, worker + 1)
            )
            batches = batches.map(lambda batch: batch[first:end])
        return _parse(batches, spec)

    return input_fn


def ordered_input_fn(
    records: RecordSet,
    spec: FeatureSpec,
    mentions_per_batch: int,
    max_mentions: int | None = None,
) -> InputFn:
    """One pass in the order of the records, for evaluation and prediction.

    Args:
      records: the split.
      spec: the features to parse.
      mentions_per_batch: whole mentions a batch.
      max_mentions: only so many, spread over the split; None for all.

    Returns:
      An input_fn with the elements of `train_input_fn`.
    """

    def input_fn(params: object = None) -> tf.data.Dataset:
        del params
        mentions = _mentions(records)
        if max_mentions is not None:
            is_chosen = np.zeros(records.num_mentions, bool)
            is_chosen[chosen_mentions(records, max_mentions)] = True
            flags = tf.data.Dataset.from_tensor_slices(is_chosen)
            mentions = (
                tf.data.Dataset.zip((flags, mentions))
                .filter(lambda chosen, _: chosen)
                .map(lambda _, mention: mention)
            )
        return _parse(mentions.ragged_batch(mentions_per_batch), spec)

    return input_fn


def chosen_mentions(records: RecordSet, max_mentions: int | None) -> np.ndarray:
    """Which mentions `ordered_input_fn` takes.

    A corpus may be sorted, so its first mentions would not stand for all.

    Args:
      records: the split.
      max_mentions: at most so many; None for all.

    Returns:
      [chosen mentions] int: evenly spaced indices, from 0.
    """
    count = min(records.num_mentions, max_mentions or records.num_mentions)
    return np.arange(count) * records.num_mentions // max(count, 1)


def _mentions(records: RecordSet) -> tf.data.Dataset:
    """One element a mention: its serialized pairs, [candidates] string."""
    pairs = tf.data.TFRecordDataset([str(file) for file in records.files])
    return pairs.batch(_READ_BATCH).rebatch(records.mention_sizes)


def _parse(batches: tf.data.Dataset, spec: FeatureSpec) -> tf.data.Dataset:
    parsing_spec = spec.training_parsing_spec()

    def parse(
        mentions: tf.RaggedTensor,
    ) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        features = spec.parse(mentions.flat_values, parsing_spec)
        labels = {name: features.pop(name) for name in (spec.label_ids, MENTION_ID)}
        return features, labels

    options = tf.data.Options()
    options.deterministic = True
    parsed = batches.map(parse, num_parallel_calls=1)
    return parsed.prefetch(tf.data.AUTOTUNE).with_options(options)

"""Batches: whole mentions, each once an epoch, in an order that a seed decides."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf

from bert_export.features.records import spread_examples
from bert_export.features.spec import MENTION_ID, FeatureSpec
from bert_export.training.input_fn import (
    chosen_mentions,
    ordered_input_fn,
    train_input_fn,
)
from tests.training import tiny_task

SPEC = FeatureSpec.from_config(tiny_task.FEATURES)
# More records than are read at a time, and an epoch that is no multiple of a batch.
MENTIONS = 430
BATCH = 8


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    written = tiny_task.write(tmp_path_factory.mktemp("records"), "train", MENTIONS)
    assert len(written.files) == 3
    assert written.num_records > 1024
    return written


def batches(input_fn, count):
    return list(itertools.islice(input_fn().as_numpy_iterator(), count))


def train_order(records, count, seed=17, first_step=0, shuffle=100_000):
    """[count] lists: the mention ids of each batch, one an id."""
    input_fn = train_input_fn(records, SPEC, BATCH, shuffle, seed, first_step)
    order = []
    for _, labels in batches(input_fn, count):
        ids = labels[MENTION_ID]
        runs = [(key, len(list(run))) for key, run in itertools.groupby(ids)]
        # Whole mentions: every candidate of each is there, side by side.
        assert [size for _, size in runs] == [
            records.mention_sizes[key] for key, _ in runs
        ]
        order.append([int(key) for key, _ in runs])
    return order


def epochs(order, number):
    flat = list(itertools.chain.from_iterable(order))
    return [flat[n * MENTIONS : (n + 1) * MENTIONS] for n in range(number)]


@pytest.mark.parametrize("shuffle", [100_000, 50, 1])
def test_every_mention_comes_once_an_epoch(records, shuffle):
    order = train_order(records, 110, shuffle=shuffle)
    assert all(len(batch) == BATCH for batch in order)
    first, second = epochs(order, 2)
    assert sorted(first) == sorted(second) == list(range(MENTIONS))
    if shuffle > 1:
        assert first != sorted(first)
        assert first != second


def test_order_is_decided_by_the_seed(records):
    order = train_order(records, 60)
    assert train_order(records, 60) == order
    assert train_order(records, 60, seed=18) != order


@pytest.mark.parametrize("first_step", [1, 54, 100])
def test_first_step_skips_exactly_the_batches_before_it(records, first_step):
    order = train_order(records, 120)
    resumed = train_order(records, 120 - first_step, first_step=first_step)
    assert resumed == order[first_step:]


def test_an_estimators_graph_has_the_same_order(records):
    input_fn = train_input_fn(records, SPEC, BATCH, 100_000, 17, first_step=2)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.compat.v1.set_random_seed(17)
        iterator = tf.compat.v1.data.make_one_shot_iterator(input_fn(params={}))
        _, labels = iterator.get_next()
        found = [session.run(labels[MENTION_ID]) for _ in range(60)]
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.compat.v1.set_random_seed(17)
        iterator = tf.compat.v1.data.make_one_shot_iterator(
            train_input_fn(records, SPEC, BATCH, 100_000, 17, first_step=12)()
        )
        _, labels = iterator.get_next()
        resumed = [session.run(labels[MENTION_ID]) for _ in range(50)]
    for one, other in zip(found[10:], resumed, strict=True):
        np.testing.assert_array_equal(one, other)


def test_ordered_is_one_pass_over_the_records_as_they_are(records):
    rows = [tf.train.Example.FromString(e) for e in spread_examples(records, 10**6)]
    assert len(rows) == records.num_records
    position = 0
    for features, labels in batches(ordered_input_fn(records, SPEC, 7), 10**6):
        together = features | labels
        assert set(together) == {*SPEC.parsing_spec(), MENTION_ID}
        lengths = []
        for row in range(len(labels[SPEC.label_ids])):
            example = rows[position].features.feature
            position += 1
            for name, value in together.items():
                expected = list(example[name].int64_list.value)
                if name in SPEC.sequence_names:
                    lengths.append(len(expected))
                    expected += [0] * (value.shape[1] - len(expected))
                    assert value[row].tolist() == expected
                else:
                    assert [value[row]] == expected
        # Padded to the longest row of the batch and no further.
        assert features[SPEC.input_ids].shape[1] == max(lengths)
    assert position == len(rows)


def test_batches_are_int64_and_know_their_rank(records):
    features, labels = train_input_fn(records, SPEC, BATCH, 10, 0, 0)().element_spec
    for name, spec in (features | labels).items():
        assert spec.dtype == tf.int64
        assert spec.shape.rank == (2 if name in SPEC.sequence_names else 1)


@pytest.mark.parametrize("wanted", [1, 3, 100, 300, MENTIONS, 5000, None])
def test_max_mentions_are_spread_over_the_split(records, wanted):
    chosen = chosen_mentions(records, wanted)
    assert len(chosen) == min(wanted or MENTIONS, MENTIONS)
    if wanted == 100:
        # Up to the end, or nearly.
        assert chosen[-1] > 0.9 * MENTIONS
    found = [
        labels[MENTION_ID]
        for _, labels in batches(ordered_input_fn(records, SPEC, 16, wanted), 10**6)
    ]
    ids = np.concatenate(found)
    np.testing.assert_array_equal(ids, np.repeat(chosen, records.mention_sizes[chosen]))


def test_a_plain_pair_classifier_has_no_span_features(tmp_path):
    records = tiny_task.write(tmp_path, "dev", 5, features=tiny_task.NO_SPANS)
    spec = FeatureSpec.from_config(tiny_task.NO_SPANS)
    ((features, labels),) = batches(ordered_input_fn(records, spec, 8), 2)
    assert set(features) == set(spec.sequence_names)
    assert set(labels) == {spec.label_ids, MENTION_ID}

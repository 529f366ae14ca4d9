from __future__ import annotations

from typing import Any

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from bert_export.config import FeaturesConfig
from bert_export.features.spec import MENTION_ID, FeatureSpec

SPEC = FeatureSpec(max_seq_length=8)
INVALID = tf.errors.InvalidArgumentError


def row(length: int = 5, **changes: Any) -> dict[str, Any]:
    """A valid row of SPEC; a change to None leaves a feature out."""
    values: dict[str, Any] = {
        "input_ids": list(range(1, length + 1)),
        "input_mask": [1] * length,
        "segment_ids": [0] * (length - 2) + [1] * 2,
        "start_ps": 1,
        "end_ps": 2,
        "label_ids": 1,
    }
    values |= changes
    return {name: value for name, value in values.items() if value is not None}


def parse_and_check(serialized: Any, spec: FeatureSpec = SPEC) -> Any:
    serialized = tf.convert_to_tensor(serialized, tf.string)
    return spec.check(spec.parse(serialized, spec.serving_parsing_spec()))


def dense(rows: list[dict[str, Any]]) -> dict[str, tf.Tensor]:
    return {
        name: tf.constant([row[name] for row in rows], tf.int64) for name in rows[0]
    }


def test_parse_trims_to_the_longest_row():
    rows = [row(5), row(3, end_ps=1)]
    features = parse_and_check([SPEC.encode_example(values) for values in rows])
    assert list(features) == [*SPEC.sequence_names, *SPEC.scalar_names]
    assert all(tensor.dtype == tf.int64 for tensor in features.values())
    np.testing.assert_array_equal(
        features["input_ids"], [[1, 2, 3, 4, 5], [1, 2, 3, 0, 0]]
    )
    np.testing.assert_array_equal(
        features["input_mask"], [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    )
    np.testing.assert_array_equal(features["end_ps"], [2, 1])


def test_padded_examples_parse_to_the_same_but_for_the_padding():
    values = row(5)
    plain = parse_and_check([SPEC.encode_example(values)])
    padded = parse_and_check([SPEC.encode_example(values, padded=True)])
    assert padded["input_ids"].shape == (1, 8)
    for name in SPEC.sequence_names:
        np.testing.assert_array_equal(padded[name][:, :5], plain[name])
        np.testing.assert_array_equal(padded[name][:, 5:], [[0, 0, 0]])
    mixed = [SPEC.encode_example(values, padded=padded) for padded in (True, False)]
    features = parse_and_check(mixed)
    np.testing.assert_array_equal(features["input_ids"][0], features["input_ids"][1])


def test_no_rows():
    features = parse_and_check([])
    assert features["input_ids"].shape == (0, 0)
    assert features["start_ps"].shape == (0,)


def test_label_is_optional_for_serving_only():
    unlabelled = SPEC.encode_example(row(label_ids=None))
    assert parse_and_check([unlabelled])["label_ids"].numpy() == [0]
    with pytest.raises(INVALID, match="label_ids"):
        SPEC.parse(tf.constant([unlabelled]), SPEC.parsing_spec())


def test_training_records_carry_the_mention():
    serialized = SPEC.encode_example(row() | {MENTION_ID: 7})
    features = SPEC.parse(tf.constant([serialized]), SPEC.training_parsing_spec())
    assert features[MENTION_ID].numpy() == [7]
    with pytest.raises(INVALID, match=MENTION_ID):
        SPEC.parse(
            tf.constant([SPEC.encode_example(row())]), SPEC.training_parsing_spec()
        )


def floats(name: str) -> bytes:
    example = tf.train.Example.FromString(SPEC.encode_example(row(**{name: None})))
    example.features.feature[name].float_list.value.extend([1.0] * 5)
    return example.SerializeToString()


@pytest.fixture(scope="module")
def parsing_graph() -> Any:
    signature = [tf.TensorSpec([None], tf.string)]
    return tf.function(parse_and_check, input_signature=signature)


@pytest.mark.parametrize(
    ("serialized", "message"),
    [
        (b"garbage", "Could not parse example"),
        (b"", "is required but could not be found"),
        (SPEC.encode_example(row(input_ids=None)), "input_ids: missing or empty"),
        (SPEC.encode_example(row(input_mask=None)), "input_mask: missing or empty"),
        (SPEC.encode_example(row(segment_ids=[])), "segment_ids: missing or empty"),
        (SPEC.encode_example(row(start_ps=None)), "start_ps"),
        (SPEC.encode_example(row(start_ps=[1, 1])), "start_ps"),
        (SPEC.encode_example(row(input_mask=[1] * 4)), "input_mask: not as long"),
        (SPEC.encode_example(row(segment_ids=[0] * 6)), "segment_ids: not as long"),
        (SPEC.encode_example(row(9)), "input_ids: expected at most 8"),
        (floats("input_ids"), "input_ids"),
        (floats("end_ps"), "end_ps"),
        (SPEC.encode_example(row(start_ps=-1)), "start_ps: expected the index"),
        (SPEC.encode_example(row(end_ps=5)), "end_ps: expected the index"),
        (SPEC.encode_example(row(end_ps=2**40)), "end_ps: expected the index"),
        (
            SPEC.encode_example(row(end_ps=5), padded=True),
            "end_ps: expected the index of a real token",
        ),
        (SPEC.encode_example(row(start_ps=3)), "start_ps: expected at most end_ps"),
        (
            SPEC.encode_example(row(input_mask=[1, 1, 2, 1, 1])),
            "input_mask: expected 0 and 1",
        ),
    ],
)
def test_malformed_examples(parsing_graph, serialized, message):
    good = SPEC.encode_example(row())
    for request in ([serialized], [good, serialized], [serialized, good]):
        with pytest.raises(INVALID, match=message):
            parsing_graph(tf.constant(request))
        # The next request is served.
        served = parsing_graph(tf.constant([good]))
        np.testing.assert_array_equal(served["start_ps"], [1])


def test_checks_are_upstream_of_every_feature_in_a_graph_of_tensorflow_1():
    bad = {
        "parse": SPEC.encode_example(row(segment_ids=[0] * 4)),
        "check": SPEC.encode_example(row(start_ps=4)),
    }
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        serialized = tf.compat.v1.placeholder(tf.string, [None])
        features = parse_and_check(serialized)
        for example in bad.values():
            for tensor in features.values():
                with pytest.raises(INVALID):
                    session.run(tensor, {serialized: [example]})
        good = [SPEC.encode_example(row())]
        assert session.run(features["end_ps"], {serialized: good}) == [2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_mask": [[1, 1, 1]]}, "input_mask: expected the shape of input_ids"),
        ({"segment_ids": [[0] * 5] * 2}, "segment_ids: expected the shape"),
        ({"start_ps": [1, 1]}, "start_ps: expected one value a row"),
        ({"label_ids": []}, "label_ids: expected one value a row"),
        ({"input_ids": [[1] * 9]}, "input_ids: expected at most 8"),
        ({"start_ps": [9]}, "start_ps: expected the index of a real token"),
    ],
)
def test_malformed_tensors(changes, message):
    features = dense([row()]) | {
        name: tf.constant(value, tf.int64) for name, value in changes.items()
    }
    graph = tf.function(
        SPEC.check,
        input_signature=[
            {
                name: tf.TensorSpec([None] * tensor.shape.rank, tf.int64)
                for name, tensor in features.items()
            }
        ],
    )
    with pytest.raises(INVALID, match=message):
        graph(features)
    graph(dense([row()]))


def test_rows_of_batch_padding_are_exempt():
    padding = {
        "input_ids": [0] * 5,
        "input_mask": [0] * 5,
        "segment_ids": [0] * 5,
        "start_ps": 400,
        "end_ps": -3,
        "label_ids": 0,
    }
    features = SPEC.check(dense([row(), padding]))
    # Whatever such a row says, the model gathers inside the tensors.
    np.testing.assert_array_equal(features["start_ps"], [1, 0])
    np.testing.assert_array_equal(features["end_ps"], [2, 0])


def test_holes_in_the_mask_are_no_place_for_a_mention():
    hole = row(input_mask=[1, 0, 1, 1, 1])
    with pytest.raises(INVALID, match="start_ps: expected the index of a real token"):
        SPEC.check(dense([hole]))
    SPEC.check(dense([hole | {"start_ps": 2}]))


def test_check_passes_other_features_and_a_missing_label():
    features = dense([row(label_ids=None) | {"extra": 3}])
    checked = SPEC.check(features)
    assert checked.keys() == features.keys()
    assert checked["extra"].numpy() == [3]


def test_plain_pair_classifier_with_names_of_its_own():
    config = FeaturesConfig(
        max_seq_length=16,
        input_ids="tokens",
        input_mask="mask",
        segment_ids="types",
        span_fields=(),
        label_ids="is_match",
    )
    spec = FeatureSpec.from_config(config)
    assert list(spec.parsing_spec()) == ["tokens", "mask", "types", "is_match"]
    values = {"tokens": [1, 2, 3], "mask": [1, 1, 1], "types": [0, 0, 1], "is_match": 1}
    features = parse_and_check([spec.encode_example(values)], spec)
    assert set(features) == set(values)
    np.testing.assert_array_equal(features["tokens"], [[1, 2, 3]])
    with pytest.raises(INVALID, match="types: missing or empty"):
        parse_and_check([spec.encode_example(values | {"types": []})], spec)


int64s = st.integers(-(2**63), 2**63 - 1)


@hypothesis.settings(deadline=None, max_examples=100)
@hypothesis.given(
    st.lists(st.tuples(st.lists(int64s, max_size=200), int64s), min_size=1, max_size=8)
)
def test_serialize_writes_tf_examples(rows):
    features = {
        "input_ids": tf.ragged.constant([ids for ids, _ in rows], tf.int64, 1),
        "start_ps": tf.constant([scalar for _, scalar in rows], tf.int64),
    }
    for serialized, (ids, scalar) in zip(SPEC.serialize(features).numpy(), rows):
        expected = SPEC.encode_example({"input_ids": ids, "start_ps": scalar})
        parsed = tf.train.Example.FromString(serialized)
        assert list(parsed.features.feature["input_ids"].int64_list.value) == ids
        assert parsed == tf.train.Example.FromString(expected)

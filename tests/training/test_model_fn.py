"""The model_fn in its three modes, in an Estimator and in a TPUEstimator."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from bert_export.features.spec import FeatureSpec
from bert_export.training.estimator import create_estimator, newest_checkpoint
from bert_export.training.evaluation import rank_split
from bert_export.training.input_fn import ordered_input_fn, train_input_fn
from bert_export.training.metrics import link_metrics
from tests.training import tiny_task

FEATURES = {"spans": tiny_task.FEATURES, "no_spans": tiny_task.NO_SPANS}
STEPS = 3


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    directory = tmp_path_factory.mktemp("records")
    return {
        name: tiny_task.write(directory / name, "train", 60, nil=0.2, features=features)
        for name, features in FEATURES.items()
    }


def trained(config, records, model_dir, pretrained=None):
    """An Estimator after STEPS steps, its params, and its checkpoint."""
    params = tiny_task.params(config, STEPS, pretrained=pretrained)
    estimator = create_estimator(config, params, model_dir)
    estimator.train(
        train_input_fn(records, params.spec, 8, 100, 17, 0), max_steps=STEPS
    )
    return estimator, params, newest_checkpoint(model_dir)


def expected_loss(ranking, config):
    """The loss of all mentions at once, from their scores, in plain NumPy."""
    labels = np.zeros(len(ranking.scores))
    listwise = []
    for start, size, gold in zip(ranking.starts, ranking.sizes, ranking.gold):
        if gold >= 0:
            labels[start + gold] = 1
            scores = ranking.scores[start : start + size]
            listwise.append(np.log(np.exp(scores - scores[gold]).sum()))
    signed = np.where(labels == 1, ranking.scores, -ranking.scores)
    pointwise = np.mean(np.log1p(np.exp(-signed)))
    if config.train.loss == "pointwise":
        return pointwise
    return np.mean(listwise) + config.train.pointwise_weight * pointwise


@pytest.mark.parametrize(
    ("loss", "fields", "use_tpu"),
    [
        ("listwise", "spans", False),
        ("pointwise", "spans", True),
        ("listwise", "no_spans", False),
    ],
)
def test_the_modes_agree(loss, fields, use_tpu, records, tmp_path):
    config = tiny_task.config(FEATURES[fields], loss=loss, use_tpu=use_tpu)
    split = records[fields]
    estimator, params, checkpoint = trained(config, split, tmp_path)
    assert checkpoint.endswith(f"model.ckpt-{STEPS}")
    kinds = tf.compat.v1.estimator
    expected_kind = kinds.tpu.TPUEstimator if use_tpu else kinds.Estimator
    assert type(estimator) is expected_kind

    # PREDICT
    predictions = list(estimator.predict(ordered_input_fn(split, params.spec, 7)))
    assert len(predictions) == split.num_records
    for row in predictions:
        assert set(row) == {"probabilities", "score"}
        assert row["probabilities"].shape == (2,)
        assert row["score"].shape == ()
        assert row["probabilities"].dtype == row["score"].dtype == np.float32
        assert row["probabilities"].sum() == pytest.approx(1, abs=1e-6)
        probability = 1 / (1 + np.exp(-row["score"]))
        assert row["probabilities"][1] == pytest.approx(probability, abs=1e-6)

    # EVAL, all mentions as one batch, since a loss is a mean over its batch.
    evaluated = estimator.evaluate(ordered_input_fn(split, params.spec, 60))
    ranking = rank_split(estimator, checkpoint, split, params.spec, 7)
    assert evaluated["global_step"] == STEPS
    assert evaluated["loss"] == pytest.approx(expected_loss(ranking, config), rel=1e-4)
    # In batches of any size.
    in_batches = estimator.evaluate(ordered_input_fn(split, params.spec, 11))
    accuracy = link_metrics(ranking, None)["link_accuracy"]
    assert 0 < accuracy < 1
    assert evaluated["link_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert in_batches["link_accuracy"] == pytest.approx(accuracy, abs=1e-6)

    # TRAIN moved every weight.
    names = [name for name, _ in tf.train.list_variables(checkpoint)]
    assert "bert/encoder/layer_0/attention/self/query/kernel" in names
    assert tf.train.load_variable(checkpoint, "global_step") == STEPS


@pytest.fixture(scope="module")
def start(records, tmp_path_factory):
    """A checkpoint to start from."""
    model_dir = tmp_path_factory.mktemp("start")
    return trained(tiny_task.config(), records["spans"], model_dir)[2]


def weights(checkpoint):
    return {
        name: tf.train.load_variable(checkpoint, name)
        for name, _ in tf.train.list_variables(checkpoint)
        if not name.endswith(("adam_m", "adam_v")) and name != "global_step"
    }


def test_tpu_estimator_gives_the_same_numbers(start, records, tmp_path):
    split = records["spans"]
    scores, evaluated = [], []
    for use_tpu in (False, True):
        config = tiny_task.config(use_tpu=use_tpu)
        estimator, params, checkpoint = trained(
            config, split, tmp_path / str(use_tpu), pretrained=start
        )
        ranking = rank_split(estimator, checkpoint, split, params.spec, 7)
        scores.append(ranking.scores)
        evaluated.append(estimator.evaluate(ordered_input_fn(split, params.spec, 7)))
        # And no weight was left behind.
        after = weights(checkpoint)
        assert len(after) > 30
        for name, before in weights(start).items():
            assert not np.array_equal(after[name], before), name
    # Threads add up gradients in any order, and training carries the last digits on.
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-3)
    assert evaluated[1] == pytest.approx(evaluated[0], abs=1e-3)


def test_training_starts_from_the_pretrained_weights(start, records, tmp_path):
    # A learning rate that changes nothing.
    config = tiny_task.config(learning_rate=1e-12, weight_decay=0.0)
    _, _, checkpoint = trained(config, records["spans"], tmp_path, pretrained=start)
    after = weights(checkpoint)
    for name, before in weights(start).items():
        np.testing.assert_allclose(after[name], before, atol=1e-6, err_msg=name)


def test_feature_names_are_free(tmp_path):
    renamed = dataclasses.replace(
        tiny_task.FEATURES,
        input_ids="ids",
        input_mask="mask",
        segment_ids="types",
        span_fields=("first", "last"),
        label_ids="label",
    )
    split = tiny_task.write(tmp_path / "records", "train", 20, features=renamed)
    config = tiny_task.config(renamed)
    estimator, params, checkpoint = trained(config, split, tmp_path / "model")
    assert params.spec == FeatureSpec.from_config(renamed)
    ranking = rank_split(estimator, checkpoint, split, params.spec, 7)
    assert np.isfinite(ranking.scores).all()

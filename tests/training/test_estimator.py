"""Training: it learns, keeps the best checkpoint, and goes on where it stopped."""

from __future__ import annotations

import json
import types

import numpy as np
import pytest
import tensorflow as tf

from bert_export.training import estimator as training
from bert_export.training.evaluation import evaluate, metrics_table, rank_split
from bert_export.training.input_fn import ordered_input_fn
from tests.training import tiny_task

STEPS = 60


@pytest.mark.parametrize(
    ("train", "mentions", "expected"),
    [
        ({"epochs": 2.0, "mentions_per_batch": 8}, 80, 20),
        ({"epochs": 0.5, "mentions_per_batch": 8}, 80, 5),
        ({"epochs": 1.0, "mentions_per_batch": 8}, 81, 10),
        ({"epochs": 1.0, "mentions_per_batch": 8}, 3, 1),
        ({"epochs": 2.0, "max_steps": 7}, 80, 7),
        ({"epochs": 2.0, "max_steps": 700}, 80, 20),
    ],
)
def test_num_train_steps(train, mentions, expected):
    assert training.num_train_steps(tiny_task.config(**train), mentions) == expected


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """A model trained on the tiny task, with all that it left behind."""
    directory = tmp_path_factory.mktemp("learnt")
    train = tiny_task.write(directory, "train", 400, seed=1, nil=0.1)
    dev = tiny_task.write(directory, "dev", 60, seed=2, nil=0.3)
    test = tiny_task.write(directory, "test", 60, seed=3, nil=0.3)
    config = tiny_task.config(save_checkpoints_steps=15, keep_checkpoint_max=2)
    params = tiny_task.params(config, STEPS)
    estimator = training.create_estimator(config, params, directory / "model")
    training.train(estimator, config, params, train, dev)
    return types.SimpleNamespace(
        model_dir=directory / "model",
        estimator=estimator,
        config=config,
        params=params,
        train=train,
        dev=dev,
        test=test,
    )


def test_it_learns_what_held_out_mentions_need(learnt):
    newest = training.newest_checkpoint(learnt.model_dir)
    metrics = evaluate(
        learnt.estimator, newest, learnt.dev, learnt.test, learnt.params.spec, 16
    )
    assert metrics["split"] == "test"
    assert metrics["link_accuracy"] > 0.95
    assert metrics["link_accuracy"] > metrics["baselines"]["first_candidate"] + 0.3
    assert metrics["roc_auc"] > 0.95
    assert metrics["nil"]["precision"] > 0.9
    assert metrics["nil"]["recall"] > 0.9
    table = metrics_table(json.loads(json.dumps(metrics)))
    assert "all test mentions" in table
    assert f"{100 * metrics['link_accuracy']:.1f}" in table


def test_the_curve_has_a_point_a_checkpoint(learnt):
    curve = training.read_curve(learnt.model_dir)
    assert [point["step"] for point in curve] == [0, 15, 30, 45, 60]
    pairs = learnt.train.num_records / learnt.train.num_mentions * 8
    for point in curve:
        assert point["pairs"] == pytest.approx(pairs * point["step"], abs=1)
        assert np.isfinite(point["loss"])
    assert curve[-1]["loss"] < curve[0]["loss"] / 2


def test_the_best_checkpoint_is_the_best_of_the_curve(learnt):
    curve = training.read_curve(learnt.model_dir)
    accuracy = max(point["link_accuracy"] for point in curve[1:])
    first_best = next(p for p in curve[1:] if p["link_accuracy"] == accuracy)
    best = training.best_checkpoint(learnt.model_dir)
    assert training.global_step(best) == first_best["step"]
    evaluated = learnt.estimator.evaluate(
        ordered_input_fn(learnt.dev, learnt.params.spec, 16), checkpoint_path=best
    )
    assert evaluated["link_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    # It is whole and alone in its directory, which may be moved.
    assert sorted(path.suffix for path in (learnt.model_dir / "best").iterdir()) == [
        "",
        ".data-00000-of-00001",
        ".index",
        ".meta",
    ]
    state = (learnt.model_dir / "best" / "checkpoint").read_text()
    assert str(learnt.model_dir) not in state


def test_the_newest_checkpoints_are_kept(learnt):
    newest = training.newest_checkpoint(learnt.model_dir)
    assert training.global_step(newest) == STEPS
    kept = sorted(path.name for path in learnt.model_dir.glob("*.index"))
    assert kept == ["model.ckpt-45.index", "model.ckpt-60.index"]


def test_summaries_are_written_for_tensorboard(learnt):
    (events,) = learnt.model_dir.glob("events.out.tfevents.*")
    tags = {
        value.tag
        for event in tf.compat.v1.train.summary_iterator(str(events))
        for value in event.summary.value
    }
    assert {"loss", "link_accuracy", "global_step/sec"} <= tags


def test_finished_training_is_not_repeated(learnt, capsys):
    before = sorted(learnt.model_dir.rglob("*"))
    training.train(
        learnt.estimator, learnt.config, learnt.params, learnt.train, learnt.dev
    )
    assert capsys.readouterr().out == "trained already: 60 of 60 steps\n"
    assert sorted(learnt.model_dir.rglob("*")) == before


def test_ranking_stands_beside_the_gold_of_the_records(learnt):
    best = training.best_checkpoint(learnt.model_dir)
    whole = rank_split(learnt.estimator, best, learnt.dev, learnt.params.spec, 16)
    some = rank_split(learnt.estimator, best, learnt.dev, learnt.params.spec, 16, 20)
    np.testing.assert_array_equal(whole.sizes, learnt.dev.mention_sizes)
    np.testing.assert_array_equal(whole.gold, learnt.dev.gold)
    # Every third mention.
    assert len(some.sizes) == 20
    np.testing.assert_array_equal(some.gold, whole.gold[::3])
    chosen = np.repeat(np.arange(60) % 3 == 0, whole.sizes)
    np.testing.assert_allclose(some.scores, whole.scores[chosen], atol=1e-5)


def test_training_without_dev_mentions_keeps_the_newest(tmp_path):
    train = tiny_task.write(tmp_path, "train", 20)
    dev = tiny_task.write(tmp_path, "dev", 0)
    config = tiny_task.config()
    params = tiny_task.params(config, 2)
    estimator = training.create_estimator(config, params, tmp_path / "model")
    training.train(estimator, config, params, train, dev)
    assert training.best_checkpoint(tmp_path / "model") is None
    assert training.global_step(training.newest_checkpoint(tmp_path / "model")) == 2


def test_bfloat16_trains(tmp_path):
    train = tiny_task.write(tmp_path, "train", 20)
    config = tiny_task.config(bfloat16=True)
    params = tiny_task.params(config, 2)
    estimator = training.create_estimator(
        config, params, tmp_path / "model", config.train.bfloat16
    )
    training.train(
        estimator, config, params, train, tiny_task.write(tmp_path, "dev", 0)
    )
    checkpoint = training.newest_checkpoint(tmp_path / "model")
    for name, _ in tf.train.list_variables(checkpoint):
        assert np.isfinite(tf.train.load_variable(checkpoint, name)).all()


def weights_of(prefix):
    reader = tf.train.load_checkpoint(prefix)
    return {
        name: reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
        if not name.endswith(("adam_m", "adam_v"))
    }


def test_the_mean_of_the_newest_checkpoints_is_scored_and_kept(tmp_path):
    train = tiny_task.write(tmp_path, "train", 80, seed=1)
    dev = tiny_task.write(tmp_path, "dev", 40, seed=2)
    config = tiny_task.config(
        save_checkpoints_steps=5, keep_checkpoint_max=3, average_checkpoints=2
    )
    params = tiny_task.params(config, 15)
    model_dir = tmp_path / "model"
    estimator = training.create_estimator(config, params, model_dir)
    training.train(estimator, config, params, train, dev)

    state = tf.train.get_checkpoint_state(str(model_dir))
    newest = [weights_of(prefix) for prefix in state.all_model_checkpoint_paths[-2:]]
    average = training.newest_checkpoint(model_dir / "average") or str(
        model_dir / "average" / "model.ckpt-15"
    )
    averaged = weights_of(average)
    assert averaged.keys() == newest[0].keys()
    assert averaged.pop("global_step") == 15
    for name, value in averaged.items():
        np.testing.assert_allclose(
            value, (newest[0][name] + newest[1][name]) / 2, atol=1e-7
        )
    kernel = "linker/kernel"
    assert not np.allclose(averaged[kernel], newest[1][kernel], atol=1e-6)

    # Two checkpoints make the first mean, of steps 5 and 10.
    curve = training.read_curve(model_dir)
    assert [point["step"] for point in curve] == [0, 5, 10, 15]
    metrics = estimator.evaluate(
        ordered_input_fn(dev, params.spec, config.eval.mentions_per_batch, None),
        checkpoint_path=average,
    )
    assert metrics["link_accuracy"] == pytest.approx(curve[-1]["link_accuracy"])
    assert metrics["loss"] == pytest.approx(curve[-1]["loss"], rel=1e-5)
    best = training.best_checkpoint(model_dir)
    highest = max(curve[1:], key=lambda point: point["link_accuracy"])
    assert training.global_step(best) == highest["step"]

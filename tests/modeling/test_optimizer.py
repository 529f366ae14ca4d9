"""The optimizer against AdamW written out in numpy."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from bert_export.modeling.linker import Linker
from bert_export.modeling.optimizer import create_train_op, learning_rate_at
from bert_export.modeling.precision import bfloat16_session_config
from tests.modeling.linkers import TINY, masks, random_batch

STEPS, WARMUP, PEAK, DECAY, CLIP = 5, 2, 0.01, 0.1, 0.5


@pytest.mark.parametrize(
    ("steps", "warmup", "expected"),
    [
        (6, 2, [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]),
        (4, 0, [1.0, 0.75, 0.5, 0.25, 0.0]),
        (3, 3, [1 / 3, 2 / 3, 1.0, 0.0]),
        (1, 0, [1.0, 0.0]),
    ],
)
def test_learning_rate(steps: int, warmup: int, expected: list[float]):
    rates = [
        learning_rate_at(tf.constant(n, tf.int64), 3e-4, steps, warmup).numpy()
        for n in range(len(expected))
    ]
    np.testing.assert_allclose(rates, 3e-4 * np.array(expected), rtol=1e-6)


class Model(tf.Module):
    """A table that is read sparsely, and what weight decay must spare."""

    def __init__(self):
        rng = np.random.default_rng(3)
        shapes = {
            "bert/embeddings/word_embeddings": [7, 3],
            "bert/dense/kernel": [3, 2],
            "bert/dense/bias": [2],
            "bert/output/LayerNorm/gamma": [2],
            "bert/output/LayerNorm_1/beta": [2],
        }
        self.initial = {
            name: rng.normal(size=shape).astype(np.float32)
            for name, shape in shapes.items()
        }
        self.by_name = {
            name: tf.Variable(value, name=name) for name, value in self.initial.items()
        }

    def loss(self, ids: tf.Tensor) -> tf.Tensor:
        table, kernel, bias, gamma, beta = self.by_name.values()
        hidden = tf.matmul(tf.gather(table, ids), kernel) + bias
        return tf.reduce_sum(tf.square(hidden * gamma + beta))


def numpy_gradients(
    weights: dict[str, np.ndarray], ids: np.ndarray
) -> dict[str, np.ndarray]:
    table, kernel, bias, gamma, beta = weights.values()
    hidden = table[ids] @ kernel + bias
    upstream = 2 * (hidden * gamma + beta)
    back = upstream * gamma
    rows = np.zeros_like(table)
    np.add.at(rows, ids, back @ kernel.T)  # Id 4 comes twice.
    return dict(
        zip(
            weights,
            [
                rows,
                table[ids].T @ back,
                back.sum(0),
                (upstream * hidden).sum(0),
                upstream.sum(0),
            ],
        )
    )


def test_five_steps_equal_numpys_adamw(tmp_path: Path):
    ids = np.array([1, 4, 4, 6])
    with tf.Graph().as_default():
        model = Model()
        train_op = create_train_op(
            model.loss(tf.constant(ids)), PEAK, STEPS, WARMUP, DECAY, CLIP
        )
        saver = tf.compat.v1.train.Saver()
        with tf.compat.v1.Session() as session:
            session.run(tf.compat.v1.global_variables_initializer())
            for _ in range(STEPS):
                session.run(train_op)
            found = session.run(model.by_name)
            step = session.run(tf.compat.v1.train.get_global_step())
            prefix = saver.save(session, str(tmp_path / "model.ckpt"))
    assert step == STEPS

    weights = {name: value.astype(np.float64) for name, value in model.initial.items()}
    first = {name: np.zeros_like(value) for name, value in weights.items()}
    second = {name: np.zeros_like(value) for name, value in weights.items()}
    clipped = 0
    for rate in PEAK * np.array([1 / 2, 1, 1, 2 / 3, 1 / 3]):
        gradients = numpy_gradients(weights, ids)
        norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
        clipped += norm > CLIP
        for name, gradient in gradients.items():
            gradient = gradient * min(1.0, CLIP / norm)
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient**2
            update = first[name] / (np.sqrt(second[name]) + 1e-6)
            if name.endswith(("kernel", "embeddings")):
                update = update + DECAY * weights[name]
            weights[name] = weights[name] - rate * update
    assert clipped
    for name, expected in weights.items():
        # Adam divides by a gradient's own size: where that is near 0, float32's
        # rounding, and so the order of sums, is seen.
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=3e-5)

    # The moments are in the checkpoint, under Google's names.
    reader = tf.train.load_checkpoint(prefix)
    for name in weights:
        for moment, expected in (("adam_m", first), ("adam_v", second)):
            np.testing.assert_allclose(
                reader.get_tensor(f"{name}/{moment}"),
                expected[name],
                rtol=1e-4,
                atol=1e-7,
            )


def test_small_gradients_are_not_clipped():
    def after_one_step(clip_norm: float) -> np.ndarray:
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            model = Model()
            op = create_train_op(model.loss([0]), 0.1, 10, 0, clip_norm=clip_norm)
            session.run(tf.compat.v1.global_variables_initializer())
            session.run(op)
            by_name = {v.op.name: v for v in tf.compat.v1.global_variables()}
            return session.run(by_name["bert/dense/kernel/adam_m"])

    np.testing.assert_array_equal(after_one_step(1e3), after_one_step(1e6))
    assert np.abs(after_one_step(1e-3)).max() < 1e-3


def test_training_goes_on_from_a_checkpoint(tmp_path: Path):
    """Four steps equal two, a checkpoint, a new process's graph and two more."""

    def run(steps: int, restore: str | None) -> tuple[str, dict[str, np.ndarray]]:
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            model = Model()
            train_op = create_train_op(model.loss([0, 2]), 0.01, 4, 1)
            saver = tf.compat.v1.train.Saver()
            session.run(tf.compat.v1.global_variables_initializer())
            if restore:
                saver.restore(session, restore)
            for _ in range(steps):
                session.run(train_op)
            path = saver.save(session, str(tmp_path / f"{steps}{bool(restore)}"))
            return path, session.run(model.by_name)

    _, at_once = run(4, None)
    half, _ = run(2, None)
    _, resumed = run(2, half)
    for name, expected in at_once.items():
        # The order of sums, and so the last bit, is up to the threads.
        np.testing.assert_allclose(resumed[name], expected, rtol=1e-6, atol=1e-6)


def test_a_variable_outside_the_loss_is_an_error():
    with tf.Graph().as_default():
        model = Model()
        tf.Variable([1.0], name="lonely")
        with pytest.raises(ValueError, match="lonely"):
            create_train_op(model.loss([0]), 0.1, 10, 0)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_linker_learns(bfloat16: bool):
    batch = random_batch(masks()["ragged"])
    labels = np.array([0, 1, 1, 0, 1, 0])
    # BERT's initialisation is meant for a hidden size in the hundreds.
    config = dataclasses.replace(TINY, initializer_range=0.2)
    with tf.Graph().as_default():
        tf.compat.v1.set_random_seed(5)
        logits = Linker(config, 2)(*batch, training=True)
        loss = tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        )
        train_op = create_train_op(loss, 0.005, 120, 10)
        session_config = bfloat16_session_config() if bfloat16 else None
        with tf.compat.v1.Session(config=session_config) as session:
            session.run(tf.compat.v1.global_variables_initializer())
            losses = [session.run([train_op, loss])[1] for _ in range(120)]
            kinds = {v.dtype.base_dtype for v in tf.compat.v1.global_variables()}
    assert np.mean(losses[-20:]) < 0.3 < 0.5 < losses[0]
    assert kinds == {tf.float32, tf.int64}

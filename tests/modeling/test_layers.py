"""Dropout and training's own gradients; the encoder's tests have the rest."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from bert_export.modeling.layers import LayerNorm, dropout, gelu
from tests.modeling.linkers import TINY


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_zeroes_the_rate_and_keeps_the_mean(rate: float):
    x = tf.ones([301, 333])  # An odd number of elements.
    dropped = dropout(x, rate, training=True).numpy()
    assert (dropped == 0).mean() == pytest.approx(rate, abs=0.01)
    np.testing.assert_allclose(dropped[dropped != 0], 1 / (1 - rate), rtol=2e-4)
    # Neighbours are decided apart, although two share a random word.
    pairs = (dropped[:, :-1] == 0) & (dropped[:, 1:] == 0)
    assert pairs.mean() == pytest.approx(rate**2, abs=0.01)


def test_dropouts_gradient_is_its_mask():
    x = tf.random.normal([50, 40])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = dropout(x, 0.3, training=True)
    gradient = tape.gradient(y, x)
    np.testing.assert_allclose(gradient * x, y, rtol=1e-6)


def test_dropout_is_for_training_only():
    x = tf.ones([2, 2])
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0, training=True) is x


def test_dropout_of_nothing():
    assert dropout(tf.ones([0, 4]), 0.1, training=True).shape == (0, 4)


def test_dropout_is_a_function_of_seed_step_and_place():
    def masks(seed: int, first_step: int) -> list[np.ndarray]:
        """[3 steps, 2 dropouts, 40] of a graph that begins at a step."""
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            tf.compat.v1.set_random_seed(seed)
            step = tf.compat.v1.train.create_global_step()
            drawn = [dropout(tf.ones([40]), 0.5, training=True) for _ in range(2)]
            session.run(tf.compat.v1.global_variables_initializer())
            session.run(step.assign(first_step))
            found = []
            for _ in range(3):
                found += session.run(drawn)
                session.run(step.assign_add(1))
            return found

    unbroken, resumed, other = masks(17, 0), masks(17, 1), masks(18, 0)
    np.testing.assert_array_equal(resumed[:4], unbroken[2:])
    everything = [tuple(mask) for mask in (*unbroken, *other)]
    assert len(set(everything)) == len(everything)


def test_trainings_layer_norm_has_the_derived_gradients():
    norm = LayerNorm("norm", 8, TINY)
    norm.gamma.assign(tf.random.normal([8]))
    norm.beta.assign(tf.random.normal([8]))
    # A token whose elements are all alike is normalised by epsilon alone.
    x = tf.concat([3.0 * tf.random.normal([20, 8]) + 1.0, tf.ones([1, 8])], axis=0)
    direction = tf.random.normal([21, 8])
    results = []
    for training in (False, True):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = norm(x, training)
            loss = tf.reduce_sum(y * direction)
        results.append([y, *tape.gradient(loss, [x, norm.gamma, norm.beta])])
    for plain, trained in zip(*results, strict=True):
        largest = np.abs(plain).max()
        np.testing.assert_allclose(trained, plain, atol=1e-5 * largest)


@pytest.mark.parametrize("approximate", [False, True])
def test_trainings_gelu_has_the_derived_gradient(approximate: bool):
    x = tf.constant([-60.0, -8.0, -3.0, -0.5, -1e-8, 0.0, 1e-8, 0.7, 3.0, 8.0, 60.0])
    direction = tf.random.normal(x.shape)
    results = []
    for training in (False, True):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = gelu(x, approximate, training)
        results.append([y, tape.gradient(y, x, direction)])
    for plain, trained in zip(*results, strict=True):
        np.testing.assert_allclose(trained, plain, rtol=1e-5, atol=1e-6)

"""The losses against plain NumPy, and their gradients' meaning."""

import numpy as np
import pytest
import tensorflow as tf

from bert_export.training import loss as losses

# Mentions of 3, 1, 2 and 2 candidates; the last one is NIL.
MENTION_IDS = np.array([7, 7, 7, 3, 9, 9, 4, 4])
LABELS = np.array([0, 1, 0, 1, 1, 0, 0, 0])
SCORES = np.array([0.5, -1.0, 2.0, 0.3, 4.0, 4.0, 1.0, 90.0], np.float32)


def log_softmax(scores):
    shifted = scores - scores.max()
    return shifted - np.log(np.exp(shifted).sum())


def test_listwise_is_the_mean_over_mentions_with_a_gold():
    expected = -np.mean(
        [
            log_softmax(SCORES[0:3])[1],
            log_softmax(SCORES[3:4])[0],
            log_softmax(SCORES[4:6])[0],
        ]
    )
    found = losses.listwise_loss(
        tf.constant(SCORES), tf.constant(LABELS), tf.constant(MENTION_IDS)
    )
    assert float(found) == pytest.approx(expected, abs=1e-6)


def test_listwise_of_nil_mentions_alone_is_zero_with_zero_gradient():
    scores = tf.Variable([1.0, 2.0])
    with tf.GradientTape() as tape:
        loss = losses.listwise_loss(scores, tf.constant([0, 0]), tf.constant([5, 5]))
    assert float(loss) == 0.0
    assert tape.gradient(loss, scores).numpy().tolist() == [0.0, 0.0]


def test_listwise_survives_scores_that_overflow_exp():
    loss = losses.listwise_loss(
        tf.constant([500.0, -500.0]), tf.constant([0, 1]), tf.constant([1, 1])
    )
    assert float(loss) == pytest.approx(1000.0)


def test_mention_segments_follow_runs_of_equal_ids():
    segments = losses.mention_segments(tf.constant(MENTION_IDS))
    assert segments.numpy().tolist() == [0, 0, 0, 1, 2, 2, 3, 3]


def test_pointwise_is_cross_entropy():
    logits = np.array([[0.2, 1.0], [3.0, -1.0]], np.float32)
    expected = -np.mean([log_softmax(logits[0])[1], log_softmax(logits[1])[0]])
    found = losses.pointwise_loss(tf.constant(logits), tf.constant([1, 0]))
    assert float(found) == pytest.approx(expected, abs=1e-6)


def test_top1_hits_count_ties_as_misses_and_leave_nil_out():
    hits, weights = losses.top1_hits(
        tf.constant(SCORES), tf.constant(LABELS), tf.constant(MENTION_IDS)
    )
    assert weights.numpy().tolist() == [1, 1, 1, 0]
    assert (hits * weights).numpy().tolist() == [0, 1, 0, 0]


def test_link_scores_are_log_odds():
    logits = tf.constant([[0.5, 2.0]])
    probability = tf.nn.softmax(logits)[0, 1]
    assert float(losses.link_scores(logits)[0]) == pytest.approx(
        float(tf.math.log(probability / (1 - probability))), abs=1e-6
    )

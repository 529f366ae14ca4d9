"""The rows of a batch computed in two halves, side by side.

Two halves keep two cores busier than one batch whose operations are split among them:
no core waits for another at each operation's end. Each half has rows of similar length,
so that attention, for which all must be equally long, has less padding.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping

import tensorflow as tf


def share_threads() -> None:
    """Gives each half of a batch half of the cores; to be called first of all.

    Does nothing where TensorFlow has computed already, or where TF_NUM_INTRAOP_THREADS
    says how many threads an operation is to have.
    """
    if "TF_NUM_INTRAOP_THREADS" in os.environ:
        return
    cores = len(os.sched_getaffinity(0))
    with contextlib.suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(max(1, cores // 2))
    # The process' first devices decide for those of all later sessions.
    tf.config.list_logical_devices()


def compute_in_halves(
    compute: Callable[[dict[str, tf.Tensor]], tf.Tensor],
    features: Mapping[str, tf.Tensor],
    mask: tf.Tensor,
) -> tf.Tensor:
    """Computes the shorter and the longer rows apart, about as many tokens each.

    Three parts were slower than two, as each part writes gradients of all weights.

    Args:
      compute: from the features of some rows, or of none, to a tensor [rows, ...].
      features: [batch, seq_length] or [batch], by name.
      mask: [batch, seq_length] integers, 1 on real tokens.

    Returns:
      [batch, ...], as if `compute` had seen all rows at once.
    """
    lengths = tf.reduce_sum(tf.cast(mask, tf.int32), axis=1)  # [batch]
    order = tf.argsort(lengths, stable=True)
    tokens = tf.cumsum(tf.gather(lengths, order))
    first = tf.reduce_sum(tf.cast(2 * tokens <= tf.reduce_sum(lengths), tf.int32))
    computed = tf.concat(
        [
            compute({name: tf.gather(value, rows) for name, value in features.items()})
            for rows in (order[:first], order[first:])
        ],
        axis=0,
    )
    return tf.gather(computed, tf.math.invert_permutation(order))

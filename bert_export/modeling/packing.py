"""Padding-free layout: real tokens packed into one matrix and back.

Dense layers, LayerNorm and GELU treat tokens one by one, so they run on a
`[tokens, width]` matrix of the batch's real tokens. Only attention needs rows; for it
the tokens go into `[batch * length, width]` slots and come back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

# From the gradient of a function's output to that of its input.
Gradient = Callable[[tf.Tensor], tf.Tensor]


class Packing(NamedTuple):
    """Where the real tokens of a batch are; index vectors are int32.

    Real tokens are numbered row after row. In slots, a row's real tokens stand
    together at the front (attention does not mind where holes were), and `length` is
    the most real tokens that any row has.
    """

    source: tf.Tensor  # [tokens]: each token's place in [batch * seq_length]
    target: tf.Tensor  # [tokens]: each token's slot in [batch * length]
    slots: tf.Tensor  # [batch * length]: the token in each slot; 0 where empty
    mask: tf.Tensor  # [batch, length] float32: 1 where a slot holds a token
    number: tf.Tensor  # [batch * seq_length]: the number of each place's token

    @classmethod
    def of(cls, real: tf.Tensor) -> Packing:
        """The packing of `real` [batch, seq_length] bool; no row may be all false."""
        flat = tf.reshape(real, [-1])
        lengths = tf.reduce_sum(tf.cast(real, tf.int32), axis=1, keepdims=True)
        # At least 0: the maximum over an empty batch is the lowest integer.
        position = tf.range(tf.maximum(tf.reduce_max(lengths), 0))[tf.newaxis]
        filled = position < lengths  # [batch, length]
        slots = tf.cumsum(lengths, axis=0, exclusive=True) + position
        return cls(
            source=_true_indices(flat),
            target=_true_indices(tf.reshape(filled, [-1])),
            slots=tf.reshape(tf.where(filled, slots, tf.zeros_like(slots)), [-1]),
            mask=tf.cast(filled, tf.float32),
            number=tf.cumsum(tf.cast(flat, tf.int32)) - 1,
        )

    def unpack(self, tokens: tf.Tensor) -> tf.Tensor:
        """`[tokens, width]` to `[batch * length, width]`.

        An empty slot gets a copy of token 0, so whoever reads it must apply `mask`.
        """

        @tf.custom_gradient
        def gather(x: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
            # A token stands in exactly one filled slot, and what empty slots hold is
            # masked: the scatter-add that differentiates a gather is a gather itself.
            return tf.gather(x, self.slots), lambda dy: tf.gather(dy, self.target)

        return gather(tokens)

    def pack(self, slots: tf.Tensor) -> tf.Tensor:
        """`[batch * length, width]` to `[tokens, width]`."""

        @tf.custom_gradient
        def gather(x: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
            def grad(dy: tf.Tensor) -> tf.Tensor:
                # Nothing was read from an empty slot, so its gradient is zero, not
                # that of token 0, which `slots` names there.
                filled = tf.cast(tf.reshape(self.mask, [-1, 1]), dy.dtype)
                return tf.gather(dy, self.slots) * filled

            return tf.gather(x, self.target), grad

        return gather(slots)


class Padding(NamedTuple):
    """The plain layout that packing is compared with: every place is a slot."""

    mask: tf.Tensor  # [batch, seq_length] float32: 1 on real tokens

    def unpack(self, tokens: tf.Tensor) -> tf.Tensor:
        """`[batch * seq_length, width]`, unchanged."""
        return tokens

    def pack(self, slots: tf.Tensor) -> tf.Tensor:
        """`[batch * seq_length, width]`, unchanged."""
        return slots


def _true_indices(flat: tf.Tensor) -> tf.Tensor:
    """The indices [n] int32 at which `flat` [size] bool is true, ascending."""
    return tf.cast(tf.reshape(tf.where(flat), [-1]), tf.int32)

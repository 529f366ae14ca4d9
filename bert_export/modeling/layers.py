"""The token-wise pieces of a BERT layer: dense, LayerNorm, GELU, dropout.

Training differentiates LayerNorm and GELU by formulas of its own, which pass over the
tokens fewer times than the gradients that TensorFlow derives. They are left out of
graphs that only predict: converters and grappler know the plain forms.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import tensorflow as tf

from bert_export.modeling.bert_config import BertConfig

# From the gradient of a function's output to those of its inputs.
Gradient = Callable[[tf.Tensor], tuple[tf.Tensor, ...]]


def weights(name: str, shape: list[int], config: BertConfig) -> tf.Variable:
    """A new variable, named exactly `name`, drawn from BERT's truncated normal."""
    return _variable(
        name,
        lambda: tf.random.truncated_normal(shape, stddev=config.initializer_range),
    )


def constant(name: str, value: float, size: int) -> tf.Variable:
    """A new variable [size], named exactly `name`, filled with `value`."""
    return _variable(name, lambda: tf.fill([size], value))


def _variable(name: str, initial_value: Callable[[], tf.Tensor]) -> tf.Variable:
    # Checkpoints are read by name: none of the caller's scopes may get into it.
    with tf.compat.v1.name_scope(None):
        return tf.Variable(initial_value, name=name)


def scope_of(name: str) -> tf.name_scope:
    """The scope in which a layer's operations stand beside its variables.

    Whoever finds an operation in a profile or a converter's complaint then knows
    whose it is.
    """
    return tf.name_scope(f"{name}/")


class Dense(tf.Module):
    """`x @ kernel + bias` over the last axis."""

    def __init__(self, name: str, inputs: int, outputs: int, config: BertConfig):
        super().__init__()
        self.layer = name
        self.kernel = weights(f"{name}/kernel", [inputs, outputs], config)
        self.bias = constant(f"{name}/bias", 0.0, outputs)

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """`[..., inputs]` to `[..., outputs]`."""
        # bias_add directly on a matmul is the pattern that grappler fuses.
        with scope_of(self.layer):
            return tf.nn.bias_add(tf.matmul(x, self.kernel), self.bias)


class LayerNorm(tf.Module):
    """Layer normalisation over the last axis (arXiv:1607.06450)."""

    def __init__(self, name: str, size: int, config: BertConfig):
        super().__init__()
        self.layer = name
        self.epsilon = config.layer_norm_eps
        self.gamma = constant(f"{name}/gamma", 1.0, size)
        self.beta = constant(f"{name}/beta", 0.0, size)

    def __call__(self, x: tf.Tensor, training: bool) -> tf.Tensor:
        """`[tokens, size]` to the same shape."""
        with scope_of(self.layer):
            inputs = (
                x,
                tf.convert_to_tensor(self.gamma),
                tf.convert_to_tensor(self.beta),
            )
            if training:
                return tf.custom_gradient(self._normalize)(*inputs)
            return self._normalize(*inputs)[0]

    def _normalize(
        self, x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor
    ) -> tuple[tf.Tensor, Gradient]:
        mean, variance = tf.nn.moments(x, axes=[-1], keepdims=True)

        def gradients(dy: tf.Tensor) -> tuple[tf.Tensor, ...]:
            # Mean and deviation depend on x, too: what moves all of a token's elements
            # alike, or stretches them, changes nothing.
            per_deviation = tf.math.rsqrt(variance + self.epsilon)
            normal = (x - mean) * per_deviation
            scaled = dy * gamma
            shift = tf.reduce_mean(scaled, axis=-1, keepdims=True)
            stretch = tf.reduce_mean(scaled * normal, axis=-1, keepdims=True)
            return (
                per_deviation * (scaled - shift - normal * stretch),
                tf.reduce_sum(dy * normal, axis=0),
                tf.reduce_sum(dy, axis=0),
            )

        return tf.nn.batch_normalization(
            x, mean, variance, beta, gamma, self.epsilon
        ), gradients


def gelu(x: tf.Tensor, approximate: bool, training: bool) -> tf.Tensor:
    """The Gaussian error linear unit (arXiv:1606.08415), of any shape.

    Args:
      x: the input.
      approximate: by tanh, in place of the exact error function.
      training: whether a gradient will be asked for.
    """
    if approximate or not training:
        return tf.nn.gelu(x, approximate)

    @tf.custom_gradient
    def exact(x: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
        # x times the normal distribution's function, whose derivative is its density.
        distribution = 0.5 * (1.0 + tf.math.erf(x * math.sqrt(0.5)))

        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, ...]:
            density = tf.exp(-0.5 * tf.square(x)) * (1.0 / math.sqrt(2.0 * math.pi))
            return (dy * (distribution + x * density),)

        return x * distribution, gradient

    return exact(x)


def dropout(x: tf.Tensor, rate: float, training: bool) -> tf.Tensor:
    """`x` with a part `rate` of its elements zeroed and the others scaled up.

    Decides each element with 16 random bits, half of what tf.nn.dropout draws, which
    makes training measurably faster; `rate` is rounded to a multiple of 2**-16.

    In a graph with a global step and a seed, as an Estimator's, the bits are a function
    of the seed, the step, the replica and the dropout's place among the graph's random
    operations: training that goes on from a checkpoint draws what it would have drawn.
    """
    if not training or rate == 0:
        return x
    levels = 2**16
    dropped = round(rate * levels)
    size = tf.size(x)
    words = tf.random.stateless_uniform(
        [(size + 1) // 2], _dropout_seed(), minval=None, maxval=None, dtype=tf.uint32
    )
    bits = tf.reshape(tf.bitcast(words, tf.uint16), [-1])[:size]
    kept = tf.cast(tf.reshape(bits, tf.shape(x)) >= dropped, x.dtype)
    return x * (kept * (levels / (levels - dropped)))


def _dropout_seed() -> tf.Tensor:
    """[2] integers that differ from step to step and from dropout to dropout."""
    step = tf.compat.v1.train.get_global_step()
    if step is not None:
        # The second counts the graph's random operations: this one's place.
        graph_seed, place = tf.compat.v1.get_seed(None)
        if graph_seed is not None:
            replica = tf.distribute.get_replica_context()
            draw = tf.cast(step, tf.int64) * replica.num_replicas_in_sync
            draw += tf.cast(replica.replica_id_in_sync_group, tf.int64)
            return tf.stack([tf.constant(graph_seed << 32 | place, tf.int64), draw])
    # Drawn anew in every step, from the graph's seed if it has one.
    return tf.random.uniform([2], maxval=tf.int32.max, dtype=tf.int32)

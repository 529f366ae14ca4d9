"""AdamW as BERT is fine-tuned with it: warm-up, linear decay, gradient clipping."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

BETA_1 = 0.9
BETA_2 = 0.999
EPSILON = 1e-6
# Adam's moments of a variable follow its name and '/'.
MOMENTS = ("adam_m", "adam_v")
# Variables that weight decay leaves alone: biases and LayerNorm's scale and shift.
NOT_DECAYED = re.compile(r"(^|/)(LayerNorm(_\d+)?/(gamma|beta)|bias)$")


def learning_rate_at(
    step: tf.Tensor, peak: float, num_train_steps: int, num_warmup_steps: int
) -> tf.Tensor:
    """The learning rate of the step numbered `step`, from 0: a scalar float32.

    It rises linearly to `peak` over the first `num_warmup_steps` steps, then falls
    linearly, reaching 0 after `num_train_steps`. Unlike google-research/bert's, the
    first step's rate is not 0 and there is no jump where the decay sets in.
    """
    step = tf.cast(step, tf.float32)
    rising = (step + 1.0) / max(num_warmup_steps, 1)
    falling = (num_train_steps - step) / max(num_train_steps - num_warmup_steps, 1)
    return peak * tf.maximum(tf.minimum(tf.minimum(rising, falling), 1.0), 0.0)


def create_train_op(
    loss: tf.Tensor,
    learning_rate: float,
    num_train_steps: int,
    num_warmup_steps: int,
    weight_decay: float = 0.01,
    clip_norm: float = 1.0,
    variables: Sequence[tf.Variable] | None = None,
    add_up: Callable[[Any], Any] = lambda gradients: gradients,
) -> tf.Operation:
    """One AdamW step (arXiv:1711.05101) in the current graph.

    As in google-research/bert, gradients are first clipped by their global norm, the
    moments of Adam (arXiv:1412.6980) are not corrected for their bias towards zero
    (the warm-up does that service), epsilon is 1e-6, and weight decay spares biases
    and LayerNorm. The moments are the variables `NAME/adam_m` and `NAME/adam_v`, saved
    in checkpoints like all others.

    Args:
      loss: scalar.
      learning_rate: its peak; see `learning_rate_at`.
      num_train_steps: steps until the rate is 0.
      num_warmup_steps: steps during which the rate rises.
      weight_decay: decoupled from the gradient, times the learning rate.
      clip_norm: the most the gradients' global norm may be.
      variables: what to train; all trainable variables by default.
      add_up: sums the gradients over the workers that share a batch.

    Returns:
      An operation that updates the variables and increments the global step.
    """
    if variables is None:
        variables = tf.compat.v1.trainable_variables()
    step = tf.compat.v1.train.get_or_create_global_step()
    rate = learning_rate_at(step, learning_rate, num_train_steps, num_warmup_steps)
    gradients = tf.gradients(loss, variables)
    for gradient, variable in zip(gradients, variables, strict=True):
        if gradient is None:
            raise ValueError(f"the loss does not depend on {variable.op.name}")
    gradients = [_each_row_once(gradient) for gradient in add_up(gradients)]
    gradients, _ = tf.clip_by_global_norm(gradients, clip_norm)
    updates = [
        _adam_step(
            variable,
            gradient,
            rate,
            0.0 if NOT_DECAYED.search(variable.op.name) else weight_decay,
        )
        for variable, gradient in zip(variables, gradients, strict=True)
    ]
    with tf.control_dependencies(updates):
        return step.assign_add(1, read_value=False)


def _each_row_once(
    gradient: tf.Tensor | tf.IndexedSlices,
) -> tf.Tensor | tf.IndexedSlices:
    """The gradient, with what repeatedly read rows of a gathered table get added up.

    Without that a norm of it would be wrong. A batch reads few of a vocabulary's rows:
    clipping them alone is cheap.
    """
    if isinstance(gradient, tf.Tensor):
        return gradient
    rows, numbers = tf.unique(gradient.indices)
    return tf.IndexedSlices(
        tf.math.unsorted_segment_sum(gradient.values, numbers, tf.size(rows)),
        rows,
        gradient.dense_shape,
    )


def _adam_step(
    variable: tf.Variable,
    gradient: tf.Tensor | tf.IndexedSlices,
    rate: tf.Tensor,
    weight_decay: float,
) -> tf.Operation:
    """Updates one variable and its two moments in one pass."""
    # Rows that nothing was read from are moved by their moments, too.
    gradient = tf.convert_to_tensor(gradient)
    first, second = (
        tf.Variable(
            lambda: tf.zeros(variable.shape),
            trainable=False,
            name=f"{variable.op.name}/{moment}",
            shape=variable.shape,
        )
        for moment in MOMENTS
    )
    # The gradient is that of the old value.
    with tf.control_dependencies([gradient]):
        if weight_decay:
            decayed = tf.raw_ops.AssignVariableOp(
                resource=variable.handle, value=variable * (1.0 - rate * weight_decay)
            )
        else:
            decayed = tf.no_op()
    with tf.control_dependencies([decayed]):
        return tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=first.handle,
            v=second.handle,
            beta1_power=0.0,  # With powers of 0 there is no bias correction.
            beta2_power=0.0,
            lr=rate,
            beta1=BETA_1,
            beta2=BETA_2,
            epsilon=EPSILON,
            grad=gradient,
        )

"""The linker's loss: candidates of a mention compete, each pair stays calibrated."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

# Sums a number of terms over the workers that share a batch.
AddUp = Callable[[tf.Tensor], tf.Tensor]


def link_scores(logits: tf.Tensor) -> tf.Tensor:
    """The log-odds that each pair is a link.

    Args:
      logits: [pairs, 2] float32, for (no link, link).

    Returns:
      [pairs] float32; ranks a mention's candidates, and is the logit of the second
      class's probability.
    """
    return logits[:, 1] - logits[:, 0]


def mention_segments(mention_ids: tf.Tensor) -> tf.Tensor:
    """Numbers the runs of equal ids 0, 1, 2, ... for the tf.math.segment_* family.

    Args:
      mention_ids: [pairs] int64; the pairs of one mention stand together.

    Returns:
      [pairs] int32, ascending.
    """
    # Not `!=`, which compares identities in graphs of TensorFlow 1.
    starts = tf.cast(tf.not_equal(mention_ids[1:], mention_ids[:-1]), tf.int32)
    return tf.concat([tf.zeros_like(mention_ids[:1], tf.int32), tf.cumsum(starts)], 0)


def pointwise_loss(
    logits: tf.Tensor, labels: tf.Tensor, add_up: AddUp = tf.identity
) -> tf.Tensor:
    """Mean cross-entropy of the pairs' labels.

    Args:
      logits: [pairs, 2] float32.
      labels: [pairs] int64.
      add_up: of a worker that has a part of the batch: its share of the whole batch's
        mean is returned.

    Returns:
      Scalar float32.
    """
    terms = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    return tf.reduce_sum(terms) / add_up(tf.cast(tf.size(labels), terms.dtype))


def listwise_loss(
    scores: tf.Tensor,
    labels: tf.Tensor,
    mention_ids: tf.Tensor,
    add_up: AddUp = tf.identity,
) -> tf.Tensor:
    """Mean over mentions of -log softmax(scores of its candidates)[gold].

    This is ListNet's top-one loss (Cao et al. 2007, "Learning to Rank: From Pairwise
    Approach to Listwise Approach") with one relevant candidate. Mentions without a
    gold among their candidates (NIL) have no term.

    Args:
      scores: [pairs] float32.
      labels: [pairs] int64, 1 where the candidate is the gold entity.
      mention_ids: [pairs] int64; the pairs of one mention stand together.
      add_up: as in `pointwise_loss`.

    Returns:
      Scalar float32; 0 when no mention of the batch has a gold.
    """
    segments = mention_segments(mention_ids)
    highest = tf.stop_gradient(tf.math.segment_max(scores, segments))
    exps = tf.exp(scores - tf.gather(highest, segments))
    log_total = tf.math.log(tf.math.segment_sum(exps, segments)) + highest
    is_gold = tf.cast(labels, scores.dtype)
    gold_terms = is_gold * (tf.gather(log_total, segments) - scores)
    golds = add_up(tf.reduce_sum(is_gold))
    return tf.math.divide_no_nan(tf.reduce_sum(gold_terms), golds)


def top1_hits(
    scores: tf.Tensor, labels: tf.Tensor, mention_ids: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Whether each mention's gold has the highest score.

    Args:
      scores: [pairs] float32.
      labels: [pairs] int64, 1 where the candidate is the gold entity.
      mention_ids: [pairs] int64; the pairs of one mention stand together.

    Returns:
      (hits, weights), both [mentions] float32; the weight is 0 for mentions whose
      gold is not among the candidates. Ties count as misses.
    """
    segments = mention_segments(mention_ids)
    is_gold = tf.cast(labels, scores.dtype)
    gold_score = tf.math.segment_sum(is_gold * scores, segments)
    rivals = tf.where(labels > 0, tf.float32.min, scores)
    hits = tf.cast(gold_score > tf.math.segment_max(rivals, segments), tf.float32)
    return hits, tf.math.segment_max(is_gold, segments)

"""The linker: a BERT cross-encoder that scores (text, candidate) pairs."""

from __future__ import annotations

import tensorflow as tf

from bert_export.modeling.bert_config import BertConfig
from bert_export.modeling.encoder import BertEncoder
from bert_export.modeling.layers import Dense, dropout


class Linker(tf.Module):
    """BERT and a linear layer over [CLS] and the mention's span positions.

    The head's variables are `linker/kernel` [(1 + spans) * hidden, 2] and
    `linker/bias` [2]; all others are the encoder's.
    """

    def __init__(self, config: BertConfig, num_span_fields: int):
        """Creates the variables.

        Args:
          config: the encoder's sizes.
          num_span_fields: span positions a pair comes with; 0 makes a plain pair
            classifier.
        """
        super().__init__()
        self.encoder = BertEncoder(config)
        self.num_span_fields = num_span_fields
        self.dropout = config.hidden_dropout_prob
        self.head_inputs = (1 + num_span_fields) * config.hidden_size
        self.head = Dense("linker", self.head_inputs, 2, config)

    def __call__(
        self,
        input_ids: tf.Tensor,
        input_mask: tf.Tensor,
        segment_ids: tf.Tensor,
        span_positions: tf.Tensor | None = None,
        training: bool = False,
        padded: bool = False,
    ) -> tf.Tensor:
        """Scores pairs.

        Args:
          input_ids: [batch, seq_length] integers, word pieces.
          input_mask: [batch, seq_length] integers, 1 on real tokens. A row of zeros
            gives finite logits that mean nothing.
          segment_ids: [batch, seq_length] integers, 0 text and 1 candidate.
          span_positions: [batch, num_span_fields] integers; None without span
            fields.
          training: whether dropout applies.
          padded: compute padding, too (see `BertEncoder`).

        Returns:
          Logits [batch, 2] float32: not this candidate, this candidate.
        """
        # [CLS] stands at 0.
        reads = tf.zeros([tf.shape(input_ids)[0], 1], tf.int32)
        if self.num_span_fields:
            reads = tf.concat([reads, tf.cast(span_positions, tf.int32)], axis=1)
        states = self.encoder(
            input_ids, input_mask, segment_ids, reads, training, padded
        )
        states = tf.reshape(states, [-1, self.head_inputs])
        return self.head(dropout(states, self.dropout, training))

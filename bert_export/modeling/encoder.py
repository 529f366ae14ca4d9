"""The BERT encoder (arXiv:1810.04805): padding-free, and plainly padded.

Its variants ALBERT (arXiv:1909.11942), ELECTRA (arXiv:2003.10555) and DistilBERT
(arXiv:1910.01108) differ in three places that BertConfig names: a dense layer after
narrower embeddings, layers that share their variables, no segment embeddings.

Variables have the names of Google's checkpoints (`bert/encoder/layer_0/...`). There is
no pooler: heads read the last hidden states.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from bert_export.modeling.bert_config import BertConfig
from bert_export.modeling.layers import (
    Dense,
    LayerNorm,
    dropout,
    gelu,
    scope_of,
    weights,
)
from bert_export.modeling.packing import Packing, Padding

# Added to the attention scores of empty slots; softmax turns it into exactly 0.
MASKED = -1e9


class LayerNames(NamedTuple):
    """What the parts of a transformer layer are called, in its scope."""

    attention: str
    attention_output: str
    attention_norm: str
    intermediate: str
    output: str
    output_norm: str


BERT_NAMES = LayerNames(
    "attention/self",
    "attention/output/dense",
    "attention/output/LayerNorm",
    "intermediate/dense",
    "output/dense",
    "output/LayerNorm",
)
ALBERT_NAMES = LayerNames(
    "attention_1/self",
    "attention_1/output/dense",
    "LayerNorm",
    "ffn_1/intermediate/dense",
    "ffn_1/intermediate/output/dense",
    "LayerNorm_1",
)


class Embeddings(tf.Module):
    """Word, position and segment embeddings, summed and normalised."""

    def __init__(self, name: str, config: BertConfig):
        super().__init__()
        self.layer = name
        self.dropout = config.hidden_dropout_prob
        width = config.embedding_width
        self.word = weights(
            f"{name}/word_embeddings", [config.vocab_size, width], config
        )
        self.position = weights(
            f"{name}/position_embeddings",
            [config.max_position_embeddings, width],
            config,
        )
        self.segment = (
            weights(
                f"{name}/token_type_embeddings", [config.type_vocab_size, width], config
            )
            if config.type_vocab_size
            else None
        )
        self.norm = LayerNorm(f"{name}/LayerNorm", width, config)

    def __call__(
        self, ids: tf.Tensor, positions: tf.Tensor, segments: tf.Tensor, training: bool
    ) -> tf.Tensor:
        """Integer tensors `[tokens]` to `[tokens, embedding_width]`."""
        with scope_of(self.layer):
            # A variable that is gathered from by itself is copied at every other read.
            word, position = map(tf.convert_to_tensor, (self.word, self.position))
            # TensorFlow's error for an index out of range quotes these names.
            summed = (
                tf.gather(word, ids, name="input_ids_below_vocab_size")
                + tf.gather(
                    position,
                    positions,
                    name="positions_below_max_position_embeddings",
                )
                + tf.gather(
                    # Segments are an input of every model: converters and runtimes
                    # drop or refuse one that nothing reads.
                    tf.zeros([2, 1]) if self.segment is None else self.segment,
                    segments,
                    name="segment_ids_below_type_vocab_size",
                )
            )
        return dropout(self.norm(summed, training), self.dropout, training)


class SelfAttention(tf.Module):
    """Multi-head scaled dot-product attention, without its output layer."""

    def __init__(self, name: str, config: BertConfig):
        super().__init__()
        self.layer = name
        self.config = config
        size = config.hidden_size
        self.query = Dense(f"{name}/query", size, size, config)
        self.key = Dense(f"{name}/key", size, size, config)
        self.value = Dense(f"{name}/value", size, size, config)

    def __call__(
        self, x: tf.Tensor, layout: Packing | Padding, training: bool
    ) -> tf.Tensor:
        """Every token of `x` [tokens, hidden] attends to its own row; same shape."""
        query = layout.unpack(self.query(x))
        _, length = tf.unstack(tf.shape(layout.mask))
        return layout.pack(self._attend(query, length, x, layout, training))

    def read(
        self,
        x: tf.Tensor,
        readers: tf.Tensor,
        reads: tf.Tensor,
        layout: Packing | Padding,
        training: bool,
    ) -> tf.Tensor:
        """Only `readers` [batch * reads, hidden] attend to `x`; same shape."""
        return self._attend(self.query(readers), reads, x, layout, training)

    def _attend(
        self,
        query: tf.Tensor,
        queries: tf.Tensor,
        x: tf.Tensor,
        layout: Packing | Padding,
        training: bool,
    ) -> tf.Tensor:
        """Softmax attention of queries to the tokens of their row.

        Args:
          query: [batch * queries, hidden].
          queries: scalar int32, of each row.
          x: [tokens, hidden].
          layout: where the tokens are.
          training: whether dropout applies.

        Returns:
          The context of each query, [batch * queries, hidden].
        """
        with scope_of(self.layer):
            batch, length = tf.unstack(tf.shape(layout.mask))
            query = self._heads(query, batch, queries) * self.config.head_size**-0.5
            key = self._heads(layout.unpack(self.key(x)), batch, length)
            value = self._heads(layout.unpack(self.value(x)), batch, length)
            hidden_slots = 1.0 - tf.reshape(layout.mask, [batch, 1, 1, length])
            scores = tf.matmul(query, key, transpose_b=True) + hidden_slots * MASKED
            probabilities = dropout(
                tf.nn.softmax(scores),
                self.config.attention_probs_dropout_prob,
                training,
            )  # [batch, heads, queries, length]
            context = tf.matmul(probabilities, value)
            return tf.reshape(
                tf.transpose(context, [0, 2, 1, 3]), [-1, self.config.hidden_size]
            )

    def _heads(self, x: tf.Tensor, batch: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
        """`[batch * length, hidden]` to `[batch, heads, length, head_size]`."""
        shape = [batch, length, self.config.num_attention_heads, self.config.head_size]
        return tf.transpose(tf.reshape(x, shape), [0, 2, 1, 3])


class Layer(tf.Module):
    """One transformer layer: self-attention, then the feed-forward network."""

    def __init__(self, name: str, names: LayerNames, config: BertConfig):
        super().__init__()
        self.layer = name
        self.dropout = config.hidden_dropout_prob
        self.approximate_gelu = config.approximate_gelu
        hidden, inner = config.hidden_size, config.intermediate_size
        names = LayerNames(*(f"{name}/{part}" for part in names))
        self.attention = SelfAttention(names.attention, config)
        self.attention_output = Dense(names.attention_output, hidden, hidden, config)
        self.attention_norm = LayerNorm(names.attention_norm, hidden, config)
        self.intermediate = Dense(names.intermediate, hidden, inner, config)
        self.output = Dense(names.output, inner, hidden, config)
        self.output_norm = LayerNorm(names.output_norm, hidden, config)

    def __call__(
        self, x: tf.Tensor, layout: Packing | Padding, training: bool
    ) -> tf.Tensor:
        """`[tokens, hidden]` to the same shape."""
        return self._finish(x, self.attention(x, layout, training), training)

    def read(
        self,
        x: tf.Tensor,
        readers: tf.Tensor,
        reads: tf.Tensor,
        layout: Packing | Padding,
        training: bool,
    ) -> tf.Tensor:
        """The layer's output for `readers` [batch * reads, hidden], rows of `x`."""
        context = self.attention.read(x, readers, reads, layout, training)
        return self._finish(readers, context, training)

    def _finish(self, x: tf.Tensor, context: tf.Tensor, training: bool) -> tf.Tensor:
        """What follows attention, token by token: `[tokens, hidden]` throughout."""
        attended = dropout(self.attention_output(context), self.dropout, training)
        x = self.attention_norm(attended + x, training)
        with scope_of(self.layer):
            inner = gelu(self.intermediate(x), self.approximate_gelu, training)
        output = dropout(self.output(inner), self.dropout, training)
        return self.output_norm(output + x, training)


class BertEncoder(tf.Module):
    """Embeddings and transformer layers."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.embeddings = Embeddings("bert/embeddings", config)
        width, size = config.embedding_size, config.hidden_size
        self.projection = (
            Dense(_projection(config), width, size, config) if width else None
        )
        # One after the other; ALBERT's come repeatedly.
        self.layers = _shared_layers(config) or [
            Layer(f"bert/encoder/layer_{n}", BERT_NAMES, config)
            for n in range(config.num_hidden_layers)
        ]
        self.hidden_size = config.hidden_size

    def __call__(
        self,
        input_ids: tf.Tensor,
        input_mask: tf.Tensor,
        segment_ids: tf.Tensor,
        reads: tf.Tensor,
        training: bool = False,
        padded: bool = False,
    ) -> tf.Tensor:
        """The last hidden states at some positions of each row.

        The [CLS] position counts as real whatever the mask says, so that a row whose
        mask is all zero gives finite numbers.

        Args:
          input_ids: [batch, seq_length] integers.
          input_mask: [batch, seq_length] integers, 0 on what must not be seen. May
            have holes; tokens keep their positions.
          segment_ids: [batch, seq_length] integers.
          reads: [batch, reads] integers. A position that is not a real token reads
            position 0.
          training: whether dropout applies.
          padded: compute every position, in every layer. Same results, for
            comparison.

        Returns:
          [batch, reads, hidden] float32.
        """
        batch, seq_length = tf.unstack(tf.shape(input_ids))
        positions = tf.range(seq_length)
        real = tf.logical_or(tf.not_equal(input_mask, 0), tf.equal(positions, 0))
        reads = _real_positions(tf.cast(reads, tf.int32), positions, real)
        layout, places, readers = _lay_out(real, reads, padded)
        x = self.embeddings(
            tf.gather(tf.reshape(input_ids, [-1]), places),
            places % tf.maximum(seq_length, 1),
            tf.gather(tf.reshape(segment_ids, [-1]), places),
            training,
        )
        if self.projection is not None:
            x = self.projection(x)
        for layer in self.layers[:-1]:
            x = layer(x, layout, training)
        if padded:
            states = tf.gather(self.layers[-1](x, layout, training), readers)
        else:
            # Nobody reads the other tokens' last states.
            states = self.layers[-1].read(
                x, tf.gather(x, readers), tf.shape(reads)[1], layout, training
            )
        return tf.reshape(states, [batch, tf.shape(reads)[1], self.hidden_size])


def _projection(config: BertConfig) -> str:
    """The name of the dense layer that follows the embeddings."""
    if config.model_type == "albert":
        return "bert/encoder/embedding_hidden_mapping_in"
    return "bert/embeddings_project"


def _shared_layers(config: BertConfig) -> list[Layer]:
    """ALBERT's layers in the order of their use; none for other variants."""
    groups = config.num_hidden_groups
    if groups is None:
        return []
    scope = "bert/encoder/transformer"
    made = [
        [
            Layer(f"{scope}/group_{group}/inner_group_{inner}", ALBERT_NAMES, config)
            for inner in range(config.inner_group_num)
        ]
        for group in range(groups)
    ]
    count = config.num_hidden_layers
    return [layer for n in range(count) for layer in made[n * groups // count]]


def _lay_out(
    real: tf.Tensor, reads: tf.Tensor, padded: bool
) -> tuple[Packing | Padding, tf.Tensor, tf.Tensor]:
    """Decides which places of a batch become tokens.

    Args:
      real: [batch, seq_length] bool.
      reads: [batch, reads] int32, positions of real tokens.
      padded: every place, or only the real ones.

    Returns:
      The layout; each token's place in [batch * seq_length]; and the tokens that
      `reads` names, [batch * reads].
    """
    batch, seq_length = tf.unstack(tf.shape(real))
    read_places = tf.reshape(tf.range(batch)[:, tf.newaxis] * seq_length + reads, [-1])
    if padded:
        layout = Padding(tf.cast(real, tf.float32))
        return layout, tf.range(batch * seq_length), read_places
    packing = Packing.of(real)
    return packing, packing.source, tf.gather(packing.number, read_places)


def _real_positions(
    reads: tf.Tensor, positions: tf.Tensor, real: tf.Tensor
) -> tf.Tensor:
    """`reads` [batch, reads], with 0 for whatever is not the position of a real token.

    Args:
      reads: [batch, reads] int32, positions inside or outside the row.
      positions: [seq_length] int32.
      real: [batch, seq_length] bool.
    """
    match = tf.equal(reads[:, :, tf.newaxis], positions)  # [batch, reads, seq_length]
    found = tf.reduce_any(tf.logical_and(match, tf.expand_dims(real, 1)), axis=2)
    return tf.where(found, reads, tf.zeros_like(reads))

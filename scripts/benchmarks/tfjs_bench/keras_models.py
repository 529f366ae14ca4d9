"""The models of the table as Keras models, each with an input that it is timed on."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from bert_export.export.linker_graph import TrainedLinker
from bert_export.modeling.encoder import MASKED

Layer = tf.keras.layers.Layer


@dataclasses.dataclass(frozen=True)
class Row:
    """A model of the table."""

    name: str  # of its directory and in the JSON
    title: str  # in the table
    model: tf.keras.Model
    inputs: dict[str, np.ndarray]  # by the names of the model's inputs


def mlp(name: str, sizes: tuple[int, ...]) -> Row:
    """Dense layers with ReLU between them and softmax at the end; batch 1."""
    # Weights and input are the same in every run of the benchmark.
    tf.keras.utils.set_random_seed(17)
    x = inputs = tf.keras.Input([sizes[0]], name="x")
    activations = ["relu"] * (len(sizes) - 2) + ["softmax"]
    for units, activation in zip(sizes[1:], activations):
        # The converter leaves out the addition of a bias that is zero.
        x = tf.keras.layers.Dense(units, activation, bias_initializer="normal")(x)
    return Row(
        name,
        f"MLP {'-'.join(map(str, sizes))}",
        tf.keras.Model(inputs, x),
        {"x": _noise(1, sizes[0])},
    )


def mobilenet_v2(side: int, alpha: float) -> Row:
    """Keras' MobileNetV2 (arXiv:1801.04381) with random weights; batch 1."""
    tf.keras.utils.set_random_seed(17)
    model = tf.keras.applications.MobileNetV2(
        input_shape=(side, side, 3), alpha=alpha, weights=None
    )
    # As initialised it says 1/1000 of every class, whatever the image, so that nobody
    # would see a wrong output. Statistics of a batch keep its numbers apart.
    for layer in model.layers:
        if isinstance(layer, tf.keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(_noise(4, side, side, 3), training=True)
    # The converter leaves out the addition of a bias that is zero.
    model.layers[-1].bias.assign(_noise(1000) / 10)
    return Row(
        "mobilenet_v2",
        f"MobileNetV2 {side}x{side}" + ("" if alpha == 1 else f", alpha {alpha}"),
        model,
        {model.input_names[0]: _noise(1, side, side, 3)},
    )


def linker(trained: TrainedLinker, inputs: dict[str, np.ndarray]) -> Row:
    """The linker with a checkpoint's weights, layer by layer as tfjs-layers can.

    It computes every position in every layer, padding included.

    Args:
      trained: the model; its weights are read from its checkpoint.
      inputs: a request by the features' names: sequences [pairs, seq_length] and span
        positions [pairs].
    """
    spec, bert = trained.spec, trained.bert
    weights = tf.train.load_checkpoint(trained.checkpoint)
    sequences = [
        tf.keras.Input([None], name=name, dtype="int32") for name in spec.sequence_names
    ]
    # tfjs-layers makes [batch, 1] of whatever is [batch].
    spans = [tf.keras.Input([1], name=name, dtype="int32") for name in spec.span_fields]
    ids, mask, segments = sequences
    loaded: list[tuple[Layer, list[str]]] = []

    def layer(new: Layer, *names: str) -> Layer:
        loaded.append((new, list(names)))
        return new

    def dense(name: str, units: int, activation: str | None = None) -> Layer:
        new = tf.keras.layers.Dense(units, activation, name=name.replace("/", "_"))
        return layer(new, f"{name}/kernel", f"{name}/bias")

    def norm(name: str) -> Layer:
        new = tf.keras.layers.LayerNormalization(epsilon=bert.layer_norm_eps)
        return layer(new, f"{name}/gamma", f"{name}/beta")

    def embedding(name: str, size: int) -> Layer:
        new = tf.keras.layers.Embedding(size, bert.hidden_size)
        return layer(new, f"bert/embeddings/{name}")

    add = tf.keras.layers.Add
    words = embedding("word_embeddings", bert.vocab_size)(ids)
    positions = layer(
        PositionEmbedding(bert.max_position_embeddings),
        "bert/embeddings/position_embeddings",
    )(words)
    segments = embedding("token_type_embeddings", bert.type_vocab_size)(segments)
    x = norm("bert/embeddings/LayerNorm")(add()([words, positions, segments]))
    # 0 on real tokens, MASKED elsewhere.
    masked = tf.keras.layers.Rescaling(-MASKED, MASKED)(mask)
    for number in range(bert.num_hidden_layers):
        scope = f"bert/encoder/layer_{number}"
        query, key, value = (
            dense(f"{scope}/attention/self/{name}", bert.hidden_size)(x)
            for name in ("query", "key", "value")
        )
        context = Attention(bert.num_attention_heads)([query, key, value, masked])
        attended = dense(f"{scope}/attention/output/dense", bert.hidden_size)(context)
        x = norm(f"{scope}/attention/output/LayerNorm")(add()([attended, x]))
        inner = dense(f"{scope}/intermediate/dense", bert.intermediate_size, "gelu")(x)
        output = dense(f"{scope}/output/dense", bert.hidden_size)(inner)
        x = norm(f"{scope}/output/LayerNorm")(add()([output, x]))
    logits = dense("linker", 2)(ReadPositions()([x, *spans]))
    probabilities = tf.keras.layers.Softmax(name="probabilities")(logits)
    model = tf.keras.Model([*sequences, *spans], probabilities)
    for new, names in loaded:
        new.set_weights([weights.get_tensor(name) for name in names])
    feeds = {
        name: (value[:, np.newaxis] if value.ndim == 1 else value).astype(np.int32)
        for name, value in inputs.items()
    }
    return Row("linker", "linker", model, feeds)


class PositionEmbedding(Layer):
    """Embeddings of the positions 0, 1, 2, ...; see layers.mjs.

    Reads anything of shape [batch, seq_length, hidden]; answers the same shape.
    """

    def __init__(self, sequence_length: int, **kwargs: object):
        super().__init__(**kwargs)
        self.sequence_length = sequence_length

    def build(self, shape: tf.TensorShape) -> None:
        """Makes the weight [sequence_length, hidden]."""
        self.embeddings = self.add_weight(
            "embeddings", [self.sequence_length, shape[-1]]
        )

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Reads nothing but the shape of `x`."""
        return tf.broadcast_to(self.embeddings[: tf.shape(x)[1]], tf.shape(x))

    def get_config(self) -> dict[str, object]:
        """What it takes to make it again."""
        return {**super().get_config(), "sequence_length": self.sequence_length}


class Attention(Layer):
    """Softmax attention with several heads and an additive mask; see layers.mjs.

    Reads query, key and value [batch, seq_length, hidden] and the mask [batch,
    seq_length]; answers [batch, seq_length, hidden].
    """

    def __init__(self, heads: int, **kwargs: object):
        super().__init__(**kwargs)
        self.heads = heads

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        """As `bert_export.modeling.encoder.SelfAttention`."""
        query, key, value, mask = inputs
        batch, length, _ = tf.unstack(tf.shape(query))
        hidden = query.shape[-1]
        size = hidden // self.heads

        def split(x: tf.Tensor) -> tf.Tensor:
            x = tf.reshape(x, [batch, length, self.heads, size])
            return tf.transpose(x, [0, 2, 1, 3])

        scores = tf.matmul(split(query) * size**-0.5, split(key), transpose_b=True)
        shares = tf.nn.softmax(scores + mask[:, tf.newaxis, tf.newaxis])
        context = tf.transpose(tf.matmul(shares, split(value)), [0, 2, 1, 3])
        return tf.reshape(context, [batch, length, hidden])

    def get_config(self) -> dict[str, object]:
        """What it takes to make it again."""
        return {**super().get_config(), "heads": self.heads}


class ReadPositions(Layer):
    """The states at [CLS] and at given positions, side by side; see layers.mjs.

    Reads states [batch, seq_length, hidden] and any number of positions [batch, 1];
    answers [batch, (1 + positions) * hidden].
    """

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        """As `bert_export.modeling.linker.Linker` reads the encoder's states."""
        states, *positions = inputs
        batch, length, _ = tf.unstack(tf.shape(states))
        hidden = states.shape[-1]
        rows = tf.range(batch)[:, tf.newaxis] * length
        places = tf.concat([rows, *(rows + position for position in positions)], axis=1)
        flat = tf.reshape(states, [-1, hidden])
        read = tf.gather(flat, tf.reshape(places, [-1]))
        return tf.reshape(read, [-1, (1 + len(positions)) * hidden])


def _noise(*shape: int) -> np.ndarray:
    """Normally distributed numbers, the same each time."""
    return np.random.default_rng(17).normal(size=shape).astype(np.float32)

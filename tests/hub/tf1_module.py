"""Writes TensorFlow 1 hub modules of a BERT, with the API that made them.

    python tf1_module.py SITE_PACKAGES VOCAB DIRECTORY

SITE_PACKAGES has tensorflow_hub 0.15, the last release with `create_module_spec`. For
each of MODULES a directory is written, with `module/` and `expected.npz`: inputs
[batch, seq_length] and the module's hidden states. Knows nothing of ours.
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import numpy as np
import tensorflow as tf

v1 = tf.compat.v1
# Its name, activation, heads, and what it says of its vocabulary's text.
MODULES = (
    ("uncased", "tanh", 4, True),
    ("cased", "erf", 2, False),
    ("relu", "relu", 4, True),
)
VOCAB_SIZE, HIDDEN, INNER, POSITIONS, LAYERS = 64, 16, 32, 24, 2


def variable(name: str, shape: list[int], mean: float = 0.0) -> tf.Tensor:
    seed = zlib.crc32(f"{v1.get_variable_scope().name}/{name}".encode()) % 2**31
    initializer = v1.truncated_normal_initializer(mean, 0.3, seed=seed)
    return v1.get_variable(name, shape, initializer=initializer)


def dense(name: str, x: tf.Tensor, outputs: int) -> tf.Tensor:
    with v1.variable_scope(name):
        kernel = variable("kernel", [x.shape[-1], outputs])
        return tf.einsum("bsi,io->bso", x, kernel) + variable("bias", [outputs])


def norm(x: tf.Tensor) -> tf.Tensor:
    with v1.variable_scope("LayerNorm"):
        mean, variance = tf.nn.moments(x, [-1], keepdims=True)
        beta, gamma = variable("beta", [HIDDEN]), variable("gamma", [HIDDEN], 1.0)
        return (x - mean) * tf.math.rsqrt(variance + 1e-12) * gamma + beta


def activate(kind: str, x: tf.Tensor) -> tf.Tensor:
    if kind == "relu":
        return tf.nn.relu(x)
    if kind == "erf":
        return x * 0.5 * (1 + tf.math.erf(x / np.sqrt(2)))
    cubic = x + 0.044715 * x**3
    return x * 0.5 * (1 + tf.tanh(np.sqrt(2 / np.pi) * cubic))


def encoder(
    ids: tf.Tensor, mask: tf.Tensor, segments: tf.Tensor, kind: str, heads: int
) -> tf.Tensor:
    """BERT (arXiv:1810.04805), with variables named as google-research/bert has."""
    batch, length = tf.unstack(tf.shape(ids))
    size = HIDDEN // heads
    unseen = (1 - tf.cast(mask, tf.float32))[:, tf.newaxis, tf.newaxis] * -10000.0

    def split(x: tf.Tensor) -> tf.Tensor:
        return tf.transpose(tf.reshape(x, [batch, length, heads, size]), [0, 2, 1, 3])

    with v1.variable_scope("bert"):
        with v1.variable_scope("embeddings"):
            words = variable("word_embeddings", [VOCAB_SIZE, HIDDEN])
            types = variable("token_type_embeddings", [2, HIDDEN])
            places = variable("position_embeddings", [POSITIONS, HIDDEN])
            x = tf.gather(words, ids) + tf.gather(types, segments) + places[:length]
            x = norm(x)
        for number in range(LAYERS):
            with v1.variable_scope(f"encoder/layer_{number}"):
                with v1.variable_scope("attention"):
                    with v1.variable_scope("self"):
                        query, key, value = (
                            split(dense(name, x, HIDDEN))
                            for name in ("query", "key", "value")
                        )
                        scores = tf.matmul(query, key, transpose_b=True)
                        weighted = tf.nn.softmax(scores / np.sqrt(size) + unseen)
                        context = tf.transpose(tf.matmul(weighted, value), [0, 2, 1, 3])
                        context = tf.reshape(context, [batch, length, HIDDEN])
                    with v1.variable_scope("output"):
                        x = norm(x + dense("dense", context, HIDDEN))
                with v1.variable_scope("intermediate"):
                    inner = activate(kind, dense("dense", x, INNER))
                with v1.variable_scope("output"):
                    x = norm(x + dense("dense", inner, HIDDEN))
    return x


def main(vocab: str, directory: Path) -> None:
    import tensorflow_hub as hub

    rng = np.random.default_rng(1)
    mask = (np.arange(9) < np.array([[9], [4], [1]])).astype(np.int32)
    inputs = {
        "input_ids": rng.integers(VOCAB_SIZE, size=mask.shape, dtype=np.int32),
        "input_mask": mask,
        "segment_ids": rng.integers(2, size=mask.shape, dtype=np.int32),
    }
    for name, kind, heads, lower_case in MODULES:

        def module_fn(is_training: bool, kind=kind, heads=heads, lower=lower_case):
            tokens = {
                key: v1.placeholder(tf.int32, [None, None], key) for key in inputs
            }
            states = encoder(*tokens.values(), kind, heads)
            with v1.variable_scope("bert/pooler"):
                pooled = tf.tanh(dense("dense", states[:, :1], HIDDEN))[:, 0]
            outputs = {"sequence_output": states, "pooled_output": pooled}
            hub.add_signature("tokens", tokens, outputs)
            file = tf.constant(vocab, name="vocab_file")
            v1.add_to_collection(v1.GraphKeys.ASSET_FILEPATHS, file)
            info = {"vocab_file": file, "do_lower_case": tf.constant(lower)}
            hub.add_signature("tokenization_info", {}, info)

        spec = hub.create_module_spec(
            module_fn,
            [(set(), {"is_training": False}), ({"train"}, {"is_training": True})],
        )
        with tf.Graph().as_default(), v1.Session() as session:
            module = hub.Module(spec)
            session.run(v1.global_variables_initializer())
            states = module(inputs, signature="tokens", as_dict=True)
            target = directory / name
            target.mkdir()
            np.savez(
                target / "expected.npz",
                **inputs,
                states=session.run(states["sequence_output"]),
            )
            module.export(str(target / "module"), session)


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    main(sys.argv[2], Path(sys.argv[3]))

"""TensorFlow 1 graphs, trained a few steps and saved as people did."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

v1 = tf.compat.v1


def save(
    directory: Path,
    build: Callable[[], tuple[Any, dict[Any, np.ndarray]]],
    steps: int = 3,
    **saver: Any,
) -> str:
    """Trains and saves what `build` makes; returns the checkpoint's prefix.

    `build` returns a training operation and what to feed it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with tf.Graph().as_default(), v1.Session() as session:
        v1.set_random_seed(5)
        train, feed = build()
        session.run([v1.global_variables_initializer(), v1.tables_initializer()])
        for _ in range(steps):
            session.run(train, feed)
        return v1.train.Saver(**saver).save(session, str(directory / "model.ckpt"))


def run_checkpoint(prefix: str, outputs: list[str], feed: dict[str, Any]) -> list[Any]:
    """The numbers of the checkpoint's own graph, in a session."""
    with tf.Graph().as_default(), v1.Session() as session:
        v1.train.import_meta_graph(f"{prefix}.meta").restore(session, prefix)
        return session.run(outputs, feed)


def read(path: Path) -> Any:
    """A frozen graph's GraphDef."""
    return v1.GraphDef.FromString(path.read_bytes())


def run_frozen(path: Path, outputs: list[str], feed: dict[str, Any]) -> list[Any]:
    """The numbers of a frozen graph, in a session of its own."""
    with tf.Graph().as_default() as graph, v1.Session(graph=graph) as session:
        tf.import_graph_def(read(path), name="")
        return session.run(outputs, feed)


@contextlib.contextmanager
def first_control_flow() -> Iterator[None]:
    """TensorFlow 1's loops and branches: Enter, Switch, Merge."""
    v1.disable_control_flow_v2()
    try:
        yield
    finally:
        v1.enable_control_flow_v2()


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def minimize(loss: tf.Tensor, **keywords: Any) -> Any:
    return v1.train.AdamOptimizer(0.05).minimize(loss, **keywords)


def dense(x: tf.Tensor, name: str, units: int) -> tf.Tensor:
    with v1.variable_scope(name):
        kernel = v1.get_variable("kernel", [x.shape[-1], units])
        bias = v1.get_variable("bias", [units], initializer=v1.zeros_initializer())
        return tf.nn.bias_add(tf.matmul(x, kernel), bias)


def mlp(resource: bool = True, inner: int = 8) -> tuple[Any, dict[Any, np.ndarray]]:
    """x [n, 6] → score_student/output_student [n, 3], with dropout by keep_prob."""
    x = v1.placeholder(tf.float32, [None, 6], "x")
    y = v1.placeholder(tf.int64, [None], "y")
    keep_prob = v1.placeholder(tf.float32, [], "keep_prob")
    with v1.variable_scope("score_student", use_resource=resource):
        hidden = tf.nn.relu(dense(x, "hidden", inner))
        hidden = v1.nn.dropout(hidden, keep_prob=keep_prob)
        logits = dense(tf.debugging.check_numerics(hidden, "bad"), "logits", 3)
        tf.nn.softmax(logits, name="output_student")
        tf.split(logits, 3, axis=1, name="split")
    with v1.name_scope("loss"):
        loss = v1.losses.sparse_softmax_cross_entropy(y, logits)
    v1.summary.scalar("loss", loss)
    feed = {x: random(20, 6), y: np.arange(20) % 3, keep_prob: np.float32(0.5)}
    return minimize(loss, global_step=v1.train.get_or_create_global_step()), feed


def conv(
    resource: bool = True, default: bool = False, fused: bool = True
) -> tuple[Any, dict[Any, np.ndarray]]:
    """image [n, 8, 8, 3] → scores [n, 2]; batch norm switched by is_training."""
    image = v1.placeholder(tf.float32, [None, 8, 8, 3], "image")
    if default:
        training = v1.placeholder_with_default(True, [], "is_training")
    else:
        training = v1.placeholder(tf.bool, [], "is_training")
    with v1.variable_scope("net", use_resource=resource):
        x = v1.layers.conv2d(image, 4, 3)
        x = v1.layers.batch_normalization(
            x, training=training, momentum=0.5, fused=fused
        )
        x = tf.reduce_mean(tf.nn.relu(x), axis=[1, 2])
        scores = dense(x, "scores", 2)
    scores = tf.identity(scores, "scores")
    loss = tf.reduce_mean(tf.square(scores - 1.0))
    with tf.control_dependencies(v1.get_collection(v1.GraphKeys.UPDATE_OPS)):
        return minimize(loss), {image: 3 * random(9, 8, 8, 3) + 1, training: True}


def lstm(resource: bool = True) -> tuple[Any, dict[Any, np.ndarray]]:
    """ids [n, time] below 11, lengths [n] → state [n, 5] and outputs [n, time, 5]."""
    ids = v1.placeholder(tf.int32, [None, None], "ids")
    lengths = v1.placeholder(tf.int32, [None], "lengths")
    with v1.variable_scope("rnn_model", use_resource=resource):
        table = v1.get_variable("table", [11, 4])
        outputs, state = v1.nn.dynamic_rnn(
            v1.nn.rnn_cell.LSTMCell(5),
            tf.nn.embedding_lookup(table, ids),
            lengths,
            dtype=tf.float32,
        )
    tf.identity(outputs, "outputs")
    loss = tf.reduce_mean(tf.square(tf.identity(state.h, "state") - 1.0))
    values = {ids: np.arange(24).reshape(4, 6) % 11, lengths: np.array([6, 1, 3, 4])}
    return minimize(loss), values

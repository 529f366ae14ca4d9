"""Batches computed in halves, against the same batches computed at once."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from bert_export.training.halves import compute_in_halves

LENGTHS = {
    "no rows": [],
    "one row": [5],
    "one empty row": [0],
    "all alike": [4, 4, 4, 4],
    "one long row": [1, 1, 9, 1],
    "empty rows": [0, 3, 0, 7, 0],
    "mixed": [3, 9, 1, 4, 1, 5, 9, 2, 6],
}


def halves_of(lengths: list[int]) -> tuple[list[list[int]], np.ndarray, np.ndarray]:
    """Which rows each half had, the answers, and their gradients by row."""
    mask = tf.sequence_mask(lengths, 9, tf.int64)
    seen: list[list[int]] = []
    weight = tf.Variable(tf.random.normal([len(lengths)]))

    def compute(features: dict[str, tf.Tensor]) -> tf.Tensor:
        seen.append(features["row"].numpy().tolist())
        tokens = tf.reduce_sum(features["mask"], axis=1)
        rows = tf.gather(weight, features["row"])
        return tf.stack([rows, tf.cast(tokens, tf.float32) * rows], axis=1)

    with tf.GradientTape() as tape:
        answers = compute_in_halves(
            compute, {"row": tf.range(len(lengths)), "mask": mask}, mask
        )
        loss = tf.reduce_sum(answers[:, 1])
    np.testing.assert_array_equal(
        answers, np.stack([weight, np.float32(lengths) * weight.numpy()], axis=1)
    )
    gradient = tf.convert_to_tensor(tape.gradient(loss, weight))
    return seen, answers.numpy(), gradient.numpy()


@pytest.mark.parametrize("kind", LENGTHS)
def test_all_rows_come_back_in_their_order(kind: str):
    lengths = LENGTHS[kind]
    seen, answers, gradient = halves_of(lengths)
    assert answers.shape == (len(lengths), 2)
    assert sorted(seen[0] + seen[1]) == list(range(len(lengths)))
    np.testing.assert_array_equal(gradient, lengths)


@pytest.mark.parametrize("seed", range(5))
def test_halves_have_as_many_tokens_and_rows_of_similar_length(seed: int):
    lengths = np.random.default_rng(seed).integers(0, 10, 40).tolist()
    (short, long), _, _ = halves_of(lengths)
    assert max(lengths[row] for row in short) <= min(lengths[row] for row in long)
    tokens = [sum(lengths[row] for row in half) for half in (short, long)]
    assert abs(tokens[0] - tokens[1]) <= max(lengths)


@pytest.mark.parametrize(
    ("variable", "first", "expected"),
    [
        (None, "", max(1, len(os.sched_getaffinity(0)) // 2)),
        ("3", "", 0),  # TensorFlow reads the variable by itself.
        (None, "tf.constant(1.0) + 1.0", 0),  # Too late.
    ],
)
def test_an_operation_has_half_of_the_cores(
    variable: str | None, first: str, expected: int
):
    program = (
        "import tensorflow as tf\n"
        f"{first}\n"
        "from bert_export.training.halves import share_threads\n"
        "share_threads(); share_threads()\n"
        "print(tf.config.threading.get_intra_op_parallelism_threads())"
    )
    environment = {**os.environ, "TF_NUM_INTRAOP_THREADS": variable}
    if variable is None:
        del environment["TF_NUM_INTRAOP_THREADS"]
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == expected

"""Trains the tiny task unbroken and interrupted in many ways, each in its directory.

A process of its own: the last bits of a sum depend on the number of threads, which
TensorFlow decides once, from TF_NUM_INTRAOP_THREADS and TF_NUM_INTEROP_THREADS.

    python -m tests.training.interrupted_runs DIRECTORY NAME...
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import tensorflow as tf

from bert_export.errors import Terminated
from bert_export.training import estimator as training
from tests.training import tiny_task

STEPS, EVERY = 14, 4
CONFIG = tiny_task.config(
    save_checkpoints_steps=EVERY,
    keep_checkpoint_max=3,
    average_checkpoints=2,
    shuffle_mentions=30,
    learning_rate=1e-2,
    # By chance a seed with which the best checkpoint is the second of three.
    seed=20,
)
# With dropout, whose random numbers have to be those of an unbroken training, too.
PARAMS = tiny_task.params(
    CONFIG,
    STEPS,
    bert=dataclasses.replace(
        tiny_task.BERT,
        num_hidden_layers=1,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    ),
)


class AtStep(tf.estimator.SessionRunHook):
    """Calls a function after so many steps of a session."""

    def __init__(self, left: int, call: Callable[[], object]) -> None:
        self._left, self._call = left, call

    def after_run(self, run_context, run_values):
        self._left -= 1
        if not self._left:
            self._call()


def power_cut() -> None:
    raise RuntimeError("power cut")


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class Runs:
    """The task's records, and ways to train on them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.train_records = tiny_task.write(directory / "r", "train", 60, seed=1)
        self.dev_records = tiny_task.write(directory / "r", "dev", 20, seed=2)

    def train(
        self,
        model_dir: Path,
        hook: tf.estimator.SessionRunHook | None = None,
        while_scoring: tf.estimator.SessionRunHook | None = None,
    ) -> None:
        estimator = training.create_estimator(CONFIG, PARAMS, model_dir)
        train, evaluate = estimator.train, estimator.evaluate
        if hook:
            estimator.train = lambda input_fn, max_steps, hooks: train(
                input_fn, max_steps=max_steps, hooks=[hook, *hooks]
            )
        if while_scoring:
            estimator.evaluate = lambda input_fn, hooks, **options: evaluate(
                input_fn, hooks=[while_scoring, *hooks], **options
            )
        training.train(estimator, CONFIG, PARAMS, self.train_records, self.dev_records)


@contextlib.contextmanager
def expected(error: type[BaseException]) -> Iterator[None]:
    try:
        yield
    except error as found:
        print(found)
    else:
        raise AssertionError(f"{error} did not come")


def flip(file: Path) -> None:
    """Changes one bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def halve(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def files(model_dir: Path, step: int) -> tuple[Path, Path]:
    prefix = model_dir / f"model.ckpt-{step}"
    return Path(f"{prefix}.index"), Path(f"{prefix}.data-00000-of-00001")


def flip_newest(model_dir: Path) -> None:
    flip(files(model_dir, 12)[1])


def flip_newest_index(model_dir: Path) -> None:
    flip(files(model_dir, 12)[0])


def flip_middle(model_dir: Path) -> None:
    flip(files(model_dir, 8)[1])


def halve_state(model_dir: Path) -> None:
    halve(model_dir / "checkpoint")


def lose_state(model_dir: Path) -> None:
    (model_dir / "checkpoint").unlink()


def flip_all(model_dir: Path) -> None:
    for step in (4, 8, 12):
        flip(files(model_dir, step)[1])


def flip_best(model_dir: Path) -> None:
    (data,) = (model_dir / "best").glob("*.data*")
    flip(data)


def flip_best_and_newest(model_dir: Path) -> None:
    flip_best(model_dir)
    flip_newest(model_dir)


def flip_best_and_middle(model_dir: Path) -> None:
    flip_best(model_dir)
    flip_middle(model_dir)


def halve_curve(model_dir: Path) -> None:
    """In the middle of a line: without its last lines a curve is one of before."""
    curve = model_dir / "curve.jsonl"
    lines = curve.read_bytes().splitlines(keepends=True)
    os.truncate(curve, len(b"".join(lines[:2])) + len(lines[2]) // 2)


def leave_half_a_save(model_dir: Path) -> None:
    """As a kill does: while a checkpoint, the state, the best were being written."""
    data = files(model_dir, 12)[1].read_bytes()
    (model_dir / "model.ckpt-13_temp").mkdir()
    (model_dir / "model.ckpt-13_temp" / "part-00000-of-00001.index").write_bytes(b"")
    (model_dir / "model.ckpt-13.data-00000-of-00001.tempstate12").write_bytes(data)
    (model_dir / "checkpoint.tmp0123").write_text("model_checkpoint_path")
    (model_dir / ".curve.jsonl.12.partial").write_text("{")
    (model_dir / "best").rename(model_dir / "best.replaced")
    (model_dir / "best.partial").mkdir()


DAMAGES = {
    damage.__name__: damage
    for damage in (
        flip_newest,
        flip_newest_index,
        flip_middle,
        halve_state,
        lose_state,
        flip_all,
        flip_best,
        flip_best_and_newest,
        flip_best_and_middle,
        halve_curve,
        leave_half_a_save,
    )
}


def terminated(runs: Runs, model_dir: Path) -> None:
    """Between checkpoints, and again a step later."""
    for steps in (6, 1):
        with expected(Terminated):
            runs.train(model_dir, AtStep(steps, terminate))
    runs.train(model_dir)


def terminated_while_scoring(runs: Runs, model_dir: Path) -> None:
    # Two batches a checkpoint.
    with expected(Terminated):
        runs.train(model_dir, while_scoring=AtStep(5, terminate))
    runs.train(model_dir)


def flip_best_at_the_end(runs: Runs, model_dir: Path) -> None:
    shutil.copytree(runs.directory / "unbroken", model_dir)
    flip_best(model_dir)
    runs.train(model_dir)


OTHERS = {
    run.__name__: run
    for run in (terminated, terminated_while_scoring, flip_best_at_the_end)
}


def main(directory: Path, *names: str) -> None:
    """Trains unbroken, and then interrupted or damaged as each name says.

    Prints a line '-- NAME' before what each has to say.
    """
    runs = Runs(directory)
    print("-- unbroken", flush=True)
    runs.train(directory / "unbroken")
    killed = directory / "killed"
    for name in names:
        print(f"-- {name}", flush=True)
        if name in OTHERS:
            OTHERS[name](runs, directory / name)
            continue
        if not killed.exists():
            with expected(RuntimeError):
                runs.train(killed, AtStep(STEPS - 1, power_cut))
        shutil.copytree(killed, directory / name)
        DAMAGES[name](directory / name)
        runs.train(directory / name)


if __name__ == "__main__":
    # What is said comes in one stream, in its order.
    sys.stderr = sys.stdout
    main(Path(sys.argv[1]), *sys.argv[2:])

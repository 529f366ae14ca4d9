"""The Estimator: built from the config, trained, resumed, its best checkpoint kept."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf
from tqdm import tqdm

from bert_export.config import Config
from bert_export.errors import StageError, Terminated
from bert_export.features.records import RecordSet
from bert_export.modeling.precision import bfloat16_session_config
from bert_export.training import checkpoints, multi_worker
from bert_export.training.checkpoints import best_checkpoint as best_checkpoint
from bert_export.training.checkpoints import global_step as global_step
from bert_export.training.checkpoints import newest_checkpoint as newest_checkpoint
from bert_export.training.checkpoints import read_curve as read_curve
from bert_export.training.checkpoints import recorded_step as recorded_step
from bert_export.training.input_fn import ordered_input_fn, train_input_fn
from bert_export.training.model_fn import ModelParams, model_fn


def num_train_steps(config: Config, num_mentions: int) -> int:
    """Optimizer steps of the whole training, at least one."""
    steps = round(config.train.epochs * num_mentions / config.train.mentions_per_batch)
    return max(1, min(steps, config.train.max_steps or steps))


def create_estimator(
    config: Config, params: ModelParams, model_dir: Path, bfloat16: bool = False
) -> tf.compat.v1.estimator.Estimator:
    """An Estimator, or a TPUEstimator if `config.train.use_tpu`.

    Args:
      config: the run's config.
      params: for the model_fn.
      model_dir: where checkpoints and summaries are.
      bfloat16: mixed precision; without it predictions are float32 throughout, as
        those of the exported artifacts are.

    Returns:
      The estimator, with nothing run yet.
    """
    # Reads TF_CONFIG, before Estimators do.
    multi_worker.this_worker()
    options = _run_options(config, model_dir, bfloat16)
    if not config.train.use_tpu:
        return tf.compat.v1.estimator.Estimator(
            model_fn,
            config=tf.estimator.RunConfig(**options),
            params={"model": params},
        )
    tpu = tf.compat.v1.estimator.tpu
    return tpu.TPUEstimator(
        model_fn,
        config=tpu.RunConfig(**options),
        params={"model": params},
        use_tpu=False,
        export_to_tpu=False,
    )


def _run_options(config: Config, model_dir: Path, bfloat16: bool) -> dict[str, Any]:
    """What a RunConfig is made of."""
    return {
        "model_dir": str(model_dir),
        "tf_random_seed": config.train.seed,
        "save_checkpoints_steps": config.train.save_checkpoints_steps,
        "save_summary_steps": config.train.log_steps,
        "log_step_count_steps": config.train.log_steps,
        "keep_checkpoint_max": config.train.keep_checkpoint_max,
        "session_config": bfloat16_session_config() if bfloat16 else None,
    }


def train(
    estimator: tf.compat.v1.estimator.Estimator,
    config: Config,
    params: ModelParams,
    train_records: RecordSet,
    dev_records: RecordSet,
) -> None:
    """Trains to `params.num_train_steps`, from the newest checkpoint if there is one.

    At every checkpoint dev mentions are scored, by the average of the newest
    `config.train.average_checkpoints` ones; the weights with the highest link accuracy
    are kept in MODEL_DIR/best, and a line (step, pairs seen, loss, link accuracy) is
    added to MODEL_DIR/curve.jsonl. Training itself goes on from the last checkpoint.

    Checkpoints are saved at multiples of `config.train.save_checkpoints_steps`, and at
    the end. An interrupted training ends with the weights of an unbroken one, to the
    last bit if TensorFlow computes on one thread (`TF_NUM_INTRAOP_THREADS=1` and
    `TF_NUM_INTEROP_THREADS=1`); on more, sums are added up in any order.

    One of several workers (see `multi_worker`) computes its part of each batch, and
    only the chief saves and scores.

    Raises:
      Terminated: SIGTERM came; the step at hand was finished and a checkpoint saved.
      StageError: another worker was lost.
      UserError: several workers cannot train so.
    """
    model_dir = Path(estimator.model_dir)
    worker = multi_worker.this_worker()
    if worker:
        worker.check(config.train)
    first_step = recover(config, model_dir) or 0
    last_step = params.num_train_steps
    with _sigterm() as is_terminated:
        scorer = None
        if dev_records.num_mentions and multi_worker.is_chief():
            scorer = _KeepBest(
                estimator, config, params, train_records, dev_records, is_terminated
            )
            if (step := checkpoints.unscored_step(model_dir)) is not None:
                scorer.score(step)
        if first_step >= last_step:
            print(f"trained already: {first_step} of {last_step} steps")
            return
        if first_step:
            print(f"going on from step {first_step} of {last_step}")
        input_fn = train_input_fn(
            train_records,
            params.spec,
            config.train.mentions_per_batch,
            config.train.shuffle_mentions,
            config.train.seed,
            first_step,
            worker.index if worker else 0,
            worker.count if worker else 1,
        )
        # A scheduler's log gets a line a minute.
        interval = 1.0 if sys.stderr.isatty() else 60.0
        with tqdm(
            total=last_step,
            initial=first_step,
            unit="step",
            desc="train",
            mininterval=interval,
            maxinterval=interval,
        ) as progress:
            hooks: list[tf.estimator.SessionRunHook] = [_ProgressHook(progress)]
            if multi_worker.is_chief():
                hooks.append(
                    _SaveCheckpoints(
                        model_dir,
                        config.train.save_checkpoints_steps,
                        last_step,
                        is_terminated,
                        scorer,
                    )
                )
            if worker is None:
                estimator.train(input_fn, max_steps=last_step, hooks=hooks)
                return
            hooks.insert(0, multi_worker.OneSessionHook())
            # In a graph, as the strategy is, of which each Estimator makes copies.
            with tf.Graph().as_default():
                # The caller's evaluates, which this one could only with the others.
                together = tf.compat.v1.estimator.Estimator(
                    model_fn,
                    config=worker.run_config(
                        **_run_options(config, model_dir, config.train.bfloat16)
                    ),
                    params={"model": params},
                )
                try:
                    together.train(input_fn, max_steps=last_step, hooks=hooks)
                except (StageError, tf.errors.OpError) as error:
                    if is_terminated():
                        raise _terminated("a step that others had left") from error
                    raise
            worker.leave_together()


def recover(config: Config, model_dir: Path) -> int | None:
    """Makes MODEL_DIR fit for `train` to go on in; see `checkpoints.recover`.

    Of several workers, the others take it as the chief has left it.
    """
    if not multi_worker.is_chief():
        newest = newest_checkpoint(model_dir)
        return None if newest is None else global_step(newest)
    return checkpoints.recover(
        model_dir, config.train.keep_checkpoint_max, config.train.average_checkpoints
    )


@contextlib.contextmanager
def _sigterm() -> Iterator[Callable[[], bool]]:
    """Holds SIGTERM back; yields a function that tells whether it has come."""
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread may handle signals.
        yield came.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        yield came.is_set
        if came.is_set():
            raise _terminated("the end of training")
    finally:
        signal.signal(signal.SIGTERM, before)


class _ProgressHook(tf.estimator.SessionRunHook):
    """Moves a progress bar a step at a time and shows a smoothed loss."""

    def __init__(self, progress: tqdm) -> None:
        self._progress = progress
        self._loss: float | None = None

    def before_run(self, run_context):
        losses = tf.compat.v1.GraphKeys.LOSSES
        return tf.estimator.SessionRunArgs(
            run_context.session.graph.get_collection(losses)[0]
        )

    def after_run(self, run_context, run_values):
        loss = float(run_values.results)
        self._loss = loss if self._loss is None else 0.98 * self._loss + 0.02 * loss
        self._progress.set_postfix(loss=f"{self._loss:.3f}", refresh=False)
        self._progress.update(1)


class _SaveCheckpoints(tf.estimator.CheckpointSaverHook):
    """Saves by the global step alone, whatever step training went on from.

    TensorFlow's own hook saves where training goes on, and counts its interval from
    there: the checkpoints, so the averages, of an interrupted training would differ.
    Being one, this takes the place of the Estimator's.
    """

    def __init__(
        self,
        model_dir: Path,
        every: int,
        last_step: int,
        is_terminated: Callable[[], bool],
        scorer: _KeepBest | None,
    ) -> None:
        super().__init__(
            str(model_dir), save_steps=every, listeners=[scorer] if scorer else []
        )
        self._interrupted = model_dir / checkpoints.INTERRUPTED_DIR
        self._resumes = checkpoints.newest_checkpoint(model_dir) is not None
        self._every = every
        self._last_step = last_step
        self._is_terminated = is_terminated

    def after_create_session(self, session, coord):
        if not self._resumes:
            super().after_create_session(session, coord)

    def after_run(self, run_context, run_values):
        session = run_context.session
        step = int(session.run(self._global_step_tensor))
        if step >= self._last_step:
            return  # end() saves it.
        if step % self._every == 0:
            self._save(session, step)
            shutil.rmtree(self._interrupted, ignore_errors=True)
        if self._is_terminated():
            if step % self._every:
                self._save_aside(session, step)
            raise _terminated(f"step {step} of {self._last_step}")

    def end(self, session):
        self._save(session, int(session.run(self._global_step_tensor)))
        shutil.rmtree(self._interrupted, ignore_errors=True)

    def _save_aside(self, session, step):
        """Saves a checkpoint that the schedule knows nothing of."""
        partial = self._interrupted.with_name(f"{self._interrupted.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        (saver,) = tf.compat.v1.get_collection(tf.compat.v1.GraphKeys.SAVERS)
        saver.save(
            session, str(partial / checkpoints.BASENAME), step, write_state=False
        )
        shutil.rmtree(self._interrupted, ignore_errors=True)
        partial.rename(self._interrupted)


class _StopScoring(tf.estimator.SessionRunHook):
    """Ends an evaluation at SIGTERM: the checkpoint is saved, and scored later."""

    def __init__(self, is_terminated: Callable[[], bool]) -> None:
        self._is_terminated = is_terminated

    def after_run(self, run_context, run_values):
        if self._is_terminated():
            raise _terminated("a checkpoint that is yet to be scored")


class _KeepBest(tf.estimator.CheckpointSaverListener):
    """Evaluates each checkpoint on dev and copies the best one aside."""

    def __init__(
        self,
        estimator: tf.compat.v1.estimator.Estimator,
        config: Config,
        params: ModelParams,
        train_records: RecordSet,
        dev_records: RecordSet,
        is_terminated: Callable[[], bool],
    ) -> None:
        self._estimator = estimator
        self._dev_input_fn = ordered_input_fn(
            dev_records,
            params.spec,
            config.eval.mentions_per_batch,
            config.eval.checkpoint_mentions,
        )
        self._pairs_a_step = (
            train_records.num_records
            / train_records.num_mentions
            * config.train.mentions_per_batch
        )
        self._num_averaged = config.train.average_checkpoints
        self._model_dir = Path(estimator.model_dir)
        self._stop = _StopScoring(is_terminated)

    def after_save(self, session, global_step_value):
        self.score(int(global_step_value))

    def score(self, step: int) -> None:
        """Scores a step's checkpoint, unless the curve has it already."""
        curve = read_curve(self._model_dir)
        if any(point["step"] == step for point in curve):
            return
        checkpoint = checkpoints.to_score(self._model_dir, step, self._num_averaged)
        result = self._estimator.evaluate(
            self._dev_input_fn,
            checkpoint_path=checkpoint,
            name="dev",
            hooks=[self._stop],
        )
        point = {
            "step": step,
            "pairs": round(step * self._pairs_a_step),
            "loss": float(result["loss"]),
            "link_accuracy": float(result["link_accuracy"]),
        }
        tqdm.write(
            f"step {step}: dev loss {point['loss']:.4f}, "
            f"link accuracy {point['link_accuracy']:.4f}",
            file=sys.stderr,
        )
        if checkpoints.best_point([*curve, point]) is point:
            checkpoints.copy_checkpoint(
                checkpoint, self._model_dir / checkpoints.BEST_DIR
            )
        # Last, so that an interrupted copy is evaluated and made again.
        checkpoints.write_curve(self._model_dir, [*curve, point])


def _terminated(where: str) -> Terminated:
    return Terminated(f"terminated at {where}; run again to go on")

"""The Estimator: built from the config, trained, resumed, its best checkpoint kept."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from bert_export.config import Config
from bert_export.features.records import RecordSet
from bert_export.files import write_text
from bert_export.modeling.optimizer import MOMENTS
from bert_export.modeling.precision import bfloat16_session_config
from bert_export.training.input_fn import ordered_input_fn, train_input_fn
from bert_export.training.model_fn import ModelParams, model_fn

BEST_DIR = "best"
AVERAGE_DIR = "average"
CURVE_FILE = "curve.jsonl"


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
    options: dict[str, Any] = {
        "model_dir": str(model_dir),
        "tf_random_seed": config.train.seed,
        "save_checkpoints_steps": config.train.save_checkpoints_steps,
        "save_summary_steps": config.train.log_steps,
        "log_step_count_steps": config.train.log_steps,
        "keep_checkpoint_max": config.train.keep_checkpoint_max,
        "session_config": bfloat16_session_config() if bfloat16 else None,
    }
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
    """
    model_dir = Path(estimator.model_dir)
    first_step = _newest_step(model_dir)
    if first_step >= params.num_train_steps:
        print(f"trained already: {first_step} of {params.num_train_steps} steps")
        return
    if first_step:
        print(f"going on from step {first_step} of {params.num_train_steps}")
    input_fn = train_input_fn(
        train_records,
        params.spec,
        config.train.mentions_per_batch,
        config.train.shuffle_mentions,
        config.train.seed,
        first_step,
    )
    listeners = []
    if dev_records.num_mentions:
        dev_input_fn = ordered_input_fn(
            dev_records,
            params.spec,
            config.eval.mentions_per_batch,
            config.eval.checkpoint_mentions,
        )
        pairs_a_step = (
            train_records.num_records
            / train_records.num_mentions
            * config.train.mentions_per_batch
        )
        listeners.append(
            _KeepBest(
                estimator, dev_input_fn, pairs_a_step, config.train.average_checkpoints
            )
        )
    # A scheduler's log gets a line a minute.
    interval = 1.0 if sys.stderr.isatty() else 60.0
    with tqdm(
        total=params.num_train_steps,
        initial=first_step,
        unit="step",
        desc="train",
        mininterval=interval,
        maxinterval=interval,
    ) as progress:
        estimator.train(
            input_fn,
            max_steps=params.num_train_steps,
            hooks=[_ProgressHook(progress)],
            saving_listeners=listeners,
        )


def newest_checkpoint(model_dir: Path) -> str | None:
    """Prefix of the checkpoint that training wrote last, if any."""
    return tf.train.latest_checkpoint(str(model_dir))


def best_checkpoint(model_dir: Path) -> str | None:
    """Prefix of the checkpoint with the highest link accuracy on dev, if any."""
    return tf.train.latest_checkpoint(str(model_dir / BEST_DIR))


def global_step(checkpoint: str) -> int:
    """The optimizer step at which `checkpoint` (a prefix) was written."""
    return int(tf.train.load_variable(checkpoint, "global_step"))


def recorded_step(checkpoint: str) -> int | None:
    """Like `global_step`; None for a checkpoint that does not count its steps."""
    name = tf.compat.v1.GraphKeys.GLOBAL_STEP
    reader = tf.train.load_checkpoint(checkpoint)
    return int(reader.get_tensor(name)) if reader.has_tensor(name) else None


def _newest_step(model_dir: Path) -> int:
    checkpoint = newest_checkpoint(model_dir)
    return 0 if checkpoint is None else global_step(checkpoint)


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


class _KeepBest(tf.estimator.CheckpointSaverListener):
    """Evaluates each checkpoint on dev and copies the best one aside."""

    def __init__(
        self,
        estimator: tf.compat.v1.estimator.Estimator,
        dev_input_fn: Any,
        pairs_a_step: float,
        num_averaged: int,
    ) -> None:
        self._estimator = estimator
        self._dev_input_fn = dev_input_fn
        self._pairs_a_step = pairs_a_step
        self._num_averaged = num_averaged
        self._model_dir = Path(estimator.model_dir)

    def after_save(self, session, global_step_value):
        curve = read_curve(self._model_dir)
        if any(point["step"] == global_step_value for point in curve):
            return
        checkpoint = self._averaged()
        result = self._estimator.evaluate(
            self._dev_input_fn, checkpoint_path=checkpoint, name="dev"
        )
        point = {
            "step": int(global_step_value),
            "pairs": round(global_step_value * self._pairs_a_step),
            "loss": float(result["loss"]),
            "link_accuracy": float(result["link_accuracy"]),
        }
        tqdm.write(
            f"step {point['step']}: dev loss {point['loss']:.4f}, "
            f"link accuracy {point['link_accuracy']:.4f}",
            file=sys.stderr,
        )
        # Weights that no step has changed are not a result of training.
        best = max((p["link_accuracy"] for p in curve if p["step"]), default=-1.0)
        if point["step"] and point["link_accuracy"] > best:
            _copy_checkpoint(checkpoint, self._model_dir / BEST_DIR)
        # Last, so that an interrupted copy is evaluated and made again.
        lines = [json.dumps(each) + "\n" for each in [*curve, point]]
        write_text(self._model_dir / CURVE_FILE, "".join(lines))

    def _averaged(self) -> str:
        """The prefix of the checkpoint to score: the newest, or an average."""
        state = tf.train.get_checkpoint_state(str(self._model_dir))
        assert state is not None  # A checkpoint was saved a moment ago.
        newest = list(state.all_model_checkpoint_paths)[-self._num_averaged :]
        # Weights that no step has changed drag the others back.
        trained = [prefix for prefix in newest if global_step(prefix)]
        if len(trained) < 2:
            return newest[-1]
        return average_checkpoints(trained, self._model_dir / AVERAGE_DIR)


def average_checkpoints(prefixes: Sequence[str], directory: Path) -> str:
    """Writes the mean of some checkpoints' weights (arXiv:1706.03762, section 6.1).

    Args:
      prefixes: the checkpoints, of one model; the last gives the step and the name.
      directory: replaced by one that holds only the average, without the optimizer's
        moments.

    Returns:
      Its prefix.
    """
    readers = [tf.train.load_checkpoint(prefix) for prefix in prefixes]
    names = sorted(
        name
        for name in readers[-1].get_variable_to_shape_map()
        if not name.endswith(MOMENTS)
    )
    means = []
    for name in names:
        values = [reader.get_tensor(name) for reader in readers]
        is_weight = np.issubdtype(values[-1].dtype, np.floating)
        means.append(np.mean(values, axis=0) if is_weight else values[-1])
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    prefix = str(directory / Path(prefixes[-1]).name)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        values = [tf.compat.v1.placeholder(mean.dtype) for mean in means]
        save = tf.raw_ops.SaveV2(
            prefix=prefix,
            tensor_names=names,
            shape_and_slices=[""] * len(names),
            tensors=values,
        )
        session.run(save, dict(zip(values, means)))
    return prefix


def read_curve(model_dir: Path) -> list[dict[str, Any]]:
    """The points of MODEL_DIR/curve.jsonl: step, pairs, loss, link_accuracy."""
    path = model_dir / CURVE_FILE
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _copy_checkpoint(prefix: str, directory: Path) -> None:
    """Replaces `directory` by one that holds only the checkpoint `prefix`."""
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in Path(prefix).parent.glob(Path(prefix).name + ".*"):
        shutil.copy2(file, partial)
    tf.compat.v1.train.update_checkpoint_state(str(partial), Path(prefix).name)
    shutil.rmtree(directory, ignore_errors=True)
    partial.rename(directory)

"""Checkpoints on disk: which are whole, which is the best, what to go on from."""

from __future__ import annotations

import functools
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from bert_export.files import write_text
from bert_export.modeling.optimizer import MOMENTS

BEST_DIR = "best"
AVERAGE_DIR = "average"
# What was saved between two checkpoints of the schedule, when training was stopped.
# Apart from those, so that it is neither scored nor averaged nor counted.
INTERRUPTED_DIR = "interrupted"
CURVE_FILE = "curve.jsonl"
BASENAME = "model.ckpt"
# The file in which TensorFlow looks for the name of the newest checkpoint.
STATE_FILE = "checkpoint"
# What a process that was killed while it wrote leaves behind.
_LEFTOVERS = (
    f"{BASENAME}-*_temp*",
    f"{BASENAME}-*.tempstate*",
    f"{STATE_FILE}.tmp*",
    "*.partial",
    f"{BEST_DIR}.replaced",
)


def newest_checkpoint(model_dir: Path) -> str | None:
    """Prefix of the newest checkpoint that is whole, if any; says what it passes over.

    Found by the checkpoints themselves: TensorFlow's `checkpoint` file may be damaged.
    """
    found = _saved(model_dir) | _saved(model_dir / INTERRUPTED_DIR)
    return next((found[s] for s in sorted(found)[::-1] if is_whole(found[s])), None)


def best_checkpoint(model_dir: Path) -> str | None:
    """Prefix of the checkpoint with the highest link accuracy on dev, if it is whole.

    None as well before training has scored any.
    """
    return newest_checkpoint(model_dir / BEST_DIR)


def is_whole(prefix: str) -> bool:
    """Whether all tensors of a checkpoint can be read and match their checksums.

    Says so, once, if not. TensorFlow stores a CRC-32C of each tensor in the index, and
    one of each block of the index (tensorflow/core/util/tensor_bundle).
    """
    # Known until a file changes: reading gigabytes takes seconds.
    return _reads(prefix, tuple(_stat(file) for file in sorted(_files(prefix))))


@functools.lru_cache(maxsize=64)
def _reads(prefix: str, files: tuple[tuple[str, int, int, int], ...]) -> bool:
    del files  # Only the cache's key.
    try:
        reader = tf.train.load_checkpoint(prefix)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    # Whatever a damaged file makes TensorFlow raise: it is damaged.
    except Exception as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        print(f"damaged, passed over: {prefix}: {why}", file=sys.stderr, flush=True)
        return False
    return True


def global_step(checkpoint: str) -> int:
    """The optimizer step at which `checkpoint` (a prefix) was written."""
    return int(tf.train.load_variable(checkpoint, "global_step"))


def recorded_step(checkpoint: str) -> int | None:
    """Like `global_step`; None for a checkpoint that does not count its steps."""
    name = tf.compat.v1.GraphKeys.GLOBAL_STEP
    reader = tf.train.load_checkpoint(checkpoint)
    return int(reader.get_tensor(name)) if reader.has_tensor(name) else None


def unscored_step(model_dir: Path) -> int | None:
    """The step of the newest checkpoint of the schedule, if the curve lacks it."""
    newest = max(_saved(model_dir), default=None)
    scored = {point["step"] for point in read_curve(model_dir)}
    return None if newest in scored else newest


def read_curve(model_dir: Path) -> list[dict[str, Any]]:
    """The points of MODEL_DIR/curve.jsonl: step, pairs, loss, link_accuracy."""
    path = model_dir / CURVE_FILE
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def write_curve(model_dir: Path, curve: Sequence[dict[str, Any]]) -> None:
    """Replaces the points of MODEL_DIR/curve.jsonl."""
    lines = [json.dumps(point) + "\n" for point in curve]
    write_text(model_dir / CURVE_FILE, "".join(lines))


def best_point(curve: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The first point with the highest link accuracy; weights no step changed apart."""
    trained = [point for point in curve if point["step"]]
    return max(trained, key=lambda point: point["link_accuracy"], default=None)


def to_score(model_dir: Path, step: int, num_averaged: int) -> str:
    """The prefix to score at a step: its checkpoint, or the mean of the newest ones.

    Args:
      model_dir: the checkpoints, `step`'s among them.
      step: what comes after it does not count.
      num_averaged: checkpoints to average, at most.
    """
    saved = _saved(model_dir)
    newest = sorted(s for s in saved if s <= step)[-num_averaged:]
    # Weights that no step has changed drag the others back.
    trained = [saved[s] for s in newest if s]
    if len(trained) < 2:
        return saved[step]
    return average_checkpoints(trained, model_dir / AVERAGE_DIR)


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


def copy_checkpoint(prefix: str, directory: Path) -> None:
    """Replaces `directory` by one that holds only the checkpoint `prefix`.

    Killed at any moment, it leaves the old one, or what `recover` makes it of.
    """
    partial = directory.with_name(f"{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in _files(prefix):
        shutil.copy2(file, partial)
    tf.compat.v1.train.update_checkpoint_state(str(partial), Path(prefix).name)
    replaced = _replaced(directory)
    shutil.rmtree(replaced, ignore_errors=True)
    if directory.exists():
        directory.rename(replaced)
    partial.rename(directory)
    shutil.rmtree(replaced, ignore_errors=True)


def recover(model_dir: Path, keep: int, num_averaged: int) -> int | None:
    """Makes a model directory fit to go on in, whatever a killed process left.

    Training goes on from the newest checkpoint from which it ends as if nothing had
    happened: whole, as are those that it will be averaged with, and with the best one
    whole or to be had again. Where there is none it starts anew. Prints which it is,
    if anything was lost.

    Args:
      model_dir: of an Estimator that is not at work.
      keep: checkpoints that stay, at most; 0 for all.
      num_averaged: checkpoints that are averaged to be scored.

    Returns:
      The step to go on from; None where there is no checkpoint.
    """
    best_dir = model_dir / BEST_DIR
    if not best_dir.exists() and _replaced(best_dir).exists():
        _replaced(best_dir).rename(best_dir)
    for pattern in _LEFTOVERS:
        for path in list(model_dir.glob(pattern)):
            _remove(path)
    saved = _saved(model_dir)
    interrupted = _saved(model_dir / INTERRUPTED_DIR)
    found = interrupted | saved
    if not found:
        if (model_dir / CURVE_FILE).exists():
            _start_anew(model_dir)
        return None
    whole = {step for step, prefix in found.items() if is_whole(prefix)}
    try:
        curve = read_curve(model_dir)
    except ValueError as error:
        print(f"damaged: {model_dir / CURVE_FILE}: {error}", file=sys.stderr)
        _start_anew(model_dir)
        return None
    has_best = best_point(curve) is None or best_checkpoint(model_dir) is not None
    for step in sorted(whole, reverse=True):
        # Without the best one, what was scored later has to be scored again.
        kept_curve = curve if has_best else _until(curve, step)
        remade = None if has_best else best_point(kept_curve)
        needed = {s for s in _averaged_next(kept_curve, num_averaged) if s <= step}
        if remade:
            until = _until(kept_curve, remade["step"])
            needed |= _averaged_next(until, num_averaged + 1)
        if needed <= whole & saved.keys():
            break
    else:
        _start_anew(model_dir)
        return None
    for other in saved.keys() - whole | {s for s in saved if s > step}:
        _remove_checkpoint(saved.pop(other))
    if keep:
        for other in sorted(saved)[:-keep]:
            _remove_checkpoint(saved.pop(other))
    if step in saved:
        _remove(model_dir / INTERRUPTED_DIR)
    if not has_best:
        _remove(best_dir)
        if remade:
            made = to_score(model_dir, remade["step"], num_averaged)
            copy_checkpoint(made, best_dir)
            print(f"made anew: {best_dir} (step {remade['step']})", file=sys.stderr)
        write_curve(model_dir, kept_curve)
    _write_state(model_dir, found[step], [saved[s] for s in sorted(saved)])
    return step


def _averaged_next(curve: Sequence[dict[str, Any]], num_averaged: int) -> set[int]:
    """The steps that the next checkpoint will be averaged with."""
    trained = [point["step"] for point in curve if point["step"]]
    return set(trained[max(0, len(trained) - num_averaged + 1) :])


def _until(curve: Sequence[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    return [point for point in curve if point["step"] <= step]


def _start_anew(model_dir: Path) -> None:
    print(
        f"training starts anew: what is left in {model_dir} does not lead to the same "
        "result",
        file=sys.stderr,
    )
    # The curve last: without it, a checkpoint that a kill leaves here would be taken
    # for a sound one.
    for prefix in _saved(model_dir).values():
        _remove_checkpoint(prefix)
    for name in (INTERRUPTED_DIR, AVERAGE_DIR, BEST_DIR, STATE_FILE, CURVE_FILE):
        _remove(model_dir / name)


def _write_state(model_dir: Path, newest: str, kept: Sequence[str]) -> None:
    """Tells TensorFlow what to restore, and what to delete as new ones are saved.

    Protocol buffers' text format of tensorflow/python/training/checkpoint_state.proto;
    `update_checkpoint_state` would count `newest` among those to be kept.
    """
    lines = [f'model_checkpoint_path: "{Path(newest).relative_to(model_dir)}"\n']
    lines += [f'all_model_checkpoint_paths: "{Path(prefix).name}"\n' for prefix in kept]
    path, text = model_dir / STATE_FILE, "".join(lines)
    # Nothing is touched where nothing is to be mended.
    if not path.exists() or path.read_bytes() != text.encode():
        write_text(path, text)


def _saved(directory: Path) -> dict[int, str]:
    """The prefix of each checkpoint in a directory, by its step."""
    found = {}
    for file in directory.glob(f"{BASENAME}-*.index"):
        if match := re.fullmatch(rf"{re.escape(BASENAME)}-(\d+)\.index", file.name):
            found[int(match[1])] = str(file.with_suffix(""))
    return found


def _files(prefix: str) -> list[Path]:
    path = Path(prefix)
    # Prefixes are no patterns: a directory's name may have brackets.
    return [
        file
        for file in path.parent.iterdir()
        if file.name.startswith(f"{path.name}.") and file.is_file()
    ]


def _stat(file: Path) -> tuple[str, int, int, int]:
    stat = file.stat()
    return file.name, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _replaced(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.replaced")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _remove_checkpoint(prefix: str) -> None:
    # The index first: without it, the others are no checkpoint.
    for file in sorted(_files(prefix), key=lambda file: file.suffix != ".index"):
        file.unlink()

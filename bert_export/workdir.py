"""A run's directory: its recorded config, its stages' summary, its errors."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bert_export.config import Config
from bert_export.errors import Failure, StageError, UserError
from bert_export.files import write_json, write_text

CONFIG_FILE = "config.json"
# Beside the checkpoints: the options and the data that they were trained with. Not
# called config.json, which beside a checkpoint is BERT's own.
TRAINED_WITH_FILE = "trained_with.json"
SUMMARY_FILE = "summary.json"
ERROR_FILE = "error.log"

_DISK_FULL = os.strerror(errno.ENOSPC)
# Options that may differ between a run and the one that goes on from its
# checkpoints: they change how training is run or how long, not what is learnt.
_MAY_CHANGE = {
    "train.do_train",
    "train.epochs",
    "train.max_steps",
    "train.bfloat16",
    "train.use_tpu",
    "train.save_checkpoints_steps",
    "train.keep_checkpoint_max",
    "train.log_steps",
    "corpus.max_bad_records",
    "corpus.wordnet_dir",
    "corpus.gcide",
}


def record_config(config: Config, workdir: Path) -> None:
    """Writes WORKDIR/config.json, which repeats the run as `--config`.

    Raises:
      UserError: the workdir cannot be written, or is to train on from checkpoints
        that were trained with other options.
    """
    if config.train.do_train:
        trained = _flat(_trained_with(workdir).get("config", {}))
        now = _flat(dataclasses.asdict(config))
        for key in sorted(trained.keys() & now.keys()):
            if (
                key.startswith(("corpus.", "features.", "model.", "train."))
                and key not in _MAY_CHANGE
                and now[key] != trained[key]
            ):
                raise UserError(
                    f"{workdir} holds a model trained with {key}={trained[key]!r}, and "
                    f"now it is {now[key]!r}; {_how_to_train_anew(workdir)}"
                )
    path = workdir / CONFIG_FILE
    try:
        write_text(path, config.to_json())
    except OSError as error:
        raise unwritable(f"--workdir: cannot write {path}", error) from error


def unwritable(what: str, error: OSError) -> Failure:
    """The failure to raise for what cannot be written; a full disk may be so later."""
    kind = StageError if error.errno == errno.ENOSPC else UserError
    return kind(f"{what}: {error.strerror}")


def record_training(config: Config, data_fingerprint: str, workdir: Path) -> None:
    """Notes beside the checkpoints, before the first, what they are trained with.

    Raises:
      UserError: there are checkpoints that were trained on other data.
    """
    trained_on = _trained_with(workdir).get("data_fingerprint", data_fingerprint)
    if trained_on != data_fingerprint:
        raise UserError(
            f"{workdir} holds a model trained on other data: the corpus has changed "
            f"since; {_how_to_train_anew(workdir)}"
        )
    write_json(
        workdir / "model" / TRAINED_WITH_FILE,
        {"data_fingerprint": data_fingerprint, "config": dataclasses.asdict(config)},
    )


def _trained_with(workdir: Path) -> dict[str, Any]:
    """What `record_training` noted, if there are checkpoints."""
    path = workdir / "model" / TRAINED_WITH_FILE
    if not path.exists() or not path.with_name("checkpoint").exists():
        return {}
    return json.loads(path.read_text(encoding="utf-8"))


def _how_to_train_anew(workdir: Path) -> str:
    return f"use another --workdir, or remove {workdir / 'model'} to train anew"


def summarize(workdir: Path, **figures: Any) -> None:
    """Puts figures into WORKDIR/summary.json beside those that are there."""
    write_json(workdir / SUMMARY_FILE, read_summary(workdir) | figures)


def read_summary(workdir: Path) -> dict[str, Any]:
    """What WORKDIR/summary.json holds; nothing before the first stage is done."""
    path = workdir / SUMMARY_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


@contextlib.contextmanager
def stage(name: str, workdir: Path) -> Iterator[None]:
    """Runs a stage: announces it, times it, and gives its failure its name.

    Raises:
      Failure: as raised inside.
      StageError: anything else that went wrong, named; the traceback of what the
        program did not foresee goes to WORKDIR/error.log.
    """
    print(f"== {name}", file=sys.stderr, flush=True)
    started = time.monotonic()
    try:
        yield
    except StageError as error:
        raise StageError(f"stage {name} failed: {error}") from error
    except Failure:
        raise
    except OSError as error:
        raise StageError(f"stage {name} failed: {error}") from error
    except Exception as error:
        log, where = workdir / ERROR_FILE, ""
        with contextlib.suppress(OSError):
            write_text(log, traceback.format_exc())
            where = f" (traceback in {log})"
        raise StageError(
            f"stage {name} failed: {type(error).__name__}: {_cause(error)}{where}"
        ) from error
    print(
        f"== {name} done in {time.monotonic() - started:.1f} s",
        file=sys.stderr,
        flush=True,
    )


def _cause(error: Exception) -> str:
    """The line of an exception's text that says most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # TensorFlow puts where it happened before what it was.
    telling = [line for line in lines if _DISK_FULL in line] or [
        line for line in lines if line != "Graph execution error:"
    ]
    return telling[0] if telling else type(error).__name__


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """{"train": {"seed": 1}} → {"train.seed": 1}; tuples become JSON's lists."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat

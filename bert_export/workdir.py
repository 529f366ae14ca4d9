"""A run's directory: its recorded config, its stages' summary, its errors."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bert_export.config import Config, read_json
from bert_export.errors import StageError, UserError
from bert_export.files import write_json, write_text

CONFIG_FILE = "config.json"
SUMMARY_FILE = "summary.json"
ERROR_FILE = "error.log"

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
}


def record_config(config: Config, workdir: Path) -> None:
    """Writes WORKDIR/config.json, which repeats the run as `--config`.

    Raises:
      UserError: the workdir cannot be written, or holds checkpoints that were
        trained with other options.
    """
    path = workdir / CONFIG_FILE
    if path.exists() and (workdir / "model" / "checkpoint").exists():
        trained, now = _flat(read_json(path)), _flat(dataclasses.asdict(config))
        changed = sorted(
            key
            for key in now.keys() | trained.keys()
            if key.startswith(("corpus.", "features.", "model.", "train."))
            and key not in _MAY_CHANGE
            and now.get(key) != trained.get(key)
        )
        if config.train.do_train and changed:
            key = changed[0]
            raise UserError(
                f"{workdir} holds a model trained with {key}={trained.get(key)!r}, and "
                f"now it is {now.get(key)!r}; use another --workdir, or remove "
                f"{workdir / 'model'} to train anew"
            )
    try:
        write_text(path, config.to_json())
    except OSError as error:
        raise UserError(f"--workdir: cannot write {path}: {error.strerror}") from error


def summarize(workdir: Path, **figures: Any) -> None:
    """Puts figures into WORKDIR/summary.json beside those that are there."""
    path = workdir / SUMMARY_FILE
    summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_json(path, summary | figures)


@contextlib.contextmanager
def stage(name: str, workdir: Path) -> Iterator[None]:
    """Runs a stage: announces it, times it, and gives its failure its name.

    Raises:
      UserError: as raised inside.
      StageError: anything else that went wrong, named; the traceback of what the
        program did not foresee goes to WORKDIR/error.log.
    """
    print(f"== {name}", file=sys.stderr, flush=True)
    started = time.monotonic()
    try:
        yield
    except UserError:
        raise
    except StageError as error:
        raise StageError(f"stage {name} failed: {error}") from error
    except OSError as error:
        raise StageError(f"stage {name} failed: {error}") from error
    except Exception as error:
        log = workdir / ERROR_FILE
        with contextlib.suppress(OSError):
            write_text(log, traceback.format_exc())
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StageError(
            f"stage {name} failed: {type(error).__name__}: {message} "
            f"(traceback in {log})"
        ) from error
    print(
        f"== {name} done in {time.monotonic() - started:.1f} s",
        file=sys.stderr,
        flush=True,
    )


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """{"train": {"seed": 1}} → {"train.seed": 1}; tuples become JSON's lists."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat

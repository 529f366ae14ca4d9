"""What machines read of a retraining: JSON Lines, Prometheus metrics, a command."""

from __future__ import annotations

import datetime
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_NOTIFY_SECONDS = 60
_PREFIX = "bert_export_retrain_"


def now() -> str:
    """The time in UTC, as '2026-11-23T03:00:00Z'."""
    moment = datetime.datetime.now(datetime.timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


class RunLog:
    """Appends one JSON object an event to a file; each has `time`, `run_id`, `event`.

    What cannot be logged is no reason to end a run: it is said on standard error.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.run_id: str | None = None

    def event(self, event: str, **values: Any) -> None:
        """Appends an event and its JSON values."""
        record = {"time": now(), "run_id": self.run_id, "event": event, **values}
        line = json.dumps(record, ensure_ascii=False) + "\n"
        try:
            # One write, so that lines are whole whenever the process dies.
            with open(self._path, "ab", buffering=0) as file:
                file.write(line.encode())
        except OSError as error:
            warn(f"cannot write {self._path}: {error.strerror}")


def warn(message: str) -> None:
    """Tells a person what went wrong without ending the run."""
    print(f"bert-export: warning: {message}", file=sys.stderr, flush=True)


def write_metrics(path: str, summary: Mapping[str, Any]) -> None:
    """Writes a run's figures for node_exporter's textfile collector.

    The metrics are gauges named `bert_export_retrain_…` with the label `model`, in
    Prometheus' text format. The file is replaced at once, as the collector asks.

    Args:
      path: the file; its name must end in .prom for the collector to read it.
      summary: of the run, see docs/retrain.md.
    """
    from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

    registry = CollectorRegistry()
    gate = summary["gate_passed"]
    for name, text, value in (
        ("last_run_timestamp_seconds", "When a run last ended.", summary["ended"]),
        (
            "last_success_timestamp_seconds",
            "When a run last published, or found nothing to do.",
            summary["last_success"],
        ),
        ("duration_seconds", "How long the last run took.", summary["seconds"]),
        ("exit_code", "The last run's exit code.", summary["exit_code"]),
        (
            "published_version",
            "The current version in the model base.",
            summary["current_version"],
        ),
        (
            "gate_passed",
            "Whether the last model to be judged was good enough.",
            None if gate is None else float(gate),
        ),
        (
            "link_accuracy",
            "Of the current version, on held-out mentions, 0 to 1.",
            summary["link_accuracy"],
        ),
    ):
        if value is not None:
            gauge = Gauge(_PREFIX + name, text, ["model"], registry=registry)
            gauge.labels(summary["name"]).set(value)
    try:
        write_to_textfile(path, registry)
    except OSError as error:
        warn(f"--metrics_file: cannot write {path}: {error.strerror}")


def notify(command: str, summary: Mapping[str, Any]) -> None:
    """Runs a command with the summary as JSON on its standard input.

    Args:
      command: cut into words as a shell does, but not run by one.
      summary: of the run, see docs/retrain.md.
    """
    try:
        done = subprocess.run(
            shlex.split(command),
            input=json.dumps(summary, ensure_ascii=False) + "\n",
            encoding="utf-8",
            # Standard output may be another program's to read.
            stdout=sys.stderr,
            timeout=_NOTIFY_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        warn(f"--notify_command: took more than {_NOTIFY_SECONDS} s and was ended")
    except (OSError, ValueError) as error:
        warn(f"--notify_command: cannot run {command!r}: {error}")
    else:
        if done.returncode:
            warn(f"--notify_command: {command!r} ended with {done.returncode}")

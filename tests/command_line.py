"""Runs the program as a person does: as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = "--config=configs/sample.py"


def run(
    *arguments: str | os.PathLike[str],
    interpreter: tuple[str, ...] = (),
    text: str | None = None,
    preexec_fn: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    """`python -m bert_export ARGUMENTS` in the project's directory.

    Args:
      *arguments: the command and flags.
      interpreter: options of Python itself.
      text: for standard input, which is empty otherwise.
      preexec_fn: called in the new process first, to set its limits.
    """
    return subprocess.run(
        [sys.executable, *interpreter, "-m", "bert_export", *map(str, arguments)],
        cwd=ROOT,
        input=text or "",
        preexec_fn=preexec_fn,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )


def done(
    *arguments: str | os.PathLike[str], text: str | None = None
) -> subprocess.CompletedProcess[str]:
    """`run`, which has to succeed."""
    result = run(*arguments, text=text)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result


def refused(*arguments: str | os.PathLike[str]) -> str:
    """The one line with which a usage error ends, before TensorFlow is loaded."""
    result = run(*arguments, interpreter=("-X", "importtime"))
    imports = [line for line in result.stderr.splitlines() if "import time:" in line]
    messages = [line for line in result.stderr.splitlines() if line not in imports]
    assert result.returncode == 2, result.stderr
    assert not [line for line in imports if line.endswith(" tensorflow")]
    assert result.stdout == ""
    assert len(messages) == 1, messages
    assert messages[0].startswith("bert-export: ")
    return messages[0].removeprefix("bert-export: ")

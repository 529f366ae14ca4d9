"""Packages that tests need apart from this environment's own, kept between runs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


def run(
    *command: str | Path, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, with nothing but `path` in PYTHONPATH."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    # Nothing is fetched while tests run.
    environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=environment
    )


def interpreter(*packages: str, uv: bool = True) -> Path:
    """The Python of an environment with packages and what they depend on.

    Args:
      packages: requirements; where they cannot be installed, the test is skipped.
      uv: use it where it is there; else pip, whose configuration may name an index of
        builds for CPUs.
    """
    with _kept(packages) as (directory, is_complete):
        python = directory / "bin" / "python"
        if not is_complete:
            made = run(sys.executable, "-m", "venv", directory)
            assert made.returncode == 0, made.stderr
            _install(python, packages, uv=uv)
        return python


def without_dependencies(*packages: str) -> Path:
    """A directory with packages and nothing that they depend on, for sys.path."""
    with _kept((*packages, "alone")) as (directory, is_complete):
        if not is_complete:
            target = ("--no-deps", "--target", str(directory))
            _install(Path(sys.executable), (*target, *packages))
        return directory


def _install(python: Path, arguments: tuple[str, ...], uv: bool = True) -> None:
    found = shutil.which("uv") if uv else None
    installer = (
        [found, "pip", "install", f"--python={python}"]
        if found
        else [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    )
    if not found:
        # As with uv: of thousands of modules few are imported.
        installer.append("--no-compile")
    done = run(*installer, *arguments)
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:]
        pytest.skip(f"{' '.join(arguments)} cannot be installed here: {reason}")


@contextlib.contextmanager
def _kept(packages: tuple[str, ...]) -> Iterator[tuple[Path, bool]]:
    """A directory of the user's cache, and whether it was completed before.

    It counts as complete when the block ends. Other processes wait meanwhile.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    minor = f"py{sys.version_info.major}.{sys.version_info.minor}"
    name = "-".join([*packages, minor]).replace("==", "-")
    directory = cache / "bert_export_tests" / name
    directory.parent.mkdir(parents=True, exist_ok=True)
    with open(directory.with_name(f"{name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        complete = directory / "complete"
        if complete.exists():
            yield directory, True
            return
        shutil.rmtree(directory, ignore_errors=True)
        yield directory, False
        complete.touch()

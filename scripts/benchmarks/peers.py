"""The virtual environments of the libraries that we are measured against."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# Versions that work together.
PEERS = {
    "pytorch": (
        "torch==2.13.0",
        "transformers==4.57.6",
        "sentence-transformers==5.7.0",
        "accelerate==1.15.0",
        "datasets==5.0.1",
        "optimum==2.1.0",
        "optimum-onnx==0.1.0",
        "optimum-intel==1.27.0",
        "onnx==1.23.2",
        "onnxruntime==1.32.0",
        "openvino==2026.4.1",
        "nncf==3.4.0",
        "numpy==2.4.6",
    ),
    # What a consumer of our artifacts installs.
    "runtimes": (
        "onnxruntime==1.32.0",
        "openvino==2026.4.1",
        "tokenizers==0.22.2",
        "numpy==2.4.6",
    ),
    "google_bert": (
        "bert-tensorflow==1.0.4",
        "tensorflow==1.15.5",
        "tensorflow-estimator==1.15.1",
        "protobuf==3.20.3",
        "numpy==1.18.5",
    ),
}


class Unavailable(Exception):
    """A peer cannot be had on this machine; the message says why."""


def default_directory() -> Path:
    """Where environments and models are kept between runs."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "bert_export_benchmarks"


def python(peer: str, directory: Path) -> Path:
    """The interpreter of a peer's virtual environment, which is made at first.

    Args:
      peer: a name of PEERS.
      directory: has the environments, each in a directory named like its peer.

    Raises:
      Unavailable: there is no Python for it, or it cannot be installed.
    """
    environment = directory / peer
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / f"{peer}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Written last: what was interrupted is made anew.
        complete = environment / "complete"
        requirements = "\n".join(PEERS[peer])
        if not complete.exists() or complete.read_text("utf-8") != requirements:
            base = _python37() if peer == "google_bert" else Path(sys.executable)
            print(f"{peer}: making {environment}", file=sys.stderr)
            shutil.rmtree(environment, ignore_errors=True)
            _run(peer, [base, "-m", "venv", environment])
            interpreter = str(environment / "bin" / "python")
            pip = [interpreter, "-m", "pip", "--disable-pip-version-check"]
            # Its configuration may name an index of PyTorch's builds for CPUs.
            _run(peer, [*pip, "install", "--quiet", *PEERS[peer]])
            complete.write_text(requirements, "utf-8")
    return environment / "bin" / "python"


def _python37() -> Path:
    """Of the PATH or of pyenv."""
    found = shutil.which("python3.7")
    candidates = [Path(found)] if found else []
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    candidates += sorted(pyenv.glob("versions/3.7.*/bin/python3.7"), reverse=True)
    for candidate in candidates:
        # pyenv's shims are on the PATH whether or not their Python is selected.
        done = subprocess.run(
            [candidate, "--version"], capture_output=True, check=False
        )
        if done.returncode == 0:
            return candidate
    raise Unavailable("Python 3.7 was not found: TensorFlow 1.15 runs on no later one")


def _run(peer: str, command: Sequence[str | Path]) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        errors = [line for line in said if line.startswith("ERROR")] or said
        reason = errors[-1] if errors else f"pip ended with {done.returncode}"
        raise Unavailable(f"{peer} cannot be installed here: {reason}")

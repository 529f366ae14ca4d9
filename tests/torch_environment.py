"""An environment with PyTorch and Hugging Face's libraries, apart from TensorFlow's."""

from __future__ import annotations

from pathlib import Path

from tests import environments

TORCH = "2.13.0"
TRANSFORMERS = "5.23.0"
SENTENCE_TRANSFORMERS = "6.2.0"


def interpreter() -> Path:
    """The environment's Python; skips the test where it cannot be made."""
    return environments.interpreter(
        f"torch=={TORCH}",
        f"transformers=={TRANSFORMERS}",
        f"sentence-transformers=={SENTENCE_TRANSFORMERS}",
        uv=False,
    )


def site_packages(python: Path) -> Path:
    """Where the environment's packages are."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(environments.run(python, "-c", code).stdout.strip())

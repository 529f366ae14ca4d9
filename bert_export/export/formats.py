"""What writes each format, and which packages that takes."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from bert_export import javascript
from bert_export.config import Target
from bert_export.errors import StageError, UserError
from bert_export.export import extras
from bert_export.export.linker_graph import TrainedLinker


def require(targets: Iterable[Target]) -> None:
    """Makes sure that all packages are there, before any work is done.

    Raises:
      UserError: one is missing; it names the extra that installs it. Or there is no
        Node.js for TensorFlow.js.
    """
    for target in targets:
        requires = getattr(_module(target), "REQUIRES", None)
        if requires:
            extras.require(*requires)
        if target.format == "tfjs":
            # Installs them once; the proof runs in Node.js and in a browser.
            javascript.packages()


def write(
    target: Target,
    model: TrainedLinker,
    staging: Path,
    calibration: list[dict[str, np.ndarray]],
) -> list[str]:
    """Writes an artifact's own files; all formats but saved_model.

    Args:
      target: the format and its precision.
      model: what to write.
      staging: an existing directory.
      calibration: batches of real training requests, for int8_calibrated: by
        feature name, int64, sequences [n, longest in batch] and spans [n].

    Returns:
      Sentences on what was decided or is lost in this format.

    Raises:
      StageError: the format's converter failed.
    """
    try:
        return _module(target).write(model, staging, target.precision, calibration)
    except (UserError, StageError, MemoryError, OSError):
        raise
    except Exception as error:
        # Converters raise whatever they like; the other formats go on.
        raise StageError(
            f"the {target.format} converter failed: {type(error).__name__}: {error}"
        ) from error


def _module(target: Target) -> Any:
    return importlib.import_module(f"bert_export.export.{target.format}")

"""Figures that are readable on white and on black, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

INK = "#808890"
_STYLE = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@contextlib.contextmanager
def drawing(
    path: Path, *grid: int, font_size: float, **options: Any
) -> Iterator[tuple[Any, Any]]:
    """A figure to draw on, without a background; it is written when the block ends.

    Args:
      path: the PNG file.
      grid: rows and columns of axes.
      font_size: in points.
      options: more for matplotlib's `subplots`.

    Yields:
      The figure and its axes.
    """
    with plt.rc_context({**_STYLE, "font.size": font_size}):
        figure, axes = plt.subplots(*grid, layout="constrained", **options)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            yield figure, axes
            for place in figure.axes:
                place.set_facecolor("none")
                place.spines[["top", "right"]].set_visible(False)
            figure.savefig(partial, format="png", transparent=True)
            partial.replace(path)
        finally:
            plt.close(figure)
            partial.unlink(missing_ok=True)

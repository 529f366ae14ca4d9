"""The plots of the gate's report."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

from bert_export.release.gate import METRICS, SETS
from bert_export.verification.report_plots import INK, new_figure, to_svg

# Of Okabe and Ito's palette (https://jfly.uni-koeln.de/color).
_GOOD, _BAD, _BEFORE = "#0072B2", "#D55E00", "#888888"
_ROW = 0.28  # inches


@dataclasses.dataclass(frozen=True)
class Plot:
    """A plot as a file and as part of a page."""

    name: str
    caption: str
    png: bytes
    svg: str


def draw(verdict: Mapping[str, Any]) -> list[Plot]:
    """The plots that a verdict has figures for."""
    plots = []
    compared = [
        (f"{title}\n{SETS[name]}", measured[metric], _limit(verdict, name))
        for name, measured in verdict["metrics"].items()
        for metric, title in METRICS.items()
        if measured[metric]["difference"] is not None
    ]
    if compared:
        confidence = 100 * verdict["limits"]["confidence"]
        plots.append(
            _plot(
                "differences",
                "Candidate minus production, with the ends of the one-sided "
                f"{confidence:g} % intervals. The left end has to be right of the "
                "dash, the allowed drop.",
                _differences(compared),
            )
        )
    fewest = verdict["limits"]["min_slice_mentions"]
    if slices := [s for s in verdict["slices"] if s["mentions"] >= fewest]:
        plots.append(
            _plot(
                "slices",
                f"Link accuracy by slice of {fewest} mentions or more: grey "
                "production, coloured the candidate; the dash is how far it may fall.",
                _slices(slices, verdict["limits"]["slice_max_drop"]),
            )
        )
    return plots


def _limit(verdict: Mapping[str, Any], name: str) -> float:
    key = "max_drop" if name == "held_out" else "golden_max_drop"
    return -verdict["limits"][key]


def _differences(rows: Sequence[tuple[str, Mapping[str, float], float]]) -> Any:
    figure, axes = new_figure(1.0 + 1.6 * _ROW * len(rows))
    axes.axvline(0, color=INK, linewidth=0.8, alpha=0.4)
    for place, (_, found, limit) in enumerate(rows):
        lower, upper = 100 * found["lower"], 100 * found["upper"]
        colour = _GOOD if lower >= limit else _BAD
        axes.plot([lower, upper], [place, place], color=colour, linewidth=2)
        axes.plot(100 * found["difference"], place, "o", color=colour, markersize=8)
        axes.plot([limit, limit], [place - 0.35, place + 0.35], color=INK, linewidth=2)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel("points", color=INK)
    axes.grid(color=INK, alpha=0.12, axis="x")
    return figure


def _slices(rows: Sequence[Mapping[str, Any]], max_drop: float) -> Any:
    figure, axes = new_figure(1.0 + _ROW * len(rows))
    for place, entry in enumerate(rows):
        new = 100 * entry["candidate"]
        colour = _BAD if entry["passed"] is False else _GOOD
        if entry["production"] is not None:
            old = 100 * entry["production"]
            axes.plot([old, new], [place, place], color=colour, linewidth=2)
            axes.plot(old, place, "o", color=_BEFORE, markersize=6)
            limit = [old - max_drop] * 2
            axes.plot(limit, [place - 0.3, place + 0.3], color=INK, linewidth=2)
        axes.plot(new, place, "o", color=colour, markersize=6)
    names = [
        f"{SETS[entry['set']]}, {entry['by']}: {entry['name']} ({entry['mentions']:,})"
        for entry in rows
    ]
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set_xlim(-2, 102)
    axes.set_xlabel("link accuracy, %", color=INK)
    axes.grid(color=INK, alpha=0.12, axis="x")
    return figure


def _plot(name: str, caption: str, figure: Any) -> Plot:
    svg = to_svg(figure, name)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, facecolor="white")
    return Plot(name, caption, buffer.getvalue(), svg)

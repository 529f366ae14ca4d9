"""The report's plots as SVG that stands in the page itself."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

# Drawn in the page's own text colour, whatever that is.
INK = "#010203"
# Okabe and Ito's palette, told apart by colour-blind readers, too, and legible on
# white and on black (https://jfly.uni-koeln.de/color).
_COLOURS = {
    "saved_model": "#0072B2",
    "serving_model": "#56B4E9",
    "frozen_graph": "#009E73",
    "onnx": "#E69F00",
    "openvino": "#D55E00",
    "tflite": "#CC79A7",
    # Not of the palette, whose yellow is lost on white.
    "tfjs": "#A6761D",
    "hub": "#7B3294",
    "huggingface": "#4D4D4D",
    None: "#888888",
}
_MARKERS = {
    "float32": "o",
    "bfloat16": "s",
    "float16": "D",
    "int8_dynamic": "^",
    "int8_calibrated": "v",
    "uint8": "P",
}
_WIDTH = 9.0  # inches


def draw(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The plots that the rows have figures for.

    Args:
      content: of report.json.

    Returns:
      (caption, SVG) of each.
    """
    plots = []
    rows = content["rows"]
    timed = [
        entry
        for entry in rows
        if "latency" in entry["figures"] and "link_accuracy" in entry["figures"]
    ]
    if timed:
        plots.append(
            (
                "Time for one mention with its candidates against link accuracy. "
                "Above and to the left is better; below the dashed line an artifact "
                "is not published.",
                _latency_against_accuracy(timed, content["max_accuracy_drop"]),
            )
        )
    sized = [entry for entry in rows if entry["figures"].get("bytes")]
    if sized:
        plots.append(("Size on disk.", _sizes(sized)))
    return plots


def new_figure(height: float) -> tuple[Any, Any]:
    """A figure so many inches high and its axes, for `to_svg`.

    Made without pyplot, whose state would be the process's.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(INK)
    axes.tick_params(which="both", colors=INK)
    axes.set_axisbelow(True)
    return figure, axes


def _latency_against_accuracy(
    rows: Sequence[Mapping[str, Any]], max_accuracy_drop: float
) -> str:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import ScalarFormatter

    figure, axes = new_figure(4.2)
    reference = rows[0]["figures"]["reference_link_accuracy"]
    limit = 100 * reference - max_accuracy_drop
    axes.axhline(limit, color=INK, linestyle="--", linewidth=0.8, alpha=0.6)
    for entry in rows:
        figures = entry["figures"]
        axes.plot(
            figures["latency"]["mention"]["median_ms"],
            100 * figures["link_accuracy"],
            marker=_MARKERS[entry["precision"]],
            color=_COLOURS[entry["format"]],
            markersize=9,
            alpha=0.85,
            linestyle="",
        )
        if entry["verdict"] == "baseline":
            axes.annotate(
                entry["name"],
                (
                    figures["latency"]["mention"]["median_ms"],
                    100 * figures["link_accuracy"],
                ),
                textcoords="offset points",
                xytext=(0, 10),
                ha="center",
                color=INK,
                fontsize=9,
            )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.margins(x=0.08, y=0.25)
    axes.set_xlabel("median latency of one mention, ms (log scale)", color=INK)
    axes.set_ylabel("link accuracy, %", color=INK)
    axes.grid(color=INK, alpha=0.12, which="both")
    formats = dict.fromkeys(e["format"] for e in rows if e["format"])
    precisions = dict.fromkeys(e["precision"] for e in rows)
    handles = [
        Line2D([], [], color=_COLOURS[name], marker="o", linestyle="", label=name)
        for name in formats
    ] + [
        Line2D([], [], color=INK, marker=_MARKERS[name], linestyle="", label=name)
        for name in precisions
    ]
    figure.legend(
        handles=handles,
        loc="outside right center",
        frameon=False,
        labelcolor=INK,
        fontsize=9,
    )
    return to_svg(figure, "latency")


def _sizes(rows: Sequence[Mapping[str, Any]]) -> str:
    figure, axes = new_figure(0.6 + 0.3 * len(rows))
    names = [entry["name"] for entry in rows]
    sizes = [entry["figures"]["bytes"] / 1e6 for entry in rows]
    # By position, as two rows may have one name.
    bars = axes.barh(
        range(len(rows)), sizes, color=[_COLOURS[entry["format"]] for entry in rows]
    )
    axes.bar_label(
        bars, [f"{size:.1f}" for size in sizes], padding=4, color=INK, fontsize=9
    )
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.set_xlabel("MB", color=INK)
    return to_svg(figure, "size")


def to_svg(figure: Any, name: str) -> str:
    """A figure as an <svg> element.

    Args:
      figure: what to draw.
      name: keeps its ids apart from those of the page's other plots.
    """
    import matplotlib

    buffer = io.StringIO()
    # Ids of random numbers would make each report differ.
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Ids such as figure_1 are the same in every figure.
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    # The page scales it.
    svg = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace(INK, "currentColor")

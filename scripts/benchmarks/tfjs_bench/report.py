"""Writes what was measured as JSON, as tables of a page, and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import DOCS, fill_page
from names import GRAPH, KINDS, LAYERS
from plots import INK, drawing
from tabulate import tabulate

from bert_export.files import write_json

PAGE = "tfjs.md"

# Readable on white and on black.
_COLORS = {
    "browser_webgl": "#d97b29",
    "browser_wasm": "#c9a227",
    "node_tensorflow": "#3b82c4",
    "node_wasm": "#3aa17e",
    "node_saved_model": "#7fb2e5",
    "python": "#9a7fd1",
}
# What runs the graph as TensorFlow does.
_NOT_CONVERTED = {
    "python": "Python, TensorFlow",
    "node_saved_model": "Node, tfjs-node, SavedModel",
}


def write(measured: dict[str, Any], directory: Path) -> None:
    """Writes DIRECTORY/tfjs.json, tfjs.md and tfjs.png.

    The page's own text is that of the page in the docs.
    """
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "tfjs.json", measured)
    _plot(measured, directory / "tfjs.png")
    page = DOCS / "benchmarks" / PAGE
    fill_page(page, _sections(measured), directory / PAGE)


def tables(measured: dict[str, Any]) -> str:
    """The tables for a terminal."""
    return "\n\n".join(_sections(measured).values())


def faster(cell: dict[str, Any]) -> float:
    """How many per cent more often the GraphModel runs in the same time."""
    return 100 * (cell["ratio"] - 1)


def _sections(measured: dict[str, Any]) -> dict[str, str]:
    return {
        "machine": _machine(measured),
        "summary": _summary(measured),
        "times": _times(measured),
        "kernels": _kernels(measured),
        "native": _native(measured),
        "goals": _goals(measured),
        "exported": _exported(measured),
    }


def _machine(measured: dict[str, Any]) -> str:
    machine, linker = measured["machine"], measured["linker"]
    runtimes = machine["runtimes"]
    threads = {
        measured["runtimes"][name]: f"{about['threads']} thread"
        + ("s" if about["threads"] > 1 else "")
        + (" with SIMD" if about["simd"] else " without SIMD")
        for name, about in runtimes.items()
        if about["backend"] == "wasm"
    }
    wasm = ", ".join(f"{name}: {value}" for name, value in threads.items())
    return "\n".join(
        [
            f"- {measured['date']}, {machine['cores']} cores of {machine['cpu']}, "
            f"{machine['system']}",
            f"- TensorFlow.js {runtimes['node_tensorflow']['tfjs']}, Node "
            f"{machine['node'].lstrip('v')}, Chromium {machine['chromium']}, "
            f"TensorFlow {machine['tensorflow']}, Python {machine['python']}",
            f"- {wasm}",
            f"- WebGL: {runtimes['browser_webgl']['renderer']}",
            f"- linker: {linker['weights']}; one mention with {linker['pairs']} "
            f"candidates, {linker['tokens']} tokens in {linker['pairs']} rows of "
            f"{linker['longest']}",
        ]
    )


def _summary(measured: dict[str, Any]) -> str:
    """% faster: models down, runtimes across."""
    runtimes = measured["runtimes"]
    cells = {(cell["model"], cell["runtime"]): cell for cell in measured["cells"]}
    rows = [
        [
            f"{model['title']} ({model['parameters'] / 1e6:.2f} M parameters)",
            *(f"{faster(cells[model['name'], name]):.0f} %" for name in runtimes),
        ]
        for model in measured["models"]
    ]
    ranges = measured["published"]
    published = (
        f"{ranges[name][0]} to {ranges[name][1]} %" if name in ranges else ""
        for name in runtimes
    )
    rows.append(["published", *published])
    return _table(["", *runtimes.values()], rows)


def _times(measured: dict[str, Any]) -> str:
    titles = {model["name"]: model["title"] for model in measured["models"]}
    rows = [
        [
            titles[cell["model"]],
            measured["runtimes"][cell["runtime"]],
            _quartiles(cell[LAYERS]),
            _quartiles(cell[GRAPH]),
            cell[GRAPH]["runs"],
            f"{cell['ratio']:.2f}",
            f"{cell['difference']:.0e}" if cell["difference"] else "0",
        ]
        for cell in measured["cells"]
    ]
    headers = [
        "model",
        "runtime",
        "LayersModel, ms",
        "GraphModel, ms",
        "runs of each",
        "ratio",
        "largest difference",
    ]
    return _table(headers, rows)


def _kernels(measured: dict[str, Any]) -> str:
    """How many kernels a run calls, and those that take most of it."""
    titles = {model["name"]: model["title"] for model in measured["models"]}
    rows = []
    for cell in measured["cells"]:
        row = [titles[cell["model"]], measured["runtimes"][cell["runtime"]]]
        for kind in KINDS:
            kernels = cell[kind]["kernels"]
            row += [_count(kernels), _most(kernels)]
        rows.append(row)
    headers = [
        "model",
        "runtime",
        "LayersModel: kernels",
        "most time in",
        "GraphModel: kernels",
        "most time in",
    ]
    return _table(headers, rows)


def _native(measured: dict[str, Any]) -> str:
    """tfjs-node: what TensorFlow's library does, and what is left for JavaScript."""
    titles = {model["name"]: model["title"] for model in measured["models"]}
    rows = []
    for cell in measured["cells"]:
        if cell["runtime"] != "node_tensorflow":
            continue
        row = [titles[cell["model"]]]
        for kind in KINDS:
            native = cell[kind]["native"]
            row += [
                f"{native['calls']:.0f}",
                f"{native['native']:.2f}",
                f"{native['total'] - native['native']:.2f}",
            ]
        rows.append(row)
    headers = [
        "model",
        *(
            f"{kind}: {what}"
            for kind in ("LayersModel", "GraphModel")
            for what in ("calls", "ms in TensorFlow", "ms in JavaScript")
        ),
    ]
    return _table(headers, rows)


def _goals(measured: dict[str, Any]) -> str:
    rows = []
    for name, goal in measured["goals"].items():
        verdict = ""
        if "limit" in goal:
            reached = "reached" if goal["reached"] else "not reached"
            verdict = f"at most {goal['limit']:g}: {reached}"
        rows.append(
            [
                {**measured["runtimes"], **_NOT_CONVERTED}[name],
                _quartiles(goal),
                goal["runs"],
                f"{goal.get('ratio', 1):.2f}",
                verdict,
            ]
        )
    return _table(["runtime", "ms", "runs", "times Python", "goal"], rows)


def _exported(measured: dict[str, Any]) -> str:
    rows = [
        [measured["runtimes"][name], _count(goal["kernels"]), _most(goal["kernels"], 5)]
        for name, goal in measured["goals"].items()
        if "kernels" in goal
    ]
    return _table(["runtime", "kernels", "most time in"], rows)


def _table(headers: list[str], rows: list[list[Any]]) -> str:
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def _quartiles(times: dict[str, Any]) -> str:
    median = times["median"]
    digits = 3 if median < 1 else 2 if median < 10 else 1 if median < 100 else 0
    low, high = times["q1"], times["q3"]
    return f"{median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _count(kernels: dict[str, Any]) -> int:
    return sum(kernel["count"] for kernel in kernels.values())


def _most(kernels: dict[str, Any], number: int = 3) -> str:
    """The kernels with most of the time, and their parts of it."""
    total = sum(kernel["ms"] for kernel in kernels.values()) or 1
    longest = sorted(kernels.items(), key=lambda item: -item[1]["ms"])[:number]
    return ", ".join(
        f"{name} {100 * kernel['ms'] / total:.0f} %" for name, kernel in longest
    )


def _plot(measured: dict[str, Any], path: Path) -> None:
    with drawing(
        path, 1, 2, font_size=10, figsize=(11, 4.6), dpi=120, width_ratios=[3, 2]
    ) as (_, (speed, goals)):
        _plot_speed(measured, speed)
        _plot_goals(measured, goals)


def _plot_speed(measured: dict[str, Any], axes: Any) -> None:
    """How much faster GraphModels are, beside what has been published."""
    runtimes, models = measured["runtimes"], measured["models"]
    width = 0.8 / len(runtimes)
    for index, (name, title) in enumerate(runtimes.items()):
        values = [faster(cell) for cell in measured["cells"] if cell["runtime"] == name]
        places = [place + (index + 0.5) * width - 0.4 for place in range(len(models))]
        bars = axes.bar(places, values, width, color=_COLORS[name], label=title)
        axes.bar_label(bars, fmt="%.0f", fontsize=7, color=INK, padding=1)
        if name in measured["published"]:
            low, high = measured["published"][name]
            axes.axhspan(
                low,
                high,
                color=_COLORS[name],
                alpha=0.25,
                linewidth=0,
                zorder=0,
                label=f"{title}: published",
            )
    axes.axhline(0, color=INK, linewidth=0.8)
    titles = [model["title"].replace(" ", "\n", 1) for model in models]
    axes.set_xticks(range(len(models)), titles, fontsize=9)
    axes.set_ylabel("GraphModel is faster than LayersModel by, %")
    axes.legend(
        frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=3
    )


def _plot_goals(measured: dict[str, Any], axes: Any) -> None:
    """The exported linker's times, with the goals' limits."""
    goals = measured["goals"]
    labels = [{**measured["runtimes"], **_NOT_CONVERTED}[name] for name in goals]
    values = [goal["median"] for goal in goals.values()]
    axes.barh(labels, values, 0.6, color=[_COLORS[name] for name in goals])
    for place, goal in enumerate(goals.values()):
        value = limit = goal["median"]
        if "limit" in goal:
            limit = goal["limit"] * goals["python"]["median"]
            axes.plot([limit] * 2, [place - 0.4, place + 0.4], color=INK, linewidth=2)
            axes.annotate(
                f"goal: {goal['limit']:g} times Python",
                (limit, place - 0.42),
                fontsize=7,
                ha="left",
                va="bottom",
            )
        axes.annotate(
            f"{value:.0f} ms",
            (max(value, limit), place),
            (4, 0),
            textcoords="offset points",
            fontsize=8,
            color=INK,
            va="center",
        )
    axes.set_xscale("log")
    axes.set_xlim(min(values) / 2, max(values) * 4)
    axes.invert_yaxis()
    pairs = measured["linker"]["pairs"]
    axes.set_xlabel(f"ms for one mention with {pairs} candidates")

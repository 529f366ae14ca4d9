"""Writes what was measured as JSON, as tables of docs/benchmarks.md, as a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import names
from common import DOCS as DOCS
from common import fill_page
from matplotlib.lines import Line2D
from plots import INK, drawing
from tabulate import tabulate

from bert_export.files import write_json

PAGE = "benchmarks.md"
JSON = "benchmarks/scaling.json"
PNG = "benchmarks/scaling.png"
TITLES = {
    names.ONNX: "ONNX float32",
    names.ONNX_INT8: "ONNX int8_dynamic",
    names.SAVED_MODEL: "SavedModel float32",
    names.TRAINING: "training float32",
    names.TRAINING_BFLOAT16: "training bfloat16",
}
_TRAINING = (names.TRAINING, names.TRAINING_BFLOAT16)
# Operations listed of each profile; the others are added up.
_LISTED = 10

# Readable on white and on black.
_COLORS = {
    names.ONNX: "#3b82c4",
    names.ONNX_INT8: "#3aa17e",
    names.SAVED_MODEL: "#d97b29",
    names.TRAINING: "#9a7fd1",
    names.TRAINING_BFLOAT16: "#c9587c",
}


def write(measured: dict[str, Any], directory: Path) -> None:
    """Writes DIRECTORY/benchmarks.md, benchmarks/scaling.json and scaling.png.

    What else is on the page stays as it is there, or in the docs where there is none.
    """
    (directory / JSON).parent.mkdir(parents=True, exist_ok=True)
    write_json(directory / JSON, measured)
    _plot(measured, directory / PNG)
    output = directory / PAGE
    fill_page(output if output.exists() else DOCS / PAGE, _sections(measured), output)


def tables(measured: dict[str, Any]) -> str:
    """The tables for a terminal."""
    return "\n\n".join(_sections(measured).values())


def _sections(measured: dict[str, Any]) -> dict[str, str]:
    training = [p for p in measured["points"] if p["kind"] in _TRAINING]
    serving = [p for p in measured["points"] if p["kind"] not in _TRAINING]
    return {
        "scaling_machine": _machine(measured),
        "scaling_peak": _peak(measured),
        "scaling_goals": _goals(measured),
        "scaling_bound": _points(serving),
        "scaling_training": _points(training),
        "scaling_profile": _profiles(measured),
        "scaling_xla": _xla(measured),
        "scaling_linear": _linear(measured),
    }


def _machine(measured: dict[str, Any]) -> str:
    machine, bert = measured["machine"], measured["model"]["bert"]
    features = ", ".join(machine["features"]) or "none of avx2, avx512f"
    versions = ", ".join(f"{name} {v}" for name, v in measured["versions"].items())
    return "\n".join(
        [
            f"- {measured['date']}, {machine['cores']} cores of {machine['cpu']} "
            f"({features}), {machine['system']}, Python {machine['python']}, "
            f"{versions}",
            f"- random weights: hidden size {bert['hidden_size']}, "
            f"{bert['num_attention_heads']} heads, inner size "
            f"{bert['intermediate_size']}, {bert['num_hidden_layers']} layers where "
            f"they do not vary; {measured['model']['reads']} positions are read",
            f"- {measured['seconds']['all'] / 60:.1f} minutes, of which "
            f"{measured['seconds']['models'] / 60:.1f} for making the models",
        ]
    )


def _peak(measured: dict[str, Any]) -> str:
    engines = sorted(
        {(p, e) for r in measured["peak"].values() for p in r for e in r[p]}
    )
    rows = [
        [
            precision,
            engine,
            *(
                f"{measured['peak'][threads][precision][engine] / 1e9:.0f}"
                for threads in measured["peak"]
            ),
        ]
        for precision, engine in engines
    ]
    headers = [f"{_threads(threads)}, GFLOP/s" for threads in measured["peak"]]
    return _table(["matrices of", "engine", *headers], rows)


def _threads(count: int | str) -> str:
    return f"{count} thread" + ("s" if int(count) > 1 else "")


def _goals(measured: dict[str, Any]) -> str:
    rows = []
    for goal in measured["goals"]:
        share = goal["of"] == "share"
        value, limit = (
            f"{100 * number:.0f} %" if share else f"{number:,.0f}"
            for number in (goal["value"], goal["goal"])
        )
        what = "of the bound, batches of real lengths" if share else goal["of"]
        rows.append(
            [
                TITLES.get(goal["name"], f"`{goal['name']}`"),
                what,
                value,
                f"{limit}: {'reached' if goal['reached'] else 'not reached'}",
            ]
        )
    return _table(["", "", "measured", "goal"], rows)


def _points(points: list[dict[str, Any]]) -> str:
    """Shapes down, kinds across; real requests first."""
    kinds = list(dict.fromkeys(point["kind"] for point in points))
    cells: dict[tuple[Any, ...], dict[str, str]] = {}
    for point in sorted(points, key=_order):
        ms, share = point["ms"]["median"], point["share"]
        cells.setdefault(_row(point), {})[point["kind"]] = (
            f"{_digits(ms)} ms, {_digits(point['pairs_a_second'])}/s, "
            f"{100 * share:.0f} %"
        )
    rows = [
        [*row, *(found.get(kind, "") for kind in kinds)] for row, found in cells.items()
    ]
    return _table(
        [
            "threads",
            "layers",
            "pairs",
            "tokens each",
            *(TITLES[kind] for kind in kinds),
        ],
        rows,
    )


def _order(point: dict[str, Any]) -> tuple[Any, ...]:
    return (
        -point["threads"],
        point["work"] == "generated",
        point["layers"],
        point["batch"],
        point["length"],
    )


def _row(point: dict[str, Any]) -> tuple[Any, ...]:
    batch, length = f"{point['batch']:.0f}", f"{point['length']:.0f}"
    if point["work"] == "mentions":
        batch = f"a mention's, {point['batch']:.1f} on average"
    if point["work"] != "generated":
        length = f"real lengths, {point['length']:.1f} on average"
    return point["threads"], point["layers"], batch, length


def _profiles(measured: dict[str, Any]) -> str:
    """The operations with most of the time, one table after the other."""
    tables = []
    for kind, operations in measured["profiles"].items():
        total = sum(found["ms"] for found in operations.values()) or 1
        ranked = sorted(operations.items(), key=lambda item: -item[1]["ms"])
        rows = [[name, found["count"], found["ms"]] for name, found in ranked[:_LISTED]]
        if rest := [found for _, found in ranked[_LISTED:]]:
            rows.append(
                [
                    f"{len(rest)} others",
                    sum(found["count"] for found in rest),
                    sum(found["ms"] for found in rest),
                ]
            )
        shown = [
            [name, f"{count:.0f}", f"{ms:.2f}", f"{100 * ms / total:.0f} %"]
            for name, count, ms in rows
        ]
        headers = [TITLES[kind], "executions", "ms", "share of time"]
        tables.append(_table(headers, shown))
    return "\n\n".join(tables)


def _xla(measured: dict[str, Any]) -> str:
    found = {(p["kind"], p["work"], p["xla"]): p for p in measured["xla"]}
    rows = []
    for kind, work in dict.fromkeys((kind, work) for kind, work, _ in found):
        off, on = (found[kind, work, xla] for xla in (False, True))
        row = [
            TITLES[kind],
            "one shape" if work == "generated" else "real lengths",
            f"{off['batch']:.0f} x {off['length']:.1f}",
            _digits(off["ms"]["median"]),
        ]
        if "error" in on:
            row += ["refused", ""]
        else:
            ratio = on["ms"]["median"] / off["ms"]["median"]
            row += [_digits(on["ms"]["median"]), f"{ratio:.2f}"]
        rows.append(row)
    headers = ["", "", "pairs x tokens", "ms", "ms with XLA", "ratio"]
    errors = dict.fromkeys(p["error"] for p in measured["xla"] if "error" in p)
    return "\n\n".join(
        [_table(headers, rows), *(f"Refused: {error}" for error in errors)]
    )


def _linear(measured: dict[str, Any]) -> str:
    rows = []
    for command, found in measured["linear"].items():
        for row in found:
            # Of few pairs it is less than a start's time varies.
            a_pair = max(0.0, row.get("seconds_a_pair", 0.0))
            rows.append(
                [
                    f"`{command}`",
                    f"{row['pairs']:,}",
                    f"{row['seconds']:.1f}",
                    f"{1e6 * a_pair:.1f}" if a_pair else "",
                    f"{1 / a_pair:,.0f}" if a_pair else "",
                    f"{row['peak_bytes'] / 1e6:.0f}",
                ]
            )
    headers = [
        "command",
        "pairs",
        "seconds in all",
        "µs a further pair",
        "further pairs a second",
        "most memory, MB",
    ]
    return _table(headers, rows)


def _table(headers: list[str], rows: list[list[Any]]) -> str:
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def _digits(value: float) -> str:
    """About three digits."""
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _plot(measured: dict[str, Any], path: Path) -> None:
    layers = measured["model"]["bert"]["num_hidden_layers"]
    few, many, typical = names.FEW_PAIRS, names.MANY_PAIRS, names.TYPICAL_LENGTH
    serving = [p for p in measured["points"] if p["kind"] not in _TRAINING]
    training = [p for p in measured["points"] if p["kind"] in _TRAINING]
    with drawing(path, 2, 3, font_size=9, figsize=(12.5, 8), dpi=110) as (figure, axes):
        for place, points, x, title, chosen in (
            (
                axes[0, 0],
                serving,
                "length",
                f"{few} pairs, {layers} layers",
                lambda p: p["layers"] == layers and p["batch"] == few,
            ),
            (
                axes[0, 1],
                serving,
                "batch",
                f"{typical} tokens a pair, {layers} layers",
                lambda p: p["layers"] == layers and p["length"] == typical,
            ),
            (
                axes[0, 2],
                serving,
                "layers",
                f"{many} pairs of {typical} tokens",
                lambda p: p["batch"] == many and p["length"] == typical,
            ),
            (
                axes[1, 0],
                training,
                "length",
                f"training steps of {few} pairs",
                lambda p: p["batch"] == few,
            ),
            (
                axes[1, 1],
                training,
                "batch",
                f"training steps, {typical} tokens a pair",
                lambda p: p["length"] == typical,
            ),
        ):
            _plot_series(points, chosen, x, place)
            place.set_title(title, fontsize=10)
        _plot_linear(measured["linear"], axes[1, 2])
        kinds = dict.fromkeys(point["kind"] for point in measured["points"])
        most = max(measured["threads"])
        handles = [Line2D([], [], color=_COLORS[k], label=TITLES[k]) for k in kinds]
        handles += [
            Line2D([], [], color=INK, marker="o", ms=3, label=_threads(most)),
            Line2D([], [], color=INK, ls="--", marker="o", ms=3, label=_threads(1)),
            Line2D([], [], color=INK, lw=3, alpha=0.35, label="arithmetic bound"),
        ]
        figure.legend(
            handles=handles, loc="outside upper center", ncols=8, frameon=False
        )


def _plot_series(
    points: list[dict[str, Any]],
    chosen: Callable[[dict[str, Any]], bool],
    x: str,
    axes: Any,
) -> None:
    """Pairs a second over one dimension, with what arithmetic alone would allow."""
    chosen_points = [p for p in points if p["work"] == "generated" and chosen(p)]
    most = max(point["threads"] for point in chosen_points)
    for kind, threads in dict.fromkeys(
        (point["kind"], point["threads"]) for point in chosen_points
    ):
        series = sorted(
            (
                point[x],
                point["pairs_a_second"],
                point["pairs_a_second"] / point["share"],
            )
            for point in chosen_points
            if (point["kind"], point["threads"]) == (kind, threads)
        )
        places, rates, bounds = zip(*series)
        style = "-" if threads == most else "--"
        axes.plot(places, rates, style, marker="o", ms=3, color=_COLORS[kind])
        axes.plot(places, bounds, style, lw=3, alpha=0.35, color=_COLORS[kind])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    values = sorted({point[x] for point in chosen_points})
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.minorticks_off()
    labels = {"length": "tokens a pair", "batch": "pairs", "layers": "layers"}
    axes.set_xlabel(labels[x])
    axes.set_ylabel("pairs a second")


def _plot_linear(rows: dict[str, Any], axes: Any) -> None:
    """Seconds of commands over pairs."""
    for (command, found), color in zip(rows.items(), ("#3b82c4", "#d97b29")):
        pairs, seconds = zip(*((row["pairs"], row["seconds"]) for row in found))
        axes.plot(pairs, seconds, marker="o", ms=3, color=color, label=command)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("pairs")
    axes.set_ylabel("seconds, start included")
    axes.set_title("commands, over generated mentions", fontsize=10)
    axes.legend(frameon=False)

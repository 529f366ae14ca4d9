"""Writes what was measured as JSON, as tables of docs/benchmarks.md, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import DOCS as DOCS
from common import fill_page
from plots import INK, drawing
from tabulate import tabulate

from bert_export.files import write_json

PAGE = "benchmarks.md"
JSON = "benchmarks/training.json"
PNG = "benchmarks/training.png"

# Readable on white and on black.
_COLORS = {None: "#d97b29", "pytorch": "#3b82c4", "google_bert": "#9a7fd1"}


def write(measured: dict[str, Any], directory: Path) -> None:
    """Writes DIRECTORY/benchmarks.md, benchmarks/training.json and training.png.

    What else is on the page stays as it is there, or in the docs where there is none.
    """
    (directory / JSON).parent.mkdir(parents=True, exist_ok=True)
    write_json(directory / JSON, measured)
    if "speed" in measured:
        _plot(measured, directory / PNG)
    output = directory / PAGE
    fill_page(output if output.exists() else DOCS / PAGE, _sections(measured), output)


def tables(measured: dict[str, Any]) -> str:
    """The tables for a terminal."""
    return "\n\n".join(_sections(measured).values())


def _sections(measured: dict[str, Any]) -> dict[str, str]:
    sections = {"training_machine": _machine(measured)}
    if "speed" in measured:
        sections["training_goals"] = _goals(measured)
        sections["training"] = _speed(measured)
        sections["training_memory"] = _memory(measured)
    if "accuracy" in measured:
        sections["training_accuracy"] = _accuracy(measured)
    return sections


def _title(measured: dict[str, Any], name: str) -> str:
    contender = measured["contenders"][name]
    return f"{contender['title']}, {contender['precision']}"


def _machine(measured: dict[str, Any]) -> str:
    machine, work = measured["machine"], measured["work"]
    features = ", ".join(machine["features"]) or "none of avx2, avx512f"
    lines = [
        f"- {machine['cores']} cores of {machine['cpu']} ({features}), "
        f"{machine['system']}, Python {machine['python']}; {machine['threads']} "
        "threads in each process",
        f"- {work['weights']}; {work['corpus']}, {work['tokens_a_pair']:.1f} tokens a "
        f"pair on average; {work['pairs_a_step']} pairs a step; AdamW, learning rate "
        f"{work['learning_rate']:g}, weight decay {work['weight_decay']:g}, gradients "
        f"clipped at {work['clip_norm']:g}; dropout 0.1; cross-entropy of each pair",
    ]
    if "speed" in measured:
        gflops = ", ".join(
            f"{precision} {measured['peak'][precision] / 1e9:.0f} GFLOP/s"
            for precision in ("float32", "bfloat16")
        )
        lines.append(
            f"- speed measured on {measured['speed']['date']}; the rate of matrix "
            f"products at best: {gflops}"
        )
    lines.append(f"- TensorFlow {machine['tensorflow']}")
    for peer, pinned in measured["versions"].items():
        used = [
            package.replace("==", " ")
            for package in pinned
            if package.split("==")[0] in _NAMED[peer]
        ]
        lines.append(f"- {', '.join(used)}")
    lines += [
        f"- skipped: {_title(measured, name)}: {reason}"
        for name, reason in measured["skipped"].items()
    ]
    return "\n".join(lines)


# The packages of a peer's environment that train.
_NAMED = {
    "pytorch": ("torch", "transformers", "sentence-transformers", "accelerate"),
    "google_bert": ("bert-tensorflow", "tensorflow"),
}


def _goals(measured: dict[str, Any]) -> str:
    rows = []
    for goal in measured["goals"]:
        ours = _title(measured, goal["ours"])
        if "theirs" in goal:
            ratio = goal["ratio"]
            what = f"{ours}: times {_title(measured, goal['theirs'])}"
            value = f"{ratio['median']:.2f} ({ratio['q1']:.2f} to {ratio['q3']:.2f})"
            wanted = f"{goal['goal']:g}" if "goal" in goal else ""
        else:
            what = f"{ours}: part of the arithmetic bound on real tokens"
            value = f"{100 * goal['share_of_bound']:.0f} %"
            wanted = f"{100 * goal['goal']:.0f} %"
        if wanted:
            wanted += ": reached" if goal["reached"] else ": not reached"
        rows.append([what, value, wanted])
    return _table(["examples a second", "measured", "goal"], rows)


def _speed(measured: dict[str, Any]) -> str:
    rows = []
    for name, found in measured["speed"]["contenders"].items():
        rate = found["examples_a_second"]
        share = found.get("share_of_bound")
        rows.append(
            [
                _title(measured, name),
                f"{rate['median']:.1f} ({rate['q1']:.1f} to {rate['q3']:.1f})",
                found["steps"],
                rate["runs"],
                "" if share is None else f"{100 * share:.0f} %",
            ]
        )
    headers = ["", "examples a second", "steps", "turns", "of the bound"]
    return _table(headers, rows)


def _memory(measured: dict[str, Any]) -> str:
    rows = [
        [
            _title(measured, name),
            f"{found['peak_bytes'] / 1e6:.0f}",
            f"{found['first_step_seconds']:.1f}",
        ]
        for name, found in measured["speed"]["contenders"].items()
    ]
    return _table(["", "most memory, MB", "until the first step is done, s"], rows)


def _accuracy(measured: dict[str, Any]) -> str:
    accuracy = measured["accuracy"]
    found = accuracy["contenders"]
    rows = [
        [_title(measured, name), f"{100 * result['link_accuracy']:.1f} %"]
        for name, result in found.items()
    ]
    mentions = next(iter(found.values()), {"mentions": 0})["mentions"]
    headers = [
        f"after {accuracy['steps']} steps",
        f"link accuracy on {mentions} held-out mentions",
    ]
    return _table(headers, rows)


def _table(headers: list[str], rows: list[list[Any]]) -> str:
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def _plot(measured: dict[str, Any], path: Path) -> None:
    with drawing(
        path, 1, 2, font_size=10, figsize=(11, 4), dpi=120, width_ratios=[3, 2]
    ) as (_, (speed, memory)):
        _plot_speed(measured, speed)
        _plot_memory(measured, memory)
        for axes in (speed, memory):
            axes.invert_yaxis()


def _plot_speed(measured: dict[str, Any], axes: Any) -> None:
    """Examples a second, with quartiles, and the bound of ours."""
    contenders = measured["speed"]["contenders"]
    labels = [_title(measured, name).replace(", ", "\n", 1) for name in contenders]
    rates = [found["examples_a_second"] for found in contenders.values()]
    medians = [rate["median"] for rate in rates]
    errors = [
        [rate["median"] - rate["q1"] for rate in rates],
        [rate["q3"] - rate["median"] for rate in rates],
    ]
    axes.barh(
        labels,
        medians,
        0.6,
        xerr=errors,
        ecolor=INK,
        color=_colors(measured),
    )
    right = list(medians)
    bound_labelled = False
    for place, (found, median) in enumerate(zip(contenders.values(), medians)):
        if "share_of_bound" in found:
            right[place] = median / found["share_of_bound"]
            axes.plot(
                [right[place]] * 2,
                [place - 0.4, place + 0.4],
                color=INK,
                linewidth=2,
                label=None if bound_labelled else "arithmetic bound",
            )
            bound_labelled = True
        axes.annotate(
            f"{median:.0f}",
            (rates[place]["q3"], place),
            (4, 0),
            textcoords="offset points",
            fontsize=8,
            va="center",
        )
    if bound_labelled:
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlim(0, 1.1 * max(right))
    axes.set_xlabel("examples a second")


def _plot_memory(measured: dict[str, Any], axes: Any) -> None:
    contenders = measured["speed"]["contenders"]
    values = [found["peak_bytes"] / 1e6 for found in contenders.values()]
    places = range(len(values))
    bars = axes.barh(places, values, 0.6, color=_colors(measured))
    axes.bar_label(bars, fmt="%.0f", fontsize=8, color=INK, padding=3)
    axes.set_yticks(places, [""] * len(values))
    axes.set_xlim(0, 1.2 * max(values))
    axes.set_xlabel("most memory, MB")


def _colors(measured: dict[str, Any]) -> list[str]:
    return [
        _COLORS[measured["contenders"][name]["peer"]]
        for name in measured["speed"]["contenders"]
    ]

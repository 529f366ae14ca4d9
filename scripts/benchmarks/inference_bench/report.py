"""Writes what was measured as JSON, as tables of the page, and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import DOCS, fill_page
from contenders import (
    ACCURACY_POINTS,
    BFLOAT16,
    BY_NAME,
    COLD_GOAL,
    ESTIMATOR,
    FLOAT32,
    GOOGLE,
    GOOGLE_GOAL,
    INT8,
    PRECISION_GOALS,
    REFERENCE,
)
from matplotlib.patches import Rectangle
from plots import INK, drawing
from tabulate import tabulate

from bert_export.files import write_json

PAGE = "benchmarks.md"
KINDS = {"mentions": "one mention", "batches": "32 pairs"}
MEASURES = {"ids": "from token ids", "text": "from text"}
PRECISIONS = (FLOAT32, BFLOAT16, INT8)
# Ours, and the peers'.
_COLORS = {
    FLOAT32: ("#3b82c4", "#9dbad3"),
    BFLOAT16: ("#3aa17e", "#9ccab8"),
    INT8: ("#d97b29", "#dfb48c"),
}

Cells = dict[str, dict[str, Any]]


def write(measured: dict[str, Any], directory: Path | None) -> None:
    """Writes benchmarks.md, benchmarks/inference.json and benchmarks/inference.png.

    The page's own text and others' tables are those of the page in the docs.

    Args:
      measured: as measure.py makes it, or as inference.json has it.
      directory: where they go; None for the docs.
    """
    directory = directory or DOCS
    (directory / "benchmarks").mkdir(parents=True, exist_ok=True)
    write_json(directory / "benchmarks" / "inference.json", measured)
    _plot(measured, directory / "benchmarks" / "inference.png")
    sections = _sections(measured)
    fill_page(DOCS / PAGE, sections, directory / PAGE)
    print("\n\n".join(sections.values()))
    print(f"written: {directory}/{PAGE}, benchmarks/inference.json and .png")


def _sections(measured: dict[str, Any]) -> dict[str, str]:
    trained = measured["trained"]["contenders"]
    sections = {
        "inference_machine": _machine(measured),
        "inference_goals": _goals(measured),
        "inference_one": _times(trained, "mentions"),
        "inference_batches": _times(trained, "batches"),
        "inference_start": _starts(trained),
        "inference_cold": _cold(measured["cold"]),
    }
    if "base" in measured:
        sections["inference_base"] = _base(measured["base"]["contenders"])
    return sections


def _machine(measured: dict[str, Any]) -> str:
    machine, about = measured["machine"], measured["trained"]["about"]
    lines = [
        f"{measured['date']}, {machine['cores']} cores of {machine['cpu']} "
        f"({', '.join(machine['features'])}), {machine['system']}; "
        f"{measured['threads']} threads in each process",
        f"{about['mentions']} mentions with {about['pairs_a_mention']:.1f} candidates "
        f"each, {about['tokens_a_pair']:.1f} tokens a pair, {about['longest']} at most",
    ]
    for peer, pinned in measured["versions"].items():
        lines.append(f"{peer}: {', '.join(pinned).replace('==', ' ')}")
    return "\n".join(f"- {line}" for line in lines)


def best(cells: Cells, ours: bool, precision: str, measure: str, kind: str) -> Any:
    """The name of the fastest of a side; None where there is none.

    Of ours those that lose too much link accuracy are passed over, unless all do.
    """
    times = {
        name: cell["times"][measure][kind]["median"]
        for name, cell in cells.items()
        if measure in cell.get("times", ())
        and BY_NAME[name].is_ours == ours
        and precision in (BY_NAME[name].precision, "any")
    }
    if ours:
        kept = {n: time for n, time in times.items() if _accuracy_gap(cells, n) >= 0}
        times = kept or times
    return min(times, key=times.__getitem__) if times else None


def _accuracy_gap(cells: Cells, name: str) -> float:
    """Points of link accuracy by which it differs, if they are too many; else 0."""
    own = cells[name].get("link_accuracy")
    reference = cells.get(REFERENCE, {}).get("link_accuracy")
    if own is None or reference is None:
        return 0.0
    gap = 100 * (own - reference)
    # Counts of mentions are not what rounding makes of them.
    return gap if abs(gap) > ACCURACY_POINTS + 1e-9 else 0.0


def goals(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """Each goal: what is compared with what, how many times as fast it is.

    `limit` is None where nothing was promised, and `reached` then, too.
    """
    rows = []
    for shape, title in (("trained", "MiniLM"), ("base", "BERT-base")):
        if shape not in measured:
            continue
        cells = measured[shape]["contenders"]
        for measure in MEASURES:
            for kind in KINDS:
                for precision in PRECISIONS:
                    limit = None if precision == BFLOAT16 else PRECISION_GOALS[kind]
                    rows.append(
                        _goal(
                            cells,
                            (title, precision, measure, kind),
                            best(cells, True, precision, measure, kind),
                            best(cells, False, precision, measure, kind),
                            limit,
                        )
                    )
                if measure in cells.get(GOOGLE, {}).get("times", ()):
                    rows.append(
                        _goal(
                            cells,
                            (title, "any", measure, kind),
                            best(cells, True, "any", measure, kind),
                            GOOGLE,
                            GOOGLE_GOAL,
                        )
                    )
    return [row for row in rows if row]


def _goal(
    cells: Cells,
    what: tuple[str, str, str, str],
    ours: str | None,
    peer: str | None,
    limit: float | None,
) -> dict[str, Any]:
    if ours is None or peer is None:
        return {}
    title, precision, measure, kind = what
    ratio = (
        cells[peer]["times"][measure][kind]["median"]
        / cells[ours]["times"][measure][kind]["median"]
    )
    return {
        "model": title,
        "precision": precision,
        "measure": measure,
        "kind": kind,
        "ours": ours,
        "peer": peer,
        "gaps": {name: _accuracy_gap(cells, name) for name in (ours, peer)},
        "ratio": ratio,
        "limit": limit,
        "reached": None if limit is None else ratio >= limit,
    }


def _goals(measured: dict[str, Any]) -> str:
    rows = [
        [
            goal["model"],
            goal["precision"],
            f"{KINDS[goal['kind']]}, {MEASURES[goal['measure']]}",
            *(
                BY_NAME[name].title + _note(goal["gaps"][name])
                for name in (goal["ours"], goal["peer"])
            ),
            f"{goal['ratio']:.2f}",
            _verdict(goal["limit"], goal["reached"]),
        ]
        for goal in goals(measured)
    ]
    cold = measured["cold"]
    artifacts = [name for name in cold if BY_NAME[name].is_ours and name != ESTIMATOR]
    if ESTIMATOR in cold and artifacts:
        first = min(artifacts, key=lambda name: cold[name]["median"])
        ratio = cold[ESTIMATOR]["median"] / cold[first]["median"]
        rows.append(
            [
                "MiniLM",
                "any",
                "cold start",
                BY_NAME[first].title,
                BY_NAME[ESTIMATOR].title,
                f"{ratio:.2f}",
                _verdict(1 / COLD_GOAL, ratio >= 1 / COLD_GOAL),
            ]
        )
    headers = ["model", "precision", "requests", "our best", "against", "times", "goal"]
    return _table(headers, rows)


def _note(gap: float) -> str:
    return f" (link accuracy differs by {gap:+.1f} points)" if gap else ""


def _verdict(limit: float | None, reached: bool | None) -> str:
    if limit is None:
        return ""
    return f"{limit:g}: {'reached' if reached else 'not reached'}"


def _times(cells: Cells, kind: str) -> str:
    """All contenders, for one kind of requests."""
    columns = {title: (measure, kind) for measure, title in MEASURES.items()}
    return _compared(cells, columns, linked=True)


def _base(cells: Cells) -> str:
    """All contenders, from token ids; link accuracy means nothing here."""
    columns = {title: ("ids", kind) for kind, title in KINDS.items()}
    return _compared(cells, columns, linked=False)


def _compared(cells: Cells, columns: dict[str, tuple[str, str]], linked: bool) -> str:
    """A row for each contender.

    Args:
      cells: what was measured, by contender.
      columns: by title, a measure and a kind of requests.
      linked: whether link accuracy is told, too.
    """
    rows = []
    for precision in PRECISIONS:
        for name in _in_order(cells, precision):
            cell = cells[name]
            row = [BY_NAME[name].title, precision, _side(name)]
            if "skipped" in cell:
                rows.append([*row, f"skipped: {cell['skipped']}"])
                continue
            for measure, kind in columns.values():
                row += _time(cells, name, measure, kind)
            rows.append([*row, *(_accuracy(cells, name) if linked else [])])
    headers = ["", "precision", "whose"]
    for title in columns:
        headers += [f"{title}, ms", "times our best"]
    return _table([*headers, *(["link accuracy", ""] if linked else [])], rows)


def _in_order(cells: Cells, precision: str) -> list[str]:
    """The contenders of a precision as they are listed, ours before the others."""
    return [
        name
        for name in BY_NAME
        if name in cells and BY_NAME[name].precision == precision
    ]


def _side(name: str) -> str:
    return "ours" if BY_NAME[name].is_ours else "peer"


def _time(cells: Cells, name: str, measure: str, kind: str) -> list[str]:
    """A median with its quartiles, and its ratio to our best of the precision."""
    times = cells[name]["times"]
    if measure not in times:
        return ["", ""]
    own = times[measure][kind]
    ours = best(cells, True, BY_NAME[name].precision, measure, kind)
    ratio = ""
    if ours:
        fastest = cells[ours]["times"][measure][kind]["median"]
        ratio = f"{own['median'] / fastest:.2f}"
    return [_quartiles(own), ratio]


def _accuracy(cells: Cells, name: str) -> list[str]:
    cell = cells[name]
    if "link_accuracy" not in cell:
        return ["", ""]
    gap = _accuracy_gap(cells, name)
    note = f"differs by {gap:+.1f} points" if gap else ""
    return [f"{100 * cell['link_accuracy']:.1f} %", note]


def _starts(cells: Cells) -> str:
    """What comes before the times that are compared."""
    rows = [
        [
            BY_NAME[name].title,
            f"{cells[name]['start_seconds']:.1f}",
            f"{cells[name]['first_ms']:.0f}",
        ]
        for name in BY_NAME
        if "first_ms" in cells.get(name, {})
    ]
    return _table(["", "start to model loaded, s", "first request, ms"], rows)


def _cold(cold: dict[str, Any]) -> str:
    reference = cold.get(ESTIMATOR, {}).get("median")
    rows = [
        [
            BY_NAME[name].title,
            _side(name),
            _quartiles(times),
            f"{times['median'] / reference:.2f}" if reference else "",
        ]
        for name, times in sorted(cold.items(), key=lambda item: item[1]["median"])
    ]
    return _table(["", "whose", "s", "times estimator.predict"], rows)


def _table(headers: list[str], rows: list[list[Any]]) -> str:
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def _quartiles(times: dict[str, Any]) -> str:
    median = times["median"]
    digits = 2 if median < 10 else 1 if median < 100 else 0
    low, high = times["q1"], times["q3"]
    return f"{median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _plot(measured: dict[str, Any], path: Path) -> None:
    cells = {
        name: cell
        for name, cell in measured["trained"]["contenders"].items()
        if "times" in cell
    }
    with drawing(
        path, 1, 2, font_size=9, figsize=(12, 1.5 + 0.27 * len(cells)), dpi=120
    ) as (figure, both):
        for axes, (kind, title) in zip(both, KINDS.items()):
            _plot_kind(cells, axes, kind)
            axes.set_xlabel(f"ms for {title}, from token ids")
        marks = [
            Rectangle((0, 0), 1, 1, color=_COLORS[precision][side])
            for precision in PRECISIONS
            for side in (0, 1)
        ]
        labels = [
            f"{precision}, {side}"
            for precision in PRECISIONS
            for side in ("ours", "peers")
        ]
        figure.legend(marks, labels, frameon=False, loc="outside upper center", ncols=6)


def _plot_kind(cells: Cells, axes: Any, kind: str) -> None:
    """Bars, the fastest on top."""
    times = {name: cell["times"]["ids"][kind]["median"] for name, cell in cells.items()}
    names = sorted(times, key=times.__getitem__, reverse=True)
    bars = axes.barh(
        [BY_NAME[name].title for name in names],
        [times[name] for name in names],
        0.7,
        color=[
            _COLORS[BY_NAME[name].precision][0 if BY_NAME[name].is_ours else 1]
            for name in names
        ],
    )
    axes.bar_label(
        bars,
        [
            f"{times[name]:.3g}" if times[name] < 1000 else f"{times[name]:.0f}"
            for name in names
        ],
        fontsize=8,
        color=INK,
        padding=3,
    )
    axes.set_xscale("log")
    axes.set_xlim(min(times.values()) / 2, max(times.values()) * 3)

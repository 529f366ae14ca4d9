"""The gate's verdict for people: Markdown, a page that needs no other file, plots."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bert_export.files import new_directory, write_bytes, write_json, write_text
from bert_export.release import gate_plots
from bert_export.release.gate import METRICS, SETS, signed
from bert_export.verification.report import escape_markdown
from bert_export.verification.report_html import STYLE

GATE_FILE = "gate.json"
# Sentences in a table are broken.
_STYLE = "td.text { white-space: normal; }\n"
_MODELS = ("production", "candidate")


@dataclasses.dataclass(frozen=True)
class _Table:
    """A table, and what it shows.

    Attributes:
      title: its heading.
      note: what the figures mean.
      headings: of the columns; the first `texts` ones hold text, the others figures.
      rows: of texts, with the criterion's outcome in `passed` of the same place.
      passed: by row: True, False, or None where nothing is judged.
    """

    title: str
    note: str
    headings: Sequence[str]
    texts: int
    rows: Sequence[Sequence[str]]
    passed: Sequence[bool | None]


def write(directory: Path, verdict: Mapping[str, Any]) -> None:
    """Writes gate.json, report.md, report.html and the plots, all or none.

    Args:
      directory: what is in it is replaced.
      verdict: of `judge.judge`.
    """
    plots = gate_plots.draw(verdict)
    with new_directory(directory) as staged:
        write_json(staged / GATE_FILE, verdict)
        for plot in plots:
            write_bytes(staged / f"{plot.name}.png", plot.png)
        write_text(staged / "report.md", _markdown(verdict, plots))
        write_text(staged / "report.html", _page(verdict, plots))
        # `new_directory` leaves what is there.
        shutil.rmtree(directory, ignore_errors=True)


def text_table(verdict: Mapping[str, Any]) -> str:
    """The verdict in short, for a terminal: what was refused, and the figures."""
    lines = [verdict_line(verdict)]
    lines += [f"  {detail}" for detail in _refusals(verdict)]
    figures = _figures(verdict)
    table = tabulate(
        figures.rows,
        figures.headings,
        disable_numparse=True,
        colalign=_alignment(figures),
    )
    return "\n".join([*lines, "", table])


def verdict_line(verdict: Mapping[str, Any]) -> str:
    """One line: whether the candidate may be published."""
    criteria = verdict["criteria"]
    failed = sum(not criterion["passed"] for criterion in criteria)
    if verdict["passed"]:
        return f"passed: all {len(criteria)} criteria hold"
    return f"refused: {failed} of {len(criteria)} criteria do not hold"


def _refusals(verdict: Mapping[str, Any]) -> list[str]:
    return [c["detail"] for c in verdict["criteria"] if not c["passed"]]


def _tables(verdict: Mapping[str, Any]) -> list[_Table]:
    return [
        table
        for table in (
            _figures(verdict),
            _cost(verdict),
            _slices(verdict),
            _criteria(verdict),
        )
        if table.rows
    ]


def _figures(verdict: Mapping[str, Any]) -> _Table:
    rows, passed = [], []
    outcome = {c["name"]: c["passed"] for c in verdict["criteria"]}
    for name, measured in verdict["metrics"].items():
        for metric, title in METRICS.items():
            found = measured[metric]
            if found["candidate"] is None:
                continue
            counted = measured["mentions" if metric == "nil_f1" else "in_kb"]
            rows.append(
                [
                    SETS[name],
                    title,
                    f"{counted:,}",
                    _percent(found["production"]),
                    _percent(found["candidate"]),
                    _points(found["difference"]),
                    _points(found["lower"]),
                ]
            )
            passed.append(outcome.get(f"{name}.{metric}"))
    confidence = verdict["limits"]["confidence"]
    return _Table(
        "Figures",
        "In percent, and points. Both models answered the same mentions with the same "
        f"candidates. With {100 * confidence:g} % confidence a difference is not below "
        "its lower end (paired bootstrap).",
        ["set", "", "mentions", *_MODELS, "difference", "lower end"],
        2,
        rows,
        passed,
    )


def _cost(verdict: Mapping[str, Any]) -> _Table:
    size, latency = verdict["size"], verdict["latency"]
    outcome = {c["name"]: c for c in verdict["criteria"]}

    def ratio(name: str) -> str:
        return f"{outcome[name]['value']:.2f}" if name in outcome else "-"

    rows = [
        ["size, MB", *(_megabytes(size[m]) for m in _MODELS), ratio("size")],
        [
            "latency of a mention, median ms",
            *(_milliseconds(latency[m], "median_ms") for m in _MODELS),
            ratio("latency"),
        ],
        [
            "latency of a mention, 95th percentile, ms",
            *(_milliseconds(latency[m], "p95_ms") for m in _MODELS),
            "",
        ],
    ]
    return _Table(
        "Size and speed",
        "Of the saved_model. Both models answered the same real requests in turns, one "
        "mention with its candidates each, in one process; building the requests is "
        "not counted.",
        ["", *_MODELS, "times"],
        1,
        rows,
        [
            outcome.get("size", {}).get("passed"),
            outcome.get("latency", {}).get("passed"),
            None,
        ],
    )


def _slices(verdict: Mapping[str, Any]) -> _Table:
    limits = verdict["limits"]
    return _Table(
        "Slices",
        "Link accuracy in percent of the mentions with an entity. A slice of "
        f"{limits['min_slice_mentions']} mentions or more may fall "
        f"{limits['slice_max_drop']:g} points; smaller ones are shown only.",
        ["set", "by", "slice", "mentions", *_MODELS, "difference", "judged"],
        3,
        [
            [
                SETS[entry["set"]],
                entry["by"],
                entry["name"],
                f"{entry['mentions']:,}",
                _percent(entry["production"]),
                _percent(entry["candidate"]),
                _points(entry["difference"]),
                "yes" if entry["judged"] else "no",
            ]
            for entry in verdict["slices"]
        ],
        [entry["passed"] for entry in verdict["slices"]],
    )


def _criteria(verdict: Mapping[str, Any]) -> _Table:
    return _Table(
        "Criteria",
        "All of them have to hold.",
        ["criterion", "outcome", "why"],
        3,
        [
            [c["name"], "holds" if c["passed"] else "fails", c["detail"]]
            for c in verdict["criteria"]
        ],
        [c["passed"] for c in verdict["criteria"]],
    )


def _notes(verdict: Mapping[str, Any]) -> list[str]:
    """Sentences on what a reader should know beside the figures."""
    notes = []
    if verdict["production_version"] is None:
        notes.append(
            "There was no model in production to compare with: only the proofs and "
            "the lowest link accuracy were judged."
        )
    for name, measured in verdict["metrics"].items():
        for model, number in measured["unreadable"].items():
            if number:
                notes.append(
                    f"{number:,} of the {SETS[name]} mentions could not be read by the "
                    f"{model} model and count as wrong for it."
                )
        if changes := verdict["changes"][name]:
            notes.append(
                f"Of the {SETS[name]} mentions the candidate answers "
                f"{changes['won']:,} rightly that production does not, and "
                f"{changes['lost']:,} the other way round (NIL included)."
            )
        if measured.get("in_train"):
            notes.append(
                f"{measured['in_train']:,} of the golden mentions are of texts in the "
                "train split: what the model saw in training says less of its quality."
            )
    return notes


def _examples(verdict: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(before, mention, after, what happened) of mentions that are now wrong."""
    found = []
    for name, changes in verdict["changes"].items():
        for entry in (changes or {}).get("examples", ()):
            text, start, end = entry["text"], entry["start"], entry["end"]
            gold = entry["gold_name"] or "NIL"
            if entry["candidate_unreadable"]:
                now = "not readable"
            elif entry["candidate"] is None:
                now = "NIL"
            else:
                now = f"{entry['candidate_name']} ({entry['candidate']})"
            if entry["gold"] is not None:
                gold = f"{gold} ({entry['gold']})"
            found.append(
                (
                    text[:start],
                    text[start:end],
                    text[end:],
                    f"{SETS[name]}: expected {gold}, now {now}",
                )
            )
    return found


def _title(verdict: Mapping[str, Any]) -> str:
    return f"The gate: {verdict['name']}, version {verdict['version']}"


def _subtitle(verdict: Mapping[str, Any]) -> str:
    before = verdict["production_version"]
    against = "nothing in production" if before is None else f"version {before}"
    split = verdict["metrics"]["held_out"]["split"]
    return (
        f"{verdict['created']} · run {verdict['run_id']} · against {against} · "
        f"held-out mentions of {split}"
    )


def _markdown(verdict: Mapping[str, Any], plots: Sequence[gate_plots.Plot]) -> str:
    lines = [
        f"# {escape_markdown(_title(verdict))}",
        "",
        f"**{escape_markdown(verdict_line(verdict))}**",
        "",
        escape_markdown(_subtitle(verdict)),
        "",
    ]
    lines += [f"- {escape_markdown(detail)}" for detail in _refusals(verdict)]
    for table in _tables(verdict):
        lines += ["", f"## {table.title}", "", table.note, ""]
        lines.append("| " + " | ".join(table.headings) + " |")
        marks = ["---"] * table.texts
        marks += ["---:"] * (len(table.headings) - table.texts)
        lines.append("| " + " | ".join(marks) + " |")
        for row in table.rows:
            lines.append("| " + " | ".join(map(escape_markdown, row)) + " |")
    for plot in plots:
        lines += ["", f"![{plot.name}]({plot.name}.png)", "", plot.caption]
    if notes := _notes(verdict):
        lines += ["", "## Notes", ""]
        lines += [f"- {escape_markdown(note)}" for note in notes]
    if examples := _examples(verdict):
        lines += ["", "## Some mentions that were right and are wrong now", ""]
        for before, mention, after, what in examples:
            lines.append(
                f"- {escape_markdown(before + '⟦' + mention + '⟧' + after)} — "
                f"{escape_markdown(what)}"
            )
    return "\n".join(lines) + "\n"


def _page(verdict: Mapping[str, Any], plots: Sequence[gate_plots.Plot]) -> str:
    title = escape(_title(verdict))
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>",
        f"<style>{STYLE}{_STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        f'<p class="muted">{escape(_subtitle(verdict))}</p>',
        f'<p class="verdict{"" if verdict["passed"] else " bad"}">'
        f"{escape(verdict_line(verdict))}</p>",
    ]
    if refusals := _refusals(verdict):
        parts.append("<ul>")
        parts += [f"<li>{escape(detail)}</li>" for detail in refusals]
        parts.append("</ul>")
    for table in _tables(verdict):
        parts.append(f"<h2>{table.title}</h2>")
        parts.append(f'<p class="muted small">{escape(table.note)}</p>')
        parts.append(_html_table(table))
    if plots:
        parts.append("<h2>Plots</h2>")
    for plot in plots:
        parts.append(
            f"<figure>{plot.svg}<figcaption>{escape(plot.caption)}</figcaption></figure>"
        )
    if notes := _notes(verdict):
        parts.append("<h2>Notes</h2>")
        parts += [f"<p>{escape(note)}</p>" for note in notes]
    if examples := _examples(verdict):
        parts.append("<h2>Some mentions that were right and are wrong now</h2><ul>")
        for before, mention, after, what in examples:
            parts.append(
                f"<li>{escape(before)}<mark>{escape(mention)}</mark>{escape(after)}"
                f'<br><span class="muted">{escape(what)}</span></li>'
            )
        parts.append("</ul>")
    parts.append("</body></html>")
    return "\n".join(parts) + "\n"


def _html_table(table: _Table) -> str:
    def cell(tag: str, number: int, text: str) -> str:
        style = ' class="text"' if number < table.texts else ""
        return f"<{tag}{style}>{escape(text)}</{tag}>"

    head = "".join(cell("th", n, text) for n, text in enumerate(table.headings))
    body = []
    for row, passed in zip(table.rows, table.passed, strict=True):
        cells = "".join(cell("td", n, text) for n, text in enumerate(row))
        if passed is False:
            # The style has its failed cells in red, with their text broken.
            cells = cells.replace('<td class="text">', '<td class="text why">')
            cells = cells.replace("<td>", '<td class="why">')
        body.append(f"<tr>{cells}</tr>")
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _alignment(table: _Table) -> list[str]:
    numbers = len(table.headings) - table.texts
    return ["left"] * table.texts + ["right"] * numbers


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _points(value: float | None) -> str:
    return "-" if value is None else signed(100 * value)


def _megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:.2f}"


def _milliseconds(latency: Mapping[str, Any] | None, key: str) -> str:
    return "-" if latency is None else f"{latency[key]:.2f}"

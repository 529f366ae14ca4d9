"""The report as a page that needs no other file and no network."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bert_export.verification.report import Column

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --good: #1a7f37;
  --bad: #c02626; --muted: #666; }
@media (prefers-color-scheme: dark) {
  :root { --good: #4ac26b; --bad: #ff7b72; --muted: #aaa; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1320px; margin: 0 auto;
  padding: 24px; background: Canvas; color: CanvasText; }
h1 { font-size: 26px; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 36px 0 10px; }
h3 { font-size: 15px; margin: 18px 0 4px; }
p { margin: 6px 0; max-width: 90ch; }
.muted { color: var(--muted); }
.small { font-size: 13px; }
.verdict { font-size: 18px; font-weight: 600; padding: 10px 14px; margin: 16px 0;
  max-width: none; border-left: 6px solid var(--good); background: var(--soft);
  overflow-wrap: anywhere; }
.verdict.bad { border-color: var(--bad); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px;
  font-variant-numeric: tabular-nums; }
table.figures { width: 100%; }
th, td { padding: 5px 7px; text-align: right; vertical-align: baseline; }
td { border-top: 1px solid var(--line); white-space: nowrap; }
thead th { font-weight: 600; vertical-align: bottom; line-height: 1.25; }
thead th.group { text-align: center; border-bottom: 1px solid var(--line);
  color: var(--muted); font-weight: 500; }
th.text, td.text { text-align: left; }
td.name { font-weight: 600; }
tr.baseline td { color: var(--muted); background: var(--soft); }
.published td.verdict-cell { color: var(--good); }
td.why { color: var(--bad); white-space: normal; }
.failed td.verdict-cell { color: var(--bad); font-weight: 600; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px;
  background: var(--soft); padding: 10px 14px; margin: 6px 0; }
figure { margin: 18px 0; }
figure svg { width: 100%; max-width: 860px; height: auto; display: block; }
figcaption { color: var(--muted); font-size: 13px; max-width: 90ch; }
dl { display: grid; grid-template-columns: minmax(120px, 280px) 1fr;
  gap: 3px 16px; margin: 0; font-size: 14px; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
.cards { display: grid; gap: 8px 40px;
  grid-template-columns: repeat(auto-fit, minmax(min(460px, 100%), 1fr)); }
@media print {
  @page { size: landscape; margin: 12mm; }
  body { max-width: none; padding: 0; font-size: 11px; }
  table { font-size: 9px; } th, td { padding: 2px 4px; }
  .wide { overflow: visible; } details { display: none; }
  figure, tr, .cards > div { break-inside: avoid; } }
"""


def page(
    content: Mapping[str, Any],
    table: Sequence[Column],
    card: Mapping[str, Sequence[tuple[str, str]]],
    plots: Sequence[tuple[str, str]],
    verdict: str,
    how_measured: str,
) -> str:
    """The page.

    Args:
      content: of report.json.
      table: its table.
      card: the model card, section by section.
      plots: (caption, SVG) of each.
      verdict: one line: how many artifacts were published.
      how_measured: what the table's figures mean.
    """
    rows = content["rows"]
    failed = [entry for entry in rows if entry["verdict"] == "failed"]
    machine, held_out = content["machine"], content["data"]["held_out"]
    title = f"{content['name']}, version {content['version']}"
    created = content["created"].replace("T", " ").removesuffix("+00:00")
    step = content["checkpoint"]["global_step"]
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        f'<p class="muted">{escape(created)} UTC · checkpoint '
        f"{escape(content['checkpoint']['path'])}"
        + (f", step {step:,}" if step is not None else "")
        + f" · proven on {held_out['mentions']:,} held-out mentions of "
        f"{escape(held_out['split'])} · {escape(machine['cpu'])}, "
        f"{machine['cpus']} CPUs</p>",
        f'<p class="verdict{" bad" if failed else ""}">{escape(verdict)}</p>',
        _table(rows, table),
        f'<p class="muted small">{escape(how_measured)}</p>',
    ]
    if failed:
        parts.append("<h2>What failed, and why</h2>")
        for entry in failed:
            parts.append(
                f"<h3>{escape(entry['name'])}</h3><pre>{escape(entry['reason'])}</pre>"
            )
    if plots:
        parts.append("<h2>Plots</h2>")
    for caption, svg in plots:
        parts.append(
            f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"
        )
    notes = [(e["name"], e["notes"]) for e in rows if e["notes"]]
    if notes:
        parts.append("<h2>Notes</h2><dl>")
        for name, sentences in notes:
            texts = "<br>".join(map(escape, sentences))
            parts.append(f"<dt>{escape(name)}</dt><dd>{texts}</dd>")
        parts.append("</dl>")
    parts.append('<h2>Model card</h2><div class="cards">')
    for section, entries in card.items():
        if entries:
            items = "".join(
                f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>"
                for name, text in entries
            )
            parts.append(f"<div><h3>{escape(section)}</h3><dl>{items}</dl></div>")
    config = json.dumps(content["config"], indent=2, ensure_ascii=False)
    parts += [
        "</div>",
        f"<h2>Config</h2><details><summary>all options of the run</summary>"
        f"<pre>{escape(config)}</pre></details>",
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _table(rows: Sequence[Mapping[str, Any]], table: Sequence[Column]) -> str:
    """The table, its columns of a group under one heading."""
    groups = "".join(
        f'<th class="group" colspan="{len(list(columns))}">{escape(group)}</th>'
        if group
        else f'<th colspan="{len(list(columns))}"></th>'
        for group, columns in itertools.groupby(table, lambda column: column.group)
    )
    titles = "".join(
        # A long name may be broken behind its dot.
        f'<th class="{_cell_class(number)}">'
        f"{escape(column.title).replace('.', '.<wbr>')}</th>"
        for number, column in enumerate(table)
    )
    body = []
    for index, entry in enumerate(rows):
        cells = [
            f'<td class="{_cell_class(number)}">{escape(column.cells[index])}</td>'
            for number, column in enumerate(table)
        ]
        if entry["verdict"] == "failed":
            # It has no figures; the place tells why.
            cells[2:] = [
                f'<td class="text why" colspan="{len(table) - 2}">'
                f"{escape(_short_reason(entry['reason']))}</td>"
            ]
        body.append(f'<tr class="{entry["verdict"]}">{"".join(cells)}</tr>')
    return (
        f'<div class="wide"><table class="figures"><thead><tr>{groups}</tr>'
        f"<tr>{titles}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _cell_class(number: int) -> str:
    return ("text name", "text verdict-cell")[number] if number < 2 else "number"


def _short_reason(reason: str) -> str:
    """The first of the defects below a reason's headline, or the headline."""
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    short = (lines[1:] or lines or [""])[0]
    return short if len(short) <= 120 else f"{short[:119]}…"

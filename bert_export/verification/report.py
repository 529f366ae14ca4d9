"""The report of an export: artifacts beside baselines, as JSON, Markdown and HTML."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bert_export.config import Config, Target
from bert_export.export.linker_graph import TrainedLinker
from bert_export.files import write_json
from bert_export.training.estimator import recorded_step
from bert_export.verification import proof, report_html, report_plots
from bert_export.verification.proof import HeldOut

FORMAT_VERSION = 1
# The kinds of requests that are timed, as `prove.py` names them.
LATENCIES = {
    "example": "1 pair",
    "mention": "1 mention",
    "batch_32": "32 pairs",
}
# Fewer runs than this have no 95th percentile.
_P95_RUNS = 20


@dataclasses.dataclass(frozen=True)
class Context:
    """What the artifacts of a report have in common.

    Attributes:
      name: the model's name.
      version: of the export.
      model: what the artifacts were made from.
      config: of the run.
      metrics: of the checkpoint's evaluation, as `evaluation.evaluate` returns them.
      data_fingerprint: identifies the training data.
      held_out: the requests of the proofs.
      data: `entities` and `splits` as in WORKDIR/summary.json; {} if not known.
    """

    name: str
    version: int
    model: TrainedLinker
    config: Config
    metrics: Mapping[str, Any]
    data_fingerprint: str
    held_out: HeldOut
    data: Mapping[str, Any]


def row(target: Target, artifact: Path, result: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a published artifact.

    Args:
      target: its format and precision.
      artifact: its directory.
      result: of `proof.prove`.
    """
    manifest = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
    return _row(
        target.name,
        "published",
        format_name=target.format,
        precision=target.precision,
        path=str(artifact),
        notes=[
            *manifest["notes"],
            *_runtime_notes(result["figures"]),
            *proof.skipped(result),
        ],
        versions=result["versions"],
        figures=result["figures"],
    )


def _runtime_notes(figures: Mapping[str, Any]) -> Iterator[str]:
    """How fast an artifact is in each runtime, where it has several."""
    medians = [
        f"{runtime} {_digits(own['latency']['mention']['median_ms'])} ms"
        for runtime, own in figures.get("runtimes", {}).items()
        if "latency" in own
    ]
    if medians:
        yield f"one mention in each runtime: {', '.join(medians)}"


def failed_row(target: Target, reason: str) -> dict[str, Any]:
    """The row of an artifact that was not published, and why."""
    return _row(
        target.name,
        "failed",
        format_name=target.format,
        precision=target.precision,
        reason=reason,
    )


def baseline_row(
    name: str, figures: Mapping[str, Any], notes: Sequence[str]
) -> dict[str, Any]:
    """The row of what the artifacts are compared with."""
    return _row(name, "baseline", precision="float32", figures=figures, notes=notes)


def _row(
    name: str,
    verdict: str,
    *,
    format_name: str | None = None,
    precision: str,
    reason: str | None = None,
    path: str | None = None,
    notes: Sequence[str] = (),
    versions: Mapping[str, str] | None = None,
    figures: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "name": name,
        "verdict": verdict,
        "format": format_name,
        "precision": precision,
        "reason": reason,
        "path": path,
        "notes": list(notes),
        "versions": dict(versions or {}),
        "figures": dict(figures or {}),
    }


def write(directory: Path, rows: Sequence[Mapping[str, Any]], context: Context) -> Path:
    """Writes report.json, report.md and report.html, all or none.

    Args:
      directory: to be made; it must not exist.
      rows: of `row`, `failed_row` and `baseline_row`, in their order in the table.
      context: what they have in common.

    Returns:
      `directory`.
    """
    content = describe(rows, context)
    table = make_table(content)
    plots = report_plots.draw(content)
    directory.parent.mkdir(parents=True, exist_ok=True)
    staged = directory.with_name(f".staging-{directory.name}-{os.getpid()}")
    staged.mkdir()
    try:
        write_json(staged / "report.json", content)
        text = report_markdown(content, table)
        (staged / "report.md").write_text(text, encoding="utf-8")
        page = report_html.page(
            content,
            table,
            model_card(content),
            plots,
            verdict_line(content),
            how_measured(content),
        )
        (staged / "report.html").write_text(page, encoding="utf-8")
        staged.rename(directory)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return directory


def text_table(rows: Sequence[Mapping[str, Any]], context: Context) -> str:
    """The report's table in short, for a terminal."""
    shown = [
        column
        for column in make_table(describe(rows, context))
        if not column.group.startswith("1 mention:")
        and column.title not in ("largest difference", "memory, MB")
    ]
    headings = [
        f"{column.title}\n{'ms' if column.group.startswith('latency') else ''}"
        for column in shown
    ]
    return tabulate(
        zip(*(column.cells for column in shown)),
        headings,
        disable_numparse=True,
        colalign=["left", "left", *["right"] * (len(shown) - 2)],
    )


def describe(rows: Sequence[Mapping[str, Any]], context: Context) -> dict[str, Any]:
    """The content of report.json: all that the other two files show."""
    baselines = {r["name"]: r for r in rows if r["verdict"] == "baseline"}
    described = []
    for entry in rows:
        speedups = {
            name: _speedup(entry, baseline)
            for name, baseline in baselines.items()
            if entry["verdict"] == "published"
        }
        described.append({**entry, "speedup": speedups})
    config = context.config
    return {
        "format_version": FORMAT_VERSION,
        "name": context.name,
        "version": context.version,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(
            timespec="seconds"
        ),
        "benchmark": config.export.benchmark,
        "max_accuracy_drop": config.export.max_accuracy_drop,
        "machine": _machine(),
        "checkpoint": {
            "path": os.path.basename(context.model.checkpoint),
            "global_step": recorded_step(context.model.checkpoint),
        },
        "encoder": dataclasses.asdict(context.model.bert),
        "data": {
            "fingerprint": context.data_fingerprint,
            **context.data,
            "held_out": {
                "split": context.held_out.split,
                "mentions": context.held_out.mentions,
                "pairs": context.held_out.pairs,
            },
        },
        "metrics": dict(context.metrics),
        "rows": described,
        "config": json.loads(config.to_json()),
    }


def _speedup(entry: Mapping[str, Any], baseline: Mapping[str, Any]) -> float | None:
    """How many times as fast a mention with its candidates is answered."""
    try:
        own = entry["figures"]["latency"]["mention"]["median_ms"]
        other = baseline["figures"]["latency"]["mention"]["median_ms"]
    except KeyError:
        return None
    return float(other / own)


def _machine() -> dict[str, Any]:
    """Where the figures were measured."""
    model = platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "system": platform.system(),
        "python": platform.python_version(),
    }


# --- what people read ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
      group: what it shares a heading with; '' for none.
      title: its own heading.
      cells: a text for each row; '' where there is nothing to tell.
    """

    group: str
    title: str
    cells: list[str]


def make_table(content: Mapping[str, Any]) -> list[Column]:
    """The table, column by column; benchmark columns only where there is one."""
    rows = content["rows"]

    def column(group: str, title: str, show: Any) -> Column:
        cells = []
        for entry in rows:
            try:
                cells.append(show(entry))
            except KeyError:
                # Failed artifacts and baselines lack figures.
                cells.append("")
        return Column(group, title, cells)

    def figure(key: str, form: str, scale: float = 1.0) -> Any:
        return lambda entry: form.format(scale * entry["figures"][key])

    columns = [
        column("", "artifact", lambda entry: entry["name"]),
        column("", "verdict", lambda entry: entry["verdict"]),
        column("", "size, MB", figure("bytes", "{:.1f}", 1e-6)),
        column("held-out links", "accuracy, %", _accuracy),
        column("held-out links", "difference, points", _difference),
        column("held-out links", "changed", figure("top1_changed", "{}", 1)),
        column("held-out links", "largest difference", _largest_difference),
    ]
    if not content["benchmark"]:
        return columns
    columns += [
        column("process", "cold start, s", figure("cold_start_seconds", "{:.2f}")),
        column("process", "memory, MB", figure("rss_bytes", "{:.0f}", 1e-6)),
    ]
    for kind, title in LATENCIES.items():
        columns.append(
            column(
                "latency, ms: median / 95 %",
                title,
                lambda entry, kind=kind: _latency(entry["figures"]["latency"][kind]),
            )
        )
    for baseline in (r["name"] for r in rows if r["verdict"] == "baseline"):
        columns.append(
            column(
                "1 mention: times as fast as",
                baseline,
                lambda entry, name=baseline: _digits(entry["speedup"][name]),
            )
        )
    return columns


def _accuracy(entry: Mapping[str, Any]) -> str:
    return f"{100 * entry['figures']['link_accuracy']:.2f}"


def _difference(entry: Mapping[str, Any]) -> str:
    drop = entry["figures"]["accuracy_drop"]
    return f"{-drop:+.2f}".replace("-", "−") if round(drop, 2) else "0.00"


def _largest_difference(entry: Mapping[str, Any]) -> str:
    difference = entry["figures"]["max_difference"]
    return f"{difference:.1e}" if difference else "0"


def _latency(measured: Mapping[str, Any]) -> str:
    median = _digits(measured["median_ms"])
    if measured["runs"] < _P95_RUNS:
        return median
    return f"{median} / {_digits(measured['p95_ms'])}"


def _digits(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def verdict_line(content: Mapping[str, Any]) -> str:
    """How many artifacts were published, and which were not."""
    rows = [r for r in content["rows"] if r["verdict"] != "baseline"]
    failed = [r["name"] for r in rows if r["verdict"] == "failed"]
    published = len(rows) - len(failed)
    line = f"{published} of {len(rows)} artifacts published"
    return f"{line}; not published: {', '.join(failed)}" if failed else line


def model_card(content: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """The model card: sections of (name, text)."""
    encoder, config, metrics = content["encoder"], content["config"], content["metrics"]
    features, data = config["features"], content["data"]

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f} %"

    model = [
        (
            "what it is",
            "An entity linker, as a cross-encoder: it reads a text with a marked "
            "mention beside one candidate entity's description and gives the "
            "probability that the mention means this entity. Candidates of a mention "
            "are ranked by their scores.",
        ),
        (
            "encoder",
            f"BERT: {encoder['num_hidden_layers']} layers, hidden size "
            f"{encoder['hidden_size']}, {encoder['num_attention_heads']} heads, "
            f"{encoder['vocab_size']:,} word pieces"
            + (
                f"; started from {config['model']['pretrained']}"
                if config["model"]["pretrained"]
                else ""
            ),
        ),
        (
            "input",
            f"at most {features['max_seq_length']} word pieces a pair, "
            f"{'lower' if features['lower_case'] else 'original'} case; the candidate "
            f"is described by its {', '.join(features['candidate_fields'])}",
        ),
        (
            "checkpoint",
            content["checkpoint"]["path"]
            + (
                f", step {content['checkpoint']['global_step']:,}"
                if content["checkpoint"]["global_step"] is not None
                else ""
            ),
        ),
        (
            "training",
            f"{config['train']['loss']} loss, learning rate "
            f"{config['train']['learning_rate']:g}, "
            f"{config['train']['mentions_per_batch']} mentions a step, seed "
            f"{config['train']['seed']}",
        ),
    ]
    corpus = [("builder", config["corpus"]["builder"])]
    if "entities" in data:
        corpus.append(("entities", f"{data['entities']:,}"))
    for split, size in data.get("splits", {}).items():
        corpus.append(
            (split, f"{size['mentions']:,} mentions, {size['pairs']:,} pairs")
        )
    corpus.append(("fingerprint", data["fingerprint"][:16]))
    held_out = data["held_out"]
    corpus.append(
        (
            "proofs",
            f"{held_out['mentions']:,} mentions ({held_out['pairs']:,} pairs) spread "
            f"over {held_out['split']}",
        )
    )
    measured = []
    if "baselines" in metrics:
        split = metrics["split"]
        measured = [
            (
                f"link accuracy, all {metrics['mentions']:,} mentions of {split}",
                percent(metrics["link_accuracy"]),
            ),
            (
                "taking the first candidate",
                percent(metrics["baselines"]["first_candidate"]),
            ),
            ("choosing at random", percent(metrics["baselines"]["random"])),
            ("mean reciprocal rank", percent(metrics["mrr"])),
            ("ROC-AUC of pairs", percent(metrics["roc_auc"])),
            ("candidate recall", percent(metrics["candidate_recall"])),
        ]
        for group in metrics["by_candidates"]:
            number = group["candidates"]
            measured.append(
                (
                    f"with {number} candidate{'s' if number != '1' else ''} "
                    f"({group['mentions']:,} mentions)",
                    f"{percent(group['link_accuracy'])}, first candidate "
                    f"{percent(group['first_candidate'])}",
                )
            )
        if nil := metrics.get("nil"):
            measured.append(
                (
                    f"NIL, threshold {nil['threshold']:.3f}",
                    f"precision {percent(nil['precision'])}, recall "
                    f"{percent(nil['recall'])}",
                )
            )
    limits = [
        (
            "intended use",
            "Ranking the candidate entities of mentions that are already found, in "
            "texts like those it was trained on.",
        ),
        (
            "not for",
            "Finding mentions or candidates; other languages or domains without "
            "measuring there; decisions about people without review.",
        ),
        (
            "limits",
            f"Only {features['max_seq_length']} word pieces are seen: text far from "
            "the mention and the end of long descriptions are cut off. The link "
            "probability is that of a pair by itself and is not calibrated. A gold "
            "entity that is not among the candidates cannot be found.",
        ),
    ]
    return {
        "Model": model,
        "Data": corpus,
        "Metrics of the trained model": measured,
        "Use and limits": limits,
    }


def how_measured(content: Mapping[str, Any]) -> str:
    """What the table's figures mean."""
    proof = (
        "Each artifact ran in fresh processes that held its own runtime, with its "
        "default threads, and nothing of what made it. Held-out links: the part of "
        "the mentions whose gold candidate scores highest, its difference from the "
        "trained model's, how many mentions are linked otherwise, and the largest "
        "difference of a probability. An artifact may lose "
        f"{content['max_accuracy_drop']:g} points."
    )
    benchmark = (
        " Cold start: from the process's start to its first answer, one mention with "
        "its candidates. Memory: resident after that answer. Latency: real requests "
        "in turn after a warm-up; building them is not counted."
    )
    return proof + (benchmark if content["benchmark"] else "")


def report_markdown(content: Mapping[str, Any], table: Sequence[Column]) -> str:
    """report.md."""
    lines = [
        f"# {escape_markdown(content['name'])}, version {content['version']}",
        "",
        f"**{escape_markdown(verdict_line(content))}**",
        "",
        f"{content['created']}, checkpoint "
        f"{escape_markdown(content['checkpoint']['path'])}, "
        f"{escape_markdown(content['machine']['cpu'])} "
        f"({content['machine']['cpus']} CPUs).",
        "",
    ]
    titles = [
        f"{column.group}: {column.title}" if column.group else column.title
        for column in table
    ]
    lines.append("| " + " | ".join(map(escape_markdown, titles)) + " |")
    aligned = ["---", "---"] + ["---:"] * (len(table) - 2)
    lines.append("| " + " | ".join(aligned) + " |")
    for number in range(len(content["rows"])):
        cells = [escape_markdown(column.cells[number]) for column in table]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", how_measured(content), ""]
    failed = [entry for entry in content["rows"] if entry["verdict"] == "failed"]
    if failed:
        lines += ["## What failed", ""]
        for entry in failed:
            lines += [f"### {escape_markdown(entry['name'])}", ""]
            lines += [f"    {line}" for line in entry["reason"].splitlines()]
            lines.append("")
    if any(entry["notes"] for entry in content["rows"]):
        lines += ["## Notes", ""]
        for entry in content["rows"]:
            lines += [
                f"- **{escape_markdown(entry['name'])}**: {escape_markdown(note)}"
                for note in entry["notes"]
            ]
        lines.append("")
    lines += ["## Model card", ""]
    for section, entries in model_card(content).items():
        if entries:
            lines += [f"### {section}", ""]
            lines += [
                f"- {escape_markdown(name)}: {escape_markdown(text)}"
                for name, text in entries
            ]
            lines.append("")
    lines += ["## Config", "", "```json"]
    # JSON's strings hold no line break, so no line of it can end the block.
    lines += [json.dumps(content["config"], indent=2, ensure_ascii=False), "```", ""]
    return "\n".join(lines)


def escape_markdown(text: str) -> str:
    """Text for Markdown, on one line and without markup of its own."""
    text = " ".join(text.split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*[]|" else c for c in text)

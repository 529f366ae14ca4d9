"""The report's files, read back as a person's browser and programs would."""

from __future__ import annotations

import copy
import html.parser
import json
import re
from pathlib import Path
from typing import Any

import pytest

from bert_export.config import Config, ExportConfig, Target
from bert_export.verification import report
from bert_export.verification.proof import HeldOut
from tests.verification import tiny_formats

METRICS = {
    "split": "test",
    "mentions": 3445,
    "link_accuracy": 0.5503,
    "mrr": 0.726,
    "candidate_recall": 0.987,
    "baselines": {"first_candidate": 0.3553, "random": 0.29},
    "by_candidates": [
        {
            "candidates": "2",
            "mentions": 1031,
            "link_accuracy": 0.7022,
            "first_candidate": 0.5538,
            "random": 0.5,
        }
    ],
    "roc_auc": 0.8066,
    "nil": {"threshold": 0.25, "precision": 0.61, "recall": 0.43},
}
HOSTILE = "<script>alert(1)</script> & | `x` \"'</pre>"


def figures(scale: float, drop: float = 0.0) -> dict[str, Any]:
    return {
        "mentions": 500,
        "pairs": 2951,
        "link_accuracy": 0.558 - drop / 100,
        "reference_link_accuracy": 0.558,
        "accuracy_drop": drop,
        "top1_changed": 7,
        "top1_changed_beyond_ties": 7,
        "max_difference": 0.0123,
        "mean_difference": 0.001,
        "bytes": 23_456_789,
        "cold_start_seconds": 1.234,
        "rss_bytes": 345_678_901,
        "peak_bytes": 400_000_000,
        "latency": {
            kind: {
                "median_ms": value * scale,
                "p95_ms": 2 * value * scale,
                "runs": 50,
                "pairs": 6.0,
            }
            for kind, value in (("example", 1.5), ("mention", 6.5), ("batch_32", 31.5))
        },
    }


def rows() -> list[dict[str, Any]]:
    published = report.row(
        Target("onnx", "int8_dynamic"),
        tiny_formats.artifact("frozen_graph"),
        {
            "versions": {"onnxruntime": "1.2.3"},
            "figures": figures(1, drop=0.4),
            "checks": [],
        },
    )
    better = {**copy.deepcopy(published), "name": "onnx", "precision": "float32"}
    better["figures"] = figures(2, drop=-0.2)
    failed = report.failed_row(
        Target("openvino", "int8_calibrated"),
        f"the proof failed, 1 of 15 checks failed:\n  accuracy: lost {HOSTILE}",
    )
    slow = figures(40)
    for measured in slow["latency"].values():
        measured["runs"] = 3
    return [
        published,
        better,
        failed,
        report.baseline_row("estimator.predict", slow, ["slow"]),
        report.baseline_row("padded SavedModel", figures(4), []),
    ]


def test_a_row_says_how_fast_each_runtime_is_and_what_was_left_out():
    result = {
        "versions": {"tfjs": "4.22.0"},
        "figures": {
            **figures(1),
            "runtimes": {"node-tfjs": figures(1), "node-cpu": figures(100)},
        },
        "checks": [
            {"name": "node-tfjs: load", "result": "passed", "detail": ""},
            {"name": "chromium-wasm", "result": "skipped", "detail": "no Chromium"},
        ],
    }
    entry = report.row(
        Target("tfjs", "uint8"), tiny_formats.artifact("frozen_graph"), result
    )
    assert entry["notes"][-2:] == [
        "one mention in each runtime: node-tfjs 6.5 ms, node-cpu 650 ms",
        "chromium-wasm: no Chromium",
    ]
    del result["figures"]["runtimes"]["node-cpu"]["latency"]
    del result["figures"]["runtimes"]["node-tfjs"]["latency"]
    row = report.row(
        Target("tfjs", "uint8"), tiny_formats.artifact("frozen_graph"), result
    )
    assert row["notes"][-1] == "chromium-wasm: no Chromium"
    assert not any("each runtime" in note for note in row["notes"])


def context(**export: Any) -> report.Context:
    model = tiny_formats.model()
    config = Config(name="tiny", features=model.features, export=ExportConfig(**export))
    return report.Context(
        name="tiny",
        version=1234567890,
        model=model,
        config=config,
        metrics=METRICS,
        data_fingerprint="abc" * 20,
        held_out=HeldOut(Path("held_out.npz"), "test", 500, 2951),
        data={"entities": 117659, "splits": {"train": {"mentions": 9, "pairs": 54}}},
    )


class Page(html.parser.HTMLParser):
    """The page's table, its texts, and whatever it would load."""

    def __init__(self, source: str):
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data", "action", "srcset"):
                self.loaded.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_data(self, data):
        self.texts.append(data)
        if self.tables and self.tables[-1] and self.tables[-1][-1]:
            self.tables[-1][-1][-1] += data


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return report.write(tmp_path / "reports" / "1234567890", rows(), context())


def test_the_same_figures_in_all_three(written):
    content = json.loads((written / "report.json").read_text())
    page = Page((written / "report.html").read_text())
    text = (written / "report.md").read_text()
    (table,) = page.tables
    (onnx,) = (cells for cells in table if cells[0] == "onnx_int8_dynamic")
    assert onnx == [
        *("onnx_int8_dynamic", "published", "23.5", "55.40", "−0.40", "7", "1.2e-02"),
        *("1.23", "346", "1.5 / 3.0", "6.5 / 13.0", "31.5 / 63.0", "40.0", "4.0"),
    ]
    assert f"| {' | '.join(onnx)} |".replace("_", "_") in text
    # A gain has its sign, and three runs have no 95th percentile.
    by_name = {cells[0]: cells for cells in table}
    assert by_name["onnx"][4] == "+0.20"
    assert by_name["estimator.predict"][9:] == ["60.0", "260", "1,260", "", ""]
    entry = content["rows"][0]
    assert entry["speedup"] == {"estimator.predict": 40, "padded SavedModel": 4}
    assert entry["figures"] == figures(1, drop=0.4)
    assert entry["notes"] == ["made for a test"]
    assert list(content) == [
        "format_version",
        "name",
        "version",
        "created",
        "benchmark",
        "max_accuracy_drop",
        "machine",
        "checkpoint",
        "encoder",
        "data",
        "metrics",
        "rows",
        "config",
    ]


def test_model_card(written):
    page = " ".join(Page((written / "report.html").read_text()).texts)
    text = (written / "report.md").read_text()
    for found in (page, text):
        for expected in (
            *("55.0 %", "35.5 %", "29.0 %", "72.6 %", "80.7 %", "98.7 %"),
            *("117,659", "2 layers, hidden size 16", "model.ckpt-2", "at most 20 word"),
            *("precision 61.0 %, recall 43.0 %", "500 mentions (2,951 pairs)"),
            *("9 mentions, 54 pairs", '"max_accuracy_drop": 0.5'),
        ):
            assert expected in found, expected


def test_what_failed_and_why(written):
    page = Page((written / "report.html").read_text())
    verdict = "2 of 3 artifacts published; not published: openvino_int8_calibrated"
    assert verdict in page.texts
    assert f"**{verdict}**" in (written / "report.md").read_text()
    (row,) = (cells for cells in page.tables[0] if "openvino" in cells[0])
    assert row[1] == "failed"
    assert row[2].startswith("accuracy: lost")
    assert any(text.startswith("the proof failed, 1 of 15") for text in page.texts)
    assert "    accuracy: lost" in (written / "report.md").read_text()


def test_all_published(tmp_path):
    good = [row for row in rows() if row["verdict"] != "failed"]
    directory = report.write(tmp_path / "1", good, context())
    page = Page((directory / "report.html").read_text())
    assert "2 of 2 artifacts published" in page.texts
    assert "What failed, and why" not in page.texts
    assert "## What failed" not in (directory / "report.md").read_text()


def test_page_needs_nothing_else(written):
    source = (written / "report.html").read_text()
    page = Page(source)
    assert "script" not in page.tags
    assert not {"link", "img", "iframe", "object"} & set(page.tags)
    # Within the plots only.
    assert all(target.startswith("#") for target in page.loaded)
    assert {target[1:] for target in page.loaded} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not re.findall(r"url\((?!#)|@import", source)
    # Namespaces are names and are not loaded.
    urls = set(re.findall(r"https?://[^\"'\s<]*", source))
    assert urls <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert page.tags.count("svg") == 2


def test_hostile_texts_are_only_texts(tmp_path):
    hostile = rows()
    hostile[0]["name"] = HOSTILE
    hostile[0]["notes"] = [HOSTILE]
    settings = context()
    object.__setattr__(settings, "name", HOSTILE)
    directory = report.write(tmp_path / "1", hostile, settings)
    page = Page((directory / "report.html").read_text())
    assert "script" not in page.tags
    assert page.texts.count(HOSTILE) >= 3
    text = (directory / "report.md").read_text()
    # In the indented code of the reason it may stand as it is.
    outside = [line for line in text.splitlines() if not line.startswith("    ")]
    assert not any("<script>" in line for line in outside)
    rows_of_table = [line for line in outside if line.startswith("| ")]
    bars = {len(re.findall(r"(?<!\\)\|", line)) for line in rows_of_table}
    assert len(bars) == 1
    content = json.loads((directory / "report.json").read_text())
    assert content["name"] == HOSTILE


def test_without_benchmark_its_columns_are_left_out(tmp_path):
    good = [row for row in rows() if row["verdict"] != "baseline"]
    for row in good:
        for key in ("latency", "cold_start_seconds", "rss_bytes", "peak_bytes"):
            row["figures"].pop(key, None)
    directory = report.write(tmp_path / "1", good, context(benchmark=False))
    source = (directory / "report.html").read_text()
    page = Page(source)
    assert [len(cells) for cells in page.tables[0]] == [2, 7, 7, 7, 3]
    for found in (source, (directory / "report.md").read_text()):
        assert "cold start" not in found
        assert "Latency" not in found
    # Of the plots the sizes are left.
    assert page.tags.count("svg") == 1


def test_nothing_published(tmp_path):
    directory = report.write(
        tmp_path / "1",
        [report.failed_row(Target("tflite", "float32"), "no")],
        context(),
    )
    page = Page((directory / "report.html").read_text())
    assert "0 of 1 artifacts published; not published: tflite" in page.texts
    assert "svg" not in page.tags


def test_all_files_or_none(tmp_path, monkeypatch):
    bad = rows()
    bad[0]["figures"]["bytes"] = object()
    with pytest.raises(TypeError):
        report.write(tmp_path / "reports" / "1", bad, context())
    assert list((tmp_path).rglob("*.json")) == []
    assert not (tmp_path / "reports" / "1").exists()


def test_a_report_is_not_overwritten(written):
    before = (written / "report.json").read_text()
    with pytest.raises(OSError, match="not empty"):
        report.write(written, rows(), context())
    assert (written / "report.json").read_text() == before
    assert [path.name for path in written.parent.iterdir()] == [written.name]

"""The gate's report says all that the verdict does, to people."""

from __future__ import annotations

import html
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from bert_export.config import GateConfig
from bert_export.release import gate, gate_report
from bert_export.release.gate import Answers, Scored

HOSTILE = 'a <script>alert("1")</script> | **b** [c](d)'


def verdict(with_production: bool = True) -> dict:
    """A candidate that is worse on half of its mentions."""
    generator = np.random.default_rng(0)
    is_nil = np.arange(200) < 40

    def answers(share: float) -> Answers:
        rank = np.where(generator.random(200) < share, 1, 3)
        return Answers(
            np.where(is_nil, 0, rank),
            is_nil & (generator.random(200) < share),
            np.arange(200) == 199,
        )

    slices = {"type": [HOSTILE if n % 2 else "plain" for n in range(200)]}
    production = answers(0.8)
    sets = [
        Scored(
            name,
            is_nil,
            np.arange(200),
            slices,
            answers(0.4),
            production if with_production else None,
        )
        for name in gate.SETS
    ]
    latency = {"median_ms": 12.3456, "p95_ms": 23.4567, "runs": 300}
    decided = gate.decide(
        GateConfig(bootstrap_samples=100, min_slice_mentions=30),
        sets,
        {"candidate": 3_000_000, "production": 2_000_000 if with_production else None},
        {"candidate": latency, "production": latency if with_production else None},
        {"saved_model": None, "onnx": HOSTILE},
    )
    example = {
        "text": f"{HOSTILE} bank",
        "start": len(HOSTILE) + 1,
        "end": len(HOSTILE) + 5,
        "gold": "e1",
        "gold_name": "bank & co",
        "candidate": None,
        "candidate_name": None,
        "candidate_unreadable": False,
    }
    changes = {"won": 7, "lost": 61, "examples": [example]}
    decided["metrics"]["golden"]["in_train"] = 13
    decided["metrics"]["held_out"]["split"] = "dev"
    return {
        "format_version": 1,
        "name": "a_linker",
        "run_id": "20260102T030405Z",
        "version": 1234567,
        "production_version": 1234500 if with_production else None,
        "created": "2026-01-02T03:04:05+00:00",
        "limits": {**GateConfig(min_slice_mentions=30).__dict__},
        **decided,
        "changes": dict.fromkeys(gate.SETS, changes if with_production else None),
    }


def test_both_reports_have_all_criteria_figures_and_slices(tmp_path):
    content = verdict()
    refused = [c["name"] for c in content["criteria"] if not c["passed"]]
    assert len(refused) > 8
    gate_report.write(tmp_path / "gate", content)
    markdown = (tmp_path / "gate" / "report.md").read_text("utf-8")
    page = (tmp_path / "gate" / "report.html").read_text("utf-8")
    assert json.loads((tmp_path / "gate" / "gate.json").read_text("utf-8")) == content

    plain = re.sub(r"\\(.)", r"\1", html.unescape(markdown))
    shown = html.unescape(re.sub(r"<[^>]+>", " ", page.replace("\n", " ")))
    squeezed = " ".join(shown.split())
    for text in (plain, squeezed):
        for expected in (
            f"refused: {len(refused)} of 15 criteria do not hold",
            "run 20260102T030405Z",
            "against version 1234500",
            "held-out mentions of dev",
            "12.35",
            "23.46",
            "1 of the golden mentions could not be read by the candidate model",
            "the candidate answers 7 rightly that production does not, and 61 the",
            "13 of the golden mentions are of texts in the train split",
            "expected bank & co (e1), now NIL",
        ):
            assert expected in text
        for criterion in content["criteria"]:
            assert " ".join(criterion["name"].split()) in text
            assert " ".join(criterion["detail"].split()) in text
        for measured in content["metrics"].values():
            for metric in gate.METRICS:
                for model in ("candidate", "production"):
                    assert f"{100 * measured[metric][model]:.2f}" in text
        for entry in content["slices"]:
            assert gate.signed(100 * entry["difference"]) in text


def test_texts_are_no_markup(tmp_path):
    gate_report.write(tmp_path / "gate", verdict())
    page = (tmp_path / "gate" / "report.html").read_text("utf-8")
    markdown = (tmp_path / "gate" / "report.md").read_text("utf-8")
    assert "<script" not in page
    assert "<script" not in markdown
    assert "**b**" not in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("| ")]
    tables = [re.sub(r"\\.", "", row).count("|") for row in rows]
    assert set(tables) == {8, 5, 9, 4}


def test_plots_are_files_for_markdown_and_part_of_the_page(tmp_path):
    gate_report.write(tmp_path / "gate", verdict())
    markdown = (tmp_path / "gate" / "report.md").read_text("utf-8")
    page = (tmp_path / "gate" / "report.html").read_text("utf-8")
    names = re.findall(r"!\[\w+\]\((\w+\.png)\)", markdown)
    assert names == ["differences.png", "slices.png"]
    for name in names:
        assert (tmp_path / "gate" / name).read_bytes().startswith(b"\x89PNG\r\n")
    svgs = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(svgs) == 2
    for svg in svgs:
        ElementTree.fromstring(svg)
    # No other file and no network.
    assert not re.findall(r'(?:src|href)="(?!#)', page)


def test_the_first_model_has_nothing_to_be_compared_with(tmp_path):
    content = verdict(with_production=False)
    gate_report.write(tmp_path / "gate", content)
    assert (tmp_path / "gate" / "slices.png").exists()
    assert not (tmp_path / "gate" / "differences.png").exists()
    markdown = (tmp_path / "gate" / "report.md").read_text("utf-8")
    assert "against nothing in production" in markdown
    assert "There was no model in production to compare with" in markdown
    assert "| held-out | link accuracy | 160 | - | " in markdown


def test_terminal_shows_what_was_refused_and_the_figures():
    content = verdict()
    lines = gate_report.text_table(content).splitlines()
    assert lines[0] == gate_report.verdict_line(content)
    refused = [c["detail"] for c in content["criteria"] if not c["passed"]]
    assert [line.strip() for line in lines[1 : len(refused) + 1]] == refused
    content["passed"] = True
    for criterion in content["criteria"]:
        criterion["passed"] = True
    assert gate_report.verdict_line(content) == "passed: all 15 criteria hold"


def test_an_earlier_verdict_stays_until_the_new_one_is_whole(tmp_path):
    directory = tmp_path / "gate"
    gate_report.write(directory, verdict())
    before = (directory / "gate.json").read_bytes()
    broken = verdict() | {"run_id": object()}
    with pytest.raises(TypeError):
        gate_report.write(directory, broken)
    assert (directory / "gate.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["gate"]
    gate_report.write(directory, verdict(with_production=False))
    assert not (directory / "differences.png").exists()

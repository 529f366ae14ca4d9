from __future__ import annotations

import json

import pytest

from bert_export.corpus.records import BadRecords, Mention
from bert_export.errors import UserError


def test_the_default_tolerates_no_bad_record():
    with pytest.raises(UserError, match=r"m\.jsonl:7: broken JSON: no comma") as raised:
        BadRecords().add("m.jsonl", 7, "broken JSON: no comma")
    assert "--max_bad_records" in str(raised.value)


def test_stops_at_the_first_record_beyond_the_limit():
    bad = BadRecords(2)
    bad.add("a", 1, "empty text")
    bad.add("a", 2, "empty text")
    assert bad.count == 2
    with pytest.raises(UserError, match="a:3: empty text"):
        bad.add("a", 3, "empty text")


def test_a_record_read_in_several_passes_counts_once():
    bad = BadRecords(1)
    for _ in range(3):
        bad.add("a", 1, "empty text")
    assert bad.count == 1


def test_summary_counts_by_file_and_kind():
    bad = BadRecords(100)
    for line in range(1, 9):
        bad.add("m", line, f"unknown gold: no entity has the id 'x{line}'")
    bad.add("e", 4, "empty name")
    summary = json.loads(json.dumps(bad.summary()))
    assert summary["count"] == 9
    assert summary["files"] == {"e": {"empty name": 1}, "m": {"unknown gold": 8}}
    assert summary["first"][0] == "m:1: unknown gold: no entity has the id 'x1'"
    assert len(summary["first"]) == 5


def test_surface_counts_code_points():
    assert Mention("😀 苹果!", 2, 4, None).surface == "苹果"

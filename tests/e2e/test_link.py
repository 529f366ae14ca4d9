"""`link` with the sample's artifact: every way in, every way out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bert_export.corpus.records import Mention
from bert_export.corpus.splits import split_of
from bert_export.errors import UserError
from bert_export.features.records import RecordSet
from bert_export.linking import ArtifactLinker, read_input
from tests.command_line import ROOT, done, run

MENTIONS = ROOT / "data" / "mentions.jsonl"


@pytest.fixture(scope="module")
def linker(sample):
    return ArtifactLinker(sample.version)


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if " % " in line]


def test_texts_and_top(sample):
    result = done(
        "link",
        f"--workdir={sample.workdir}",
        "--text=A year on [[Mercury]] is short.",
        "--text=Nobody has heard of [[Quuxville]].",
        "--top=2",
    )
    first, second = result.stdout.split("\n\n")
    assert first.startswith("A year on [[Mercury]] is short.\n")
    assert len(rows(first)) == 2
    assert (
        second == "Nobody has heard of [[Quuxville]].\n  NIL: no entity has this name\n"
    )
    assert result.stderr == ""


def test_json_lines_from_standard_input(sample):
    lines = MENTIONS.read_text("utf-8").splitlines(keepends=True)[:3]
    own = {"text": "水银 is 水银", "start": 6, "end": 8, "gold": None}
    own["candidates"] = ["mercury-god", "mercury-planet"]
    lines.append(json.dumps(own, ensure_ascii=False) + "\n")
    result = done(
        "link",
        f"--artifact={sample.version}",
        "--input=-",
        "--json",
        text="".join(lines),
    )
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(found) == 4
    assert [linked["gold"] for linked in found] == [
        json.loads(line)["gold"] for line in lines
    ]
    assert "水银" in result.stdout
    for linked in found:
        scores = [candidate["score"] for candidate in linked["candidates"]]
        assert scores == sorted(scores, reverse=True)
        assert sum(c["share"] for c in linked["candidates"]) == pytest.approx(1)
        assert linked["prediction"] in (None, linked["candidates"][0]["id"])
    assert {c["id"] for c in found[3]["candidates"]} == set(own["candidates"])


def test_malformed_input_is_named_with_its_line(sample, tmp_path):
    sentences = tmp_path / "sentences.txt"
    sentences.write_text("fine [[Mercury]]\nno mention\n", "utf-8")
    result = run("link", f"--artifact={sample.version}", f"--input={sentences}")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"bert-export: {sentences}:2: no mention in ")
    assert len(result.stderr.splitlines()) == 1


def test_scores_are_those_of_the_prepared_pairs(linker, sample):
    """Raw text to score here, and through TFRecords there: the same numbers."""
    evaluation = json.loads((sample.workdir / "evaluation.json").read_text())
    records = RecordSet.load(sample.workdir / "records", "test")
    found = list(linker.link(read_input([], str(MENTIONS), linker.entities)))
    right = np.array([r.mention.gold is not None and r.is_right for r in found])
    assert len(found) == 164
    is_test = np.array(
        [
            split_of(r.mention.text, 0.15, 0.15) == "test" and bool(r.candidates)
            for r in found
        ]
    )
    tested = [r for r, chosen in zip(found, is_test, strict=True) if chosen]
    assert [len(r.candidates) for r in tested] == records.mention_sizes.tolist()
    in_kb = [r for r in tested if r.mention.gold is not None]
    best_first = [r.candidates[0].entity.id == r.mention.gold for r in in_kb]
    accuracy = evaluation["metrics"]["link_accuracy"]
    assert np.mean(best_first) == pytest.approx(accuracy, abs=1e-6)
    assert right.any()


def test_batches_do_not_matter(linker):
    mentions = list(read_input([], str(MENTIONS), linker.entities))[:40]
    together = list(linker.link(mentions))
    for mention, linked in zip(mentions[::9], together[::9], strict=True):
        (alone,) = linker.link([mention])
        assert [c.entity.id for c in alone.candidates] == [
            c.entity.id for c in linked.candidates
        ]
        np.testing.assert_allclose(
            [c.score for c in alone.candidates],
            [c.score for c in linked.candidates],
            atol=1e-5,
        )


def test_candidates_of_the_mention_come_before_the_alias_table(linker):
    ids = ("mercury-god", "mercury-element")
    own, table = linker.link(
        [Mention("On Mercury", 3, 10, None, ids), Mention("On Mercury", 3, 10, None)]
    )
    assert {c.entity.id for c in own.candidates} == set(ids)
    assert {c.prior_rank for c in own.candidates} == {1, 2}
    assert {c.entity.id for c in table.candidates} > set(ids)
    (none,) = linker.link([Mention("On Mercury", 3, 10, None, ())])
    assert none.is_nil
    assert none.candidates == []


def test_names_are_found_whatever_their_case_and_width(linker):
    found = linker.link(
        Mention(text, 0, len(text), None) for text in ("MERCURY", "Ｍercury", "mercury")
    )
    counts = [len(result.candidates) for result in found]
    assert counts[0] == counts[1] == counts[2] > 1


def test_mention_that_does_not_fit(linker):
    word = "mercury " * 60
    mention = Mention(word, 0, len(word) - 1, None, ("mercury-god",))
    with pytest.raises(UserError, match="more than fit max_seq_length 64"):
        list(linker.link([mention]))


def test_other_entities(sample, tmp_path):
    entities = tmp_path / "entities.jsonl"
    entities.write_text(
        json.dumps(
            {"id": "new", "name": "Quuxville", "aliases": [], "description": "a town"}
        )
    )
    linker = ArtifactLinker(sample.version, str(entities))
    (found,) = linker.link([Mention("in Quuxville", 3, 12, None)])
    assert [c.entity.id for c in found.candidates] == ["new"]
    with pytest.raises(UserError, match=r"there is no file .*name the entities"):
        ArtifactLinker(sample.version, str(Path(tmp_path / "none.jsonl")))

"""PubTator: every record of MedMentions' and BC5CDR's fixtures, and bad input."""

from __future__ import annotations

import pathlib
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_export.config import CorpusConfig
from bert_export.corpus import jsonl
from bert_export.corpus.pubtator import read_pubtator
from bert_export.corpus.records import BadRecords, Entity, Mention
from bert_export.corpus.splits import SPLITS, split_of
from bert_export.errors import UserError
from tests.corpus.fixture_configs import CONFIGS

UNSEEN = "mentions of entities that train does not name, now NIL"
HONEY = (
    "Honey and the healing of small burns We compared honey with a plain dressing in"
    " 40 volunteers. Burns under honey closed two days earlier."
)
WALK = (
    "Walking speed after a night without sleep Sleep loss slowed walking by 4 %."
    " Honey had no effect (β = 0.1)."
)
COLD = "Cold water and burns Cooling with water eased burns."
RASH = (
    "Tea-associated rash, renal and hepatic failure. A rash followed green tea. Renal"
    " failure was mild."
)


def test_medmentions_fixture_field_by_field():
    source = read_pubtator(CorpusConfig(**CONFIGS["medmentions"]), BadRecords())
    assert list(source.entities.values()) == [
        Entity("C9000001", "Honey", ("honey",), "T168", "T168"),
        Entity("C9000002", "burns", ("Burns",), "T037", "T037"),
        Entity("C9000003", "dressing", (), "T074", "T074"),
    ]
    assert list(source.mentions) == [
        ("train", Mention(HONEY, 0, 5, "C9000001")),
        ("train", Mention(HONEY, 31, 36, "C9000002")),
        ("train", Mention(HONEY, 49, 54, "C9000001")),
        ("train", Mention(HONEY, 68, 76, "C9000003")),
        ("train", Mention(HONEY, 95, 100, "C9000002")),
        ("dev", Mention(WALK, 0, 13, None)),
        ("dev", Mention(WALK, 42, 52, None)),
        ("dev", Mention(WALK, 76, 81, "C9000001")),
        ("test", Mention(COLD, 15, 20, "C9000002")),
        ("test", Mention(COLD, 21, 28, None)),
        ("test", Mention(COLD, 46, 51, "C9000002")),
    ]
    assert source.notes == {UNSEEN: 3}


def test_bc5cdrs_fixture_field_by_field():
    source = read_pubtator(CorpusConfig(**CONFIGS["bc5cdr"]), BadRecords())
    assert list(source.entities.values()) == [
        Entity("D900001", "Tea", (), "Chemical", "Chemical"),
        Entity("D900002", "rash", (), "Disease", "Disease"),
        Entity("D900004", "hepatic failure", (), "Disease", "Disease"),
        Entity("D900003", "Renal failure", (), "Disease", "Disease"),
    ]
    tea = "Tea again. The rash did not return."
    salt = "Salt and cramps. Salt eased cramps; no rash."
    assert list(source.mentions) == [
        ("train", Mention(RASH, 0, 3, "D900001")),
        ("train", Mention(RASH, 15, 19, "D900002")),
        # Of 'renal and hepatic failure' only the second part stands there as such.
        ("train", Mention(RASH, 31, 46, "D900004")),
        ("train", Mention(RASH, 50, 54, "D900002")),
        ("train", Mention(RASH, 64, 73, None)),
        ("train", Mention(RASH, 75, 88, "D900003")),
        ("dev", Mention(tea, 0, 3, "D900001")),
        ("dev", Mention(tea, 15, 19, "D900002")),
        ("test", Mention(salt, 0, 4, None)),
        ("test", Mention(salt, 39, 43, "D900002")),
    ]
    assert RASH[31:46] == "hepatic failure"
    assert source.notes == {
        "composite mentions, or parts of them, not found as such; left out": 1,
        "parts of composite mentions, now mentions of their own": 1,
        UNSEEN: 1,
    }


def test_a_window_of_the_document_is_kept():
    options = CorpusConfig(**CONFIGS["medmentions"], context_words=1)
    _, first = next(read_pubtator(options, BadRecords()).mentions)
    assert first == Mention("Honey and", 0, 5, "C9000001")


def test_without_lists_a_documents_pmid_tells_its_split(tmp_path):
    path = tmp_path / "corpus.txt"
    document = (
        "{0}|t|Tea.\n{0}|a|More.\n{0}\t0\t3\tTea\tX\tD1\n{0}\t5\t9\tMore\tX\tD1\n\n"
    )
    path.write_text("".join(document.format(number) for number in range(200)))
    options = CorpusConfig(
        builder="pubtator", mentions=str(path), dev_fraction=0.2, test_fraction=0.3
    )
    splits = [split for split, _ in read_pubtator(options, BadRecords()).mentions]
    assert splits == [
        split_of(str(number), 0.2, 0.3) for number in range(200) for _ in range(2)
    ]
    assert 60 < splits.count("dev") < 110


def test_unlisted_documents_are_left_out_and_counted(tmp_path):
    lists = list(CONFIGS["medmentions"]["pubtator_pmids"])
    lists[1] = str(tmp_path / "dev.txt")
    (tmp_path / "dev.txt").write_text("7\n")
    options = CorpusConfig(**{**CONFIGS["medmentions"], "pubtator_pmids": tuple(lists)})
    source = read_pubtator(options, BadRecords())
    assert {split for split, _ in source.mentions} == {"train", "test"}
    assert source.notes["documents in none of pubtator_pmids, left out"] == 1


def test_a_document_in_two_lists_is_refused(tmp_path):
    lists = list(CONFIGS["medmentions"]["pubtator_pmids"])
    (tmp_path / "dev.txt").write_text("90000002\n90000001\n")
    lists[1] = str(tmp_path / "dev.txt")
    options = CorpusConfig(**{**CONFIGS["medmentions"], "pubtator_pmids": tuple(lists)})
    message = "dev.txt:2: the document 90000001 is in the list of train, too"
    with pytest.raises(UserError, match=message):
        read_pubtator(options, BadRecords(100))


@pytest.mark.parametrize("prefix", ["", "UMLS:"])
def test_entities_of_ours_describe_and_every_id_must_be_theirs(prefix, tmp_path):
    path = tmp_path / "entities.jsonl"
    entities = [
        Entity(f"{prefix}C900000{number}", f"name {number}", (), "described")
        for number in range(1, 6)
    ]
    jsonl.write_entities(path, entities)
    options = CorpusConfig(**CONFIGS["medmentions"], entities=str(path))
    bad = BadRecords(1)
    source = read_pubtator(options, bad)
    assert list(source.entities.values()) == entities
    golds = [mention.gold for _, mention in source.mentions]
    assert len(golds) == 10
    assert set(golds) == {entity.id for entity in entities}
    ((_, line, reason),) = bad.seen
    assert (line, reason) == (18, "unknown gold: no entity has the id 'C9000006'")
    assert not source.notes


TITLE, ABSTRACT = "1|t|Tea.", "1|a|More tea."
TEA = "1\t0\t3\tTea\tChemical\tD1"


def make(tmp_path: pathlib.Path, *lines: str) -> CorpusConfig:
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return CorpusConfig(
        builder="pubtator", mentions=str(path), dev_fraction=0.0, test_fraction=0.0
    )


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            "1\t0\t3\tTee\tChemical\tD1",
            "text differs: 0..3 is 'Tea', the mention is 'Te",
        ),
        ("1\t1\t4\tTea\tChemical\tD1", "text differs: 1..4 is 'ea.'"),
        ("1\t90\t93\tTea\tChemical\tD1", "text differs: 90..93 is ''"),
        ("1\t4\t5\t \tChemical\tD1", "text differs: 4..5 is ' '"),
        (
            "1\t0\t3\tTea\tChemical",
            "wrong columns: expected 1, start, end, mention, ty",
        ),
        ("2\t0\t3\tTea\tChemical\tD1", "wrong columns: expected 1, start, end"),
        ("1\t-3\t3\tTea\tChemical\tD1", "wrong columns: '-3' and '3' are no offsets"),
        ("1\t0\tx\tTea\tChemical\tD1", "wrong columns: '0' and 'x' are no offsets"),
        ("1\t0\t3\tTea\tChemical\t ", "no entity id: expected one, or -1, in the sixt"),
        ("Tea", "wrong columns: expected 1, start, end, mention, type"),
    ],
)
def test_a_bad_annotation_is_named_by_its_line(line, reason, tmp_path):
    options = make(tmp_path, TITLE, ABSTRACT, TEA, line, "1\tCID\tD1\tD2")
    with pytest.raises(UserError) as caught:
        read_pubtator(options, BadRecords())
    assert str(caught.value).startswith(f"{tmp_path / 'corpus.txt'}:4: {reason}")
    bad = BadRecords(1)
    found = [mention.surface for _, mention in read_pubtator(options, bad).mentions]
    assert found == ["Tea"]
    assert bad.count == 1


@pytest.mark.parametrize(
    ("lines", "line", "reason"),
    [
        ([ABSTRACT, TEA], 5, "wrong layout: expected PMID|t|TITLE, found '1|a|More te"),
        ([TITLE, TEA], 6, "wrong layout: expected 1|a|ABSTRACT, found '1\\t0\\t3\\tTe"),
        ([TITLE, "2|a|More."], 6, "wrong layout: expected 1|a|ABSTRACT, found '2|a|M"),
        ([TITLE], 5, "wrong layout: expected 1|a|ABSTRACT, found 'the end of the doc"),
    ],
)
def test_a_document_without_title_or_abstract_is_left_out(
    lines, line, reason, tmp_path
):
    options = make(tmp_path, TITLE, ABSTRACT, TEA, "", *lines, "", TITLE, ABSTRACT, TEA)
    with pytest.raises(UserError) as caught:
        read_pubtator(options, BadRecords())
    assert str(caught.value).startswith(f"{tmp_path / 'corpus.txt'}:{line}: {reason}")
    assert len(list(read_pubtator(options, BadRecords(1)).mentions)) == 2


def test_documents_need_no_blank_line_between_them(tmp_path):
    options = make(tmp_path, TITLE, ABSTRACT, TEA, TITLE, ABSTRACT, TEA)
    assert len(list(read_pubtator(options, BadRecords()).mentions)) == 2


LINE = st.text(st.characters(codec="utf-8", exclude_characters="\n\r\t"), max_size=40)


@given(LINE, LINE, st.data())
def test_offsets_run_over_title_and_abstract(title, abstract, data):
    text = f"{title} {abstract}"
    rows, expected = [], []
    for number in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text) - 1))
        end = data.draw(st.integers(start + 1, len(text)))
        kind = data.draw(st.sampled_from(["Disease", "T047,T048"]))
        id = data.draw(st.sampled_from([f"D{number}", f"UMLS:D{number}", "-1"]))
        rows.append(f"1\t{start}\t{end}\t{text[start:end]}\t{kind}\t{id}\n")
        if text[start:end].strip():
            gold = None if id == "-1" else id.removeprefix("UMLS:")
            expected.append((text[start:end], gold))
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "corpus.txt"
        content = f"1|t|{title}\n1|a|{abstract}\n{''.join(rows)}\n"
        path.write_bytes(content.encode())
        options = CorpusConfig(
            builder="pubtator", mentions=str(path), dev_fraction=0.0, test_fraction=0.0
        )
        bad = BadRecords(3)
        mentions = [mention for _, mention in read_pubtator(options, bad).mentions]
    assert [(mention.surface, mention.gold) for mention in mentions] == expected
    assert {mention.text.strip() for mention in mentions} <= {text.strip()}
    assert bad.count <= len(rows) - len(expected)


def test_the_three_lists_are_of_the_three_splits():
    options = CorpusConfig(**CONFIGS["medmentions"])
    found = dict.fromkeys(
        split for split, _ in read_pubtator(options, BadRecords()).mentions
    )
    assert tuple(found) == SPLITS

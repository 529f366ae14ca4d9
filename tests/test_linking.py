"""What `link` reads and prints; tests/e2e has it with an artifact."""

from __future__ import annotations

import gzip
import json

import pytest

from bert_export.corpus.records import Entity, Mention
from bert_export.errors import UserError
from bert_export.linking import (
    Candidate,
    LinkedMention,
    read_input,
    sample,
    table,
)

RIVER = Entity("river", "bank", (), "sloping land beside water")
MONEY = Entity("money", "bank", ("银行",), "a financial institution")
MENTION = Mention("He sat on the bank.", 14, 18, None)


def linked(gold, first, second, is_nil=False, mention=MENTION):
    """A result whose candidates are `first` and `second`, best first."""
    candidates = [
        Candidate(entity, 2.0 - rank, 0.88 - rank / 2, 0.73 - rank / 2, prior)
        for rank, (entity, prior) in enumerate([first, second])
    ]
    with_gold = Mention(mention.text, mention.start, mention.end, gold)
    return LinkedMention(with_gold, candidates, is_nil)


RIGHT = linked("river", (RIVER, 2), (MONEY, 1))
WRONG = linked("money", (RIVER, 2), (MONEY, 1))
NOTHING = LinkedMention(MENTION, [], True)


def test_texts_come_before_the_file(tmp_path):
    path = tmp_path / "sentences.txt"
    path.write_text("\n  the [[café]] \n\n在[[银行]]\n", encoding="utf-8")
    found = list(read_input(["a [[b]]"], str(path), {}))
    assert [mention.surface for mention in found] == ["b", "café", "银行"]
    assert found[1].text == "the café"


def test_byte_order_mark_is_no_text(tmp_path):
    path = tmp_path / "sentences.txt"
    path.write_text("[[bank]] x", encoding="utf-8-sig")
    (mention,) = read_input([], str(path), {})
    assert (mention.text, mention.start) == ("bank x", 0)


@pytest.mark.parametrize("compress", [False, True])
def test_json_lines_are_recognized(compress, tmp_path):
    records = [
        {"text": "the bank", "start": 4, "end": 8, "gold": "river"},
        {"text": "a", "start": 0, "end": 1, "gold": None, "candidates": ["money"]},
    ]
    lines = "\n" + "".join(json.dumps(record) + "\n" for record in records)
    path = tmp_path / "anything"
    path.write_bytes(gzip.compress(lines.encode()) if compress else lines.encode())
    found = list(read_input([], str(path), {"river", "money"}))
    assert [mention.gold for mention in found] == ["river", None]
    assert [mention.candidates for mention in found] == [None, ("money",)]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"fine [[bank]]\n\nno mention\n", ":3: no mention in 'no mention'"),
        (b"a [[b]] [[c]]", ":1: a second [["),
        (b"\xff\xfe[[b]]", " is not UTF-8"),
        (b'{"text": "a", "start": 0, "end": 1, "gold": "x"}', ":1: unknown gold"),
        (b'{"text": "a", "start": 0, "end": 2, "gold": null}', ":1: offsets outside"),
        (b"{]", ":1: broken JSON"),
    ],
)
def test_bad_input_is_named_with_its_line(content, expected, tmp_path):
    path = tmp_path / "input"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        list(read_input([], str(path), {}))
    assert f"{path}{expected}" in str(caught.value)


def test_input_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=f"cannot read {tmp_path / 'none'}: No such"):
        list(read_input([], str(tmp_path / "none"), {}))


def test_sample_is_always_the_same_and_in_order():
    mentions = [Mention(str(number), 0, 1, None) for number in range(1000)]
    drawn = [int(mention.text) for mention in sample(mentions, 50)]
    assert len(drawn) == 50
    assert drawn == sorted(set(drawn))
    assert drawn[-1] > 800
    assert drawn[0] < 200
    assert [int(mention.text) for mention in sample(iter(mentions), 50)] == drawn
    assert list(sample(mentions[:3], 50)) == mentions[:3]


def test_verdicts():
    assert RIGHT.prediction == "river"
    assert RIGHT.is_right
    assert not RIGHT.first_is_right
    assert not WRONG.is_right
    assert WRONG.first_is_right
    assert NOTHING.prediction is None
    assert NOTHING.is_right
    assert linked(None, (RIVER, 1), (MONEY, 2), is_nil=True).prediction is None


def test_to_dict_is_json_with_all_candidates():
    described = json.loads(json.dumps(RIGHT.to_dict()))
    assert described == {
        "text": "He sat on the bank.",
        "start": 14,
        "end": 18,
        "gold": "river",
        "prediction": "river",
        "candidates": [
            {
                "id": "river",
                "name": "bank",
                "score": 2.0,
                "probability": 0.88,
                "share": 0.73,
                "prior_rank": 2,
            },
            {
                "id": "money",
                "name": "bank",
                "score": 1.0,
                "probability": pytest.approx(0.38),
                "share": pytest.approx(0.23),
                "prior_rank": 1,
            },
        ],
    }


def test_table_shows_the_sentence_its_candidates_and_the_totals():
    text = table([RIGHT, WRONG, RIGHT], top=2)
    first, second, _, totals = text.split("\n\n")
    assert first.startswith("He sat on the [[bank]].\n")
    assert "model right, first candidate wrong" in first
    assert "model wrong, first candidate right" in second
    rows = [line for line in first.splitlines() if " %" in line]
    assert "73.0 %" in rows[0]
    assert "0.880" in rows[0]
    assert "bank: sloping land beside water" in rows[0]
    assert rows[0].endswith("← gold")
    assert "bank, 银行: a financial" in rows[1]
    linked_line, first_line = totals.splitlines()[-2:]
    assert linked_line.split()[-5:] == ["model", "2", "3", "66.7", "%"]
    assert first_line.split()[-5:] == ["candidate", "1", "3", "33.3", "%"]


def test_table_always_shows_the_gold():
    text = table([WRONG], top=1)
    assert "← gold" in text
    assert "bank: sloping" in text
    text = table([RIGHT], top=1)
    assert "financial" not in text


def test_table_without_gold_has_no_totals():
    text = table([linked(None, (RIVER, 1), (MONEY, 2))], top=3)
    assert "right" not in text
    assert "gold" not in text


def test_table_says_why_there_is_no_link():
    assert "NIL: no entity has this name" in table([NOTHING], top=3)
    unlikely = linked(None, (RIVER, 1), (MONEY, 2), is_nil=True)
    assert "NIL: no candidate is likely enough" in table([unlikely], top=3)


@pytest.mark.parametrize(("show", "blocks"), [(0, 0), (1, 1), (2, 2), (3, 3), (9, 3)])
def test_show_leaves_the_totals_alone(show, blocks):
    text = table([RIGHT, WRONG, RIGHT], top=2, show=show)
    assert text.count("He sat on") == blocks
    assert "66.7 %" in text


def test_table_of_nothing():
    assert table([], top=3) == ""
    assert table([], top=3, show=2) == ""

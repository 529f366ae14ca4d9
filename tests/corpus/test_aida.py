"""AIDA CoNLL-YAGO: every record of the fixture, the text's spacing, and bad files."""

from __future__ import annotations

import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_export.config import CorpusConfig
from bert_export.corpus import jsonl
from bert_export.corpus.aida import detokenize, read_aida
from bert_export.corpus.records import BadRecords, Entity, Mention
from bert_export.errors import UserError
from tests.corpus.fixture_configs import CONFIGS

HARBOUR = (
    'Rotterdam\'s port closed on Monday, its operator said. "We wait for the wind",'
    " said Harbour Watch (Utrecht)."
)
SOCCER = "LEEDS BEAT YORK 3-1. King's Lynn didn't play."
WEATHER = "Rain cost Utrecht York $20."


def test_the_fixture_field_by_field():
    source = read_aida(CorpusConfig(**CONFIGS["aida"]), BadRecords())
    assert list(source.entities.values()) == [
        Entity("Rotterdam", "Rotterdam", (), ""),
        Entity("Utrecht_(province)", "Utrecht (province)", ("Utrecht",), ""),
        Entity("Leeds", "Leeds", (), ""),
        Entity("York", "York", (), ""),
        Entity("King's_Lynn", "King's Lynn", (), ""),
        Entity("Utrecht", "Utrecht", (), ""),
    ]
    assert list(source.mentions) == [
        ("train", Mention(HARBOUR, 0, 9, "Rotterdam")),
        ("train", Mention(HARBOUR, 83, 96, None)),
        ("train", Mention(HARBOUR, 98, 105, "Utrecht_(province)")),
        ("dev", Mention(SOCCER, 0, 5, "Leeds")),
        ("dev", Mention(SOCCER, 11, 15, "York")),
        ("dev", Mention(SOCCER, 21, 32, "King's_Lynn")),
        ("test", Mention(WEATHER, 10, 17, "Utrecht")),
        ("test", Mention(WEATHER, 18, 22, "York")),
    ]
    assert [HARBOUR[83:96], SOCCER[21:32]] == ["Harbour Watch", "King's Lynn"]


def test_a_window_of_the_document_is_kept():
    options = CorpusConfig(**CONFIGS["aida"], context_words=2)
    mentions = [m for _, m in read_aida(options, BadRecords()).mentions]
    # A mark that stands at a word is a part of it.
    assert mentions[1] == Mention('wind", said Harbour Watch (Utrecht).', 12, 25, None)
    assert mentions[2].text == "Harbour Watch (Utrecht)."


@pytest.mark.parametrize(
    "ids",
    [
        ["Rotterdam", "Utrecht_(province)", "Leeds", "York", "King's_Lynn", "Utrecht"],
        [f"http://en.wikipedia.org/wiki/{title}" for title in ("Rotterdam", "Leeds")],
        ["1001", "1002", "1003", "1004", "1005", "1006"],
        ["/m/0001", "/m/0002", "/m/0003", "/m/0006"],
        ["King\\u0027s_Lynn", "York"],
    ],
    ids=["title", "url", "wikipedia id", "mid", "yago"],
)
def test_entities_of_ours_go_by_any_id_of_the_file(ids, tmp_path):
    path = tmp_path / "entities.jsonl"
    jsonl.write_entities(path, [Entity(id, id, (), "described") for id in ids])
    bad = BadRecords(20)
    options = CorpusConfig(**CONFIGS["aida"], entities=str(path))
    source = read_aida(options, bad)
    assert list(source.entities) == ids
    golds = [mention.gold for _, mention in source.mentions]
    assert {gold for gold in golds if gold} == set(ids)
    assert None in golds
    assert len(golds) + bad.count == 8
    reasons = {reason.split(":")[0] for _, _, reason in bad.seen}
    assert reasons <= {"unknown gold"}


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ('Mr. Gull said : " No , thanks . "', 'Mr. Gull said: "No, thanks."'),
        ("( Reuters ) - It 's 5 % .", "(Reuters) - It's 5%."),
        ("They do n't pay US$ 5 or $ 6 !", "They don't pay US$5 or $6!"),
        ("the sailors ' boats ; [ sic ]", "the sailors' boats; [sic]"),
        ("`` Yes '' , he said", "``Yes'', he said"),
        (", and so on", ", and so on"),
        ("1 . FC", "1. FC"),
    ],
)
def test_spacing(tokens, text):
    made, spans = detokenize([tokens.split()])
    assert made == text
    assert [made[start:end] for start, end in spans] == tokens.split()


def test_quotes_that_do_not_close_end_with_their_sentence():
    text, _ = detokenize([['"', "One"], ["Two", '"', "three", '"']])
    assert text == '"One Two "three"'


TOKENS = st.sampled_from(
    ["a", "Bé", '"', "'s", "(", ")", ".", ",", "''", "$", "😀", "%"]
)


@given(st.lists(st.lists(TOKENS, max_size=8), max_size=4))
def test_spans_are_the_tokens_and_no_character_is_lost(sentences):
    text, spans = detokenize(sentences)
    tokens = [token for sentence in sentences for token in sentence]
    assert [text[start:end] for start, end in spans] == tokens
    assert text.replace(" ", "") == "".join(tokens)
    assert "  " not in text
    assert text == text.strip()


YORK = "York\tB\tYork\tYork\thttp://en.wikipedia.org/wiki/York\t1\t/m/1"


def make(tmp_path: pathlib.Path, *lines: str) -> CorpusConfig:
    path = tmp_path / "aida.tsv"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return CorpusConfig(builder="aida", mentions=str(path))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("York\tB\tYork", "wrong columns: expected a token alone, or token, B or I, m"),
        ("York\tX\tYork\tYork", "wrong columns: expected a token alone"),
        ("1\t--NME--", "no token: AIDA-YAGO2-annotations.tsv is without the texts"),
        ("York\tI\tYork\tYork", "I without B: 'York' goes on but did not begin"),
        ("York\tB\tLeeds\t--NME--", "mention differs: its tokens are 'York', its colu"),
        ("York\tB\tYork\tYork", "no Wikipedia URL: expected it behind 'York', or --NM"),
        ("York\tB\tYork\tYork\t\t1", "no Wikipedia URL"),
        ("York\tB\tYork\tYork\thttp://en.wikipedia.org/wiki/", "no Wikipedia URL"),
    ],
)
def test_a_bad_mention_is_named_by_its_line(line, reason, tmp_path):
    options = make(tmp_path, "-DOCSTART- (1 EU)", YORK, "and", line)

    def read(bad: BadRecords) -> list[str]:
        return [m.surface for _, m in read_aida(options, bad).mentions]

    with pytest.raises(UserError) as caught:
        read(BadRecords())
    assert str(caught.value).startswith(f"{tmp_path / 'aida.tsv'}:4: {reason}")
    bad = BadRecords(1)
    assert read(bad) == ["York"]
    assert bad.count == 1


def test_a_mention_that_another_line_splits_is_bad(tmp_path):
    lake = "Lake\tB\tLake York\t--NME--"
    york = "York\tI\tLake York\t--NME--"
    options = make(tmp_path, "-DOCSTART- (1 EU)", lake, "of", york)
    with pytest.raises(
        UserError, match=r"aida\.tsv:4: I without B: 'Lake York' goes on"
    ):
        read_aida(options, BadRecords())


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([YORK], "1: expected '-DOCSTART- (1 EU)' first, found 'York\\tB"),
        (["-DOCSTART- EU"], "1: expected a document's start such as '-DOCSTART- (9"),
        (["-DOCSTART- (1 EU)", "-DOCSTART-"], "2: expected a document's start such"),
    ],
)
def test_another_kind_of_file_is_refused(lines, message, tmp_path):
    options = make(tmp_path, *lines)
    with pytest.raises(UserError) as caught:
        read_aida(options, BadRecords(100))
    assert str(caught.value).startswith(f"{tmp_path / 'aida.tsv'}:{message}")

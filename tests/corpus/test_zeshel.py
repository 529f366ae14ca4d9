"""ZESHEL and BLINK: every record of the fixtures, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import pytest

from bert_export.config import CorpusConfig
from bert_export.corpus.records import BadRecords, Entity, Mention
from bert_export.corpus.zeshel import read_zeshel
from bert_export.errors import UserError
from tests.corpus.fixture_configs import CONFIGS

QUAY = (
    "Eastern Quay The quay where the Grey Gull lands . Sailors sleep at the Grey Gull"
    " when the boats stay in port ."
)
INN = (
    "Grey Gull ( inn ) An inn on the eastern quay , known for its smoked eel and for"
    " the ferry moored in front of it ."
)
FEN = "Low Fen A wetland lit by Lantern Moss and crossed by a single path ."
YARD = (
    "North Yard The larger of two yards . Every Box Kite is tested here , says the"
    " yard ' s log ."
)
ENTITIES = {
    "AA01": Entity(
        "AA01",
        "Grey Gull",
        (),
        "Grey Gull The Grey Gull is a ferry that crosses Tin Harbour twice a day . Its"
        " captain keeps a log of every storm .",
    ),
    "AA02": Entity("AA02", "Grey Gull (inn)", ("Grey Gull",), INN),
    "AA03": Entity("AA03", "Eastern Quay", (), QUAY),
    "BB01": Entity(
        "BB01",
        "Lantern Moss",
        (),
        "Lantern Moss A moss that glows at dusk . Travellers of the Low Fen plant it"
        " beside paths .",
    ),
    "BB02": Entity("BB02", "Low Fen", (), FEN),
    "CC01": Entity(
        "CC01",
        "Box Kite",
        (),
        "Box Kite A kite of four cells , flown from the North Yard on windy days .",
    ),
    "CC02": Entity("CC02", "North Yard", (), YARD),
}
# Split, text, mention, its occurrence, gold, candidates.
MENTIONS = [
    ("train", QUAY, "Grey Gull", 0, "AA01", ("AA01", "AA02")),
    ("train", QUAY, "Grey Gull", 1, "AA02", ("AA01", "AA02", "AA03")),
    ("train", INN, "the ferry", 0, "AA01", ("AA02", "AA01")),
    ("dev", FEN, "Lantern Moss", 0, "BB01", ("BB01", "BB02")),
    ("test", YARD, "Box Kite", 0, "CC01", ("CC01", "CC02")),
    ("test", YARD, "log", 0, "CC02", None),
]


def expected(lower: bool = False, candidates: bool = True) -> list[Any]:
    found = []
    for split, text, surface, nth, gold, ids in MENTIONS:
        start = text.index(surface)
        if nth:
            start = text.index(surface, start + 1)
        mention = Mention(text, start, start + len(surface), gold, ids)
        if lower:
            mention = dataclasses.replace(mention, text=text.lower())
        if not candidates:
            mention = dataclasses.replace(mention, candidates=None)
        found.append((split, mention))
    return found


def test_zeshels_fixture_field_by_field():
    source = read_zeshel(CorpusConfig(**CONFIGS["zeshel"]), BadRecords())
    # World by world, in the order of their files' names.
    order = ["CC01", "CC02", "BB01", "BB02", "AA01", "AA02", "AA03"]
    assert list(source.entities.items()) == [(id, ENTITIES[id]) for id in order]
    assert list(source.mentions) == expected()
    assert source.notes == {
        "mentions without TF-IDF candidates, left to the alias table": 1
    }


def test_candidates_may_be_left_to_the_alias_table():
    options = {**CONFIGS["zeshel"], "zeshel_candidates": ()}
    source = read_zeshel(CorpusConfig(**options), BadRecords())
    assert list(source.mentions) == expected(candidates=False)
    assert not source.notes


def test_blinks_fixture_field_by_field():
    source = read_zeshel(CorpusConfig(**CONFIGS["blink"]), BadRecords())
    assert list(source.entities.items()) == list(ENTITIES.items())
    assert list(source.mentions) == expected(lower=True, candidates=False)


def test_blinks_labels_are_entities_where_there_are_no_documents():
    source = read_zeshel(CorpusConfig(**CONFIGS["blink_labels"]), BadRecords())
    lines = list(ENTITIES)  # label_id is the line in documents.jsonl
    ids = {entity_id: str(line) for line, entity_id in enumerate(lines)}
    assert list(source.entities.values()) == [
        dataclasses.replace(ENTITIES[id], id=ids[id])
        for id in ("AA01", "AA02", "BB01", "CC01", "CC02")
    ]
    assert list(source.mentions) == [
        (split, dataclasses.replace(mention, gold=ids[mention.gold]))
        for split, mention in expected(lower=True, candidates=False)
    ]


def test_a_window_of_the_document_is_kept():
    options = {**CONFIGS["zeshel"], "context_words": 2}
    mentions = read_zeshel(CorpusConfig(**options), BadRecords()).mentions
    _, first = next(mentions)
    assert (first.text, first.surface) == ("where the Grey Gull lands .", "Grey Gull")


DOCUMENTS = [
    {"document_id": "D0", "title": "Grey Gull", "text": "The  gull\nflies far ."},
    {"document_id": "D1", "title": "Quay", "text": "A quay ."},
]
ZESHEL = {
    "mention_id": "M",
    "context_document_id": "D0",
    "start_index": 1,
    "end_index": 2,
    "text": "gull flies",
    "label_document_id": "D1",
    "corpus": "w",
}
BLINK = {
    "context_left": "at the ",
    "mention": "quay",
    "context_right": "'s end",
    "label_id": 1,
    "label": "A quay .",
    "label_title": "Quay",
}


def make(
    tmp_path: pathlib.Path, *mentions: dict[str, Any], worlds: tuple[str, ...] = ("w",)
) -> CorpusConfig:
    (tmp_path / "documents").mkdir()
    for world in worlds:
        lines = [
            json.dumps(record | {"document_id": f"{world}{record['document_id']}"})
            for record in DOCUMENTS
        ]
        (tmp_path / "documents" / f"{world}.json").write_text("\n".join(lines))
    lines = [json.dumps(mention) for mention in mentions]
    (tmp_path / "train.json").write_text("\n".join(lines))
    return CorpusConfig(
        builder="zeshel",
        entities=str(tmp_path / "documents"),
        mentions=str(tmp_path / "train.json"),
    )


def own(record: dict[str, Any]) -> dict[str, Any]:
    return {
        key: f"w{value}" if key.endswith("document_id") else value
        for key, value in record.items()
    }


def test_tokens_are_set_apart_by_any_white_space(tmp_path):
    source = read_zeshel(make(tmp_path, own(ZESHEL)), BadRecords())
    ((_, mention),) = source.mentions
    assert mention == Mention("The  gull\nflies far .", 5, 15, "wD1")
    assert mention.surface == "gull\nflies"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"context_document_id": "X"}, "unknown document: 'X' is in no file of them"),
        ({"label_document_id": "X"}, "unknown gold: no entity has the id 'X'"),
        ({"end_index": 9}, "offsets outside the text: tokens 1..9 of 'wD0'"),
        ({"start_index": -1}, "offsets outside the text: tokens -1..2"),
        ({"start_index": 3}, "offsets outside the text: tokens 3..2"),
        ({"start_index": "1"}, "mistyped field 'start_index'"),
        (
            {"text": "gull"},
            "text differs: tokens 1..2 of 'wD0' are 'gull\\nflies', the",
        ),
    ],
)
def test_bad_mentions_of_zeshel(tmp_path, change, reason):
    options = make(tmp_path, own(ZESHEL), own(ZESHEL) | change)
    with pytest.raises(UserError) as caught:
        list(read_zeshel(options, BadRecords()).mentions)
    assert str(caught.value).startswith(f"{tmp_path / 'train.json'}:2: {reason}")
    assert len(list(read_zeshel(options, BadRecords(1)).mentions)) == 1


def test_contexts_are_joined_by_a_space_where_there_is_none(tmp_path):
    options = make(tmp_path, BLINK, BLINK | {"context_left": "", "context_right": ""})
    mentions = [m for _, m in read_zeshel(options, BadRecords()).mentions]
    assert mentions == [
        Mention("at the quay 's end", 7, 11, "wD1"),
        Mention("quay", 0, 4, "wD1"),
    ]


def test_a_label_id_is_a_line_of_its_world_or_an_id(tmp_path):
    second = {"world": "v", "label_id": "0", "label_title": "Grey Gull"}
    options = make(tmp_path, BLINK | {"world": "w"}, BLINK | second, worlds=("w", "v"))
    golds = [m.gold for _, m in read_zeshel(options, BadRecords()).mentions]
    assert golds == ["wD1", "vD0"]
    (tmp_path / "train.json").write_text(json.dumps(BLINK | {"label_id": "vD1"}))
    golds = [m.gold for _, m in read_zeshel(options, BadRecords()).mentions]
    assert golds == ["vD1"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"label_id": 7},
            "unknown label_id: the documents of w have no entity at line",
        ),
        ({"label_id": "Q1"}, "unknown gold: no document has the id 'Q1'"),
        ({"label_id": None}, "unknown gold: no document has the id None"),
        ({"world": "z"}, "unknown world: 'z' is none of v, w"),
        ({"world": ["w"]}, "mistyped field 'world'"),
        ({"world": None}, "missing field 'world': there are documents of several wor"),
        ({"label_title": "Gull"}, "label_title differs: 'Gull', but label_id 1 is 'Qu"),
        ({"mention": ""}, "empty mention"),
        ({"context_right": None}, "mistyped field 'context_right'"),
    ],
)
def test_bad_mentions_of_blink(tmp_path, change, reason):
    good = BLINK | {"world": "w"}
    options = make(tmp_path, good, good | change, worlds=("w", "v"))
    with pytest.raises(UserError) as caught:
        list(read_zeshel(options, BadRecords()).mentions)
    assert str(caught.value).startswith(f"{tmp_path / 'train.json'}:2: {reason}")
    assert len(list(read_zeshel(options, BadRecords(1)).mentions)) == 1


def test_zeshels_mentions_need_documents(tmp_path):
    options = dataclasses.replace(make(tmp_path, own(ZESHEL)), entities=None)
    with pytest.raises(UserError, match="lacks 'context_left'; for ZESHEL's, name the"):
        read_zeshel(options, BadRecords())


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (['{"mention_id": "M"}'], "1: missing field 'tfidf_candidates'"),
        (
            ['{"mention_id": "M", "tfidf_candidates": "wD0"}'],
            "1: mistyped field 'tfidf_candidates'",
        ),
        (
            ['{"mention_id": "M", "tfidf_candidates": []}'] * 2,
            "2: duplicate mention_id: 'M'",
        ),
        (["[1"], "1: broken JSON"),
    ],
)
def test_bad_candidates(tmp_path, lines, reason):
    options = make(tmp_path, own(ZESHEL))
    path = tmp_path / "candidates.json"
    path.write_text("\n".join(lines))
    options = dataclasses.replace(options, zeshel_candidates=(str(path),))
    with pytest.raises(UserError) as caught:
        list(read_zeshel(options, BadRecords()).mentions)
    assert str(caught.value).startswith(f"{path}:{reason}")
    assert len(list(read_zeshel(options, BadRecords(1)).mentions)) == 1


def test_unknown_candidates_are_bad(tmp_path):
    options = make(tmp_path, own(ZESHEL))
    path = tmp_path / "candidates.json"
    path.write_text('{"mention_id": "M", "tfidf_candidates": ["wD0", "X"]}')
    options = dataclasses.replace(options, zeshel_candidates=(str(path),))
    with pytest.raises(UserError, match=r"train\.json:1: unknown candidate: .* 'X'"):
        list(read_zeshel(options, BadRecords()).mentions)


def test_directories_without_json_are_refused(tmp_path):
    options = make(tmp_path, own(ZESHEL))
    (tmp_path / "empty").mkdir()
    for key, value in (("entities", "empty"), ("zeshel_candidates", "empty")):
        path = str(tmp_path / value)
        given = (path,) if key == "zeshel_candidates" else path
        with pytest.raises(UserError, match=rf"{key}: no \*\.json in the directory"):
            read_zeshel(dataclasses.replace(options, **{key: given}), BadRecords())

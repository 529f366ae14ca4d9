"""CCKS 2019: every record of the fixture, repairs, and what is beyond repair."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bert_export.config import CorpusConfig
from bert_export.corpus.ccks import locate, read_ccks
from bert_export.corpus.jsonl import BadRecordError
from bert_export.corpus.records import BadRecords, Entity, Mention
from bert_export.errors import UserError
from tests.corpus.fixture_configs import CONFIGS

MOVED = "mention moved to where the text has it"
DIFFERED = "mention differed in case, width, white space or punctuation"


def test_the_fixture_field_by_field():
    source = read_ccks(CorpusConfig(**CONFIGS["ccks"]), BadRecords())
    assert list(source.entities.values()) == [
        Entity(
            "10001",
            "水星",
            ("辰星",),
            "水星是太阳系中离太阳最近的行星。 卫星：无；义项描述：太阳系的行星",
            "Location",
        ),
        Entity(
            "10002",
            "汞",
            ("水银",),
            "汞是常温下唯一呈液态的金属。 元素符号：Hg",
            "Thing",
        ),
        Entity(
            "10003",
            "苹果",
            (),
            "苹果是蔷薇科苹果属植物的果实。 义项描述：水果",
            "Food",
        ),
        Entity(
            "10004",
            "苹果公司",
            ("苹果", "APPLE"),
            "苹果公司是一家 科技公司。 外文名：Apple Inc.",
            "Organization",
        ),
        Entity(
            "10005",
            "西游记",
            ("《西游记》",),
            "义项描述：明代的长篇小说",
            "CreativeWork",
        ),
        Entity("10006", "西游记", (), "义项描述：1986年的电视剧", "CreativeWork"),
        Entity(
            "10007",
            "爪哇岛",
            ("爪哇", "Java"),
            "爪哇岛是印度尼西亚的一座岛屿。",
            "Location",
        ),
        Entity("10008", "Java", ("java",), "Java是一种编程语言。", "Thing"),
    ]
    phone = "😀 苹果发布了新手机，水银温度计呢？"
    assert list(source.mentions) == [
        (None, Mention("我每天早上吃一个苹果。", 8, 10, "10003")),
        (None, Mention(phone, 2, 4, "10004")),
        (None, Mention(phone, 11, 13, "10002")),
        (None, Mention("《西游记》的作者是谁？", 1, 4, "10005")),
        (None, Mention("“水星”上有水吗", 0, 4, "10001")),
        (None, Mention("我在学Ｊａｖａ 语言", 3, 7, "10008")),
        (None, Mention("离太阳最近的行星是水星", 9, 11, "10001")),
        (None, Mention("小区门口的苹果理发店关门了", 5, 10, None)),
        (None, Mention("西游·记者站今天成立", 0, 6, None)),
    ]
    assert source.notes == {MOVED: 1, DIFFERED: 3}


@pytest.mark.parametrize(
    ("text", "surface", "offset", "found", "repair"),
    [
        ("看《活着》吧", "活着", 2, "活着", None),
        ("看《活着》吧", "活着", 1, "活着", MOVED),
        ("看《活着》吧", "活着", -3, "活着", MOVED),
        ("看《活着》吧", "活着", 40, "活着", MOVED),
        ("看“活着”吧", '"活着"', 1, "“活着”", DIFFERED),
        ("看《活着》吧", '"活着"', 1, "活着", DIFFERED),
        ("看《活着》吧", "<活着>", 1, "《活着》", DIFFERED),
        ("听Ａ Ｂ Ｃ吧", "abc", 1, "Ａ Ｂ Ｃ", DIFFERED),
        ("哈利·波特", "哈利•波特", 0, "哈利·波特", DIFFERED),
        ("哈利波特", "哈利·波特", 0, "哈利波特", DIFFERED),
        ("你好，世界！", "你好,世界!", 0, "你好，世界！", DIFFERED),
        ("the STRASSE", "straße", 4, "STRASSE", DIFFERED),
        # Of several, the nearest that is near.
        ("水星和水星", "水星", 2, "水星", MOVED),
        # Punctuation that is all there is to a mention is compared.
        ("什么！？", "!", 2, "！", DIFFERED),
        ("C＋＋和C", "c++", 0, "C＋＋", DIFFERED),
    ],
)
def test_repairs(text, surface, offset, found, repair):
    start, end, what = locate(text, surface, offset)
    assert text[start:end] == found
    assert what == repair


def test_the_nearest_occurrence_is_taken():
    text = "水星很热，水星很小"
    assert locate(text, "水星", 4) == (5, 7, MOVED)
    assert locate(text, "水星", 1) == (0, 2, MOVED)
    assert locate(text, "水星", 5) == (5, 7, None)


@pytest.mark.parametrize(
    ("text", "surface", "offset", "reason"),
    [
        ("水星", "火星", 0, "mention not in the text: '火星' at 0, where the text has"),
        ("水星", "", 0, "mention not in the text: ''"),
        ("水星。", "，", 0, "mention not in the text: '，'"),
        ("水星xx水星", "水星", 2, "mention not at its offset: '水星' is not at 2"),
        (
            f"水星水星{'x' * 20}",
            "水星",
            20,
            "mention not at its offset: '水星' is not a",
        ),
        # Half of a character's folded form is no mention.
        ("straße", "stras", 0, "mention not in the text"),
    ],
)
def test_what_cannot_be_repaired_is_bad(text, surface, offset, reason):
    with pytest.raises(BadRecordError) as caught:
        locate(text, surface, offset)
    assert str(caught.value).startswith(reason)


WORDS = st.text("苹果水星aB１ｃ", min_size=1, max_size=6)
MARKS = st.text('“”"《》<>·• 　,，', max_size=2)


@given(before=WORDS, pieces=st.lists(WORDS, min_size=1, max_size=4), data=st.data())
def test_a_mention_with_other_marks_is_found_where_it_was(before, pieces, data):
    def written() -> str:
        marks = [data.draw(MARKS) for _ in pieces[1:]]
        return "".join(
            piece + mark for piece, mark in zip(pieces, [*marks, ""], strict=True)
        )

    original = "“" + written() + "”"
    text = f"@{before}{original}#"
    surface = data.draw(st.sampled_from(['"{}"', "{}", "《{}》"])).format(written())
    surface = data.draw(st.sampled_from([surface, surface.upper(), surface.lower()]))
    offset = len(before) + 1 + data.draw(st.integers(0, 2))
    try:
        start, end, repair = locate(text, surface, offset)
    except BadRecordError:
        # Only where another place is as good.
        bare = "".join(pieces).lower()
        places = re.findall(f"(?={bare})", (before + "".join(pieces)).lower())
        assert len(places) > 1
        return
    found = text[start:end]
    plain = str.maketrans("", "", '“”"《》<>·• 　,，')
    assert found.translate(plain).lower() == surface.translate(plain).lower()
    assert found == surface or repair is not None


@given(st.text(max_size=30), st.text(max_size=10), st.integers(-5, 40))
@example("ﬁn", "fi", 0)
@example("İ", "i̇", 0)
def test_whatever_is_found_is_a_span_that_folds_alike(text, surface, offset):
    try:
        start, end, repair = locate(text, surface, offset)
    except BadRecordError:
        assert not surface or surface not in text or text.count(surface) > 1
        return
    assert 0 <= start < end <= len(text)
    if repair is None:
        assert start == offset
    if repair in (None, MOVED):
        assert text[start:end] == surface


def make(tmp_path: pathlib.Path, kb: list[Any], texts: list[Any]) -> CorpusConfig:
    for name, records in (("kb_data", kb), ("train.json", texts)):
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        (tmp_path / name).write_text("".join(lines), "utf-8")
    return CorpusConfig(
        builder="ccks",
        entities=str(tmp_path / "kb_data"),
        mentions=str(tmp_path / "train.json"),
    )


ENTITY = {"subject_id": "1", "subject": "水星", "alias": ["水星"], "data": []}
ANNOTATION = {"kb_id": "1", "mention": "水星", "offset": "0"}
TEXT = {"text_id": "1", "text": "水星", "mention_data": [ANNOTATION]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"subject_id": None}, "mistyped field 'subject_id': expected a string"),
        ({"subject": " "}, "empty name"),
        ({"alias": "水星"}, "mistyped field 'alias': expected a list of strings"),
        ({"type": 3}, "mistyped field 'type': expected a list of strings"),
        ({"data": None}, "mistyped field 'data': expected a list of objects"),
        ({"data": ["摘要"]}, "mistyped field 'data': expected a list of objects"),
        ({"data": [{"predicate": "摘要"}]}, "missing field 'object'"),
        ({"data": [{"predicate": "a", "object": 3}]}, "mistyped field 'object'"),
    ],
)
def test_bad_entities(tmp_path, change, reason):
    options = make(tmp_path, [ENTITY | {"subject_id": "2"}, ENTITY | change], [TEXT])
    with pytest.raises(UserError) as caught:
        read_ccks(options, BadRecords())
    assert str(caught.value).startswith(f"{tmp_path / 'kb_data'}:2: {reason}")
    bad = BadRecords(1)
    assert list(read_ccks(options, bad).entities) == ["2"]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (["", "Person", "Thing"], "Person"),
        ("Person|Thing", "Person"),
        ([], None),
        ("", None),
        (None, None),
    ],
)
def test_the_first_type_is_the_entitys(tmp_path, written, expected):
    options = make(tmp_path, [ENTITY | {"type": written}], [TEXT])
    assert read_ccks(options, BadRecords()).entities["1"].type == expected


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kb_id": "9"}, "unknown gold: no entity has the id '9'"),
        ({"offset": "x"}, "mistyped field 'offset': expected a number in a string"),
        ({"offset": None}, "mistyped field 'offset'"),
        ({"offset": 0.5}, "mistyped field 'offset'"),
        ({"mention": "火星"}, "mention not in the text: '火星' at 0"),
        ({"mention": 3}, "mistyped field 'mention'"),
    ],
)
def test_a_bad_mention_leaves_the_others_of_its_text(tmp_path, change, reason):
    text = TEXT | {"mention_data": [ANNOTATION | change, ANNOTATION]}
    options = make(tmp_path, [ENTITY], [TEXT, text])
    mentions = read_ccks(options, BadRecords()).mentions
    next(mentions)
    with pytest.raises(UserError) as caught:
        next(mentions)
    assert str(caught.value).startswith(f"{tmp_path / 'train.json'}:2: {reason}")
    bad = BadRecords(1)
    good = (None, Mention("水星", 0, 2, "1"))
    assert list(read_ccks(options, bad).mentions) == [good, good]
    assert bad.count == 1


def test_texts_without_labels_are_bad(tmp_path):
    options = make(tmp_path, [ENTITY], [{"text_id": "1", "text": "水星"}])
    with pytest.raises(UserError, match=r"train\.json:1: missing field 'mention_data'"):
        list(read_ccks(options, BadRecords()).mentions)


def test_integers_do_for_ids_and_offsets(tmp_path):
    annotation = {"kb_id": 1, "mention": "水星", "offset": 0}
    options = make(
        tmp_path,
        [ENTITY | {"subject_id": 1}],
        [{"text": "水星", "mention_data": [annotation]}],
    )
    source = read_ccks(options, BadRecords())
    assert list(source.mentions) == [(None, Mention("水星", 0, 2, "1"))]

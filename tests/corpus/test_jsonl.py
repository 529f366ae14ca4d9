from __future__ import annotations

import gzip
import json
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_export.corpus import jsonl
from bert_export.corpus.records import BadRecords, Entity, Mention
from bert_export.errors import UserError

IDS = {"e1", "e2"}
GOOD = {"text": "a bank", "start": 2, "end": 6, "gold": "e1"}
ENTITY = {"id": "e1", "name": "bank", "aliases": ["Bank"], "description": "a slope"}


def read(path: pathlib.Path, max_bad: int = 0) -> tuple[list[Mention], BadRecords]:
    bad = BadRecords(max_bad)
    return list(jsonl.read_mentions(path, bad, IDS)), bad


def write(path: pathlib.Path, *lines: object) -> pathlib.Path:
    path.write_bytes(
        b"".join(
            line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n"
            for line in lines
        )
    )
    return path


@pytest.mark.parametrize("name", ["m.jsonl", "m.jsonl.gz"])
def test_mentions_round_trip(tmp_path, name):
    mentions = [
        Mention("He sat on the bank.", 14, 18, "e1", ("e2", "e1")),
        Mention("😀 在Zürich 北京", 3, 9, None),
        Mention("bank", 0, 4, "e2", ()),
    ]
    jsonl.write_mentions(tmp_path / name, mentions)
    assert read(tmp_path / name)[0] == mentions
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["e.jsonl", "e.jsonl.gz"])
def test_entities_round_trip(tmp_path, name):
    entities = [
        Entity("e1", "Zürich", ("Zurich", "苏黎世"), "a city"),
        Entity("e2", "bank", (), ""),
        Entity("e3", "Mercury", (), "", "planet"),
    ]
    jsonl.write_entities(tmp_path / name, iter(entities))
    assert list(jsonl.read_entities(tmp_path / name, BadRecords())) == entities


def test_equal_records_give_equal_bytes_whatever_the_file_is_called(tmp_path):
    mentions = [Mention("a bank", 2, 6, "e1")]
    jsonl.write_mentions(tmp_path / "one.gz", mentions)
    jsonl.write_mentions(tmp_path / "two.gz", mentions)
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "two.gz").read_bytes()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write(tmp_path / "m.jsonl", GOOD)

    def mentions():
        yield Mention("new", 0, 3, None)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        jsonl.write_mentions(path, mentions())
    assert json.loads(path.read_text()) == GOOD
    assert list(tmp_path.iterdir()) == [path]


def test_gzip_is_recognized_without_its_suffix(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(gzip.compress(json.dumps(GOOD).encode()))
    assert len(read(path)[0]) == 1


def test_byte_order_mark_blank_lines_and_unknown_fields_are_accepted(tmp_path):
    path = write(
        tmp_path / "m.jsonl",
        b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n",
        b"\n  \n",
        GOOD | {"source": "mine", "candidates": None},
    )
    mentions, _ = read(path)
    assert mentions == [Mention("a bank", 2, 6, "e1")] * 2


def test_an_escaped_surrogate_pair_is_one_character(tmp_path):
    line = rb'{"text": "\ud83d\ude00 bank", "start": 2, "end": 6, "gold": null}' + b"\n"
    mentions, _ = read(write(tmp_path / "m.jsonl", line))
    assert mentions[0].surface == "bank"


BAD_LINES = {
    "broken JSON: Expecting": b'{"text": "a bank", "start": 2, "end": 6, "gold"}\n',
    "broken JSON: Unterminated": b'{"text": "a ba',
    "broken JSON: Exceeds": b'{"start": ' + b"9" * 5000 + b"}\n",
    "broken JSON: nested": b"[" * 200_000 + b"\n",
    "not a JSON object: found list": [GOOD],
    "not a JSON object: found NoneType": None,
    "not UTF-8: byte 0xff at position 2": b'"\xff"\n',
    # What a program writes that encodes each half of a surrogate pair by itself.
    "not UTF-8: byte 0xed": b'{"text": "\xed\xa0\xbd\xed\xb8\x80 bank"}\n',
    "missing field 'text'": {"start": 2, "end": 6, "gold": "e1"},
    "missing field 'start'": {"text": "a bank", "end": 6, "gold": "e1"},
    "missing field 'gold'": {"text": "a bank", "start": 2, "end": 6},
    "mistyped field 'text': expected a string": GOOD | {"text": ["a bank"]},
    "mistyped field 'start': expected an integer, found True": GOOD | {"start": True},
    "mistyped field 'start': expected an integer, found 2.0": GOOD | {"start": 2.0},
    "mistyped field 'end': expected an integer, found '6'": GOOD | {"end": "6"},
    "mistyped field 'end': expected an integer, found None": GOOD | {"end": None},
    "mistyped field 'gold': expected a string or null": GOOD | {"gold": 1},
    "mistyped field 'candidates': expected a list": GOOD | {"candidates": "e1"},
    "mistyped field 'candidates': .* found \\['e1', 2\\]": (
        GOOD | {"candidates": ["e1", 2]}
    ),
    "empty text": GOOD | {"text": " \n"},
    "offsets outside the text: 2..7, the text has 6": GOOD | {"end": 7},
    "offsets outside the text: -4..6": GOOD | {"start": -4},
    # Offsets that count UTF-16 units point behind the end here.
    "offsets outside the text: 3..5, the text has 4": (
        GOOD | {"text": "😀 苹果", "start": 3, "end": 5}
    ),
    "empty mention: start 4 is not before end 4": GOOD | {"start": 4, "end": 4},
    "empty mention: start 5 is not before end 2": GOOD | {"start": 5, "end": 2},
    "blank mention": GOOD | {"start": 1, "end": 2},
    "unknown gold: .* 'e9'": GOOD | {"gold": "e9"},
    "unknown candidate: .* 'e9'": GOOD | {"candidates": ["e1", "e9"]},
    "duplicate candidate": GOOD | {"candidates": ["e1", "e1"]},
    "lone surrogate": GOOD | {"text": "a bank\ud83d"},
}


@pytest.mark.parametrize("reason", BAD_LINES)
def test_a_bad_mention_is_named_by_file_line_and_reason(tmp_path, reason):
    path = write(tmp_path / "m.jsonl", GOOD, BAD_LINES[reason])
    with pytest.raises(UserError, match=f"m.jsonl:2: {reason}"):
        read(path)


def test_tolerated_bad_records_are_left_out(tmp_path):
    lines = [GOOD, *(line for line in BAD_LINES.values() if line != b'{"text": "a ba')]
    path = write(tmp_path / "m.jsonl", *lines, GOOD)
    mentions, bad = read(path, max_bad=len(lines) - 1)
    assert len(mentions) == 2
    assert bad.count == len(lines) - 1


@pytest.mark.parametrize("surrogate", [r"\ud83d", r"\uDE00", r"\ude00\ud83d"])
@pytest.mark.parametrize("field", ["id", "name", "aliases", "description"])
def test_half_a_surrogate_pair_is_refused_in_every_field(tmp_path, field, surrogate):
    record = json.dumps(ENTITY | {field: ["@"] if field == "aliases" else "@"})
    path = write(tmp_path / "e.jsonl", record.replace("@", surrogate).encode())
    with pytest.raises(UserError, match="1: lone surrogate"):
        list(jsonl.read_entities(path, BadRecords()))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id": ""}, "empty id"),
        ({"id": 3}, "mistyped field 'id'"),
        ({"name": " "}, "empty name"),
        ({"aliases": "Bank"}, "mistyped field 'aliases'"),
        ({"aliases": None}, "mistyped field 'aliases'"),
        ({"description": None}, "mistyped field 'description'"),
        ({"type": 3}, "mistyped field 'type'"),
        ({"type": " "}, "empty type"),
    ],
)
def test_bad_entities(tmp_path, change, reason):
    path = write(tmp_path / "e.jsonl", ENTITY | change)
    with pytest.raises(UserError, match=f"e.jsonl:1: {reason}"):
        list(jsonl.read_entities(path, BadRecords()))


def test_an_entity_without_type_is_written_as_it_was_before_there_were_types(tmp_path):
    path = tmp_path / "e.jsonl"
    jsonl.write_entities(path, [Entity("e2", "bank", (), "")])
    assert path.read_bytes() == (
        b'{"id": "e2", "name": "bank", "aliases": [], "description": ""}\n'
    )
    (entity,) = jsonl.read_entities(
        write(path, json.loads(path.read_text()) | {"type": None}), BadRecords()
    )
    assert entity.type is None


@pytest.mark.parametrize("field", ENTITY)
def test_an_entity_needs_all_its_fields(tmp_path, field):
    record = {key: value for key, value in ENTITY.items() if key != field}
    path = write(tmp_path / "e.jsonl", record)
    with pytest.raises(UserError, match=f"e.jsonl:1: missing field '{field}'"):
        list(jsonl.read_entities(path, BadRecords()))


def test_the_first_of_two_entities_with_one_id_stays(tmp_path):
    path = write(tmp_path / "e.jsonl", ENTITY, ENTITY | {"name": "other"})
    with pytest.raises(UserError, match=r"e\.jsonl:2: duplicate entity id: 'e1'"):
        list(jsonl.read_entities(path, BadRecords()))
    entities = list(jsonl.read_entities(path, BadRecords(1)))
    assert [entity.name for entity in entities] == ["bank"]


@pytest.mark.parametrize("content", [b"", b"\n\n", gzip.compress(b"")])
def test_a_file_without_records_is_an_error(tmp_path, content):
    (tmp_path / "m.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=r"m\.jsonl: no mentions in it"):
        read(tmp_path / "m.jsonl")


def test_a_file_of_bad_records_only_is_an_error(tmp_path):
    path = write(tmp_path / "m.jsonl", GOOD | {"end": 70})
    with pytest.raises(UserError, match="no mentions in it"):
        read(path, max_bad=5)


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl: No such file"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="Is a directory"):
        read(tmp_path)


@pytest.mark.parametrize("kept", [1, 11, 200, -9, -1])
def test_a_truncated_gzip_file_is_an_error_that_names_the_line(tmp_path, kept):
    lines = [GOOD | {"text": f"a bank {number}"} for number in range(1000)]
    whole = gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode())
    path = tmp_path / "m.jsonl.gz"
    path.write_bytes(whole[:kept])
    with pytest.raises(UserError, match=r"m\.jsonl\.gz:\d+: the gzip file is cut"):
        read(path)


def test_a_damaged_gzip_file_and_a_plain_file_named_gz(tmp_path):
    whole = bytearray(gzip.compress((json.dumps(GOOD) + "\n").encode() * 500))
    whole[len(whole) // 2] ^= 0xFF
    (tmp_path / "m.gz").write_bytes(whole)
    with pytest.raises(UserError, match=r"m\.gz:\d+: "):
        read(tmp_path / "m.gz")
    path = write(tmp_path / "plain.gz", GOOD)
    with pytest.raises(UserError, match=r"plain\.gz:1: the gzip file"):
        read(path)


@given(
    before=st.text(st.characters(exclude_categories=["Cs"])),
    surface=st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip),
    after=st.text(st.characters(exclude_categories=["Cs"])),
)
def test_any_unicode_text_round_trips(tmp_path_factory, before, surface, after):
    path = tmp_path_factory.mktemp("any") / "m.jsonl.gz"
    end = len(before) + len(surface)
    mention = Mention(before + surface + after, len(before), end, None)
    jsonl.write_mentions(path, [mention])
    (again,) = jsonl.read_mentions(path, BadRecords(), ())
    assert again == mention
    assert again.surface == surface


@pytest.mark.parametrize(
    ("marked", "text", "surface"),
    [
        ("He sat on the [[bank]].", "He sat on the bank.", "bank"),
        ("[[苹果]]😀", "苹果😀", "苹果"),
        ("😀😀 in [[São Paulo]]", "😀😀 in São Paulo", "São Paulo"),
        (r"\[\[1\]\] the [[bank]] \\", "[[1]] the bank \\", "bank"),
        ("a[0] = [[b[1]]]", "a[0] = b[1]", "b[1]"),
        (r"C:\bank [[bank]]", r"C:\bank bank", "bank"),
        (r"\[[[bank]]\]", "[bank]", "bank"),
    ],
)
def test_marked_text(marked, text, surface):
    mention = jsonl.parse_marked_text(marked)
    assert (mention.text, mention.surface) == (text, surface)
    assert mention.gold is None
    assert mention.candidates is None


@pytest.mark.parametrize(
    ("marked", "what"),
    [
        ("", "no mention"),
        ("a bank", "no mention"),
        (r"\[\[bank\]\]", "no mention"),
        ("a [[bank", r"a \[\[ without its \]\]"),
        ("a bank]]", r"a \]\] without its \[\["),
        ("[[a]] and [[b]]", r"a second \[\["),
        ("[[a]] b]]", r"a \]\] without"),
        ("[[a [[b]]", r"a second \[\["),
        ("[[]]", "a blank mention"),
        ("[[ \t]] x", "a blank mention"),
        ("[[\ud83d]]", "not valid Unicode"),
    ],
)
def test_text_without_exactly_one_mention(marked, what):
    with pytest.raises(UserError, match=what):
        jsonl.parse_marked_text(marked)

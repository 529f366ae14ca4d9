"""Tables: every record of the fixtures, column names, and bad cells in each format."""

from __future__ import annotations

import csv
import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from bert_export.config import CorpusConfig
from bert_export.corpus.records import BadRecords, Entity, Mention
from bert_export.corpus.table import read_table
from bert_export.errors import UserError
from tests.command_line import ROOT
from tests.corpus.fixture_configs import CONFIGS, FIXTURES

ENTITIES = [
    Entity("1", "Mercury", (), "the planet nearest to the Sun"),
    Entity(
        "2", "mercury", ("quicksilver", "Hg"), "a metal, liquid at room temperature"
    ),
    Entity("3", "apple", ("苹果",), "the fruit of a tree"),
]
SAID = '😀 She said: "no mercury,\nplease".'
MENTIONS = [
    ("train", Mention("A year on Mercury lasts 88 days.", 10, 17, "1")),
    ("train", Mention(SAID, 16, 23, "2", ("2", "1"))),
    ("dev", Mention("我吃苹果。", 2, 4, "3")),
    ("test", Mention("Mercury, the singer's band, played.", 0, 7, None, ("1", "2"))),
]
# The same as values of a language that has types.
ROWS = [
    {
        "text": mention.text,
        "start": mention.start,
        "end": mention.end,
        "gold": mention.gold and int(mention.gold),
        "candidates": mention.candidates and [int(id) for id in mention.candidates],
        "split": split,
        "unused": 1.5,
    }
    for split, mention in MENTIONS
]
ENTITY_ROWS = [
    {
        "id": int(entity.id),
        "name": entity.name,
        "aliases": list(entity.aliases),
        "description": entity.description,
    }
    for entity in ENTITIES
]


def write(path: pathlib.Path, rows: list[dict[str, Any]]) -> str:
    """Writes a table in the format of the path's suffix."""
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        lines = [json.dumps(row) + "\n" for row in rows]
        path.write_text("".join(lines), "utf-8")
    else:
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(
                file,
                list(dict.fromkeys(key for row in rows for key in row)),
                delimiter="\t" if path.suffix == ".tsv" else ",",
            )
            writer.writeheader()
            for row in rows:
                writer.writerow(
                    {
                        key: "|".join(map(str, value))
                        if isinstance(value, list)
                        else value
                        for key, value in row.items()
                    }
                )
    return str(path)


def read(
    entities: str, mentions: str, bad: BadRecords | None = None, **options: Any
) -> tuple[list[Entity], list[Any]]:
    config = CorpusConfig(
        builder="table", entities=entities, mentions=mentions, **options
    )
    source = read_table(config, bad or BadRecords())
    return list(source.entities.values()), list(source.mentions)


def test_the_csv_fixture_field_by_field():
    source = read_table(CorpusConfig(**CONFIGS["csv"]), BadRecords())
    assert list(source.entities.values()) == ENTITIES
    assert list(source.mentions) == MENTIONS


def test_the_tsv_fixture_field_by_field():
    source = read_table(CorpusConfig(**CONFIGS["tsv"]), BadRecords())
    assert list(source.entities.values()) == ENTITIES
    assert list(source.mentions) == [
        (None, Mention("A year on Mercury lasts 88 days.", 10, 17, "1")),
        (None, Mention("Some quicksilver spilt.", 5, 16, "2")),
        (None, Mention("我吃苹果。", 2, 4, "3")),
    ]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_all_formats_give_the_same_records(suffix, tmp_path):
    entities = write(tmp_path / f"entities.{suffix}", ENTITY_ROWS)
    mentions = write(tmp_path / f"mentions.{suffix}", ROWS)
    assert read(entities, mentions) == (ENTITIES, MENTIONS)
    renamed = [{f"the {key}": value for key, value in row.items()} for row in ROWS]
    mentions = write(tmp_path / f"renamed.{suffix}", renamed)
    columns = tuple(f"{key} = the {key}" for key in ROWS[0] if key != "unused")
    assert read(entities, mentions, table_columns=columns) == (ENTITIES, MENTIONS)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_splits_may_have_files_of_their_own(suffix, tmp_path):
    entities = write(tmp_path / f"entities.{suffix}", ENTITY_ROWS)
    files = [
        write(
            tmp_path / f"{name}.{suffix}", [row for row in ROWS if row["split"] in of]
        )
        for name, of in (("a", ["train"]), ("b", ["dev"]), ("c", ["test"]))
    ]
    # The column of split is nothing that is asked for.
    own = {"dev_mentions": files[1], "test_mentions": files[2]}
    assert read(entities, files[0], **own) == (ENTITIES, MENTIONS)
    with pytest.raises(UserError, match="names the column of split, and dev_mentions"):
        read(entities, files[0], table_columns=("split=split",), **own)


def test_parquet_is_read_batch_by_batch(tmp_path):
    rows = [
        {"text": f"An apple, {number}", "start": 3, "end": 8, "gold": "3"}
        for number in range(3000)
    ]
    mentions = write(tmp_path / "mentions.parquet", rows)
    entities = str(FIXTURES / "table" / "entities.tsv")
    _, found = read(entities, mentions)
    assert [mention.text for _, mention in found] == [row["text"] for row in rows]


def test_optional_columns_may_be_left_out(tmp_path):
    entities = write(tmp_path / "e.csv", [{"id": "a b", "name": "apple"}])
    mentions = write(
        tmp_path / "m.csv", [{"text": "apple", "start": 0, "end": 5, "gold": "a b"}]
    )
    assert read(entities, mentions) == (
        [Entity("a b", "apple", (), "")],
        [(None, Mention("apple", 0, 5, "a b"))],
    )


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_a_missing_column_is_named_with_those_there_are(suffix, tmp_path):
    entities = write(tmp_path / f"e.{suffix}", ENTITY_ROWS)
    rows = [{"sentence": "apple", "start": 0, "end": 5, "gold": 3}]
    mentions = write(tmp_path / f"m.{suffix}", rows)
    with pytest.raises(UserError) as caught:
        read(entities, mentions)
    assert str(caught.value) == (
        f"{mentions}: no column 'text'; its columns are sentence, start, end, gold"
        " (name it with table_columns, as in 'text=THEIRS')"
    )
    with pytest.raises(UserError, match="no column 'satz' for text; its columns are s"):
        read(entities, mentions, table_columns=("text=satz",))
    with pytest.raises(UserError, match="no column 'nil' for candidates; its columns"):
        read(
            entities,
            mentions,
            table_columns=("text=sentence", "candidates=nil"),
        )
    with pytest.raises(
        UserError, match="no column 'key' for id; its columns are id, n"
    ):
        read(entities, mentions, table_columns=("id=key",))


GOOD = {"text": "An apple.", "start": 3, "end": 8, "gold": "3"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"start": "three"},
            "mistyped field 'start': expected an integer, found 'thre",
        ),
        ({"start": ""}, "mistyped field 'start': expected an integer, found ''"),
        ({"end": "8.0"}, "mistyped field 'end': expected an integer, found '8.0'"),
        ({"start": -1}, "offsets outside the text: -1..8, the text has 9"),
        ({"end": 10}, "offsets outside the text: 3..10, the text has 9 characters"),
        ({"end": 3}, "empty mention: start 3 is not before end 3"),
        ({"start": 2, "end": 3}, "blank mention: only white space at 2..3"),
        ({"text": ""}, "empty text"),
        ({"gold": "9"}, "unknown gold: no entity has the id '9'"),
        ({"candidates": "1|9"}, "unknown candidate: no entity has the id '9'"),
        ({"candidates": "1|1"}, "duplicate candidate: ['1', '1']"),
        ({"split": "trian"}, "unknown split: 'trian' is none of train, dev, val, vali"),
    ],
)
def test_bad_rows_of_csv(change, reason, tmp_path):
    options = {"candidates": "", "split": "train"}
    mentions = write(tmp_path / "m.csv", [GOOD | options, GOOD | options | change])
    entities = str(FIXTURES / "table" / "entities.tsv")
    with pytest.raises(UserError) as caught:
        read(entities, mentions)
    assert str(caught.value).startswith(f"{mentions}:3: {reason}")
    assert len(read(entities, mentions, BadRecords(1))[1]) == 1


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"start": 3.0}], "mistyped field 'start': expected an integer, found 3.0"),
        ([{"start": None}], "mistyped field 'start': expected an integer, found None"),
        ([{"text": 3}], "mistyped field 'text': expected a string, found 3"),
        ([{"text": None}], "empty text"),
        ([{"gold": 3.0}], "mistyped field 'gold': expected a string, found 3.0"),
        ([{"candidates": 3}], "mistyped field 'candidates': expected a list, found 3"),
        (
            [{"candidates": [[3]]}],
            "mistyped field 'candidates': expected a string, fou",
        ),
    ],
    ids=str,
)
def test_bad_values_of_typed_formats(suffix, rows, reason, tmp_path):
    mentions = write(tmp_path / f"m.{suffix}", [GOOD | row for row in rows])
    entities = str(FIXTURES / "table" / "entities.tsv")
    with pytest.raises(UserError) as caught:
        read(entities, mentions)
    assert str(caught.value).startswith(f"{mentions}:1: {reason}")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"id": ""}, "empty id"),
        ({"name": " "}, "empty name"),
        ({"id": "1"}, "duplicate entity id: '1' was defined before"),
    ],
)
def test_bad_entities(row, reason, tmp_path):
    good = {"id": "1", "name": "Mercury"}
    entities = write(tmp_path / "e.csv", [good, {"id": "2", "name": "x"} | row])
    mentions = str(FIXTURES / "table" / "mentions.tsv")
    with pytest.raises(UserError, match=rf"e\.csv:3: {reason}"):
        read(entities, mentions)


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        ("An apple.,3,8\n", 2, "wrong number of cells: expected 4, found 3"),
        ("An apple, red,3,8,3\n", 2, "wrong number of cells: expected 4, found 5"),
        ('"An apple."x,3,8,3\n', 2, "broken CSV: ',' expected after '\"'"),
        ('An apple.,3,8,3\n"An apple.,3,8,3\n', 3, "broken CSV: unexpected end of da"),
    ],
)
def test_broken_csv_is_named_by_its_line(content, line, reason, tmp_path):
    path = tmp_path / "m.csv"
    path.write_text(f"text,start,end,gold\n{content}")
    entities = str(FIXTURES / "table" / "entities.tsv")
    with pytest.raises(UserError) as caught:
        read(entities, str(path))
    assert str(caught.value).startswith(f"{path}:{line}: {reason}")


def test_line_ends_inside_a_cell_stay_as_they_are(tmp_path):
    path = tmp_path / "m.csv"
    path.write_bytes(b'text,start,end,gold\r\n"An\r\napple.",4,9,3\r\n\r\n')
    entities = str(FIXTURES / "table" / "entities.tsv")
    _, ((_, mention),) = read(entities, str(path))
    assert (mention.text, mention.surface) == ("An\r\napple.", "apple")


def test_a_cell_that_never_ends_is_no_endless_text(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text('text,start,end,gold\n"An apple.,3,8,3\n' + "x\n" * 100_000)
    entities = str(FIXTURES / "table" / "entities.tsv")
    message = r"m\.csv:\d+: broken CSV: field larger than field limit"
    with pytest.raises(UserError, match=message):
        read(entities, str(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.xlsx", b"PK", "expected a table in .csv, .tsv, .parquet or .jsonl; found"),
        ("m.csv", b"text,start,end,gold\n", "no rows in it"),
        ("m.csv", b"text,text,start,end,gold\n", "1: two columns of a name in"),
        ("m.csv", b"text;start;end;gold\na;0;1;3\n", "no column 'text'; its columns "),
        ("m.parquet", b"", "row 1: not Parquet, or damaged"),
        ("m.parquet", b"PAR1 and no more", "row 1: not Parquet, or damaged"),
        ("m.jsonl", b"[1]\n", "1: not a JSON object"),
    ],
)
def test_another_kind_of_file_is_refused(name, content, message, tmp_path):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(str(FIXTURES / "table" / "entities.tsv"), str(path))
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_a_damaged_parquet_file_is_refused_where_it_breaks(tmp_path):
    rows = [
        {"text": f"An apple, {number}", "start": 3, "end": 8, "gold": "3"}
        for number in range(3000)
    ]
    path = pathlib.Path(write(tmp_path / "m.parquet", rows))
    content = bytearray(path.read_bytes())
    content[40:400] = b"\xff" * 360
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"m\.parquet: row \d+: not Parquet, or dam"):
        read(str(FIXTURES / "table" / "entities.tsv"), str(path))


def test_marks_that_do_not_pair_are_bad(tmp_path):
    path = tmp_path / "m.tsv"
    path.write_text("marked_text\tgold\nAn [[apple.\t3\n")
    with pytest.raises(UserError, match=r"m\.tsv:2: wrong marks: a \[\[ without its"):
        read(str(FIXTURES / "table" / "entities.tsv"), str(path))


def test_parquet_without_pyarrow_names_the_extra(tmp_path):
    path = tmp_path / "m.parquet"
    path.write_bytes(b"PAR1")
    script = (
        "import sys\n"
        "sys.modules['pyarrow'] = None\n"
        "from bert_export.config import CorpusConfig\n"
        "from bert_export.corpus import table\n"
        "from bert_export.corpus.records import BadRecords\n"
        f"config = CorpusConfig(entities={str(path)!r}, mentions={str(path)!r})\n"
        "table.read_table(config, BadRecords())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True
    )
    assert result.stderr.splitlines()[-1] == (
        f"bert_export.errors.UserError: {path}: Parquet needs pyarrow, which cannot be"
        " found: pip install 'bert_export[parquet]'"
    )

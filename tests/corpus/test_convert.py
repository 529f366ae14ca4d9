"""What all formats share: conversion, its reuse, and every way the input is bad."""

from __future__ import annotations

import dataclasses
import gzip
import json
import pathlib
import re
import shutil
import tracemalloc
from typing import Any

import pytest

from bert_export.config import (
    BUILDERS,
    CONVERTED_BUILDERS,
    CorpusConfig,
    check_converted,
    default_config,
    resolve,
)
from bert_export.corpus import convert, jsonl
from bert_export.corpus.corpus import load_corpus
from bert_export.corpus.records import BadRecords, Entity, Mention
from bert_export.corpus.sources import Source, cut, title_aliases
from bert_export.corpus.splits import SPLITS
from bert_export.errors import UserError
from tests.command_line import ROOT, done, refused
from tests.corpus.fixture_configs import CONFIGS, FIXTURES

PATHS = ("entities", "mentions", "dev_mentions", "test_mentions")


def config(name: str, **changed: Any) -> CorpusConfig:
    return CorpusConfig(**{**CONFIGS[name], **changed})


def opened(options: CorpusConfig, max_bad: int = 0) -> Source:
    return convert.READERS[options.builder](options, BadRecords(max_bad))


def records(options: CorpusConfig) -> tuple[list[Entity], list[Any]]:
    source = opened(options)
    return list(source.entities.values()), list(source.mentions)


def files_in(directory: pathlib.Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir()}


def copied(name: str, directory: pathlib.Path, change) -> CorpusConfig:
    """The fixture with the bytes of its files of mentions and entities changed."""
    directory.mkdir(exist_ok=True)
    options: dict[str, Any] = {}
    for key in PATHS:
        value = CONFIGS[name].get(key)
        if value is None:
            continue
        source = pathlib.Path(value)
        if source.is_dir():
            target = directory / source.name
            target.mkdir()
            for file in source.iterdir():
                new_name, content = change(file.name, file.read_bytes())
                (target / new_name).write_bytes(content)
        else:
            new_name, content = change(source.name, source.read_bytes())
            target = directory / new_name
            target.write_bytes(content)
        options[key] = str(target)
    return config(name, **options)


def test_every_format_is_a_builder_and_has_a_reader():
    assert set(convert.READERS) == set(CONVERTED_BUILDERS)
    assert set(convert.READERS) <= set(BUILDERS)
    assert {options["builder"] for options in CONFIGS.values()} <= set(convert.READERS)


@pytest.mark.parametrize("name", CONFIGS)
def test_offsets_and_ids_fit(name):
    entities, mentions = records(config(name))
    ids = {entity.id for entity in entities}
    assert len(ids) == len(entities) > 2
    assert mentions
    splits = {split for split, _ in mentions}
    assert splits == {None} or splits == set(SPLITS)
    for _, mention in mentions:
        assert mention.surface == mention.surface.strip() != ""
        assert mention.gold is None or mention.gold in ids
        assert set(mention.candidates or ()) <= ids


@pytest.mark.parametrize("name", CONFIGS)
def test_a_builder_gives_what_its_converted_files_give(name, tmp_path):
    options = config(name)
    built = load_corpus(options, tmp_path / "work", BadRecords())
    assert {path.parent for path in built.files.values()} == {
        tmp_path / "work" / "corpus" / options.builder
    }
    directory = tmp_path / "converted"
    converted = convert.convert(options, directory, BadRecords())
    splits = {s: f"mentions.{s}.jsonl.gz" for s in SPLITS}
    assert set(files_in(directory)) in (
        {"entities.jsonl.gz", "mentions.jsonl.gz"},
        {"entities.jsonl.gz", *splits.values()},
    )
    own_files = (directory / splits["dev"]).exists()
    train = splits["train"] if own_files else "mentions.jsonl.gz"
    plain = CorpusConfig(
        entities=str(directory / "entities.jsonl.gz"),
        mentions=str(directory / train),
        dev_mentions=str(directory / splits["dev"]) if own_files else None,
        test_mentions=str(directory / splits["test"]) if own_files else None,
        dev_fraction=options.dev_fraction,
        test_fraction=options.test_fraction,
    )
    read = load_corpus(plain, tmp_path / "unused", BadRecords())
    assert read.entities == built.entities
    source = opened(options)
    assert list(source.entities.values()) == list(built.entities.values())
    found = {split: list(read.mentions(split)) for split in SPLITS}
    assert found == {split: list(built.mentions(split)) for split in SPLITS}
    assert sum(map(len, found.values())) == len(list(source.mentions))
    assert sum(converted.mentions.values()) == sum(map(len, found.values()))
    assert converted.nil == sum(m.gold is None for ms in found.values() for m in ms)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_conversion_is_reused_until_its_input_changes(name, tmp_path):
    options = copied(name, tmp_path / "input", lambda file, content: (file, content))
    work = tmp_path / "corpus"
    first = convert.build(options, work, BadRecords())
    before = {path: path.stat().st_mtime_ns for path in work.iterdir()}
    assert {path.name for path in work.iterdir()} >= {"converted.json"}
    again = convert.build(options, work, BadRecords())
    assert again == first
    assert {path: path.stat().st_mtime_ns for path in work.iterdir()} == before
    # Neither places nor candidates kept alter what is converted; a byte does.
    moved = copied(name, tmp_path / "moved", lambda file, content: (file, content))
    convert.build(dataclasses.replace(moved, max_candidates=3), work, BadRecords())
    assert {path: path.stat().st_mtime_ns for path in work.iterdir()} == before
    with open(options.mentions, "ab") as file:
        file.write(b"\n")
    assert convert.build(options, work, BadRecords()).mentions == first.mentions
    after = {path: path.stat().st_mtime_ns for path in work.iterdir()}
    assert all(after[path] > before[path] for path in before)
    assert {path.name: path.read_bytes() for path in first.files.values()} == {
        path.name: path.read_bytes() for path in again.files.values()
    }


def test_equal_input_gives_equal_bytes(tmp_path):
    for name in CONFIGS:
        convert.convert(config(name), tmp_path / "a" / name, BadRecords())
        convert.convert(config(name), tmp_path / "b" / name, BadRecords())
        assert files_in(tmp_path / "a" / name) == files_in(tmp_path / "b" / name)


def test_bad_records_are_counted_again_when_a_conversion_is_reused(tmp_path):
    def spoil(file: str, content: bytes) -> tuple[str, bytes]:
        return file, content + b'{"text": 3}\n' if file == "train.json" else content

    options = copied("ccks", tmp_path / "input", spoil)
    options = dataclasses.replace(options, max_bad_records=1)
    for _ in range(2):
        bad = BadRecords(1)
        converted = convert.build(options, tmp_path / "work", bad)
        assert bad.summary()["files"] == {
            options.mentions: {"mistyped field 'text'": 1}
        }
        assert [tuple(record) for record in converted.bad_records] == [
            (options.mentions, 10, "mistyped field 'text': expected a string, found 3")
        ]
    before = files_in(tmp_path / "work")
    with pytest.raises(UserError, match=r"train\.json:10: mistyped field 'text'"):
        convert.build(options, tmp_path / "work", BadRecords())
    assert files_in(tmp_path / "work") == before


@pytest.mark.parametrize("name", CONFIGS)
def test_gzip_and_a_byte_order_mark_are_accepted(name, tmp_path):
    expected = records(config(name))

    def zipped(file: str, content: bytes) -> tuple[str, bytes]:
        return f"{file}.gz", gzip.compress(b"\xef\xbb\xbf" + content)

    assert records(copied(name, tmp_path / "gz", zipped)) == expected
    windows = copied(
        name,
        tmp_path / "crlf",
        lambda file, content: (file, content.replace(b"\n", b"\r\n")),
    )
    if name != "csv":  # which has a line break inside a text
        assert records(windows) == expected


@pytest.mark.parametrize("name", CONFIGS)
def test_a_truncated_gzip_file_is_named(name, tmp_path):
    def cut_short(file: str, content: bytes) -> tuple[str, bytes]:
        return f"{file}.gz", gzip.compress(content)[:-12]

    options = copied(name, tmp_path / "gz", cut_short)
    with pytest.raises(UserError, match=r"\.gz:\d+: the gzip file is cut short"):
        convert.convert(options, tmp_path / "out", BadRecords(1000))
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.iterdir()) == [tmp_path / "gz"]


@pytest.mark.parametrize("name", CONFIGS)
def test_another_encoding_is_named_by_file_and_line(name, tmp_path):
    def latin1(file: str, content: bytes) -> tuple[str, bytes]:
        first, rest = content.split(b"\n", 1)
        return file, first + b"\n\xe9t\xe9" + rest

    options = copied(name, tmp_path / "input", latin1)
    with pytest.raises(UserError, match=r":2: not UTF-8: byte 0xe9") as caught:
        convert.convert(options, tmp_path / "out", BadRecords())
    assert str(caught.value).splitlines()[1].startswith("(mend the record, or leave")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("content", [b"", b"\n\n", b"no such format\n", b"\x00\xff"])
def test_a_file_of_another_kind_is_refused(name, content, tmp_path):
    options = copied(name, tmp_path / "input", lambda file, _: (file, content))
    for tolerated in (0, 1000):
        with pytest.raises(UserError) as caught:
            convert.convert(options, tmp_path / "out", BadRecords(tolerated))
        assert str(tmp_path / "input") in str(caught.value)
        assert len(str(caught.value).splitlines()) <= 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "key"),
    [(name, key) for name in CONFIGS for key in PATHS if key in CONFIGS[name]],
)
def test_a_missing_file_is_named_by_its_key(name, key, tmp_path):
    options = config(name, **{key: "nowhere.txt"})
    for attempt in (convert.convert, convert.build):
        message = rf"config\.corpus\.{key}: there is no file (or directory )?nowhere"
        with pytest.raises(UserError, match=message):
            attempt(options, tmp_path / "out", BadRecords())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", [name for name in CONFIGS if "entities" in CONFIGS[name]]
)
def test_a_second_entity_of_an_id_is_reported(name, tmp_path):
    options = copied(name, tmp_path / "in", lambda file, content: (file, content))
    path = pathlib.Path(options.entities)
    path = sorted(path.iterdir())[0] if path.is_dir() else path
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines, lines[-1]]))
    message = rf"{path.name}:{len(lines) + 1}: duplicate entity id: "
    with pytest.raises(UserError, match=message):
        convert.convert(options, tmp_path / "out", BadRecords())
    converted = convert.convert(options, tmp_path / "out", BadRecords(1))
    assert len(converted.bad_records) == 1
    assert converted.entities == len(records(config(name))[0])


def test_files_that_are_there_are_kept_unless_told(tmp_path):
    (tmp_path / "mentions.jsonl.gz").write_bytes(b"mine")
    (tmp_path / "notes.txt").write_bytes(b"mine, too")
    options = config("aida")
    with pytest.raises(UserError, match=r"notes\.txt is a file; name a directory"):
        convert.convert(options, tmp_path / "notes.txt", BadRecords())
    message = r"has mentions\.jsonl\.gz already; .* --overwrite"
    with pytest.raises(UserError, match=message):
        convert.convert(options, tmp_path, BadRecords())
    assert files_in(tmp_path) == {
        "mentions.jsonl.gz": b"mine",
        "notes.txt": b"mine, too",
    }
    with pytest.raises(UserError, match="there is no file"):
        convert.convert(
            config("aida", mentions="nowhere"), tmp_path, BadRecords(), overwrite=True
        )
    assert (tmp_path / "mentions.jsonl.gz").read_bytes() == b"mine"
    convert.convert(options, tmp_path, BadRecords(), overwrite=True)
    # What is left of the other would be taken for a part of this one.
    assert set(files_in(tmp_path)) == {
        "entities.jsonl.gz",
        *(f"mentions.{split}.jsonl.gz" for split in SPLITS),
        "notes.txt",
    }


def test_splits_that_lack_one_are_refused_or_empty(tmp_path):
    table = tmp_path / "mentions.csv"
    rows = "text,start,end,gold,split\n" + "An apple.,3,8,3,{0}\nApples,0,5,3,{1}\n"
    entities = str(FIXTURES / "table" / "entities.tsv")
    options = CorpusConfig(builder="table", entities=entities, mentions=str(table))
    for splits, found in (
        (("train", "train"), "2 for train"),
        (("dev", "test"), "1 fo"),
    ):
        table.write_text(rows.format(*splits))
        with pytest.raises(
            UserError, match=f"for train and for dev or test, .* {found}"
        ):
            convert.convert(options, tmp_path / "out", BadRecords())
    table.write_text(rows.format("train", "valid"))
    corpus = load_corpus(options, tmp_path / "work", BadRecords())
    assert [len(list(corpus.mentions(split))) for split in SPLITS] == [1, 1, 0]
    # With fractions of 0 all is for training.
    table.write_text(rows.format("train", "train"))
    options = dataclasses.replace(options, dev_fraction=0.0, test_fraction=0.0)
    corpus = load_corpus(options, tmp_path / "work", BadRecords())
    assert [len(list(corpus.mentions(split))) for split in SPLITS] == [2, 0, 0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"builder": "ccks"}, "entities: expected a path, for ccks, found None"),
        (
            {"builder": "table", "entities": "e.csv"},
            "mentions: expected a path, for table, found None",
        ),
        (
            {
                "builder": "ccks",
                "entities": "a",
                "mentions": "b",
                "table_columns": "c=d",
            },
            "table_columns: expected nothing, as it is only for the builder table",
        ),
        (
            {"builder": "zeshel", "mentions": "b", "pubtator_pmids": "a,b,c"},
            "pubtator_pmids: expected nothing, as it is only for the builder pubtator",
        ),
        (
            {"builder": "pubtator", "mentions": "b", "pubtator_pmids": "a,b"},
            "pubtator_pmids: expected three files or none",
        ),
        (
            {
                "builder": "pubtator",
                "mentions": "b",
                "dev_mentions": "c",
                "test_mentions": "d",
                "pubtator_pmids": "a,b,c",
            },
            "pubtator_pmids: expected nothing, as dev_mentions and test_mentions are",
        ),
        (
            {"builder": "aida", "mentions": "b", "dev_mentions": "c"},
            "dev_mentions: expected nothing, as mentions has all splits",
        ),
        (
            {"builder": "aida", "mentions": "b", "context_words": 0},
            "context_words: expected 1 or more, found 0",
        ),
        (
            {
                "builder": "table",
                "entities": "a",
                "mentions": "b",
                "table_columns": "strat=begin",
            },
            "table_columns: expected OURS=THEIRS with OURS one of id, name, aliases, "
            "description, text, start, end, marked_text, gold, candidates, split; "
            "found 'strat=begin'; did you mean start?",
        ),
        (
            {
                "builder": "table",
                "entities": "a",
                "mentions": "b",
                "table_columns": "start=",
            },
            "table_columns: expected OURS=THEIRS with OURS one of id, name, aliases, "
            "description, text, start, end, marked_text, gold, candidates, split; "
            "found 'start='",
        ),
        (
            {
                "builder": "table",
                "entities": "a",
                "mentions": "b",
                "table_columns": "start=a,start=b",
            },
            "table_columns: expected each of our names once",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_impossible_options_are_refused_by_key(options, expected):
    config = default_config()
    config.model.pretrained = "bert"
    values = config.to_dict()
    for key in ("table_columns", "pubtator_pmids"):
        if key in options:
            options = {**options, key: (options[key],)}
    values["corpus"].update(options)
    with pytest.raises(UserError) as caught:
        resolve(values)
    assert str(caught.value).startswith(f"config.corpus.{expected}")


@pytest.mark.parametrize("name", CONFIGS)
def test_the_fixtures_options_are_possible(name):
    check_converted(config(name))


def test_text_is_cut_at_words():
    text = "  one two\tthree (four) five  six\nseven  "
    mention = Mention(text, text.index("four"), text.index("four") + 4, "x", ("y",))
    assert cut(mention, 1) == Mention("three (four) five", 7, 11, "x", ("y",))
    assert cut(mention, 2).text == "two\tthree (four) five  six"
    assert cut(mention, 3) == Mention(text.strip(), 15, 19, "x", ("y",))
    assert cut(mention, 99) == cut(mention, 3)
    whole = Mention("我吃苹果。", 2, 4, None)
    assert cut(whole, 1) == whole


def test_aliases_of_titles():
    assert title_aliases("Warner (character)") == ("Warner",)
    assert title_aliases("Warner") == title_aliases("(character)") == ()
    assert title_aliases("A (b) (c)") == ("A (b)",)


# Memory


def many_ccks(directory: pathlib.Path, count: int) -> CorpusConfig:
    shutil.copy(FIXTURES / "ccks" / "kb_data", directory)
    with open(directory / "train.json", "w", encoding="utf-8") as file:
        for number in range(count):
            annotation = {"kb_id": "10003", "mention": "苹果", "offset": "1"}
            record = {"text": f"吃苹果{number}", "mention_data": [annotation]}
            file.write(json.dumps(record) + "\n")
    return CorpusConfig(
        builder="ccks",
        entities=str(directory / "kb_data"),
        mentions=str(directory / "train.json"),
    )


def many_zeshel(directory: pathlib.Path, count: int) -> CorpusConfig:
    record = json.loads((FIXTURES / "zeshel/mentions/train.json").open().readline())
    listed = {"tfidf_candidates": ["AA01", "AA02", "AA03"]}
    with (
        open(directory / "train.json", "w") as mentions,
        open(directory / "candidates.json", "w") as candidates,
    ):
        for number in range(count):
            named = {"mention_id": str(number)}
            mentions.write(json.dumps(record | named) + "\n")
            candidates.write(json.dumps(listed | named) + "\n")
    return config(
        "zeshel",
        mentions=str(directory / "train.json"),
        dev_mentions=None,
        test_mentions=None,
        zeshel_candidates=(str(directory / "candidates.json"),),
    )


def many_aida(directory: pathlib.Path, count: int) -> CorpusConfig:
    path = directory / "aida.tsv"
    row = "York\tB\tYork\tYork\thttp://en.wikipedia.org/wiki/York\t1"
    with open(path, "w") as file:
        for number in range(count):
            file.write(f"-DOCSTART- ({number} A)\nIn\n{row}\n.\n\n")
    return CorpusConfig(builder="aida", mentions=str(path))


def many_pubtator(directory: pathlib.Path, count: int) -> CorpusConfig:
    path = directory / "corpus.txt"
    with open(path, "w") as file:
        for number in range(count):
            file.write(
                f"{number}|t|Tea.\n{number}|a|More tea.\n{number}\t0\t3\tTea\tX\tD1\n\n"
            )
    return CorpusConfig(builder="pubtator", mentions=str(path))


def many_csv(directory: pathlib.Path, count: int) -> CorpusConfig:
    path = directory / "mentions.csv"
    with open(path, "w") as file:
        file.write("text,start,end,gold\n")
        file.writelines(f'"An apple, {number}",3,8,3\n' for number in range(count))
    entities = str(FIXTURES / "table" / "entities.tsv")
    return CorpusConfig(builder="table", entities=entities, mentions=str(path))


def many_parquet(directory: pathlib.Path, count: int) -> CorpusConfig:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {
        "text": [f"An apple, {number}" for number in range(count)],
        "start": [3] * count,
        "end": [8] * count,
        "gold": [3] * count,
    }
    path = directory / "mentions.parquet"
    parquet.write_table(pyarrow.table(columns), path, row_group_size=1000)
    entities = str(FIXTURES / "table" / "entities.tsv")
    return CorpusConfig(builder="table", entities=entities, mentions=str(path))


def peak(options: CorpusConfig, count: int) -> int:
    """Bytes that Python holds at most while `count` mentions are read."""
    tracemalloc.start()
    try:
        assert sum(1 for _ in opened(options).mentions) == count
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "make",
    [many_ccks, many_zeshel, many_aida, many_pubtator, many_csv, many_parquet],
    ids=lambda make: make.__name__,
)
def test_memory_does_not_grow_with_the_mentions(make, tmp_path):
    peaks = []
    for count in (20, 2000, 20000):
        directory = tmp_path / str(count)
        directory.mkdir()
        peaks.append(peak(make(directory, count), count))
    # The first one pays for what is imported.
    assert peaks[2] < peaks[1] * 1.2 + 100_000


def test_mentions_are_read_as_they_are_wanted(tmp_path):
    options = many_ccks(tmp_path, 3)
    with open(options.mentions, "a") as file:
        file.write("no JSON\n")
    mentions = opened(options).mentions
    assert [next(mentions)[1].start for _ in range(3)] == [1, 1, 1]
    with pytest.raises(UserError, match=r"train\.json:4: broken JSON"):
        next(mentions)


# The command


def flags(name: str) -> list[str]:
    options = {k: v for k, v in CONFIGS[name].items() if not k.endswith("_fraction")}
    return [
        f"--{'input_format' if key == 'builder' else key}="
        f"{','.join(value) if isinstance(value, tuple) else value}"
        for key, value in options.items()
    ]


def test_the_command_converts_and_tells_what_it_did(tmp_path):
    result = done("convert_corpus", *flags("ccks"), tmp_path / "out")
    assert result.stdout.splitlines() == [
        "8  entities",
        "9  mentions, all",
        "2  mentions that are NIL",
        "0  bad records left out",
        "3  mention differed in case, width, white space or punctuation",
        "1  mention moved to where the text has it",
    ]
    assert set(files_in(tmp_path / "out")) == {"entities.jsonl.gz", "mentions.jsonl.gz"}
    message = refused("convert_corpus", *flags("ccks"), tmp_path / "out")
    assert message.endswith("name another directory, or replace them with --overwrite")
    convert.convert(config("medmentions"), tmp_path / "expected", BadRecords())
    done("convert_corpus", *flags("medmentions"), tmp_path / "out", "--overwrite")
    assert files_in(tmp_path / "out") == files_in(tmp_path / "expected")
    read = list(
        jsonl.read_entities(tmp_path / "out" / "entities.jsonl.gz", BadRecords())
    )
    assert [entity.id for entity in read] == ["C9000001", "C9000002", "C9000003"]


def test_the_pages_commands_convert_the_fixtures(tmp_path):
    page = (ROOT / "docs" / "corpora.md").read_text("utf-8").replace("\\\n", " ")
    commands = re.findall(r"^ +bert-export (convert_corpus .*)$", page, re.MULTILINE)
    names = ("ccks", "zeshel", "blink", "aida", "medmentions", "bc5cdr", "csv", "tsv")
    assert len(commands) == len(names)
    for name, command in zip(names, commands):
        *arguments, output = command.split()
        assert output == f"/tmp/corpora/{name}"
        done(*arguments, tmp_path / name)
        expected = tmp_path / "expected" / name
        convert.convert(config(name), expected, BadRecords())
        assert files_in(tmp_path / name) == files_in(expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "convert_corpus: --input_format is needed, one of ccks, zeshel, aida, "),
        (
            ["--input_format=keras"],
            "convert_corpus: --input_format is needed, one of c",
        ),
        (
            ["--input_format=tsv"],
            "flag --input_format=tsv: value should be one of <tfj",
        ),
        (["--input_format=ccks"], "--entities: expected a path, for ccks, found None"),
        (
            ["--input_format=aida", "--mentions=nowhere"],
            "--mentions: there is no file nowhere",
        ),
        (
            ["--input_format=aida", "--mentions=m", "--dev_mentions=n"],
            "--dev_mentions: expected nothing, as mentions has all splits, found 'n'",
        ),
        (
            ["--input_format=zeshel", "--mentions=m", "--test_mentions=n"],
            "--dev_mentions and test_mentions go together; name both, or neither to",
        ),
        (
            [*flags("ccks"), "--table_columns=id=a"],
            "--table_columns: expected nothing, as it is only for the builder table",
        ),
        (
            [*flags("aida"), "--context_words=0"],
            "flag --context_words=0: 0 is not a po",
        ),
    ],
    ids=str,
)
def test_the_command_refuses_wrong_flags(arguments, expected, tmp_path):
    message = refused("convert_corpus", *arguments, tmp_path / "out")
    assert message.startswith(expected)
    assert list(tmp_path.iterdir()) == []

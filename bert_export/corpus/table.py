"""Reads entities and mentions from tables: CSV, TSV, Parquet or JSON Lines.

Formats: CSV as Python's csv module reads it (RFC 4180: commas, double quotes around
cells with commas, quotes or line breaks, the first row names the columns); TSV is the
same with tabs; https://parquet.apache.org through pyarrow.
"""

from __future__ import annotations

import collections
import csv
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bert_export.config import CorpusConfig
from bert_export.corpus import jsonl
from bert_export.corpus.jsonl import BadRecordError
from bert_export.corpus.records import BadRecords, Entity, Mention
from bert_export.corpus.sources import (
    Source,
    add_entity,
    mention_files,
    named_file,
    text_lines,
)
from bert_export.errors import UserError

_BATCH = 1024  # rows of Parquet held at a time

_ENTITY = ("id", "name", "aliases", "description")
# The last one only where splits have no files of their own.
_MENTION = ("text", "start", "end", "marked_text", "gold", "candidates", "split")
_SPLIT_NAMES = {
    "train": "train",
    "dev": "dev",
    "val": "dev",
    "valid": "dev",
    "validation": "dev",
    "test": "test",
}


def read_table(config: CorpusConfig, bad: BadRecords) -> Source:
    """Opens tables of entities and of mentions.

    A cell of `gold` that is empty or null is NIL; an empty cell of `candidates` leaves
    them to the alias table. Lists are lists in Parquet and JSON, and joined by '|' in
    a string. Ids may be integers.

    Args:
      config: `entities`, `mentions`, `dev_mentions` and `test_mentions` are tables,
        told apart by their suffix. `table_columns` has 'OURS=THEIRS' for each column
        whose name differs from ours: id, name, aliases, description of entities; text,
        start, end (or marked_text, with the mention in [[brackets]]), gold,
        candidates, split of mentions.
      bad: Is told of the bad rows.

    Raises:
      UserError: A file cannot be read, lacks a column or has no rows, or too many rows
        are bad.
    """
    named = {}
    for entry in config.table_columns:
        ours, theirs = entry.split("=", 1)
        named[ours.strip()] = theirs.strip()
    path = named_file("entities", config.entities)
    files = mention_files(config)
    if "split" in named and None not in files:
        raise UserError(
            "config.corpus.table_columns names the column of split, and dev_mentions"
            " and test_mentions are set; use either"
        )
    entities: dict[str, Entity] = {}
    for number, row in _rows(path, bad, named, _ENTITY):
        try:
            add_entity(entities, _entity(row))
        except BadRecordError as error:
            bad.add(path, number, str(error))
    if not entities:
        raise UserError(f"{path}: no entities in it")

    def mentions() -> Iterator[tuple[str | None, Mention]]:
        for file_split, file in files.items():
            fields = _MENTION if file_split is None else _MENTION[:-1]
            for number, row in _rows(file, bad, named, fields):
                try:
                    split = _split(row["split"]) if "split" in row else file_split
                    mention = _mention(row, entities)
                except BadRecordError as error:
                    bad.add(file, number, str(error))
                else:
                    yield split, mention

    return Source(entities, mentions(), collections.Counter())


def _entity(row: dict[str, Any]) -> Entity:
    entity_id = _id("id", row["id"])
    if entity_id is None:
        raise BadRecordError("empty id")
    return jsonl.parse_entity(
        {
            "id": entity_id,
            "name": _string("name", row["name"]),
            "aliases": list(_list("aliases", row.get("aliases")) or ()),
            "description": _string("description", row.get("description")),
        }
    )


def _mention(row: dict[str, Any], entities: dict[str, Entity]) -> Mention:
    if "start" in row:
        text = _string("text", row["text"])
        start, end = (_integer(field, row[field]) for field in ("start", "end"))
    else:
        try:
            marked = jsonl.parse_marked_text(_string("marked_text", row["marked_text"]))
        except UserError as error:
            raise BadRecordError(f"wrong marks: {error}") from None
        text, start, end = marked.text, marked.start, marked.end
    return jsonl.parse_mention(
        {
            "text": text,
            "start": start,
            "end": end,
            "gold": _id("gold", row["gold"]),
            "candidates": _list("candidates", row.get("candidates")),
        },
        entities,
    )


def _string(field: str, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRecordError(jsonl.mistyped(field, "a string", value))
    return value


def _integer(field: str, value: Any) -> int:
    if type(value) is int:
        return value
    try:
        return int(_string(field, value))
    except ValueError:
        raise BadRecordError(jsonl.mistyped(field, "an integer", value)) from None


def _id(field: str, value: Any) -> str | None:
    if type(value) is int:
        return str(value)
    return _string(field, value) or None


def _list(field: str, value: Any) -> list[str] | None:
    if value is None or value == "":
        return None
    items = value.split("|") if isinstance(value, str) else value
    if not isinstance(items, list):
        raise BadRecordError(jsonl.mistyped(field, "a list", value))
    ids = [_id(field, item) for item in items]
    return [item for item in ids if item is not None]


def _split(value: Any) -> str:
    name = _string("split", value).strip().lower()
    if name not in _SPLIT_NAMES:
        raise BadRecordError(
            f"unknown split: {value!r} is none of {', '.join(_SPLIT_NAMES)}"
        )
    return _SPLIT_NAMES[name]


def _rows(
    path: pathlib.Path, bad: BadRecords, named: dict[str, str], fields: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields each row's line, or its number in Parquet, and its values by our names."""

    def choose(found: Sequence[str]) -> dict[str, str]:
        return _columns(path, found, named, fields)

    suffix = pathlib.Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix in (".csv", ".tsv"):
        rows = _csv_rows(path, bad, "," if suffix == ".csv" else "\t")
    elif suffix == ".parquet":
        rows = _parquet_rows(path, choose)
    elif suffix in (".jsonl", ".ndjson", ".json"):
        rows = jsonl.read_objects(path, bad)
    else:
        raise UserError(
            f"{path}: expected a table in .csv, .tsv, .parquet or .jsonl; found the"
            f" suffix {suffix!r}"
        )
    columns: dict[str, str] | None = None
    for number, row in rows:
        if columns is None:
            columns = choose(list(row))
        # JSON may leave out a key that is null.
        yield number, {ours: row.get(theirs) for ours, theirs in columns.items()}
    if columns is None:
        raise UserError(f"{path}: no rows in it")


def _columns(
    path: pathlib.Path,
    found: Sequence[str],
    named: dict[str, str],
    fields: Sequence[str],
) -> dict[str, str]:
    """Their name of each of our columns that the table has."""
    columns = {
        ours: named.get(ours, ours) for ours in fields if ours in named or ours in found
    }
    if fields is _ENTITY:
        required = ["id", "name"]
    elif "marked_text" in columns and not {"start", "end"} & set(columns):
        required = ["marked_text", "gold"]
    else:
        required = ["text", "start", "end", "gold"]
    for ours in dict.fromkeys([*required, *columns]):
        theirs = columns.get(ours, ours)
        if theirs not in found:
            what = f"{theirs!r} for {ours}" if ours in named else repr(theirs)
            raise UserError(
                f"{path}: no column {what}; its columns are {', '.join(found)} (name"
                f" it with table_columns, as in '{ours}=THEIRS')"
            )
    return columns


def _csv_rows(
    path: pathlib.Path, bad: BadRecords, delimiter: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0

    def lines() -> Iterator[str]:
        nonlocal number
        for line_number, line in text_lines(path, bad):
            number = line_number
            yield line

    rows = csv.reader(lines(), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            bad.add(path, number, f"broken CSV: {error}")
            continue
        if not cells:
            continue
        if header is None:
            header = cells
            if len(set(header)) < len(header):
                raise UserError(f"{path}:{number}: two columns of a name in {header}")
        elif len(cells) != len(header):
            bad.add(
                path,
                number,
                f"wrong number of cells: expected {len(header)}, found {len(cells)}",
            )
        else:
            yield number, dict(zip(header, cells))


def _parquet_rows(
    path: pathlib.Path, choose: Callable[[Sequence[str]], dict[str, str]]
) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise UserError(
            f"{path}: Parquet needs pyarrow, which cannot be found:"
            " pip install 'bert_export[parquet]'"
        ) from None
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = list(dict.fromkeys(choose(file.schema_arrow.names).values()))
            for batch in file.iter_batches(_BATCH, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: row {number + 1}: not Parquet, or damaged ({reason})"
        ) from None

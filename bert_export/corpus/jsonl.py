"""Reads and writes entities and mentions as JSON Lines; parses marked text."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import itertools
import json
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any, BinaryIO, TypeVar

from bert_export.corpus.records import BadRecords, Entity, Mention
from bert_export.errors import UserError

T = TypeVar("T")
PathLike = str | os.PathLike[str]

_GZIP_MAGIC = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
# Of three closing brackets the last two close: '[[a[0]]]' has the mention 'a[0]'.
_MARK = re.compile(r"\\([\[\]\\])|(\[\[)|(\]\](?!\]))")


@dataclasses.dataclass(frozen=True)
class LineRun:
    """Consecutive lines of a file.

    Attributes:
      first: The first one's number, from 1.
      offset: Bytes before it, of the unpacked file.
      count: How many they are.
      records: How many of them are not blank.
    """

    first: int
    offset: int
    count: int
    records: int


class BadRecordError(ValueError):
    """The reason why a line is no record: 'kind' or 'kind: details'."""


def read_entities(path: PathLike, bad: BadRecords) -> Iterator[Entity]:
    """Yields the entities of a JSON Lines file, gzip or not.

    Args:
      path: One object a line: `id`, `name`, `aliases`, `description`, optional
        `type`.
      bad: Is told of the lines that are no entities.

    Raises:
      UserError: The file cannot be read or has no entities, or too many are bad.
    """
    seen: set[str] = set()

    def convert(record: dict[str, Any]) -> Entity:
        entity = parse_entity(record)
        if entity.id in seen:
            raise BadRecordError(
                f"duplicate entity id: {entity.id!r} was defined before"
            )
        seen.add(entity.id)
        return entity

    return _read(path, bad, convert, "entities")


def read_mentions(
    path: PathLike,
    bad: BadRecords,
    entities: Container[str],
    run: LineRun | None = None,
) -> Iterator[Mention]:
    """Yields the mentions of a JSON Lines file, gzip or not.

    Args:
      path: One object a line: `text`, `start`, `end`, `gold`, optional `candidates`.
      bad: Is told of the lines that are no mentions.
      entities: The ids that `gold` and `candidates` may name.
      run: Only these lines, which need not have a mention; None for all.

    Raises:
      UserError: The file cannot be read or has no mentions, or too many are bad.
    """

    def convert(record: dict[str, Any]) -> Mention:
        return parse_mention(record, entities)

    return _read(path, bad, convert, "mentions", run)


def write_entities(path: PathLike, entities: Iterable[Entity]) -> None:
    """Writes entities as `read_entities` reads them; gzip if `path` ends in .gz."""
    write_objects(path, map(_entity_fields, entities))


def _entity_fields(entity: Entity) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "id": entity.id,
        "name": entity.name,
        "aliases": entity.aliases,
        "description": entity.description,
    }
    if entity.type is not None:
        fields["type"] = entity.type
    return fields


def write_mentions(path: PathLike, mentions: Iterable[Mention]) -> None:
    """Writes mentions as `read_mentions` reads them; gzip if `path` ends in .gz."""
    with mention_writer(path) as write:
        for mention in mentions:
            write(mention)


@contextlib.contextmanager
def mention_writer(path: PathLike) -> Iterator[Callable[[Mention], None]]:
    """Opens a file for `write_mentions`' format; gives what writes one mention.

    The file appears when the context ends without an exception.
    """
    with _writer(path) as write:

        def write_mention(mention: Mention) -> None:
            fields: dict[str, Any] = {
                "text": mention.text,
                "start": mention.start,
                "end": mention.end,
                "gold": mention.gold,
            }
            if mention.candidates is not None:
                fields["candidates"] = mention.candidates
            write(fields)

        yield write_mention


def parse_marked_text(marked: str) -> Mention:
    r"""Parses a text whose one mention stands in double brackets.

    'He sat on the [[bank]].' has the mention 'bank'. Single brackets are ordinary
    characters; a backslash makes the next bracket or backslash one, so that
    r'\[\[1\]\] the [[bank]]' is the text '[[1]] the bank'.

    Raises:
      UserError: There is not exactly one mention, or it is blank.
    """
    pieces: list[str] = []
    length = position = 0
    start = end = None

    def push(piece: str) -> None:
        nonlocal length
        pieces.append(piece)
        length += len(piece)

    def wrong(what: str) -> UserError:
        return UserError(
            f"{what} in {marked!r}; expected one mention in double brackets, as in"
            " 'He sat on the [[bank]].' (write \\[ and \\] for plain brackets)"
        )

    for mark in _MARK.finditer(marked):
        push(marked[position : mark.start()])
        position = mark.end()
        escaped, opening, _ = mark.groups()
        if escaped:
            push(escaped)
        elif opening:
            if start is not None:
                raise wrong("a second [[")
            start = length
        else:
            if start is None or end is not None:
                raise wrong("a ]] without its [[")
            end = length
    push(marked[position:])
    text = "".join(pieces)
    if start is None:
        raise wrong("no mention")
    if end is None:
        raise wrong("a [[ without its ]]")
    if not text[start:end].strip():
        raise wrong("a blank mention")
    if not _encodable(text):
        raise wrong("a character that is not valid Unicode")
    return Mention(text, start, end, None)


def parse_entity(record: dict[str, Any]) -> Entity:
    """Checks an object of a file of entities.

    Raises:
      BadRecordError: A field is missing, mistyped or blank.
    """
    entity_id = string_field(record, "id")
    if not entity_id.strip():
        raise BadRecordError("empty id")
    name = string_field(record, "name")
    if not name.strip():
        raise BadRecordError("empty name")
    aliases = string_tuple("aliases", get_field(record, "aliases"))
    description = string_field(record, "description")
    kind = record.get("type")
    if kind is not None:
        kind = string_field(record, "type")
        if not kind.strip():
            raise BadRecordError("empty type")
    return Entity(entity_id, name, aliases, description, kind)


def parse_mention(record: dict[str, Any], entities: Container[str]) -> Mention:
    """Checks an object of a file of mentions.

    Args:
      record: `text`, `start`, `end`, `gold`, optional `candidates`.
      entities: The ids that `gold` and `candidates` may name.

    Raises:
      BadRecordError: A field is missing or mistyped, the offsets do not fit the text,
        or an id is unknown.
    """
    text = string_field(record, "text")
    if not text.strip():
        raise BadRecordError("empty text")
    start, end = integer_field(record, "start"), integer_field(record, "end")
    if start < 0 or end > len(text):
        raise BadRecordError(
            f"offsets outside the text: {start}..{end}, the text has {len(text)}"
            " characters"
        )
    if start >= end:
        raise BadRecordError(f"empty mention: start {start} is not before end {end}")
    if not text[start:end].strip():
        raise BadRecordError(f"blank mention: only white space at {start}..{end}")
    gold = get_field(record, "gold")
    if gold is not None:
        if not isinstance(gold, str):
            raise BadRecordError(mistyped("gold", "a string or null", gold))
        if gold not in entities:
            raise BadRecordError(f"unknown gold: no entity has the id {gold!r}")
    candidates = record.get("candidates")
    if candidates is not None:
        candidates = string_tuple("candidates", candidates)
        for candidate in candidates:
            if candidate not in entities:
                raise BadRecordError(
                    f"unknown candidate: no entity has the id {candidate!r}"
                )
        if len(set(candidates)) < len(candidates):
            raise BadRecordError(f"duplicate candidate: {list(candidates)}")
    return Mention(text, start, end, gold, candidates)


def get_field(record: dict[str, Any], field: str) -> Any:
    """The value of a field.

    Raises:
      BadRecordError: The record lacks it.
    """
    try:
        return record[field]
    except KeyError:
        raise BadRecordError(f"missing field {field!r}") from None


def string_field(record: dict[str, Any], field: str) -> str:
    """The value of a field that holds a string.

    Raises:
      BadRecordError: The record lacks it, or it holds something else.
    """
    value = get_field(record, field)
    if not isinstance(value, str):
        raise BadRecordError(mistyped(field, "a string", value))
    return value


def id_field(record: dict[str, Any], field: str) -> str:
    """The value of a field that holds an id: a string, or an integer as a string.

    Raises:
      BadRecordError: The record lacks it, or it holds something else.
    """
    value = get_field(record, field)
    return str(value) if type(value) is int else string_field(record, field)


def integer_field(record: dict[str, Any], field: str) -> int:
    """The value of a field that holds an integer.

    Raises:
      BadRecordError: The record lacks it, or it holds something else.
    """
    value = get_field(record, field)
    if type(value) is not int:  # JSON's true would pass isinstance
        raise BadRecordError(mistyped(field, "an integer", value))
    return value


def string_tuple(field: str, value: Any) -> tuple[str, ...]:
    """The value of a field that holds a list of strings.

    Raises:
      BadRecordError: It is something else.
    """
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadRecordError(mistyped(field, "a list of strings", value))
    return tuple(value)


def mistyped(field: str, expected: str, value: Any) -> str:
    """The reason why a field's value is refused."""
    found = repr(value)
    if len(found) > 60:
        found = found[:60] + "…"
    return f"mistyped field {field!r}: expected {expected}, found {found}"


def _encodable(text: str) -> bool:
    """Whether a string is free of lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def decode(line: bytes) -> str:
    """Decodes UTF-8.

    Raises:
      BadRecordError: It is another encoding.
    """
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRecordError(
            f"not UTF-8: byte 0x{line[error.start]:02x} at position {error.start + 1}"
            " of the line"
        ) from None


def parse_object(line: bytes) -> dict[str, Any]:
    """The object on a line.

    Raises:
      BadRecordError: The line is not one JSON object in UTF-8.
    """
    text = decode(line)
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadRecordError(
            f"broken JSON: {error.msg} at column {error.colno}"
        ) from None
    except ValueError as error:  # an integer of thousands of digits
        raise BadRecordError(f"broken JSON: {error}") from None
    except RecursionError:
        raise BadRecordError("broken JSON: nested too deeply") from None
    if not isinstance(record, dict):
        raise BadRecordError(f"not a JSON object: found {type(record).__name__}")
    # Half a surrogate pair gets past the UTF-8 decoder only as an escape.
    if b"\\u" in line and not _encodable(json.dumps(record, ensure_ascii=False)):
        raise BadRecordError(
            "lone surrogate: a \\ud800..\\udfff escape without its other half; offsets"
            " count code points, so a pair must not be cut"
        )
    return record


def _read(
    path: PathLike,
    bad: BadRecords,
    convert: Callable[[dict[str, Any]], T],
    what: str,
    run: LineRun | None = None,
) -> Iterator[T]:
    records = 0
    for number, line in read_lines(path, run):
        if not line.strip():
            continue
        try:
            record = convert(parse_object(line))
        except BadRecordError as error:
            bad.add(path, number, str(error))
            continue
        records += 1
        yield record
    if not records and run is None:
        raise UserError(
            f"{os.fspath(path)}: no {what} in it; expected JSON Lines, one object a"
            " line"
        )


def line_runs(path: PathLike, size: int) -> Iterator[LineRun]:
    """Cuts a file, gzip or not, into runs of `size` lines; the last may be shorter.

    Raises:
      UserError: The file cannot be opened, or is a damaged gzip file.
    """
    first, begin, end, records = 1, 0, 0, 0
    number = 0
    for number, line in _raw_lines(path, None):
        end += len(line)
        records += bool(line.removeprefix(_BOM).strip())
        if number - first + 1 == size:
            yield LineRun(first, begin, size, records)
            first, begin, records = number + 1, end, 0
    if number >= first:
        yield LineRun(first, begin, number - first + 1, records)


def read_objects(
    path: PathLike, bad: BadRecords
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the objects of any JSON Lines file, each with its line number.

    Args:
      path: Gzip or not; blank lines are passed over.
      bad: Is told of the lines that are no JSON objects.

    Raises:
      UserError: The file cannot be read, or too many lines are bad.
    """
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            record = parse_object(line)
        except BadRecordError as error:
            bad.add(path, number, str(error))
        else:
            yield number, record


def read_lines(
    path: PathLike, run: LineRun | None = None
) -> Iterator[tuple[int, bytes]]:
    """Yields the lines of a file, gzip or not, each with its number from 1.

    A byte order mark is taken off the first.

    Args:
      path: The file.
      run: Only these lines; None for all.

    Raises:
      UserError: The file cannot be opened, or is a damaged gzip file.
    """
    for number, line in _raw_lines(path, run):
        yield number, line.removeprefix(_BOM) if number == 1 else line


def _raw_lines(path: PathLike, run: LineRun | None) -> Iterator[tuple[int, bytes]]:
    first = run.first if run else 1
    number = first - 1
    try:
        with _open(path) as file:
            lines: Iterable[bytes] = file
            if run:
                file.seek(run.offset)
                lines = itertools.islice(file, run.count)
            for number, line in enumerate(lines, first):
                yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{os.fspath(path)}:{number + 1}: the gzip file is cut short or damaged"
            f" ({error})"
        ) from None


@contextlib.contextmanager
def _open(path: PathLike) -> Iterator[BinaryIO]:
    with contextlib.ExitStack() as stack:
        try:
            file: Any = stack.enter_context(open(path, "rb"))
        except OSError as error:
            raise UserError(f"{os.fspath(path)}: {error.strerror or error}") from None
        if file.peek(2)[:2] == _GZIP_MAGIC or os.fspath(path).endswith(".gz"):
            file = stack.enter_context(gzip.open(file))
        yield file


def write_objects(path: PathLike, records: Iterable[dict[str, Any]]) -> None:
    """Writes one object a line; gzip if `path` ends in .gz."""
    with _writer(path) as write:
        for record in records:
            write(record)


@contextlib.contextmanager
def _writer(path: PathLike) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Writes one object a line to a temporary sibling, at the end renames it."""
    target = pathlib.Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with contextlib.ExitStack() as stack:
            file: Any = stack.enter_context(open(temporary, "wb"))
            if target.suffix == ".gz":
                # Neither time nor name, so that equal records give equal bytes.
                file = stack.enter_context(
                    gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0)
                )

            def write(record: dict[str, Any]) -> None:
                line = json.dumps(record, ensure_ascii=False) + "\n"
                file.write(line.encode("utf-8"))

            yield write
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)

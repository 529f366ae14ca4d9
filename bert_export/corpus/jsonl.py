"""Reads and writes entities and mentions as JSON Lines; parses marked text."""

from __future__ import annotations

import contextlib
import gzip
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


class _BadRecordError(ValueError):
    """The reason why a line is no record."""


def read_entities(path: PathLike, bad: BadRecords) -> Iterator[Entity]:
    """Yields the entities of a JSON Lines file, gzip or not.

    Args:
      path: One object a line: `id`, `name`, `aliases`, `description`.
      bad: Is told of the lines that are no entities.

    Raises:
      UserError: The file cannot be read or has no entities, or too many are bad.
    """
    seen: set[str] = set()

    def convert(record: dict[str, Any]) -> Entity:
        entity = _entity(record)
        if entity.id in seen:
            raise _BadRecordError(
                f"duplicate entity id: {entity.id!r} was defined before"
            )
        seen.add(entity.id)
        return entity

    return _read(path, bad, convert, "entities")


def read_mentions(
    path: PathLike, bad: BadRecords, entities: Container[str]
) -> Iterator[Mention]:
    """Yields the mentions of a JSON Lines file, gzip or not.

    Args:
      path: One object a line: `text`, `start`, `end`, `gold`, optional `candidates`.
      bad: Is told of the lines that are no mentions.
      entities: The ids that `gold` and `candidates` may name.

    Raises:
      UserError: The file cannot be read or has no mentions, or too many are bad.
    """
    return _read(path, bad, lambda record: _mention(record, entities), "mentions")


def write_entities(path: PathLike, entities: Iterable[Entity]) -> None:
    """Writes entities as `read_entities` reads them; gzip if `path` ends in .gz."""
    _write(
        path,
        (
            {
                "id": entity.id,
                "name": entity.name,
                "aliases": entity.aliases,
                "description": entity.description,
            }
            for entity in entities
        ),
    )


def write_mentions(path: PathLike, mentions: Iterable[Mention]) -> None:
    """Writes mentions as `read_mentions` reads them; gzip if `path` ends in .gz."""

    def record(mention: Mention) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "text": mention.text,
            "start": mention.start,
            "end": mention.end,
            "gold": mention.gold,
        }
        if mention.candidates is not None:
            fields["candidates"] = mention.candidates
        return fields

    _write(path, map(record, mentions))


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


def _entity(record: dict[str, Any]) -> Entity:
    entity_id = _string(record, "id")
    if not entity_id.strip():
        raise _BadRecordError("empty id")
    name = _string(record, "name")
    if not name.strip():
        raise _BadRecordError("empty name")
    aliases = _strings(record, "aliases", _get(record, "aliases"))
    return Entity(entity_id, name, aliases, _string(record, "description"))


def _mention(record: dict[str, Any], entities: Container[str]) -> Mention:
    text = _string(record, "text")
    if not text.strip():
        raise _BadRecordError("empty text")
    start, end = _integer(record, "start"), _integer(record, "end")
    if start < 0 or end > len(text):
        raise _BadRecordError(
            f"offsets outside the text: {start}..{end}, the text has {len(text)}"
            " characters"
        )
    if start >= end:
        raise _BadRecordError(f"empty mention: start {start} is not before end {end}")
    if not text[start:end].strip():
        raise _BadRecordError(f"blank mention: only white space at {start}..{end}")
    gold = _get(record, "gold")
    if gold is not None:
        if not isinstance(gold, str):
            raise _BadRecordError(_mistyped("gold", "a string or null", gold))
        if gold not in entities:
            raise _BadRecordError(f"unknown gold: no entity has the id {gold!r}")
    candidates = record.get("candidates")
    if candidates is not None:
        candidates = _strings(record, "candidates", candidates)
        for candidate in candidates:
            if candidate not in entities:
                raise _BadRecordError(
                    f"unknown candidate: no entity has the id {candidate!r}"
                )
        if len(set(candidates)) < len(candidates):
            raise _BadRecordError(f"duplicate candidate: {list(candidates)}")
    return Mention(text, start, end, gold, candidates)


def _get(record: dict[str, Any], field: str) -> Any:
    try:
        return record[field]
    except KeyError:
        raise _BadRecordError(f"missing field {field!r}") from None


def _string(record: dict[str, Any], field: str) -> str:
    value = _get(record, field)
    if not isinstance(value, str):
        raise _BadRecordError(_mistyped(field, "a string", value))
    return value


def _integer(record: dict[str, Any], field: str) -> int:
    value = _get(record, field)
    if type(value) is not int:  # JSON's true would pass isinstance
        raise _BadRecordError(_mistyped(field, "an integer", value))
    return value


def _strings(record: dict[str, Any], field: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _BadRecordError(_mistyped(field, "a list of strings", value))
    return tuple(value)


def _mistyped(field: str, expected: str, value: Any) -> str:
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


def _parse(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _BadRecordError(
            f"not UTF-8: byte 0x{line[error.start]:02x} at position {error.start + 1}"
            " of the line"
        ) from None
    except json.JSONDecodeError as error:
        raise _BadRecordError(
            f"broken JSON: {error.msg} at column {error.colno}"
        ) from None
    except ValueError as error:  # an integer of thousands of digits
        raise _BadRecordError(f"broken JSON: {error}") from None
    except RecursionError:
        raise _BadRecordError("broken JSON: nested too deeply") from None
    if not isinstance(record, dict):
        raise _BadRecordError(f"not a JSON object: found {type(record).__name__}")
    # Half a surrogate pair gets past the UTF-8 decoder only as an escape.
    if b"\\u" in line and not _encodable(json.dumps(record, ensure_ascii=False)):
        raise _BadRecordError(
            "lone surrogate: a \\ud800..\\udfff escape without its other half; offsets"
            " count code points, so a pair must not be cut"
        )
    return record


def _read(
    path: PathLike,
    bad: BadRecords,
    convert: Callable[[dict[str, Any]], T],
    what: str,
) -> Iterator[T]:
    number = records = 0
    try:
        with _open(path) as lines:
            for number, line in enumerate(lines, 1):
                if number == 1 and line.startswith(_BOM):
                    line = line[len(_BOM) :]
                if not line.strip():
                    continue
                try:
                    record = convert(_parse(line))
                except _BadRecordError as error:
                    bad.add(path, number, str(error))
                    continue
                records += 1
                yield record
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{os.fspath(path)}:{number + 1}: the gzip file is cut short or damaged"
            f" ({error})"
        ) from None
    if not records:
        raise UserError(
            f"{os.fspath(path)}: no {what} in it; expected JSON Lines, one object a"
            " line"
        )


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


def _write(path: PathLike, records: Iterable[dict[str, Any]]) -> None:
    """Writes one object a line to a temporary sibling, then renames it."""
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
            for record in records:
                line = json.dumps(record, ensure_ascii=False) + "\n"
                file.write(line.encode("utf-8"))
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)

"""Reads ZESHEL's release, and BLINK's JSON Lines.

Formats:
- ZESHEL (Logeswaran et al. 2019, https://github.com/lajanugen/zeshel): documents, one
  file a world, with document_id, title and text, are entities and contexts; mentions
  have mention_id, context_document_id, start_index and end_index (tokens set apart by
  white space, the last one included), text and label_document_id; TF-IDF candidates
  have mention_id and tfidf_candidates.
- BLINK (Wu et al. 2020, https://github.com/facebookresearch/BLINK, examples/zeshel and
  issue 116): mentions have context_left, mention, context_right, label (the entity's
  text), label_title, and label_id: the line, from 0, of the entity in its documents
  (those of its `world`, where the mention has one).
"""

from __future__ import annotations

import collections
import json
import pathlib
import re
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

from bert_export.config import CorpusConfig
from bert_export.corpus import jsonl
from bert_export.corpus.jsonl import BadRecordError
from bert_export.corpus.records import BadRecords, Entity, Mention
from bert_export.corpus.sources import (
    Source,
    add_entity,
    cut,
    mention_files,
    title_aliases,
)
from bert_export.errors import UserError

_TOKEN = re.compile(r"\S+")
_NO_CANDIDATES = "mentions without TF-IDF candidates, left to the alias table"


class _Documents:
    """The entities, and which line of which world each came from."""

    def __init__(self) -> None:
        self.entities: dict[str, Entity] = {}
        self.worlds: dict[str, dict[int, str]] = {}  # world → line from 0 → id

    def read(self, path: pathlib.Path, bad: BadRecords) -> None:
        name = path.name.removesuffix(".gz")
        lines = self.worlds.setdefault(name.rpartition(".")[0], {})
        for number, record in jsonl.read_objects(path, bad):
            try:
                title = jsonl.string_field(record, "title")
                entity = jsonl.parse_entity(
                    {
                        "id": jsonl.id_field(record, "document_id"),
                        "name": title,
                        "aliases": list(title_aliases(title)),
                        "description": jsonl.string_field(record, "text"),
                    }
                )
                add_entity(self.entities, entity)
                lines[number - 1] = entity.id
            except BadRecordError as error:
                bad.add(path, number, str(error))

    def at_line(self, world: str | None, line: int) -> str:
        """The entity of a line of a world's documents, counted from 0."""
        if world is None and len(self.worlds) == 1:
            (world,) = self.worlds
        if world is None:
            raise BadRecordError(
                "missing field 'world': there are documents of several worlds"
            )
        if world not in self.worlds:
            raise BadRecordError(
                f"unknown world: {world!r} is none of {', '.join(sorted(self.worlds))}"
            )
        if line not in self.worlds[world]:
            raise BadRecordError(
                f"unknown label_id: the documents of {world} have no entity at line"
                f" {line} (from 0)"
            )
        return self.worlds[world][line]


def read_zeshel(config: CorpusConfig, bad: BadRecords) -> Source:
    """Opens a corpus in ZESHEL's or BLINK's format, told apart record by record.

    Args:
      config: `entities` is the directory of documents, or a file of them; without it,
        BLINK's mentions bring their entities along. `mentions`, `dev_mentions` and
        `test_mentions` are train.json, val.json and test.json.
        `zeshel_candidates` are files of TF-IDF candidates or directories of them.
        `context_words` are kept on both sides of a mention.
      bad: Is told of the bad records.

    Raises:
      UserError: A file cannot be read or has nothing, or too many records are bad.
    """
    files = mention_files(config)
    documents = _Documents()
    if config.entities is not None:
        for path in json_files("entities", config.entities):
            documents.read(path, bad)
        if not documents.entities:
            raise UserError(
                f"{config.entities}: no documents in it; expected JSON Lines with"
                " document_id, title and text"
            )
    else:
        for file in files.values():
            _labels_as_entities(file, documents.entities, bad)
    candidate_files = [
        path
        for name in config.zeshel_candidates
        for path in json_files("zeshel_candidates", name)
    ]
    notes: collections.Counter[str] = collections.Counter()

    def mentions() -> Iterator[tuple[str | None, Mention]]:
        candidates = _candidates(candidate_files, bad) if candidate_files else None
        for split, file in files.items():
            for number, record in jsonl.read_objects(file, bad):
                try:
                    if "context_left" in record:
                        mention = _blink(record, documents, config.entities is None)
                    else:
                        mention = _zeshel(record, documents.entities, candidates, notes)
                except BadRecordError as error:
                    bad.add(file, number, str(error))
                else:
                    yield split, cut(mention, config.context_words)

    return Source(documents.entities, mentions(), notes)


def json_files(key: str, path: str) -> list[pathlib.Path]:
    """A file, or the *.json and *.jsonl files, gzip or not, of a directory.

    Raises:
      UserError: There is none.
    """
    if pathlib.Path(path).is_file():
        return [pathlib.Path(path)]
    if not pathlib.Path(path).is_dir():
        raise UserError(f"config.corpus.{key}: there is no file or directory {path}")
    files = [
        file
        for file in sorted(pathlib.Path(path).iterdir())
        if file.name.removesuffix(".gz").endswith((".json", ".jsonl"))
    ]
    if not files:
        raise UserError(f"config.corpus.{key}: no *.json in the directory {path}")
    return files


def _labels_as_entities(
    path: pathlib.Path, entities: dict[str, Entity], bad: BadRecords
) -> None:
    """Adds the entities that BLINK's mentions describe."""
    for number, record in jsonl.read_objects(path, bad):
        try:
            if "context_left" not in record:
                raise BadRecordError(
                    "not BLINK's format: it lacks 'context_left'; for ZESHEL's, name"
                    " the documents with entities"
                )
            entity_id = _blink_id(record)
            if entity_id in entities:
                continue
            title = jsonl.string_field(record, "label_title")
            entities[entity_id] = jsonl.parse_entity(
                {
                    "id": entity_id,
                    "name": title,
                    "aliases": list(title_aliases(title)),
                    "description": jsonl.string_field(record, "label"),
                }
            )
        except BadRecordError as error:
            bad.add(path, number, str(error))


def _blink(
    record: dict[str, Any], documents: _Documents, labels_are_entities: bool
) -> Mention:
    left, surface, right = (
        jsonl.string_field(record, field)
        for field in ("context_left", "mention", "context_right")
    )
    if left and not left[-1].isspace():
        left += " "
    if right and not right[0].isspace():
        right = f" {right}"
    label = jsonl.get_field(record, "label_id")
    if labels_are_entities:
        gold = _blink_id(record)
    elif isinstance(label, str) and label in documents.entities:
        gold = label
    else:
        try:
            line = int(jsonl.id_field(record, "label_id"))
        except ValueError:  # BadRecordError is one
            raise BadRecordError(
                f"unknown gold: no document has the id {label!r}"
            ) from None
        gold = documents.at_line(_world(record), line)
    title = record.get("label_title")
    if title is not None and title != documents.entities[gold].name:
        raise BadRecordError(
            f"label_title differs: {title!r}, but label_id {label!r} is"
            f" {documents.entities[gold].name!r}"
        )
    return jsonl.parse_mention(
        {
            "text": left + surface + right,
            "start": len(left),
            "end": len(left) + len(surface),
            "gold": gold,
        },
        documents.entities,
    )


def _blink_id(record: dict[str, Any]) -> str:
    world = _world(record)
    label_id = jsonl.id_field(record, "label_id")
    return f"{world}:{label_id}" if world else label_id


def _world(record: dict[str, Any]) -> str | None:
    return jsonl.string_field(record, "world") if record.get("world") else None


def _zeshel(
    record: dict[str, Any],
    entities: dict[str, Entity],
    candidates: sqlite3.Connection | None,
    notes: collections.Counter[str],
) -> Mention:
    context = jsonl.string_field(record, "context_document_id")
    if context not in entities:
        raise BadRecordError(f"unknown document: {context!r} is in no file of them")
    text = entities[context].description
    surface = jsonl.string_field(record, "text")
    start, end = _token_span(
        text, jsonl.integer_field(record, "start_index"), record, surface
    )
    own = None
    if candidates is not None:
        found = candidates.execute(
            "SELECT ids FROM candidates WHERE mention = ?",
            (jsonl.string_field(record, "mention_id"),),
        ).fetchone()
        own = json.loads(found[0]) if found else None
    mention = jsonl.parse_mention(
        {
            "text": text,
            "start": start,
            "end": end,
            "gold": jsonl.string_field(record, "label_document_id"),
            "candidates": own,
        },
        entities,
    )
    if candidates is not None and own is None:
        notes[_NO_CANDIDATES] += 1
    return mention


def _token_span(
    text: str, first: int, record: dict[str, Any], surface: str
) -> tuple[int, int]:
    """The characters of tokens start_index to end_index, which is included."""
    last = jsonl.integer_field(record, "end_index")
    start = end = None
    for index, token in enumerate(_TOKEN.finditer(text)):
        if index == first:
            start = token.start()
        if index == last:
            end = token.end()
            break
    if start is None or end is None:
        raise BadRecordError(
            f"offsets outside the text: tokens {first}..{last} of"
            f" {record['context_document_id']!r}"
        )
    # BLINK and others lower-case mentions; the document keeps its case.
    found = text[start:end]
    if found.casefold().split() != surface.casefold().split():
        raise BadRecordError(
            f"text differs: tokens {first}..{last} of {record['context_document_id']!r}"
            f" are {found!r}, the mention is {surface!r}"
        )
    return start, end


def _candidates(files: Sequence[pathlib.Path], bad: BadRecords) -> sqlite3.Connection:
    """Candidates by mention_id in a temporary file, which SQLite deletes itself.

    Not in memory: there are 64 to a mention.
    """
    database = sqlite3.connect("")
    database.execute("CREATE TABLE candidates (mention TEXT PRIMARY KEY, ids TEXT)")
    for path in files:
        for number, record in jsonl.read_objects(path, bad):
            try:
                mention = jsonl.string_field(record, "mention_id")
                ids = jsonl.string_tuple(
                    "tfidf_candidates", jsonl.get_field(record, "tfidf_candidates")
                )
                database.execute(
                    "INSERT INTO candidates VALUES (?, ?)", (mention, json.dumps(ids))
                )
            except BadRecordError as error:
                bad.add(path, number, str(error))
            except sqlite3.IntegrityError:
                bad.add(path, number, f"duplicate mention_id: {mention!r}")
    return database

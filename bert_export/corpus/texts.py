"""The texts that a vocabulary is learned from: of corpus files or of a run's corpus."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator

from bert_export.corpus import jsonl
from bert_export.corpus.corpus import Corpus
from bert_export.corpus.records import BadRecords, Entity
from bert_export.errors import UserError

_JSON_LINES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")


class _AnyId:
    """Contains every entity id: mentions are read without their entities."""

    def __contains__(self, id: object) -> bool:
        return True


def file_texts(paths: Iterable[str], bad: BadRecords) -> Iterator[str]:
    """Yields the texts of files, each distinct text once.

    Args:
      paths: JSON Lines of entities, of mentions or of both (named .jsonl or .json),
        or plain text in UTF-8, a sentence a line (named anything else); gzip or not.
      bad: Is told of the lines that are none.

    Raises:
      UserError: A file cannot be read, or too many lines are bad.
    """
    return _distinct(
        text
        for path in paths
        for text in (
            _record_texts(path, bad)
            if path.endswith(_JSON_LINES)
            else _lines(path, bad)
        )
    )


def corpus_texts(corpus: Corpus) -> Iterator[str]:
    """Yields each distinct text of all entities and of the train split's mentions.

    What is held out stays unseen: a vocabulary learned from dev and test texts would
    cut just those into fewer pieces than others.

    Raises:
      UserError: The mentions cannot be read, or too many are bad.
    """

    def texts() -> Iterator[str]:
        for entity in corpus.entities.values():
            yield from _entity_texts(entity)
        for mention in corpus.mentions("train"):
            yield mention.text

    return _distinct(texts())


def _entity_texts(entity: Entity) -> Iterator[str]:
    yield entity.name
    yield from entity.aliases
    yield entity.description


def _record_texts(path: str, bad: BadRecords) -> Iterator[str]:
    """The texts of a file of entities and mentions."""
    for number, record in jsonl.read_objects(path, bad):
        try:
            if "text" in record:
                yield jsonl.parse_mention(record, _AnyId()).text
            elif "name" in record:
                yield from _entity_texts(jsonl.parse_entity(record))
            else:
                raise jsonl.BadRecordError(
                    "neither 'text', of a mention, nor 'name', of an entity"
                )
        except jsonl.BadRecordError as error:
            bad.add(path, number, str(error))


def _lines(path: str, bad: BadRecords) -> Iterator[str]:
    for number, line in jsonl.read_lines(path):
        try:
            yield jsonl.decode(line)
        except jsonl.BadRecordError as error:
            bad.add(path, number, str(error))


def _distinct(texts: Iterable[str]) -> Iterator[str]:
    """Yields every line of the texts that is not blank, once.

    A sentence with five mentions is in the corpus five times, but is no more frequent
    in the language for that.
    """
    # Sixteen bytes a line, however long it is.
    seen: set[bytes] = set()
    for text in texts:
        for line in text.splitlines():
            line = line.strip()
            key = hashlib.blake2b(line.encode("utf-8"), digest_size=16).digest()
            if line and key not in seen:
                seen.add(key)
                yield line


def require_files(paths: Iterable[str]) -> None:
    """Makes sure that files are there, before anything takes long.

    Raises:
      UserError: One is not.
    """
    for path in paths:
        if not os.path.isfile(path):
            raise UserError(f"--corpus: there is no file {path}")

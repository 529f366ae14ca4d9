"""What readers of other formats give, and what they share."""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator, Mapping

from bert_export.config import CorpusConfig
from bert_export.corpus import jsonl
from bert_export.corpus.jsonl import BadRecordError
from bert_export.corpus.records import BadRecords, Entity, Mention
from bert_export.errors import UserError

# 'Warner (character)', as Wikipedia and the wikis of ZESHEL tell titles apart.
_QUALIFIED = re.compile(r"(.*\S)\s+\([^()]+\)")


@dataclasses.dataclass(frozen=True)
class Source:
    """A corpus in another format: its entities, and its mentions as a stream.

    Attributes:
      entities: By id, in the order in which equally good candidates shall come.
      mentions: Each with its split, 'train', 'dev' or 'test'; or all of them with
        None, where the format leaves splitting to a hash of the text. Read once.
      notes: How often something was repaired, or left out though it is no error, by
        what it was; complete when the mentions have been read.
    """

    entities: Mapping[str, Entity]
    mentions: Iterator[tuple[str | None, Mention]]
    notes: collections.Counter[str]


def mention_files(config: CorpusConfig) -> dict[str | None, pathlib.Path]:
    """The files of mentions that a config names, by split; None: not split.

    Raises:
      UserError: One is not there, or dev and test mentions do not go together.
    """
    if (config.dev_mentions is None) != (config.test_mentions is None):
        raise UserError(
            "config.corpus.dev_mentions and test_mentions go together; name both, or"
            " neither to split config.corpus.mentions by a hash of the text"
        )
    train = named_file("mentions", config.mentions)
    if config.dev_mentions is None:
        return {None: train}
    return {
        "train": train,
        "dev": named_file("dev_mentions", config.dev_mentions),
        "test": named_file("test_mentions", config.test_mentions),
    }


def named_file(key: str, path: str | None) -> pathlib.Path:
    """The file that config.corpus.KEY names.

    Raises:
      UserError: It is not set, or there is no such file.
    """
    if path is None:
        raise UserError(f"config.corpus.{key} is not set; name a file")
    if not pathlib.Path(path).is_file():
        raise UserError(f"config.corpus.{key}: there is no file {path}")
    return pathlib.Path(path)


def own_entities(path: str | None, bad: BadRecords) -> dict[str, Entity]:
    """The entities of a JSON Lines file of ours, by id.

    Raises:
      UserError: It cannot be read, or too many records are bad.
    """
    file = named_file("entities", path)
    return {entity.id: entity for entity in jsonl.read_entities(file, bad)}


def add_entity(entities: dict[str, Entity], entity: Entity) -> None:
    """Adds an entity that a file defines.

    Raises:
      BadRecordError: Its id is taken.
    """
    if entity.id in entities:
        raise BadRecordError(f"duplicate entity id: {entity.id!r} was defined before")
    entities[entity.id] = entity


def text_lines(
    path: str | os.PathLike[str], bad: BadRecords
) -> Iterator[tuple[int, str]]:
    """Yields the lines of a UTF-8 file, gzip or not, with their ends and numbers.

    Args:
      path: The file; a byte order mark is taken off.
      bad: Is told of the lines in another encoding, which are left out.

    Raises:
      UserError: The file cannot be read, or too many lines are bad.
    """
    for number, line in jsonl.read_lines(path):
        try:
            text = jsonl.decode(line)
        except BadRecordError as error:
            bad.add(path, number, f"{error}; the file has to be in UTF-8")
        else:
            yield number, text


def title_aliases(title: str) -> tuple[str, ...]:
    """What else a page is called: 'Warner' for 'Warner (character)'."""
    qualified = _QUALIFIED.fullmatch(title)
    return (qualified[1],) if qualified else ()


def cut(mention: Mention, words: int) -> Mention:
    """Keeps so many words on each side of a mention, and what is attached to it.

    Words are set apart by white space; of '(Utrecht).' both marks are attached.
    """
    text = mention.text
    first, last = mention.start, mention.end
    while first > 0 and not text[first - 1].isspace():
        first -= 1
    while last < len(text) and not text[last].isspace():
        last += 1
    before = text[:first].rsplit(None, words)
    after = text[last:].split(None, words)
    first = len(before[0]) if len(before) > words else 0
    last = len(text) - (len(after[-1]) if len(after) > words else 0)
    # White space at the ends goes, but none of the mention's own.
    while first < mention.start and text[first].isspace():
        first += 1
    while last > mention.end and text[last - 1].isspace():
        last -= 1
    return dataclasses.replace(
        mention,
        text=text[first:last],
        start=mention.start - first,
        end=mention.end - first,
    )

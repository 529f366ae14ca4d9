"""Reads AIDA CoNLL-YAGO (AIDA-YAGO2-dataset.tsv).

Format (Hoffart et al. 2011, https://aclanthology.org/D11-1072, and the data set's
README): a document starts with a line '-DOCSTART- (1 EU)'; '947testa CRICKET' is of
the dev split, '1163testb SOCCER' of the test split. Each line is a token, an empty one
ends a sentence. A mention's tokens have more columns, set apart by tabs: the token, B
or I, the full mention, the YAGO2 entity or --NME-- (no matching entity), and unless it
is that, the Wikipedia URL, the Wikipedia id and often the Freebase mid.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import re
import urllib.parse
from collections.abc import Iterator

from bert_export.config import CorpusConfig
from bert_export.corpus import jsonl
from bert_export.corpus.jsonl import BadRecordError
from bert_export.corpus.records import BadRecords, Entity, Mention
from bert_export.corpus.sources import (
    Source,
    cut,
    named_file,
    own_entities,
    text_lines,
    title_aliases,
)
from bert_export.errors import UserError

_START = re.compile(r"-DOCSTART-\s*\((\d+)(testa|testb)?\b.*\)\s*")
_SPLITS = {None: "train", "testa": "dev", "testb": "test"}
_NIL = "--NME--"
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")

# Tokens that stand right behind the one before, and right before the one behind.
_CLOSING = re.compile(r"[)\]}%.,;:?!]+|\.\.\.|n't|'(?:s|S|re|ve|ll|d|m)?")
_OPENING = re.compile(r"[(\[{$£]|[A-Z]{1,3}\$")


@dataclasses.dataclass
class _Marked:
    """A mention of a document, in tokens."""

    line: int  # in the file
    first: int  # token of the document
    last: int
    columns: list[str]  # of its first token


@dataclasses.dataclass
class _Document:
    split: str
    sentences: list[list[str]] = dataclasses.field(default_factory=lambda: [[]])
    mentions: list[_Marked] = dataclasses.field(default_factory=list)
    tokens: int = 0


def read_aida(config: CorpusConfig, bad: BadRecords) -> Source:
    """Opens AIDA-YAGO2-dataset.tsv.

    The text is made of the tokens, set apart as print does it ('Rome, 3-1.'). An
    entity's id is the last part of its Wikipedia URL ('United_Kingdom').

    Args:
      config: `mentions` is the file. `entities` may be JSON Lines of ours, whose ids
        are any of the file's: the last part of the URL, the URL, the Wikipedia id, the
        Freebase mid or the YAGO2 entity. Without it, entities have their titles alone,
        those of all splits. `context_words` are kept on both sides of a mention.
      bad: Is told of the bad records.

    Raises:
      UserError: The file cannot be read or is no such file, or too many records are
        bad.
    """
    path = named_file("mentions", config.mentions)
    if config.entities is not None:
        entities = own_entities(config.entities, bad)
    else:
        entities = {}
        for document in _documents(path, bad):
            for marked in document.mentions:
                ids = _ids(marked.columns)
                if ids and ids[0] not in entities:
                    title = ids[0].replace("_", " ")
                    entities[ids[0]] = Entity(ids[0], title, title_aliases(title), "")

    def mentions() -> Iterator[tuple[str | None, Mention]]:
        for document in _documents(path, bad):
            text, spans = detokenize(document.sentences)
            for marked in document.mentions:
                try:
                    mention = _mention(text, spans, marked, entities)
                except BadRecordError as error:
                    bad.add(path, marked.line, str(error))
                else:
                    yield document.split, cut(mention, config.context_words)

    return Source(entities, mentions(), collections.Counter())


def _documents(path: pathlib.Path, bad: BadRecords) -> Iterator[_Document]:
    document: _Document | None = None
    for number, ended in text_lines(path, bad):
        line = ended.rstrip("\r\n")
        if line.startswith("-DOCSTART-"):
            if document is not None:
                yield document
            start = _START.fullmatch(line)
            if start is None:
                raise UserError(
                    f"{path}:{number}: expected a document's start such as"
                    f" '-DOCSTART- (947testa CRICKET)', found {line[:60]!r}"
                )
            document = _Document(_SPLITS[start[2]])
            continue
        if document is None:
            raise UserError(
                f"{path}:{number}: expected '-DOCSTART- (1 EU)' first, found"
                f" {line[:60]!r}; is this AIDA-YAGO2-dataset.tsv?"
            )
        if not line.strip():
            if document.sentences[-1]:
                document.sentences.append([])
            continue
        try:
            _add_token(document, number, line.split("\t"))
        except BadRecordError as error:
            bad.add(path, number, str(error))
    if document is not None:
        yield document


def _add_token(document: _Document, number: int, columns: list[str]) -> None:
    token = columns[0].strip()
    if token.isdigit() and len(columns) > 1 and columns[1] not in ("B", "I"):
        raise BadRecordError(
            "no token: AIDA-YAGO2-annotations.tsv is without the texts; make"
            " AIDA-YAGO2-dataset.tsv from it and CoNLL 2003 as its README tells"
        )
    document.sentences[-1].append(token)
    index = document.tokens
    document.tokens += 1
    if len(columns) == 1:
        return
    if len(columns) < 4 or columns[1] not in ("B", "I"):
        raise BadRecordError(
            "wrong columns: expected a token alone, or token, B or I, mention and"
            f" entity, set apart by tabs; found {columns[:4]}"
        )
    if columns[1] == "B":
        document.mentions.append(_Marked(number, index, index, columns))
        return
    before = document.mentions[-1] if document.mentions else None
    if before is None or before.last != index - 1 or before.columns[2] != columns[2]:
        raise BadRecordError(f"I without B: {columns[2]!r} goes on but did not begin")
    before.last = index


def _ids(columns: list[str]) -> list[str]:
    """What the entity is called, the id of ours first; none if it has no entity."""
    yago = _ESCAPED.sub(lambda code: chr(int(code[1], 16)), columns[3])
    if columns[3] == _NIL or len(columns) < 5 or not columns[4]:
        return []
    title = urllib.parse.unquote(columns[4].rpartition("/")[2])
    if not title.strip("_ "):
        return []
    return [title, columns[4], *columns[5:7], yago, columns[3]]


def _mention(
    text: str,
    spans: list[tuple[int, int]],
    marked: _Marked,
    entities: dict[str, Entity],
) -> Mention:
    start, end = spans[marked.first][0], spans[marked.last][1]
    written = marked.columns[2]
    if "".join(text[start:end].split()) != "".join(written.split()):
        raise BadRecordError(
            f"mention differs: its tokens are {text[start:end]!r}, its column has"
            f" {written!r}"
        )
    ids = _ids(marked.columns)
    if not ids and marked.columns[3] != _NIL:
        raise BadRecordError(
            f"no Wikipedia URL: expected it behind {marked.columns[3]!r}, or {_NIL}"
        )
    known = [entity_id for entity_id in ids if entity_id in entities]
    return jsonl.parse_mention(
        {
            "text": text,
            "start": start,
            "end": end,
            "gold": next(iter(known or ids), None),
        },
        entities,
    )


def detokenize(sentences: list[list[str]]) -> tuple[str, list[tuple[int, int]]]:
    """Makes a text of tokens, spaced as print does it.

    Closing punctuation, 's and n't follow without a space, opening brackets and
    currency signs are followed without one, and double quotes open and close in turn
    in each sentence. Sentences are set apart by a space.

    Returns:
      The text, and of each token its start and end.
    """
    pieces: list[str] = []
    spans: list[tuple[int, int]] = []
    length = 0
    for sentence in sentences:
        quoted = False
        glued = False
        for position, token in enumerate(sentence):
            closes = _CLOSING.fullmatch(token) is not None
            opens = _OPENING.fullmatch(token) is not None
            if token in ('"', "``", "''"):
                closes, opens = quoted, not quoted
                quoted = not quoted
            if length and not glued and not (closes and position):
                pieces.append(" ")
                length += 1
            pieces.append(token)
            spans.append((length, length + len(token)))
            length += len(token)
            glued = opens
    return "".join(pieces), spans

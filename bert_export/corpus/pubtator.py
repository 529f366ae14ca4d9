"""Reads corpora in PubTator's format: MedMentions, BC5CDR and others.

Format (https://github.com/chanzuckerberg/MedMentions,
https://github.com/JHnlp/BioCreative-V-CDR-Corpus): documents set apart by blank lines;
'PMID|t|TITLE', 'PMID|a|ABSTRACT', then a line an annotation, its columns set apart by
tabs: PMID, start, end, mention, type, entity id, and where a composite mention has ids
'D058186|D017093', its parts 'renal failure|hepatic failure'. Offsets count characters
of title and abstract joined by one space. The id -1 is NIL. Lines of four columns are
relations ('PMID CID D000082 D000138').
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import re
from collections.abc import Iterator

from bert_export.config import CorpusConfig
from bert_export.corpus import jsonl
from bert_export.corpus.jsonl import BadRecordError
from bert_export.corpus.records import BadRecords, Entity, Mention
from bert_export.corpus.sources import (
    Source,
    cut,
    mention_files,
    named_file,
    own_entities,
    text_lines,
)
from bert_export.corpus.splits import SPLITS, split_of
from bert_export.errors import UserError

_TITLE = re.compile(r"([^|\t]+)\|t\|(.*)")
_ABSTRACT = re.compile(r"([^|\t]+)\|a\|(.*)")
# MedMentions ST21pv writes 'UMLS:C0010674'.
_PREFIX = re.compile(r"(?:UMLS|MESH):", re.IGNORECASE)
_NIL = ("-1", "-")

_UNSEEN = "mentions of entities that train does not name, now NIL"
_COMPOSITE = "composite mentions, or parts of them, not found as such; left out"
_PARTS = "parts of composite mentions, now mentions of their own"
_UNLISTED = "documents in none of pubtator_pmids, left out"


@dataclasses.dataclass(frozen=True)
class _Annotation:
    line: int  # in the file
    start: int
    end: int
    type: str
    id: str | None  # None: NIL


@dataclasses.dataclass(frozen=True)
class _Document:
    pmid: str
    text: str
    rows: list[tuple[int, list[str]]]  # line number and columns


def read_pubtator(config: CorpusConfig, bad: BadRecords) -> Source:
    """Opens a corpus in PubTator's format.

    Args:
      config: `mentions`, with `dev_mentions` and `test_mentions` (BC5CDR's three
        files), or alone: then `pubtator_pmids` names lists of the PMIDs of train, dev
        and test, one a line (MedMentions' corpus_pubtator_pmids_*.txt), or else the
        hash of a PMID tells its split. `entities` may be JSON Lines of ours; without
        it, entities are what train mentions: the commonest mention is the name, others
        are aliases, the type is also the description, and what train does not mention
        is NIL. `context_words` are kept on both sides of a mention.
      bad: Is told of the bad records.

    Raises:
      UserError: A file cannot be read or has nothing, or too many records are bad.
    """
    files = mention_files(config)
    listed = _listed_splits(config.pubtator_pmids) if config.pubtator_pmids else None

    def split_documents(
        notes: collections.Counter[str], only: str | None = None
    ) -> Iterator[tuple[str, pathlib.Path, _Document]]:
        for file_split, path in files.items():
            if only and file_split and file_split != only:
                continue
            for document in _documents(path, bad):
                if file_split is not None:
                    split = file_split
                elif listed is None:
                    split = split_of(
                        document.pmid, config.dev_fraction, config.test_fraction
                    )
                elif document.pmid in listed:
                    split = listed[document.pmid]
                else:
                    notes[_UNLISTED] += 1
                    continue
                if only is None or split == only:
                    yield split, path, document

    own = config.entities is not None
    if own:
        entities = own_entities(config.entities, bad)
    else:
        named = _Names()
        unused: collections.Counter[str] = collections.Counter()
        for _, path, document in split_documents(unused, only="train"):
            for annotation in _annotations(document, path, bad, unused):
                named.add(document.text, annotation)
        entities = named.entities()
    notes: collections.Counter[str] = collections.Counter()

    def mentions() -> Iterator[tuple[str | None, Mention]]:
        for split, path, document in split_documents(notes):
            for annotation in _annotations(document, path, bad, notes):
                gold = annotation.id
                if gold is not None and gold not in entities:
                    gold = _PREFIX.sub("", gold)
                    if gold not in entities and not own:
                        gold = None
                        notes[_UNSEEN] += 1
                fields = {
                    "text": document.text,
                    "start": annotation.start,
                    "end": annotation.end,
                    "gold": gold,
                }
                try:
                    mention = jsonl.parse_mention(fields, entities)
                except BadRecordError as error:
                    bad.add(path, annotation.line, str(error))
                else:
                    yield split, cut(mention, config.context_words)

    return Source(entities, mentions(), notes)


class _Names:
    """What the mentions of training call each entity."""

    def __init__(self) -> None:
        self._surfaces: dict[str, collections.Counter[str]] = {}
        self._types: dict[str, dict[str, None]] = {}

    def add(self, text: str, annotation: _Annotation) -> None:
        if annotation.id is not None:
            entity_id = _PREFIX.sub("", annotation.id)
            surface = text[annotation.start : annotation.end]
            self._surfaces.setdefault(entity_id, collections.Counter())[surface] += 1
            self._types.setdefault(entity_id, {})[annotation.type] = None

    def entities(self) -> dict[str, Entity]:
        found = {}
        for entity_id, surfaces in self._surfaces.items():
            name, *aliases = (surface for surface, _ in surfaces.most_common())
            types = [kind for kind in self._types[entity_id] if kind.strip()]
            found[entity_id] = Entity(
                entity_id,
                name,
                tuple(aliases),
                ", ".join(types),
                types[0] if types else None,
            )
        return found


def _listed_splits(paths: tuple[str, ...]) -> dict[str, str]:
    """The split of each PMID by the three lists."""
    listed: dict[str, str] = {}
    for split, name in zip(SPLITS, paths):
        path = named_file("pubtator_pmids", name)
        strict = BadRecords()
        for number, line in text_lines(path, strict):
            pmid = line.strip()
            if not pmid:
                continue
            if listed.setdefault(pmid, split) != split:
                raise UserError(
                    f"{path}:{number}: the document {pmid} is in the list of"
                    f" {listed[pmid]}, too; splits must not share documents"
                )
    return listed


def _documents(path: pathlib.Path, bad: BadRecords) -> Iterator[_Document]:
    """Yields the documents; one without title and abstract is left out whole."""
    for block in _blocks(path, bad):
        (number, line), *rest = block
        title = _TITLE.fullmatch(line)
        abstract = _ABSTRACT.fullmatch(rest[0][1]) if rest else None
        if title is None:
            expected, found = "PMID|t|TITLE", line
        elif abstract is None or abstract[1] != title[1]:
            number, found = rest[0] if rest else (number, "the end of the document")
            expected = f"{title[1]}|a|ABSTRACT"
        else:
            rows = [(number, line.split("\t")) for number, line in rest[1:]]
            yield _Document(title[1], f"{title[2]} {abstract[2]}", rows)
            continue
        bad.add(
            path,
            number,
            f"wrong layout: expected {expected}, found {found[:60]!r}; the document is"
            " left out",
        )


def _blocks(path: pathlib.Path, bad: BadRecords) -> Iterator[list[tuple[int, str]]]:
    """Yields the numbered lines of each document."""
    block: list[tuple[int, str]] = []
    for number, ended in text_lines(path, bad):
        line = ended.rstrip("\r\n")
        if block and (not line.strip() or _TITLE.fullmatch(line)):
            yield block
            block = []
        if line.strip():
            block.append((number, line))
    if block:
        yield block


def _annotations(
    document: _Document,
    path: pathlib.Path,
    bad: BadRecords,
    notes: collections.Counter[str],
) -> Iterator[_Annotation]:
    """Yields a document's annotations; composite ones part by part."""
    for number, columns in document.rows:
        if len(columns) == 4 and not columns[1].isdigit():
            continue  # a relation
        try:
            yield from _parse_row(document, number, columns, notes)
        except BadRecordError as error:
            bad.add(path, number, str(error))


def _parse_row(
    document: _Document,
    number: int,
    columns: list[str],
    notes: collections.Counter[str],
) -> Iterator[_Annotation]:
    if len(columns) not in (6, 7) or columns[0] != document.pmid:
        raise BadRecordError(
            f"wrong columns: expected {document.pmid}, start, end, mention, type and"
            f" entity id, set apart by tabs; found {columns[:7]}"
        )
    surface, kind, entity_id = columns[3], columns[4], columns[5].strip()
    if not (columns[1].isdecimal() and columns[2].isdecimal()):
        raise BadRecordError(
            f"wrong columns: {columns[1]!r} and {columns[2]!r} are no offsets"
        )
    start, end = int(columns[1]), int(columns[2])
    found = document.text[start:end]
    if not found.strip() or found != surface:
        raise BadRecordError(
            f"text differs: {start}..{end} is {found!r}, the mention is {surface!r}"
        )
    if not entity_id:
        raise BadRecordError("no entity id: expected one, or -1, in the sixth column")
    if "|" not in entity_id:
        known = None if entity_id in _NIL else entity_id
        yield _Annotation(number, start, end, kind, known)
        return
    ids = entity_id.split("|")
    parts = columns[6].split("|") if len(columns) == 7 and columns[6] else []
    if len(parts) != len(ids):
        notes[_COMPOSITE] += 1
        return
    for part, part_id in zip(parts, ids):
        position = surface.find(part) if part.strip() else -1
        if position < 0:
            notes[_COMPOSITE] += 1
            continue
        notes[_PARTS] += 1
        first = start + position
        known = None if part_id in _NIL else part_id
        yield _Annotation(number, first, first + len(part), kind, known)

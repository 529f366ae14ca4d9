"""Reads the corpus of CCKS 2019's task 2, entity linking in short Chinese texts.

Format: https://www.biendata.xyz/competition/ccks_2019_el; JSON Lines throughout.
`kb_data` has entities: subject_id, subject, alias, type (a list, or a string with '|'
between several) and data, a list of predicate and object. `train.json` has texts:
text_id, text and mention_data, a list of kb_id, mention and offset, a character
position written as a string. CCKS 2020 (DuEL 2.0) keeps these fields and writes
NIL_Person where 2019 has NIL.
"""

from __future__ import annotations

import collections
import unicodedata
from collections.abc import Iterator
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
)
from bert_export.errors import UserError

_SUMMARY = "摘要"
# Characters that an offset may be off where the mention occurs more than once.
_NEAR = 8
# What NFKC leaves apart and annotators take for the same.
_SAME = str.maketrans(
    {
        **dict.fromkeys("“”„‟«»〝〞「」『』", '"'),
        **dict.fromkeys("‘’‚‛`´", "'"),
        **dict.fromkeys("《〈", "<"),
        **dict.fromkeys("》〉", ">"),
        **dict.fromkeys("•・‧∙⋅", "·"),
        **dict.fromkeys("‐‑‒–—―−", "-"),
        "。": ".",
        "、": ",",
        "【": "[",
        "】": "]",
    }
)


def read_ccks(config: CorpusConfig, bad: BadRecords) -> Source:
    """Opens a CCKS corpus.

    An entity's description is its summary (摘要), then 'predicate：object' for all
    other facts in their order; its type is the first one listed. A mention that is
    not in the text at its offset is looked for nearby, then without regard to case,
    width, white space and punctuation; the notes count these repairs.

    Args:
      config: `entities` is kb_data, `mentions` is train.json; `dev_mentions` and
        `test_mentions` may name other files of its format.
      bad: Is told of the bad records, among them mentions beyond repair.

    Raises:
      UserError: A file cannot be read or has nothing, or too many records are bad.
    """
    path = named_file("entities", config.entities)
    files = mention_files(config)
    entities: dict[str, Entity] = {}
    for number, record in jsonl.read_objects(path, bad):
        try:
            add_entity(entities, _entity(record))
        except BadRecordError as error:
            bad.add(path, number, str(error))
    if not entities:
        raise UserError(
            f"{path}: no entities in it; expected kb_data of CCKS, JSON Lines with"
            " subject_id, subject and data"
        )
    notes: collections.Counter[str] = collections.Counter()

    def mentions() -> Iterator[tuple[str | None, Mention]]:
        for split, file in files.items():
            for number, record in jsonl.read_objects(file, bad):
                try:
                    text = jsonl.string_field(record, "text")
                    annotations = _objects(record, "mention_data")
                except BadRecordError as error:
                    bad.add(file, number, str(error))
                    continue
                for annotation in annotations:
                    try:
                        yield split, _mention(text, annotation, entities, notes)
                    except BadRecordError as error:
                        bad.add(file, number, str(error))

    return Source(entities, mentions(), notes)


def _entity(record: dict[str, Any]) -> Entity:
    name = jsonl.string_field(record, "subject")
    aliases = jsonl.string_tuple("alias", record.get("alias") or [])
    facts = [
        tuple(
            " ".join(jsonl.string_field(fact, field).split())
            for field in ("predicate", "object")
        )
        for fact in _objects(record, "data")
    ]
    summary = [value for predicate, value in facts if predicate == _SUMMARY]
    others = [f"{key}：{value}" for key, value in facts if key != _SUMMARY and value]
    written = record.get("type") or []
    types = (
        written.split("|")
        if isinstance(written, str)
        else jsonl.string_tuple("type", written)
    )
    return jsonl.parse_entity(
        {
            "id": jsonl.id_field(record, "subject_id"),
            "name": name,
            "aliases": [
                alias
                for alias in dict.fromkeys(aliases)
                if alias.strip() and alias != name
            ],
            "description": " ".join(
                [*filter(None, summary), "；".join(others)]
            ).strip(),
            "type": next((kind.strip() for kind in types if kind.strip()), None),
        }
    )


def _mention(
    text: str,
    annotation: dict[str, Any],
    entities: dict[str, Entity],
    notes: collections.Counter[str],
) -> Mention:
    surface = jsonl.string_field(annotation, "mention")
    written = jsonl.get_field(annotation, "offset")
    try:
        offset = int(jsonl.id_field(annotation, "offset"))
    except ValueError:  # BadRecordError is one
        raise BadRecordError(
            jsonl.mistyped("offset", "a number in a string", written)
        ) from None
    gold = jsonl.id_field(annotation, "kb_id")
    start, end, repair = locate(text, surface, offset)
    mention = jsonl.parse_mention(
        {
            "text": text,
            "start": start,
            "end": end,
            "gold": None if gold == "NIL" or gold.startswith("NIL_") else gold,
        },
        entities,
    )
    if repair:
        notes[repair] += 1
    return mention


def locate(text: str, surface: str, offset: int) -> tuple[int, int, str | None]:
    """Finds a mention that an annotation names by its characters and its offset.

    In this order: as it is at the offset; as it is elsewhere; with case, width, white
    space and kinds of punctuation marks ignored; with all punctuation ignored. Each
    time the occurrence nearest to the offset is taken. It must be within a few
    characters, or be the only one, and no other may be as near.

    Args:
      text: The text.
      surface: The mention as the annotation has it.
      offset: Where it should start, in code points.

    Returns:
      Start, end, and what had to be repaired, or None.

    Raises:
      BadRecordError: It is not found, or more than one place is as good.
    """
    if surface and text[max(offset, 0) :].startswith(surface) and offset >= 0:
        return offset, offset + len(surface), None
    for repair, spans in (
        ("mention moved to where the text has it", _exact(text, surface)),
        (
            "mention differed in case, width, white space or punctuation",
            _folded(text, surface, punctuation=True)
            or _folded(text, surface, punctuation=False),
        ),
    ):
        if not spans:
            continue
        spans.sort(key=lambda span: abs(span[0] - offset))
        start, end = spans[0]
        distance = abs(start - offset)
        others = [abs(other - offset) for other, _ in spans[1:]]
        if others and (distance > _NEAR or others[0] == distance):
            raise BadRecordError(
                f"mention not at its offset: {surface!r} is not at {offset}, and"
                f" occurs {len(spans)} times elsewhere"
            )
        return start, end, repair
    raise BadRecordError(
        f"mention not in the text: {surface!r} at {offset}, where the text has"
        f" {text[max(offset, 0) : max(offset, 0) + len(surface)]!r}"
    )


def _exact(text: str, surface: str) -> list[tuple[int, int]]:
    spans = []
    start = text.find(surface) if surface else -1
    while start >= 0:
        spans.append((start, start + len(surface)))
        start = text.find(surface, start + 1)
    return spans


def _folded(text: str, surface: str, punctuation: bool) -> list[tuple[int, int]]:
    """Spans of the text that equal the mention once both are folded."""
    wanted = "".join(_fold(character, punctuation) for character in surface)
    if not wanted:
        return []
    pieces: list[str] = []
    starts: dict[int, int] = {}  # of a character, by where its folded form starts
    ends: dict[int, int] = {}  # after a character, by where its folded form ends
    length = 0
    for index, character in enumerate(text):
        folded = _fold(character, punctuation)
        if folded:
            pieces.append(folded)
            starts[length] = index
            length += len(folded)
            ends[length] = index + 1
    found = _exact("".join(pieces), wanted)
    return [(starts[s], ends[e]) for s, e in found if s in starts and e in ends]


def _fold(character: str, punctuation: bool) -> str:
    folded = unicodedata.normalize("NFKC", character).casefold().translate(_SAME)
    return "".join(
        piece
        for piece in folded
        if not piece.isspace() and (punctuation or not _is_mark(piece))
    )


def _is_mark(character: str) -> bool:
    # '<' stands for 《; Unicode has it among the signs of mathematics.
    return character in "<>`|~" or unicodedata.category(character).startswith("P")


def _objects(record: dict[str, Any], field: str) -> list[dict[str, Any]]:
    value = jsonl.get_field(record, field)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise BadRecordError(jsonl.mistyped(field, "a list of objects", value))
    return value

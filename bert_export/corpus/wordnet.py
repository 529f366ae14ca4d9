"""Builds an entity-linking corpus from the WordNet dict files.

Formats: wndb(5WN). A synset is an entity; a usage example in its gloss that contains
one of its lemmas is a mention of it; the candidates are all synsets of that lemma and
part of speech.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator

from absl import logging

from bert_export.corpus import gcide, wordnet_files
from bert_export.corpus.lemmas import Token, find_lemma, tokens_of
from bert_export.corpus.morphy import Morphy, read_exceptions
from bert_export.corpus.records import Entity, Mention
from bert_export.corpus.senses import (
    SenseCorpus,
    keep_texts_apart,
    leave_out_held_out,
)
from bert_export.corpus.splits import SPLITS, split_of
from bert_export.errors import UserError
from bert_export.files import sha256_file

# Part of speech by file name, and its letter in ids and pointers.
POS = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}

# Rises whenever the same WordNet files would give another corpus.
_VERSION = 3

# Names of the lexicographer files by number: lexnames(5WN).
_LEXICOGRAPHER_FILES = (
    "adj.all",
    "adj.pert",
    "adv.all",
    "noun.Tops",
    "noun.act",
    "noun.animal",
    "noun.artifact",
    "noun.attribute",
    "noun.body",
    "noun.cognition",
    "noun.communication",
    "noun.event",
    "noun.feeling",
    "noun.food",
    "noun.group",
    "noun.location",
    "noun.motive",
    "noun.object",
    "noun.person",
    "noun.phenomenon",
    "noun.plant",
    "noun.possession",
    "noun.process",
    "noun.quantity",
    "noun.relation",
    "noun.shape",
    "noun.state",
    "noun.substance",
    "noun.time",
    "verb.body",
    "verb.change",
    "verb.cognition",
    "verb.communication",
    "verb.competition",
    "verb.consumption",
    "verb.contact",
    "verb.creation",
    "verb.emotion",
    "verb.motion",
    "verb.perception",
    "verb.possession",
    "verb.social",
    "verb.stative",
    "verb.weather",
    "adj.ppl",
)

# Syntactic marker of an adjective: wndb(5WN), "word".
_MARKER = re.compile(r"\((?:p|a|ip)\)$")
# What may stand before the quote that opens the first example.
_BEFORE_EXAMPLE = (";", ":", ",", ".", ")")


@dataclasses.dataclass(frozen=True, slots=True)
class Synset:
    """A set of synonyms with its definition and usage examples."""

    id: str
    lemmas: tuple[str, ...]  # blanks, not underscores
    definition: str
    examples: tuple[str, ...]
    related: tuple[str, ...]  # ids of the synsets it points to, of whatever kind
    type: str  # its lexicographer file, such as 'noun.animal'


@dataclasses.dataclass(frozen=True, slots=True)
class Words:
    """The lemmas of a part of speech."""

    senses: dict[str, tuple[str, ...]]  # ids by lemma in lower case, in sense order
    morphy: Morphy


def build_wordnet(
    wordnet_dir: str | os.PathLike[str] | None,
    cache_dir: pathlib.Path | None,
    out_dir: pathlib.Path,
    dev_fraction: float = 0.1,
    test_fraction: float = 0.1,
    definitions: bool = False,
    synonyms: bool = False,
    gcide_file: str | os.PathLike[str] | None = None,
) -> dict[str, object]:
    """Writes entities.jsonl.gz, mentions.{train,dev,test}.jsonl.gz and wordnet.json.

    With `gcide_file` there is also training_entities.jsonl.gz.

    Args:
      wordnet_dir: Directory of data.* and index.*; None looks for one.
      cache_dir: Where a fetched WordNet is kept; None means the user's cache.
      out_dir: Is made if it does not exist. Not rebuilt from unchanged input.
      dev_fraction: Part of the synsets whose examples go to dev.
      test_fraction: Part of the synsets whose examples go to test.
      definitions: Also make training mentions of definitions that name a related
        synset; see `_definition_mentions`.
      synonyms: Also make training mentions of examples in which a synonym stands in
        for the lemma; see `_synonym_mentions`.
      gcide_file: Also make training mentions of the quotations in this file of GCIDE,
        whose senses are then further entities; see `gcide.training_corpus`.

    Returns:
      What wordnet.json holds: the fingerprint of the input and the corpus's counts.

    Raises:
      UserError: WordNet is not there, or its files are damaged.
    """
    directory = wordnet_files.find(wordnet_dir, cache_dir, near=out_dir)
    names = wordnet_files.NAMES + wordnet_files.OPTIONAL_NAMES
    digest = hashlib.sha256(
        json.dumps(
            [_VERSION, dev_fraction, test_fraction, definitions, synonyms]
        ).encode()
    )
    for name in names:
        if (directory / name).exists():
            digest.update(f"{name} {sha256_file(directory / name)}\n".encode())
    if gcide_file is not None:
        digest.update(f"gcide {gcide.VERSION} {sha256_file(gcide_file)}".encode())
    fingerprint = digest.hexdigest()

    corpus = SenseCorpus(out_dir, "wordnet.json")
    if known := corpus.known(fingerprint):
        return known

    logging.info("building the WordNet corpus from %s", directory)
    words = {}
    synsets: dict[str, Synset] = {}
    for pos in POS:
        found = _read_data(directory / f"data.{pos}", pos)
        words[POS[pos]] = Words(
            _read_index(directory / f"index.{pos}", pos, found),
            Morphy(pos, read_exceptions(directory / f"{pos}.exc")),
        )
        synsets |= found
    splits = {id: split_of(id, dev_fraction, test_fraction) for id in synsets}
    mentions: dict[str, list[Mention]] = {split: [] for split in SPLITS}
    for synset in synsets.values():
        mentions[splits[synset.id]].extend(_mentions(synset, words[synset.id[0]]))
    held_out = {m.text.casefold() for m in mentions["dev"] + mentions["test"]}
    for synset in synsets.values():
        if definitions:
            mentions["train"].extend(_definition_mentions(synset, synsets, words))
        if synonyms:
            mentions["train"].extend(
                _synonym_mentions(synset, words[synset.id[0]], held_out)
            )
    mentions["train"] = leave_out_held_out(mentions["train"], splits)
    training_entities = None
    if gcide_file is not None:
        training_entities, quotations = gcide.training_corpus(
            gcide.read_senses(pathlib.Path(gcide_file)),
            {pos: own.morphy for pos, own in words.items()},
            held_out,
        )
        mentions["train"].extend(quotations)
    dropped = keep_texts_apart(mentions, str.casefold)
    return corpus.write(
        {
            "fingerprint": fingerprint,
            "source": _version(directory),
            "shared_text_dropped": dropped,
        },
        (
            Entity(
                synset.id,
                synset.lemmas[0],
                synset.lemmas[1:],
                synset.definition,
                synset.type,
            )
            for synset in synsets.values()
        ),
        mentions,
        training_entities,
    )


def _read_data(path: pathlib.Path, pos: str) -> dict[str, Synset]:
    """Reads a data file: synsets by id, in the file's order."""
    synsets = {}
    position = 0
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            offset, position = position, position + len(line)
            if line.startswith(b"  "):  # the licence
                continue
            try:
                synset = _parse_synset(line, offset, pos)
            except (ValueError, IndexError) as error:
                raise UserError(
                    f"{path}:{number}: damaged WordNet file ({error}); get it anew"
                ) from None
            synsets[synset.id] = synset
    if not synsets:
        raise UserError(f"{path}: no synsets in it; get the WordNet files anew")
    return synsets


def _parse_synset(line: bytes, offset: int, pos: str) -> Synset:
    """Parses a line of a data file, which must start at byte `offset` of it."""
    if not line.endswith(b"\n"):
        raise ValueError("the line is cut short")
    head, bar, gloss = line.decode("utf-8").partition("| ")
    fields = head.split()
    if not bar or fields[0] != f"{offset:08d}":
        raise ValueError(
            f"expected a synset of offset {offset:08d}, found {line[:20]!r}"
        )
    words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
    if not words or len(words) != int(fields[3], 16):
        raise ValueError(f"expected {fields[3]} words (hexadecimal)")
    lemmas = [_MARKER.sub("", word).replace("_", " ") for word in words]
    # Four fields a pointer: symbol, offset, part of speech, source and target word.
    first = 4 + 2 * len(words) + 1
    pointers = fields[first : first + 4 * int(fields[first - 1])]
    related = dict.fromkeys(
        pos.replace("s", "a") + offset
        for offset, pos in zip(pointers[1::4], pointers[2::4])
    )
    definition, examples = split_gloss(gloss)
    return Synset(
        _synset_id(fields[0], pos),
        tuple(dict.fromkeys(lemmas)),
        definition,
        examples,
        tuple(related),
        _LEXICOGRAPHER_FILES[int(fields[1])],
    )


def _synset_id(offset: str, pos: str) -> str:
    """'n02084071': the part of speech and the offset, one id for each synset.

    Satellite adjectives are in data.adj, too, and count as adjectives.
    """
    return POS[pos] + offset


def _read_index(
    path: pathlib.Path, pos: str, synsets: dict[str, Synset]
) -> dict[str, tuple[str, ...]]:
    """Reads an index file: synset ids by lemma (lower case), in sense order."""
    senses = {}
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.startswith(b"  "):
                continue
            try:
                fields = line.decode("utf-8").split()
                count = int(fields[2])
                ids = tuple(_synset_id(offset, pos) for offset in fields[-count:])
                if not count or len(fields) < 6 + count:
                    raise ValueError(f"expected {fields[2]} synset offsets")
                for synset_id in ids:
                    if synset_id not in synsets:
                        raise ValueError(
                            f"data.{pos} has no synset at offset {synset_id[1:]}"
                        )
            except (ValueError, IndexError) as error:
                raise UserError(
                    f"{path}:{number}: damaged WordNet file ({error}); get it anew"
                ) from None
            senses[fields[0].replace("_", " ")] = ids
    return senses


def split_gloss(gloss: str) -> tuple[str, tuple[str, ...]]:
    """Splits a gloss into its definition and its quoted usage examples.

    Examples start at the first quote outside parentheses that follows punctuation;
    'the phrase "make strides"' is part of the definition. What stands between and
    after the examples is their attribution ('- Shakespeare') and is left out. Where
    quotes do not pair off, as in a score of glosses, no example is trusted.
    """
    gloss = gloss.strip()
    parts = gloss.split('"')
    before = parts[0]
    for index in range(1, len(parts)):
        stem = before.rstrip()
        outside = before.count("(") <= before.count(")")
        # Quotes inside the definition come in pairs, so an example opens at an odd
        # index.
        if index % 2 and outside and (not stem or stem.endswith(_BEFORE_EXAMPLE)):
            balanced = len(parts) % 2 == 1
            examples = [" ".join(part.split()) for part in parts[index::2]]
            definition = stem.removesuffix("e.g.").rstrip(" ;:,")
            return definition, tuple(filter(None, examples)) if balanced else ()
        before += '"' + parts[index]
    return gloss.rstrip(" ;"), ()


def _mentions(synset: Synset, words: Words) -> Iterator[Mention]:
    """Yields an ambiguous mention for each example and each lemma found in it."""
    for example in dict.fromkeys(synset.examples):
        spans = set()
        for mention in _mentions_of(synset, example, tokens_of(example), words):
            span = mention.start, mention.end
            if span not in spans:
                spans.add(span)
                yield mention


def _definition_mentions(
    synset: Synset, synsets: dict[str, Synset], words: dict[str, Words]
) -> Iterator[Mention]:
    """Yields the words of a definition whose sense the synset's pointers tell.

    The hypernym of 'bank' is the synset of 'financial institution, financial
    organization', and its definition reads 'a financial institution that accepts
    deposits': distant supervision (Mintz et al. 2009, https://aclanthology.org/
    P09-1113), with WordNet's own pointers for the relations. The text is 'LEMMA:
    DEFINITION'. Words that could be two of the related synsets are left out.
    """
    title = f"{synset.lemmas[0]}: "
    text = title + synset.definition
    tokens = [token for token in tokens_of(text) if token[1] >= len(title)]
    found: dict[tuple[int, int], list[Mention]] = {}
    for related in synset.related:
        if related in synsets and related != synset.id:
            spans = {
                (mention.start, mention.end): mention
                for mention in _mentions_of(
                    synsets[related], text, tokens, words[related[0]]
                )
            }
            for span, mention in spans.items():
                found.setdefault(span, []).append(mention)
    for mentions in found.values():
        if len(mentions) == 1:
            yield mentions[0]


def _synonym_mentions(
    synset: Synset, words: Words, held_out: set[str]
) -> Iterator[Mention]:
    """Yields the synset's examples with each other lemma of it in the lemma's place.

    'I have a car' also reads 'I have an auto', which competes with other synsets.
    Only a lemma that stands there uninflected is replaced, and nothing is made of
    the texts (case-folded) of `held_out`.
    """
    for example in dict.fromkeys(synset.examples):
        if example.casefold() in held_out:
            continue
        tokens = tokens_of(example)
        for lemma in synset.lemmas:
            span = find_lemma(lemma, example, tokens, words.morphy)
            if not span or example[slice(*span)].lower() != lemma.lower():
                continue
            for synonym in synset.lemmas:
                candidates = words.senses.get(synonym.lower(), ())
                if synonym == lemma or synset.id not in candidates:
                    continue
                start, end = span
                text = example[:start] + synonym + example[end:]
                yield Mention(text, start, start + len(synonym), synset.id, candidates)


def _mentions_of(
    synset: Synset, text: str, tokens: list[Token], words: Words
) -> Iterator[Mention]:
    """Yields an ambiguous mention of `synset` for each of its lemmas in a text."""
    for lemma in synset.lemmas:
        candidates = words.senses.get(lemma.lower(), ())
        if len(candidates) < 2 or synset.id not in candidates:
            continue
        span = find_lemma(lemma, text, tokens, words.morphy)
        if span:
            yield Mention(text, *span, synset.id, candidates)


def _version(directory: pathlib.Path) -> str:
    """The version as the licence at the top of data.noun has it, e.g. 'WordNet 3.0'."""
    with open(directory / "data.noun", encoding="utf-8") as file:
        found = re.search(r"WordNet \d[\d.]*\d", file.read(4000))
    return found.group() if found else "WordNet"

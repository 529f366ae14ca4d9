"""Builds an entity-linking corpus from KeNet, the Turkish WordNet.

KeNet (Bakay et al. 2021, https://aclanthology.org/2021.gwc-1.19) is one XML file of
synsets: ID, SYNONYM with a LITERAL and its SENSE number for each lemma, POS, SR
(pointers), DEF and EXAMPLE (several are set apart by '|'). A synset is an entity; an
example that contains one of its lemmas is a mention of it; the candidates are all
synsets of that lemma in the order of their sense numbers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import os
import pathlib
from collections.abc import Iterator
from xml.etree import ElementTree

from absl import logging

from bert_export.corpus.records import Entity, Mention
from bert_export.corpus.senses import (
    SenseCorpus,
    keep_texts_apart,
    leave_out_held_out,
)
from bert_export.corpus.splits import SPLITS, split_of
from bert_export.corpus.turkish import Token, find_lemma, fold, tokens_of
from bert_export.errors import UserError
from bert_export.files import sha256_file

# Rises whenever the same file would give another corpus.
_VERSION = 1

_PACKAGE = "nlptoolkit-wordnet"
_FILE = pathlib.Path("WordNet", "data", "turkish_wordnet.xml")


@dataclasses.dataclass(frozen=True, slots=True)
class Synset:
    """A set of synonyms with its definition and usage examples."""

    id: str
    lemmas: tuple[str, ...]
    senses: tuple[int, ...]  # the sense number of each lemma
    pos: str  # n, v, a(djective), b (adverb), i(nterjection), ...
    definition: str
    examples: tuple[str, ...]
    related: tuple[str, ...]  # ids of the synsets it points to, of whatever kind


def build_kenet(
    path: str | os.PathLike[str] | None,
    out_dir: pathlib.Path,
    dev_fraction: float = 0.1,
    test_fraction: float = 0.1,
    definitions: bool = False,
) -> dict[str, object]:
    """Writes entities.jsonl.gz, mentions.{train,dev,test}.jsonl.gz and kenet.json.

    Args:
      path: KeNet's turkish_wordnet.xml; None takes that of the installed Python
        package nlptoolkit-wordnet.
      out_dir: Is made if it does not exist. Not rebuilt from unchanged input.
      dev_fraction: Part of the synsets whose examples go to dev.
      test_fraction: Part of the synsets whose examples go to test.
      definitions: Also make training mentions of definitions that name a related
        synset, see `_definition_mentions`.

    Returns:
      What kenet.json holds: the fingerprint of the input and the corpus's counts.

    Raises:
      UserError: KeNet is not there, or its file is damaged.
    """
    source = find(path)
    digest = hashlib.sha256(
        json.dumps([_VERSION, dev_fraction, test_fraction, definitions]).encode()
    )
    digest.update(sha256_file(source).encode())
    fingerprint = digest.hexdigest()

    corpus = SenseCorpus(out_dir, "kenet.json")
    if known := corpus.known(fingerprint):
        return known

    logging.info("building the KeNet corpus from %s", source)
    synsets = {synset.id: synset for synset in read_synsets(source)}
    senses = _senses(synsets)
    splits = {id: split_of(id, dev_fraction, test_fraction) for id in synsets}
    mentions: dict[str, list[Mention]] = {split: [] for split in SPLITS}
    for synset in synsets.values():
        mentions[splits[synset.id]].extend(_example_mentions(synset, senses))
        if definitions:
            mentions["train"].extend(_definition_mentions(synset, synsets, senses))
    mentions["train"] = leave_out_held_out(mentions["train"], splits)
    mentions = {
        split: [m for m in found if len(m.candidates or ()) > 1]
        for split, found in mentions.items()
    }
    dropped = keep_texts_apart(mentions, fold)
    return corpus.write(
        {"fingerprint": fingerprint, "shared_text_dropped": dropped},
        (
            Entity(synset.id, synset.lemmas[0], synset.lemmas[1:], synset.definition)
            for synset in synsets.values()
        ),
        mentions,
    )


def find(path: str | os.PathLike[str] | None) -> pathlib.Path:
    """KeNet's file: the one that is named, or that of the installed package.

    Raises:
      UserError: There is none.
    """
    if path is not None:
        file = pathlib.Path(path).expanduser()
        if not file.is_file():
            raise UserError(f"config.corpus.kenet: there is no file {file}")
        return file
    package = importlib.util.find_spec(_FILE.parts[0])
    for directory in (package and package.submodule_search_locations) or ():
        file = pathlib.Path(directory).parent / _FILE
        if file.is_file():
            return file
    raise UserError(
        f"KeNet is not installed: pip install --no-deps {_PACKAGE}, or name its file "
        f"{_FILE.name} with --config.corpus.kenet=FILE"
    )


def read_synsets(path: pathlib.Path) -> Iterator[Synset]:
    """Yields the synsets of KeNet's XML file, in its order.

    Raises:
      UserError: The file is no XML, has no synsets, or has one without an id or a
        lemma.
    """
    seen: set[str] = set()
    try:
        for _, element in ElementTree.iterparse(path):
            if element.tag != "SYNSET":
                continue
            synset = _synset(element)
            if synset.id in seen:
                raise ValueError(f"the synset {synset.id} comes twice")
            seen.add(synset.id)
            yield synset
            element.clear()
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{path}: damaged KeNet file ({error}); get it anew") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    if not seen:
        raise UserError(f"{path}: no SYNSET in it; expected KeNet's XML")


def _synset(element: ElementTree.Element) -> Synset:
    synset_id = (element.findtext("ID") or "").strip()
    if not synset_id:
        raise ValueError("a SYNSET without an ID")
    lemmas: dict[str, int] = {}
    for literal in element.iter("LITERAL"):
        lemma = " ".join((literal.text or "").split())
        if lemma:
            try:
                lemmas.setdefault(lemma, int(literal.findtext("SENSE") or ""))
            except ValueError:
                raise ValueError(
                    f"the SENSE of {lemma!r} in {synset_id} is no number"
                ) from None
    if not lemmas:
        raise ValueError(f"the synset {synset_id} has no LITERAL")
    examples = (" ".join(e.split()) for e in element.findtext("EXAMPLE", "").split("|"))
    related = ((pointer.text or "").strip() for pointer in element.iter("SR"))
    return Synset(
        synset_id,
        tuple(lemmas),
        tuple(lemmas.values()),
        element.findtext("POS", ""),
        " ".join(element.findtext("DEF", "").split()),
        tuple(dict.fromkeys(filter(None, examples))),
        tuple(dict.fromkeys(filter(None, related))),
    )


def _senses(synsets: dict[str, Synset]) -> dict[str, tuple[str, ...]]:
    """Synset ids by lemma (folded), in the order of their sense numbers."""
    numbered: dict[str, dict[str, int]] = {}
    for synset in synsets.values():
        for lemma, sense in zip(synset.lemmas, synset.senses):
            numbered.setdefault(fold(lemma), {}).setdefault(synset.id, sense)
    return {
        lemma: tuple(sorted(ids, key=lambda id: (ids[id], id)))
        for lemma, ids in numbered.items()
    }


def _example_mentions(
    synset: Synset, senses: dict[str, tuple[str, ...]]
) -> Iterator[Mention]:
    """Yields a mention for each example and each lemma found in it."""
    for example in synset.examples:
        spans = set()
        for mention in _mentions_of(synset, example, tokens_of(example), senses):
            span = mention.start, mention.end
            if span not in spans:
                spans.add(span)
                yield mention


def _definition_mentions(
    synset: Synset, synsets: dict[str, Synset], senses: dict[str, tuple[str, ...]]
) -> Iterator[Mention]:
    """Yields the words of a definition whose sense the synset's pointers tell.

    As `wordnet` does it: the text is 'LEMMA: DEFINITION', and words that could be
    two of the related synsets are left out.
    """
    title = f"{synset.lemmas[0]}: "
    text = title + synset.definition
    tokens = [token for token in tokens_of(text) if token[1] >= len(title)]
    found: dict[tuple[int, int], list[Mention]] = {}
    for related in synset.related:
        if related in synsets and related != synset.id:
            spans = {
                (mention.start, mention.end): mention
                for mention in _mentions_of(synsets[related], text, tokens, senses)
            }
            for span, mention in spans.items():
                found.setdefault(span, []).append(mention)
    for mentions in found.values():
        if len(mentions) == 1:
            yield mentions[0]


def _mentions_of(
    synset: Synset, text: str, tokens: list[Token], senses: dict[str, tuple[str, ...]]
) -> Iterator[Mention]:
    """Yields a mention of `synset` for each of its lemmas in a text."""
    for lemma in synset.lemmas:
        span = find_lemma(lemma, synset.pos == "v", text, tokens)
        if span:
            yield Mention(text, *span, synset.id, senses[fold(lemma)])

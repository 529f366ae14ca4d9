r"""Reads the senses of the GCIDE dictionary, each with quotations that illustrate it.

The GNU Collaborative International Dictionary of English is Webster's of 1913, with
supplements. The file is Debian's gcide.dict.dz (package dict-gcide): plain text made
for people, laid out by its indentation.

    Bank \Bank\ (b[a^][ng]k), n. [OE. banke; akin to E. bench.]
       1. A mound, pile, or ridge of earth; as, a bank of clouds.
          [1913 Webster]

                They cast up a bank against the city. --2 Sam.
          [1913 Webster]
"""

from __future__ import annotations

import dataclasses
import gzip
import os
import pathlib
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping

from absl import logging

from bert_export.corpus import packages
from bert_export.corpus.lemmas import Token, find_lemma, tokens_of
from bert_export.corpus.morphy import Morphy
from bert_export.corpus.records import Entity, Mention
from bert_export.errors import UserError
from bert_export.files import user_cache

# Rises whenever the same file would give another corpus.
VERSION = 1

_PACKAGE = "dict-gcide"
_FILE = pathlib.Path("/usr/share/dictd/gcide.dict.dz")
_BY_HAND = f"""Get it by hand with
  apt-get install {_PACKAGE}            (puts it into {_FILE})
or name a copy of the file with --config.corpus.gcide=FILE."""

# Parts of speech of a header, as the letters of WordNet's ids.
_POS = {"n": "n", "v": "v", "a": "a", "p. a": "a", "adv": "r"}

# 'Bank bill \Bank" bill`\': the headword, then how it is spoken.
_HEADWORD = re.compile(r"([A-Za-z][^\\]*?) \\[^\\]*\\")
_PART_OF_SPEECH = re.compile(r"[\s,](n|v|a|p\. a|adv)\.")
# How the headword is spoken, which has brackets in it: '(b[a^][ng]k)'.
_PARENTHESES = re.compile(r"\([^)]*\)")
# What ends a header that needs no further line.
_HEADER_END = (".", "]", ")")
_NUMBERED = re.compile(r"^   \d+\. ", re.MULTILINE)
_LETTERED = re.compile(r"^(?: {3}| {6})\([a-z]\) ", re.MULTILINE)
# '(Law)', all that stands before senses (a), (b), ...
_LABEL = re.compile(r"\s*\([^)]*\)\s*")
# Phrases of the headword, synonyms and remarks come after all senses.
_AFTER_SENSES = re.compile(r"^   (?:\{|Syn:|Note:)", re.MULTILINE)
# Columns before the second line of a definition: of an entry's only sense, of sense 1
# and of sense (a). Quotations stand further to the right, by this at least.
_ONLY, _NUMBER, _LETTER_OF_NUMBER = 3, 6, 10
_QUOTATION_INDENT = 5

# '[1913 Webster]', '[Obs. or Prov. Eng.]', '[Colloq.]': sources, usage and regions
# begin with a capital or a digit; '[=a]' and the like are letters.
_REMARK = re.compile(r"\[(?:[A-Z1][^\[\]]{2,}|[A-Z]\.)\]")
# '["e]', '[e^]', '[ae]'.
_LETTER = re.compile(r"\[[\"'`^~=*,.-]?([A-Za-z]{1,2})[\"'`^~=*,.-]?\]")
# '"Banked well with earth." --Holland.'
_QUOTED = re.compile(r'"([^"]{8,200})"')
_SOURCE = re.compile(r"\s*--\s?\(?[A-Z0-9][^;]*$")
_SOURCES_WITHIN = re.compile(r"\s*--\s?[A-Z][a-z.]+(?:\s[A-Z][a-z.]+)*\.?")
_SENTENCE_END = re.compile(r"\.\s+(?=[A-Z])")
_AS = re.compile(r"[;,:] as, ")
# '-- {Ably}, adv.': words derived from the headword.
_DERIVED = re.compile(r"\s*--\s*\{.*")
# A definition that only points to another one tells nothing.
_REFERENCE = re.compile(r"(?:See|Same as)\b")
_QUOTATION_WORDS = range(2, 41)
_DEFINITION_WORDS = 2

# Senses that a mention's gold is told apart from are those next to it, since 'set' has
# over a hundred.
_MAX_CANDIDATES = 12
# Words in a row that two texts have in common only if one quotes the other.
_SHARED_WORDS = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Sense:
    """One meaning of a headword."""

    headword: str  # lower case
    pos: str  # n, v, a or r, as in WordNet
    definition: str
    quotations: tuple[str, ...]


def find(path: str | os.PathLike[str] | None) -> pathlib.Path:
    """Returns the file: the one named, else Debian's, else one fetched into the cache.

    Args:
      path: Names a file; None looks for one.

    Raises:
      UserError: It is not there, and cannot be fetched.
    """
    if path is not None:
        named = pathlib.Path(path).expanduser()
        if not named.is_file():
            raise UserError(f"{named}: no such file, expected GCIDE.\n{_BY_HAND}")
        return named
    cached = user_cache() / _FILE.name
    for place in (_FILE, cached):
        if place.is_file():
            return place
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=".gcide-", dir=cached.parent
        ) as temporary:
            root = packages.unpack_debian(_PACKAGE, pathlib.Path(temporary))
            os.replace(root / _FILE.relative_to("/"), cached)
    except packages.FAILURES as error:
        raise UserError(
            "GCIDE was not found and could not be fetched:\n"
            f"  {packages.describe(error)}\n{_BY_HAND}"
        ) from None
    logging.info("GCIDE was fetched into %s", cached)
    return cached


def training_corpus(
    senses: Iterable[Sense], morphy: Mapping[str, Morphy], held_out: Iterable[str]
) -> tuple[list[Entity], list[Mention]]:
    """Makes senses entities, and quotations with the headword mentions of them.

    The candidates are the headword's senses of that part of speech, whatever their
    origin; headwords with a single one are left out, and so is all that would be no
    mention's candidate. Quotations that share five words in a row with a held-out text
    are left out, too: WordNet and Webster quote the same books.

    Args:
      senses: In the dictionary's order.
      morphy: Inflections by part of speech: n, v, a and r.
      held_out: Texts that training must not see.
    """
    grams = {gram for text in held_out for gram in _grams(tokens_of(text))}
    headwords: dict[tuple[str, str], list[Sense]] = {}
    for sense in senses:
        headwords.setdefault((sense.headword, sense.pos), []).append(sense)
    entities: list[Entity] = []
    mentions: list[Mention] = []
    for (headword, pos), own in headwords.items():
        if len(own) < 2:
            continue
        ids = [f"gcide:{headword}:{pos}:{number}" for number in range(1, len(own) + 1)]
        used: set[str] = set()
        for number, sense in enumerate(own):
            first = max(
                0, min(number - _MAX_CANDIDATES // 2, len(own) - _MAX_CANDIDATES)
            )
            candidates = tuple(ids[first : first + _MAX_CANDIDATES])
            for text in sense.quotations:
                tokens = tokens_of(text)
                span = find_lemma(headword, text, tokens, morphy[pos])
                if span and grams.isdisjoint(_grams(tokens)):
                    mentions.append(Mention(text, *span, ids[number], candidates))
                    used.update(candidates)
        entities.extend(
            Entity(id, headword, (), sense.definition)
            for id, sense in zip(ids, own)
            if id in used
        )
    return entities, mentions


def _grams(tokens: list[Token]) -> set[tuple[str, ...]]:
    """All runs of `_SHARED_WORDS` words; of a shorter text, all of its words."""
    words = [word for word, _, _ in tokens]
    ends = range(_SHARED_WORDS, max(len(words), _SHARED_WORDS) + 1)
    return {tuple(words[end - _SHARED_WORDS : end]) for end in ends}


def read_senses(path: pathlib.Path) -> list[Sense]:
    """Reads all senses, in the file's order.

    Senses that GCIDE took over from WordNet are left out, since they would tell what
    held-out examples of WordNet mean. A headword may have several entries, by its part
    of speech or its origin.

    Args:
      path: gcide.dict.dz, or another file of its text compressed with gzip.

    Raises:
      UserError: The file cannot be read, or is not GCIDE's.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8", errors="replace") as lines:
            senses = [sense for entry in _entries(lines) for sense in _senses(entry)]
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read as GCIDE's text ({error})") from None
    if not senses:
        raise UserError(f"{path}: no entries of GCIDE in it, expected gcide.dict.dz")
    return senses


def _entries(lines: Iterator[str]) -> Iterator[list[str]]:
    """Yields the lines of each entry; its first is not indented, nor some remarks."""
    entry: list[str] = []
    for line in lines:
        line = line.rstrip()
        if line and not line[0].isspace() and line[0] != "[":
            if entry:
                yield entry
            entry = []
        entry.append(line)
    if entry:
        yield entry


def _senses(entry: list[str]) -> Iterator[Sense]:
    """Yields the senses of an entry that defines a noun, verb, adjective or adverb."""
    found = _HEADWORD.match(entry[0])
    if not found:
        return
    lines = 1
    # Header and definition look alike, so only the header's own form tells its end.
    while (
        lines < len(entry)
        and entry[lines]
        and not _NUMBERED.match(entry[lines])
        and not _is_whole_header("\n".join(entry[:lines]))
    ):
        lines += 1
    header = _PARENTHESES.sub("", " ".join(entry[:lines])[found.end() :])
    pos = _PART_OF_SPEECH.search(header.partition("[")[0])
    if not pos:
        return
    text = "\n".join(entry[lines:])
    if after := _AFTER_SENSES.search(text):
        text = text[: after.start()]
    headword = _plain(found[1]).lower()
    for indent, part in _split(text):
        if "WordNet" in part:
            continue
        definition, quotations = _parse(part, indent)
        if len(definition.split()) < _DEFINITION_WORDS:
            continue
        if not _REFERENCE.match(definition):
            yield Sense(headword, _POS[pos[1]], definition, quotations)


def _is_whole_header(header: str) -> bool:
    return header.count("[") == header.count("]") and header.endswith(_HEADER_END)


def _split(text: str) -> Iterator[tuple[int, str]]:
    """Yields each sense's indent and text: '1. ...', in it '(a) ...', or all of it."""
    first, *numbered = _NUMBERED.split(text)
    for part in numbered or [first]:
        head, *lettered = _LETTERED.split(part)
        label = head.strip() if lettered and _LABEL.fullmatch(head) else ""
        if head.strip() and not label:
            yield _NUMBER if numbered else _ONLY, head
        for letter in lettered:
            yield _LETTER_OF_NUMBER, f"{label} {letter}" if label else letter


def _parse(text: str, indent: int) -> tuple[str, tuple[str, ...]]:
    """A sense's definition, and its quotations in the order of the text."""
    definition: list[str] = []
    quotations: list[str] = []
    quoted: list[str] = []
    for line in [*text.split("\n"), ""]:
        if line and len(line) - len(line.lstrip()) >= indent + _QUOTATION_INDENT:
            quoted.append(line)
            continue
        if quoted:
            quotations.append(_SOURCE.sub("", _one_line(" ".join(quoted))))
            quoted = []
        definition.append(line)
    defined = _plain(_DERIVED.sub("", _one_line(" ".join(definition))))
    within = _QUOTED.findall(defined)
    defined = _SOURCES_WITHIN.sub("", _QUOTED.sub(" ", defined))
    quotations += within
    # 'A mound; as, a bank of clouds; as, a bank of snow. Hence ...'
    defined, *examples = _AS.split(defined, maxsplit=1)
    for said in examples:
        said = _SENTENCE_END.split(said)[0]
        quotations += [part.strip().removeprefix("as, ") for part in said.split(";")]
    plain = (_plain(quotation).rstrip(" .,") for quotation in quotations)
    return _one_line(defined).strip(" ;:,"), tuple(
        dict.fromkeys(part for part in plain if len(part.split()) in _QUOTATION_WORDS)
    )


def _plain(text: str) -> str:
    """Without remarks, links' braces and the marks of letters, on one line."""
    text = _LETTER.sub(r"\1", _REMARK.sub(" ", _one_line(text)))
    return _one_line(text.replace("{", "").replace("}", "").replace("`", "'"))


def _one_line(text: str) -> str:
    return " ".join(text.split())

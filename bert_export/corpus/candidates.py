"""Candidate generation: exact, folded, or by character n-grams for misspellings."""

from __future__ import annotations

import array
import collections
from collections.abc import Iterable
from types import ModuleType
from typing import Protocol

import numpy as np
from tqdm import tqdm

from bert_export.corpus.aliases import AliasTable, normalize
from bert_export.corpus.records import Entity
from bert_export.errors import UserError

# Aliases with the most n-grams in common whose spelling is then compared.
_COMPARED = 200
# Less alike than this is no misspelling, unless a single edit makes it.
_LEAST_SIMILARITY = 0.55


class CandidateGenerator(Protocol):
    """Whatever tells which entities a surface form may refer to."""

    def lookup(self, surface: str) -> tuple[str, ...]:
        """Returns entity ids, the likeliest first, at most max_candidates."""


def candidate_generator(
    kind: str, folded: AliasTable, entities: Iterable[Entity]
) -> CandidateGenerator:
    """The generator that `config.corpus.candidate_generation` names.

    Args:
      kind: 'exact': surfaces as they are written; 'folded': as `normalize` compares
        them; 'ngram': as 'folded', then aliases that are spelt alike.
      folded: The folded alias table of the entities.
      entities: In the order in which equally good candidates shall come.

    Raises:
      UserError: 'ngram' without the package that it needs.
    """
    return (
        NgramIndex(folded) if kind == "ngram" else alias_table(kind, folded, entities)
    )


def alias_table(
    kind: str, folded: AliasTable, entities: Iterable[Entity]
) -> AliasTable:
    """The table that a generator looks surfaces up in: the exact or the folded one."""
    if kind == "exact":
        return AliasTable(entities, folded.max_candidates, key=str)
    return folded


class NgramIndex:
    """An alias table that also finds aliases spelt like a surface form.

    Candidates of the very surface come first, as the table has them. Then come those
    of similar aliases: the 200 that share the most characters and pairs of characters
    with it (Dice's coefficient over the sets of both, a blank at either end counted
    in) are ranked by the mean of two similarities from 0 to 1: optimal string
    alignment (edits, among them the swap of two neighbours) and Jaro-Winkler (which
    favours a common beginning, as of inflected forms). Single characters count so
    that names of two Chinese characters, one of them wrong, are found.
    """

    def __init__(self, table: AliasTable):
        """Indexes the table's surface forms.

        Args:
          table: The folded alias table; its max_candidates holds here, too.

        Raises:
          UserError: rapidfuzz is not installed.
        """
        self._rapidfuzz = _import_rapidfuzz()
        self._table = table
        self._aliases = list(table.candidates)
        rows: dict[str, array.array[int]] = collections.defaultdict(
            lambda: array.array("i")
        )
        self._sizes = np.zeros(len(self._aliases), np.int32)
        # Nothing is shown of what is done in no time.
        progress = tqdm(self._aliases, "n-gram index", unit="", leave=False, delay=2)
        for row, alias in enumerate(progress):
            ngrams = _ngrams(alias)
            self._sizes[row] = len(ngrams)
            for ngram in ngrams:
                rows[ngram].append(row)
        self._rows = {
            ngram: np.frombuffer(found, np.int32) for ngram, found in rows.items()
        }

    def lookup(self, surface: str) -> tuple[str, ...]:
        """Returns ids: those of the surface itself, then those of similar aliases."""
        most = self._table.max_candidates
        found = dict.fromkeys(self._table.lookup(surface))
        for alias in self.similar(surface):
            if len(found) >= most:
                break
            found.update(dict.fromkeys(self._table.candidates[alias]))
        return tuple(found)[:most]

    def similar(self, surface: str) -> list[str]:
        """The folded aliases spelt like a surface form, the most similar first."""
        folded = normalize(surface)
        aliases = self._sharing_ngrams(folded)
        if not aliases:
            return []
        cdist, distance = self._rapidfuzz.process.cdist, self._rapidfuzz.distance
        edits, jaro_winkler = (
            cdist([folded], aliases, scorer=scorer, dtype=np.float64)[0]
            for scorer in (distance.OSA.distance, distance.JaroWinkler.similarity)
        )
        longest = np.maximum([len(alias) for alias in aliases], len(folded))
        similarity = (1 - edits / longest + jaro_winkler) / 2
        alike = (similarity >= _LEAST_SIMILARITY) | (edits <= 1)
        order = np.argsort(-similarity, kind="stable")
        return [aliases[row] for row in order if alike[row]]

    def _sharing_ngrams(self, folded: str) -> list[str]:
        ngrams = _ngrams(folded)
        rows = [self._rows[ngram] for ngram in ngrams if ngram in self._rows]
        if not rows:
            return []
        shared = np.bincount(np.concatenate(rows), minlength=len(self._aliases))
        # With fewer in common they are not spelt alike; the rest is quickly ranked.
        best = np.flatnonzero(shared > len(ngrams) // 3)
        dice = 2 * shared[best] / (self._sizes[best] + len(ngrams))
        if len(dice) > _COMPARED:
            enough = dice >= np.partition(dice, -_COMPARED)[-_COMPARED]
            best, dice = best[enough], dice[enough]
        # Stable, so that of equal ones the first of the table come first.
        order = np.argsort(-dice, kind="stable")[:_COMPARED]
        return [self._aliases[row] for row in best[order]]


def _ngrams(folded: str) -> list[str]:
    """The characters and pairs of characters of a folded alias, each once."""
    if not folded:
        return []
    padded = f" {folded} "
    pairs = (padded[i : i + 2] for i in range(len(padded) - 1))
    return list(dict.fromkeys([*folded, *pairs]))


def _import_rapidfuzz() -> ModuleType:
    try:
        import rapidfuzz
    except ImportError:
        raise UserError(
            "config.corpus.candidate_generation: 'ngram' needs rapidfuzz, which cannot "
            "be found: pip install 'bert_export[candidates]'"
        ) from None
    return rapidfuzz

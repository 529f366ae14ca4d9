"""Finds a lemma of English, inflected or not, in a text."""

from __future__ import annotations

import itertools
import re

from bert_export.corpus.morphy import Morphy

_TOKEN = re.compile(r"[^\W_]+")
# What may stand between two words of a lemma: 'make-up', "o'clock", 'U. S.'.
_JOINT = re.compile(r"[\s\-_'’./]{1,3}")
# A word in lower case, its start and its end.
Token = tuple[str, int, int]


def tokens_of(text: str) -> list[Token]:
    """The words of a text in lower case, each with its start and end."""
    return [
        (token.group().lower(), token.start(), token.end())
        for token in _TOKEN.finditer(text)
    ]


def find_lemma(
    lemma: str, text: str, tokens: list[Token], morphy: Morphy
) -> tuple[int, int] | None:
    """Finds the first place where whole words of a text are a lemma.

    The lemma as it is goes before its inflected forms; any word of a lemma of many
    words may be inflected ('men of letters', 'gave up').

    Args:
      lemma: E.g. 'give up'.
      text: The text.
      tokens: Its words in lower case, each with its start and end.
      morphy: Inflections of the lemma's part of speech.

    Returns:
      Start and end of the lemma in the text, or None.
    """
    words = _TOKEN.findall(lemma.lower())
    if not words:
        return None
    inflected = None
    for first in range(len(tokens) - len(words) + 1):
        window = tokens[first : first + len(words)]
        if any(
            word not in morphy.base_forms(token)
            for word, (token, _, _) in zip(words, window)
        ):
            continue
        if any(
            not _JOINT.fullmatch(text, left[2], right[1])
            for left, right in itertools.pairwise(window)
        ):
            continue
        span = window[0][1], window[-1][2]
        if all(word == token for word, (token, _, _) in zip(words, window)):
            return span
        inflected = inflected or span
    return inflected

"""Finds the inflected forms of Turkish words in a text.

Suffixes and what they do to a stem's last letter: Göksel and Kerslake, Turkish: A
Comprehensive Grammar (Routledge 2005), chapters 2 and 8.
"""

from __future__ import annotations

import itertools
import re

_TOKEN = re.compile(r"[^\W_]+")
# What may stand between two words of a lemma.
_JOINT = re.compile(r"[\s\-]{1,2}")
# A word, folded, its start and its end.
Token = tuple[str, int, int]

_LOWER = str.maketrans("IİÂÎÛâîû", "ıiaiuaiu")
_VOWELS = "aeıioöuü"
# Before a suffix that starts with a vowel: kitap, kitabı; renk, rengi; git, gidiyor.
_SOFTENED = {"p": "b", "ç": "c", "t": "d", "k": "ğg"}

_PLURAL = "l[ae]r"
_POSSESSIVE = "[ıiuü]?m(?:[ıiuü]z)?|[ıiuü]?n(?:[ıiuü]z)?|s?[ıiuü]"
_CASE = "[yn]?[ıiuü]|n?[ıiuü]n|[yn]?[ae]|n?[dt][ae]n?|y?l[ae]|[cç][ae]"
_COPULA = "[dt][ıiuü]r|y?[dt][ıiuü]|y?m[ıiuü]ş|y?s[ae]|y?[ıiuü]m|y?[ıiuü]z|ken"
_NOMINAL = re.compile(
    f"(?:{_PLURAL})?(?:{_POSSESSIVE})?(?:{_CASE})?(?:ki)?(?:{_PLURAL})?"
    f"(?:{_COPULA})?(?:{_PLURAL})?"
)
# Tense, mood, participle or converb; what follows it is person, case and the like.
# Voice (passive, causative) is not among them: it makes another lemma.
_VERBAL = re.compile(
    "(?:m[ae])?(?:"
    "[dt][ıiuü].*|m[ıiuü]ş.*|y?[ae]c[ae][kğ].*|s[ae].*|m[ae]l[ıi].*|m[ae][kğ]?.*"
    "|[ıiuü]?yor.*|m[ıiuü]yor.*|[aeıiuü]?r(?:|[ıiuü].*|k[ae]n|s[aeıiuü].*|l[ae]r.*"
    "|d[ıiuü].*|c[ae].*|m[ıiuü]ş.*)|z.*"
    "|y?[ıiuü]p.*|y?[ae]r[ae]k|y?[ae]n.*|y?[ıiuü]nc[ae]|y?[ae]l[ıi].*"
    "|y?[ıiuü]ş.*|s[ıiuü]n.*|y?[ıiuü]n(?:[ıiuü]z)?|y?[ae]|)"
)


def fold(text: str) -> str:
    """Lower case by Turkish rules (I is ı, İ is i), without circumflexes.

    As long as `text`, so that offsets stay: 'İ'.lower() would be two characters.
    """
    folded = text.translate(_LOWER)
    lower = folded.lower()
    if len(lower) == len(text):
        return lower
    return "".join(c if len(c.lower()) > 1 else c.lower() for c in folded)


def tokens_of(text: str) -> list[Token]:
    """The words of a text, folded, each with its start and end."""
    folded = fold(text)
    return [(m.group(), m.start(), m.end()) for m in _TOKEN.finditer(folded)]


def find_lemma(
    lemma: str, verb: bool, text: str, tokens: list[Token]
) -> tuple[int, int] | None:
    """Finds the place where whole words of a text are a lemma, inflected or not.

    The lemma as it is goes before inflected forms, and of these the shortest one
    before the others.

    Args:
      lemma: E.g. 'ev', 'yara almak'.
      verb: Whether its last word is an infinitive.
      text: The text.
      tokens: The words of it to look at, as `tokens_of` gives them.

    Returns:
      Start and end of the lemma in the text, or None.
    """
    words = _TOKEN.findall(fold(lemma))
    if not words:
        return None
    best: tuple[int, int, int] | None = None
    for first in range(len(tokens) - len(words) + 1):
        window = tokens[first : first + len(words)]
        if not all(
            _is_form(token, word, verb and index == len(words))
            for index, (word, (token, _, _)) in enumerate(zip(words, window), 1)
        ):
            continue
        if not all(
            _JOINT.fullmatch(text, left[2], right[1])
            for left, right in itertools.pairwise(window)
        ):
            continue
        added = sum(
            abs(len(token) - len(word)) + (token != word)
            for word, (token, _, _) in zip(words, window)
        )
        if best is None or added < best[0]:
            best = added, window[0][1], window[-1][2]
    return best[1:] if best else None


def _is_form(token: str, word: str, verb: bool) -> bool:
    """Whether a token (folded) is a word (folded) or an inflected form of it."""
    # Most tokens are not; the last letter of a stem may change.
    if not token.startswith(word[:-4] if verb else word[:-1]):
        return False
    if token == word:
        return True
    infinitive = verb and len(word) > 3 and word.endswith(("mak", "mek"))
    stem, suffixes = (word[:-3], _VERBAL) if infinitive else (word, _NOMINAL)
    if token.startswith(stem) and suffixes.fullmatch(token, len(stem)):
        return True
    if len(token) <= len(stem) or token[len(stem)] not in _VOWELS + "y":
        return False
    vowel_follows = token[len(stem)] in _VOWELS
    if infinitive and stem[-1] in "ae" and not vowel_follows:
        # başla, başlıyor; de, diyecek.
        changed = token[len(stem) - 1] in "ıiuü"
    else:
        softened = _SOFTENED.get(stem[-1], "")
        changed = vowel_follows and len(word) > 2 and token[len(stem) - 1] in softened
    return (
        changed
        and token.startswith(stem[:-1])
        and suffixes.fullmatch(token, len(stem)) is not None
    )

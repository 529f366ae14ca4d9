"""Tells the script that a text is written in, as a stand-in for its language."""

from __future__ import annotations

import collections
import functools

MIXED = "mixed"
NO_LETTERS = "no letters"
# Of a text's letters, what one script must have to be the text's.
_SHARE = 0.9
# ISO 15924's codes of what has no script of its own: common, inherited, unassigned.
_NONE = ("Zyyy", "Zinh", "Zzzz")
_KANA = ("Hiragana", "Katakana")


def script_of(text: str) -> str:
    """The Unicode name of a text's script, such as 'Latin' or 'Han'.

    Scripts are those of https://www.unicode.org/reports/tr24. Languages that mix
    scripts count as one, as in section 5.1 of https://www.unicode.org/reports/tr39:
    with kana, Han characters are 'Japanese'; with Hangul, 'Korean'.

    Returns:
      The script of nine tenths of the letters, or MIXED; NO_LETTERS where there is
      none.
    """
    counts: collections.Counter[str] = collections.Counter()
    for character, number in collections.Counter(text).items():
        if name := _script(character):
            counts[name] += number
    if any(name in counts for name in _KANA):
        _join(counts, (*_KANA, "Han"), "Japanese")
    elif "Hangul" in counts:
        _join(counts, ("Hangul", "Han"), "Korean")
    if not counts:
        return NO_LETTERS
    ((name, number),) = counts.most_common(1)
    return name if number >= _SHARE * counts.total() else MIXED


def _join(
    counts: collections.Counter[str], names: tuple[str, ...], joined: str
) -> None:
    counts[joined] = sum(counts.pop(name, 0) for name in names)


@functools.cache
def _script(character: str) -> str | None:
    """The name of a character's script; None of what any script uses."""
    from fontTools import unicodedata

    code = unicodedata.script(character)
    return None if code in _NONE else unicodedata.script_name(code)

"""What training's tokenizer makes of every character, as a table for JavaScript."""

from __future__ import annotations

import unicodedata
from typing import Any

import tensorflow as tf
import tensorflow_text as tf_text

from bert_export.errors import StageError

_HANGUL = range(0xAC00, 0xD7A4)
# Two pieces enough to see whether a character parts or joins its neighbours.
_PROBE = ["[UNK]", "a", "##a"]


def characters(lower_case: bool) -> dict[str, Any]:
    """Asks tensorflow_text for every Unicode character.

    Its normalization works character by character, so that a table says all of it,
    and says it alike whatever Unicode version a browser has.

    Args:
      lower_case: as in the config's `features` section.

    Returns:
      `{"hangul": bool, "dropped": ranges, "space": ranges, "replaced": {character:
      text}, "white_space": ranges, "alone": ranges}`. The first four normalize:
      Hangul syllables are decomposed or not, others dropped, made a space, or
      replaced; what is not named stays. The last two part normalized text into
      words: at white space, and around characters that stand alone (punctuation,
      Chinese). Ranges are `[first, last, first, last, …]`, code points, inclusive.

    Raises:
      StageError: tensorflow_text treats Hangul in a way that the table cannot say.
    """
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    every = tf.constant([chr(point) for point in points])
    normalizer = tf_text.FastBertNormalizer(lower_case_nfd_strip_accents=lower_case)
    normalized = {
        point: text.decode()
        for point, text in zip(points, normalizer.normalize(every).numpy())
        if text.decode() != chr(point)
    }
    hangul = [point for point in _HANGUL if point in normalized]
    for point in hangul:
        if normalized.pop(point) != unicodedata.normalize("NFD", chr(point)):
            raise StageError(f"tfjs: U+{point:04X} is not decomposed as Unicode says")
    if hangul and len(hangul) != len(_HANGUL):
        raise StageError("tfjs: only some Hangul syllables are decomposed")

    wordpiece = tf_text.FastWordpieceTokenizer(
        vocab=_PROBE, token_out_type=tf.int64, unknown_token="[UNK]"
    )
    probes = tf.strings.join(["a", every, "a"])
    ids = dict(zip(points, wordpiece.tokenize(probes).to_list()))
    return {
        "hangul": bool(hangul),
        "dropped": _ranges(point for point, to in normalized.items() if to == ""),
        "space": _ranges(point for point, to in normalized.items() if to == " "),
        "replaced": {
            chr(point): to for point, to in normalized.items() if to not in ("", " ")
        },
        "white_space": _ranges(point for point in points if ids[point] == [1, 1]),
        "alone": _ranges(point for point in points if ids[point] == [1, 0, 1]),
    }


def _ranges(points: Any) -> list[int]:
    """Rising numbers as [first, last, first, last, …]."""
    ranges: list[int] = []
    for point in points:
        if ranges and ranges[-1] == point - 1:
            ranges[-1] = point
        else:
            ranges += [point, point]
    return ranges

"""Aliases are looked up in the browser as the corpus does it."""

from __future__ import annotations

import random
import unicodedata

from bert_export.corpus.aliases import normalize
from tests.page import modules


def test_every_character_is_normalized_alike_but_those_unassigned_here() -> None:
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    found = modules.encode(surfaces=[chr(point) for point in points])
    different = [
        chr(point)
        for point, ours in zip(points, found, strict=True)
        if ours != normalize(chr(point))
    ]
    # Younger than this Python's Unicode: the browser's knows their case.
    assert {unicodedata.category(char) for char in different} <= {"Cn"}
    assert len(different) < 300


def test_strings_are_normalized_alike() -> None:
    rng = random.Random(7)
    alphabet = (
        "aAzZ \t\n\x1c\x85\u00a0\u3000\ufeffßẞςΣσſıİǄﬁ½…ᾳῼ\u0301\u0323\u0345"
        "ᏣꮳΌΐ한각①㎏Ⅳ"
    )
    surfaces = [
        "".join(rng.choices(alphabet, k=rng.randint(0, 9))) for _ in range(5000)
    ]
    surfaces += ["  Bank\u00a0of\tEngland ", "STRASSE", "Straße", "ΟΔΟΣ", "ﬀﬁ"]
    found = modules.encode(surfaces=surfaces)
    for surface, ours in zip(surfaces, found, strict=True):
        assert ours == normalize(surface), repr(surface)

"""A small vocabulary of many scripts, with enough gaps that [UNK] occurs."""

from __future__ import annotations

import pytest

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = """
    bank river the money he sat on of a place for un ##aff ##able ##bank ##ing
    ##s 北 京 银 行 มา ##ก ก า بنك ##ك ب ن москва ος σ ##σ mask unk cls sep
"""


@pytest.fixture(scope="session")
def vocab() -> list[str]:
    # Printable ASCII but 'q', so that words with a q become [UNK].
    ascii_pieces = [chr(code) for code in range(33, 127) if chr(code) not in "qQ"]
    letters = [piece for piece in ascii_pieces if piece.isalnum()]
    jamo = [chr(code) for code in (*range(0x1100, 0x1113), *range(0x1161, 0x1176))]
    finals = [chr(code) for code in range(0x11A8, 0x11C3)]
    pieces = [
        *SPECIALS,
        *ascii_pieces,
        *(f"##{letter}" for letter in letters),
        *jamo,
        *(f"##{letter}" for letter in (*jamo, *finals)),
        *WORDS.split(),
    ]
    return list(dict.fromkeys(pieces))

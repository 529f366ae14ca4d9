"""The script of a text."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies as st

from bert_export.corpus.scripts import MIXED, NO_LETTERS, script_of


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("He sat on the bank.", "Latin"),
        ("Fluß, São Paulo, Ri\u0301o", "Latin"),
        ("😀 我每天早上吃一个苹果。", "Han"),
        ("私は学生です", "Japanese"),
        ("カタカナー", "Japanese"),
        ("학교 學校", "Korean"),
        ("Москва", "Cyrillic"),
        ("ภาษาไทย", "Thai"),
        ("بنك", "Arabic"),
        ("Java是一种编程语言", MIXED),
        ("Москва is", MIXED),
        ("1949, 😀 + .", NO_LETTERS),
        ("", NO_LETTERS),
        # A letter in ten of another script does not make a text mixed; one in nine
        # does.
        ("abcdefghiя", "Latin"),
        ("abcdefghя", MIXED),
    ],
)
def test_scripts(text, script):
    assert script_of(text) == script


@hypothesis.given(st.text(), st.text(alphabet="0123456789 .,!?😀\u0301"))
def test_what_any_script_uses_changes_nothing(text, common):
    assert script_of(common + text) == script_of(text)
    assert script_of(text[::-1]) == script_of(text)

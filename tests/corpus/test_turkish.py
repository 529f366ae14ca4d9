from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_export.corpus.turkish import find_lemma, fold, tokens_of


def found(lemma: str, text: str, verb: bool = False) -> str | None:
    span = find_lemma(lemma, verb, text, tokens_of(text))
    return span and text[slice(*span)]


def test_fold_knows_both_letters_i_and_drops_circumflexes():
    assert fold("IŞIK İSTANBUL Hâlâ RÛZGÂR") == "ışık istanbul hala ruzgar"


@given(st.text())
def test_fold_keeps_every_offset(text):
    assert len(fold(text)) == len(text)


@pytest.mark.parametrize(
    ("lemma", "text", "expected"),
    [
        ("ev", "Evlerimizden çıktık.", "Evlerimizden"),
        ("kitap", "Bu kitabı okudum.", "kitabı"),
        ("ağaç", "Ağacın gölgesi.", "Ağacın"),
        ("renk", "Rengi soldu.", "Rengi"),
        ("çocuk", "Çocuğun adı ne?", "Çocuğun"),
        ("Ankara", "Ankara'nın havası.", "Ankara"),
        ("istanbul", "İSTANBUL'da yaşıyor.", "İSTANBUL"),
        ("ışık", "IŞIKLAR söndü.", "IŞIKLAR"),
        ("hâkim", "Hakimler geldi.", "Hakimler"),
        ("deniz kıyısı", "Deniz kıyısında oturdum.", "Deniz kıyısında"),
        # The word itself goes before an inflected form, the shorter one before others.
        ("kasa", "Kasalarda değil, kasa içinde.", "kasa"),
        ("kasa", "Kasalarda ve kasada.", "kasada"),
    ],
)
def test_nouns(lemma, text, expected):
    assert found(lemma, text) == expected


@pytest.mark.parametrize(
    ("lemma", "text", "expected"),
    [
        ("gitmek", "Eve gidiyorum.", "gidiyorum"),
        ("gitmek", "Dün gittik.", "gittik"),
        ("başlamak", "Film başlıyor.", "başlıyor"),
        ("demek", "Ne diyecek?", "diyecek"),
        ("yara almak", "Askerler yara almışlardı.", "yara almışlardı"),
        ("kavuşmak", "Sonunda kavuştuk.", "kavuştuk"),
        ("almak", "Almadan dönme.", "Almadan"),
        ("almak", "Bir araba almak istiyor.", "almak"),
    ],
)
def test_verbs(lemma, text, expected):
    assert found(lemma, text, verb=True) == expected


@pytest.mark.parametrize(
    ("lemma", "text", "verb"),
    [
        ("at", "Ateşi yaktı.", False),
        ("el", "Elbise aldı.", False),
        ("kitap", "Kitapçı kapalı.", False),  # another lemma: bookseller
        ("kap", "Kâğıt kabuğu.", False),
        # Voice makes another lemma.
        ("yaralamak", "Asker yaralandı.", True),
        ("almak", "Aldatıldı.", True),
        ("deniz kıyısı", "Deniz ve kıyısı.", False),
        ("deniz kıyısı", "Deniz; kıyısı.", False),
        ("!", "Dur!", False),
        ("ev", "", False),
    ],
)
def test_other_words(lemma, text, verb):
    assert found(lemma, text, verb) is None


def test_a_short_verb_that_is_not_an_infinitive():
    assert found("mek", "mek", verb=True) == "mek"
    assert found("al", "alda", verb=True) == "alda"

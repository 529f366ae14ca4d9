from __future__ import annotations

import pytest

from bert_export.corpus.aliases import AliasTable, normalize
from bert_export.corpus.records import Entity

ENTITIES = [
    Entity("canton", "Canton of Zürich", ("Zürich", "ZÜRICH"), ""),
    Entity("city", "Zürich", ("Zurich", "zürich"), ""),
    Entity("insurer", "Zurich Insurance", ("Zurich",), ""),
    Entity("blank", "x", ("", " "), ""),
]


def test_names_come_before_aliases_then_input_order():
    table = AliasTable(ENTITIES, 10)
    assert table.lookup("Zürich") == ("city", "canton")
    assert table.lookup("zurich") == ("city", "insurer")


def test_candidates_are_capped():
    assert AliasTable(ENTITIES, 1).lookup("Zürich") == ("city",)


@pytest.mark.parametrize("surface", ["", " ", "Geneva"])
def test_unknown_surface_has_no_candidates(surface):
    assert AliasTable(ENTITIES, 10).lookup(surface) == ()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ZÜRICH", "Zu\u0308rich"),
        ("Straße", "STRASSE"),
        ("ＡＰＰＬＥ", "apple"),
        ("ﬁle", "FILE"),
        ("São\u00a0 Paulo", "são\npaulo"),
        ("Κόσμος", "ΚΌΣΜΟΣ"),
        ("ᾳ", "ΑΙ".replace("Α", "α").replace("Ι", "ι")),
    ],
)
def test_surfaces_that_are_the_same(one, other):
    assert normalize(one) == normalize(other)


def test_accents_make_a_difference():
    assert normalize("Zürich") != normalize("Zurich")

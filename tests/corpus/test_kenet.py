from __future__ import annotations

import pytest

from bert_export.config import CorpusConfig
from bert_export.corpus import jsonl
from bert_export.corpus.corpus import load_corpus
from bert_export.corpus.kenet import build_kenet, read_synsets
from bert_export.corpus.records import BadRecords
from bert_export.corpus.splits import split_of
from bert_export.errors import UserError


def synset(id, lemmas, pos, definition, examples="", related=()):
    literals = "".join(
        f"<LITERAL>{lemma}<SENSE>{sense}</SENSE></LITERAL>" for lemma, sense in lemmas
    )
    pointers = "".join(f"<SR>{r}<TYPE>HYPERNYM</TYPE></SR>" for r in related)
    example = f"<EXAMPLE>{examples}</EXAMPLE>" if examples else ""
    return (
        f"<SYNSET><ID>{id}</ID><SYNONYM>{literals}</SYNONYM><POS>{pos}</POS>"
        f"{pointers}<DEF>{definition}</DEF>{example}</SYNSET>"
    )


# Made up for these tests.
SYNSETS = [
    synset("T1", [("yüz", 2)], "n", "Başın ön bölümü", "Yüzünü yıkadı.", ["T6"]),
    synset("T2", [("yüz", 1)], "n", "Doksan dokuzdan sonra gelen sayı", "Yüz kişi."),
    synset(
        "T3", [("yüz", 3), ("yüzey", 1)], "n", "Bir şeyin dış yanı", "İki yüzü var."
    ),
    synset("T4", [("yüzmek", 1)], "v", "Suda ilerlemek", "Denizde yüzüyor.|Yüzdük."),
    synset("T5", [("yüzmek", 2)], "v", "Derisini çıkarmak", "Koyunu yüzdü."),
    synset("T6", [("baş", 1)], "n", "Gövdenin üst bölümü", "Başı ağrıyor."),
    synset("T7", [("baş", 2)], "n", "Bir işi yöneten", "İşin başı odur."),
    synset("T8", [("deniz", 1)], "n", "Tuzlu su kütlesi", "Deniz mavi."),
    synset("T9", [("suç", 1), ("yüz", 4)], "n", "Ayıp", "Bunun sözü yok."),
]


def write(path, synsets=SYNSETS):
    path.write_text(f"<SYNSETS>\n{chr(10).join(synsets)}\n</SYNSETS>", "utf-8")
    return path


def read(out, split):
    bad = BadRecords()
    entities = {e.id: e for e in jsonl.read_entities(out / "entities.jsonl.gz", bad)}
    mentions = jsonl.read_mentions(out / f"mentions.{split}.jsonl.gz", bad, entities)
    return entities, list(mentions)


def marked(mention):
    text, start, end = mention.text, mention.start, mention.end
    return f"{text[:start]}[[{text[start:end]}]]{text[end:]}"


def test_examples_become_mentions_with_all_senses_in_their_order(tmp_path):
    facts = build_kenet(write(tmp_path / "k.xml"), tmp_path / "out", 0.0, 0.0)
    entities, mentions = read(tmp_path / "out", "train")
    faces = ("T2", "T1", "T3", "T9")
    assert {(marked(m), m.gold, m.candidates) for m in mentions} == {
        ("[[Yüzünü]] yıkadı.", "T1", faces),
        ("[[Yüz]] kişi.", "T2", faces),
        ("İki [[yüzü]] var.", "T3", faces),
        ("Denizde [[yüzüyor]].", "T4", ("T4", "T5")),
        ("[[Yüzdük]].", "T4", ("T4", "T5")),
        ("Koyunu [[yüzdü]].", "T5", ("T4", "T5")),
        ("[[Başı]] ağrıyor.", "T6", ("T6", "T7")),
        ("İşin [[başı]] odur.", "T7", ("T6", "T7")),
    }
    assert facts["entities"] == len(SYNSETS)
    assert facts["mentions"] == {"train": 8, "dev": 0, "test": 0}
    assert entities["T3"].name == "yüz"
    assert entities["T3"].aliases == ("yüzey",)
    assert entities["T3"].description == "Bir şeyin dış yanı"


def test_pointers_disambiguate_words_of_definitions(tmp_path):
    build_kenet(write(tmp_path / "k.xml"), tmp_path / "out", 0.0, 0.0, True)
    _, mentions = read(tmp_path / "out", "train")
    assert ("yüz: [[Başın]] ön bölümü", "T6") in {(marked(m), m.gold) for m in mentions}
    assert len(mentions) == 9


def test_held_out_synsets_are_never_seen_in_training(tmp_path):
    synsets = [
        synset(f"T{n}", [("yüz", n)], "n", f"{n}. anlam", f"{n} tane yüz var.")
        for n in range(200)
    ]
    build_kenet(write(tmp_path / "k.xml", synsets), tmp_path / "out", 0.2, 0.2)
    for split in ("train", "dev", "test"):
        _, mentions = read(tmp_path / "out", split)
        assert len(mentions) > 20
        assert all(split_of(m.gold, 0.2, 0.2) == split for m in mentions)
        if split == "train":
            ids = {id for m in mentions for id in m.candidates}
            assert all(split_of(id, 0.2, 0.2) == "train" for id in ids)


def test_equal_input_gives_equal_bytes_and_is_not_built_twice(tmp_path):
    source = write(tmp_path / "k.xml")
    build_kenet(source, tmp_path / "a", 0.1, 0.1, True)
    build_kenet(source, tmp_path / "b", 0.1, 0.1, True)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(names) == 5
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (
            tmp_path / "b" / name
        ).read_bytes()
    entities = tmp_path / "a" / "entities.jsonl.gz"
    written = entities.stat().st_mtime_ns
    build_kenet(source, tmp_path / "a", 0.1, 0.1, True)
    assert entities.stat().st_mtime_ns == written
    build_kenet(source, tmp_path / "a", 0.1, 0.1, False)
    assert entities.stat().st_mtime_ns > written


def test_a_config_names_the_file(tmp_path):
    source = write(tmp_path / "k.xml")
    config = CorpusConfig(builder="kenet", kenet=str(source), dev_fraction=0.3)
    corpus = load_corpus(config, tmp_path / "work", BadRecords())
    assert set(corpus.entities) == {f"T{n}" for n in range(1, 10)}
    assert (tmp_path / "work/corpus/kenet/kenet.json").exists()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "damaged KeNet file"),
        ("<SYNSETS><SYNSET>", "damaged KeNet file"),
        ("<SYNSETS></SYNSETS>", "no SYNSET in it"),
        ("<SYNSETS><SYNSET><DEF>a</DEF></SYNSET></SYNSETS>", "without an ID"),
        ("<SYNSETS><SYNSET><ID>A</ID></SYNSET></SYNSETS>", "A has no LITERAL"),
        (
            "<SYNSETS><SYNSET><ID>A</ID><SYNONYM><LITERAL>ev<SENSE>x</SENSE>"
            "</LITERAL></SYNONYM></SYNSET></SYNSETS>",
            "the SENSE of 'ev' in A is no number",
        ),
    ],
)
def test_damaged_files_are_refused_and_nothing_is_written(tmp_path, content, complaint):
    path = tmp_path / "k.xml"
    path.write_text(content, "utf-8")
    with pytest.raises(UserError, match=complaint) as refusal:
        build_kenet(path, tmp_path / "out")
    assert str(path) in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_a_synset_that_comes_twice_is_refused(tmp_path):
    path = write(tmp_path / "k.xml", [SYNSETS[0], SYNSETS[0]])
    with pytest.raises(UserError, match="the synset T1 comes twice"):
        list(read_synsets(path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"kenet: there is no file .*k\.xml"):
        build_kenet(tmp_path / "k.xml", tmp_path / "out")


def test_without_the_package_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    # An empty search path is a machine without the package.
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    with pytest.raises(UserError, match="pip install --no-deps nlptoolkit-wordnet"):
        build_kenet(None, tmp_path / "out")


def test_the_installed_package_is_found(tmp_path, monkeypatch):
    data = tmp_path / "site" / "WordNet" / "data"
    data.mkdir(parents=True)
    (tmp_path / "site" / "WordNet" / "__init__.py").touch()
    write(data / "turkish_wordnet.xml")
    monkeypatch.syspath_prepend(tmp_path / "site")
    facts = build_kenet(None, tmp_path / "out", 0.0, 0.0)
    assert facts["entities"] == len(SYNSETS)

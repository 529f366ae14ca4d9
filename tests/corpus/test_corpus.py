from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import pathlib
import subprocess
import sys

import pytest

from bert_export.config import CorpusConfig
from bert_export.corpus import jsonl
from bert_export.corpus.corpus import entity_text, load_corpus
from bert_export.corpus.records import BadRecords, Entity, Mention
from bert_export.corpus.splits import SPLITS, split_of
from bert_export.errors import UserError

ENTITIES = [
    Entity("city", "Paris", (), "the capital of France"),
    Entity("town", "Paris", ("Paris, Texas",), "a town in Texas"),
    Entity("prince", "Alexander", ("Paris",), "a prince of Troy"),
]


def make(tmp_path: pathlib.Path, mentions: list[Mention], **options) -> CorpusConfig:
    jsonl.write_entities(tmp_path / "e.jsonl", ENTITIES)
    jsonl.write_mentions(tmp_path / "m.jsonl", mentions)
    return CorpusConfig(
        entities=str(tmp_path / "e.jsonl"),
        mentions=str(tmp_path / "m.jsonl"),
        **options,
    )


def load(config: CorpusConfig, tmp_path: pathlib.Path, max_bad: int = 0):
    return load_corpus(config, tmp_path / "work", BadRecords(max_bad))


def test_candidates_come_from_the_mention_or_the_alias_table(tmp_path):
    mentions = [
        Mention("in Paris", 3, 8, "city"),
        Mention("in PARIS", 3, 8, "city", ("town", "city")),
        Mention("in Paris", 3, 8, None, ()),
        Mention("in Rome", 3, 7, None),
    ]
    config = make(tmp_path, mentions, dev_fraction=0.0, test_fraction=0.0)
    corpus = load(config, tmp_path)
    assert [mention.candidates for mention in corpus.mentions("train")] == [
        ("city", "town", "prince"),
        ("town", "city"),
        (),
        (),
    ]
    assert list(corpus.mentions("dev")) == []
    assert corpus.files == {
        "entities": tmp_path / "e.jsonl",
        "train": tmp_path / "m.jsonl",
    }


def test_only_train_gets_a_missed_gold_and_the_cap_holds(tmp_path):
    missed = [
        Mention("in Paris", 3, 8, "prince"),
        Mention("the Trojan", 4, 10, "prince"),
        Mention("Paris", 0, 5, "prince", ("town", "city")),
    ]
    config = make(tmp_path, missed, max_candidates=2)
    config = dataclasses.replace(
        config, dev_mentions=config.mentions, test_mentions=config.mentions
    )
    corpus = load(config, tmp_path)
    assert [mention.candidates for mention in corpus.mentions("train")] == [
        ("city", "prince"),
        ("prince",),
        ("town", "prince"),
    ]
    for split in ("dev", "test"):
        assert [mention.candidates for mention in corpus.mentions(split)] == [
            ("city", "town"),
            (),
            ("town", "city"),
        ]
    only = load(dataclasses.replace(config, max_candidates=1), tmp_path)
    assert next(only.mentions("train")).candidates == ("prince",)


def test_a_text_is_in_one_split_and_no_mention_is_lost(tmp_path):
    texts = [f"{number} nights in Paris" for number in range(400)]
    mentions = [
        Mention(text, len(text) - 5, len(text), gold)
        for text in texts
        for gold in ("city", "town")
    ]
    config = make(tmp_path, mentions, dev_fraction=0.2, test_fraction=0.3)
    corpus = load(config, tmp_path)
    counts = {split: len(list(corpus.mentions(split))) for split in SPLITS}
    assert sum(counts.values()) == 800
    assert 100 < counts["dev"] < 220
    assert 180 < counts["test"] < 300
    seen = [{mention.text for mention in corpus.mentions(split)} for split in SPLITS]
    assert sum(map(len, seen)) == len(texts)


def test_splits_do_not_depend_on_the_machine_or_on_other_keys():
    assert [split_of(key, 0.3, 0.3) for key in ("a", "b", "苹果", "d", "e")] == [
        split_of(key, 0.3, 0.3) for key in ("a", "b", "苹果", "d", "e")
    ]
    # sha256('a') starts with ca97…: 0.791.
    assert split_of("a", 0.0, 0.79) == "train"
    assert split_of("a", 0.0, 0.80) == "test"
    assert split_of("a", 0.01, 0.79) == "dev"


def test_mentions_are_streamed(tmp_path):
    config = make(
        tmp_path,
        [Mention("Paris", 0, 5, "city")] * 3,
        dev_fraction=0.0,
        test_fraction=0.0,
    )
    with open(tmp_path / "m.jsonl", "a") as file:
        file.write("no JSON\n")
    mentions = load(config, tmp_path).mentions("train")
    assert len(list(itertools.islice(mentions, 3))) == 3
    with pytest.raises(UserError, match=r"m\.jsonl:4: broken JSON"):
        next(mentions)


def test_a_bad_record_counts_once_for_all_splits(tmp_path):
    config = make(tmp_path, [Mention("Paris", 0, 5, "city")])
    with open(tmp_path / "m.jsonl", "a") as file:
        file.write("no JSON\n")
    bad = BadRecords(1)
    corpus = load_corpus(config, tmp_path, bad)
    assert sum(len(list(corpus.mentions(split))) for split in SPLITS) == 1
    assert bad.summary()["files"] == {str(tmp_path / "m.jsonl"): {"broken JSON": 1}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"entities": "nowhere.jsonl"}, "corpus.entities: there is no file nowhere"),
        ({"mentions": "nowhere.jsonl"}, "corpus.mentions: there is no file nowhere"),
        ({"mentions": None}, "corpus.mentions is not set"),
        (
            {"dev_mentions": "d.jsonl", "test_mentions": "t.jsonl"},
            "corpus.dev_mentions: there is no file d.jsonl",
        ),
        ({"dev_mentions": "d.jsonl"}, "dev_mentions and test_mentions go together"),
    ],
)
def test_a_missing_file_is_named_by_its_key(tmp_path, options, message):
    config = make(tmp_path, [Mention("Paris", 0, 5, "city")])
    with pytest.raises(UserError, match=message):
        load(dataclasses.replace(config, **options), tmp_path)


def test_an_unknown_split_is_a_programming_error(tmp_path):
    corpus = load(make(tmp_path, [Mention("Paris", 0, 5, "city")]), tmp_path)
    with pytest.raises(ValueError, match="'eval' is none of train, dev, test"):
        next(corpus.mentions("eval"))


def test_the_wordnet_builder_works_in_the_workdir_and_reuses_it(tmp_path, wordnet):
    config = CorpusConfig(
        builder="wordnet",
        wordnet_dir=str(wordnet),
        dev_fraction=0.3,
        test_fraction=0.3,
    )
    corpus = load(config, tmp_path)
    assert len(corpus.entities) == 15
    found = collections.Counter(
        split for split in SPLITS for _ in corpus.mentions(split)
    )
    facts = json.loads((tmp_path / "work/corpus/wordnet.json").read_text())
    assert dict(found) == {k: v for k, v in facts["mentions"].items() if v}
    assert {path.parent for path in corpus.files.values()} == {
        tmp_path / "work" / "corpus"
    }
    times = [path.stat().st_mtime_ns for path in corpus.files.values()]
    again = load(config, tmp_path).files.values()
    assert [path.stat().st_mtime_ns for path in again] == times


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (("name", "aliases", "description"), "Paris, Paris, Texas: a town in Texas"),
        (("name", "description"), "Paris: a town in Texas"),
        (("description", "name"), "a town in Texas: Paris"),
        (("description",), "a town in Texas"),
        (("aliases", "name"), "Paris, Texas, Paris"),
    ],
)
def test_entity_text(fields, text):
    assert entity_text(ENTITIES[1], fields) == text


def test_entity_text_leaves_out_what_is_empty():
    assert entity_text(Entity("x", "bank", (), "")) == "bank"


def test_the_corpus_room_does_not_import_tensorflow():
    program = (
        "import sys, bert_export.corpus.corpus;"
        "sys.exit(any('tensorflow' in name for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

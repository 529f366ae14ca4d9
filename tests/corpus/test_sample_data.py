"""The hand-written corpus in data/."""

from __future__ import annotations

import json
import pathlib
import unicodedata

import pytest

from bert_export.config import CorpusConfig
from bert_export.corpus.corpus import Corpus, load_corpus
from bert_export.corpus.jsonl import parse_marked_text, read_mentions
from bert_export.corpus.records import BadRecords
from bert_export.corpus.splits import SPLITS

DATA = pathlib.Path(__file__).parents[2] / "data"


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    config = CorpusConfig(
        entities=str(DATA / "entities.jsonl"),
        mentions=str(DATA / "mentions.jsonl"),
        dev_fraction=0.15,
        test_fraction=0.15,
    )
    return load_corpus(config, DATA, BadRecords())


def test_size_and_variety(corpus):
    mentions = [m for split in SPLITS for m in corpus.mentions(split)]
    assert len(corpus.entities) >= 40
    assert len(mentions) >= 150
    assert len({mention.text for mention in mentions}) == len(mentions)
    assert sum(mention.gold is None for mention in mentions) >= 10
    assert sum(not mention.text.isascii() for mention in mentions) >= 30
    before = [mention.text[: mention.start] for mention in mentions]
    assert sum(any(ord(c) > 0xFFFF for c in text) for text in before) >= 8
    assert {mention.gold for mention in mentions} >= set(corpus.entities)


def test_every_split_has_enough_to_learn_from_and_to_measure(corpus):
    for split, least in (("train", 100), ("dev", 20), ("test", 20)):
        mentions = list(corpus.mentions(split))
        assert len(mentions) >= least
        assert any(mention.gold is None for mention in mentions)
        with_gold = [mention for mention in mentions if mention.gold]
        assert all(mention.gold in mention.candidates for mention in with_gold)
        ambiguous = [mention for mention in with_gold if len(mention.candidates) > 1]
        assert len(ambiguous) > 0.7 * len(with_gold)


def test_mentions_are_whole_words(corpus):
    for split in SPLITS:
        for mention in corpus.mentions(split):
            assert mention.surface == mention.surface.strip()
            if mention.surface.isascii():
                around = mention.text[: mention.start][-1:], mention.text[mention.end :]
                assert not around[0].isalnum(), mention
                assert not (around[1][:1].isascii() and around[1][:1].isalnum())


def test_sentences_to_link(corpus):
    lines = (DATA / "sentences.txt").read_text(encoding="utf-8").splitlines()
    for line in lines:
        mention = parse_marked_text(line)
        assert len(corpus.aliases.lookup(mention.surface)) >= 2, line
    seen = {mention.text for split in SPLITS for mention in corpus.mentions(split)}
    assert not seen & {parse_marked_text(line).text for line in lines}


def test_golden_mentions(corpus):
    bad = BadRecords(0)
    golden = list(read_mentions(DATA / "golden.jsonl", bad, corpus.entities))
    assert len(golden) == 38
    seen = {mention.text for split in SPLITS for mention in corpus.mentions(split)}
    assert not seen & {mention.text for mention in golden}
    for mention in golden:
        candidates = corpus.aliases.lookup(mention.surface)
        assert candidates, mention
        assert mention.gold is None or mention.gold in candidates, mention


def test_the_vocabulary_fits_the_bert_config_and_spells_every_text(corpus):
    pieces = (DATA / "vocab.txt").read_text(encoding="utf-8").splitlines()
    config = json.loads((DATA / "bert_config.json").read_text())
    assert config["vocab_size"] == len(pieces) == len(set(pieces))
    assert pieces[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    known = set(pieces)
    for split in SPLITS:
        for mention in corpus.mentions(split):
            for char in unicodedata.normalize("NFD", mention.text.lower()):
                if unicodedata.category(char)[0] in "LNP":
                    assert char in known, (char, mention)

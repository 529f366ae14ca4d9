"""The page's tokenizer gives the ids and offsets of training's."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_export.config import FeaturesConfig
from bert_export.corpus import jsonl
from bert_export.corpus.records import BadRecords
from bert_export.features.tokenizer import WordPiece, load_vocab
from tests import tiny_text
from tests.page import modules

DATA = Path(__file__).resolve().parents[2] / "data"
MANY_SCRIPTS = tiny_text.VOCAB
CONTEXTS = ("a{}b", "{}", "ab {} ba", "e\u0301{}\u0301", "{}{}")


def expected(
    vocab: Sequence[str], texts: Sequence[str], lower_case: bool = True
) -> list[dict[str, list[int]]]:
    """Ids, starts and ends; offsets in code points, rounded out to whole ones."""
    tokenizer = WordPiece(vocab, FeaturesConfig(lower_case=lower_case))
    ids, starts, ends = (
        ragged.to_list()
        for ragged in tokenizer.tokenize_with_offsets(
            tf.constant([text.encode() for text in texts])
        )
    )
    return [
        {"ids": row, "starts": character(text, first), "ends": behind(text, last)}
        for text, row, first, last in zip(texts, ids, starts, ends)
    ]


def character(text: str, offsets: list[int]) -> list[int]:
    """The characters that have these bytes."""
    of_byte = [n for n, char in enumerate(text) for _ in char.encode()]
    return [of_byte[offset] for offset in offsets]


def behind(text: str, offsets: list[int]) -> list[int]:
    """The characters that begin at or after these bytes."""
    return [number + 1 for number in character(text, [n - 1 for n in offsets])]


def assert_same(
    vocab: Sequence[str], texts: Sequence[str], lower_case: bool = True
) -> None:
    found = modules.encode(
        vocab=list(vocab),
        characters=modules.characters(lower_case),
        features={"max_seq_length": 128, "mention_marker": ""},
        texts=list(texts),
    )
    for text, ours, theirs in zip(
        texts, found, expected(vocab, texts, lower_case), strict=True
    ):
        assert ours == theirs, (text, [hex(ord(char)) for char in text])


def scripts(text: str) -> list[str]:
    return [context.replace("{}", text) for context in CONTEXTS]


@pytest.fixture(scope="module")
def sample_vocab() -> list[str]:
    return load_vocab(DATA / "vocab.txt")


@pytest.mark.parametrize("lower_case", [True, False])
def test_every_character_of_the_basic_plane_and_some_above(lower_case: bool) -> None:
    points = [*range(0xD800), *range(0xE000, 0x10000)]
    rng = random.Random(5)
    points += rng.sample(range(0x10000, 0x30000), 6000)
    points += [*range(0xE0000, 0xE0200), *range(0x1F300, 0x1FB00)]
    normal = {
        char
        for point in points
        for char in modules.characters(lower_case)["replaced"].get(
            chr(point), chr(point)
        )
    }
    # tensorflow_text takes no piece that begins with NUL. No piece is white space:
    # see the last test.
    pieces = sorted(char for char in normal - set("ab\0") if not char.isspace())[::3]
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "##a", "##b", "ab", *pieces]
    vocab += [f"##{piece}" for piece in pieces]
    assert_same(vocab, [f"a{chr(point)}b {chr(point)}" for point in points], lower_case)


def test_the_sample_corpus(sample_vocab: list[str]) -> None:
    bad = BadRecords()
    entities = {e.id: e for e in jsonl.read_entities(DATA / "entities.jsonl", bad)}
    texts = [entity.description for entity in entities.values()]
    texts += [name for e in entities.values() for name in (e.name, *e.aliases)]
    mentions = jsonl.read_mentions(DATA / "mentions.jsonl", bad, entities)
    texts += [mention.text for mention in mentions]
    assert_same(sample_vocab, texts)
    assert_same(sample_vocab, texts, lower_case=False)


SPECIAL = [
    "",
    " ",
    "\n\t\r",
    "the [MASK] of [CLS] money [SEP] [UNK] [PAD]",
    "##ing ing## # ## a##ing",
    "don't... can't?!",
    "naïve café NAÏVE CAFE\u0301 e\u0301\u0323",
    "한국 각 ᄒ\u1161\u11ab 한",
    "北京银行bank北",
    "ﬁ ﬀ ½ ß ẞ … ς ΟΣ Σ İ ı ſ Ǆ",
    "👨\u200d👩\u200d👧 👍🏽 🇩🇪 ☃\ufe0f 😀bank",
    "بنك\u200f بَنْك \u202eabc\u202c",
    "a\x00b\x07c\x7fd\x85e\u2028f\ufefff\ufffdg\u00adh",
    "a" * 99,
    "a" * 100,
    "a" * 101,
    "é" * 100,
    "é" * 101,
    "北" * 40,
    "ος" * 25 + "σ",
    "ος" * 25 + "σa",
    "😀" * 25,
    "😀" * 26,
    "ban" * 33 + "k",
    "\u0301\u0302",
    "\u0301bank\u0301\u0302 \u0301",
    "\u200d",
    "มาก กา",
    "unaffable unaffableq qunable",
]


@pytest.mark.parametrize("lower_case", [True, False])
def test_what_tokenizers_trip_over(lower_case: bool, sample_vocab: list[str]) -> None:
    texts = [variant for text in SPECIAL for variant in scripts(text)]
    assert_same(MANY_SCRIPTS, texts, lower_case)
    assert_same(sample_vocab, texts, lower_case)


ALPHABET = st.one_of(
    st.sampled_from("abknigqABK 北京กาο ς😀[]#'.\u0301\u200d\u0345"),
    st.characters(exclude_categories=["Cs"]),
)


def test_thousands_of_random_strings() -> None:
    collected: list[str] = []

    @settings(max_examples=3000, database=None, derandomize=True)
    @given(st.text(ALPHABET, max_size=40))
    def collect(text: str) -> None:
        collected.append(text)

    collect()
    rng = random.Random(11)
    words = ["bank", "river", "the", "un", "able", "ing", "北京", "[MASK]", "q"]
    for _ in range(3000):
        joint = rng.choice(["", " ", "\u0301", "-", "\u00a0", "\u200b"])
        collected.append(joint.join(rng.choices(words, k=rng.randint(1, 8))))
    assert len(collected) >= 6000
    assert_same(MANY_SCRIPTS, collected)


def test_half_a_surrogate_pair_is_the_replacement_character() -> None:
    given_texts = ["bank \ud83d bank", "\ude00", "a\udc00b"]
    found = modules.encode(
        vocab=MANY_SCRIPTS,
        characters=modules.characters(),
        features={"max_seq_length": 128, "mention_marker": ""},
        texts=given_texts,
    )
    replaced = [
        "".join("\ufffd" if 0xD800 <= ord(c) < 0xE000 else c for c in text)
        for text in given_texts
    ]
    assert found == expected(MANY_SCRIPTS, replaced)


def test_pieces_with_punctuation_inside_are_never_found() -> None:
    vocab = [*MANY_SCRIPTS, "don't", "...", "a.b", "##.b", "[mask]"]
    assert_same(vocab, ["don't", "a...b", "a.b", "x'", "[mask]", "[MASK]"])


def test_the_one_difference_a_piece_with_white_space_inside() -> None:
    # tensorflow_text finds it, as no other WordPiece does. No BERT has such pieces.
    vocab = [*MANY_SCRIPTS, "bank river"]
    found = modules.encode(
        vocab=vocab,
        characters=modules.characters(),
        features={"max_seq_length": 128, "mention_marker": ""},
        texts=["bank river"],
    )
    assert found[0]["ids"] == [vocab.index("bank"), vocab.index("river")]
    (theirs,) = expected(vocab, ["bank river"])
    assert theirs["ids"] == [vocab.index("bank river")]

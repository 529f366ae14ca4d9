"""Small SentencePiece models, trained here with the sentencepiece library."""

from __future__ import annotations

import functools
import io
import json
import random
from pathlib import Path
from typing import Any

from bert_export.config import FeaturesConfig
from bert_export.features.sentencepiece import SentencePiece

DATA = Path(__file__).resolve().parents[1] / "data"
SPECIALS = {"cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "unk": "[UNK]"}
_SENTENCES = (
    "他坐在河边的银行旁边。北京银行在北京。東京都の銀行でお金を預ける。",
    "ページの長さは三キロメートルです。コンピューターとガラス、ハンカク。",
    "ธนาคารอยู่ริมแม่น้ำ มากกว่าหนึ่งแห่ง ภาษาไทยไม่มีช่องว่าง",
    "한국은행은 서울에 있다. Москва — столица. بنك النيل على النهر",
    "The office of the final bank sat by the river; fishing is free of fees.",
    "Ein Fluß, ½ Liter, cafe\u0301 und café, naïve façade, I.N.G. № 5, 3 ℃ … 👍",
)


def corpus() -> list[str]:
    """The sample corpus and sentences of other scripts."""
    texts = []
    for name in ("entities.jsonl", "mentions.jsonl"):
        for line in (DATA / name).read_text("utf-8").splitlines():
            record = json.loads(line)
            texts.append(record.get("text") or record["description"])
    return [*texts, *(_SENTENCES * 8)]


# The options of each model beside those that all have.
MODELS: dict[str, dict[str, Any]] = {
    "unigram": {"model_type": "unigram"},
    # As ALBERT's: brackets and the like are always pieces of their own.
    "symbols": {
        "model_type": "unigram",
        "user_defined_symbols": ["(", ")", "<m>", "é", "北京"],
    },
    "bpe": {"model_type": "bpe", "byte_fallback": True, "vocab_size": 1600},
    "case_folding": {
        "model_type": "bpe",
        "normalization_rule_name": "nmt_nfkc_cf",
    },
    "identity": {
        "model_type": "unigram",
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    },
    "plain": {
        "model_type": "bpe",
        "normalization_rule_name": "nfkc",
        "add_dummy_prefix": False,
        "split_by_whitespace": False,
    },
    "suffix": {
        "model_type": "unigram",
        "treat_whitespace_as_suffix": True,
        "remove_extra_whitespaces": False,
    },
    "characters": {"model_type": "char"},
}


@functools.cache
def model(name: str = "unigram") -> bytes:
    """The bytes of one of MODELS, of the same bytes on every call."""
    import sentencepiece

    options: dict[str, Any] = {
        "vocab_size": 1200,
        "hard_vocab_limit": False,
        "character_coverage": 0.999,
        "control_symbols": [SPECIALS["cls"], SPECIALS["sep"], SPECIALS["pad"]],
        "unk_piece": SPECIALS["unk"],
        "unk_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "num_threads": 1,
        "minloglevel": 2,
        **MODELS[name],
    }
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=written, **options
    )
    return written.getvalue()


@functools.cache
def tokenizer(name: str = "unigram", lower_case: bool = False) -> SentencePiece:
    """The tokenizer under test with one of MODELS."""
    return SentencePiece(model(name), FeaturesConfig(lower_case=lower_case))


# Ranges of characters: Latin with marks, Greek, Cyrillic, Hebrew, Arabic, Devanagari,
# Thai, Hangul jamo and syllables, symbols, kana, compatibility squares, Han, full and
# half width, presentation forms, emoji, tags, and everything.
_RANGES = (
    *((0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x590), (0x590, 0x780)),
    *((0x900, 0x980), (0xE00, 0xE80), (0x1100, 0x1200), (0x2000, 0x2800)),
    *((0x3000, 0x3100), (0x3200, 0x3400), (0x4E00, 0x5000), (0xAC00, 0xAD00)),
    *((0xF900, 0xFB50), (0xFB50, 0xFE00), (0xFE00, 0x10000), (0x1F300, 0x1F700)),
    *((0x1D400, 0x1D800), (0x20000, 0x20100), (0xE0000, 0xE0200), (0, 0x110000)),
)
_BLANKS = " \t\n\r\u3000\xa0\u2028\u2009\u200b\ufeff\x85\x00\x01\u2581"


def random_texts(count: int, seed: int = 17) -> list[str]:
    """Words of the corpus, runs of one script and odd white space, in one text each."""
    rng = random.Random(seed)
    words = [word for text in corpus() for word in text.split()]

    def part() -> str:
        kind = rng.random()
        if kind < 0.3:
            word = rng.choice(words)
            begin = rng.randrange(len(word))
            return word[begin : begin + rng.randint(1, 12)]
        if kind < 0.55:
            return rng.choice(_BLANKS) * rng.randint(1, 3)
        if kind < 0.6:
            return rng.choice(
                ["[SEP]", "<s>", "<m>", "[UNK]", "<0x41>", "㌖", "ﬁ", "ｶﾞ"]
            )
        low, high = rng.choice(_RANGES)
        points = [rng.randrange(low, high) for _ in range(rng.randint(1, 5))]
        return "".join(chr(p) for p in points if not 0xD800 <= p < 0xE000)

    return ["".join(part() for _ in range(rng.randint(1, 8))) for _ in range(count)]

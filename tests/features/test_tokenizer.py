from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from bert_export.config import FeaturesConfig
from bert_export.errors import UserError
from bert_export.features.tokenizer import WordPiece, load_vocab

MINIMAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "##b"]


def write_vocab(path: Path, pieces: list[str], newline: str = "\n") -> Path:
    path.write_bytes("".join(piece + newline for piece in pieces).encode("utf-8"))
    return path


def write_tokenizer_json(path: Path, ids: dict[str, int], **model: object) -> Path:
    content = {"model": {"type": "WordPiece", "vocab": ids, **model}}
    path.write_text(json.dumps(content), "utf-8")
    return path


def pieces_of(vocab: list[str], text: str, lower_case: bool = True) -> list[str]:
    ids = WordPiece(vocab, FeaturesConfig(lower_case=lower_case)).tokenize(
        tf.constant([text])
    )
    return [vocab[index] for index in ids[0].numpy()]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_vocab_txt(tmp_path, newline):
    pieces = [*MINIMAL, "\u2028", "\x85", "北"]
    path = write_vocab(tmp_path / "vocab.txt", pieces, newline)
    assert load_vocab(path) == pieces


def test_vocab_txt_without_a_last_newline_or_with_blank_last_lines(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(MINIMAL), "utf-8")
    assert load_vocab(path) == MINIMAL
    path.write_text("\n".join(MINIMAL) + "\n\n\n", "utf-8")
    assert load_vocab(path) == MINIMAL


def test_tokenizer_json(tmp_path):
    ids = {piece: index for index, piece in reversed(list(enumerate(MINIMAL)))}
    path = write_tokenizer_json(tmp_path / "tokenizer.json", ids)
    assert load_vocab(path) == MINIMAL


def test_tokenizer_json_takes_added_tokens(tmp_path):
    content = {
        "model": {"vocab": dict(zip(MINIMAL, range(6)))},
        "added_tokens": [
            {"id": 0, "content": "[PAD]"},
            {"id": 6, "content": "[MENTION]"},
        ],
    }
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), "utf-8")
    assert load_vocab(path) == [*MINIMAL, "[MENTION]"]


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        (["[PAD]", "[UNK]", "a"], r"\[CLS\], \[SEP\] missing"),
        (["a", *MINIMAL[:4]], r"expected \[PAD\] to have id 0, found 1"),
        ([*MINIMAL, "a"], r"'a' has two ids, 4 and 6"),
        ([*MINIMAL, "", "c"], r"id 6 is empty"),
        ([], r"\[PAD\], \[UNK\], \[CLS\], \[SEP\] missing"),
    ],
)
def test_bad_vocab_txt(tmp_path, pieces, message):
    path = write_vocab(tmp_path / "vocab.txt", pieces)
    with pytest.raises(UserError, match=f"vocab.txt: .*{message}"):
        load_vocab(path)


def test_unreadable_vocab(tmp_path):
    with pytest.raises(UserError, match=r"none\.txt: vocabulary not readable"):
        load_vocab(tmp_path / "none.txt")
    path = tmp_path / "vocab.txt"
    path.write_bytes(b"[PAD]\n\xff\xfe\n")
    with pytest.raises(UserError, match=r"vocab.txt: vocabulary is not UTF-8"):
        load_vocab(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a Hugging Face tokenizer.json"),
        ("[]", "not a Hugging Face tokenizer.json"),
        ('{"model": {"type": "BPE", "vocab": {}}}', "found BPE"),
        ('{"model": {"type": "Unigram", "vocab": [["a", 0.5]]}}', "found Unigram"),
        ('{"model": {"vocab": {"[PAD]": 0, "a": 0}}}', "two word pieces have one id"),
        ('{"model": {"vocab": {"[PAD]": 0, "a": 2}}}', "1 is absent"),
        ('{"model": {"vocab": {"[PAD]": null}}}', "not a Hugging Face"),
        (
            '{"model": {"vocab": {"a": 0}, "continuing_subword_prefix": "@"}}',
            "with '@'",
        ),
    ],
)
def test_bad_tokenizer_json(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    path.write_text(content, "utf-8")
    with pytest.raises(UserError, match=f"tokenizer.json: .*{message}"):
        load_vocab(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The BANKS.", ["the", "bank", "##s", "."]),
        ("unaffable", ["un", "##aff", "##able"]),
        ("[MASK] [SEP]", ["[", "mask", "]", "[", "sep", "]"]),
        ("quit", ["[UNK]"]),
        ("北京银行", ["北", "京", "银", "行"]),
        ("Río", ["r", "##i", "##o"]),
        ("Ri\u0301o", ["r", "##i", "##o"]),
        ("", []),
        (" \t\u3000\x01", []),
        ("ba\u200dnk", ["bank"]),
        ("bank\x00bank", ["bank", "bank"]),
        ("👨\u200d👩\u200d👧", ["[UNK]"]),
        ("\ufffd", ["[UNK]"]),
        ("x" * 100, ["x"] + ["##x"] * 99),
        ("x" * 101, ["[UNK]"]),
    ],
)
def test_pieces(vocab, text, expected):
    assert pieces_of(vocab, text) == expected


def test_vocab_of_special_tokens_alone():
    with pytest.raises(UserError, match="vocabulary of 4 pieces"):
        WordPiece(MINIMAL[:4])


def test_cased(vocab):
    assert pieces_of(vocab, "The Río", lower_case=False) == ["T", "##h", "##e", "[UNK]"]


def test_literal_special_tokens_stay_text(vocab):
    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    assert not special & set(pieces_of(vocab, "a [MASK] [CLS][SEP] [UNK] [PAD]"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the bank", [(0, 3), (4, 8)]),
        # An accent after its letter belongs to the letter's piece.
        ("a\u0301 a", [(0, 3), (4, 5)]),
        ("北京", [(0, 3), (3, 6)]),
        ("ba\u200dnk\u200d s", [(0, 10), (11, 12)]),
        # Before a word, a dropped character belongs to nothing.
        ("\u202ebank", [(3, 7)]),
        ("", []),
    ],
)
def test_offsets(vocab, text, expected):
    _, starts, ends = WordPiece(vocab).tokenize_with_offsets(tf.constant([text]))
    assert list(zip(starts[0].numpy(), ends[0].numpy())) == expected


def test_offsets_of_a_character_that_becomes_three_pieces(vocab):
    text = tf.constant(["a한a"])
    ids, starts, ends = WordPiece(vocab).tokenize_with_offsets(text)
    assert ids.row_lengths().numpy() == [5]
    np.testing.assert_array_equal(starts[0], [0, 1, 1, 1, 4])
    # All end inside the character or behind it, and none is empty.
    assert all(1 < end <= 4 for end in ends[0, 1:4].numpy())
    np.testing.assert_array_equal(ends[0, 4:], [5])

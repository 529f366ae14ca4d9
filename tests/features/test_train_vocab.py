"""Vocabularies are learned by the real libraries and used by the real tokenizers."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import sentencepiece
import tensorflow as tf

from bert_export.config import FeaturesConfig
from bert_export.errors import UserError
from bert_export.features.tokenizer import load_tokenizer
from bert_export.features.train_vocab import (
    SpecialTokens,
    train_sentencepiece,
    train_wordpiece,
)
from tests.command_line import ROOT, done, refused, run

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def texts():
    """The sample corpus (English, Chinese, accents) and some Thai and Turkish."""
    found = []
    for name in ("entities", "mentions"):
        for line in (ROOT / f"data/{name}.jsonl").read_text("utf-8").splitlines():
            record = json.loads(line)
            found.append(record.get("text") or record["description"])
    thai = ["ธนาคารอยู่ริมแม่น้ำ", "แม่น้ำไหลผ่านเมือง", "เมืองอยู่ริมแม่น้ำ"]
    turkish = ["Çocuğun kitabı İstanbul'da", "IŞIKLAR söndü", "ağaçların gölgesi"]
    return found + thai * 3 + turkish * 3


TEXTS = texts()
SIZE = 900


@pytest.fixture(scope="module")
def spiece():
    return train_sentencepiece(TEXTS, SIZE, character_coverage=1.0)


@pytest.fixture(scope="module")
def wordpiece():
    return train_wordpiece(TEXTS, SIZE, character_coverage=1.0)


def tokenizer(tmp_path, kind, content, **options):
    path = tmp_path / {"wordpiece": "vocab.txt", "sentencepiece": "spiece.model"}[kind]
    path.write_bytes(content)
    return load_tokenizer(path, FeaturesConfig(tokenizer=kind, **options))


def vocab(content):
    return content.decode("utf-8").split("\n")[:-1]


def processor(content):
    return sentencepiece.SentencePieceProcessor(model_proto=content)


def test_sentencepiece_has_the_size_and_berts_ids(spiece):
    model = processor(spiece)
    assert model.vocab_size() == SIZE
    assert [model.id_to_piece(i) for i in range(5)] == SPECIAL
    assert model.pad_id() == 0
    assert model.unk_id() == 1
    assert all(model.is_control(i) for i in (0, 2, 3, 4))
    # Control symbols are never found in text.
    assert not {0, 2, 3, 4} & set(model.encode("[PAD] [CLS] [SEP] [MASK]"))


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_sentencepiece_gives_texts_back(model_type):
    content = train_sentencepiece(
        TEXTS, SIZE, model_type=model_type, character_coverage=1.0, lower_case=False
    )
    model = processor(content)
    for text in TEXTS:
        assert model.decode(model.encode(text)) == model.normalize(text).replace(
            "▁", " "
        ).removeprefix(" ")
        assert 1 not in model.encode(text)


def test_our_tokenizer_gives_the_librarys_ids(tmp_path, spiece):
    ours = tokenizer(tmp_path, "sentencepiece", spiece, lower_case=False)
    expected = processor(spiece).encode(TEXTS)
    assert ours.tokenize(tf.constant(TEXTS)).to_list() == expected
    assert (ours.pad_id, ours.unk_id, ours.cls_id, ours.sep_id) == (0, 1, 2, 3)
    assert ours.size == SIZE


def test_a_model_folds_case_by_itself_unless_told_not_to(spiece):
    plain = [text for text in TEXTS if text.isascii()]
    assert len(plain) > 50
    model = processor(spiece)
    assert model.encode([t.upper() for t in plain]) == model.encode(plain)
    assert model.normalize("Ünïted Éire") == "▁ünïted▁éire"
    cased = processor(train_sentencepiece(TEXTS, SIZE, lower_case=False))
    assert cased.normalize("Ünïted Éire") == "▁Ünïted▁Éire"


def test_special_tokens_may_have_other_names():
    tokens = SpecialTokens("<pad>", "<unk>", "<s>", "</s>", "<mask>")
    content = train_sentencepiece(TEXTS, SIZE, special_tokens=tokens)
    model = processor(content)
    assert [model.id_to_piece(i) for i in range(5)] == list(tokens)
    assert vocab(train_wordpiece(TEXTS, SIZE, special_tokens=tokens))[:5] == list(
        tokens
    )


def test_wordpiece_has_the_size_and_berts_ids(tmp_path, wordpiece):
    pieces = vocab(wordpiece)
    assert 0.98 * SIZE <= len(pieces) <= SIZE
    assert len(set(pieces)) == len(pieces)
    assert pieces[:5] == SPECIAL
    ours = tokenizer(tmp_path, "wordpiece", wordpiece)
    assert (ours.pad_id, ours.unk_id, ours.cls_id, ours.sep_id) == (0, 1, 2, 3)


@pytest.mark.parametrize("lower_case", [True, False])
def test_wordpiece_knows_every_word_it_has_seen(tmp_path, lower_case):
    content = train_wordpiece(
        TEXTS, SIZE, character_coverage=1.0, lower_case=lower_case
    )
    ours = tokenizer(tmp_path, "wordpiece", content, lower_case=lower_case)
    ids = ours.tokenize(tf.constant(TEXTS))
    assert ours.unk_id not in ids.values.numpy()
    pieces = vocab(content)
    # Every piece but special tokens and characters is of use.
    used = {pieces[i] for i in ids.values.numpy()}
    longer = {p for p in pieces[5:] if len(p.removeprefix("##")) > 1}
    assert len(used & longer) > 0.7 * len(longer)
    # Chinese characters stand alone, so none has a piece that continues a word.
    assert not [p for p in pieces if p.startswith("##") and "一" <= p[2:3] <= "鿿"]


def test_frequent_words_become_one_piece():
    content = train_wordpiece(["the banker banks at the bank"] * 9 + ["xyz"], 33)
    pieces = vocab(content)
    assert "the" in pieces
    assert "bank" in pieces
    assert "xyz" not in pieces


def test_rare_characters_are_left_out():
    rare = [*TEXTS, "ꙮ"]
    assert "ꙮ" in vocab(train_wordpiece(rare, SIZE, character_coverage=1.0))
    assert "ꙮ" not in vocab(train_wordpiece(rare, SIZE, character_coverage=0.995))
    model = processor(train_sentencepiece(rare, SIZE, character_coverage=0.995))
    assert model.piece_to_id("ꙮ") == model.unk_id()


def test_the_same_texts_give_the_same_bytes_in_another_process(
    tmp_path, spiece, wordpiece
):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS), "utf-8")
    script = (
        "import pathlib, sys\n"
        "from bert_export.features import train_vocab as t\n"
        "texts = pathlib.Path(sys.argv[1]).read_text('utf-8').split('\\n')\n"
        "for f in (t.train_sentencepiece, t.train_wordpiece):\n"
        "    b = f(texts, 900, character_coverage=1.0)\n"
        "    pathlib.Path(sys.argv[1] + f.__name__).write_bytes(b)\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(path)],
        cwd=ROOT,
        # One core in place of all, and another order of sets and dicts' hashes.
        env={**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
        check=True,
        capture_output=True,
    )
    assert (tmp_path / "texts.txttrain_sentencepiece").read_bytes() == spiece
    assert (tmp_path / "texts.txttrain_wordpiece").read_bytes() == wordpiece


@pytest.mark.parametrize(
    ("train", "options"),
    [
        (train_sentencepiece, {}),
        (train_sentencepiece, {"model_type": "bpe"}),
        (train_wordpiece, {}),
    ],
)
class TestRefusals:
    def test_no_text(self, train, options):
        with pytest.raises(UserError, match="has no text"):
            train([], 100, **options)

    def test_too_large(self, train, options):
        with pytest.raises(UserError, match="--vocab_size=50000 is too large") as error:
            train(TEXTS, 50000, **options)
        assert "\n" not in str(error.value)

    def test_too_small(self, train, options):
        with pytest.raises(UserError, match="--vocab_size=60 is too small") as error:
            train(TEXTS, 60, **options)
        assert "\n" not in str(error.value)


def test_the_largest_possible_size_is_named_and_possible():
    for train in (train_sentencepiece, train_wordpiece):
        with pytest.raises(UserError, match="at most") as error:
            train(TEXTS, 50000)
        most = int(str(error.value).split("at most ")[1].split()[0])
        train(TEXTS, most)


def test_the_command_learns_both_kinds(tmp_path):
    corpus = "--corpus=data/mentions.jsonl,data/entities.jsonl"
    for kind, name in (("sentencepiece", "spiece.model"), ("wordpiece", "vocab.txt")):
        output = tmp_path / "new directory" / name
        result = done(
            "train_vocab",
            f"--type={kind}",
            corpus,
            "--vocab_size=900",
            f"--output={output}",
        )
        assert "reading" in result.stderr
        size = load_tokenizer(output, FeaturesConfig(tokenizer=kind)).size
        assert result.stdout == f"{output}: a vocabulary of {size} pieces\n"
        assert name in os.listdir(output.parent)
        assert not [n for n in os.listdir(output.parent) if "partial" in n]


def test_the_command_takes_corpus_and_output_from_a_config(tmp_path):
    arguments = (
        "train_vocab",
        "--config=configs/sample.py",
        f"--workdir={tmp_path / 'work'}",
        "--vocab_size=800",
        "--config.features.tokenizer=sentencepiece",
        "--config.features.cls_token=<s>",
        f"--config.model.vocab={tmp_path / 'a.model'}",
    )
    done(*arguments)
    written = (tmp_path / "a.model").read_bytes()
    model = processor(written)
    assert model.vocab_size() == 800
    assert model.id_to_piece(2) == "<s>"
    assert model.normalize("I") == "▁i"
    assert "a.model exists" in refused(*arguments)
    assert (tmp_path / "a.model").read_bytes() == written
    done(*arguments, "--overwrite", "--nolower_case")
    assert processor((tmp_path / "a.model").read_bytes()).normalize("I") == "▁I"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--corpus=data/mentions.jsonl"], "--vocab_size=N is needed"),
        (["--vocab_size=9"], "--corpus=FILE[,FILE] or --config"),
        (["--vocab_size=9", "--corpus=data/sentences.txt"], "--output=FILE is needed"),
        (
            ["--vocab_size=9", "--corpus=data/sentences.txt", "--output=OUT/a"],
            "--type is needed, one of wordpiece, sentencepiece",
        ),
        (
            [
                "--vocab_size=9",
                "--corpus=nix.txt",
                "--output=OUT/a",
                "--type=wordpiece",
            ],
            "--corpus: there is no file nix.txt",
        ),
        (
            [
                "--vocab_size=9",
                "--corpus=data/sentences.txt",
                "--output=OUT/a",
                "--type=wordpiece",
                "--model_type=bpe",
            ],
            "--model_type is of SentencePiece",
        ),
        (["--type=bytes"], "value should be one of <wordpiece|sentencepiece>"),
    ],
)
def test_wrong_use_is_refused(tmp_path, arguments, complaint):
    arguments = [a.replace("OUT", str(tmp_path)) for a in arguments]
    assert complaint in refused("train_vocab", *arguments)
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_where_learning_fails(tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "a", "start": 0, "end": 1, "gold": null}\n{\n', "utf-8")
    for corpus, complaint in (
        (bad, "bad.jsonl:2: broken JSON"),
        ("data/sentences.txt", "--vocab_size=10 is too small"),
    ):
        result = run(
            "train_vocab",
            "--type=sentencepiece",
            f"--corpus={corpus}",
            "--vocab_size=10",
            f"--output={tmp_path / 'out' / 'a.model'}",
        )
        assert result.returncode == 2
        assert complaint in result.stderr
        assert "Traceback" not in result.stderr
        assert not (tmp_path / "out").exists()

"""Another vocabulary for pretrained weights: its embeddings, and all else as it was."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tensorflow as tf

from bert_export.config import FeaturesConfig
from bert_export.errors import UserError
from bert_export.features.tokenizer import load_tokenizer
from bert_export.features.train_vocab import SpecialTokens, train_sentencepiece
from bert_export.modeling import checkpoint, weights
from bert_export.modeling.bert_config import BertConfig
from bert_export.modeling.linker import Linker
from bert_export.modeling.vocab_transfer import transfer_vocab
from tests.command_line import done, refused
from tests.modeling.linkers import TINY, VARIANTS, tiny_linker
from tests.sentencepiece_models import corpus

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
WORDS = [
    *("the", "bank", "river", "un", "re", "able", "ing", "ed", "er", "open", "place"),
    *("of", "in", "mo", "ney", "st", "on", "an", "le", "or", "al", "is", "at"),
]
# No vocabulary knows ꙮ; the old one lacks "##q", "x" and "##x", too.
OLD = [
    *SPECIAL,
    *("'", ".", ",", "北", "京"),
    *(letter for letter in LETTERS if letter != "x"),
    *(f"##{letter}" for letter in LETTERS if letter not in "qx"),
    *WORDS,
    *(f"##{word}" for word in WORDS),
]
TABLE = "bert/embeddings/word_embeddings"
TEXTS = [
    "the banker opened a bank at the river",
    "unreable, placing money of 北京 on an oriental isle.",
    "it's an able reader; xylem, quiz",
]


def write_vocab(path: Path, pieces: list[str]) -> Path:
    path.write_text("".join(f"{piece}\n" for piece in pieces), "utf-8")
    return path


def write_model(
    directory: Path,
    vocab: list[str] | bytes,
    config: BertConfig = TINY,
    rows: int | None = None,
) -> Linker:
    """A tiny encoder with Google's names, its config and its vocabulary."""
    directory.mkdir()
    if isinstance(vocab, bytes):
        (directory / "spiece.model").write_bytes(vocab)
        size = sentencepiece.SentencePieceProcessor(model_proto=vocab).vocab_size()
    else:
        write_vocab(directory / "vocab.txt", vocab)
        size = len(vocab)
    config = dataclasses.replace(config, vocab_size=rows or size)
    values = dataclasses.asdict(config)
    (directory / "bert_config.json").write_text(json.dumps(values), "utf-8")
    linker = tiny_linker(config=config, seed=3)
    names = [variable.name.removesuffix(":0") for variable in linker.variables]
    tf.raw_ops.SaveV2(
        prefix=str(directory / "bert_model.ckpt"),
        tensor_names=[*names, "cls/predictions/output_bias"],
        shape_and_slices=[""] * (len(names) + 1),
        tensors=[*linker.variables, tf.zeros([config.vocab_size])],
    )
    return linker


def table_of(directory: Path) -> np.ndarray:
    prefix = weights.prepare_checkpoint(str(directory), directory)
    return checkpoint.read(prefix, checkpoint.open_reader(prefix), TABLE)


def loaded(directory: Path, spans: int = 2) -> Linker:
    """The linker that a run with this `model.pretrained` would start from."""
    files = weights.pretrained_files(str(directory))
    assert files.bert_config is not None
    config = BertConfig.from_json(files.bert_config)
    weights.check_pretrained(str(directory), config, files.bert_config)
    linker = Linker(config, spans)
    report = weights.initialize(
        weights.prepare_checkpoint(str(directory), directory), linker.variables
    )
    assert report.new == ("linker/bias", "linker/kernel")
    assert report.unused == ()
    return linker


def states(linker: Linker, directory: Path, features: FeaturesConfig) -> np.ndarray:
    """Hidden states of TEXTS' pieces [pieces, hidden_size], with its own vocabulary."""
    files = weights.pretrained_files(str(directory), features.tokenizer)
    assert files.vocab is not None
    tokenizer = load_tokenizer(files.vocab, features)
    found = []
    for ids in tokenizer.tokenize(tf.constant(TEXTS)).to_list():
        row = np.array([ids[:24]])
        everywhere = np.arange(row.size)[np.newaxis]
        hidden = linker.encoder(row, np.ones_like(row), np.zeros_like(row), everywhere)
        found.append(hidden.numpy().reshape(row.size, -1))
    return np.concatenate(found)


def spiece(
    size: int = 260, tokens: SpecialTokens | None = None, lower_case: bool = True
) -> bytes:
    return train_sentencepiece(
        [*TEXTS, *corpus()],
        size,
        lower_case=lower_case,
        special_tokens=tokens,
        character_coverage=0.98,
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_pieces_in_another_order_give_the_same_states(tmp_path, variant):
    source = write_model(tmp_path / "old", OLD, VARIANTS[variant])
    new = write_vocab(tmp_path / "v.txt", [*SPECIAL, *OLD[:4:-1]])
    report = transfer_vocab(str(tmp_path / "old"), new, tmp_path / "new")
    assert (report.copied, report.averaged, report.unknown) == (len(OLD), 0, 0)
    found = loaded(tmp_path / "new")
    for ours, theirs in zip(found.encoder.variables, source.encoder.variables):
        if ours.name != f"{TABLE}:0":
            np.testing.assert_array_equal(ours, theirs, err_msg=ours.name)
    features = FeaturesConfig()
    np.testing.assert_array_equal(
        states(found, tmp_path / "new", features),
        states(source, tmp_path / "old", features),
    )


def test_the_same_sentencepiece_model_gives_the_same_states(tmp_path):
    model = spiece()
    source = write_model(tmp_path / "old", model, VARIANTS["albert"])
    (tmp_path / "v.model").write_bytes(model)
    report = transfer_vocab(
        str(tmp_path / "old"), tmp_path / "v.model", tmp_path / "new"
    )
    assert (report.copied, report.averaged, report.unknown) == (260, 0, 0)
    assert (tmp_path / "new" / "spiece.model").read_bytes() == model
    features = FeaturesConfig(tokenizer="sentencepiece", lower_case=False)
    np.testing.assert_array_equal(
        states(loaded(tmp_path / "new"), tmp_path / "new", features),
        states(source, tmp_path / "old", features),
    )


def test_pieces_are_means_of_what_they_are_cut_into(tmp_path):
    write_model(tmp_path / "old", OLD)
    expected = {
        # Piece: the old ones.
        "unable": ["un", "##able"],
        "##abled": ["##able", "##d"],
        "##bank": ["##bank"],
        # An uncased vocabulary gives capitals and accents their letters' embeddings.
        "Bánk": ["bank"],
        "o'er": ["o", "'", "er"],
        "##'er": ["'", "er"],
        "##北": ["北"],
        "北京ing": ["北", "京", "ing"],
        # Without what is unknown, unless all is.
        "ing.x": ["ing", "."],
        "xen": ["[UNK]"],
        "##qe": ["[UNK]"],
        "ꙮ": ["[UNK]"],
        "##": ["[UNK]"],
        "[unused1]": ["[UNK]"],
    }
    new = write_vocab(tmp_path / "v.txt", [*SPECIAL, *expected])
    report = transfer_vocab(str(tmp_path / "old"), new, tmp_path / "new")
    assert (report.copied, report.averaged, report.unknown) == (5 + 3, 6, 5)
    old, found = table_of(tmp_path / "old"), table_of(tmp_path / "new")
    np.testing.assert_array_equal(found[:5], old[:5])
    for row, (piece, pieces) in zip(found[5:], expected.items()):
        mean = np.mean([old[OLD.index(p)] for p in pieces], axis=0)
        np.testing.assert_allclose(row, mean, atol=1e-7, err_msg=piece)


def greedy(word: str, first: str) -> list[str]:
    """WordPiece as Devlin et al. 2018 do it: longest match first."""
    pieces: list[str] = []
    while word:
        prefix = "##" if pieces else first
        for end in range(len(word), 0, -1):
            if prefix + word[:end] in OLD:
                pieces.append(prefix + word[:end])
                word = word[end:]
                break
        else:
            return ["[UNK]"]
    return pieces


def test_sentencepiece_in_place_of_wordpiece(tmp_path):
    write_model(tmp_path / "old", OLD)
    (tmp_path / "v.model").write_bytes(spiece(400))
    transfer_vocab(str(tmp_path / "old"), tmp_path / "v.model", tmp_path / "new")
    old, found = table_of(tmp_path / "old"), table_of(tmp_path / "new")
    model = sentencepiece.SentencePieceProcessor(
        model_file=str(tmp_path / "new" / "spiece.model")
    )
    compared = {"begins": 0, "goes on": 0}
    for index in range(5, 400):
        piece = model.id_to_piece(index)
        begins = piece.startswith("▁")
        if piece.removeprefix("▁").isalpha() and piece.removeprefix("▁").isascii():
            pieces = greedy(piece.removeprefix("▁"), "" if begins else "##")
            mean = np.mean([old[OLD.index(p)] for p in pieces], axis=0)
            np.testing.assert_allclose(found[index], mean, atol=1e-7, err_msg=piece)
            compared["begins" if begins else "goes on"] += 1
    assert min(compared.values()) > 40
    np.testing.assert_array_equal(found[:5], old[:5])
    np.testing.assert_array_equal(found[model.piece_to_id("▁")], old[1])


def most_likely(model: sentencepiece.SentencePieceProcessor, text: str) -> list[int]:
    """The unigram model's best segmentation of a text, no blank before it."""
    ids = {model.id_to_piece(i): i for i in range(5, model.vocab_size())}
    best: list[tuple[float, list[int]]] = [(0.0, [])]
    for end in range(1, len(text) + 1):
        best.append(
            max(
                (
                    (best[start][0] + model.get_score(i), [*best[start][1], i])
                    for start in range(end)
                    if (i := ids.get(text[start:end])) is not None
                ),
                default=(-math.inf, []),
            )
        )
    return best[-1][1]


def test_wordpiece_in_place_of_sentencepiece(tmp_path):
    write_model(tmp_path / "old", spiece(), VARIANTS["albert"])
    words = ["bankers", "reopening", "placed", "unlikely", "The", "zoology"]
    new = write_vocab(
        tmp_path / "v.txt", [*SPECIAL, *words, *(f"##{word}" for word in words)]
    )
    transfer_vocab(str(tmp_path / "old"), new, tmp_path / "new")
    model = sentencepiece.SentencePieceProcessor(
        model_file=str(tmp_path / "old" / "spiece.model")
    )
    cut = [model.encode(word) for word in words]
    cut += [most_likely(model, word.lower()) for word in words]
    assert all(len(ids) > 1 for ids in cut[:4])
    old, found = table_of(tmp_path / "old"), table_of(tmp_path / "new")
    for row, ids in zip(found[5:], cut):
        np.testing.assert_allclose(row, old[ids].mean(axis=0), atol=1e-7)


def test_special_tokens_keep_their_roles_whatever_their_names(tmp_path):
    theirs = SpecialTokens("<pad>", "<unk>", "<s>", "</s>", "<mask>")
    write_model(tmp_path / "old", spiece(tokens=theirs), VARIANTS["albert"])
    # In another order, too.
    new = write_vocab(tmp_path / "v.txt", ["[PAD]", *SPECIAL[:0:-1], "bank"])
    transfer_vocab(str(tmp_path / "old"), new, tmp_path / "new")
    old, found = table_of(tmp_path / "old"), table_of(tmp_path / "new")
    np.testing.assert_array_equal(found[:5], old[[0, 4, 3, 2, 1]])


def test_a_cased_vocabulary_is_asked_with_case(tmp_path):
    cased = [*OLD, "The", "Bank", "Open"]
    write_model(tmp_path / "old", cased)
    new = write_vocab(tmp_path / "v.txt", [*SPECIAL, "Banker", "banker"])
    transfer_vocab(str(tmp_path / "old"), new, tmp_path / "new")
    old, found = table_of(tmp_path / "old"), table_of(tmp_path / "new")
    for row, first in zip(found[5:], ("Bank", "bank")):
        mean = old[[cased.index(first), cased.index("##er")]].mean(axis=0)
        np.testing.assert_allclose(row, mean, atol=1e-7)


def test_the_same_input_gives_the_same_bytes(tmp_path):
    write_model(tmp_path / "old", OLD, rows=len(OLD) + 9)
    (tmp_path / "v.model").write_bytes(spiece())
    for name in ("a", "b"):
        transfer_vocab(str(tmp_path / "old"), tmp_path / "v.model", tmp_path / name)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == [
        "bert_config.json",
        "bert_model.ckpt.data-00000-of-00001",
        "bert_model.ckpt.index",
        "spiece.model",
    ]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (
            tmp_path / "b" / name
        ).read_bytes()
    old = json.loads((tmp_path / "old" / "bert_config.json").read_text("utf-8"))
    new = json.loads((tmp_path / "a" / "bert_config.json").read_text("utf-8"))
    assert new == old | {"vocab_size": 260}


def test_bad_input_is_refused_and_nothing_written(tmp_path):
    old = tmp_path / "old"
    write_model(old, OLD)
    good = write_vocab(tmp_path / "good.txt", OLD)
    config = (old / "bert_config.json").read_text("utf-8")
    index = old / "bert_model.ckpt.index"
    before = index.read_bytes()

    def refuse(match: str, vocab: Path = good) -> None:
        with pytest.raises(UserError, match=match) as error:
            transfer_vocab(str(old), vocab, tmp_path / "out" / "new")
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())

    refuse("nix.txt: vocabulary not readable", tmp_path / "nix.txt")
    refuse(
        "few.txt: .*CLS.* missing", write_vocab(tmp_path / "few.txt", ["[PAD]", "a"])
    )
    (tmp_path / "cut.model").write_bytes(spiece()[:999])
    refuse("cut.model: ", tmp_path / "cut.model")
    write_vocab(old / "vocab.txt", [*OLD, "more"])
    refuse(f"{len(OLD) + 1} pieces, but the weights have {len(OLD)} embeddings")
    (old / "vocab.txt").write_bytes(spiece())
    refuse("vocab.txt: expected a vocabulary for wordpiece, found one for sentence")
    (old / "vocab.txt").unlink()
    refuse("expected the weights' own vocabulary beside them, one of vocab.txt, ")
    write_vocab(old / "vocab.txt", OLD)
    (old / "bert_config.json").write_text(config.replace("16", "24"), "utf-8")
    refuse("bert_config.json: this bert does not fit the weights")
    (old / "bert_config.json").unlink()
    refuse("expected bert_config.json or config.json or albert_config.json in it")
    (old / "bert_config.json").write_text(config, "utf-8")
    (old / "bert_model.ckpt.data-00000-of-00001").write_bytes(b"short")
    refuse("cannot read .*; the checkpoint's data file is damaged")
    index.write_bytes(before[:20])
    refuse("cannot read the checkpoint")


def test_what_exists_is_kept(tmp_path):
    write_model(tmp_path / "old", OLD)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    vocab = write_vocab(tmp_path / "v.txt", OLD)
    with pytest.raises(UserError, match="out exists"):
        transfer_vocab(str(tmp_path / "old"), vocab, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    message = refused("transfer_vocab", tmp_path / "old", vocab, tmp_path / "out")
    assert message.endswith("out exists; name another OUTPUT_DIR, or remove it")
    message = refused("transfer_vocab", "old", tmp_path / "none", tmp_path / "new")
    assert message == f"transfer_vocab: there is no file {tmp_path / 'none'}"


def test_the_command(tmp_path):
    write_model(tmp_path / "old model", OLD)
    (tmp_path / "v.model").write_bytes(spiece())
    output = tmp_path / "deep" / "new"
    result = done(
        "transfer_vocab", tmp_path / "old model", tmp_path / "v.model", output
    )
    assert result.stdout.startswith(f"{output}: 260 pieces: ")
    loaded(output)
    assert len(table_of(output)) == 260

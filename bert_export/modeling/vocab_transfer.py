"""Gives a pretrained encoder another vocabulary, with embeddings made from its own.

Fast Vocabulary Transfer (Gee et al. 2022, https://arxiv.org/abs/2402.09977): the
embedding of each new piece is the mean of those that the old tokenizer cuts its text
into. All other weights stay.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
import tensorflow as tf

from bert_export.config import FeaturesConfig
from bert_export.errors import UserError
from bert_export.features.sentencepiece import (
    BLANK,
    SentencePiece,
    is_model,
    without_dummy_prefix,
)
from bert_export.features.tokenizer import (
    SUFFIX_INDICATOR,
    Tokenizer,
    WordPiece,
    load_tokenizer,
)
from bert_export.files import new_directory, write_json
from bert_export.modeling import conversion, layouts, weights
from bert_export.modeling.bert_config import BertConfig

# Special tokens by role; those of BERT, of ALBERT, of models with <s> and </s>.
_FAMILIES = (
    {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    {"pad": "<pad>", "unk": "<unk>", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"},
)
# A vocabulary is cased if so many of its pieces have capitals.
_CASED_FRACTION = 0.01
# Letters without case, accents or words of their own in any vocabulary: Linear B.
_RARE_LETTERS = range(0x10000, 0x1000C)


@dataclasses.dataclass(frozen=True)
class Transferred:
    """What the new pieces' embeddings were made from, as numbers of pieces."""

    # Embeddings of the old vocabulary, special tokens among them.
    copied: int
    # Means of two or more.
    averaged: int
    # Those of the old vocabulary's unknown piece, as it has nothing of their text.
    unknown: int

    def __str__(self) -> str:
        total = self.copied + self.averaged + self.unknown
        return (
            f"{total} pieces: {self.copied} with an old embedding, {self.averaged} "
            f"with the mean of several, {self.unknown} with the unknown piece's"
        )


@dataclasses.dataclass(frozen=True)
class _Vocabulary:
    """A tokenizer, its special tokens and its pieces by id."""

    tokenizer: Tokenizer
    features: FeaturesConfig
    # Ids by role.
    special: Mapping[str, int]
    pieces: Sequence[str]
    # Whether a piece stands for its text.
    is_text: Sequence[bool]


def transfer_vocab(pretrained: str, vocab: Path, output: Path) -> Transferred:
    """Writes a directory for `model.pretrained`: old weights, a new vocabulary.

    It has a checkpoint with Google's names, `bert_config.json` and `vocab.txt` or
    `spiece.model`; all of them or nothing. Equal input gives equal embeddings.

    Args:
      pretrained: as `config.model.pretrained`, with its vocabulary beside it.
      vocab: the new WordPiece vocabulary or SentencePiece model.
      output: the directory, which must not exist.

    Raises:
      UserError: the output exists, weights or a vocabulary cannot be read, do not fit
        each other, or lack special tokens.
    """
    if output.exists():
        raise UserError(f"{output} exists; name another directory, or remove it")
    new = _load(vocab)
    kind, old_path = _old_vocab(pretrained)
    old = _load(old_path)
    if old.features.tokenizer != kind:
        raise UserError(
            f"{old_path}: expected a vocabulary for {kind}, found one for "
            f"{old.features.tokenizer}"
        )
    files = weights.pretrained_files(pretrained, kind)
    if files.bert_config is None:
        raise UserError(
            f"{pretrained}: expected {' or '.join(weights.BERT_CONFIG_NAMES)} in it"
        )
    source = conversion.open_source(files.weights)
    bert = BertConfig.from_json(files.bert_config)
    conversion.check(source, bert, files.bert_config)
    if old.tokenizer.size > bert.vocab_size:
        raise UserError(
            f"{old_path}: {old.tokenizer.size} pieces, but the weights have "
            f"{bert.vocab_size} embeddings; expected the vocabulary they were trained "
            "with"
        )
    origins = _origins(new, old)

    values = {
        name: transform.to_ours(tensor.read())
        for name, (tensor, transform) in source.tensors.items()
        if name in source.shapes
    }
    table = values[layouts.WORD_EMBEDDINGS]
    values[layouts.WORD_EMBEDDINGS] = np.stack(
        [table[ids].mean(axis=0, dtype=np.float64) for ids in origins]
    ).astype(np.float32)
    config = json.loads(files.bert_config.read_text("utf-8"))
    _write(output, values, config | {"vocab_size": len(origins)}, new.tokenizer)
    averaged = sum(len(ids) > 1 for ids in origins)
    # Without the unknown piece itself.
    unknown = sum(ids == [old.special["unk"]] for ids in origins) - 1
    return Transferred(len(origins) - averaged - unknown, averaged, unknown)


def _old_vocab(pretrained: str) -> tuple[str, Path]:
    """The tokenizer of pretrained weights, and the vocabulary beside them."""
    # ALBERT's come with a tokenizer.json, too, which is none for WordPiece.
    for kind in ("sentencepiece", "wordpiece"):
        path = weights.pretrained_files(pretrained, kind).vocab
        if path is not None:
            return kind, path
    names = [name for names in weights.VOCAB_NAMES.values() for name in names]
    raise UserError(
        f"{pretrained}: expected the weights' own vocabulary beside them, one of "
        f"{', '.join(names)}"
    )


def _load(path: Path) -> _Vocabulary:
    """Reads a vocabulary of either kind, whatever its special tokens are called."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: vocabulary not readable: {error.strerror}") from error
    kind = "sentencepiece" if is_model(content) else "wordpiece"
    errors = []
    for names in _FAMILIES:
        features = FeaturesConfig(
            tokenizer=kind,
            lower_case=False,
            cls_token=names["cls"],
            sep_token=names["sep"],
            pad_token=names["pad"],
            unk_token=names["unk"],
        )
        try:
            tokenizer = load_tokenizer(path, features)
        except UserError as error:
            errors.append(str(error))
            continue
        pieces, is_text = _pieces(tokenizer)
        special = {role: pieces.index(n) for role, n in names.items() if n in pieces}
        for index in special.values():
            is_text[index] = False
        if _is_uncased(pieces, is_text):
            features = dataclasses.replace(features, lower_case=True)
            tokenizer = load_tokenizer(path, features)
        return _Vocabulary(tokenizer, features, special, pieces, is_text)
    if len(set(errors)) == 1:
        raise UserError(errors[0])
    families = ", or ".join(" ".join(list(n.values())[:4]) for n in _FAMILIES)
    raise UserError(f"{path}: expected the special tokens {families}; {errors[0]}")


def _pieces(tokenizer: Tokenizer) -> tuple[list[str], list[bool]]:
    """The pieces by id, and whether each stands for its text."""
    if isinstance(tokenizer, WordPiece):
        unused = [
            piece.startswith("[unused") and piece.endswith("]")
            for piece in tokenizer.vocab
        ]
        return tokenizer.vocab, [not is_unused for is_unused in unused]
    model = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.content)
    ids = range(tokenizer.size)
    is_none = (model.is_control, model.is_unknown, model.is_byte, model.is_unused)
    return (
        [model.id_to_piece(i) for i in ids],
        [not any(is_kind(i) for is_kind in is_none) for i in ids],
    )


def _is_uncased(pieces: Sequence[str], is_text: Sequence[bool]) -> bool:
    texts = [piece for piece, is_one in zip(pieces, is_text) if is_one]
    cased = sum(text != text.lower() for text in texts)
    return cased <= _CASED_FRACTION * len(texts)


def _origins(new: _Vocabulary, old: _Vocabulary) -> list[list[int]]:
    """For each new piece, the old ones whose embeddings make up its own."""
    unknown = old.special["unk"]
    same_kind = new.features.tokenizer == old.features.tokenizer
    old_ids = {piece: index for index, piece in enumerate(old.pieces)}
    roles = {index: role for role, index in new.special.items()}
    found: list[list[int]] = []
    # Of pieces that begin a word, and of those that go on with one: new ids and texts.
    texts: dict[bool, dict[int, str]] = {True: {}, False: {}}
    for index, (piece, is_text) in enumerate(zip(new.pieces, new.is_text)):
        if index in roles:
            found.append([old.special.get(roles[index], unknown)])
        elif piece in old_ids and (same_kind or not is_text):
            found.append([old_ids[piece]])
        else:
            found.append([unknown])
            if is_text:
                begins, text = _text(piece, new.features.tokenizer)
                texts[begins][index] = text
    for begins, by_index in texts.items():
        for index, ids in zip(by_index, _cut(old, list(by_index.values()), begins)):
            found[index] = [i for i in ids if i != unknown] or [unknown]
    return found


def _text(piece: str, kind: str) -> tuple[bool, str]:
    """Whether a piece begins a word, and its text."""
    if kind == "wordpiece":
        text = piece.removeprefix(SUFFIX_INDICATOR)
        return not piece.startswith(SUFFIX_INDICATOR) or not text, text or piece
    return piece.startswith(BLANK), piece.replace(BLANK, " ").strip()


def _cut(old: _Vocabulary, texts: list[str], begins: bool) -> list[list[int]]:
    """Ids of the old tokenizer for texts that begin words, or go on with them."""
    if not texts:
        return []
    tokenizer = old.tokenizer
    if begins:
        return tokenizer.tokenize(tf.constant(texts)).to_list()
    if isinstance(tokenizer, SentencePiece):
        plain = SentencePiece(without_dummy_prefix(tokenizer.content), old.features)
        return plain.tokenize(tf.constant(texts)).to_list()
    # A word that begins with a letter that is a piece, and with which no other piece
    # begins, is cut behind it.
    starts = {piece[0] for piece in tokenizer.vocab}
    letter = next(chr(c) for c in _RARE_LETTERS if chr(c) not in starts)
    carrier = WordPiece([*tokenizer.vocab, letter], old.features)
    rows = carrier.tokenize(tf.constant([f"{letter}{text}" for text in texts]))
    return [[i for i in row if i != tokenizer.size] for row in rows.to_list()]


def _write(
    output: Path,
    values: Mapping[str, np.ndarray],
    config: Mapping[str, object],
    tokenizer: Tokenizer,
) -> None:
    """Writes the directory; a reader sees it whole or not at all."""
    with new_directory(output) as partial:
        conversion.write_checkpoint(partial, values)
        write_json(partial / "bert_config.json", dict(config))
        (partial / tokenizer.file_name).write_bytes(tokenizer.content)

"""Vocabularies, and WordPiece in the graph, with the source bytes of every piece."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text
from tensorflow_text.core.pybinds import (
    pywrap_fast_bert_normalizer_model_builder as normalizer_builder,
)
from tensorflow_text.core.pybinds import (
    pywrap_fast_wordpiece_tokenizer_model_builder as wordpiece_builder,
)

from bert_export.config import TOKENIZER_FILES, FeaturesConfig
from bert_export.errors import UserError
from bert_export.features.sentencepiece import SentencePiece, is_model

SUFFIX_INDICATOR = "##"
# A longer word becomes one [UNK]. In UTF-8 bytes, after normalization.
MAX_BYTES_PER_WORD = 100

_DEFAULT_FEATURES = FeaturesConfig()


def load_tokenizer(path: str | Path, config: FeaturesConfig) -> Tokenizer:
    """Reads a vocabulary and makes the tokenizer that the config names.

    Args:
      path: A SentencePiece model, or what `load_vocab` reads.
      config: The config's `features` section.

    Raises:
      UserError: A file that cannot be read, is the other tokenizer's, is damaged or
        lacks a special token.
    """
    path = Path(path)
    content = _read(path)
    if config.tokenizer == "wordpiece":
        if is_model(content):
            raise UserError(
                f"{path}: a SentencePiece model; expected a WordPiece vocabulary. Set "
                "features.tokenizer to 'sentencepiece'"
            )
        vocab = load_vocab(path, config)
        try:
            return WordPiece(vocab, config)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    try:
        return SentencePiece(content, config)
    except UserError as error:
        hint = ""
        if _is_text(content):
            hint = "; it is text: for a WordPiece vocabulary set features.tokenizer to "
            hint += "'wordpiece'"
        raise UserError(f"{path}: {error}{hint}") from error


def load_vocab(
    path: str | Path, config: FeaturesConfig = _DEFAULT_FEATURES
) -> list[str]:
    """Reads a WordPiece vocabulary.

    Args:
      path: BERT's vocab.txt (a word piece a line, its id the line's number from 0)
        or a Hugging Face tokenizer.json with a WordPiece model.
      config: Names the special tokens.

    Returns:
      The word pieces, in the order of their ids.

    Raises:
      UserError: A file that cannot be read, a duplicate or empty piece, a special
        token missing, or the padding's token without the id 0.
    """
    path = Path(path)
    content = _read(path)
    try:
        # Not splitlines(): U+0085 or U+2028 may be a word piece.
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: vocabulary is not UTF-8: {error}") from error
    if path.suffix == ".json":
        vocab = _pieces_of_tokenizer_json(path, text)
    else:
        vocab = [line.removesuffix("\r") for line in text.split("\n")]
        while vocab and not vocab[-1]:
            vocab.pop()

    seen: dict[str, int] = {}
    for index, piece in enumerate(vocab):
        if not piece:
            raise UserError(f"{path}: the word piece with id {index} is empty")
        if piece in seen:
            raise UserError(
                f"{path}: the word piece {piece!r} has two ids, {seen[piece]} and "
                f"{index}; expected distinct pieces"
            )
        seen[piece] = index
    pad = config.pad_token
    specials = (pad, config.unk_token, config.cls_token, config.sep_token)
    missing = [piece for piece in specials if piece not in seen]
    if missing:
        raise UserError(
            f"{path}: {', '.join(missing)} missing; expected a BERT vocabulary"
        )
    if seen[pad] != 0:
        raise UserError(f"{path}: expected {pad} to have id 0, found {seen[pad]}")
    return vocab


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: vocabulary not readable: {error.strerror}") from error


def _is_text(content: bytes) -> bool:
    try:
        return bool(content.decode("utf-8").strip()) and b"\0" not in content
    except UnicodeDecodeError:
        return False


def _pieces_of_tokenizer_json(path: Path, text: str) -> list[str]:
    try:
        content = json.loads(text)
        model = content["model"]
        kind = model.get("type", "WordPiece")
        ids = dict(model["vocab"])
        for token in content.get("added_tokens") or []:
            ids.setdefault(token["content"], token["id"])
        by_id = {int(index): piece for piece, index in ids.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not a Hugging Face tokenizer.json with a WordPiece model "
            f"({type(error).__name__}: {error})"
        ) from error
    prefix = model.get("continuing_subword_prefix", SUFFIX_INDICATOR)
    if kind != "WordPiece" or prefix != SUFFIX_INDICATOR:
        raise UserError(
            f"{path}: expected a WordPiece model with the prefix "
            f"{SUFFIX_INDICATOR!r}, found {kind} with {prefix!r}"
        )
    if len(by_id) != len(ids):
        raise UserError(f"{path}: two word pieces have one id")
    if sorted(by_id) != list(range(len(by_id))):
        absent = next(i for i in range(len(by_id)) if i not in by_id)
        raise UserError(
            f"{path}: ids must run from 0 to {len(by_id) - 1}; {absent} is absent"
        )
    return [by_id[index] for index in range(len(by_id))]


class WordPiece:
    """BERT's tokenizer: normalization, splitting into words, WordPiece.

    Linear-time WordPiece (Song et al., 2021, https://arxiv.org/abs/2012.15524) by
    tensorflow_text. With `lower_case`, text is case-folded (NFKC), decomposed and
    stripped of accents first. Control characters count as white space, format
    characters (zero-width joiners, direction marks) are dropped, Chinese
    characters and punctuation stand alone. The literal text `[MASK]` is ordinary
    text.

    Works eagerly, in tf.function, in tf.data and in graphs of TensorFlow 1.
    """

    file_name = TOKENIZER_FILES["wordpiece"]

    def __init__(
        self, vocab: Sequence[str], config: FeaturesConfig = _DEFAULT_FEATURES
    ):
        """Compiles the tokenizer for a vocabulary of `load_vocab`.

        Args:
          vocab: The word pieces, the special tokens among them.
          config: The config's `features` section: `lower_case` and the special
            tokens' names.

        Raises:
          UserError: A vocabulary without any word piece but special tokens.
        """
        self.vocab = list(vocab)
        self.size = len(self.vocab)
        self._ids = {piece: index for index, piece in enumerate(self.vocab)}
        self.unk_id = self._ids[config.unk_token]
        self.cls_id = self._ids[config.cls_token]
        self.sep_id = self._ids[config.sep_token]
        self.pad_id = self._ids[config.pad_token]
        try:
            wordpiece_model = wordpiece_builder.build_fast_wordpiece_model(
                self.vocab,
                MAX_BYTES_PER_WORD,
                SUFFIX_INDICATOR,
                config.unk_token,
                False,
                False,
            )
        except RuntimeError as error:
            raise UserError(f"vocabulary of {self.size} pieces: {error}") from error
        # Kept as arrays: a tensor would belong to the graph it was made in.
        self._wordpiece_model = np.frombuffer(wordpiece_model, np.uint8)
        self._normalizer_model = np.frombuffer(
            normalizer_builder.build_fast_bert_normalizer_model(config.lower_case),
            np.uint8,
        )

    @property
    def content(self) -> bytes:
        """What the tokenizer's file holds: a word piece a line."""
        return "".join(f"{piece}\n" for piece in self.vocab).encode()

    @property
    def fingerprint(self) -> list[str]:
        """Identifies the vocabulary: the word pieces themselves."""
        return self.vocab

    def id_of(self, piece: str) -> int | None:
        """The id of a word piece; None if there is none, or it is the unknown one."""
        index = self._ids.get(piece)
        return None if index == self.unk_id else index

    def _ops(self) -> tuple[tf_text.FastBertNormalizer, tf_text.FastWordpieceTokenizer]:
        normalizer = tf_text.FastBertNormalizer(
            model_buffer=tf.constant(self._normalizer_model)
        )
        wordpiece = tf_text.FastWordpieceTokenizer(
            model_buffer=tf.constant(self._wordpiece_model), token_out_type=tf.int64
        )
        return normalizer, wordpiece

    def tokenize(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Word-piece ids of texts.

        Args:
          text: [n] UTF-8 strings.

        Returns:
          [n, pieces] int64.
        """
        normalizer, wordpiece = self._ops()
        ids = wordpiece.tokenize(normalizer.normalize(text))
        return ids.with_row_splits_dtype(tf.int64)

    def tokenize_with_offsets(
        self, text: tf.Tensor
    ) -> tuple[tf.RaggedTensor, tf.RaggedTensor, tf.RaggedTensor]:
        """Word-piece ids of texts and the bytes of the text that each comes from.

        Unlike tensorflow_text's own offsets, a piece is never given an empty
        range: where one character becomes several pieces (a Hangul syllable is
        decomposed), each of them starts at that character and ends inside or
        behind it. Dropped characters (accents, joiners) belong to the piece right
        before them, if there is one.

        Args:
          text: [n] UTF-8 strings.

        Returns:
          ids, starts and ends (exclusive), each [n, pieces] int64.
        """
        normalizer, wordpiece = self._ops()
        normalized, sources = normalizer.normalize_with_offsets(text)
        ids, starts, ends = (
            ragged.with_row_splits_dtype(tf.int64)
            for ragged in wordpiece.tokenize_with_offsets(normalized)
        )
        # sources: the source byte of every normalized byte, and the text's end.
        sources = sources.with_row_splits_dtype(tf.int64)
        row_starts = tf.gather(sources.row_starts(), ids.value_rowids())

        def source(normalized_byte: tf.Tensor) -> tf.Tensor:
            index = row_starts + tf.cast(normalized_byte, tf.int64)
            return tf.cast(tf.gather(sources.values, index), tf.int64)

        source_ends = tf.maximum(source(ends.values), source(ends.values - 1) + 1)
        return (
            ids,
            ids.with_values(source(starts.values)),
            ids.with_values(source_ends),
        )


Tokenizer = WordPiece | SentencePiece

"""SentencePiece tokenization in the graph, with the source bytes of every piece."""

from __future__ import annotations

import functools
import hashlib
import sys
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

# The op class of the public API makes a resource of its own, and parses the model
# anew, wherever it is used; the plain operations can share one.
from tensorflow_text.python.ops.sentencepiece_tokenizer import (
    gen_sentencepiece_tokenizer as sentencepiece_ops,
)

from bert_export.config import TOKENIZER_FILES, FeaturesConfig
from bert_export.errors import UserError

# What white space becomes: U+2581, LOWER ONE EIGHTH BLOCK.
BLANK = "\u2581"

# Kinds of pieces and the model type CHAR,
# https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6
_CHAR = 4


class SentencePiece:
    """A SentencePiece model (Kudo and Richardson, 2018, arxiv.org/abs/1808.06226).

    Unigram, BPE, character and word models by tensorflow_text's operations, which
    hold the sentencepiece library itself; the model is part of the graph. Text is
    normalized by the model's own character map, with `lower_case` in lower case
    (accents stay). Control symbols are never found in text; user-defined symbols
    always are, as in the library itself.

    Works eagerly, in tf.function, in tf.data and in graphs of TensorFlow 1.
    """

    file_name = TOKENIZER_FILES["sentencepiece"]

    def __init__(self, model: bytes, config: FeaturesConfig):
        """Checks a model and makes it ready.

        Args:
          model: The bytes of a .model file.
          config: The config's `features` section: `lower_case` and the special
            tokens.

        Raises:
          UserError: No whole SentencePiece model, or one without a special token.
        """
        proto = _parse(model)
        aligner = _aligner(proto)
        self.content = model
        self.lower_case = config.lower_case
        self.size = len(proto.pieces)
        self._kinds = [piece.type for piece in proto.pieces]
        self._ids = {piece.piece: index for index, piece in enumerate(proto.pieces)}
        self._processor = _Processor(model)
        self._aligner = _Processor(aligner.SerializeToString())
        # Normalized bytes of each piece by id; not of the unknown one, whose vary.
        self._lengths = _lengths(proto)
        self._aligner_lengths = _lengths(aligner)
        # Normalized bytes of the blank that the model puts before (or behind) texts.
        normalizer = proto.normalizer_spec
        blank = BLANK if normalizer.escape_whitespaces else " "
        self._added = len(blank.encode()) if normalizer.add_dummy_prefix else 0
        self._adds_last = proto.trainer_spec.treat_whitespace_as_suffix
        self.unk_id = self._unknown_id(config.unk_token)
        self.cls_id = self._symbol_id("cls_token", config.cls_token)
        self.sep_id = self._symbol_id("sep_token", config.sep_token)
        self.pad_id = self._symbol_id("pad_token", config.pad_token)

    @property
    def fingerprint(self) -> str:
        """Identifies the vocabulary: the hex SHA-256 of the model."""
        return hashlib.sha256(self.content).hexdigest()

    def id_of(self, piece: str) -> int | None:
        """The id of a piece; None if the model lacks it or calls it unknown."""
        index = self._ids.get(piece)
        return None if index == self.unk_id else index

    def tokenize(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Piece ids of texts.

        Args:
          text: [n] UTF-8 strings.

        Returns:
          [n, pieces] int64.
        """
        if self.lower_case:
            text = _lower(text).text
        return _to_int64(self._processor.tokenize(text, tf.int32))

    def tokenize_with_offsets(
        self, text: tf.Tensor
    ) -> tuple[tf.RaggedTensor, tf.RaggedTensor, tf.RaggedTensor]:
        """Piece ids of texts and the bytes of the text that each comes from.

        A piece's range begins with its first character and ends with its last one;
        characters that the model drops belong to the piece right before them. White
        space belongs to a piece only if the piece is nothing else: "▁bank" does not
        reach over the blank before "bank". Where one character becomes several
        pieces (㌖), each has that character's range. No range is empty but that of a
        lone "▁" that stands for the blank which the model adds to every text: it
        comes from no character and has (0, 0), with models that add it at the end
        (length, length).

        Args:
          text: [n] UTF-8 strings.

        Returns:
          ids, starts and ends (exclusive), each [n, pieces] int64.
        """
        if not self.lower_case:
            return self._tokenize_with_offsets(text)
        lowered = _lower(text)
        ids, starts, ends = self._tokenize_with_offsets(lowered.text)
        return ids, *lowered.sources(starts, ends)

    def _tokenize_with_offsets(
        self, text: tf.Tensor
    ) -> tuple[tf.RaggedTensor, tf.RaggedTensor, tf.RaggedTensor]:
        """As `tokenize_with_offsets`, of text that is in lower case if need be.

        tensorflow_text's own offsets (those of the sentencepiece library) name bytes
        of the source, but of a character's pieces only the last gets its bytes, the
        others an empty range; a piece that ends inside of what a character became
        ends before that character; and white space counts for the word behind it. So
        the pieces are laid over an alignment of the normalized text, byte by byte.
        """
        ids = self._processor.tokenize(text, tf.int32)
        pieces = self._processor.tokenize(text, tf.string).values
        sizes = _num_bytes(pieces)
        # [pieces] int64, as all that follows: where pieces begin and stop in the
        # normalized bytes of all rows, one row after the other.
        lengths = tf.where(
            tf.equal(ids.values, self.unk_id),
            sizes,
            tf.gather(tf.constant(self._lengths), ids.values),
        )
        stops = tf.cumsum(lengths)
        begins = stops - lengths
        row_splits = tf.gather(tf.concat([[0], stops], axis=0), ids.row_splits)
        row = ids.value_rowids()
        row_begins = tf.gather(row_splits, row)
        row_stops = tf.gather(row_splits, row + 1)

        leading, trailing = (
            sizes - _num_bytes(tf.strings.regex_replace(pieces, blanks, ""))
            for blanks in (f"^[{BLANK} ]+", f"[{BLANK} ]+$")
        )
        has_characters = tf.cast(leading < lengths, tf.int64)
        first = begins + leading * has_characters
        stop = stops - trailing * has_characters
        if self._adds_last:
            limit = row_stops - self._added
            stop = tf.minimum(stop, limit)
            is_added = begins >= limit
            edge = tf.gather(_num_bytes(text), row)
        else:
            limit = row_begins + self._added
            first = tf.maximum(first, limit)
            is_added = stops <= limit
            edge = tf.zeros_like(begins)

        starts, ends = self._align(text)
        last_byte = tf.maximum(tf.size(starts, out_type=tf.int64) - 1, 0)
        # Of an added blank alone, neither is looked at.
        first = tf.clip_by_value(first, 0, last_byte)
        last = tf.clip_by_value(stop - 1, 0, last_byte)
        return (
            _to_int64(ids),
            ids.with_values(tf.where(is_added, edge, tf.gather(starts, first))),
            ids.with_values(tf.where(is_added, edge, tf.gather(ends, last))),
        )

    def _align(self, text: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Where normalized text comes from.

        Args:
          text: [n] UTF-8 strings.

        Returns:
          For each normalized byte of all rows [bytes] int64, the first source byte of
          the characters that it was made from, and the one behind their last.
        """
        tokens, starts, ends = self._aligner.tokenize_with_offsets(text)
        row = tokens.value_rowids()
        is_same = tf.equal(row[1:], row[:-1]) & tf.equal(starts[1:], starts[:-1])
        # What was made from the same characters; the last one knows where they end.
        group = tf.cumsum(tf.cast(tf.logical_not(is_same), tf.int64))
        group = tf.concat([[0], group], axis=0)[: tf.size(starts)]
        ends = tf.gather(tf.math.segment_max(ends, group), group)
        lengths = tf.gather(tf.constant(self._aligner_lengths), tokens.values)
        return tf.repeat(starts, lengths), tf.repeat(ends, lengths)

    def _unknown_id(self, token: str) -> int:
        index = self._kinds.index(_UNKNOWN)
        (found,) = (piece for piece, i in self._ids.items() if i == index)
        if found != token:
            raise UserError(
                f"features.unk_token: expected the model's unknown piece, {found!r}, "
                f"found {token!r}"
            )
        return index

    def _symbol_id(self, option: str, token: str) -> int:
        index = self._ids.get(token)
        if index is None or self._kinds[index] not in (_CONTROL, _USER_DEFINED):
            symbols = [
                piece
                for piece, i in self._ids.items()
                if self._kinds[i] in (_CONTROL, _USER_DEFINED)
            ]
            shown = ", ".join(map(repr, symbols[:20])) or "none"
            raise UserError(
                f"features.{option}: the model has no control or user-defined symbol "
                f"{token!r}; it has {shown}"
            )
        return index


class _Processor:
    """The sentencepiece library with one model, as operations."""

    def __init__(self, model: bytes):
        """Loads the model once, in a graph of its own, to see whether it can be used.

        Raises:
          UserError: It cannot.
        """
        self._model = model
        # All operations of one name share what they have loaded.
        self._name = f"sentencepiece_{hashlib.sha256(model).hexdigest()}"
        try:
            with tf.Graph().as_default(), tf.compat.v1.Session() as session:
                session.run(self.tokenize(tf.constant(["a"]), tf.int32).values)
        except tf.errors.OpError as error:
            reason = error.message.splitlines()[0]
            raise UserError(
                f"the SentencePiece model cannot be used: {reason}"
            ) from error

    def _options(self) -> tuple[Any, ...]:
        """The resource, and: no sampling (two), no <s>, no </s>, not reversed."""
        resource = sentencepiece_ops.sentencepiece_op(
            model=self._model, shared_name=self._name
        )
        return resource, (0, 1.0, False, False, False)

    def tokenize(self, text: tf.Tensor, out_type: tf.DType) -> tf.RaggedTensor:
        """Ids [n, pieces] int32, or pieces as strings, of texts [n]."""
        resource, options = self._options()
        values, row_splits = sentencepiece_ops.sentencepiece_tokenize_op(
            resource, text, *options, out_type=out_type, Tsplits=tf.int64
        )
        return tf.RaggedTensor.from_row_splits(values, row_splits, validate=False)

    def tokenize_with_offsets(
        self, text: tf.Tensor
    ) -> tuple[tf.RaggedTensor, tf.Tensor, tf.Tensor]:
        """Ids [n, pieces] int32 of texts [n]; the library's ranges [pieces]."""
        resource, options = self._options()
        values, row_splits, starts, ends = (
            sentencepiece_ops.sentencepiece_tokenize_with_offsets_op(
                resource, text, *options, out_type=tf.int32, Tsplits=tf.int64
            )
        )
        ids = tf.RaggedTensor.from_row_splits(values, row_splits, validate=False)
        return ids, starts, ends


class _Lowered(NamedTuple):
    """Lower-cased texts, and where their bytes come from."""

    text: tf.Tensor  # [n]
    # [bytes] int64, of all rows: the source character's first byte, and the one
    # behind its last.
    starts: tf.Tensor
    ends: tf.Tensor
    # [n] int64: where each row's bytes begin among them, and its source's length.
    rows: tf.Tensor
    lengths: tf.Tensor

    def sources(
        self, starts: tf.RaggedTensor, ends: tf.RaggedTensor
    ) -> tuple[tf.RaggedTensor, tf.RaggedTensor]:
        """Ranges [n, pieces] of source bytes for those of lower-cased bytes."""
        row = starts.value_rowids()
        begin = tf.gather(self.rows, row)
        last_byte = tf.maximum(tf.size(self.starts, out_type=tf.int64) - 1, 0)
        first = tf.minimum(begin + starts.values, last_byte)
        last = tf.maximum(begin + ends.values - 1, 0)
        # An empty range is at one end of the text.
        length = tf.gather(self.lengths, row)
        is_first = tf.equal(starts.values, 0)
        edge = tf.where(is_first, tf.zeros_like(length), length)
        is_empty = tf.equal(starts.values, ends.values)
        return (
            starts.with_values(tf.where(is_empty, edge, tf.gather(self.starts, first))),
            ends.with_values(tf.where(is_empty, edge, tf.gather(self.ends, last))),
        )


def _lower(text: tf.Tensor) -> _Lowered:
    """Lower-cases texts [n], each character alone, whatever stands beside it.

    TensorFlow's operations for this look at contexts (`tf.strings.lower` at the end of
    a word, for Σ) or normalize (`case_fold_utf8`), and none says where bytes went.
    """
    points, offsets = tf.strings.unicode_decode_with_offsets(text, "UTF-8")
    points, offsets = (
        ragged.with_row_splits_dtype(tf.int64) for ragged in (points, offsets)
    )
    table = tf.constant(_lower_case_table())
    known = tf.minimum(points.values, tf.size(table) - 1)
    lower = tf.where(
        tf.equal(known, points.values), tf.gather(table, known), points.values
    )
    # Unicode's noncharacters, which the operation cannot write.
    is_none = tf.equal(lower & 0xFFFE, 0xFFFE) | ((lower >= 0xFDD0) & (lower < 0xFDF0))
    lower = tf.where(is_none, 0xFFFD, lower)
    lowered = tf.strings.unicode_encode(points.with_values(lower), "UTF-8")
    starts = offsets.values
    repeats = _utf8_length(lower)
    return _Lowered(
        text=lowered,
        starts=tf.repeat(starts, repeats),
        ends=tf.repeat(starts + _utf8_length(points.values), repeats),
        rows=tf.cumsum(_num_bytes(lowered), exclusive=True),
        lengths=_num_bytes(text),
    )


@functools.cache
def _lower_case_table() -> np.ndarray:
    """[code points] int32: each one's lower case, up to the last that has another.

    That of İ, alone of all, is two characters; here it is the first of them, as in
    Unicode's simple mapping.
    """
    lower = [ord(chr(point).lower()[0]) for point in range(sys.maxunicode + 1)]
    last = max(point for point, low in enumerate(lower) if point != low)
    return np.array(lower[: last + 1], np.int32)


def _utf8_length(points: tf.Tensor) -> tf.Tensor:
    """int64: the bytes of code points in UTF-8."""
    return 1 + sum(
        tf.cast(points >= least, tf.int64) for least in (0x80, 0x800, 0x10000)
    )


def _num_bytes(strings: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.strings.length(strings), tf.int64)


def _to_int64(ids: tf.RaggedTensor) -> tf.RaggedTensor:
    return ids.with_values(tf.cast(ids.values, tf.int64))


def is_model(content: bytes) -> bool:
    """Whether these are the bytes of a whole SentencePiece model."""
    try:
        _parse(content)
    except UserError:
        return False
    return True


def without_dummy_prefix(model: bytes) -> bytes:
    """The model without the blank that it puts before texts, which begins a word."""
    proto = _parse(model)
    proto.normalizer_spec.add_dummy_prefix = False
    return proto.SerializeToString()


def _parse(content: bytes) -> Any:
    """The ModelProto; raises UserError where it is none, or lacks a part."""
    proto = model_proto()()
    try:
        proto.ParseFromString(content)
        is_whole = (
            any(piece.type == _UNKNOWN for piece in proto.pieces)
            and proto.HasField("trainer_spec")
            and proto.HasField("normalizer_spec")
        )
    except message.DecodeError:
        is_whole = False
    if not is_whole:
        raise UserError("not a SentencePiece model, or one that is cut short")
    return proto


def _aligner(proto: Any) -> Any:
    """A model that normalizes as another one does and makes a piece of every byte.

    With the offsets of its pieces the library tells where each normalized byte comes
    from. No character is a piece of it, so each falls back to its bytes; user-defined
    symbols must stay, as the library does not normalize them.
    """
    aligner = model_proto()()
    aligner.normalizer_spec.CopyFrom(proto.normalizer_spec)
    aligner.trainer_spec.model_type = _CHAR
    aligner.trainer_spec.byte_fallback = True
    aligner.trainer_spec.treat_whitespace_as_suffix = (
        proto.trainer_spec.treat_whitespace_as_suffix
    )
    for piece in proto.pieces:
        if piece.type in (_UNKNOWN, _USER_DEFINED):
            aligner.pieces.add(piece=piece.piece, score=0.0, type=piece.type)
    for byte in range(256):
        aligner.pieces.add(piece=f"<0x{byte:02X}>", score=0.0, type=_BYTE)
    return aligner


def _lengths(proto: Any) -> np.ndarray:
    """[pieces] int64: normalized bytes of each piece."""
    return np.array(
        [
            1 if piece.type == _BYTE else len(piece.piece.encode())
            for piece in proto.pieces
        ],
        np.int64,
    )


@functools.cache
def model_proto() -> type[Any]:
    """The class of what a .model file holds, with the fields that are read here.

    The sentencepiece package has it whole, for a newer protobuf than TensorFlow's.
    Numbers: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
    """
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="sentencepiece_model.proto", package="sentencepiece", syntax="proto2"
    )

    def add(name: str, *fields: tuple[str, int, int, str]) -> None:
        described = file.message_type.add(name=name)
        for field, number, kind, default in fields:
            described.field.add(
                name=field,
                number=number,
                type=kind,
                label=kinds.LABEL_OPTIONAL,
                default_value=default or None,
            )

    add(
        "SentencePiece",
        ("piece", 1, kinds.TYPE_STRING, ""),
        ("score", 2, kinds.TYPE_FLOAT, ""),
        # An enumeration, of which 1 is an ordinary piece.
        ("type", 3, kinds.TYPE_INT32, "1"),
    )
    add(
        "TrainerSpec",
        ("model_type", 3, kinds.TYPE_INT32, "1"),
        ("treat_whitespace_as_suffix", 24, kinds.TYPE_BOOL, "false"),
        ("byte_fallback", 35, kinds.TYPE_BOOL, "false"),
    )
    add(
        "NormalizerSpec",
        ("add_dummy_prefix", 3, kinds.TYPE_BOOL, "true"),
        ("escape_whitespaces", 5, kinds.TYPE_BOOL, "true"),
    )
    model = file.message_type.add(name="ModelProto")
    for field, number, label, kind in (
        ("pieces", 1, kinds.LABEL_REPEATED, "SentencePiece"),
        ("trainer_spec", 2, kinds.LABEL_OPTIONAL, "TrainerSpec"),
        ("normalizer_spec", 3, kinds.LABEL_OPTIONAL, "NormalizerSpec"),
    ):
        model.field.add(
            name=field,
            number=number,
            type=kinds.TYPE_MESSAGE,
            label=label,
            type_name=f".sentencepiece.{kind}",
        )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName("sentencepiece.ModelProto")
    )

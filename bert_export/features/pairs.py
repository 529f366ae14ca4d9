"""Pair encoding: text, mention and candidate to `[CLS] text [SEP] candidate [SEP]`."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from bert_export.config import FeaturesConfig
from bert_export.errors import UserError
from bert_export.features.spec import FeatureSpec
from bert_export.features.tokenizer import Tokenizer

NUM_SPECIALS = 3


class TextPieces(NamedTuple):
    """Tokenized texts with their mentions (and markers, if configured)."""

    # [n, pieces] int64
    ids: tf.RaggedTensor
    # [n] int64: index among the pieces of the mention's first and last one. The
    # mention has no piece where first > last.
    first: tf.Tensor
    last: tf.Tensor
    # [n] bool: the mention has a piece, and fits the text's part of a pair.
    ok: tf.Tensor


class EncodedPairs(NamedTuple):
    """Pairs ready for the model, not padded; the input mask is 1 throughout."""

    # [n, tokens] int64
    input_ids: tf.RaggedTensor
    segment_ids: tf.RaggedTensor
    # [n] int64: token index of the mention's first and last piece; 0 if not ok.
    start_ps: tf.Tensor
    end_ps: tf.Tensor
    # [n] bool
    ok: tf.Tensor

    def features(self, spec: FeatureSpec) -> dict[str, tf.RaggedTensor | tf.Tensor]:
        """By the spec's names: sequences [n, tokens], ragged, and spans [n]."""
        spans = (self.start_ps, self.end_ps)
        return {
            spec.input_ids: self.input_ids,
            spec.input_mask: tf.ones_like(self.input_ids),
            spec.segment_ids: self.segment_ids,
            # A plain pair classifier reads neither of them.
            **dict(zip(spec.span_fields, spans, strict=False)),
        }

    def dense_features(self, spec: FeatureSpec) -> dict[str, tf.Tensor]:
        """By the spec's names: sequences [n, longest], 0-padded, and spans [n].

        The padding's id is 0 whatever the vocabulary calls 0: where the input mask is
        0, the encoder computes nothing.
        """
        return {
            name: value.to_tensor() if isinstance(value, tf.RaggedTensor) else value
            for name, value in self.features(spec).items()
        }


class PairEncoder:
    """Encodes (text, mention, candidate) triples, vectorised and in the graph.

    A pair has room for max_seq_length - 3 word pieces. Where text and candidate
    need more, the text keeps half of the room (rounded up), or all that the
    candidate leaves of it if that is more; the candidate is cut at its end to what
    is left. What the text keeps is a window of consecutive pieces centred on the
    mention, moved only as far as the text's ends demand. The mention and its
    markers are never cut: a mention with more pieces than half of the room
    (rounded up) is not ok, whatever the candidate.

    Texts are tokenized once a mention, candidates once an entity: `encode_text` and
    `encode_candidate` do that, `assemble` makes pairs of their rows. Calling the
    encoder does all three. Works eagerly, in tf.function, in tf.data and in graphs
    of TensorFlow 1.
    """

    def __init__(self, tokenizer: Tokenizer, config: FeaturesConfig):
        """Makes an encoder.

        Args:
          tokenizer: As `load_tokenizer` makes it of the same config.
          config: The config's `features` section.

        Raises:
          UserError: A mention marker that the vocabulary lacks.
        """
        marker = config.mention_marker
        self._marker = tokenizer.id_of(marker) if marker else None
        if marker and self._marker is None:
            raise UserError(
                "features.mention_marker: expected a word piece of the vocabulary, "
                f"found {marker!r}"
            )
        self.spec = FeatureSpec.from_config(config)
        self.tokenizer = tokenizer
        self.max_seq_length = config.max_seq_length
        # Pieces of text and candidate together, and those the text surely gets.
        self.room = config.max_seq_length - NUM_SPECIALS
        self.text_room = (self.room + 1) // 2

    def __call__(
        self, text: tf.Tensor, start: tf.Tensor, end: tf.Tensor, candidate: tf.Tensor
    ) -> EncodedPairs:
        """Encodes n pairs.

        Args:
          text: [n] UTF-8 strings, segment A.
          start: [n] offset of the mention's first character, in code points.
          end: [n] offset behind its last character, in code points.
          candidate: [n] UTF-8 strings, segment B.
        """
        rows = tf.range(tf.size(text, out_type=tf.int64))
        return self.assemble(
            self.encode_text(text, start, end),
            self.encode_candidate(candidate),
            rows,
            rows,
        )

    def encode_text(
        self, text: tf.Tensor, start: tf.Tensor, end: tf.Tensor
    ) -> TextPieces:
        """Tokenizes texts and finds their mentions' pieces.

        A mention's pieces are all that share a character with it. A mention has
        none if it holds only characters that leave no trace in any piece (white
        space, control characters), is empty or lies outside the text.

        Args:
          text: [n] UTF-8 strings.
          start: [n] offset of the mention's first character, in code points.
          end: [n] offset behind its last character, in code points.
        """
        length = tf.cast(tf.strings.length(text, unit="UTF8_CHAR"), tf.int64)
        start, end = tf.cast(start, tf.int64), tf.cast(end, tf.int64)
        inside = (start >= 0) & (start < end) & (end <= length)
        zero = tf.zeros_like(start)
        start_byte = _byte_offset(text, tf.where(inside, start, zero))
        end_byte = _byte_offset(text, tf.where(inside, end, zero))

        ids, piece_starts, piece_ends = self.tokenizer.tokenize_with_offsets(text)
        row = ids.value_rowids()
        before = piece_ends.values <= tf.gather(start_byte, row)
        not_after = piece_starts.values < tf.gather(end_byte, row)
        # Pieces are in the text's order, so counting them finds the span.
        first = _count_by_row(ids, before)
        last = _count_by_row(ids, not_after) - 1
        if self._marker is not None:
            ids, first, last = self._insert_markers(ids, first, last)
        margin = 0 if self._marker is None else 2
        size = last - first + 1
        ok = inside & (size > 0) & (size + margin <= self.text_room)
        return TextPieces(ids, first, last, ok)

    def encode_candidate(self, candidate: tf.Tensor) -> tf.RaggedTensor:
        """Tokenizes candidates' texts.

        Args:
          candidate: [n] UTF-8 strings.

        Returns:
          [n, pieces] int64, rows cut to what a pair can hold of them at most.
        """
        return self.tokenizer.tokenize(candidate)[:, : self.room]

    def assemble(
        self,
        texts: TextPieces,
        candidates: tf.RaggedTensor,
        text_index: tf.Tensor,
        candidate_index: tf.Tensor,
    ) -> EncodedPairs:
        """Makes pairs of tokenized texts and candidates, cutting where needed.

        Args:
          texts: Of `encode_text`.
          candidates: [candidates, pieces] int64, of `encode_candidate`.
          text_index: [n] the row of `texts` of each pair.
          candidate_index: [n] the row of `candidates` of each pair.
        """
        margin = 0 if self._marker is None else 1
        ok = tf.gather(texts.ok, text_index)
        zero = tf.zeros_like(text_index, tf.int64)
        first = tf.where(ok, tf.gather(texts.first, text_index), zero)
        last = tf.where(ok, tf.gather(texts.last, text_index), zero)
        text_length = tf.gather(texts.ids.row_lengths(), text_index)
        candidate_length = tf.gather(candidates.row_lengths(), candidate_index)

        most = tf.maximum(self.room - candidate_length, self.text_room)
        keep_text = tf.minimum(text_length, most)
        keep_candidate = tf.minimum(candidate_length, self.room - keep_text)
        marked_size = last - first + 1 + 2 * margin
        window = first - margin - (keep_text - marked_size) // 2
        window = tf.clip_by_value(window, zero, text_length - keep_text)

        # Each token of the result is looked up in one pool of all pieces.
        pool = tf.concat(
            [texts.ids.values, candidates.values, [self.tokenizer.sep_id]], axis=0
        )
        num_pieces = tf.size(pool, out_type=tf.int64) - 1
        text_base = tf.gather(texts.ids.row_starts(), text_index) + window - 1
        candidate_base = (
            tf.size(texts.ids.values, out_type=tf.int64)
            + tf.gather(candidates.row_starts(), candidate_index)
            - (keep_text + 2)
        )
        positions = tf.ragged.range(keep_text + keep_candidate + NUM_SPECIALS)
        row = positions.value_rowids()
        position = positions.values
        first_sep = tf.gather(keep_text + 1, row)
        last_sep = tf.gather(keep_text + keep_candidate + 2, row)
        in_text = position < first_sep
        index = position + tf.where(
            in_text, tf.gather(text_base, row), tf.gather(candidate_base, row)
        )
        is_sep = tf.equal(position, first_sep) | tf.equal(position, last_sep)
        # [CLS] of the first pair would look at -1.
        index = tf.where(is_sep, num_pieces, tf.maximum(index, 0))
        cls = tf.constant(self.tokenizer.cls_id, tf.int64)
        input_ids = tf.where(tf.equal(position, 0), cls, tf.gather(pool, index))
        segment_ids = tf.cast(position > first_sep, tf.int64)
        shift = 1 - window
        return EncodedPairs(
            positions.with_values(input_ids),
            positions.with_values(segment_ids),
            tf.where(ok, first + shift, zero),
            tf.where(ok, last + shift, zero),
            ok,
        )

    def _insert_markers(
        self, ids: tf.RaggedTensor, first: tf.Tensor, last: tf.Tensor
    ) -> tuple[tf.RaggedTensor, tf.Tensor, tf.Tensor]:
        """Puts the marker before piece `first` and behind piece `last` of each row.

        Returns the new rows and the mention's new indices.
        """
        positions = tf.ragged.range(ids.row_lengths() + 2)
        row = positions.value_rowids()
        opening = tf.gather(first, row)
        closing = tf.gather(last + 2, row)
        position = positions.values
        is_marker = tf.equal(position, opening) | tf.equal(position, closing)
        skipped = tf.cast(position > opening, tf.int64) + tf.cast(
            position > closing, tf.int64
        )
        marker = tf.constant(self._marker, tf.int64)
        # The marker is the pool's last piece.
        pool = tf.concat([ids.values, [marker]], axis=0)
        num_pieces = tf.size(ids.values, out_type=tf.int64)
        index = tf.gather(ids.row_starts(), row) + position - skipped
        index = tf.where(is_marker, num_pieces, tf.minimum(index, num_pieces))
        return positions.with_values(tf.gather(pool, index)), first + 1, last + 1


def _byte_offset(text: tf.Tensor, characters: tf.Tensor) -> tf.Tensor:
    """[n] int64: the length in bytes of each text's first so many characters."""
    begin = tf.zeros_like(characters)
    prefix = tf.strings.substr(text, begin, characters, unit="UTF8_CHAR")
    return tf.cast(tf.strings.length(prefix), tf.int64)


def _count_by_row(ragged: tf.RaggedTensor, flags: tf.Tensor) -> tf.Tensor:
    """[n] int64: in each row of `ragged`, how many of its values are flagged."""
    return tf.reduce_sum(ragged.with_values(tf.cast(flags, tf.int64)), axis=1)

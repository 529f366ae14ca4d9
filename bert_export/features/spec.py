"""The feature spec: the one place that names features, parses and checks them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from bert_export.config import FeaturesConfig

# Training records carry it, so that a batch knows which of its rows compete.
MENTION_ID = "mention_id"


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """Names and lengths of the features of a (text, candidate) pair.

    | name | shape | what |
    | --- | --- | --- |
    | input_ids | [seq_length] | word-piece ids, 0-padded |
    | input_mask | [seq_length] | 1 on real tokens |
    | segment_ids | [seq_length] | 0 text, 1 candidate |
    | span_fields | [] each | token index of the mention's first, last piece |
    | label_ids | [] | 1 where the candidate is the gold entity |

    All are int64, and each name is configurable. `span_fields` is a (first, last)
    pair, or empty for a plain pair classifier.
    """

    max_seq_length: int
    input_ids: str = "input_ids"
    input_mask: str = "input_mask"
    segment_ids: str = "segment_ids"
    span_fields: tuple[str, ...] = ("start_ps", "end_ps")
    label_ids: str = "label_ids"

    @classmethod
    def from_config(cls, config: FeaturesConfig) -> FeatureSpec:
        """The spec that a config's `features` section describes."""
        return cls(
            max_seq_length=config.max_seq_length,
            input_ids=config.input_ids,
            input_mask=config.input_mask,
            segment_ids=config.segment_ids,
            span_fields=tuple(config.span_fields),
            label_ids=config.label_ids,
        )

    @property
    def sequence_names(self) -> tuple[str, ...]:
        """The features of shape [seq_length], in the spec's order."""
        return (self.input_ids, self.input_mask, self.segment_ids)

    @property
    def scalar_names(self) -> tuple[str, ...]:
        """The features of shape [], in the spec's order."""
        return (*self.span_fields, self.label_ids)

    def parsing_spec(self) -> dict[str, Any]:
        """The full spec for `tf.io.parse_example`, every feature required.

        Sequences are ragged: a row may be padded to max_seq_length or not at all.
        """
        spec: dict[str, Any] = {
            name: tf.io.RaggedFeature(tf.int64, row_splits_dtype=tf.int64)
            for name in self.sequence_names
        }
        for name in self.scalar_names:
            spec[name] = tf.io.FixedLenFeature([], tf.int64)
        return spec

    def serving_parsing_spec(self) -> dict[str, Any]:
        """The full spec with label_ids optional, for clients that have no labels."""
        label = tf.io.FixedLenFeature([], tf.int64, default_value=0)
        return self.parsing_spec() | {self.label_ids: label}

    def training_parsing_spec(self) -> dict[str, Any]:
        """The full spec and `MENTION_ID`, which the training records carry."""
        return self.parsing_spec() | {MENTION_ID: tf.io.FixedLenFeature([], tf.int64)}

    def parse(
        self, serialized: tf.Tensor, spec: Mapping[str, Any]
    ) -> dict[str, tf.Tensor]:
        """Parses serialized tf.Examples into dense tensors.

        Args:
          serialized: [n] string.
          spec: One of the parsing specs above.

        Returns:
          int64 tensors: sequences [n, longest row of the batch], 0-padded; scalars
          [n].

        Raises:
          tf.errors.InvalidArgumentError: When the graph runs: bytes that are no
            tf.Example, a required feature missing or of a wrong type, or
            sequences of a row that differ in length.
        """
        parsed = tf.io.parse_example(serialized, dict(spec))
        lengths = {name: parsed[name].row_lengths() for name in self.sequence_names}
        first = self.input_ids
        assertions = []
        for name, length in lengths.items():
            assertions.append(
                tf.debugging.Assert(
                    tf.reduce_all(length > 0),
                    [f"{name}: missing or empty. Lengths by example:", length],
                    summarize=64,
                )
            )
            if name != first:
                message = f"{name}: not as long as {first}. Lengths by example:"
                assertions.append(
                    tf.debugging.Assert(
                        tf.reduce_all(tf.equal(length, lengths[first])),
                        [message, length, lengths[first]],
                        summarize=64,
                    )
                )
        with tf.control_dependencies(assertions):
            features = {name: parsed[name].to_tensor() for name in self.sequence_names}
            for name in spec:
                if name not in features:
                    features[name] = tf.identity(parsed[name])
        return features

    def check(self, features: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Adds in-graph assertions that features are of this spec.

        The sequences must be [n, seq_length] of one shape, at most max_seq_length
        long; the mask 0 or 1; every scalar [n]. The span fields must be in order
        and point to real tokens, except in rows whose mask is all zero (TF
        Serving's batch padding makes such rows): there they are set to 0.

        Args:
          features: Dense int64 tensors by name, parsed or fed directly. label_ids
            may be absent; features outside the spec pass through.

        Returns:
          The same features, downstream of the assertions.

        Raises:
          tf.errors.InvalidArgumentError: When the graph runs; it names the feature.
        """
        features = dict(features)
        ids = features[self.input_ids]
        shape = tf.shape(ids, out_type=tf.int64)
        assertions = [
            tf.debugging.Assert(
                shape[1] <= self.max_seq_length,
                [
                    f"{self.input_ids}: expected at most {self.max_seq_length} "
                    "tokens, found",
                    shape[1],
                ],
            )
        ]
        for name in (self.input_mask, self.segment_ids):
            found = tf.shape(features[name], out_type=tf.int64)
            assertions.append(
                tf.debugging.Assert(
                    tf.reduce_all(tf.equal(found, shape)),
                    [f"{name}: expected the shape of {self.input_ids}", shape, found],
                )
            )
        for name in self.scalar_names:
            if name in features:
                found = tf.shape(features[name], out_type=tf.int64)
                assertions.append(
                    tf.debugging.Assert(
                        tf.equal(found[0], shape[0]),
                        [f"{name}: expected one value a row", shape[0], found[0]],
                    )
                )
        # Shapes first: the assertions on values below broadcast these tensors.
        with tf.control_dependencies(assertions):
            features = {name: tf.identity(t) for name, t in features.items()}

        mask = features[self.input_mask]
        assertions = [
            tf.debugging.Assert(
                tf.reduce_all(tf.equal(mask, 0) | tf.equal(mask, 1)),
                [f"{self.input_mask}: expected 0 and 1, found", mask],
            )
        ]
        if self.span_fields:
            empty = tf.reduce_all(tf.equal(mask, 0), axis=1)
            token_index = tf.range(shape[1])[tf.newaxis, :]
            for name in self.span_fields:
                position = features[name]
                at_position = tf.equal(token_index, position[:, tf.newaxis])
                on_real_token = tf.reduce_any(at_position & tf.equal(mask, 1), axis=1)
                message = f"{name}: expected the index of a real token, found"
                assertions.append(
                    tf.debugging.Assert(
                        tf.reduce_all(on_real_token | empty),
                        [message, position],
                        summarize=64,
                    )
                )
                features[name] = tf.where(empty, tf.zeros_like(position), position)
            start, end = (features[name] for name in self.span_fields)
            assertions.append(
                tf.debugging.Assert(
                    tf.reduce_all(start <= end),
                    [
                        f"{self.span_fields[0]}: expected at most "
                        f"{self.span_fields[1]}, found",
                        start,
                        end,
                    ],
                    summarize=64,
                )
            )
        with tf.control_dependencies(assertions):
            return {name: tf.identity(t) for name, t in features.items()}

    def serialize(
        self, features: Mapping[str, tf.Tensor | tf.RaggedTensor]
    ) -> tf.Tensor:
        """Serializes a batch in the graph, the reverse of `parse`.

        Args:
          features: int64 by name: sequences [n, tokens], ragged; scalars [n].

        Returns:
          [n] string, tf.Examples in which a sequence is as long as its row.
        """
        entries = []
        for name, value in features.items():
            if isinstance(value, tf.RaggedTensor):
                sizes = tf.cast(value.row_lengths(), tf.int32)
                values = value.to_tensor()
            else:
                sizes = tf.ones_like(value, tf.int32)
                values = value[:, tf.newaxis]
            one = tf.ones_like(sizes)
            int64_list = _encode_proto("Int64List", sizes, {"value": values})
            feature = _encode_proto("Feature", one, {"int64_list": int64_list})
            entry = {"key": tf.fill(tf.shape(one), name), "value": feature}
            entries.append(_encode_proto("Features.FeatureEntry", one, entry))
        count = tf.fill(tf.shape(entries[0]), len(entries))
        feature_map = {"feature": tf.stack(entries, axis=1)}
        all_features = _encode_proto("Features", count, feature_map)
        return _encode_proto("Example", tf.ones_like(count), {"features": all_features})

    def encode_example(
        self, values: Mapping[str, int | Sequence[int]], padded: bool = False
    ) -> bytes:
        """One serialized tf.Example of int64 features.

        Args:
          values: Scalars and sequences by feature name.
          padded: Whether sequences are 0-padded to max_seq_length.
        """
        example = tf.train.Example()
        feature = example.features.feature
        for name, value in values.items():
            out = feature[name].int64_list.value
            if isinstance(value, Sequence):
                out.extend(value)
                if padded:
                    out.extend([0] * (self.max_seq_length - len(value)))
            else:
                out.append(value)
        return example.SerializeToString()


def _encode_proto(
    message: str, sizes: tf.Tensor, fields: Mapping[str, tf.Tensor]
) -> tf.Tensor:
    """[n] string: serialized messages whose fields have `sizes` [n] values each.

    The messages are those of tensorflow/core/example/{example,feature}.proto. A
    map field is a repeated field of entries on the wire,
    https://protobuf.dev/programming-guides/encoding/#maps.
    """
    values = [v[:, tf.newaxis] if v.shape.rank == 1 else v for v in fields.values()]
    return tf.io.encode_proto(
        tf.stack([sizes] * len(values), axis=1),
        values,
        list(fields),
        f"tensorflow.{message}",
    )

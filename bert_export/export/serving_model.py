"""Writes a checkpoint as a TensorFlow 2 SavedModel that also takes plain text."""

from __future__ import annotations

import keyword
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from bert_export.errors import StageError
from bert_export.export import saved_model
from bert_export.export.linker_graph import TrainedLinker
from bert_export.features.pairs import PairEncoder, TextPieces
from bert_export.features.spec import FeatureSpec
from bert_export.modeling.linker import Linker
from bert_export.training.model_fn import (
    PROBABILITIES,
    SCORE,
    compute_logits_in_halves,
    to_predictions,
)

# Takes texts, their mentions and a candidate each.
TEXT_SIGNATURE = "text"
# Takes one mention and all its candidates.
LINK_SIGNATURE = "link"
# The further outputs of LINK_SIGNATURE.
LINK_PROBABILITY = "link_probability"
NIL_PROBABILITY = "nil_probability"

# Other characters TensorFlow replaces in the names of a function's arguments.
_INPUT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def contract(spec: FeatureSpec) -> dict[str, Any]:
    """That of `saved_model`, and the two signatures that take text."""
    plain = saved_model.contract(spec)
    scored = plain[saved_model.TENSORS_SIGNATURE]["outputs"]
    tensor = saved_model.describe_tensor
    return {
        **plain,
        TEXT_SIGNATURE: saved_model.describe_signature(
            {
                "text": tensor("string", -1),
                "mention_start": tensor("int64", -1),
                "mention_end": tensor("int64", -1),
                "candidate": tensor("string", -1),
            },
            scored,
        ),
        LINK_SIGNATURE: saved_model.describe_signature(
            {
                "text": tensor("string"),
                "mention_start": tensor("int64"),
                "mention_end": tensor("int64"),
                "candidates": tensor("string", -1),
            },
            {
                PROBABILITIES: tensor("float32", -1),
                LINK_PROBABILITY: tensor("float32", -1),
                SCORE: tensor("float32", -1),
                NIL_PROBABILITY: tensor("float32"),
            },
        ),
    }


def write(
    model: TrainedLinker,
    staging: Path,
    precision: str,
    calibration: list[dict[str, np.ndarray]],
) -> list[str]:
    """Writes `saved_model.pb`, `variables/` and the vocabulary in `assets/`.

    The signatures are those of `contract`. The variables have the checkpoint's names
    and are not trainable.

    Args:
      model: what to write.
      staging: an existing directory.
      precision: float32, or how the encoder's matrices are stored: bfloat16, float16.
      calibration: not needed for any of these.

    Returns:
      What is lost, in sentences.

    Raises:
      StageError: a feature's name is not possible as a function's argument, or a
        weight is beyond the range of float16.
    """
    del calibration
    for name in model.input_names:
        if not _INPUT_NAME.fullmatch(name) or keyword.iskeyword(name) or name == "self":
            raise StageError(
                f"serving_model: the feature name {name!r} cannot name an argument of "
                "a TensorFlow function; expected letters, digits and '_', and no "
                "Python keyword. Rename the feature, or export saved_model"
            )
    serving = ServingModel(model, precision)
    root = tf.Module()
    root.linker = serving.linker
    with tempfile.TemporaryDirectory() as temporary:
        vocab = Path(temporary) / model.tokenizer.file_name
        vocab.write_bytes(model.tokenizer.content)
        root.vocab = tf.saved_model.Asset(str(vocab))
        tf.saved_model.save(root, str(staging), serving.signatures())
    if not serving.halves:
        return []
    return [
        f"{len(serving.halves)} matrices are stored in {precision} and cast to float32 "
        "in every request, which takes time; vectors, the linker's head and all "
        "computation are float32"
    ]


class HalfMatrix(tf.Module):
    """A variable of 16-bit floats where layers expect one of float32.

    Embedding tables are gathered first (`tf.gather` calls `sparse_read`, as for
    variables) and the rows cast; any other use casts the whole matrix.
    """

    def __init__(self, stored: tf.Variable):
        super().__init__()
        self.stored = stored

    def sparse_read(self, indices: tf.Tensor, name: str | None = None) -> tf.Tensor:
        """The rows `[..., columns]` float32 of `indices` [...]."""
        return tf.cast(tf.gather(self.stored, indices, name=name), tf.float32)

    def __tf_tensor__(
        self, dtype: tf.DType | None = None, name: str | None = None
    ) -> tf.Tensor:
        """What TensorFlow takes this for: `[rows, columns]` float32."""
        return tf.cast(self.stored, dtype or tf.float32, name)


class ServingModel:
    """The linker behind four ways in, over one set of variables."""

    def __init__(self, model: TrainedLinker, precision: str):
        """Reads the checkpoint.

        Args:
          model: names the checkpoint.
          precision: float32, or what the encoder's matrices are stored in.

        Raises:
          StageError: a weight is beyond the range of `precision`.
        """
        self.halves: list[HalfMatrix] = []
        self._features = model.features
        self._spec = model.spec
        self._input_names = model.input_names
        self._encoder = PairEncoder(model.tokenizer, model.features)
        with tf.variable_creator_scope(self._creator(model.checkpoint, precision)):
            self.linker = Linker(model.bert, len(self._spec.span_fields))

    def _creator(self, checkpoint: str, precision: str) -> Callable[..., Any]:
        """A variable creator that takes the values from a checkpoint."""
        reader = tf.train.load_checkpoint(checkpoint)

        def create(next_creator: Callable[..., Any], **options: Any) -> Any:
            name = options["name"]
            value = reader.get_tensor(name)
            options.update(trainable=False, dtype=tf.float32, initial_value=value)
            # The head's matrix is small, and it decides.
            if precision == "float32" or value.ndim < 2 or name.startswith("linker/"):
                return next_creator(**options)
            dtype = tf.as_dtype(precision)
            with np.errstate(over="ignore"):
                half = value.astype(dtype.as_numpy_dtype)
            if not np.isfinite(half.astype(np.float32)).all():
                raise StageError(
                    f"{checkpoint}: {name} has numbers up to {np.abs(value).max():g}, "
                    f"beyond the range of {precision}; export it in float32"
                )
            options.update(dtype=dtype, initial_value=half)
            self.halves.append(HalfMatrix(next_creator(**options)))
            return self.halves[-1]

        return create

    def signatures(self) -> dict[str, Any]:
        """Concrete functions by signature name."""
        functions = {
            saved_model.EXAMPLES_SIGNATURE: self.examples,
            saved_model.TENSORS_SIGNATURE: self.tensors,
            TEXT_SIGNATURE: self.text,
            LINK_SIGNATURE: self.link,
        }
        promised = contract(self._spec)
        return {
            name: tf.function(function).get_concrete_function(
                **{
                    key: tf.TensorSpec(
                        [None if size < 0 else size for size in info["shape"]],
                        info["dtype"],
                        key,
                    )
                    for key, info in promised[name]["inputs"].items()
                }
            )
            for name, function in functions.items()
        }

    def examples(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        """Scores serialized tf.Examples [n].

        Returns:
          `probabilities` [n, 2] and `score` [n].
        """
        parsed = self._spec.parse(examples, self._spec.serving_parsing_spec())
        return self.tensors(**{name: parsed[name] for name in self._input_names})

    def tensors(self, **features: tf.Tensor) -> dict[str, tf.Tensor]:
        """Scores features, int64: sequences [n, seq_length], span positions [n].

        Returns:
          `probabilities` [n, 2] and `score` [n].
        """
        features = self._spec.check(features)
        return to_predictions(
            compute_logits_in_halves(self.linker, self._spec, features)
        )

    def text(
        self,
        text: tf.Tensor,
        mention_start: tf.Tensor,
        mention_end: tf.Tensor,
        candidate: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """Scores pairs of a mention and a candidate.

        They are cut to max_seq_length as the training data were (see `PairEncoder`).
        Without span fields the mention only decides which part of a long text is
        kept.

        Args:
          text: [n] UTF-8 strings.
          mention_start: [n] int64, offset of the mention's first character in its
            text, in code points.
          mention_end: [n] int64, offset behind its last character.
          candidate: [n] UTF-8 strings, the candidates' descriptions.

        Returns:
          `probabilities` [n, 2] and `score` [n].

        Raises:
          tf.errors.InvalidArgumentError: inputs of different lengths, a text or
            candidate that is not UTF-8, or a mention outside its text, without a
            word piece or with too many; the message names the row.
        """
        sizes = [
            tf.size(tensor, out_type=tf.int64)
            for tensor in (text, mention_start, mention_end, candidate)
        ]
        same = tf.reduce_all(tf.equal(sizes, sizes[0]))
        message = (
            "text, mention_start, mention_end and candidate must have one length; "
            "found:"
        )
        with tf.control_dependencies([tf.debugging.Assert(same, [message, *sizes])]):
            return self._score_texts(
                tf.identity(text),
                tf.identity(mention_start),
                tf.identity(mention_end),
                tf.identity(candidate),
                tf.range(sizes[0]),
            )

    def link(
        self,
        text: tf.Tensor,
        mention_start: tf.Tensor,
        mention_end: tf.Tensor,
        candidates: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """Ranks a mention's candidates; the text is tokenized once for all of them.

        `link_probability` is what the model gives each pair on its own. The mention
        is NIL if none reaches a threshold t, chosen on dev mentions (the manifest's
        metrics.nil.threshold), that is, if `nil_probability`, what the best
        candidate's link probability lacks to 1, exceeds 1 - t. A mention without
        candidates has `nil_probability` 1.

        Args:
          text: [] UTF-8 string.
          mention_start: [] int64, offset of the mention's first character, in code
            points.
          mention_end: [] int64, offset behind its last character.
          candidates: [k] UTF-8 strings, the candidates' descriptions; k may be 0.

        Returns:
          `probabilities` [k], the softmax of the scores among the candidates;
          `link_probability` [k]; `score` [k], its log odds; `nil_probability` [].

        Raises:
          tf.errors.InvalidArgumentError: as `text`.
        """
        scored = self._score_texts(
            text[tf.newaxis],
            mention_start[tf.newaxis],
            mention_end[tf.newaxis],
            candidates,
            tf.zeros_like(candidates, tf.int64),
        )
        link_probability = scored[PROBABILITIES][:, 1]
        best = tf.reduce_max(tf.concat([link_probability, [0.0]], axis=0))
        return {
            PROBABILITIES: tf.nn.softmax(scored[SCORE]),
            LINK_PROBABILITY: link_probability,
            SCORE: scored[SCORE],
            NIL_PROBABILITY: 1.0 - best,
        }

    # Traced once for both signatures that take text.
    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string),
            tf.TensorSpec([None], tf.int64),
            tf.TensorSpec([None], tf.int64),
            tf.TensorSpec([None], tf.string),
            tf.TensorSpec([None], tf.int64),
        ]
    )
    def _score_texts(
        self,
        text: tf.Tensor,
        start: tf.Tensor,
        end: tf.Tensor,
        candidate: tf.Tensor,
        text_index: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """Scores candidates [n], each with the text `text_index` [n] of texts [m].

        Returns:
          `probabilities` [n, 2] and `score` [n].
        """
        checks = [_utf8_check("text", text), _utf8_check("candidate", candidate)]
        with tf.control_dependencies(checks):
            text, candidate = tf.identity(text), tf.identity(candidate)
        texts = self._encoder.encode_text(text, start, end)
        with tf.control_dependencies(self._mention_checks(text, start, end, texts)):
            candidates = self._encoder.encode_candidate(candidate)
        encoded = self._encoder.assemble(
            texts, candidates, text_index, tf.range(candidates.nrows())
        )
        features = encoded.dense_features(self._spec)
        return to_predictions(
            compute_logits_in_halves(self.linker, self._spec, features)
        )

    def _mention_checks(
        self, text: tf.Tensor, start: tf.Tensor, end: tf.Tensor, pieces: TextPieces
    ) -> list[tf.Operation]:
        """Assertions that the mentions of texts [m] can be encoded, in good order."""
        length = tf.cast(tf.strings.length(text, unit="UTF8_CHAR"), tf.int64)
        size = pieces.last - pieces.first + 1
        markers = 2 if self._features.mention_marker else 0
        most = self._encoder.text_room - markers
        outside = (start < 0) | (start >= end) | (end > length)
        checks: list[tf.Operation] = []
        for bad, message, details in (
            (
                outside,
                "the mention must lie in its text, 0 <= mention_start < mention_end "
                "<= characters; row, mention_start, mention_end, characters:",
                (start, end, length),
            ),
            (
                size < 1,
                "the mention has no word piece, only white space, control characters "
                "or the like; row, mention_start, mention_end:",
                (start, end),
            ),
            (
                tf.logical_not(pieces.ok),
                f"the mention has more word pieces than the {most} that fit the model; "
                "row, word pieces:",
                (size,),
            ),
        ):
            with tf.control_dependencies(checks):
                checks = [_first_row_check(bad, message, *details)]
        return checks


def _utf8_check(name: str, strings: tf.Tensor) -> tf.Operation:
    """Asserts that strings [n] are UTF-8: replacing what is not changes nothing."""
    repaired = tf.strings.unicode_transcode(strings, "UTF-8", "UTF-8", errors="replace")
    message = f"{name} must be UTF-8; row:"
    return _first_row_check(tf.not_equal(repaired, strings), message)


def _first_row_check(bad: tf.Tensor, message: str, *details: tf.Tensor) -> tf.Operation:
    """Asserts that no row is `bad` [n]; shows the first one's number and details."""
    row = tf.where(bad)[:1, 0]  # [0 or 1]
    shown = [tf.gather(detail, row) for detail in details]
    return tf.debugging.Assert(tf.equal(tf.size(row), 0), [message, row, *shown])

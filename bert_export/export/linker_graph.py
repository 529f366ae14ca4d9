"""The trained linker as a graph of its own, from which the other formats start."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from bert_export.config import FeaturesConfig
from bert_export.export import session_graph
from bert_export.export.saved_model import serving_input_names
from bert_export.features.spec import FeatureSpec
from bert_export.features.tokenizer import Tokenizer
from bert_export.modeling.bert_config import BertConfig
from bert_export.modeling.linker import Linker
from bert_export.training.model_fn import (
    PROBABILITIES,
    SCORE,
    compute_logits,
    to_predictions,
)

OUTPUTS = (PROBABILITIES, SCORE)


@dataclasses.dataclass(frozen=True)
class TrainedLinker:
    """A checkpoint and all that is needed to rebuild its model."""

    checkpoint: str  # prefix
    bert: BertConfig
    features: FeaturesConfig
    tokenizer: Tokenizer

    @property
    def spec(self) -> FeatureSpec:
        """The features that the model reads."""
        return FeatureSpec.from_config(self.features)

    @property
    def input_names(self) -> tuple[str, ...]:
        """The features that a prediction reads, in order."""
        return serving_input_names(self.spec)


def build(
    model: TrainedLinker,
    *,
    checked: bool,
    padded: bool = False,
    integers: tf.DType = tf.int64,
) -> tf.compat.v1.train.Saver:
    """Builds the serving graph in the default graph.

    Its placeholders have the features' names: sequences [None, None], span positions
    [None]. Its outputs are nodes named as in `OUTPUTS`.

    Args:
      model: what to build.
      checked: refuse malformed requests with InvalidArgument. Other runtimes than
        TensorFlow have no such assertions.
      padded: compute padding, too, as other implementations do.
      integers: the placeholders' type; int32 where a runtime has no other.

    Returns:
      The saver that restores the checkpoint into it.
    """
    spec = model.spec
    features = {
        name: tf.compat.v1.placeholder(
            integers, [None] if name in spec.span_fields else [None, None], name
        )
        for name in model.input_names
    }
    linker = Linker(model.bert, num_span_fields=len(spec.span_fields))
    if checked:
        features = spec.check(features)
    logits = compute_logits(linker, spec, features, padded=padded)
    for name, output in to_predictions(logits).items():
        tf.identity(output, name)
    return tf.compat.v1.train.Saver()


def freeze(
    model: TrainedLinker, *, checked: bool, integers: tf.DType = tf.int64
) -> tf.compat.v1.GraphDef:
    """The serving graph of `build` with the checkpoint's weights as constants."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        saver = build(model, checked=checked, integers=integers)
        saver.restore(session, model.checkpoint)
        part = session_graph.inference_part(session.graph, OUTPUTS)
        return session_graph.freeze(session, part)

"""Writes the fine-tuned encoder as a TensorFlow Hub module, with the linker beside."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from bert_export.errors import StageError
from bert_export.export import saved_model
from bert_export.export.linker_graph import TrainedLinker
from bert_export.features.sentencepiece import SentencePiece
from bert_export.features.spec import FeatureSpec
from bert_export.modeling import weights
from bert_export.modeling.encoder import BertEncoder
from bert_export.modeling.linker import Linker
from bert_export.modeling.packing import Padding
from bert_export.training.model_fn import compute_logits, to_predictions

# What TensorFlow Hub's encoders take and return,
# https://www.tensorflow.org/hub/common_saved_model_apis/text
INPUTS = ("input_word_ids", "input_mask", "input_type_ids")
ENCODER_SIGNATURE = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY


def contract(spec: FeatureSpec, hidden_size: int) -> dict[str, Any]:
    """The signatures: the encoder's, and the linker's `tensors`.

    Returns:
      As `saved_model.contract`.
    """
    tensor, describe = saved_model.describe_tensor, saved_model.describe_signature
    pooled = tensor("float32", -1, hidden_size)
    return {
        ENCODER_SIGNATURE: describe(
            {name: tensor("int32", -1, -1) for name in INPUTS},
            {
                "sequence_output": tensor("float32", -1, -1, hidden_size),
                "pooled_output": pooled,
                "default": pooled,
            },
        ),
        saved_model.TENSORS_SIGNATURE: saved_model.contract(spec)[
            saved_model.TENSORS_SIGNATURE
        ],
    }


def write(
    model: TrainedLinker,
    staging: Path,
    precision: str,
    calibration: list[dict[str, np.ndarray]],
) -> list[str]:
    """Writes `saved_model.pb`, `variables/` and `assets/`.

    The SavedModel is a reusable one (https://www.tensorflow.org/hub/reusable_saved_models)
    whose call is that of TensorFlow Hub's BERT encoders, see `encode`. The encoder's
    variables are trainable and have the checkpoint's names. The head is
    `.linker.kernel` [(1 + spans) * hidden, 2] and `.linker.bias` [2], which is not
    among the module's trainable variables. `.vocab_file` (of SentencePiece
    `.sp_model_file`) and `.do_lower_case` are as in such modules.

    Args:
      model: what to write.
      staging: an existing directory.
      precision: float32.
      calibration: not needed for it.

    Returns:
      What is lost, in sentences.

    Raises:
      StageError: the precision is another.
    """
    del calibration
    if precision != "float32":
        raise StageError(f"hub: there is no precision {precision}")
    linker = Linker(model.bert, len(model.spec.span_fields))
    weights.initialize(model.checkpoint, linker.variables)
    # Not a tf.Module, whose own `variables` are no attribute that is saved.
    root = tf.train.Checkpoint()
    root.variables = list(linker.encoder.variables)
    root.trainable_variables = list(linker.encoder.variables)
    root.regularization_losses = []
    root.linker = linker.head
    call = _call(linker.encoder)
    root.__call__ = call
    with tempfile.TemporaryDirectory() as temporary:
        _add_assets(root, model, Path(temporary))
        tf.saved_model.save(
            root,
            str(staging),
            {
                ENCODER_SIGNATURE: _encoder_signature(call),
                saved_model.TENSORS_SIGNATURE: _linker_signature(model, linker),
            },
        )
    return [
        "pooled_output and default are the hidden state at [CLS], which the linker's "
        "head reads: a fine-tuned linker has no pooler",
    ]


def encode(
    encoder: BertEncoder, inputs: Mapping[str, tf.Tensor], training: bool
) -> dict[str, Any]:
    """What the module returns, padding computed as BERT does.

    Args:
      encoder: with its weights.
      inputs: by INPUTS' names, [batch, seq_length] int32.
      training: whether dropout applies.

    Returns:
      `sequence_output` [batch, seq_length, hidden]; `pooled_output` and `default`
      [batch, hidden], its state at [CLS]; `encoder_outputs`, the states after each
      layer.
    """
    ids, mask, segments = (inputs[name] for name in INPUTS)
    batch, length = tf.unstack(tf.shape(ids))
    positions = tf.range(length)
    # As in `BertEncoder`: a row of zeros gives finite numbers.
    real = tf.logical_or(tf.not_equal(mask, 0), tf.equal(positions, 0))
    x = encoder.embeddings(
        tf.reshape(ids, [-1]),
        tf.tile(positions, [batch]),
        tf.reshape(segments, [-1]),
        training,
    )
    if encoder.projection is not None:
        x = encoder.projection(x)
    layout = Padding(tf.cast(real, tf.float32))
    outputs = []
    for layer in encoder.layers:
        x = layer(x, layout, training)
        outputs.append(tf.reshape(x, [batch, length, encoder.hidden_size]))
    pooled = outputs[-1][:, 0]
    return {
        "sequence_output": outputs[-1],
        "pooled_output": pooled,
        "default": pooled,
        "encoder_outputs": outputs,
    }


def _call(encoder: BertEncoder) -> Any:
    """The module's call, traced with and without dropout."""

    @tf.function(autograph=False)
    def call(inputs: Mapping[str, tf.Tensor], training: bool = False) -> Any:
        return encode(encoder, inputs, training)

    specs = {name: tf.TensorSpec([None, None], tf.int32, name) for name in INPUTS}
    for training in (False, True):
        call.get_concrete_function(specs, training=training)
    return call


def _encoder_signature(call: Any) -> Any:
    """The call for those who know no Python; a signature's outputs are no lists."""

    @tf.function(
        autograph=False,
        input_signature=[
            tf.TensorSpec([None, None], tf.int32, name) for name in INPUTS
        ],
    )
    def encoder(
        input_word_ids: tf.Tensor, input_mask: tf.Tensor, input_type_ids: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        outputs = call(dict(zip(INPUTS, (input_word_ids, input_mask, input_type_ids))))
        del outputs["encoder_outputs"]
        return outputs

    return encoder


def _linker_signature(model: TrainedLinker, linker: Linker) -> Any:
    """Scores features, padding-free; refuses malformed requests."""
    spec = model.spec

    def tensors(**features: tf.Tensor) -> dict[str, tf.Tensor]:
        return to_predictions(compute_logits(linker, spec, spec.check(features)))

    return tf.function(tensors, autograph=False).get_concrete_function(
        **{
            name: tf.TensorSpec(
                [None] if name in spec.span_fields else [None, None], tf.int64, name
            )
            for name in model.input_names
        }
    )


def _add_assets(root: Any, model: TrainedLinker, directory: Path) -> None:
    """Adds the vocabulary; `directory` must last until the module is saved."""
    path = directory / model.tokenizer.file_name
    path.write_bytes(model.tokenizer.content)
    asset = tf.saved_model.Asset(str(path))
    if isinstance(model.tokenizer, SentencePiece):
        root.sp_model_file = asset
    else:
        root.vocab_file = asset
    root.do_lower_case = tf.Variable(model.features.lower_case, trainable=False)

"""Exports an Estimator's checkpoint as a TensorFlow SavedModel with two signatures."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from bert_export.config import TOKENIZER_FILES
from bert_export.errors import StageError
from bert_export.features.spec import FeatureSpec
from bert_export.features.tokenizer import Tokenizer
from bert_export.training.model_fn import PROBABILITIES, SCORE

# Takes serialized tf.Examples.
EXAMPLES_SIGNATURE = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY
# Takes one dense tensor a feature.
TENSORS_SIGNATURE = "tensors"
# The input of EXAMPLES_SIGNATURE.
EXAMPLES_INPUT = "examples"
# Files that travel with a SavedModel and that TensorFlow does not read.
ASSETS_EXTRA = "assets.extra"


def serving_input_names(spec: FeatureSpec) -> tuple[str, ...]:
    """The features that a prediction reads, in order: all but the label."""
    return (*spec.sequence_names, *spec.span_fields)


def contract(spec: FeatureSpec, integers: str = "int64") -> dict[str, Any]:
    """What clients may rely on: each signature's inputs and outputs.

    Derived from the features alone. Nothing is read back from an artifact, so that
    an artifact that differs is caught.

    Args:
      spec: the features.
      integers: their type.

    Returns:
      By signature name: `inputs` and `outputs` (by name: `dtype`, and `shape` with
      -1 for a dimension that requests choose) and `method_name`.
    """
    outputs = {
        PROBABILITIES: describe_tensor("float32", -1, 2),
        SCORE: describe_tensor("float32", -1),
    }
    tensors = {
        name: describe_tensor(
            integers, *([-1] if name in spec.span_fields else [-1, -1])
        )
        for name in serving_input_names(spec)
    }
    return {
        EXAMPLES_SIGNATURE: describe_signature(
            {EXAMPLES_INPUT: describe_tensor("string", -1)}, outputs
        ),
        TENSORS_SIGNATURE: describe_signature(tensors, outputs),
    }


def describe_tensor(dtype: str, *shape: int) -> dict[str, Any]:
    """An input or output in a contract."""
    return {"dtype": dtype, "shape": list(shape)}


def describe_signature(
    inputs: Mapping[str, Any], outputs: Mapping[str, Any]
) -> dict[str, Any]:
    """A signature in a contract."""
    method = tf.saved_model.PREDICT_METHOD_NAME
    return {"inputs": inputs, "outputs": outputs, "method_name": method}


def serving_input_receiver(spec: FeatureSpec) -> Any:
    """Builds the receiving end of the serving graph in the default graph.

    Serialized examples are parsed into dense tensors. Each of these can be fed in
    the examples' stead, which makes the second signature. The checks come after
    that point, so they hold for both ways in.

    Args:
      spec: the features.

    Returns:
      A `tf.estimator.export.ServingInputReceiver`. Its features do not hold the
      label: a prediction that depends on it cannot be exported.
    """
    examples = tf.compat.v1.placeholder(tf.string, [None], name=EXAMPLES_INPUT)
    parsed = spec.parse(examples, spec.serving_parsing_spec())
    tensors = {
        name: tf.compat.v1.placeholder_with_default(
            parsed[name], [None] if name in spec.span_fields else [None, None], name
        )
        for name in serving_input_names(spec)
    }
    return tf.estimator.export.ServingInputReceiver(
        features=spec.check(tensors),
        receiver_tensors={EXAMPLES_INPUT: examples},
        receiver_tensors_alternatives={TENSORS_SIGNATURE: tensors},
    )


def export_saved_model(
    estimator: Any,
    spec: FeatureSpec,
    staging_dir: str | os.PathLike[str],
    checkpoint_path: str,
) -> Path:
    """Writes a checkpoint as a SavedModel, straight into a staging directory.

    The SavedModel is the Estimator's own: tag `serve` alone (a TPUEstimator must be
    made with `export_to_tpu=False`), signatures EXAMPLES_SIGNATURE and
    TENSORS_SIGNATURE.

    Args:
      estimator: a `tf.compat.v1.estimator.Estimator` or `TPUEstimator` whose
        model_fn exports `probabilities` and `score` in PREDICT mode.
      spec: the features it reads.
      staging_dir: an existing directory without a SavedModel.
      checkpoint_path: the checkpoint's prefix.

    Returns:
      `staging_dir`.

    Raises:
      StageError: the Estimator's export has other signatures than these two.
    """
    staging = Path(staging_dir)
    # The Estimator names the directory it writes after the time; its content is
    # moved up once complete.
    parent = staging / "estimator_export"
    exported = estimator.export_savedmodel(
        str(parent),
        lambda: serving_input_receiver(spec),
        checkpoint_path=checkpoint_path,
        strip_default_attrs=True,
    )
    for path in Path(os.fsdecode(exported)).iterdir():
        path.rename(staging / path.name)
    shutil.rmtree(parent)
    _name_signatures(staging / tf.saved_model.SAVED_MODEL_FILENAME_PB)
    return staging


def vocab_path(tokenizer: str) -> str:
    """Where artifacts have the vocabulary of a tokenizer that a config names.

    It is in `assets.extra`, not in `assets`: no graph reads it there.
    """
    return f"{ASSETS_EXTRA}/{TOKENIZER_FILES[tokenizer]}"


def write_vocab(artifact_dir: str | os.PathLike[str], tokenizer: Tokenizer) -> Path:
    """Writes a tokenizer's vocabulary into an artifact; returns the file."""
    path = Path(artifact_dir) / ASSETS_EXTRA / tokenizer.file_name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(tokenizer.content)
    return path


def _name_signatures(path: Path) -> None:
    """Gives the signature of the raw tensors its plain name.

    The Estimator names it `tensors:serving_default`, an alternative receiver and an
    export output joined by a colon. The colon also separates a model's name from its
    method in TF Serving's REST paths and a node from its output in a tensor's name,
    and there is only one export output to tell apart.
    """
    saved_model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    names = {
        EXAMPLES_SIGNATURE: EXAMPLES_SIGNATURE,
        f"{TENSORS_SIGNATURE}:{EXAMPLES_SIGNATURE}": TENSORS_SIGNATURE,
    }
    for meta_graph in saved_model.meta_graphs:
        signatures: Mapping[str, Any] = meta_graph.signature_def
        if set(signatures) != set(names):
            raise StageError(
                f"{path}: the Estimator exported the signatures "
                f"{sorted(signatures)}, expected {sorted(names)}; the model_fn's "
                f"export_outputs must hold {EXAMPLES_SIGNATURE!r} alone"
            )
        renamed = {names[name]: signatures[name] for name in signatures}
        meta_graph.ClearField("signature_def")
        for name, signature in renamed.items():
            meta_graph.signature_def[name].CopyFrom(signature)
    path.write_bytes(saved_model.SerializeToString(deterministic=True))

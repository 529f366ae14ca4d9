"""Finds Keras layers that TensorFlow.js or Keras cannot take, before a conversion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bert_export.errors import StageError

# What tfjs-layers 4.22 deserializes; a test compares this with the runtime's own list.
_TFJS_LAYERS = """
    Activation Add AlphaDropout Average AveragePooling1D AveragePooling2D
    AveragePooling3D BatchNormalization Bidirectional CategoryEncoding CenterCrop
    Concatenate Conv1D Conv2D Conv2DTranspose Conv3D Conv3DTranspose ConvLSTM2D
    ConvLSTM2DCell Cropping2D Dense DepthwiseConv2D Dot Dropout ELU Embedding Flatten
    GRU GRUCell GaussianDropout GaussianNoise GlobalAveragePooling1D
    GlobalAveragePooling2D GlobalMaxPooling1D GlobalMaxPooling2D InputLayer LSTM
    LSTMCell LayerNormalization LeakyReLU Masking MaxPooling1D MaxPooling2D MaxPooling3D
    Maximum Minimum Multiply PReLU Permute RNN RandomWidth ReLU RepeatVector Rescaling
    Reshape Resizing SeparableConv2D SimpleRNN SimpleRNNCell Softmax SpatialDropout1D
    StackedRNNCells ThresholdedReLU TimeDistributed UpSampling2D ZeroPadding2D
"""
_TFJS_ACTIVATIONS = """
    elu gelu gelu_new hard_sigmoid linear log_softmax mish relu relu6 selu sigmoid
    softmax softplus softsign swish tanh
"""
TFJS_LAYERS = frozenset(_TFJS_LAYERS.split())
TFJS_ACTIVATIONS = frozenset(_TFJS_ACTIVATIONS.split())
_MODELS = ("Functional", "Model", "Sequential")
_WRAPPED = ("layer", "forward_layer", "backward_layer", "cell", "cells")
# Keras' old names for what it writes today.
_OLD_NAMES = {
    "BatchNormalizationV1": "BatchNormalization",
    "UnifiedGRU": "GRU",
    "UnifiedLSTM": "LSTM",
}


def tfjs_problems(model: Mapping[str, Any]) -> list[str]:
    """The layers that tfjs-layers does not have, or not with these options.

    Args:
      model: class_name and config, as in Keras' files.

    Returns:
      For each, `NAME (CLASS): why`.
    """

    def why(kind: str, config: Mapping[str, Any]) -> str | None:
        if kind == "Lambda":
            return "holds Python code"
        if kind not in TFJS_LAYERS:
            return "tfjs-layers has no such layer"
        if kind in ("GRU", "GRUCell") and config.get("reset_after"):
            return "tfjs-layers has no reset_after=True; train with reset_after=False"
        for key in ("activation", "recurrent_activation"):
            name = config.get(key)
            if name is None or kind in _MODELS:
                continue
            if isinstance(name, dict):
                name = name.get("config", name.get("class_name"))
            if not isinstance(name, str) or name not in TFJS_ACTIVATIONS:
                return f"tfjs-layers has no {key} {name}"
        return None

    return _problems(model, why)


def keras_problems(model: Mapping[str, Any], knows: Callable[[str], bool]) -> list[str]:
    """The layers that Keras cannot rebuild, or that a graph without state cannot be.

    Args:
      model: as for `tfjs_problems`.
      knows: whether Keras has a layer of this class.

    Returns:
      For each, `NAME (CLASS): why`.
    """

    def why(kind: str, config: Mapping[str, Any]) -> str | None:
        if kind == "Lambda":
            return "holds Python code, which is not run from a file"
        if not knows(kind):
            return "Keras has no such layer, so it is code of the model's author"
        if config.get("stateful"):
            return (
                "keeps its state between calls (stateful=True), which a graph model "
                "cannot"
            )
        return None

    return _problems(model, why)


def _problems(
    model: Mapping[str, Any], why: Callable[[str, Mapping[str, Any]], str | None]
) -> list[str]:
    found = []
    for kind, config in _layers(model):
        if reason := why(kind, config):
            found.append(f"{config.get('name', 'no name')} ({kind}): {reason}")
    return list(dict.fromkeys(found))


def _layers(model: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Class and config of all layers, in models and wrappers, too."""
    kind = str(model.get("class_name"))
    config = model.get("config")
    if isinstance(config, list):  # Sequential, long ago
        config = {"layers": config}
    if not isinstance(config, Mapping):
        config = {}
    nested = config.get("layers")
    if kind in _MODELS and isinstance(nested, list):
        for layer in nested:
            yield from _layers(layer)
        return
    yield _OLD_NAMES.get(kind, kind), config
    for key in _WRAPPED:
        inner = config.get(key)
        for layer in inner if isinstance(inner, list) else [inner]:
            if isinstance(layer, Mapping) and "class_name" in layer:
                yield from _layers(layer)


def refuse(problems: Sequence[str], output_format: str) -> None:
    """Raises StageError where there are problems, a line each.

    Args:
      problems: as from `tfjs_problems` or `keras_problems`.
      output_format: what the model should become.
    """
    if problems:
        count = f"{len(problems)} layer{'s' if len(problems) > 1 else ''}"
        raise StageError(
            f"{count} cannot be converted to {output_format}:"
            + "".join(f"\n  {one}" for one in problems)
            + "\nA tfjs_graph_model needs no layers: save a SavedModel where the "
            "model's code is, and convert that with --input_format=tf_saved_model"
        )

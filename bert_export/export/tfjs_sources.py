"""Loads models of any format as frozen graphs, for TensorFlow.js."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.python.framework.convert_to_constants import (
    convert_variables_to_constants_v2,
)

from bert_export.errors import StageError, UserError
from bert_export.export import (
    extras,
    freeze,
    session_graph,
    tfjs_keras,
    tfjs_layers,
    tfjs_model,
    tfjs_operations,
)
from bert_export.export.session_graph import Input
from bert_export.export.tfjs_model import error_line

_TAGS = [tf.saved_model.SERVING]
# Of SavedModels, and of modules of TensorFlow 1.
_SIGNATURES = (tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY, "default")
_UPDATES = re.compile(r"Assign\w*VariableOp|Assign|(Resource)?(Sparse)?Apply[A-Z]\w*")
_NO_OUTPUTS = ("Assert", "Const", "NoOp", *session_graph.PLACEHOLDERS)
_SAVED_MODEL_FILES = ("saved_model.pb", "saved_model.pbtxt")


@dataclasses.dataclass(frozen=True)
class Source:
    """A model as a frozen graph, and a way to run what it was frozen from."""

    graph_def: tf.compat.v1.GraphDef
    inputs: tuple[Input, ...]  # `source` is the tensor in the graph
    outputs: Mapping[str, str]  # by name, the tensor in the graph
    run: Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]  # outputs in order
    layers_model: Path | None = None  # the model.json that it comes from


def load(
    input_format: str,
    input_path: str,
    work: Path,
    signature: str | None = None,
    saved_model_tags: str | None = None,
    output_node_names: str | None = None,
) -> Source:
    """Loads a model of any format; see `tfjs_convert.convert` for the arguments.

    Args:
      input_format: its format.
      input_path: its file or directory.
      work: an existing directory for what is needed on the way. The result needs it.
      signature: the signature to convert.
      saved_model_tags: the tags of the graph to convert.
      output_node_names: the outputs of a frozen graph.

    Raises:
      UserError: there is no such model there, or it is damaged.
      StageError: it cannot become a frozen graph.
    """
    path = Path(input_path)
    if input_format == "keras":
        return _from_keras(path, work)
    if input_format == "tfjs_layers_model":
        return _from_layers_model(input_path, work)
    if input_format == "tf_frozen_model":
        return _from_frozen_graph(path, output_node_names)
    if input_format == "tf_hub":
        path = _resolve(input_path)
        if (path / "tfhub_module.pb").is_file() and not saved_model_tags:
            # A module of TensorFlow 1 has a graph without tags.
            return _from_saved_model(path, signature, [], work)
    tags = saved_model_tags.split(",") if saved_model_tags else None
    return _from_saved_model(path, signature, tags, work)


def _from_keras(path: Path, work: Path) -> Source:
    """A Keras file's model; a Keras SavedModel is taken as any other SavedModel."""
    if path.is_dir():
        return _from_saved_model(path, None, None, work)
    tfjs_layers.refuse(
        tfjs_layers.keras_problems(tfjs_keras.stored_config(path), tfjs_keras.knows),
        "tfjs_graph_model",
    )
    return _from_keras_model(tfjs_keras.load(path), work)


def keras_of_layers_model(path: Path, content: Mapping[str, Any]) -> Any:
    """Rebuilds a tfjs_layers_model in Keras.

    Args:
      path: its model.json.
      content: what is in it.

    Raises:
      UserError: the weights do not fit the layers.
      StageError: Keras does not have a layer, or a graph cannot be made of one.
    """
    tfjs_layers.refuse(
        tfjs_layers.keras_problems(tfjs_model.topology(content), tfjs_keras.knows),
        "tfjs_graph_model",
    )
    with extras.quiet():
        from tensorflowjs.converters import keras_tfjs_loader

        try:
            return keras_tfjs_loader.load_keras_model(os.fspath(path))
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(
                f"{path}: Keras cannot rebuild its layers with these weights: "
                f"{error_line(error)}"
            ) from error


def _from_layers_model(input_path: str, work: Path) -> Source:
    """A layers model by way of Keras."""
    path = tfjs_model.find(input_path)
    content = tfjs_model.read(path, tfjs_model.LAYERS)
    source = _from_keras_model(keras_of_layers_model(path, content), work)
    return dataclasses.replace(source, layers_model=path)


def _from_keras_model(model: Any, work: Path) -> Source:
    """Traces a model as a SavedModel whose tensors have its layers' names."""
    inputs = tfjs_keras.inputs_of(model)
    names = [re.sub(r"\W", "_", name) for name in model.output_names]

    # AutoGraph would take its time over all of Keras, which needs none.
    @tf.autograph.experimental.do_not_convert
    def serve(*values: tf.Tensor) -> dict[str, tf.Tensor]:
        results = model(list(values), training=False)
        return dict(zip(names, tf.nest.flatten(results)))

    with extras.quiet():
        import tf_keras

        archive = tf_keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint(
            tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY,
            serve,
            [tf.TensorSpec(i.shape, i.dtype, i.name) for i in inputs],
        )
        archive.write_out(os.fspath(work / "keras"))
    return _from_saved_model(work / "keras", None, None, work)


def _from_saved_model(
    path: Path, signature: str | None, tags: list[str] | None, work: Path
) -> Source:
    if not any((path / name).is_file() for name in _SAVED_MODEL_FILES):
        if path.is_dir() and (path / tfjs_model.MODEL_FILE).is_file():
            raise UserError(
                f"{path}: a TensorFlow.js model, no SavedModel; a layers model is "
                "--input_format=tfjs_layers_model"
            )
        what = "there is no saved_model.pb in it" if path.is_dir() else "no directory"
        raise UserError(f"{path}: not a SavedModel: {what}")
    with extras.quiet():
        try:
            loaded = tf.saved_model.load(
                os.fspath(path), tags=_TAGS if tags is None else tags
            )
        except Exception as error:  # protobuf's, TensorFlow's and Python's own
            raise UserError(
                f"{path}: TensorFlow cannot load this SavedModel: {error_line(error)}"
            ) from error
        if not loaded.signatures and signature is None:
            loaded = _with_signature(path, loaded, work)
        function = _signature(path, loaded.signatures, signature)
        try:
            frozen = convert_variables_to_constants_v2(
                function, lower_control_flow=True, aggressive_inlining=True
            )
        except Exception as error:  # ValueError, AssertionError, TensorFlow's own
            raise _cannot_freeze(function, error) from error
    names = list(function._arg_keywords)
    graph_def = frozen.graph.as_graph_def()
    tensors = {tensor.name: tensor for tensor in frozen.inputs}
    inputs = []
    for name, tensor in zip(names, function.inputs):
        if tensor.name in tensors:
            inputs.append(Input(name, tensor.name, tensor.dtype, tensor.shape, False))
    if any(tensor.dtype == tf.resource for tensor in frozen.inputs):
        raise StageError(
            "the model looks words or numbers up in a table, which is no constant: do "
            "that outside of the model, and convert what takes the numbers"
        )

    def run(values: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        arguments = {name: tf.constant(value) for name, value in values.items()}
        result = function(**arguments)
        # The frozen function owns nothing of `loaded`, which has to stay alive.
        assert loaded is not None
        return [result[name].numpy() for name in outputs]

    outputs = dict(
        zip(
            sorted(function.structured_outputs),
            (tensor.name for tensor in function.outputs),
        )
    )
    return Source(graph_def, tuple(inputs), outputs, run)


def _signature(path: Path, signatures: Mapping[str, Any], name: str | None) -> Any:
    if name is None:
        defaults = [default for default in _SIGNATURES if default in signatures]
        if len(signatures) == 1:
            defaults = [*signatures]
        name = defaults[0] if defaults else None
    if name is None or name not in signatures:
        raise UserError(
            f"{path}: no signature {name or _SIGNATURES[0]}; choose with "
            "--signature=NAME from "
            f"{', '.join(sorted(signatures)) or 'none: it was saved without any'}"
        )
    return signatures[name]


def _with_signature(path: Path, loaded: Any, work: Path) -> Any:
    """Gives a module that can only be called a signature.

    Raises:
      UserError: it cannot be called, or takes more than one tensor or a dictionary of
        them.
    """
    calls = getattr(getattr(loaded, "__call__", None), "concrete_functions", [])  # noqa: B004
    for call in calls:
        positional, named = call.structured_input_signature
        if True in positional or True in named.values():
            continue  # training
        if not positional:
            continue
        spec = positional[0]
        if isinstance(spec, tf.TensorSpec):
            spec = {"inputs": spec}
            function = tf.function(lambda inputs: _named(loaded(inputs)))
        elif isinstance(spec, Mapping):
            function = tf.function(lambda **inputs: _named(loaded(inputs)))
        else:
            continue
        named_specs = {
            name: tf.TensorSpec(one.shape, one.dtype, name)
            for name, one in spec.items()
        }
        directory = os.fspath(work / "module")
        try:
            traced = function.get_concrete_function(**named_specs)
        except (TypeError, ValueError):
            continue  # it wants more than that
        tf.saved_model.save(loaded, directory, traced)
        return tf.saved_model.load(directory)
    raise UserError(
        f"{path}: has no signature, and no call with a tensor or a dictionary of "
        "tensors; save it with tf.saved_model.save(module, DIR, signatures=...)"
    )


def _named(result: Any) -> dict[str, tf.Tensor]:
    if isinstance(result, Mapping):
        return {name: one for name, one in result.items() if tf.is_tensor(one)}
    flat = tf.nest.flatten(result)
    return (
        {"output": flat[0]}
        if len(flat) == 1
        else {f"output_{index}": one for index, one in enumerate(flat)}
    )


def _cannot_freeze(function: Any, error: Exception) -> StageError:
    graph_def = function.graph.as_graph_def()
    found: dict[str, list[str]] = {}
    nodes = [(node, "") for node in graph_def.node]
    for one in graph_def.library.function:
        nodes += [(node, f" (function {one.signature.name})") for node in one.node_def]
    for node, where in nodes:
        if _UPDATES.fullmatch(node.op):
            found.setdefault(node.op, []).append(node.name + where)
    if found:
        return StageError(
            "the model changes variables when it predicts, and a graph model has only "
            f"constants: {tfjs_operations.describe(found)}. Recurrent layers do so "
            "with stateful=True"
        )
    return StageError(
        f"TensorFlow cannot turn the variables into constants: {error_line(error)}"
    )


def _from_frozen_graph(path: Path, output_node_names: str | None) -> Source:
    graph_def = _read_graph(path)
    graph = tf.Graph()
    with graph.as_default():
        try:
            tf.import_graph_def(graph_def, name="")
        except Exception as error:  # ValueError, TensorFlow's own
            raise UserError(
                f"{path}: this TensorFlow cannot read the graph: {error_line(error)}"
            ) from error
    variables = [n.name for n in graph_def.node if n.op.startswith("Var")]
    if variables:
        raise UserError(
            f"{path}: not frozen: {variables[0]} and {len(variables) - 1} more are "
            "variables, whose values are in a checkpoint; freeze it first: bert-export "
            "freeze --checkpoint=PREFIX"
        )
    if output_node_names:
        names = freeze.parse_names(output_node_names)
        names = freeze.find_outputs(graph, names, os.fspath(path))
    else:
        names = _unread(graph)
        if not names:
            raise UserError(
                f"{path}: no output found: every node is read by another one; name the "
                "outputs with --output_node_names"
            )
    return _from_session(tf.compat.v1.Session(graph=graph), names)


def _read_graph(path: Path) -> tf.compat.v1.GraphDef:
    if path.is_dir():
        raise UserError(
            f"{path}: a directory, expected the file of a frozen graph (.pb)"
            + (
                "; a SavedModel is --input_format=tf_saved_model"
                if any((path / name).is_file() for name in _SAVED_MODEL_FILES)
                else ""
            )
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    graph_def = tf.compat.v1.GraphDef()
    try:
        graph_def.ParseFromString(data)
    except DecodeError:
        graph_def.Clear()
    if not any(node.op for node in graph_def.node):
        hint = "copy the file again, or name another one"
        if path.name in _SAVED_MODEL_FILES:
            hint = (
                f"name the directory {path.parent} with --input_format=tf_saved_model"
            )
        raise UserError(f"{path}: not a frozen graph (GraphDef); {hint}")
    return graph_def


def _unread(graph: tf.Graph) -> list[str]:
    """The nodes with outputs that no node reads, but for constants and inputs."""
    return [
        operation.name
        for operation in graph.get_operations()
        if operation.outputs
        and operation.type not in _NO_OUTPUTS
        and not any(output.consumers() for output in operation.outputs)
    ]


def _resolve(handle: str) -> Path:
    """The directory of a TF Hub module.

    Raises:
      UserError: there is none, or it cannot be fetched.
    """
    if "://" not in handle:
        if not Path(handle).is_dir():
            raise UserError(
                f"{handle}: there is no such directory; a handle of TF Hub begins with "
                "https://"
            )
        return Path(handle)
    with extras.quiet():
        import tensorflow_hub

        try:
            return Path(tensorflow_hub.resolve(handle))
        except Exception as error:  # urllib's, tarfile's, TensorFlow's own
            raise UserError(
                f"{handle}: cannot be fetched ({error_line(error)}); download and "
                "unpack it, and name the directory"
            ) from error


def _from_session(session: tf.compat.v1.Session, outputs: Sequence[str]) -> Source:
    """The graph of a session; inputs and outputs keep their names."""
    part = session_graph.inference_part(session.graph, outputs)
    graph_def = session_graph.freeze(session, part)

    def run(values: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        feed = {i.source: values[i.name] for i in part.inputs if i.name in values}
        return session.run(list(part.outputs), feed)

    return Source(graph_def, part.inputs, dict(zip(outputs, part.outputs)), run)

"""Converts any model to TensorFlow.js and runs the result in Node.js to compare it."""

from __future__ import annotations

import dataclasses
import glob
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tabulate import tabulate
from tensorflow.core.protobuf import meta_graph_pb2

from bert_export.errors import StageError, UserError
from bert_export.export import (
    extras,
    sample_inputs,
    tfjs,
    tfjs_compare,
    tfjs_keras,
    tfjs_layers,
    tfjs_model,
    tfjs_operations,
    tfjs_sources,
)
from bert_export.export.session_graph import Input
from bert_export.export.tfjs_model import error_line
from bert_export.export.tfjs_sources import Source

GRAPH_MODEL = "tfjs_graph_model"
LAYERS_MODEL = "tfjs_layers_model"
# What each input format can become.
COMBINATIONS = {
    "tfjs_layers_model": (GRAPH_MODEL, LAYERS_MODEL),
    "keras": (GRAPH_MODEL, LAYERS_MODEL),
    "tf_saved_model": (GRAPH_MODEL,),
    "tf_frozen_model": (GRAPH_MODEL,),
    "tf_hub": (GRAPH_MODEL,),
}
QUANTIZATIONS = ("float16", "uint8", "uint16")
# The key of model.json's userDefinedMetadata that says how it was made.
METADATA = "bert_export_conversion"
# Smaller weights keep float32.
_SMALLEST = 1024
_PACKAGES = ("tfjs", "tensorflowjs", "tf_keras", "tensorflow_hub")


@dataclasses.dataclass(frozen=True)
class Converted:
    """A TensorFlow.js model, and what became of it on the way."""

    path: Path  # its directory
    inputs: tuple[str, ...]  # NAME DTYPE SHAPE
    outputs: tuple[str, ...]
    notes: tuple[str, ...]  # sentences on what the conversion costs
    check: str

    def table(self) -> str:
        """What came out, for people."""
        files = [file for file in self.path.iterdir() if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        rows = [
            *(["input", one] for one in self.inputs),
            *(["output", one] for one in self.outputs),
            ["files", f"{self.path}: {len(files)} files, {size / 1e6:.2f} MB"],
            ["check", self.check],
        ]
        notes = "\n".join(f"- {note}" for note in self.notes)
        return (
            tabulate(rows, tablefmt="plain", disable_numparse=True)
            + f"\n\nWhat this conversion costs:\n{notes}"
        )


def convert(
    input_format: str,
    output_format: str,
    input_path: str,
    output_path: str | os.PathLike[str],
    *,
    quantization: str | None = None,
    signature: str | None = None,
    saved_model_tags: str | None = None,
    output_node_names: str | None = None,
) -> Converted:
    """Writes a model for TensorFlow.js, after it gave the source's numbers in Node.js.

    Args:
      input_format: a key of `COMBINATIONS`.
      output_format: one of its values.
      input_path: the model. For tfjs_layers_model its model.json or directory; for
        keras an .h5 or .keras file or a SavedModel of Keras'; for tf_saved_model a
        directory; for tf_frozen_model a GraphDef's file; for tf_hub a directory or
        anything that tensorflow_hub resolves.
      output_path: the directory to make.
      quantization: how weights are stored, one of `QUANTIZATIONS`; None for float32.
      signature: for tf_saved_model and tf_hub. Default: serving_default, or the only
        one.
      saved_model_tags: for tf_saved_model and tf_hub, joined by commas. Default: serve.
      output_node_names: for tf_frozen_model, joined by commas. Default: the nodes that
        no other node reads.

    Raises:
      UserError: something given is missing, unfit, or cannot be combined.
      StageError: the model cannot be converted, or the result gives other numbers.
    """
    _check_combination(input_format, output_format)
    _check_options(input_format, quantization, signature, saved_model_tags)
    if output_node_names and input_format != "tf_frozen_model":
        raise UserError("--output_node_names is for --input_format=tf_frozen_model")
    output = _output_directory(output_path)
    extras.require(*_PACKAGES)
    with tempfile.TemporaryDirectory(
        prefix=f".{output.name}.", dir=output.parent
    ) as directory:
        work = Path(directory)
        staging = work / "model"
        staging.mkdir()
        if output_format == LAYERS_MODEL:
            if input_format == "keras":
                converted = _keras_to_layers(input_path, work, staging, quantization)
            else:
                converted = _layers_to_layers(input_path, staging, quantization)
        else:
            source = tfjs_sources.load(
                input_format,
                input_path,
                work,
                signature,
                saved_model_tags,
                output_node_names,
            )
            converted = _write_graph_model(source, staging, quantization)
        _add_metadata(staging, input_format, input_path, quantization, converted)
        tfjs_model.read(staging / tfjs_model.MODEL_FILE)
        try:
            staging.rename(output)
        except OSError as error:
            raise StageError(f"{output}: cannot be written: {error}") from error
    return dataclasses.replace(converted, path=output)


# --- what is refused before any work -------------------------------------------------


def _check_combination(input_format: str, output_format: str) -> None:
    if input_format not in COMBINATIONS:
        raise UserError(
            f"--input_format={input_format}: expected one of {', '.join(COMBINATIONS)}"
        )
    possible = COMBINATIONS[input_format]
    if output_format not in possible:
        why = (
            " (a graph has no layers that could be found again)"
            if output_format == LAYERS_MODEL
            else ""
        )
        raise UserError(
            f"{input_format} cannot become {output_format}{why}; possible: "
            f"--output_format={' or '.join(possible)}"
        )


def _check_options(
    input_format: str,
    quantization: str | None,
    signature: str | None,
    tags: str | None,
) -> None:
    if quantization is not None and quantization not in QUANTIZATIONS:
        raise UserError(
            f"--quantization={quantization}: expected one of {', '.join(QUANTIZATIONS)}"
        )
    if (signature or tags) and input_format not in ("tf_saved_model", "tf_hub"):
        raise UserError(
            "--signature and --saved_model_tags are for --input_format=tf_saved_model "
            "and tf_hub"
        )


def _output_directory(output_path: str | os.PathLike[str]) -> Path:
    """The directory to make.

    Raises:
      UserError: it exists, or cannot be made.
    """
    path = Path(os.path.abspath(output_path))
    if path.exists() or path.is_symlink():
        raise UserError(f"{output_path}: exists, and is not overwritten; name another")
    try:
        os.rmdir(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise UserError(
            f"{output_path}: cannot write in {path.parent} ({error.strerror}); name a "
            "path in a writable directory"
        ) from error
    return path


# --- to a layers model ---------------------------------------------------------------

_UNTRAINED = (
    "the optimizer's state and compile()'s arguments are not taken along: call "
    "compile() before fit()"
)


def _keras_to_layers(
    input_path: str, work: Path, staging: Path, quantization: str | None
) -> Converted:
    path = Path(input_path)
    config = tfjs_keras.stored_config(path)
    tfjs_layers.refuse(tfjs_layers.tfjs_problems(config), LAYERS_MODEL)
    model = tfjs_keras.load(path)
    with extras.quiet():
        from tensorflowjs.converters import keras_h5_conversion

        model.save(work / "model.h5", save_format="h5", include_optimizer=False)
        layers, weights = keras_h5_conversion.h5_merged_saved_model_to_tfjs_format(
            os.fspath(work / "model.h5")
        )
        keras_h5_conversion.write_artifacts(
            layers, weights, os.fspath(staging), _dtype_map(quantization, weights)
        )
    check = _compare_with_keras(model, staging, quantization)
    return Converted(
        staging,
        tuple(_describe(i.name, i.dtype, i.shape) for i in tfjs_keras.inputs_of(model)),
        tuple(
            _describe(name, tf.as_dtype(tensor.dtype), tensor.shape)
            for name, tensor in zip(model.output_names, model.outputs)
        ),
        (
            "the optimizer's state and compile()'s arguments are not taken along: call "
            "compile() before fit()",
            *_quantization_notes(quantization),
        ),
        check,
    )


def _layers_to_layers(
    input_path: str, staging: Path, quantization: str | None
) -> Converted:
    """Stores the weights in another type; the layers stay as they are."""
    path = tfjs_model.find(input_path)
    content = tfjs_model.read(path, tfjs_model.LAYERS)
    if quantization is None:
        raise UserError(
            f"{path}: is a {LAYERS_MODEL} already; add --quantization="
            f"{' or '.join(QUANTIZATIONS)} to store its weights in fewer bits, or take "
            f"--output_format={GRAPH_MODEL}"
        )
    again = any(
        "quantization" in weight
        for group in content["weightsManifest"]
        for weight in group["weights"]
    )
    with extras.quiet():
        from tensorflowjs import read_weights, write_weights

        weights = read_weights.read_weights(
            content["weightsManifest"], os.fspath(path.parent)
        )
        content["weightsManifest"] = write_weights.write_weights(
            weights,
            os.fspath(staging),
            write_manifest=False,
            quantization_dtype_map=_dtype_map(quantization, weights),
        )
    written = staging / tfjs_model.MODEL_FILE
    written.write_text(json.dumps(content), encoding="utf-8")
    try:
        model = tfjs_sources.keras_of_layers_model(path, content)
    except (UserError, StageError) as error:
        check = f"weights complete; not run, as Keras cannot rebuild it: {error}"
    else:
        check = _compare_with_keras(model, staging, quantization, path)
    notes = _quantization_notes(quantization)
    if again:
        notes += (
            "the weights were stored in fewer bits before: what that lost stays lost",
        )
    return Converted(staging, (), (), notes, check)


def _compare_with_keras(
    model: Any, staging: Path, quantization: str | None, original: Path | None = None
) -> str:
    inputs = tfjs_keras.inputs_of(model)

    def run(values: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        model.reset_states()
        results = model([tf.constant(values[i.name]) for i in inputs])
        return [np.asarray(one) for one in tf.nest.flatten(results)]

    check, _ = tfjs_compare.compare(
        run,
        inputs,
        tfjs_keras.table_rows(model),
        staging,
        tfjs_model.LAYERS,
        list(model.output_names),
        quantization,
        original=original,
    )
    return check


# --- writing a graph model -----------------------------------------------------------


def _write_graph_model(
    source: Source, staging: Path, quantization: str | None
) -> Converted:
    tfjs_operations.check(source.graph_def)
    signature = meta_graph_pb2.SignatureDef()
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(tfjs.split_training_norms(source.graph_def), name="")
    for kind, tensors in (
        (signature.inputs, {i.name: i.source for i in source.inputs}),
        (signature.outputs, source.outputs),
    ):
        for name, tensor_name in tensors.items():
            tensor = graph.get_tensor_by_name(_tensor(tensor_name))
            kind[name].name = tensor.name
            kind[name].dtype = tensor.dtype.as_datatype_enum
            kind[name].tensor_shape.CopyFrom(tensor.shape.as_proto())
    with extras.quiet():
        # Takes seconds: it brings two other frameworks along.
        from tensorflowjs.converters import tf_saved_model_conversion_v2 as converter

        try:
            # Operations are checked here, before and after; what the optimizer
            # makes of them is taken apart in between.
            optimized = converter.optimize_graph(
                graph, signature, skip_op_check=True, strip_debug_ops=True
            )
        except Exception as error:  # whatever TensorFlow's optimizer raises
            raise StageError(
                f"the TensorFlow.js converter failed: {error_line(error)}"
            ) from error
        optimized = free_loops(tfjs.unfuse(optimized))
        tfjs_operations.check(optimized)
        _refuse_constant_branches(optimized, source.outputs.values())
        weights = converter.extract_weights(optimized)
        converter.write_artifacts(
            json_format.MessageToDict(optimized),
            weights,
            os.fspath(staging / tfjs_model.MODEL_FILE),
            tf.__version__,
            signature,
            quantization_dtype_map=_dtype_map(quantization, weights),
        )
    inputs = source.inputs
    with graph.as_default():
        rows = sample_inputs.table_rows(graph, inputs)
    check, call = tfjs_compare.compare(
        source.run,
        inputs,
        rows,
        staging,
        tfjs_model.GRAPH,
        list(source.outputs),
        quantization,
        original=source.layers_model,
    )
    outputs = {
        name: graph.get_tensor_by_name(_tensor(tensor))
        for name, tensor in source.outputs.items()
    }
    return Converted(
        staging,
        tuple(_describe(i.name, i.dtype, i.shape) for i in inputs),
        tuple(_describe(name, t.dtype, t.shape) for name, t in outputs.items()),
        (
            "it only predicts: no fit(), no evaluate(), no further training; keep the "
            "source for that",
            "layers are gone, with their names and options: there is no getLayer(), "
            "tensors are asked for by the names above",
            "weights are constants, folded and fused with their neighbours: they "
            "cannot be read or set by layer",
            *_shape_notes(inputs),
            *_type_notes([*inputs], [*outputs.values()]),
            *_call_notes(call, optimized),
            *_quantization_notes(quantization),
        ),
        check,
    )


def free_loops(graph_def: tf.compat.v1.GraphDef) -> tf.compat.v1.GraphDef:
    """Removes control edges that keep TensorFlow.js from ending a loop.

    It reads a control edge as one of the node's first output. Of a Switch that has a
    value in the last round only, and a constant that enters a loop has one in the first
    only, so nodes in the loop wait for ever. In TensorFlow such edges order nothing
    that other edges do not.

    Args:
      graph_def: a frozen graph; not changed.
    """
    result = tf.compat.v1.GraphDef()
    result.CopyFrom(graph_def)
    idle = {
        node.name
        for node in result.node
        if node.op in ("Const", "Switch")
        or (node.op == "Enter" and node.attr["is_constant"].b)
    }
    found = True
    while found:
        found = False
        for node in result.node:
            if node.op != "Const":
                node.input[:] = [
                    name
                    for name in node.input
                    if not (name.startswith("^") and name[1:] in idle)
                ]
            if node.op == "NoOp" and not node.input and node.name not in idle:
                idle.add(node.name)
                found = True
    return result


def _refuse_constant_branches(
    graph_def: tf.compat.v1.GraphDef, outputs: Iterable[str]
) -> None:
    """Raises StageError where TensorFlow.js would always take the same branch.

    A constant is there before the condition is, and it does not wait.
    """
    nodes = {node.name: node for node in graph_def.node}
    to_visit = [name.partition(":")[0] for name in outputs]
    seen = set(to_visit)
    found = []
    while to_visit:
        node = nodes[to_visit.pop()]
        # Control edges, as from assertions, choose no values.
        inputs = [i.partition(":")[0] for i in node.input if not i.startswith("^")]
        if node.op == "Merge" and any(nodes[name].op == "Const" for name in inputs):
            found.append(node.name)
        to_visit += set(inputs) - seen
        seen |= set(inputs)
    if found:
        raise StageError(
            "a condition's branch is a constant, which TensorFlow.js takes whatever "
            f"the condition says: {tfjs_operations.describe({'Merge': found})}. Write "
            "it with tf.where"
        )


def _add_metadata(
    staging: Path,
    input_format: str,
    input_path: str,
    quantization: str | None,
    converted: Converted,
) -> None:
    path = staging / tfjs_model.MODEL_FILE
    content = json.loads(path.read_text(encoding="utf-8"))
    content.setdefault("userDefinedMetadata", {})[METADATA] = {
        "input_format": input_format,
        "input": Path(input_path).name,
        "quantization": quantization,
        "tensorflow": tf.__version__,
        "notes": list(converted.notes),
        "check": converted.check,
    }
    path.write_text(json.dumps(content), encoding="utf-8")


# --- what it costs -------------------------------------------------------------------


def _shape_notes(inputs: Sequence[Input]) -> Iterator[str]:
    for i in inputs:
        if i.shape.rank and i.shape[0] is not None:
            yield (f"{i.name} takes batches of {i.shape[0]} only, as in the source")


def _type_notes(inputs: Sequence[Input], outputs: Sequence[tf.Tensor]) -> Iterator[str]:
    types = {one.dtype for one in (*inputs, *outputs)}
    if types & {tf.int64, tf.uint32, tf.uint64}:
        yield "64-bit integers are int32 in JavaScript: larger numbers are cut off"
    if tf.float64 in types:
        yield "float64 is float32 in JavaScript"


def _call_notes(call: str | None, graph_def: tf.compat.v1.GraphDef) -> Iterator[str]:
    if call == "executeAsync":
        loops = sum(node.op == "LoopCond" for node in graph_def.node)
        what = f"its {loops} loops are" if loops > 1 else "its loop is"
        yield (
            "it runs with executeAsync() only, predict() and execute() throw: "
            + (
                f"{what} run round by round"
                if loops
                else "it has operations whose output's shape depends on values"
            )
        )
    elif call == "predict":
        yield "it runs with predict(), execute() and executeAsync()"


def _quantization_notes(quantization: str | None) -> tuple[str, ...]:
    if quantization is None:
        return ()
    return (
        f"weights of {_SMALLEST} numbers or more are stored in {quantization} and "
        "expanded to float32 when the model is loaded: a smaller download, but memory "
        "and speed are those of float32",
    )


# --- words ---


def _dtype_map(
    quantization: str | None, groups: Sequence[Sequence[Mapping[str, Any]]]
) -> dict[str, list[str]] | None:
    """Which weights are stored in fewer bits: small ones are not worth the loss."""
    if quantization is None:
        return None
    large = [
        glob.escape(weight["name"])
        for group in groups
        for weight in group
        if weight["data"].dtype == np.float32 and weight["data"].size >= _SMALLEST
    ]
    return {quantization: large}


def _tensor(name: str) -> str:
    return name if ":" in name else f"{name}:0"


def _describe(name: str, dtype: tf.DType, shape: tf.TensorShape) -> str:
    if shape.rank is None:
        return f"{name} {dtype.name}"
    dims = ", ".join("?" if n is None else str(n) for n in shape.as_list())
    return f"{name} {dtype.name} [{dims}]"

"""A session's graph with its variables as constants and without its training part."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from bert_export.errors import StageError, UserError
from bert_export.files import sync

# A GraphDef is one protocol buffer, and those end here.
MAX_BYTES = 2**31 - 1

_VARIABLES = ("VarHandleOp", "VariableV2", "Variable")
PLACEHOLDERS = ("Placeholder", "PlaceholderV2", "PlaceholderWithDefault")
# What gives a training graph its batches and cannot be fed as a node.
_FEEDERS = re.compile(
    r"IteratorGetNext(Sync)?|(QueueDequeue(Many|UpTo)?|ReaderRead(UpTo)?)(V2)?|Unstage"
)
# They change a variable.
_UPDATES = re.compile(
    r"Assign\w*|(Resource)?(Sparse)?Apply[A-Z]\w*|(Resource)?CountUpTo"
    r"|(Resource)?Scatter(Nd)?(Update|Add|Sub|Mul|Div|Min|Max)"
)
_TABLES = re.compile(r"LookupTable\w*|\w*HashTable\w*|InitializeTable\w*")
_PYTHON = re.compile(r"(Eager)?PyFunc(Stateless)?")
# Control flow on references to variables, which become plain values.
_REFERENCES = re.compile(r"Ref(Enter|Exit|Identity|Merge|NextIteration|Switch)")
# They pass their input on, and do something else in training only.
_PASSING = ("CheckNumerics", "PreventGradient", "StopGradient")


@dataclasses.dataclass(frozen=True)
class Input:
    """Something that can be fed."""

    name: str  # the node in the frozen graph
    source: str  # the tensor in the session's graph
    dtype: tf.DType
    shape: tf.TensorShape
    has_default: bool


@dataclasses.dataclass(frozen=True)
class InferencePart:
    """The part of a graph that computes some outputs, variables and all."""

    graph_def: tf.compat.v1.GraphDef
    outputs: tuple[str, ...]  # tensors: `node:index`
    inputs: tuple[Input, ...]
    # More than `inputs` where outputs also depend on what was left out.
    session_inputs: tuple[Input, ...]


def inference_part(graph: tf.Graph, outputs: Sequence[str]) -> InferencePart:
    """Takes from a graph what its outputs need at inference.

    Iterators, queues and readers become placeholders (`NODE/output_INDEX`). What only
    updates variables, such as the moving averages of a batch norm, is left out; so are
    devices and colocations.

    Args:
      graph: the graph.
      outputs: names of tensors or, for the first output, of nodes; all in the graph.

    Raises:
      UserError: the outputs need something that no frozen graph can hold; it is named.
    """
    tensors = tuple(name if ":" in name else f"{name}:0" for name in outputs)
    nodes = _nodes_of(tensors)
    try:
        graph_def = graph.as_graph_def()
    except ValueError as error:  # larger than a protocol buffer
        raise UserError(f"the graph cannot be frozen: {error}") from error
    sources = _cut_feeders(graph, graph_def)
    functions = graph_def.library.function
    for node in (*graph_def.node, *(n for f in functions for n in f.node_def)):
        node.ClearField("device")
        node.attr.pop("_class", None)
        if match := _REFERENCES.fullmatch(node.op):
            node.op = match[1]
    _split_gathers(graph_def.node, ("", ""))
    for function in functions:
        _split_gathers(function.node_def, (":value:0", ":output:0"))
    extract = tf.compat.v1.graph_util.extract_sub_graph
    whole = extract(graph_def, nodes)
    _leave_out_updates(whole)
    part = extract(whole, nodes)
    _refuse(part)
    return InferencePart(
        part,
        tensors,
        _inputs(part, graph, sources),
        _inputs(extract(graph_def, nodes), graph, sources),
    )


def freeze(session: tf.compat.v1.Session, part: InferencePart) -> tf.compat.v1.GraphDef:
    """Turns the variables of a session's graph into constants.

    Args:
      session: holds the values.
      part: what to freeze of its graph.

    Returns:
      The graph with placeholders and outputs named as in `part`, and without nodes
      that pass their input on.

    Raises:
      UserError: variables have no value, or one of another shape; they are named.
      StageError: TensorFlow cannot convert the graph.
    """
    nodes = _nodes_of(part.outputs)
    try:
        frozen = tf.compat.v1.graph_util.convert_variables_to_constants(
            session, part.graph_def, nodes
        )
    except tf.errors.FailedPreconditionError as error:
        names = _without_value(session, part.graph_def)
        raise UserError(
            f"the outputs need {len(names)} variables that have no value, as the "
            f"checkpoint does not hold them: {_some(names)}"
        ) from error
    except (ValueError, KeyError, RuntimeError, tf.errors.OpError) as error:
        raise StageError(
            f"TensorFlow cannot turn the variables into constants: {error}"
        ) from error
    before = {node.name: node for node in part.graph_def.node}
    _check_shapes(frozen, before)
    _name_function_outputs(frozen)
    # The converter drops these from nodes that read variables.
    for node in frozen.node:
        if node.name in before:
            node.input.extend(
                name
                for name in before[node.name].input
                if name.startswith("^") and name not in node.input
            )
    frozen = strip_passing_nodes(frozen, [*nodes, *(i.name for i in part.inputs)])
    _keep_used_functions(frozen)
    return frozen


def strip_passing_nodes(
    graph_def: tf.compat.v1.GraphDef, keep: Iterable[str]
) -> tf.compat.v1.GraphDef:
    """Takes out nodes that only pass their input on at inference.

    These are Identity, StopGradient, PreventGradient and CheckNumerics, unless a
    control edge starts or ends there.

    Args:
      graph_def: the graph; not changed.
      keep: names of nodes that stay.
    """
    kept = set(keep)
    graph = tf.compat.v1.GraphDef()
    graph.CopyFrom(graph_def)
    for node in graph.node:
        # TensorFlow's function takes CheckNumerics out without connecting its input to
        # its consumers, and leaves the gradients' stops in.
        if node.op in _PASSING and node.name not in kept:
            node.op = "Identity"
            node.attr.pop("message", None)
    stripped = tf.compat.v1.graph_util.remove_training_nodes(graph, list(kept))
    # It forgets these two.
    stripped.library.CopyFrom(graph.library)
    stripped.versions.CopyFrom(graph.versions)
    return stripped


def serialize(graph_def: tf.compat.v1.GraphDef) -> bytes:
    """The bytes of a graph's file, always the same ones.

    Raises:
      UserError: it is larger than a protocol buffer may be.
    """
    try:
        data = graph_def.SerializeToString(deterministic=True)
    except Exception as error:  # each protobuf implementation has its own
        raise UserError(_too_large(graph_def.ByteSize())) from error
    if len(data) > MAX_BYTES:
        raise UserError(_too_large(len(data)))
    return data


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file; it appears whole and on disk, or not at all.

    Raises:
      OSError: it cannot be written. What was there before still is.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def _nodes_of(tensors: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name.partition(":")[0] for name in tensors))


def _cut_feeders(graph: tf.Graph, graph_def: tf.compat.v1.GraphDef) -> dict[str, str]:
    """Reads placeholders in place of iterators, queues and readers.

    Returns:
      By placeholder, the tensor that it replaces.
    """
    feeders = {node.name for node in graph_def.node if _FEEDERS.fullmatch(node.op)}
    sources: dict[str, str] = {}
    for node in graph_def.node:
        inputs = []
        for name in node.input:
            feeder, _, index = name.lstrip("^").partition(":")
            if feeder not in feeders:
                inputs.append(name)
            elif not name.startswith("^"):
                placeholder = f"{feeder}/output_{index or 0}"
                sources[placeholder] = f"{feeder}:{index or 0}"
                inputs.append(placeholder)
        node.input[:] = inputs
    for placeholder, source in sources.items():
        tensor = graph.get_tensor_by_name(source)
        node = graph_def.node.add(name=placeholder, op="Placeholder")
        node.attr["dtype"].type = tensor.dtype.as_datatype_enum
        node.attr["shape"].shape.CopyFrom(tensor.shape.as_proto())
    return sources


def _split_gathers(nodes: Any, outputs: tuple[str, str]) -> None:
    """Splits gathers from variables into a read and a gather, in place.

    The converter would put the axis outside of the loop that the gather is in, does not
    look into functions, and refuses batch_dims.

    Args:
      nodes: a graph's or a function's, to which nodes are added.
      outputs: what names the output of a ReadVariableOp and of a Const there.
    """
    for node in [node for node in nodes if node.op == "ResourceGather"]:
        read, axis = f"{node.name}/read", f"{node.name}/axis"
        variable, indices, *rest = node.input
        dtype = node.attr["dtype"].type
        batch_dims = node.attr["batch_dims"].i
        added = nodes.add(name=read, op="ReadVariableOp", input=[variable])
        added.attr["dtype"].type = dtype
        added = nodes.add(name=axis, op="Const")
        if not outputs[1]:
            # In the loop that the indices are in.
            added.input.append(f"^{indices.partition(':')[0]}")
        added.attr["dtype"].type = tf.int32.as_datatype_enum
        added.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(batch_dims, tf.int32))
        index_dtype = node.attr["Tindices"].type
        node.op = "GatherV2"
        node.input[:] = [read + outputs[0], indices, axis + outputs[1], *rest]
        node.attr.clear()
        node.attr["Tparams"].type = dtype
        node.attr["Tindices"].type = index_dtype
        node.attr["Taxis"].type = tf.int32.as_datatype_enum
        node.attr["batch_dims"].i = batch_dims


def _leave_out_updates(graph_def: tf.compat.v1.GraphDef) -> None:
    """Removes the control edges from nodes that change variables.

    Also from nodes that read such a node's output. An output that is computed from one
    keeps it, and is refused later.
    """
    nodes = {node.name: node for node in graph_def.node}
    readers: dict[str, list[str]] = {}
    for node in graph_def.node:
        for name in node.input:
            if not name.startswith("^"):
                readers.setdefault(name.partition(":")[0], []).append(node.name)
    found = {name for name, node in nodes.items() if _UPDATES.fullmatch(node.op)}
    reached = list(found)
    while reached:
        for reader in readers.get(reached.pop(), []):
            if reader not in found:
                found.add(reader)
                reached.append(reader)
    for node in graph_def.node:
        node.input[:] = [
            name
            for name in node.input
            if not (name.startswith("^") and name[1:] in found)
        ]


def _refuse(part: tf.compat.v1.GraphDef) -> None:
    """Raises UserError for what a frozen graph cannot hold."""
    nodes = [*part.node]
    used = _used_functions(part)
    for function in part.library.function:
        if function.signature.name in used:
            nodes += function.node_def
    for pattern, why in (
        (
            _TABLES,
            "these are lookup tables, whose entries are no variables: a frozen graph "
            "cannot hold them. Name outputs that do not need them, or export a "
            "SavedModel, which holds tables",
        ),
        (
            _PYTHON,
            "these call Python functions, which are in no file. Name outputs that do "
            "not need them",
        ),
        (
            _UPDATES,
            "these change variables, and constants do not change. Name the tensors of "
            "the prediction, not the training operation",
        ),
        (
            _FEEDERS,
            "these bring the training batches. Name outputs that are computed",
        ),
    ):
        names = [f"{n.name} ({n.op})" for n in nodes if pattern.fullmatch(n.op)]
        if names:
            raise UserError(f"the outputs need {_some(names)}; {why}")
    for node in part.node:
        # Asking a node for an attribute that it lacks would give it an empty one.
        if node.op in PLACEHOLDERS and node.attr["dtype"].type in (
            tf.variant,
            tf.resource,
        ):
            raise UserError(
                f"the outputs need {node.name}, which is a "
                f"{tf.as_dtype(node.attr['dtype'].type).name} (a sparse or ragged "
                "tensor, for one) and cannot be fed. Name outputs that do not need it"
            )
    size = sum(_bytes(node) for node in part.node if node.op in _VARIABLES)
    if size > MAX_BYTES:
        raise UserError(_too_large(size))


def _bytes(variable: tf.compat.v1.NodeDef) -> int:
    """The size of a variable's value, 0 if its shape is not known."""
    shape = tf.TensorShape(variable.attr["shape"].shape)
    dtype = tf.as_dtype(variable.attr["dtype"].type)
    return (shape.num_elements() or 0) * dtype.size


def _too_large(size: int) -> str:
    return (
        f"the weights that the outputs need take {size / 1e9:.2f} GB, but a frozen "
        "graph is one protocol buffer, which ends at 2.14 GB; export a SavedModel, "
        "which keeps its weights beside the graph"
    )


def _inputs(
    part: tf.compat.v1.GraphDef, graph: tf.Graph, sources: dict[str, str]
) -> tuple[Input, ...]:
    """The placeholders of a part of `graph`, in their order."""
    inputs = []
    for node in part.node:
        if node.op in PLACEHOLDERS:
            source = sources.get(node.name, f"{node.name}:0")
            tensor = graph.get_tensor_by_name(source)
            inputs.append(
                Input(
                    node.name,
                    source,
                    tensor.dtype,
                    tensor.shape,
                    node.op == "PlaceholderWithDefault",
                )
            )
    return tuple(inputs)


def _without_value(
    session: tf.compat.v1.Session, part: tf.compat.v1.GraphDef
) -> list[str]:
    names = []
    for node in part.node:
        if node.op in _VARIABLES:
            read = "/Read/ReadVariableOp" if node.op == "VarHandleOp" else ""
            try:
                session.run(f"{node.name}{read}:0")
            except tf.errors.FailedPreconditionError:
                names.append(node.name)
    return names


def _check_shapes(
    frozen: tf.compat.v1.GraphDef, before: dict[str, tf.compat.v1.NodeDef]
) -> None:
    """Raises UserError where a value has not its variable's shape.

    A Saver restores resource variables without looking.
    """
    for node in frozen.node:
        if node.name in before and before[node.name].op in _VARIABLES:
            wanted = tf.TensorShape(before[node.name].attr["shape"].shape)
            found = tf.TensorShape(node.attr["value"].tensor.tensor_shape)
            if node.op == "Const" and not wanted.is_compatible_with(found):
                raise UserError(
                    f"the checkpoint does not fit its graph: {node.name} is {found}, "
                    f"the graph has {wanted}; take the .meta that was written with the "
                    "checkpoint"
                )


def _name_function_outputs(graph_def: tf.compat.v1.GraphDef) -> None:
    """Repairs functions that return a variable's value.

    The converter makes their ReadVariableOp an Identity, whose output has another name,
    and does not look at what functions return.
    """
    for function in graph_def.library.function:
        identities = {n.name for n in function.node_def if n.op == "Identity"}
        for result, name in function.ret.items():
            node, _, output = name.partition(":")
            if node in identities and output == "value:0":
                function.ret[result] = f"{node}:output:0"


def _used_functions(graph_def: tf.compat.v1.GraphDef) -> set[str]:
    """The names of the functions that the graph's nodes call, through others, too."""
    functions = {f.signature.name: f for f in graph_def.library.function}
    used: set[str] = set()
    to_visit = list(graph_def.node)
    while to_visit:
        node = to_visit.pop()
        called = [node.op]
        for value in node.attr.values():
            called.append(value.func.name)
            called += [function.name for function in value.list.func]
        for name in set(called) & set(functions) - used:
            used.add(name)
            to_visit += functions[name].node_def
    return used


def _keep_used_functions(graph_def: tf.compat.v1.GraphDef) -> None:
    used = _used_functions(graph_def)
    kept = [f for f in graph_def.library.function if f.signature.name in used]
    graph_def.library.Clear()
    graph_def.library.function.extend(kept)


def _some(names: Sequence[str]) -> str:
    """A few of many names."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more

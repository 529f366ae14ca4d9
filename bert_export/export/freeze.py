"""Freezes the checkpoint of any TensorFlow 1 graph to one file that is proven equal."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import tensorflow as tf
from tabulate import tabulate

from bert_export.errors import StageError, UserError
from bert_export.export import sample_inputs, session_graph
from bert_export.export.session_graph import InferencePart, Input

# Not for the person who waits: that TensorFlow 1 is old.
tf.get_logger().setLevel("ERROR")

# The largest difference that passes, relative to an output's largest value above 1.
# The frozen graph runs on the same kernels; folded constants may round differently.
TOLERANCE = 1e-5
# Batches of different sizes that must agree.
_BATCHES = 2
_SUFFIX = re.compile(r"\.(meta|index|data-\d{5}-of-\d{5})$")
_TRAINING = re.compile(
    r"(^|/)(gradients|save|Initializer|report_uninitialized_\w+)(_\d+)?(/|$)"
)
# What errors tell of where they happened.
_NOT_SAID = ("Graph execution error:", "Detected at node", "Node: ", "Restoring from")
# Nodes that nobody means by an output.
_NO_OUTPUTS = re.compile(
    r"Const|Placeholder\w*|Var\w*|\w*VariableOp|IsVariableInitialized|Assign\w*"
    r"|\w*Summary\w*|(Resource)?(Sparse)?Apply[A-Z]\w*|Iterator\w*|\w*Dataset\w*"
)


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A frozen graph that gave the checkpoint's numbers."""

    path: Path
    checkpoint: str  # prefix
    inputs: tuple[Input, ...]
    outputs: tuple[tf.Tensor, ...]
    nodes_before: int
    nodes_after: int
    check: str

    def table(self) -> str:
        """What went in and what came out, for people."""
        tensors = [
            ["input", i.name, i.dtype.name, _shape(i.shape), _remark(i)]
            for i in self.inputs
        ]
        tensors += [
            ["output", t.name.removesuffix(":0"), t.dtype.name, _shape(t.shape), ""]
            for t in self.outputs
        ]
        size = self.path.stat().st_size
        rest = [
            ["checkpoint", self.checkpoint],
            ["nodes", f"{self.nodes_before} before, {self.nodes_after} after"],
            ["file", f"{self.path}, {size / 1e6:.2f} MB ({size} bytes)"],
            ["check", self.check],
        ]
        headers = ["", "name", "dtype", "shape", ""]
        return (
            tabulate(tensors, headers=headers, disable_numparse=True)
            + "\n\n"
            + tabulate(rest, tablefmt="plain", disable_numparse=True)
        )


def freeze_checkpoint(
    checkpoint: str,
    output_node_names: str,
    output_graph: str | os.PathLike[str],
    overwrite: bool = False,
    check_inputs: str | None = None,
) -> Frozen:
    """Writes a checkpoint's inference graph, variables as constants, to one file.

    The file appears only after its graph gave the same numbers as the checkpoint's own
    in a session, on inputs that are made up or given.

    Args:
      checkpoint: the prefix of PREFIX.meta, PREFIX.index and PREFIX.data-*; one of
        these files; or a directory, for its newest checkpoint.
      output_node_names: names of nodes or tensors (`NODE:INDEX`), joined by commas.
      output_graph: the file to write.
      overwrite: whether the file may exist.
      check_inputs: an .npz file with an array a placeholder, for the comparison.

    Raises:
      UserError: something given is missing or unfit.
      StageError: the graph cannot be converted or written, or gives other numbers.
    """
    names = parse_names(output_node_names)
    path = _output_path(output_graph, overwrite)
    prefix = find_checkpoint(checkpoint)
    with tf.Graph().as_default() as graph, tf.compat.v1.Session() as session:
        saver = _import_meta_graph(prefix)
        # The session may add nodes.
        nodes_before = len(graph.get_operations())
        outputs = find_outputs(graph, names, f"{prefix}.meta")
        part = session_graph.inference_part(graph, outputs)
        if saver is not None:
            _restore(saver, session, prefix)
        frozen = session_graph.freeze(session, part)
        data = session_graph.serialize(frozen)
        frozen_session = _load(data)
        if check_inputs is None:
            check = _check_made_up(session, frozen_session, part)
        else:
            check = _check_given(session, frozen_session, part, check_inputs)
    try:
        session_graph.write_whole(path, data)
    except OSError as error:
        raise StageError(
            f"freeze: cannot write {path}: {error.strerror}; {len(data)} bytes are "
            "needed"
        ) from error
    return Frozen(
        path,
        prefix,
        part.inputs,
        tuple(frozen_session.graph.get_tensor_by_name(name) for name in part.outputs),
        nodes_before,
        len(frozen.node),
        check,
    )


def parse_names(joined: str) -> list[str]:
    """Splits names at commas; blanks, `:0` and repetitions are dropped.

    Raises:
      UserError: there is none.
    """
    stripped = (name.strip().removesuffix(":0") for name in joined.split(","))
    names = list(dict.fromkeys(name for name in stripped if name))
    if not names:
        raise UserError(
            "--output_node_names: name the nodes to compute, joined by commas"
        )
    return names


def find_checkpoint(checkpoint: str) -> str:
    """The prefix of the checkpoint that is meant, see `freeze_checkpoint`.

    Raises:
      UserError: one of its files is missing.
    """
    prefix = _SUFFIX.sub("", checkpoint)
    if os.path.isdir(checkpoint):
        newest = tf.train.latest_checkpoint(checkpoint)
        if newest is None:
            raise UserError(
                f"--checkpoint: the directory {checkpoint} has no file `checkpoint` "
                "that names an existing checkpoint; name one of those there: "
                f"{_prefixes(checkpoint)}"
            )
        prefix = newest
    directory = os.path.dirname(prefix) or "."
    # The first format of checkpoints was one file without an index.
    first_format = os.path.isfile(prefix)
    for suffix in (".meta",) if first_format else (".meta", ".index"):
        if not os.path.isfile(prefix + suffix):
            raise UserError(
                f"--checkpoint: there is no file {prefix}{suffix}; a checkpoint is "
                "PREFIX.meta, PREFIX.index and PREFIX.data-00000-of-00001, and PREFIX "
                f"is what to name. In {directory}: {_prefixes(directory)}"
            )
    if not first_format and not list(_shards(prefix)):
        raise UserError(
            f"--checkpoint: there is no file {prefix}.data-00000-of-00001, which holds "
            "the weights; copy it beside the .index"
        )
    return prefix


def find_outputs(graph: tf.Graph, names: Sequence[str], where: str) -> list[str]:
    """Makes sure that each name is a node with an output, or one of its outputs.

    Args:
      graph: the graph.
      names: `NODE` or `NODE:INDEX`.
      where: the graph's file, for messages.

    Returns:
      The names.

    Raises:
      UserError: one is not; the message has the closest names that are, and outputs
        that could be meant.
    """
    for name in names:
        node, _, index = name.partition(":")
        try:
            operation = graph.get_operation_by_name(node)
        except (KeyError, ValueError) as error:
            raise UserError(
                f"--output_node_names: {where} has no node {node!r}"
                f"{_hints(graph, node)}"
            ) from error
        count = len(operation.outputs)
        if not count:
            raise UserError(
                f"--output_node_names: {node} ({operation.type}) has no output: it is "
                f"run for its effect{_hints(graph, node)}"
            )
        if index and not (index.isdecimal() and int(index) < count):
            raise UserError(
                f"--output_node_names: {name}: {node} ({operation.type}) has "
                + (f"the outputs :0 to :{count - 1}" if count > 1 else "one output, :0")
            )
        if operation.outputs[int(index or 0)].dtype in (tf.resource, tf.variant):
            raise UserError(
                f"--output_node_names: {name} ({operation.type}) stands for a variable "
                f"or a structure, and has no numbers{_hints(graph, node)}"
            )
    return list(names)


def _hints(graph: tf.Graph, wrong: str) -> str:
    """The names that `wrong` could mean, closest first, and likely outputs."""
    # What is computed of gradients, too.
    training = _downstream(
        operation
        for operation in graph.get_operations()
        if _TRAINING.search(operation.name)
    )
    forward = [
        operation
        for operation in graph.get_operations()
        if operation.outputs
        and not _NO_OUTPUTS.fullmatch(operation.type)
        and operation.name not in training
    ]
    by_name = {operation.name.lower(): operation.name for operation in forward}
    by_last_part: dict[str, list[str]] = {}
    for lower, name in by_name.items():
        by_last_part.setdefault(lower.rpartition("/")[2], []).append(name)
    wanted = wrong.lower()
    last = wanted.rpartition("/")[2]
    close = list(by_last_part.get(last, []))
    close += [by_name[n] for n in difflib.get_close_matches(wanted, by_name, 5)]
    for name in difflib.get_close_matches(last, by_last_part, 3):
        close += by_last_part[name]
    lines = ""
    if close := [name for name in dict.fromkeys(close) if name != wrong][:5]:
        lines += f"\n  closest: {', '.join(close)}"
    if likely := _likely_outputs(graph, forward):
        lines += f"\n  likely outputs: {', '.join(likely[:8])}"
    return lines


def _likely_outputs(graph: tf.Graph, forward: list[tf.Operation]) -> list[str]:
    """What is computed of variables and inputs, and of which nothing is computed."""
    types = (
        ("VarHandleOp", "VariableV2", "Variable"),
        (*session_graph.PLACEHOLDERS, "IteratorGetNext"),
    )
    depend = [
        _downstream(op for op in graph.get_operations() if op.type in sources)
        for sources in types
    ]
    names = {operation.name for operation in forward}
    ends = [
        operation
        for operation in forward
        if operation.name in depend[0] & depend[1]
        and not any(
            consumer.name in names
            for output in operation.outputs
            for consumer in output.consumers()
        )
    ]
    # Outputs have names of their own, and a loss or a metric is one number.
    ends.sort(
        key=lambda operation: (
            re.sub(r"_\d+$", "", operation.name) == operation.type,
            operation.outputs[0].shape.rank == 0,
        )
    )
    return [operation.name for operation in ends]


def _downstream(operations: Iterator[tf.Operation]) -> set[str]:
    to_visit = list(operations)
    names = {operation.name for operation in to_visit}
    while to_visit:
        for output in to_visit.pop().outputs:
            for consumer in output.consumers():
                if consumer.name not in names:
                    names.add(consumer.name)
                    to_visit.append(consumer)
    return names


def _output_path(output_graph: str | os.PathLike[str], overwrite: bool) -> Path:
    """The file to write, refused here rather than after the work.

    Raises:
      UserError: it exists, or cannot be written.
    """
    path = Path(output_graph)
    if path.is_dir():
        raise UserError(f"--output_graph: {path} is a directory; name a file in it")
    if path.exists() and not overwrite:
        raise UserError(
            f"--output_graph: {path} exists; add --overwrite to replace it, or name "
            "another file"
        )
    try:
        handle, probe = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise UserError(
            f"--output_graph: cannot write in {path.parent} ({error.strerror}); name a "
            "file in a writable directory"
        ) from error
    os.close(handle)
    os.unlink(probe)
    return path


def _shards(prefix: str) -> Iterator[Path]:
    path = Path(prefix)
    for file in path.parent.iterdir():
        if re.fullmatch(re.escape(path.name) + r"\.data-\d{5}-of-\d{5}", file.name):
            yield file


def _prefixes(directory: str) -> str:
    """The checkpoints in a directory, for messages."""
    if not os.path.isdir(directory):
        return "there is no such directory"
    names = sorted(
        name.removesuffix(".meta")
        for name in os.listdir(directory)
        if name.endswith(".meta")
    )
    return ", ".join(names[:10]) or "no checkpoint"


def _import_meta_graph(prefix: str) -> Any:
    """Imports PREFIX.meta into the default graph; its saver, None without variables."""
    try:
        return tf.compat.v1.train.import_meta_graph(
            f"{prefix}.meta", clear_devices=True
        )
    except Exception as error:  # protobuf's, TensorFlow's and Python's own
        raise UserError(
            f"{prefix}.meta: this TensorFlow cannot read the graph: {_line(error)}"
        ) from error


def _restore(saver: Any, session: tf.compat.v1.Session, prefix: str) -> None:
    try:
        saver.restore(session, prefix)
    except (tf.errors.OpError, ValueError) as error:
        message = str(error)
        if missing := re.search(r"Key (\S+) not found in checkpoint", message):
            raise UserError(
                f"{prefix}: the checkpoint has no {missing[1]}, which {prefix}.meta "
                "wants: they are of different models. Take the .meta that was written "
                "with the checkpoint"
            ) from error
        if isinstance(error, (tf.errors.DataLossError, tf.errors.OutOfRangeError)):
            files = ", ".join(file.name for file in _shards(prefix))
            raise UserError(
                f"{prefix}: the checkpoint's .index or {files} is damaged "
                f"({_line(error)}); copy it again, or take another checkpoint"
            ) from error
        if isinstance(error, tf.errors.NotFoundError):
            raise UserError(
                f"{prefix}: a file of the checkpoint is missing: {_line(error)}"
            ) from error
        raise UserError(
            f"{prefix}: the checkpoint does not fit {prefix}.meta: {_line(error)}"
        ) from error


def _load(data: bytes) -> tf.compat.v1.Session:
    """A session of a frozen graph's file.

    Raises:
      StageError: TensorFlow refuses the graph.
    """
    graph = tf.Graph()
    with graph.as_default():
        try:
            graph_def = tf.compat.v1.GraphDef.FromString(data)
            tf.import_graph_def(graph_def, name="")
        except Exception as error:  # protobuf's and TensorFlow's
            raise StageError(
                f"freeze: TensorFlow refuses the frozen graph: {_line(error)}"
            ) from error
    return tf.compat.v1.Session(graph=graph)


class _Unfit(Exception):
    """These inputs prove nothing."""


class _Random(_Unfit):
    """The checkpoint's own graph gives other numbers every time."""


def _check_made_up(
    session: tf.compat.v1.Session,
    frozen: tf.compat.v1.Session,
    part: InferencePart,
) -> str:
    """Compares the two graphs on made-up inputs; says how.

    Raises:
      UserError: the graph takes none of them, or its outputs are random.
      StageError: the numbers differ.
    """
    inputs = part.session_inputs
    rows = sample_inputs.table_rows(session.graph, inputs)
    reasons: list[_Unfit] = []
    for way in sample_inputs.ways(inputs):
        differences: dict[tuple[int, int], float] = {}
        for size in sample_inputs.SIZES:
            values = sample_inputs.make(inputs, rows, way, size)
            try:
                differences[size] = _difference(session, frozen, part, values)
            except _Random as error:
                # A smaller batch could agree by chance.
                reasons.append(error)
                break
            except _Unfit as error:
                reasons.append(error)
            if len(differences) == _BATCHES:
                sizes = " and ".join(f"{a} x {b}" for a, b in differences)
                open_sizes = any(not i.shape.is_fully_defined() for i in inputs)
                return (
                    f"same numbers as the checkpoint in a session, largest difference "
                    f"{max(differences.values()):.1e}; {_BATCHES} batches of made-up "
                    f"inputs ({way}{f', open sizes {sizes}' if open_sizes else ''})"
                )
    if any(isinstance(reason, _Random) for reason in reasons):
        random = [
            f"{node.name} ({node.op})"
            for node in part.graph_def.node
            if "Random" in node.op or "Multinomial" in node.op
        ]
        raise UserError(
            "freeze: the outputs are random: the same inputs give other numbers every "
            f"time, through {', '.join(random[:5]) or 'a function'}. Is dropout on? "
            "Build the graph for inference, save it with the weights, and freeze that"
        )
    raise UserError(
        "freeze: nothing written, as no inputs could be made up that the graph "
        f"computes finite numbers of: {reasons[0]}. Give real ones as "
        f"--check_inputs=FILE.npz, with {_wanted(part.inputs)}"
    )


def _check_given(
    session: tf.compat.v1.Session,
    frozen: tf.compat.v1.Session,
    part: InferencePart,
    path: str,
) -> str:
    """Compares the two graphs on the inputs in an .npz file; says how.

    Raises:
      UserError: the file or an array in it is unfit.
      StageError: the numbers differ.
    """
    values = _read_arrays(path, part)
    try:
        difference = _difference(session, frozen, part, values)
    except _Unfit as error:
        raise UserError(f"--check_inputs: {path} proves nothing: {error}") from error
    return (
        "same numbers as the checkpoint in a session, largest difference "
        f"{difference:.1e}, on the inputs in {path}"
    )


def _read_arrays(path: str, part: InferencePart) -> dict[str, np.ndarray]:
    wanted = {i.name: i for i in part.session_inputs}
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name.removesuffix(":0"): file[name] for name in file.files}
    except (OSError, ValueError, AttributeError, EOFError, BadZipFile) as error:
        raise UserError(f"--check_inputs: cannot read {path}: {error}") from error
    missing = [i for i in part.inputs if i.name not in found and not i.has_default]
    unknown = sorted(set(found) - set(wanted))
    if missing or unknown:
        raise UserError(
            f"--check_inputs: {path} has {', '.join(sorted(found)) or 'nothing'}; "
            f"expected {_wanted(part.inputs)}"
        )
    values = {}
    for name, array in found.items():
        one = wanted[name]
        if one.dtype == tf.string:
            array = np.asarray(array.astype(np.bytes_), dtype=object)
        elif array.dtype != one.dtype.as_numpy_dtype:
            raise UserError(
                f"--check_inputs: {path}: {name} is {array.dtype}, expected "
                f"{one.dtype.name}"
            )
        if not one.shape.is_compatible_with(array.shape):
            raise UserError(
                f"--check_inputs: {path}: {name} has the shape "
                f"{_shape(tf.TensorShape(array.shape))}, expected {_shape(one.shape)}"
            )
        values[name] = array
    return values


def _difference(
    session: tf.compat.v1.Session,
    frozen: tf.compat.v1.Session,
    part: InferencePart,
    values: Mapping[str, np.ndarray],
) -> float:
    """The largest difference between the two graphs' outputs.

    Raises:
      _Unfit: the checkpoint's graph refuses the inputs, or its outputs are not finite.
      StageError: the frozen graph fails or gives other numbers.
    """
    feed = {i.source: values[i.name] for i in part.session_inputs if i.name in values}
    try:
        expected = session.run(list(part.outputs), feed)
        again = session.run(list(part.outputs), feed)
    except (tf.errors.OpError, ValueError, TypeError) as error:
        raise _Unfit(_line(error)) from error
    for name, one in zip(part.outputs, expected):
        # In a float16 or bfloat16 array, too.
        if one.dtype.kind in "fcV" and not np.isfinite(_wide(one)).all():
            raise _Unfit(f"{name} is not finite")
        if not one.size:
            raise _Unfit(f"{name} is empty")
    if max(map(_distance, expected, again)) > TOLERANCE:
        raise _Random("the outputs are random")
    feed = {f"{i.name}:0": values[i.name] for i in part.inputs if i.name in values}
    try:
        found = frozen.run(list(part.outputs), feed)
    except (tf.errors.OpError, ValueError) as error:
        raise StageError(
            f"freeze: the frozen graph fails where the checkpoint does not: "
            f"{_line(error)}"
        ) from error
    largest = 0.0
    for name, one, other in zip(part.outputs, expected, found):
        distance = _distance(one, other)
        if not distance <= TOLERANCE:
            raise StageError(
                f"freeze: nothing written, as the frozen graph gives other numbers for "
                f"{name}: they differ by {distance:.1e}, at most {TOLERANCE:g} passes"
            )
        largest = max(largest, distance)
    return largest


def _distance(one: Any, other: Any) -> float:
    """The largest difference, relative to the largest number above 1; inf if unlike."""
    one, other = np.asarray(one), np.asarray(other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return np.inf
    if not one.size:
        return 0.0
    if one.dtype.kind not in "fciuV":
        return 0.0 if np.array_equal(one, other) else np.inf
    one, other = _wide(one), _wide(other)
    return float(np.abs(one - other).max() / max(1.0, np.abs(one).max()))


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _wanted(inputs: Sequence[Input]) -> str:
    wanted = (
        f"{i.name} ({i.dtype.name} {_shape(i.shape)}"
        f"{', may be left out' if i.has_default else ''})"
        for i in inputs
    )
    return "an array for each of " + ", ".join(wanted)


def _shape(shape: tf.TensorShape) -> str:
    if shape.rank is None:
        return "any"
    return f"[{', '.join('?' if n is None else str(n) for n in shape.as_list())}]"


def _remark(one: Input) -> str:
    if one.has_default:
        return "has a default"
    if one.source != f"{one.name}:0":
        return f"in place of {one.source}"
    return ""


def _line(error: Exception) -> str:
    """The line of an error that says what is wrong."""
    message = error.message if isinstance(error, tf.errors.OpError) else str(error)
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(_NOT_SAID)]
    return f"{type(error).__name__}: {said[0] if said else 'no message'}"

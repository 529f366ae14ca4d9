"""Finds operations that TensorFlow.js does not know, before its converter does."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bert_export.errors import StageError
from bert_export.export import extras

if TYPE_CHECKING:
    import tensorflow as tf

# What freezing turns into constants or inlines, and what the converter takes out of a
# graph by itself (its option strip_debug_ops, which is on by default).
_HANDLED = frozenset(
    {
        "Assert",
        "CheckNumerics",
        "PartitionedCall",
        "Print",
        "ReadVariableOp",
        "StatefulPartitionedCall",
        "VarHandleOp",
        "Variable",
        "VariableV2",
    }
)
_CALLS = re.compile(r"(Stateful)?PartitionedCall(_\d+)?")
_SHOWN = 3  # places of one operation in a message


@functools.cache
def supported() -> frozenset[str]:
    """The operations that the installed converter knows, from its own lists.

    Reads the package's data without importing it, which takes seconds.

    Raises:
      UserError: tensorflowjs is not installed.
    """
    extras.require("tfjs", "tensorflowjs")
    spec = importlib.util.find_spec("tensorflowjs")
    assert spec is not None
    assert spec.origin is not None
    lists = sorted((Path(spec.origin).parent / "op_list").glob("*.json"))
    if not lists:
        raise StageError(
            f"{Path(spec.origin).parent}/op_list has no lists of operations; this "
            "version of tensorflowjs keeps them elsewhere. Install 4.22"
        )
    return frozenset(
        operation["tfOpName"]
        for path in lists
        for operation in json.loads(path.read_text(encoding="utf-8"))
    )


def unsupported(graph_def: tf.compat.v1.GraphDef) -> dict[str, list[str]]:
    """The operations of a graph and its functions that TensorFlow.js does not know.

    Variables, their reads, calls of functions and debugging operations do not count:
    freezing and the converter take them away.

    Args:
      graph_def: any graph. All of it is looked at, so cut it down to what the outputs
        need before.

    Returns:
      By operation, sorted, the names of its nodes; one in a function of the library as
      `node (function NAME)`.

    Raises:
      UserError: tensorflowjs is not installed.
    """
    known = supported() | _HANDLED
    # A function may be called by its own name, as if it were an operation.
    known |= {function.signature.name for function in graph_def.library.function}
    found: dict[str, list[str]] = {}
    for node in graph_def.node:
        if node.op not in known:
            found.setdefault(node.op, []).append(node.name)
    for function in graph_def.library.function:
        for node in function.node_def:
            if node.op not in known:
                found.setdefault(node.op, []).append(
                    f"{node.name} (function {function.signature.name})"
                )
    return dict(sorted(found.items()))


def describe(found: Mapping[str, Sequence[str]]) -> str:
    """Names each operation with the layers that make it.

    Args:
      found: as from `unsupported`.

    Returns:
      `SegmentSum (bert/encoder/layer_0/attention and 5 more), SegmentMax (...)`.
    """
    parts = []
    for operation, names in found.items():
        places = list(dict.fromkeys(_place(name) for name in names))
        more = len(places) - _SHOWN
        shown = ", ".join(places[:_SHOWN])
        parts.append(f"{operation} ({shown}{f' and {more} more' if more > 0 else ''})")
    return ", ".join(parts)


def check(graph_def: tf.compat.v1.GraphDef) -> None:
    """Makes sure that TensorFlow.js knows all operations of a graph.

    Raises:
      UserError: tensorflowjs is not installed.
      StageError: it does not; each operation is named with the layers that make it.
    """
    found = unsupported(graph_def)
    if found:
        count = f"{len(found)} operation{'s' if len(found) > 1 else ''}"
        raise StageError(
            f"TensorFlow.js does not have {count} of this model: {describe(found)}. "
            "Build these layers from other operations, or choose outputs that do not "
            "need them"
        )


def _place(name: str) -> str:
    """The layer's scope that a node is in; the node where it is in none."""
    node, _, function = name.partition(" (")
    parts = [part for part in node.split("/") if not _CALLS.fullmatch(part)] or [node]
    scope = "/".join(parts[:-1] or parts)
    return f"{scope}, {function.rstrip(')')}" if function else scope

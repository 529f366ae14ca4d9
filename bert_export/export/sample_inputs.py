"""Inputs made up for a graph that nothing is known of but its placeholders."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from bert_export.export.session_graph import Input

# (first dimension, every other one) of placeholders that leave them open. The larger
# ones are for convolutions.
SIZES = ((2, 7), (3, 5), (4, 4), (1, 1), (2, 32), (1, 64))
# Placeholders of unknown rank are tried with these.
_RANKS = (2, 1, 0, 3, 4)
# Integers stay below this where no table says more.
_INTEGERS = 8
_GATHERS = ("Gather", "GatherV2", "ResourceGather")


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to choose values; `str` says it to people."""

    integers: str
    scalar: float  # for scalar floats: keep_prob = 1 and rate = 0 turn dropout off
    rank: int  # where unknown

    def __str__(self) -> str:
        return (
            f"random floats, scalar ones {self.scalar:g}, integers {self.integers}, "
            "booleans False"
        )


def ways(inputs: Sequence[Input]) -> Iterator[Way]:
    """The ways to try, from the most telling one to the tamest."""
    has_integers = any(i.dtype.is_integer for i in inputs)
    has_scalars = any(i.dtype.is_floating and i.shape.rank == 0 for i in inputs)
    open_rank = any(i.shape.rank is None for i in inputs)
    for rank, integers, scalar in itertools.product(
        _RANKS if open_rank else _RANKS[:1],
        ("random", "random 0 and 1", "all 1", "all 0") if has_integers else ("random",),
        (1.0, 0.0) if has_scalars else (1.0,),
    ):
        yield Way(integers, scalar, rank)


def make(
    inputs: Sequence[Input], rows: dict[str, int], way: Way, size: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Makes values, always the same ones.

    Args:
      inputs: what to make values for. Scalars with a default keep it, unless they are
        booleans: those switch training on.
      rows: by input, the rows of the smallest table that it indexes.
      way: how to choose values.
      size: for dimensions that are open, see `SIZES`.

    Returns:
      The values by input name.
    """
    generator = np.random.default_rng([*size])
    values = {}
    for one in inputs:
        if one.has_default and one.shape.rank == 0 and one.dtype != tf.bool:
            continue
        shape = _shape(one.shape, way.rank, size)
        below = rows.get(one.name, _INTEGERS)
        if len(shape) < 2:
            # Lengths of, or positions in, a row.
            below = min(below, size[1])
        values[one.name] = _values(one.dtype, shape, below, way, generator)
    return values


def _shape(shape: tf.TensorShape, rank: int, size: tuple[int, int]) -> tuple[int, ...]:
    known: list[int | None] = (
        [None] * rank if shape.rank is None else list(shape.as_list())
    )
    return tuple(
        size[min(axis, 1)] if length is None else length
        for axis, length in enumerate(known)
    )


def _values(
    dtype: tf.DType,
    shape: tuple[int, ...],
    below: int,
    way: Way,
    generator: np.random.Generator,
) -> np.ndarray:
    if dtype == tf.string:
        words = [b"a", b"bc", b"def"]
        return np.asarray(generator.choice(words, shape), dtype=object)
    kind = dtype.as_numpy_dtype
    if dtype == tf.bool:
        return np.zeros(shape, kind)
    if dtype.is_integer:
        return {
            "random": generator.integers(0, max(below, 1), shape),
            "random 0 and 1": generator.integers(0, 2, shape),
            "all 1": np.ones(shape),
            "all 0": np.zeros(shape),
        }[way.integers].astype(kind)
    if not shape:
        return np.asarray(way.scalar, kind)
    # Between 0 and 1, where logarithms and roots are defined, too.
    return generator.random(shape).astype(kind)


def table_rows(graph: tf.Graph, inputs: Sequence[Input]) -> dict[str, int]:
    """How many rows the smallest table has that an input's integers index.

    They are followed through every operation that makes integers of integers.

    Returns:
      By input name; inputs that index no table are missing.
    """
    rows = {}
    for one in inputs:
        found = []
        seen = {one.source}
        to_visit = [graph.get_tensor_by_name(one.source)]
        while to_visit and one.dtype.is_integer:
            tensor = to_visit.pop()
            for consumer in tensor.consumers():
                if consumer.type in _GATHERS and consumer.inputs[1] is tensor:
                    shape = _table_shape(consumer.inputs[0])
                    if shape.rank and shape[0] is not None:
                        found.append(shape[0])
                for output in consumer.outputs:
                    if output.dtype.is_integer and output.name not in seen:
                        seen.add(output.name)
                        to_visit.append(output)
        if found:
            rows[one.name] = min(found)
    return rows


def _table_shape(table: tf.Tensor) -> tf.TensorShape:
    """The shape of a tensor or of the variable that a resource stands for."""
    while table.dtype == tf.resource and table.op.type != "VarHandleOp":
        if not table.op.inputs:
            return tf.TensorShape(None)
        table = table.op.inputs[0]
    if table.dtype == tf.resource:
        return tf.TensorShape(table.op.get_attr("shape"))
    return table.shape

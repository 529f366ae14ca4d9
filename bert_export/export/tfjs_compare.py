"""Compares a TensorFlow.js model in Node.js with the model that it was made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from bert_export.errors import StageError, UserError
from bert_export.export import extras, sample_inputs, tfjs_model
from bert_export.export.session_graph import Input
from bert_export.export.tfjs_model import error_line

# The largest difference that passes unquantized, relative to an output's largest value
# above 1.
TOLERANCE = 1e-4
_BATCHES = 2

Batches = list[dict[str, np.ndarray]]


class _Unfit(Exception):
    """Nothing to compare with."""


def compare(
    run: Callable[[Mapping[str, np.ndarray]], list[np.ndarray]],
    inputs: Sequence[Input],
    rows: dict[str, int],
    staging: Path,
    kind: str,
    outputs: Sequence[str],
    quantization: str | None,
    original: Path | None = None,
) -> tuple[str, str | None]:
    """Compares the written model with its source on made-up inputs.

    Args:
      run: computes the source's outputs.
      inputs: those of the written model.
      rows: by input, the rows of the smallest table that it indexes.
      staging: the written model's directory.
      kind: its kind.
      outputs: their names.
      quantization: how its weights are stored.
      original: the model.json of a source that is a layers model: what it gives in
        Node.js is compared with, not what Keras makes of it.

    Returns:
      How it was compared, for people; and with which call it ran, None where it was
      not run.

    Raises:
      StageError: it cannot be run, or gives other numbers.
    """
    try:
        batches, expected, way = _made_up(run, inputs, rows)
    except _Unfit as error:
        return f"weights complete; not run: {error}", None
    try:
        if original is not None:
            expected = tfjs_model.run(
                original, tfjs_model.LAYERS, batches, outputs
            ).batches
        found = tfjs_model.run(staging / tfjs_model.MODEL_FILE, kind, batches, outputs)
    except UserError as error:
        return f"weights complete; not run: {error}", None
    except StageError as error:
        raise StageError(
            f"nothing written, as TensorFlow.js cannot run the model: {error}"
        ) from error
    largest = 0.0
    for one, other in zip(expected, found.batches):
        for name, wanted, given in zip(outputs, one, other):
            distance = _distance(wanted, given)
            if not np.isfinite(distance) or (
                quantization is None and distance > TOLERANCE
            ):
                raise StageError(
                    "nothing written, as the converted model gives other numbers for "
                    f"{name}: they differ by {distance:.1e}, at most {TOLERANCE:g} "
                    "passes"
                )
            largest = max(largest, distance)
    if any(len(one) != len(other) for one, other in zip(expected, found.batches)):
        raise StageError("nothing written, as the converted model has other outputs")
    return (
        f"ran in Node.js with {found.call}() on {len(batches)} batches of made-up "
        f"inputs ({way}); largest difference from the source {largest:.1e}"
    ), found.call


def _made_up(
    run: Callable[[Mapping[str, np.ndarray]], list[np.ndarray]],
    inputs: Sequence[Input],
    rows: dict[str, int],
) -> tuple[Batches, list[list[np.ndarray]], sample_inputs.Way]:
    """Batches that the source computes finite numbers of, twice the same."""
    if any(i.dtype in (tf.string, tf.variant, tf.complex64) for i in inputs):
        raise _Unfit("the inputs are no numbers, and cannot be made up")
    reason = "no inputs could be made up"
    with extras.quiet():
        for way in sample_inputs.ways(inputs):
            batches: Batches = []
            expected = []
            for size in sample_inputs.SIZES:
                values = sample_inputs.make(inputs, rows, way, size)
                try:
                    first, second = run(values), run(values)
                except Exception as error:  # TensorFlow's, Keras' own
                    reason = f"the source refuses made-up inputs: {error_line(error)}"
                    continue
                if not all(_fit(one) for one in first):
                    reason = "the source's outputs are empty or not finite numbers"
                    continue
                if max(map(_distance, first, second), default=0) > TOLERANCE:
                    raise _Unfit("the source's outputs are random")
                batches.append(values)
                expected.append(first)
                if len(batches) == _BATCHES:
                    return batches, expected, way
    raise _Unfit(reason)


def _fit(array: np.ndarray) -> bool:
    return (
        array.dtype.kind in "fiub" and array.size > 0 and bool(np.isfinite(array).all())
    )


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference, relative to the largest number above 1; inf if unlike."""
    if one.shape != other.shape:
        return np.inf
    if not one.size:
        return 0.0
    one, other = one.astype(np.float64), other.astype(np.float64)
    return float(np.abs(one - other).max() / max(1.0, np.abs(one).max()))

"""A tensor in a file, and how to get it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class StoredTensor(NamedTuple):
    """A tensor of floats that has not been read yet."""

    shape: tuple[int, ...]
    # Raises UserError where the file is damaged.
    read: Callable[[], np.ndarray]  # float32

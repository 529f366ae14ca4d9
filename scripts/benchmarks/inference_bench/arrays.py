"""A request's token ids as arrays; Python 3.7 must do."""

from __future__ import annotations

import numpy as np


def padded(request, length=None, dtype=np.int64):
    """Word pieces, mask and segments, each [pairs, length].

    Args:
      request: "ids" and "segments" are lists of unpadded rows.
      length: of the longest row where it is None.
      dtype: of all three.
    """
    rows = request["ids"]
    length = length or max(map(len, rows))
    ids, mask, segments = np.zeros([3, len(rows), length], dtype)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
        mask[number, : len(row)] = 1
        segments[number, : len(row)] = request["segments"][number]
    return ids, mask, segments

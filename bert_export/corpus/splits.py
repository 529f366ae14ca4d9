"""Assigns keys to train, dev or test by their hash."""

from __future__ import annotations

import hashlib

SPLITS = ("train", "dev", "test")


def split_of(key: str, dev_fraction: float, test_fraction: float) -> str:
    """Returns the split of a key: always the same, whatever other keys there are."""
    digest = hashlib.sha256(key.encode("utf-8")).digest()
    part = int.from_bytes(digest[:8], "big") / 2**64
    if part < test_fraction:
        return "test"
    if part < test_fraction + dev_fraction:
        return "dev"
    return "train"

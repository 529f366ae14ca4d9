"""Small file helpers that every room may use."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from bert_export.errors import UserError

# Before a path inside an installed Python package.
PACKAGE = "package:"
_BLOCK = 1 << 20


def user_cache() -> Path:
    """Where what was fetched is kept, for all runs of this user."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "bert_export"


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def list_directory(
    directory: str | os.PathLike[str], leave_out: Container[str] = ()
) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file in a directory, at any depth.

    Args:
      directory: where to look.
      leave_out: paths relative to it, with slashes, that are not listed.

    Returns:
      By such a path, sorted: `{"sha256": hex, "bytes": int}`.
    """
    root = Path(directory)
    files = {}
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root).as_posix()
        if path.is_file() and relative not in leave_out:
            files[relative] = {
                "sha256": sha256_file(path),
                "bytes": path.stat().st_size,
            }
    return files


def package_path(path: str) -> Path:
    """The place of 'package:NAME/SUBDIR'; any other path is as it is.

    Raises:
      UserError: there is no such package.
    """
    if not path.startswith(PACKAGE):
        return Path(path)
    name, _, subdir = path.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"{path}: the Python package {name!r} is not installed; "
            f"install it with: pip install {name}"
        )
    return Path(spec.submodule_search_locations[0], subdir)


def sync(path: str | os.PathLike[str]) -> None:
    """Waits until a file or a directory's entries are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON; a reader sees the old file or the new one, whole."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text; a reader sees the old file or the new one, whole."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file; a reader sees the old one or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory to fill; a reader sees it whole or not at all.

    If another process makes the same directory meanwhile, that one stays.

    Yields:
      A hidden sibling, empty, that becomes `path` when the context ends. Nothing is
      left of it if that ends in an error.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        try:
            partial.replace(path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)

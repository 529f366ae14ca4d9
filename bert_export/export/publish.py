"""Publishes an artifact as a new version: staged out of sight, then renamed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bert_export.errors import StageError, UserError
from bert_export.files import sync

# What an artifact's tests wrote into it.
SMOKE_TEST_FILE = "smoke_test.json"
PROOF_FILE = "proof.json"
# The same, kept beside the versions when a staged one is dropped. A proof comes after
# the smoke test, so where there is a proof, it is what failed.
FAILED_PROOF_FILE = "failed_proof.json"
FAILED_SMOKE_TEST_FILE = "failed_smoke_test.json"
_FAILED = {PROOF_FILE: FAILED_PROOF_FILE, SMOKE_TEST_FILE: FAILED_SMOKE_TEST_FILE}
# TF Serving and every other reader takes directories with plain numbers for names.
_VERSION = re.compile(r"[0-9]+")
_STAGING = re.compile(r"\.staging-([0-9]+)-[0-9]+")


def check_export_dir(export_dir: str | os.PathLike[str]) -> None:
    """Makes sure that versions can be written, before any work is done for one.

    Creates the directory where it does not exist.

    Raises:
      UserError: it cannot be created or written.
    """
    try:
        os.makedirs(export_dir, exist_ok=True)
        os.rmdir(tempfile.mkdtemp(prefix=".probe-", dir=export_dir))
    except OSError as error:
        raise UserError(
            f"{os.fspath(export_dir)}: cannot write versions here "
            f"({error.strerror}); name a writable directory as "
            "--config.export.dir"
        ) from error


def versions(export_dir: str | os.PathLike[str]) -> list[int]:
    """The published versions, oldest first; none where the directory is missing."""
    try:
        names = os.listdir(export_dir)
    except FileNotFoundError:
        return []
    return sorted(
        int(name)
        for name in names
        if _VERSION.fullmatch(name) and os.path.isdir(os.path.join(export_dir, name))
    )


def new_version(export_dir: str | os.PathLike[str]) -> int:
    """A number for the next version: the time, or one more than the newest version.

    Versions that another process is staging count, too.

    Raises:
      UserError: the directory cannot be written.
    """
    check_export_dir(export_dir)
    staged = (_STAGING.fullmatch(name) for name in os.listdir(export_dir))
    taken = [int(match[1]) for match in staged if match] + versions(export_dir)
    return max([int(time.time()), *(number + 1 for number in taken)])


@contextlib.contextmanager
def staging(export_dir: str | os.PathLike[str], version: int) -> Iterator[Path]:
    """A hidden directory in which a version is built and proven.

    It lies beside the versions, so that publishing is one rename within a file
    system. It is locked as long as its process lives; directories that dead
    processes left are removed first (not on file systems without locks for
    directories, such as NFS). Whatever was not published when the context ends is
    removed, except for the result of the last test, which is kept as
    FAILED_PROOF_FILE or FAILED_SMOKE_TEST_FILE.

    Args:
      export_dir: where versions are published.
      version: the number the directory is named after.

    Yields:
      The directory `.staging-<version>-<pid>`, empty.

    Raises:
      UserError: `export_dir` cannot be written.
    """
    check_export_dir(export_dir)
    parent = Path(export_dir)
    directory = parent / f".staging-{version}-{os.getpid()}"
    # The parent's lock keeps others from taking a directory for abandoned between
    # its creation and its own lock.
    parent_lock = _lock(parent)
    try:
        for name in os.listdir(parent):
            if _STAGING.fullmatch(name):
                _remove_if_abandoned(parent / name)
        directory.mkdir()
        lock = _lock(directory)
    finally:
        os.close(parent_lock)
    try:
        yield directory
    finally:
        # Gone when published.
        if directory.exists():
            for name, failed in _FAILED.items():
                if (directory / name).exists():
                    os.replace(directory / name, parent / failed)
                    break
            shutil.rmtree(directory)
        os.close(lock)


def _lock(directory: Path) -> int:
    """Locks a directory as far as its file system can; closing the result unlocks."""
    handle = os.open(directory, os.O_RDONLY)
    with contextlib.suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def _remove_if_abandoned(directory: Path) -> None:
    """Removes a staging directory unless a living process holds its lock."""
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory)
        finally:
            os.close(handle)


def publish(
    staging_dir: str | os.PathLike[str],
    export_dir: str | os.PathLike[str],
    version: int,
) -> Path:
    """Makes a staged artifact visible, whole and at once.

    Everything is on disk before the rename and the rename is on disk before the
    return, so that a power failure leaves the whole version or none of it. The
    results of earlier failed tests are removed.

    Args:
      staging_dir: the artifact, inside `export_dir`.
      export_dir: where versions are published.
      version: its number.

    Returns:
      `<export_dir>/<version>`.

    Raises:
      StageError: that version exists.
    """
    target = Path(export_dir) / str(version)
    if target.exists():
        raise StageError(f"{target}: this version exists; published ones never change")
    for directory, _, names in os.walk(staging_dir):
        for name in names:
            sync(os.path.join(directory, name))
        sync(directory)
    os.rename(staging_dir, target)
    for failed in _FAILED.values():
        (Path(export_dir) / failed).unlink(missing_ok=True)
    sync(export_dir)
    return target

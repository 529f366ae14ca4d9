"""Files of a model base: on a local file system, or in a store that fsspec knows."""

# The protocol has the docstrings of what all stores do.
# ruff: noqa: D102

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from bert_export.errors import LockHeld, StageError, UserError
from bert_export.files import sha256_file, sync
from bert_export.release import manifest_file
from bert_export.release.manifest_file import MANIFEST_FILE

# What makes a directory a SavedModel; model servers look for it first.
SAVED_MODEL_FILE = "saved_model.pb"
_LOCK_FILE = ".lock"
_LOCK_SECONDS = 60.0
_PROBE_FILE = ".probe"
_STAGING = ".staging-"
_TRASH = ".trash-"
_PARTIAL = ".partial"
_BLOCK = 1 << 20


class Store(Protocol):
    """The files below MODEL_BASE/NAME; paths are relative to it, with slashes."""

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Keeps other processes of this program from changing anything."""

    def check_writable(self) -> None:
        """Raises UserError unless files can be written; creates the directory."""

    def names(self, path: str) -> list[str]:
        """What a directory holds; nothing where there is none."""

    def files(self, path: str) -> dict[str, int]:
        """Bytes of each file in a directory, at any depth, by path relative to it."""

    def read(self, path: str) -> bytes | None:
        """A file's bytes; None where there is none."""

    def sha256(self, path: str) -> str:
        """Hex SHA-256 of a file."""

    def write(self, path: str, content: bytes) -> None:
        """Writes a file that readers see whole."""

    def stage(self, source: Path, path: str, files: Mapping[str, str]) -> None:
        """Copies files so that no reader takes `path` for a version yet.

        Args:
          source: where they are.
          path: the version's directory that is to be.
          files: their hex SHA-256 by path relative to the directory.

        Raises:
          StageError: a copy is not what was copied.
        """

    def reveal(self, source: Path, path: str, files: Mapping[str, str]) -> None:
        """Makes what was staged a version that readers see."""

    def move(self, path: str, to: str) -> None:
        """Moves a version, of which readers never see a part."""

    def remove(self, path: str) -> None:
        """Removes a file or a version, of which readers never see a part."""

    def clean(self) -> None:
        """Removes what processes left that ended in the middle of any of this."""

    def url(self, path: str) -> str:
        """Where it is, for people."""


def is_complete(store: Store, path: str) -> bool:
    """Whether a directory has a manifest and every file that it lists, of its size."""
    try:
        content = store.read(f"{path}/{MANIFEST_FILE}")
        if content is None:
            return False
        described = manifest_file.parse(content, path)
    except UserError:
        return False
    found = store.files(path)
    return all(
        found.get(name) == listed["bytes"]
        for name, listed in described.get("files", {}).items()
    )


class LocalStore:
    """A directory: versions appear and go by rename, and are on disk before."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds MODEL_BASE/NAME/.lock, which the system drops with its process.

        Raises:
          LockHeld: another process has held it for a minute.
          UserError: it cannot be written.
        """
        import filelock

        try:
            self._root.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self._root / _LOCK_FILE, timeout=_LOCK_SECONDS)
            lock.acquire()
        except filelock.Timeout as error:
            raise LockHeld(
                f"{self._root}: another process has been publishing or rolling back "
                f"for {_LOCK_SECONDS:.0f} s (it holds {_LOCK_FILE}); try again when it "
                "has ended"
            ) from error
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            yield
        finally:
            lock.release()

    def check_writable(self) -> None:
        """Writes and removes a file.

        Raises:
          UserError: that failed.
        """
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            (self._root / _PROBE_FILE).write_bytes(b"")
            (self._root / _PROBE_FILE).unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"--model_base: cannot write {self._root}: {error.strerror or error}"
        )

    def names(self, path: str) -> list[str]:
        try:
            return sorted(os.listdir(self._root / path))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def files(self, path: str) -> dict[str, int]:
        """Symbolic links are no files here: they could lead anywhere."""
        top = self._root / path
        found = {}
        for directory, _, names in os.walk(top):
            for name in names:
                file = Path(directory, name)
                with contextlib.suppress(FileNotFoundError):
                    if not file.is_symlink():
                        found[file.relative_to(top).as_posix()] = file.stat().st_size
        return dict(sorted(found.items()))

    def read(self, path: str) -> bytes | None:
        try:
            return (self._root / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def sha256(self, path: str) -> str:
        return sha256_file(self._root / path)

    def write(self, path: str, content: bytes) -> None:
        target = self._root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}{_PARTIAL}")
        try:
            partial.write_bytes(content)
            sync(partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        sync(target.parent)

    def stage(self, source: Path, path: str, files: Mapping[str, str]) -> None:
        staged = self._hidden(path, _STAGING)
        _remove_tree(staged)
        for name, sha256 in _progress(files, path):
            copy = staged / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, copy)
            sync(copy)
            if sha256_file(copy) != sha256:
                raise StageError(f"{copy}: the copy differs from {source / name}")
        for directory, _, _ in os.walk(staged):
            sync(directory)

    def reveal(self, source: Path, path: str, files: Mapping[str, str]) -> None:
        del source, files  # all of it is staged
        self._rename(self._hidden(path, _STAGING), self._root / path)

    def move(self, path: str, to: str) -> None:
        if (self._root / path).exists():
            self._rename(self._root / path, self._root / to)

    def remove(self, path: str) -> None:
        target = self._root / path
        if target.is_dir():
            trash = self._hidden(path, _TRASH)
            _remove_tree(trash)
            self._rename(target, trash)
            shutil.rmtree(trash)
        else:
            target.unlink(missing_ok=True)

    def clean(self) -> None:
        for directory in ("", *self.names("")):
            for name in self.names(directory):
                path = self._root / directory / name
                if name.startswith((_STAGING, _TRASH)):
                    _remove_tree(path)
                elif name == _PROBE_FILE or (
                    name.startswith(".") and name.endswith(_PARTIAL)
                ):
                    path.unlink(missing_ok=True)

    def url(self, path: str) -> str:
        return str(self._root / path)

    def path(self, path: str) -> Path:
        """The same as a path of the file system."""
        return self._root / path

    def _hidden(self, path: str, prefix: str) -> Path:
        target = self._root / path
        return target.with_name(prefix + target.name)

    def _rename(self, path: Path, to: Path) -> None:
        path.rename(to)
        sync(to.parent)


class RemoteStore:
    """A store without renames: the file that makes a version comes last, goes first.

    That is `saved_model.pb`, and in formats without one the manifest. TF Serving loads
    a version as soon as its saved_model.pb is there, whatever else is missing
    (https://github.com/tensorflow/serving/issues/1086).
    """

    def __init__(self, url: str) -> None:
        """Opens the store.

        Raises:
          UserError: fsspec, or what it needs for this store, is missing.
        """
        try:
            import fsspec
        except ImportError as error:
            raise UserError(
                f"--model_base: {url} needs fsspec: "
                "pip install 'bert_export[object-store]'"
            ) from error
        # Object stores have no directories that would have to be made.
        options = {"auto_mkdir": True} if url.startswith("file://") else {}
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url, **options)
        except (ImportError, ValueError) as error:
            raise UserError(f"--model_base: cannot open {url}: {error}") from error
        self._root = self._root.rstrip("/")
        self._url = url.rstrip("/")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Nothing: such stores have no locks; see docs/model_base.md."""
        yield

    def check_writable(self) -> None:
        """Writes and removes a file.

        Raises:
          UserError: that failed.
        """
        try:
            self._fs.pipe_file(self._path(_PROBE_FILE), b"probe")
            self._fs.rm_file(self._path(_PROBE_FILE))
        except Exception as error:
            raise UserError(
                f"--model_base: cannot write {self._url}: {str(error) or type(error)}"
            ) from error

    def names(self, path: str) -> list[str]:
        directory = self._path(path)
        # Others write there, too.
        self._fs.invalidate_cache()
        try:
            found = self._fs.ls(directory, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        # Some stores list a directory in itself.
        paths = {name.rstrip("/") for name in found} - {directory}
        return sorted(name.rpartition("/")[2] for name in paths)

    def files(self, path: str) -> dict[str, int]:
        directory = self._path(path)
        self._fs.invalidate_cache()
        found = self._fs.find(directory, detail=True)
        return {
            name[len(directory) + 1 :]: entry["size"]
            for name, entry in sorted(found.items())
            if name.startswith(f"{directory}/")
        }

    def read(self, path: str) -> bytes | None:
        try:
            return self._fs.cat_file(self._path(path))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def sha256(self, path: str) -> str:
        digest = hashlib.sha256()
        with self._fs.open(self._path(path), "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        return digest.hexdigest()

    def write(self, path: str, content: bytes) -> None:
        partial = self._path(path) + _PARTIAL
        self._fs.pipe_file(partial, content)
        self._fs.mv(partial, self._path(path))

    def stage(self, source: Path, path: str, files: Mapping[str, str]) -> None:
        *first, _ = _in_order(files)
        for name, sha256 in _progress({name: files[name] for name in first}, path):
            if not self._has(f"{path}/{name}", sha256):
                self._put(source / name, f"{path}/{name}", sha256)

    def reveal(self, source: Path, path: str, files: Mapping[str, str]) -> None:
        last = _in_order(files)[-1]
        partial = f"{path}/{last}{_PARTIAL}"
        self._put(source / last, partial, files[last])
        # On stores in which uploads grow in sight it still appears whole.
        self._fs.mv(self._path(partial), self._path(f"{path}/{last}"))

    def move(self, path: str, to: str) -> None:
        """Copies, then removes; after a kill both go on where it came."""
        files = _in_order(self.files(path))
        if files and not is_complete(self, to):
            *first, last = files
            for name in first:
                self._copy(f"{path}/{name}", f"{to}/{name}")
            self._copy(f"{path}/{last}", f"{to}/{last}{_PARTIAL}")
            self._fs.mv(
                self._path(f"{to}/{last}{_PARTIAL}"), self._path(f"{to}/{last}")
            )
        self.remove(path)

    def remove(self, path: str) -> None:
        target = self._path(path)
        self._fs.invalidate_cache()
        if self._fs.isfile(target):
            self._fs.rm_file(target)
            return
        for name in (SAVED_MODEL_FILE, MANIFEST_FILE):
            if self._fs.exists(f"{target}/{name}"):
                self._fs.rm_file(f"{target}/{name}")
        self._fs.invalidate_cache()
        if self._fs.exists(target):
            self._fs.rm(target, recursive=True)

    def clean(self) -> None:
        for name in self.files(""):
            if name.endswith(_PARTIAL) or name == _PROBE_FILE:
                self._fs.rm_file(self._path(name))

    def url(self, path: str) -> str:
        return f"{self._url}/{path}"

    def fetch(self, path: str, directory: Path) -> None:
        """Copies a directory's files into a local one."""
        for name in tqdm(self.files(path), f"fetch {path}", leave=False, disable=None):
            if not manifest_file.is_inside(name):
                raise UserError(f"{self.url(path)}: the file {name!r} leaves it")
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            self._fs.get_file(self._path(f"{path}/{name}"), str(directory / name))

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _has(self, path: str, sha256: str) -> bool:
        try:
            return self.sha256(path) == sha256
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _put(self, source: Path, path: str, sha256: str) -> None:
        self._fs.put_file(str(source), self._path(path))
        if not self._has(path, sha256):
            raise StageError(f"{self.url(path)}: the upload differs from {source}")

    def _copy(self, path: str, to: str) -> None:
        self._fs.cp_file(self._path(path), self._path(to))


def _in_order(files: Iterable[str]) -> list[str]:
    """Paths in the order of upload: what makes the directory a version comes last."""

    def place(name: str) -> tuple[bool, bool, str]:
        return (name == SAVED_MODEL_FILE, name == MANIFEST_FILE, name)

    return sorted(files, key=place)


def _progress(files: Mapping[str, str], path: str) -> Iterable[tuple[str, str]]:
    bar: Any = tqdm(files.items(), f"copy {path}", leave=False, disable=None)
    return bar


def _remove_tree(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)

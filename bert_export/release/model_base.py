"""The model base: publishes versions for model servers, and takes them back.

    MODEL_BASE/NAME/VERSION/            the SavedModel, as TF Serving polls it
    MODEL_BASE/NAME/FORMAT/VERSION/     the other formats
    MODEL_BASE/NAME/current.json        which version is in production
    MODEL_BASE/NAME/records/VERSION.json    what was published as that version
    MODEL_BASE/NAME/withdrawn-VERSION/  (and FORMAT/withdrawn-VERSION/) taken back

Model servers that poll directories serve the highest number. So a version becomes
visible only whole, its SavedModel last, and a rollback takes every higher one out of
sight. `current.json` always names a version that is there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from bert_export.config import MODEL_NAME
from bert_export.errors import Damaged, Failure, StageError, UserError
from bert_export.files import list_directory, new_directory
from bert_export.release.manifest_file import MANIFEST_FILE
from bert_export.release.model_records import (
    RECORDS,
    SAVED_MODEL,
    TARGET,
    WITHDRAWN,
    Current,
    Record,
    damage,
    hashes_of,
    new_record,
    parse,
    path_of,
    record_path,
    target_of,
    to_json,
    withdrawn,
)
from bert_export.release.model_store import (
    LocalStore,
    RemoteStore,
    Store,
    is_complete,
)

CURRENT_FILE = "current.json"
_VERSION = re.compile(r"[0-9]+")
_RECORD_FILE = re.compile(r"([0-9]+)\.json")
_WITHDRAWN_NAME = re.compile(rf"{WITHDRAWN}([0-9]+)")

_P = ParamSpec("_P")
_T = TypeVar("_T")
Check = tuple[str, bool, str]  # name, whether it is well, detail


@dataclasses.dataclass(frozen=True)
class Version:
    """A version that is, was, or was to be in production."""

    version: int
    state: str  # current, previous, kept, withdrawn or incomplete
    date: str | None  # when it was published, ISO 8601, UTC
    metrics: dict[str, Any]  # of its manifest
    bytes: int  # of all its artifacts


def _reporting(method: Callable[_P, _T]) -> Callable[_P, _T]:
    """Gives what goes wrong in a file system or store one line and an exit code."""

    @functools.wraps(method)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return method(*args, **kwargs)
        except Failure:
            raise
        except OSError as error:
            raise StageError(f"{args[0]}: {error}") from error
        except Exception as error:
            # Stores have exceptions of their own.
            if not isinstance(getattr(args[0], "_store", None), RemoteStore):
                raise
            raise StageError(f"{args[0]}: {type(error).__name__}: {error}") from error

    return wrapped


class ModelBase:
    """The published versions of one model, all formats, below MODEL_BASE/NAME."""

    def __init__(self, base: str, name: str) -> None:
        """Opens a model base, which need not exist yet.

        Args:
          base: a directory, or a URL that fsspec knows, such as s3://bucket/models.
          name: the model's.

        Raises:
          UserError: the name cannot be part of a path, or the URL cannot be opened.
        """
        if not MODEL_NAME.fullmatch(name):
            raise UserError(
                f"{name!r}: expected a name of letters, digits, '_', '.' and '-'"
            )
        self._where = f"{base.rstrip('/') or '/'}/{name}"
        self._store: Store = (
            RemoteStore(self._where) if "://" in base else LocalStore(Path(base, name))
        )

    def __str__(self) -> str:
        return self._where

    @_reporting
    def check_writable(self) -> None:
        """Makes sure that a version can be written, before any work is done for one.

        Raises:
          UserError: it cannot.
        """
        self._store.check_writable()

    @_reporting
    def current(self) -> Current | None:
        """The version in production; None before the first is published.

        Raises:
          Damaged: current.json cannot be read.
          UserError: it names paths that are not its model's.
        """
        content = self._store.read(CURRENT_FILE)
        if content is None:
            return None
        try:
            return parse(content, self._store.url(CURRENT_FILE), Current)
        except Damaged as error:
            repair = "'bert-export rollback --version=N' writes it anew"
            raise Damaged(f"{error}; {repair}") from error

    @_reporting
    def versions(self) -> list[Version]:
        """All versions, newest first, whatever their state.

        `incomplete` are those whose publishing, or taking back, was interrupted, and
        those that this program did not publish.
        """
        current = self.current()
        recorded = self._recorded()
        numbers = {*recorded, *self._visible(SAVED_MODEL), *self._withdrawn_versions()}
        found = []
        for number in sorted(numbers, reverse=True):
            record = self._record(number) if number in recorded else None
            found.append(
                Version(
                    number,
                    self._state(number, record, current),
                    record.published if record else None,
                    record.metrics if record else {},
                    record.bytes if record else self._bytes(number),
                )
            )
        return found

    @_reporting
    def new_version(self) -> int:
        """The time, or one more than any version that is, was, or was to be there."""
        targets = self._targets()
        taken = set(self._recorded())
        for target in targets:
            taken |= {*self._visible(target), *self._withdrawn_versions(target)}
        return max([int(time.time()), *(number + 1 for number in taken)])

    @_reporting
    def publish(self, artifacts: Mapping[str, Path], version: int, keep: int) -> str:
        """Copies artifacts in, makes them the current version, removes old ones.

        Called again with the same artifacts, after it was killed at whatever moment,
        it does what is left to do.

        Args:
          artifacts: exported versions by the names of their targets; one of them is
            the saved_model.
          version: the number to publish them as, from `new_version`.
          keep: versions to keep, withdrawn ones included; the current and the
            previous one stay in any case.

        Returns:
          Where the SavedModel is: a path, or a URL.

        Raises:
          StageError: an artifact is not what its manifest says, that version exists
            with another content or was withdrawn, a newer one is there, or the
            base's file system failed.
          LockHeld: another process has been changing the base for a minute.
          UserError: the base cannot be written.
        """
        hashes = {target: hashes_of(path) for target, path in artifacts.items()}
        wanted = new_record(artifacts, hashes, version)
        with self._store.lock():
            self._store.clean()
            current = self.current()
            record = self._record(version)
            if record is None:
                self._check_newest(version)
                record = wanted
                self._store.write(record_path(version), to_json(record))
            elif record.artifacts != wanted.artifacts:
                raise StageError(
                    f"{self}: version {version} exists with another content; published "
                    "versions never change"
                )
            if any(self._store.names(withdrawn(path)) for path in record.paths):
                raise StageError(
                    f"{self}: version {version} was withdrawn by a rollback; "
                    f"'bert-export rollback --version={version}' brings it back"
                )
            if not self._is_published(record):
                self._check_newest(version)
                try:
                    self._put(record, artifacts, hashes)
                except BaseException:
                    with contextlib.suppress(Exception):
                        self._store.clean()
                    raise
            if current is None or current.version < version:
                self._make_current(record, current.version if current else None)
            self._retain(keep)
        return self._store.url(path_of(SAVED_MODEL, version))

    def _put(
        self,
        record: Record,
        artifacts: Mapping[str, Path],
        hashes: Mapping[str, Mapping[str, str]],
    ) -> None:
        missing = {}
        for path in record.paths:
            target = target_of(path)
            if not is_complete(self._store, path):
                missing[target] = path
                continue
            found = self._store.sha256(f"{path}/{MANIFEST_FILE}")
            if found != record.manifest_sha256(target):
                raise StageError(
                    f"{self._store.url(path)}: there is another model; published "
                    "versions never change"
                )
        for target, path in missing.items():
            self._store.stage(artifacts[target], path, hashes[target])
        for target, path in missing.items():
            self._store.reveal(artifacts[target], path, hashes[target])

    @_reporting
    def rollback(self, to: int | None) -> tuple[int, int]:
        """Puts another version into production and withdraws all newer ones.

        Where a newer version than current.json names is visible, because a publish or
        a rollback was killed, a rollback without a number goes to the current one.
        After a rollback that was killed, the same call completes it.

        Args:
          to: a version that is kept or was withdrawn; None for the previous one.

        Returns:
          The version that servers had, and the one that they have now.

        Raises:
          UserError: there is no such version, or none at all.
          Damaged: its files are not what was published; nothing was changed.
          LockHeld: another process has been changing the base for a minute.
        """
        if not self._store.names(""):
            raise UserError(f"{self}: nothing has been published here")
        with self._store.lock():
            current = self._current_to_leave(to)
            recorded = [self._record(number) for number in self._recorded()]
            records = [record for record in recorded if record]
            served = max(self._served(), default=current.version if current else 0)
            if to is None:
                assert current is not None
                unfinished = any(
                    record.version > current.version and self._is_served(record)
                    for record in records
                )
                to = current.version if unfinished else current.previous
            if to is None:
                raise UserError(
                    f"{self}: there is no version before {served}; "
                    "'bert-export versions' lists what is there"
                )
            record = self._existing(to)
            for target in record.artifacts:
                self._require_undamaged(record, target)
            for path in record.paths:
                if to in self._withdrawn_versions(target_of(path)):
                    self._store.move(withdrawn(path), path)
            if current is None or current.version != to:
                before = (other for other in records if other.version < to)
                kept = [r.version for r in before if self._is_published(r)]
                self._make_current(record, max(kept, default=None))
            self._withdraw_newer(to, records)
        return served, to

    def _withdraw_newer(self, version: int, records: Sequence[Record]) -> None:
        never_published = {
            record.version
            for record in records
            if not self._is_there(record) and not self._is_served(record)
        }
        for target in sorted(self._targets(), key=lambda name: name != SAVED_MODEL):
            for number in self._visible(target):
                path = path_of(target, number)
                if number > version and number in never_published:
                    # To be copied again if its publishing is resumed.
                    self._store.remove(path)
                elif number > version:
                    self._store.move(path, withdrawn(path))

    @_reporting
    def verify(self, version: int | None) -> list[Check]:
        """Holds every file of a version against what was published.

        Args:
          version: None for the current one, and that it is the one that servers see.

        Raises:
          UserError: there is no such version, or none at all.
        """
        checks: list[Check] = []
        if version is None:
            try:
                current = self.current()
            except Failure as error:
                return [(CURRENT_FILE, False, str(error))]
            if current is None:
                raise UserError(f"{self}: nothing has been published here")
            version = current.version
            checks.append(self._check_served(current))
        try:
            record = self._record(version)
        except Failure as error:
            return [*checks, (record_path(version), False, str(error))]
        if record is None:
            if not checks:
                raise UserError(
                    f"{self}: there is no version {version}; "
                    "'bert-export versions' lists what is there"
                )
            missing = record_path(version)
            return [*checks, (missing, False, "missing")]
        if checks and current is not None:
            same = record.artifacts == current.artifacts
            detail = "names the manifests of the record" if same else "names others"
            checks.append((CURRENT_FILE, same, detail))
        checks += [
            self._check_artifact(record, target) for target in sorted(record.artifacts)
        ]
        return checks

    @_reporting
    def fetch(self, version: int, directory: Path) -> Path:
        """A version's SavedModel as a local directory, its hashes verified.

        Args:
          version: one that is there, or was withdrawn.
          directory: where it is put, under its number, unless it is local already.

        Raises:
          UserError: there is no such version.
          Damaged: its files are not what was published.
        """
        record = self._existing(version)
        place = self._place(path_of(SAVED_MODEL, version))
        if isinstance(self._store, LocalStore):
            self._require_undamaged(record, SAVED_MODEL)
            return self._store.path(place)
        assert isinstance(self._store, RemoteStore)
        local = directory / str(version)
        with new_directory(local) as partial:
            self._store.fetch(place, partial)
            found = {
                name: listed["sha256"]
                for name, listed in list_directory(partial).items()
            }
            manifest = partial / MANIFEST_FILE
            content = manifest.read_bytes() if manifest.is_file() else None
            if wrong := damage(record.manifest_sha256(SAVED_MODEL), content, found):
                raise Damaged(f"{self._store.url(place)}: {wrong}")
        return local

    @_reporting
    def clean(self) -> None:
        """Removes what publishers left that died: half copies, half removals.

        Versions older than the current one that were never completed go, too.
        """
        if not self._store.names(""):
            return
        with self._store.lock():
            self._store.clean()
            current = self.current()
            for number in self._recorded():
                record = self._record(number)
                if (
                    record
                    and current
                    and number < current.version
                    and number != current.previous
                    and not self._is_there(record)
                ):
                    self._remove(record)

    def _retain(self, keep: int) -> None:
        """Removes the oldest versions that this program published."""
        current = self.current()
        if current is None:
            return
        records = [self._record(number) for number in sorted(self._recorded())]
        older = [r for r in records if r and r.version <= current.version]
        there = [record.version for record in older if self._is_there(record)]
        stay = {current.version, current.previous, *there[max(0, len(there) - keep) :]}
        for record in older:
            if record.version not in stay:
                self._remove(record)

    def _remove(self, record: Record) -> None:
        for path in reversed(record.paths):
            self._store.remove(path)
            self._store.remove(withdrawn(path))
        # Last, as it says what there is to remove.
        self._store.remove(record_path(record.version))

    def _make_current(self, record: Record, previous: int | None) -> None:
        current = Current(
            record.version,
            previous,
            record.manifest_sha256(SAVED_MODEL),
            record.artifacts,
            record.published,
        )
        self._store.write(CURRENT_FILE, to_json(current))

    def _current_to_leave(self, to: int | None) -> Current | None:
        """What a rollback leaves; a named version also replaces a broken current.json.

        Raises:
          UserError: nothing was published.
        """
        try:
            current = self.current()
        except Failure:
            if to is None:
                raise
            return None
        if current is None and to is None:
            raise UserError(f"{self}: nothing has been published here")
        return current

    def _state(
        self, number: int, record: Record | None, current: Current | None
    ) -> str:
        if current and number == current.version:
            return "current"
        if current and number == current.previous:
            return "previous"
        if record is None:
            return "incomplete"
        if self._is_published(record):
            return "kept" if current and number < current.version else "incomplete"
        if self._is_there(record) and not self._is_served(record):
            return "withdrawn"
        return "incomplete"

    def _is_published(self, record: Record) -> bool:
        """Whether all of it is where servers see it."""
        return all(is_complete(self._store, path) for path in record.paths)

    def _is_there(self, record: Record) -> bool:
        """Whether all of it is there, be it withdrawn or not."""
        return all(
            is_complete(self._store, path) or is_complete(self._store, withdrawn(path))
            for path in record.paths
        )

    def _is_served(self, record: Record) -> bool:
        """Whether servers see some of it that once was published."""
        saved_model = path_of(SAVED_MODEL, record.version)
        if is_complete(self._store, saved_model):
            return True
        # Of a rollback that was killed, other formats may still be in their places.
        return is_complete(self._store, withdrawn(saved_model)) and any(
            record.version in self._visible(target) for target in record.artifacts
        )

    def _check_newest(self, version: int) -> None:
        """Makes sure that servers will take a version for the newest.

        Raises:
          StageError: they would not.
        """
        newer = [number for number in self._visible(SAVED_MODEL) if number > version]
        if newer:
            raise StageError(
                f"{self}: version {version} cannot be published, as servers would go "
                f"on serving {max(newer)}"
            )

    def _check_served(self, current: Current) -> Check:
        newest = max(self._served(), default=None)
        return (
            "served",
            newest == current.version,
            f"{CURRENT_FILE} names {current.version}; servers see {newest}",
        )

    def _served(self) -> list[int]:
        """The numbers of which servers could load the SavedModel."""
        return [
            number
            for number in self._visible(SAVED_MODEL)
            if is_complete(self._store, path_of(SAVED_MODEL, number))
        ]

    def _existing(self, version: int) -> Record:
        """The record of a version of which something is there, withdrawn or not.

        Raises:
          UserError: there is no such version.
        """
        record = self._record(version)
        if record is None or not self._store.names(
            self._place(path_of(SAVED_MODEL, version))
        ):
            raise UserError(
                f"{self}: there is no version {version}; "
                "'bert-export versions' lists what is there"
            )
        return record

    def _require_undamaged(self, record: Record, target: str) -> None:
        _, is_well, detail = self._check_artifact(record, target)
        if not is_well:
            place = self._place(record.artifacts[target]["path"])
            raise Damaged(f"{self._store.url(place)}: {detail}")

    def _check_artifact(self, record: Record, target: str) -> Check:
        place = self._place(record.artifacts[target]["path"])
        found = {
            name: self._store.sha256(f"{place}/{name}")
            for name in self._store.files(place)
        }
        content = self._store.read(f"{place}/{MANIFEST_FILE}")
        wrong = damage(record.manifest_sha256(target), content, found)
        return (target, not wrong, wrong or f"{len(found)} files")

    def _place(self, path: str) -> str:
        """Where an artifact is: in its place, or withdrawn."""
        places = (path, withdrawn(path))
        whole = [place for place in places if is_complete(self._store, place)]
        damaged = [place for place in places if self._store.names(place)]
        return [*whole, *damaged, path][0]

    def _bytes(self, number: int) -> int:
        return sum(self._store.files(path_of(SAVED_MODEL, number)).values())

    def _targets(self) -> list[str]:
        """All that a version may have been published as."""
        others = (
            name
            for name in self._store.names("")
            if TARGET.fullmatch(name) and name != RECORDS
        )
        return [SAVED_MODEL, *others]

    def _visible(self, target: str) -> list[int]:
        """The numbers that servers see, of whole versions or not."""
        names = self._store.names("" if target == SAVED_MODEL else target)
        return sorted(int(name) for name in names if _VERSION.fullmatch(name))

    def _withdrawn_versions(self, target: str = SAVED_MODEL) -> list[int]:
        names = self._store.names("" if target == SAVED_MODEL else target)
        return _numbers(names, _WITHDRAWN_NAME)

    def _recorded(self) -> list[int]:
        return _numbers(self._store.names(RECORDS), _RECORD_FILE)

    def _record(self, version: int) -> Record | None:
        """What was published as a version; None where this program did not do it.

        Raises:
          Damaged: the record cannot be read.
          UserError: it names paths that are not the version's.
        """
        content = self._store.read(record_path(version))
        if content is None:
            return None
        where = self._store.url(record_path(version))
        record = parse(content, where, Record)
        if record.version != version:
            raise Damaged(f"{where}: it is the record of version {record.version}")
        return record


def _numbers(names: Iterable[str], pattern: re.Pattern[str]) -> list[int]:
    return sorted(int(match[1]) for name in names if (match := pattern.fullmatch(name)))

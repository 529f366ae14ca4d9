"""What was published as a version: its record, where it lies, whether it is whole."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from bert_export.errors import Damaged, StageError, UserError
from bert_export.files import list_directory
from bert_export.release import manifest_file
from bert_export.release.manifest_file import MANIFEST_FILE, NOT_LISTED

FORMAT_VERSION = 1
SAVED_MODEL = "saved_model"
WITHDRAWN = "withdrawn-"
RECORDS = "records"
# A format, with its precision where that is not float32.
TARGET = re.compile(r"[a-z][a-z0-9_]*")

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Current:
    """The version in production, as current.json names it."""

    version: int
    previous: int | None  # where a rollback goes
    manifest_sha256: str  # of the SavedModel's manifest.json
    artifacts: dict[str, dict[str, Any]]  # by target: path, manifest_sha256
    published: str  # ISO 8601, UTC


@dataclasses.dataclass(frozen=True)
class Record:
    """What was published as a version; written before any of it is visible."""

    version: int
    published: str
    artifacts: dict[str, dict[str, Any]]  # by target: path, manifest_sha256
    metrics: dict[str, Any]
    bytes: int

    @property
    def paths(self) -> list[str]:
        """Of its artifacts, the SavedModel's last."""
        targets = sorted(self.artifacts, key=lambda target: target == SAVED_MODEL)
        return [self.artifacts[target]["path"] for target in targets]

    def manifest_sha256(self, target: str) -> str:
        """Of an artifact's manifest.json."""
        return self.artifacts[target]["manifest_sha256"]


def parse(content: bytes, where: str, of: type[_T]) -> _T:
    """Current or Record, from a file's bytes.

    Args:
      content: the bytes.
      where: the file, for messages.
      of: Current or Record.

    Raises:
      Damaged: it is not what this program writes.
      UserError: a path is not its version's.
    """
    try:
        values = json.loads(content)
    except ValueError as error:
        raise Damaged(f"{where}: not JSON: {error}") from error
    fields = {field.name for field in dataclasses.fields(of)}  # type: ignore[arg-type]
    if (
        not isinstance(values, dict)
        or values.pop("format_version", None) != FORMAT_VERSION
        or values.keys() != fields
        or not isinstance(values["version"], int)
        or not isinstance(values["artifacts"], dict)
        or SAVED_MODEL not in values["artifacts"]
    ):
        raise Damaged(
            f"{where}: expected format_version {FORMAT_VERSION} and "
            f"{', '.join(sorted(fields))}"
        )
    for target, artifact in values["artifacts"].items():
        expected = path_of(target, values["version"])
        found = artifact.get("path") if isinstance(artifact, dict) else artifact
        if not TARGET.fullmatch(target) or found != expected:
            raise UserError(
                f"{where}: artifacts: {target}: expected the path {expected!r}, "
                f"found {found!r}"
            )
        if not isinstance(artifact.get("manifest_sha256"), str):
            raise Damaged(f"{where}: artifacts: {target}: manifest_sha256 is missing")
    return of(**values)


def path_of(target: str, version: int) -> str:
    """Where a version of a target is published."""
    return str(version) if target == SAVED_MODEL else f"{target}/{version}"


def target_of(path: str) -> str:
    """The target that is published at a path."""
    return path.rpartition("/")[0] or SAVED_MODEL


def withdrawn(path: str) -> str:
    """Where a version goes that is taken back; no server takes that for a number."""
    parent, slash, number = path.rpartition("/")
    return f"{parent}{slash}{WITHDRAWN}{number}"


def record_path(version: int) -> str:
    """Where the record of a version is."""
    return f"{RECORDS}/{version}.json"


def to_json(value: Current | Record) -> bytes:
    """What `parse` reads."""
    values = {"format_version": FORMAT_VERSION, **dataclasses.asdict(value)}
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def hashes_of(artifact: Path) -> dict[str, str]:
    """Hex SHA-256 of an exported version's files, held against its manifest.

    Raises:
      UserError: it is none.
      StageError: a file is not what was exported.
    """
    described = manifest_file.read(artifact)
    found = {
        name: listed["sha256"]
        for name, listed in list_directory(artifact).items()
        if not (artifact / name).is_symlink()
    }
    if wrong := _differences(described.get("files", {}), found):
        raise StageError(f"{artifact}: not what was exported: {'; '.join(wrong)}")
    return found


def new_record(
    artifacts: Mapping[str, Path], hashes: Mapping[str, Mapping[str, str]], version: int
) -> Record:
    """Describes artifacts that are to be published.

    Raises:
      UserError: there is no saved_model among them.
    """
    if SAVED_MODEL not in artifacts:
        raise UserError(
            "config.export.formats: a model base needs saved_model, which servers "
            f"poll; found {', '.join(artifacts) or 'none'}"
        )
    now = datetime.datetime.now(datetime.timezone.utc)
    return Record(
        version,
        now.isoformat(timespec="seconds"),
        {
            target: {
                "path": path_of(target, version),
                "manifest_sha256": hashes[target][MANIFEST_FILE],
            }
            for target in sorted(artifacts)
        },
        manifest_file.read(artifacts[SAVED_MODEL]).get("metrics", {}),
        sum(
            (path / name).stat().st_size
            for target, path in artifacts.items()
            for name in hashes[target]
        ),
    )


def damage(
    manifest_sha256: str, manifest: bytes | None, found: Mapping[str, str]
) -> str:
    """What is wrong with an artifact's files; empty if nothing is.

    Args:
      manifest_sha256: that of the manifest when it was published.
      manifest: the manifest's bytes now.
      found: hex SHA-256 of all files by path.
    """
    if manifest is None:
        return f"{MANIFEST_FILE}: missing"
    if hashlib.sha256(manifest).hexdigest() != manifest_sha256:
        return f"{MANIFEST_FILE}: not what was published"
    try:
        described = manifest_file.parse(manifest, MANIFEST_FILE)
    except UserError as error:
        return str(error)
    return "; ".join(_differences(described.get("files", {}), found))


def _differences(
    listed: Mapping[str, Mapping[str, Any]], found: Mapping[str, str]
) -> list[str]:
    """How the files that are found differ from those that a manifest lists.

    Args:
      listed: as in the manifest.
      found: hex SHA-256 by path.
    """
    expected = listed.keys() | set(NOT_LISTED)
    return [
        *(f"{name}: missing" for name in sorted(listed.keys() - found.keys())),
        *(f"{name}: not in the manifest" for name in sorted(found.keys() - expected)),
        *(
            f"{name}: other content than in the manifest"
            for name in sorted(listed.keys() & found.keys())
            if found[name] != listed[name]["sha256"]
        ),
    ]

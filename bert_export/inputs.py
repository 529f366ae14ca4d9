"""The fingerprint of all that decides what a retraining makes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import bert_export
from bert_export.config import Config
from bert_export.corpus.corpus import source_paths
from bert_export.errors import UserError
from bert_export.files import list_directory, package_path, sha256_file
from bert_export.release.manifest_file import packages

# What judges and publishes a model rather than makes it.
_NOT_MADE_BY = ("gate", "release")
_HUB = "hub:"


def fingerprints(config: Config, workdir: Path, warm_start: bool) -> dict[str, str]:
    """Hex SHA-256 of each input: the config, the code, and every file that is read.

    Files are told apart by their bytes. Of a TensorFlow Hub handle that is no
    directory or file, only the handle counts.

    Args:
      config: the run's, without the limits of its gate and its retention, which do
        not change what is made.
      workdir: as for `load_corpus`.
      warm_start: whether training starts from the model in production.

    Returns:
      By what it is: 'config', 'code', and the keys of config that name files.

    Raises:
      UserError: a file is missing.
    """
    values = dataclasses.asdict(config)
    for key in _NOT_MADE_BY:
        del values[key]
    found = {
        "config": digest({**values, "warm_start": warm_start}),
        "code": digest({"bert_export": _code(), "packages": packages()}),
    }
    for key, path in source_paths(config.corpus, workdir).items():
        found[f"corpus.{key}"] = _path(f"corpus.{key}", path)
    for key in ("pretrained", "bert_config", "vocab", "init_checkpoint"):
        if named := getattr(config.model, key):
            found[f"model.{key}"] = _weights(f"model.{key}", named)
    return found


def digest(value: object) -> str:
    """Hex SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """The names of the inputs that differ, sorted."""
    return sorted(
        name for name in old.keys() | new.keys() if old.get(name) != new.get(name)
    )


def _code() -> dict[str, str]:
    """Of every file of this package."""
    root = Path(bert_export.__file__).parent
    return {
        path.relative_to(root).as_posix(): sha256_file(path)
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix != ".pyc"
    }


def _weights(key: str, named: str) -> str:
    path = package_path(named.removeprefix(_HUB))
    if not path.exists():
        if Path(f"{path}.index").is_file():
            files = path.parent.glob(f"{path.name}.*")
            return digest({file.name: sha256_file(file) for file in files})
        if named.startswith(_HUB):
            return digest(named)
    return _path(key, path)


def _path(key: str, path: Path) -> str:
    if path.is_dir():
        return digest(list_directory(path))
    if not path.is_file():
        raise UserError(f"config.{key}: there is no file {path}")
    return sha256_file(path)

"""Turns a corpus in another format into entities and mentions of ours."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from absl import logging
from tqdm import tqdm

from bert_export.config import CorpusConfig
from bert_export.corpus import jsonl
from bert_export.corpus.aida import read_aida
from bert_export.corpus.ccks import read_ccks
from bert_export.corpus.docbin import read_docbin
from bert_export.corpus.pubtator import read_pubtator
from bert_export.corpus.records import BadRecords, Mention
from bert_export.corpus.sources import Source
from bert_export.corpus.splits import SPLITS
from bert_export.corpus.table import read_table
from bert_export.corpus.zeshel import read_zeshel
from bert_export.errors import UserError
from bert_export.files import sha256_file, write_json

# By the builder's name in the config, which is the converter's --input_format.
READERS: dict[str, Callable[[CorpusConfig, BadRecords], Source]] = {
    "ccks": read_ccks,
    "zeshel": read_zeshel,
    "aida": read_aida,
    "pubtator": read_pubtator,
    "table": read_table,
    "docbin": read_docbin,
}

# Rises whenever the same files would give another corpus.
_VERSION = 2

ENTITIES_FILE = "entities.jsonl.gz"
SIDECAR = "converted.json"
# None: mentions that are split by a hash of their texts.
MENTIONS_FILES: dict[str | None, str] = {
    None: "mentions.jsonl.gz",
    **{split: f"mentions.{split}.jsonl.gz" for split in SPLITS},
}

# Options that name the input, whose bytes count and not where it is found.
_INPUTS = (
    "entities",
    "mentions",
    "dev_mentions",
    "test_mentions",
    "zeshel_candidates",
    "pubtator_pmids",
)
# Options that change how records are used and not what they are.
_USES = ("candidate_generation", "max_candidates", "max_bad_records")


@dataclasses.dataclass(frozen=True)
class Converted:
    """What a conversion wrote.

    Attributes:
      files: By role, as `Corpus` takes them: 'entities', 'train', 'dev', 'test'.
      entities: Their number.
      mentions: Number by split; 'all' if they are not split.
      nil: Number of mentions without an entity.
      notes: What was repaired or left out, and how often.
      bad_records: File, line and reason of each bad record.
    """

    files: dict[str, pathlib.Path]
    entities: int
    mentions: dict[str, int]
    nil: int
    notes: dict[str, int]
    bad_records: list[tuple[str, int, str]]

    def table(self) -> str:
        """The figures, a line each."""
        lines = [("entities", self.entities)]
        lines += [(f"mentions, {split}", n) for split, n in self.mentions.items()]
        lines += [("mentions that are NIL", self.nil)]
        lines += [("bad records left out", len(self.bad_records))]
        lines += list(self.notes.items())
        width = max(len(f"{number:,}") for _, number in lines)
        return "\n".join(f"{number:>{width},}  {what}" for what, number in lines)


def convert(
    config: CorpusConfig,
    directory: pathlib.Path,
    bad: BadRecords,
    overwrite: bool = False,
) -> Converted:
    """Writes entities.jsonl.gz and mentions[.SPLIT].jsonl.gz, all of them or nothing.

    Mentions are streamed; entities are held in memory. Equal input gives equal bytes.

    Args:
      config: `builder` is one of READERS; what the others mean is told there.
      directory: Is made if it does not exist.
      bad: Is told of the bad records.
      overwrite: Replace an earlier conversion.

    Raises:
      UserError: The input cannot be read, has nothing or too many bad records, or the
        directory has such files already.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file; name a directory to write to")
    written = [ENTITIES_FILE, *MENTIONS_FILES.values(), SIDECAR]
    present = [name for name in written if (directory / name).exists()]
    if present and not overwrite:
        raise UserError(
            f"{directory} has {', '.join(present)} already; name another directory, or"
            " replace them with --overwrite"
        )
    bad_before = bad.count
    source = READERS[config.builder](config, bad)
    parent = _existing_parent(directory)
    with tempfile.TemporaryDirectory(prefix=".convert-", dir=parent) as temporary:
        new = pathlib.Path(temporary)
        counts, nil = _write_mentions(source, new, config)
        jsonl.write_entities(new / ENTITIES_FILE, source.entities.values())
        converted = Converted(
            _roles(directory, counts),
            len(source.entities),
            {split or "all": number for split, number in counts.items()},
            nil,
            dict(source.notes),
            bad.seen[bad_before:],
        )
        directory.mkdir(parents=True, exist_ok=True)
        for name in present:
            (directory / name).unlink()
        for path in sorted(new.iterdir()):
            os.replace(path, directory / path.name)
    return converted


def build(config: CorpusConfig, directory: pathlib.Path, bad: BadRecords) -> Converted:
    """Converts into a directory of the program's own, unless that was done before.

    What is there is used again as long as the input files' bytes and the options are
    the same; bad records that were left out then are counted again.

    Raises:
      UserError: As `convert` does.
    """
    fingerprint = _fingerprint(config)
    sidecar = directory / SIDECAR
    if sidecar.exists():
        known = json.loads(sidecar.read_text(encoding="utf-8"))
        counts = {
            None if split == "all" else split: number
            for split, number in known["mentions"].items()
        }
        files = _roles(directory, counts)
        if known.pop("fingerprint") == fingerprint and all(
            path.exists() for path in files.values()
        ):
            for path, line, reason in known["bad_records"]:
                bad.add(path, line, reason)
            return Converted(files=files, **known)
    logging.info("converting a corpus of the format %s", config.builder)
    converted = convert(config, directory, bad, overwrite=True)
    for what, number in converted.notes.items():
        logging.warning("%s: %d %s", config.mentions, number, what)
    facts = dataclasses.asdict(converted)
    del facts["files"]
    write_json(sidecar, {"fingerprint": fingerprint, **facts})
    return converted


def _write_mentions(
    source: Source, directory: pathlib.Path, config: CorpusConfig
) -> tuple[dict[str | None, int], int]:
    """Writes the mentions, a file a split; returns their numbers and those of NIL."""
    counts: collections.Counter[str | None] = collections.Counter()
    nil = 0
    with contextlib.ExitStack() as stack:
        writers: dict[str | None, Callable[[Mention], None]] = {}
        for split, mention in tqdm(
            source.mentions, desc="converting", unit=" mentions", disable=None
        ):
            if split not in writers:
                path = directory / MENTIONS_FILES[split]
                writers[split] = stack.enter_context(jsonl.mention_writer(path))
            writers[split](mention)
            counts[split] += 1
            nil += mention.gold is None
    if not counts:
        raise UserError(f"{config.mentions}: no mentions in it")
    splits_wanted = config.dev_fraction or config.test_fraction
    if None not in counts and (
        not counts["train"] or (splits_wanted and len(counts) == 1)
    ):
        found = ", ".join(f"{number:,} for {split}" for split, number in counts.items())
        raise UserError(
            f"{config.mentions}: expected mentions for train and for dev or test, found"
            f" {found}"
        )
    order: tuple[str | None, ...] = (None, *SPLITS)
    return {split: counts[split] for split in order if counts[split]}, nil


def _roles(
    directory: pathlib.Path, counts: dict[str | None, int]
) -> dict[str, pathlib.Path]:
    """The files by role; mentions that are not split have train's."""
    files = {split or "train": directory / MENTIONS_FILES[split] for split in counts}
    return {"entities": directory / ENTITIES_FILE, **files}


def _existing_parent(directory: pathlib.Path) -> pathlib.Path:
    """The directory itself, or the nearest one above it that exists."""
    for parent in (directory.absolute(), *directory.absolute().parents):
        if parent.is_dir():
            return parent
    raise UserError(f"{directory}: no directory above it exists")


def _fingerprint(config: CorpusConfig) -> str:
    """Hex SHA-256 of all that decides what is converted."""
    options: dict[str, Any] = dataclasses.asdict(config)
    for key in _USES:
        del options[key]
    for key in _INPUTS:
        value = options[key]
        paths = [value] if isinstance(value, str) else value or ()
        options[key] = [
            [file.name, sha256_file(file)]
            for path in paths
            for file in _input_files(key, path)
        ]
    facts = json.dumps([_VERSION, options], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()


def _input_files(key: str, path: str) -> Iterator[pathlib.Path]:
    if pathlib.Path(path).is_file():
        yield pathlib.Path(path)
    elif pathlib.Path(path).is_dir():
        yield from (
            file for file in sorted(pathlib.Path(path).iterdir()) if file.is_file()
        )
    else:
        raise UserError(f"config.corpus.{key}: there is no file {path}")

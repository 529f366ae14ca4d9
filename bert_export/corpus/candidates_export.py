"""Writes the alias table as JSON Lines or as an SQLite database."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sqlite3
from collections.abc import Iterable

from tqdm import tqdm

from bert_export.corpus import jsonl
from bert_export.corpus.aliases import AliasTable
from bert_export.corpus.records import Entity
from bert_export.errors import UserError

_JSON_LINES = (".jsonl", ".jsonl.gz")
_SQLITE = (".sqlite", ".sqlite3", ".db")

_SCHEMA = """
CREATE TABLE entities (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, description TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE aliases (
  alias TEXT NOT NULL,
  rank INTEGER NOT NULL,  -- from 1; the likeliest first
  entity TEXT NOT NULL REFERENCES entities (id),
  PRIMARY KEY (alias, rank)
) WITHOUT ROWID;
"""


def check_output(path: str, overwrite: bool) -> None:
    """Refuses a file that `write_aliases` could not write, before work is done.

    Args:
      path: The file; its ending tells the format.
      overwrite: Whether it may exist.

    Raises:
      UserError: The ending is unknown, the directory is missing, or the file exists.
    """
    if not path.endswith((*_JSON_LINES, *_SQLITE)):
        raise UserError(
            f"--output: expected a file named {', '.join((*_JSON_LINES, *_SQLITE))}; "
            f"found {path}"
        )
    if not pathlib.Path(path).absolute().parent.is_dir():
        raise UserError(f"--output: there is no directory {pathlib.Path(path).parent}")
    if pathlib.Path(path).exists() and not overwrite:
        raise UserError(f"--output: {path} exists; replace it with --overwrite")


def write_aliases(path: str, table: AliasTable, entities: Iterable[Entity]) -> None:
    """Writes each surface form of the table with its candidates.

    JSON Lines have an object a line, `{"alias": …, "candidates": [id, …]}`, in the
    table's order; names come before aliases. SQLite has a table `aliases` (alias, rank,
    entity) and a table `entities` (id, name, description).

    Args:
      path: Ends in .jsonl, .jsonl.gz, .sqlite, .sqlite3 or .db. A reader sees the old
        file or the new one, whole.
      table: The folded or the exact alias table.
      entities: Those of the table.
    """
    rows = tqdm(table.candidates.items(), "aliases", unit="", leave=False, disable=None)
    if path.endswith(_JSON_LINES):
        jsonl.write_objects(
            path, ({"alias": alias, "candidates": ids} for alias, ids in rows)
        )
        return
    target = pathlib.Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with contextlib.closing(sqlite3.connect(temporary)) as database, database:
            database.executescript(_SCHEMA)
            database.executemany(
                "INSERT INTO entities VALUES (?, ?, ?)",
                ((entity.id, entity.name, entity.description) for entity in entities),
            )
            database.executemany(
                "INSERT INTO aliases VALUES (?, ?, ?)",
                (
                    (alias, rank, entity_id)
                    for alias, ids in rows
                    for rank, entity_id in enumerate(ids, 1)
                ),
            )
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)

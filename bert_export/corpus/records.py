"""Entity and mention records, and the book kept of the bad ones."""

from __future__ import annotations

import collections
import dataclasses
import os

from absl import logging

from bert_export.errors import UserError

# Bad records whose full message is kept for the summary.
MESSAGES_KEPT = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Entity:
    """An entry of the knowledge base.

    Attributes:
      id: Names it in mentions and results.
      name: What it is usually called.
      aliases: What else it is called.
      description: Tells it from others of its name.
      type: A group that it belongs to; accuracy is compared group by group. None
        where the knowledge base has none. The model does not see it.
    """

    id: str
    name: str
    aliases: tuple[str, ...]
    description: str
    type: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Mention:
    """A span of a text and the entity it refers to.

    Attributes:
      text: The text around the mention, not empty.
      start: Offset of the mention's first character, in Unicode code points.
      end: Offset after its last character, in Unicode code points.
      gold: Id of the entity meant; None where the knowledge base lacks it (NIL).
      candidates: Entity ids in the order of preference; None where the alias table
        is to be asked.
    """

    text: str
    start: int
    end: int
    gold: str | None
    candidates: tuple[str, ...] | None = None

    @property
    def surface(self) -> str:
        """The mention as it stands in the text."""
        return self.text[self.start : self.end]


class BadRecords:
    """Counts bad records and stops the run when there are too many.

    A record may be read more than once (one pass a split) and is counted once.
    """

    def __init__(self, max_bad_records: int = 0):
        """Makes an empty book that tolerates `max_bad_records` records."""
        self.max_bad_records = max_bad_records
        self.messages: list[str] = []
        self.by_reason: collections.Counter[tuple[str, str]] = collections.Counter()
        # As keys, which keep the order in which they came.
        self._seen: dict[tuple[str, int, str], None] = {}

    @property
    def count(self) -> int:
        """Bad records met so far."""
        return len(self._seen)

    @property
    def seen(self) -> list[tuple[str, int, str]]:
        """File, line and reason of the bad records met so far, in their order."""
        return list(self._seen)

    def add(self, path: str | os.PathLike[str], line: int, reason: str) -> None:
        """Notes a bad record, which the caller leaves out.

        Args:
          path: The file.
          line: Line number, from 1.
          reason: What is wrong, as 'kind' or 'kind: details'; the summary counts by
            kind.

        Raises:
          UserError: More records are bad than is tolerated.
        """
        name = os.fspath(path)
        if (name, line, reason) in self._seen:
            return
        self._seen[name, line, reason] = None
        self.by_reason[name, reason.split(":", 1)[0]] += 1
        message = f"{name}:{line}: {reason}"
        if len(self.messages) < MESSAGES_KEPT:
            self.messages.append(message)
        if self.count <= self.max_bad_records:
            logging.warning("bad record left out: %s", message)
        elif self.max_bad_records == 0:
            raise UserError(
                f"{message}\n(mend the record, or leave out up to N bad records with"
                " --max_bad_records=N)"
            )
        else:
            raise UserError(
                f"{message}\n(the {self.count}th bad record; --max_bad_records"
                f" tolerates {self.max_bad_records})"
            )

    def summary(self) -> dict[str, object]:
        """Returns counts a file and reason and the first messages, JSON-able."""
        files: dict[str, dict[str, int]] = {}
        for (name, kind), number in sorted(self.by_reason.items()):
            files.setdefault(name, {})[kind] = number
        return {"count": self.count, "files": files, "first": list(self.messages)}

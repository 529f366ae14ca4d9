"""What corpora of word senses share: their files, and what training must not see."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable

from bert_export.corpus import jsonl
from bert_export.corpus.records import Entity, Mention
from bert_export.corpus.splits import SPLITS
from bert_export.files import write_json


class SenseCorpus:
    """The files of a corpus: entities, the mentions of each split, a description."""

    def __init__(self, directory: pathlib.Path, description: str):
        """Names the files; writes nothing.

        Args:
          directory: Is made when the corpus is written.
          description: The name of the JSON file that says what was built.
        """
        self._directory = directory
        self._description = directory / description
        self._entities = directory / "entities.jsonl.gz"
        self._training_entities = directory / "training_entities.jsonl.gz"
        self._mentions = {
            split: directory / f"mentions.{split}.jsonl.gz" for split in SPLITS
        }

    def known(self, fingerprint: str) -> dict[str, object] | None:
        """The description, if the corpus is there and of the input with this mark."""
        paths = (self._description, self._entities, *self._mentions.values())
        if not all(path.exists() for path in paths):
            return None
        known = json.loads(self._description.read_text(encoding="utf-8"))
        if "training_entities" in known and not self._training_entities.exists():
            return None
        return known if known.get("fingerprint") == fingerprint else None

    def write(
        self,
        facts: dict[str, object],
        entities: Iterable[Entity],
        mentions: dict[str, list[Mention]],
        training_entities: list[Entity] | None = None,
    ) -> dict[str, object]:
        """Writes all files, the description last.

        Args:
          facts: For the description: the fingerprint and whatever else.
          entities: All of them.
          mentions: By split.
          training_entities: Those that are no part of the knowledge base, and
            candidates of training mentions only.

        Returns:
          The description: the facts, and how many entities and mentions there are.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        # A build that was stopped is not taken for a whole one.
        self._description.unlink(missing_ok=True)
        written = list(entities)
        jsonl.write_entities(self._entities, written)
        for split in SPLITS:
            jsonl.write_mentions(self._mentions[split], mentions[split])
        described: dict[str, object] = {
            **facts,
            "entities": len(written),
            "mentions": {split: len(mentions[split]) for split in SPLITS},
        }
        self._training_entities.unlink(missing_ok=True)
        if training_entities is not None:
            jsonl.write_entities(self._training_entities, training_entities)
            described["training_entities"] = len(training_entities)
        write_json(self._description, described)
        return described


def leave_out_held_out(
    mentions: list[Mention], splits: dict[str, str]
) -> list[Mention]:
    """Takes the synsets of dev and test out of training mentions altogether.

    As mere candidates they would always be wrong ones, and what the model learns by
    heart about their definitions is that these are never meant. Mentions that keep
    a single candidate teach nothing and go, too.
    """
    kept = []
    for mention in mentions:
        if mention.gold and splits[mention.gold] == "train":
            candidates = tuple(
                id for id in mention.candidates or () if splits[id] == "train"
            )
            if len(candidates) > 1:
                kept.append(dataclasses.replace(mention, candidates=candidates))
    return kept


def keep_texts_apart(
    mentions: dict[str, list[Mention]], fold: Callable[[str], str]
) -> int:
    """Takes out of train what is in dev or test, and out of dev what is in test.

    A sentence may illustrate several synsets.

    Args:
      mentions: By split; is changed.
      fold: Texts are the same if this makes the same of them.

    Returns:
      The number of mentions dropped.
    """
    dropped = 0
    held_out: set[str] = set()
    for split in ("test", "dev", "train"):
        kept = [m for m in mentions[split] if fold(m.text) not in held_out]
        dropped += len(mentions[split]) - len(kept)
        mentions[split] = kept
        held_out.update(fold(mention.text) for mention in kept)
    return dropped

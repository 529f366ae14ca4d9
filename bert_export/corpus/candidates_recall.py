"""Measures candidate generation: how often the gold entity is among the candidates."""

from __future__ import annotations

import dataclasses
import random
import time
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

from bert_export.config import CANDIDATE_GENERATORS
from bert_export.corpus.aliases import normalize
from bert_export.corpus.candidates import candidate_generator
from bert_export.corpus.corpus import Corpus
from bert_export.corpus.records import Mention
from bert_export.errors import UserError

_KS = (1, 2, 4, 8, 16)
_SURFACES = ("as written", "misspelt")


@dataclasses.dataclass
class _Tally:
    """Figures of one generator on one kind of surfaces."""

    found: dict[int, int]  # by k: gold entities among the first k candidates
    candidates: int = 0
    without: int = 0
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class CandidateRecall:
    """What `measure_recall` found.

    Attributes:
      split: 'train', 'dev' or 'test'.
      mentions: The mentions with a gold entity, of which everything else is told.
      nil: The other mentions of the split.
      max_candidates: The most candidates that were asked for.
      rows: A mapping for each kind of surfaces and generator: `surfaces`,
        `candidate_generation`, `recall` by k, `candidates` (mean of a mention),
        `without_candidates` (part of the mentions), `milliseconds` (CPU, mean).
    """

    split: str
    mentions: int
    nil: int
    max_candidates: int
    rows: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with stable keys."""
        return dataclasses.asdict(self)

    def table(self) -> str:
        """The figures for people."""
        ks = list(self.rows[0]["recall"])
        return (
            f"Gold entity among the first k candidates: {self.mentions:,} mentions of "
            f"{self.split} (and {self.nil:,} NIL, left out)\n\n"
        ) + tabulate(
            [
                [
                    row["surfaces"],
                    row["candidate_generation"],
                    *(f"{100 * row['recall'][k]:.1f} %" for k in ks),
                    f"{row['candidates']:.1f}",
                    f"{100 * row['without_candidates']:.1f} %",
                    f"{row['milliseconds']:.2f}",
                ]
                for row in self.rows
            ],
            headers=["surfaces", "generation", *ks, "candidates", "none", "ms"],
            disable_numparse=True,
            colalign=("left", "left", *["right"] * (len(ks) + 3)),
        )


def measure_recall(corpus: Corpus, split: str, max_candidates: int) -> CandidateRecall:
    """Asks all generators for the candidates of a split's mentions.

    Each mention is looked up as it is written and with one random edit (`misspell`),
    always the same one. Candidates that mentions have of their own are not looked at.

    Args:
      corpus: With entities and mentions.
      split: 'train', 'dev' or 'test'.
      max_candidates: The corpus's own limit, which is the largest k.

    Raises:
      UserError: The mentions cannot be read, or none has a gold entity.
    """
    generators = {
        kind: candidate_generator(kind, corpus.aliases, corpus.entities.values())
        for kind in CANDIDATE_GENERATORS
    }
    ks = [*(k for k in _KS if k < max_candidates), max_candidates]
    tallies = {
        (surfaces, kind): _Tally(dict.fromkeys(ks, 0))
        for surfaces in _SURFACES
        for kind in generators
    }
    mentions = nil = 0
    edits = random.Random(0)
    for mention in tqdm(
        corpus.mentions_as_given(split), "recall", unit=" mentions", disable=None
    ):
        if mention.gold is None:
            nil += 1
            continue
        if mention.gold not in corpus.entities:
            # Of training's own entities, which nobody looks up.
            continue
        mentions += 1
        written = (mention.surface, misspell(mention, edits))
        for surfaces, surface in zip(_SURFACES, written, strict=True):
            for kind, generator in generators.items():
                tally = tallies[surfaces, kind]
                started = time.process_time()
                candidates = generator.lookup(surface)
                tally.seconds += time.process_time() - started
                tally.candidates += len(candidates)
                tally.without += not candidates
                for k in ks:
                    tally.found[k] += mention.gold in candidates[:k]
    if not mentions:
        raise UserError(
            f"candidates: no mention of {split} has a gold entity; choose another split"
            " with --split"
        )
    rows = [
        {
            "surfaces": surfaces,
            "candidate_generation": kind,
            "recall": {str(k): tally.found[k] / mentions for k in ks},
            "candidates": tally.candidates / mentions,
            "without_candidates": tally.without / mentions,
            "milliseconds": 1000 * tally.seconds / mentions,
        }
        for (surfaces, kind), tally in tallies.items()
    ]
    return CandidateRecall(split, mentions, nil, max_candidates, rows)


def misspell(mention: Mention, edits: random.Random) -> str:
    """Returns the mention with one edit that folding does not undo.

    A character is left out, put in or replaced, or two neighbours are swapped, each
    as likely, at a random place. New characters are letters of the mention's text, so
    that they are of its script.

    Args:
      mention: The mention.
      edits: Where chance comes from.
    """
    surface = mention.surface
    letters = sorted({c for c in mention.text if c.isalnum()}) or ["x"]
    while True:
        place = edits.randrange(len(surface))
        before, here, behind = surface[:place], surface[place], surface[place + 1 :]
        letter = edits.choice(letters)
        edited = edits.choice(
            [
                before + behind,
                before + letter + here + behind,
                before + letter + behind,
                before + behind[:1] + here + behind[1:],
            ]
        )
        if edited.strip() and normalize(edited) != normalize(surface):
            return edited

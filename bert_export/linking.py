"""Links mentions with an exported artifact: candidates in, ranked candidates out."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
import shutil
import sys
import tempfile
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tabulate import tabulate

from bert_export.config import SAVED_MODELS, Config, resolve
from bert_export.corpus import jsonl
from bert_export.corpus.aliases import AliasTable
from bert_export.corpus.candidates import CandidateGenerator, candidate_generator
from bert_export.corpus.corpus import entity_text, load_corpus
from bert_export.corpus.records import BadRecords, Entity, Mention
from bert_export.errors import StageError, UserError
from bert_export.export import saved_model
from bert_export.features.pairs import PairEncoder
from bert_export.features.spec import FeatureSpec
from bert_export.features.tokenizer import load_tokenizer
from bert_export.release import manifest_file
from bert_export.training.model_fn import PROBABILITIES, SCORE

# Mentions a request.
_BATCH = 16


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A candidate as the model ranks it."""

    entity: Entity
    score: float  # log-odds that it is the entity meant
    probability: float  # the same as a probability
    share: float  # softmax of the score among the mention's candidates
    prior_rank: int  # its place in the corpus's order, from 1


@dataclasses.dataclass(frozen=True)
class LinkedMention:
    """A mention with its candidates, best first."""

    mention: Mention
    candidates: list[Candidate]
    is_nil: bool

    @property
    def prediction(self) -> str | None:
        """The entity id that the mention is linked to; None for NIL."""
        return None if self.is_nil else self.candidates[0].entity.id

    @property
    def is_right(self) -> bool:
        """Whether the prediction is the gold entity."""
        return self.prediction == self.mention.gold

    @property
    def first_is_right(self) -> bool:
        """Whether the corpus's first candidate is the gold entity."""
        return any(
            candidate.prior_rank == 1 and candidate.entity.id == self.mention.gold
            for candidate in self.candidates
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with stable keys."""
        return {
            "text": self.mention.text,
            "start": self.mention.start,
            "end": self.mention.end,
            "gold": self.mention.gold,
            "prediction": self.prediction,
            "candidates": [
                {
                    "id": candidate.entity.id,
                    "name": candidate.entity.name,
                    "score": candidate.score,
                    "probability": candidate.probability,
                    "share": candidate.share,
                    "prior_rank": candidate.prior_rank,
                }
                for candidate in self.candidates
            ],
        }


class UnreadableMention(UserError):
    """A mention that cannot be encoded, though the others of its request could."""


class ArtifactLinker:
    """A SavedModel, the tokenizer it was trained with, and entities to link to."""

    def __init__(
        self,
        artifact: Path,
        entities: str | Mapping[str, Entity] | None = None,
        workdir: str | None = None,
        candidate_generation: str | None = None,
    ) -> None:
        """Loads everything.

        Args:
          artifact: a version directory.
          entities: a JSON Lines file of entities, or the entities by id; None for
            those of the corpus that the artifact was trained on.
          workdir: where that corpus was built, if it had to be built.
          candidate_generation: one of config.CANDIDATE_GENERATORS; None for that of
            the artifact's config.

        Raises:
          UserError: the artifact or the entities cannot be read.
        """
        described = manifest_file.read_verified(artifact)
        if described["format"] not in SAVED_MODELS:
            raise UserError(
                f"link: {artifact} is in the format {described['format']}; expected a "
                "saved_model or serving_model"
            )
        config: Config = resolve(described["config"])
        bad = BadRecords(config.corpus.max_bad_records)
        if entities is None and config.corpus.builder == "jsonl":
            entities = config.corpus.entities
        self.entities: Mapping[str, Entity]
        if isinstance(entities, Mapping):
            self.entities = entities
        elif entities is not None:
            if not Path(entities).is_file():
                raise UserError(
                    f"link: there is no file {entities}; name the entities to link to "
                    "with --entities=FILE"
                )
            self.entities = {e.id: e for e in jsonl.read_entities(entities, bad)}
        elif workdir is None:
            raise UserError(
                "link: name the entities with --entities=FILE, or the --workdir in "
                "which the corpus was built"
            )
        else:
            corpus = load_corpus(config.corpus, Path(workdir), bad)
            self.entities = corpus.entities
        self._candidate_generation = (
            candidate_generation or config.corpus.candidate_generation
        )
        self._max_candidates = config.corpus.max_candidates
        if not isinstance(entities, Mapping):
            # What it needs is missed here rather than at the first mention.
            _ = self._generator
        self._fields = config.features.candidate_fields
        self._spec = FeatureSpec.from_config(config.features)
        vocab = artifact / saved_model.vocab_path(config.features.tokenizer)
        tokenizer = load_tokenizer(vocab, config.features)
        self._encoder = PairEncoder(tokenizer, config.features)
        nil = described["metrics"].get("nil")
        self._nil_threshold = nil["threshold"] if nil else 0.0
        try:
            self._model = tf.saved_model.load(str(artifact))
        except Exception as error:
            raise UserError(
                f"{artifact}: TensorFlow cannot load it: {str(error).splitlines()[0]}"
            ) from error
        self._signature = self._model.signatures[saved_model.TENSORS_SIGNATURE]

    @functools.cached_property
    def _generator(self) -> CandidateGenerator:
        """What finds candidates for the mentions without any."""
        return candidate_generator(
            self._candidate_generation,
            AliasTable(self.entities.values(), self._max_candidates),
            self.entities.values(),
        )

    @property
    def max_seq_length(self) -> int:
        """Word pieces of a pair, special ones included, at most."""
        return self._spec.max_seq_length

    def link(self, mentions: Iterable[Mention]) -> Iterator[LinkedMention]:
        """Ranks each mention's candidates, or those that are generated for it.

        A mention is NIL if it has no candidate, or none with a link probability of
        the threshold that was chosen on dev mentions.

        Raises:
          UnreadableMention: a mention has no word piece, or too many for the model.
        """
        iterator = iter(mentions)
        while batch := list(itertools.islice(iterator, _BATCH)):
            yield from self._link_batch(batch)

    def _link_batch(self, mentions: list[Mention]) -> Iterator[LinkedMention]:
        candidates = [
            mention.candidates
            if mention.candidates is not None
            else self._generator.lookup(mention.surface)
            for mention in mentions
        ]
        pairs = [
            (mention, entity_id)
            for mention, ids in zip(mentions, candidates, strict=True)
            for entity_id in ids
        ]
        scores, probabilities = (
            self.answer(self.encode(pairs)) if pairs else (np.zeros(0), np.zeros(0))
        )
        first = 0
        for mention, ids in zip(mentions, candidates, strict=True):
            rows = slice(first, first + len(ids))
            first += len(ids)
            yield self._ranked(mention, ids, scores[rows], probabilities[rows])

    def encode(self, pairs: Sequence[tuple[Mention, str]]) -> dict[str, tf.Tensor]:
        """The request of so many pairs of a mention and a candidate's id.

        Returns:
          By feature name: sequences [pairs, longest], spans [pairs].

        Raises:
          UnreadableMention: a mention has no word piece, or too many for the model.
        """
        encoded = self._encoder(
            tf.constant([mention.text for mention, _ in pairs]),
            tf.constant([mention.start for mention, _ in pairs]),
            tf.constant([mention.end for mention, _ in pairs]),
            tf.constant(
                [entity_text(self.entities[id], self._fields) for _, id in pairs]
            ),
        )
        for (mention, _), ok in zip(pairs, encoded.ok.numpy(), strict=True):
            if not ok:
                raise UnreadableMention(
                    f"link: the mention {mention.surface!r} in {mention.text!r} has no "
                    f"word piece, or more than fit max_seq_length "
                    f"{self._spec.max_seq_length}"
                )
        return encoded.dense_features(self._spec)

    def answer(
        self, features: Mapping[str, tf.Tensor]
    ) -> tuple[np.ndarray, np.ndarray]:
        """[pairs] log-odds and [pairs] probabilities of a request of `encode`.

        Raises:
          StageError: the artifact fails on it.
        """
        try:
            outputs = self._signature(**features)
        except tf.errors.OpError as error:
            raise StageError(f"link: the artifact failed: {error.message}") from error
        probabilities = outputs[PROBABILITIES].numpy()
        return outputs[SCORE].numpy(), probabilities[:, 1]

    def _ranked(
        self,
        mention: Mention,
        ids: tuple[str, ...],
        scores: np.ndarray,
        probabilities: np.ndarray,
    ) -> LinkedMention:
        shares = tf.nn.softmax(scores).numpy() if len(ids) else scores
        candidates = [
            Candidate(
                self.entities[ids[index]],
                float(scores[index]),
                float(probabilities[index]),
                float(shares[index]),
                int(index) + 1,
            )
            for index in np.argsort(-scores, kind="stable")
        ]
        is_nil = not candidates or candidates[0].probability < self._nil_threshold
        return LinkedMention(mention, candidates, is_nil)


def read_input(
    texts: list[str], path: str | None, entities: Container[str]
) -> Iterator[Mention]:
    """Mentions from marked sentences, then from a file of them or of JSON Lines.

    Args:
      texts: sentences with the mention in [[double brackets]].
      path: a file of such sentences, one a line, or of mentions as JSON Lines; '-'
        for standard input; None for no file.
      entities: the ids that the JSON Lines may name.

    Raises:
      UserError: the file cannot be read or a line has no mention; it says which.
    """
    for text in texts:
        yield jsonl.parse_marked_text(text)
    if path == "-":
        with tempfile.NamedTemporaryFile() as copy:
            shutil.copyfileobj(sys.stdin.buffer, copy)
            copy.flush()
            try:
                yield from _read_file(copy.name, entities)
            except UserError as error:
                message = str(error).replace(copy.name, "standard input")
                raise UserError(message) from error
    elif path is not None:
        yield from _read_file(path, entities)


def _read_file(path: str, entities: Container[str]) -> Iterator[Mention]:
    if _is_json_lines(path):
        yield from jsonl.read_mentions(path, BadRecords(), entities)
    else:
        yield from _marked_lines(path)


def sample(mentions: Iterable[Mention], size: int) -> Iterator[Mention]:
    """At most `size` mentions, in their order; the same ones on every call.

    One pass with a reservoir of `size` (Vitter 1985, algorithm R).
    """
    drawn: list[tuple[int, Mention]] = []
    generator = random.Random(0)
    for number, mention in enumerate(mentions):
        if len(drawn) < size:
            drawn.append((number, mention))
        elif (place := generator.randrange(number + 1)) < size:
            drawn[place] = (number, mention)
    for _, mention in sorted(drawn, key=lambda item: item[0]):
        yield mention


def _is_json_lines(path: str) -> bool:
    """Whether the file is gzip, as only JSON Lines may be, or starts with a brace."""
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise UserError(f"link: cannot read {path}: {error.strerror}") from error
    return head.startswith(b"\x1f\x8b") or head.lstrip().startswith(b"{")


def _marked_lines(path: str) -> Iterator[Mention]:
    # Editors on Windows put a byte order mark first.
    with open(path, encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield jsonl.parse_marked_text(line.strip())
                    except UserError as error:
                        raise UserError(f"{path}:{number}: {error}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"link: {path} is not UTF-8: {error}") from error


def table(linked: Iterable[LinkedMention], top: int, show: int | None = None) -> str:
    """Ranked candidates for people: a block a mention, and the totals.

    Where the gold entity is known, it is marked, and the links are compared with
    always taking the corpus's first candidate (the most frequent sense).

    Args:
      linked: what to show.
      top: candidates to show of each mention.
      show: mentions to show, spread over `linked`; None for all.
    """
    width = max(60, shutil.get_terminal_size((100, 24)).columns)
    results = list(linked)
    shown = results
    if show is not None and show < len(results):
        shown = [results[i * len(results) // show] for i in range(show)]
    blocks = [_block(result, top, width) for result in shown]
    known = [result for result in results if result.mention.gold is not None]
    if known:
        rows = [
            ("linked by the model", sum(result.is_right for result in known)),
            ("first candidate", sum(result.first_is_right for result in known)),
        ]
        blocks.append(
            tabulate(
                [
                    [name, right, len(known), f"{100 * right / len(known):.1f} %"]
                    for name, right in rows
                ],
                headers=["", "right", "of", ""],
            )
        )
    return "\n\n".join(blocks)


def _block(result: LinkedMention, top: int, width: int) -> str:
    mention = result.mention
    marked = (
        f"{mention.text[: mention.start]}[[{mention.surface}]]"
        f"{mention.text[mention.end :]}"
    )
    title = marked
    if not result.candidates:
        return f"{title}\n  NIL: no entity has this name"
    if result.is_nil:
        title += "\n  NIL: no candidate is likely enough"
    if mention.gold is not None:
        model, first = (
            "right" if is_right else "wrong"
            for is_right in (result.is_right, result.first_is_right)
        )
        title += f"\n  model {model}, first candidate {first}"
    rows = [
        [
            rank,
            f"{100 * candidate.share:.1f} %",
            f"{candidate.probability:.3f}",
            candidate.prior_rank,
            _shortened(entity_text(candidate.entity), width - 45),
            "← gold" if candidate.entity.id == mention.gold else "",
        ]
        for rank, candidate in enumerate(result.candidates, 1)
        if rank <= top or candidate.entity.id == mention.gold
    ]
    headers = ["rank", "share", "probability", "prior", "candidate", ""]
    body = tabulate(rows, headers=headers, disable_numparse=True)
    return title + "\n" + "\n".join("  " + line for line in body.splitlines())


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width - 1, 1)] + "…"

"""Has a retrained model and the one in production answer the same mentions now."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from bert_export.config import Config
from bert_export.corpus import jsonl
from bert_export.corpus.corpus import Corpus, load_corpus
from bert_export.corpus.records import BadRecords, Entity, Mention
from bert_export.corpus.scripts import script_of
from bert_export.errors import UserError
from bert_export.linking import (
    ArtifactLinker,
    LinkedMention,
    UnreadableMention,
    sample,
)
from bert_export.release import gate, gate_report, manifest
from bert_export.release.gate import Answers, Scored
from bert_export.training.metrics import SIZE_GROUPS

FORMAT_VERSION = 1
# Mentions a request.
_BATCH = 16
# Real requests that are timed, how often each one is, and seconds after which no
# further round begins.
_TIMED_REQUESTS = 100
_ROUNDS = 3
_TIMED_SECONDS = 20
# Mentions that are listed with both answers.
_EXAMPLES = 20
_UNTYPED = "no type"


def judge(
    config: Config,
    workdir: Path,
    *,
    candidate: Path,
    production: Path | None,
    proofs: Mapping[str, str | None],
    output_dir: Path,
    run_id: str,
    version: int,
    production_version: int | None,
) -> dict[str, Any]:
    """Scores both models on the same mentions and writes the gate's verdict.

    Each model reads the mentions with its own vocabulary and features and calls NIL
    with the threshold in its own manifest; the candidates are those of `config`.

    Args:
      config: the run's; `config.gate` has the limits.
      workdir: where the corpus was built, if it had to be built.
      candidate: the new saved_model's directory.
      production: the published one's; None if there is none, or the candidate is to
        be judged by itself.
      proofs: by target, why its proof failed; None where it passed.
      output_dir: for gate.json, report.md, report.html and plots; it is replaced.
      run_id: names the run.
      version: the candidate's.
      production_version: the published one's.

    Returns:
      The content of gate.json, see docs/gate.md.

    Raises:
      UserError: the corpus, the golden mentions or an artifact cannot be read, or
        there is no mention to judge by.
      StageError: a model failed on a request.
    """
    corpus, sets = mention_sets(config, workdir)
    linkers = {"candidate": _load("candidate", candidate, corpus.entities)}
    if production is not None:
        linkers["production"] = _load("production", production, corpus.entities)
    answered = {
        name: {model: link(linker, mentions) for model, linker in linkers.items()}
        for name, mentions in sets.items()
    }
    scored = [
        _scored(name, sets[name], corpus.entities, answers)
        for name, answers in answered.items()
    ]
    verdict = gate.decide(
        config.gate,
        scored,
        {
            "candidate": artifact_bytes(candidate),
            "production": None if production is None else artifact_bytes(production),
        },
        latencies(linkers, _readable(answered["held_out"])),
        proofs,
    )
    metrics = verdict.pop("metrics")
    metrics["held_out"]["split"] = config.eval.split
    if "golden" in metrics:
        metrics["golden"]["in_train"] = _in_train(corpus, sets["golden"])
    described = {
        "format_version": FORMAT_VERSION,
        "name": config.name,
        "run_id": run_id,
        "version": version,
        "production_version": production_version,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(
            timespec="seconds"
        ),
        "passed": verdict.pop("passed"),
        "criteria": verdict.pop("criteria"),
        "limits": dataclasses.asdict(config.gate),
        "metrics": metrics,
        **verdict,
        "changes": {name: _changes(answers) for name, answers in answered.items()},
    }
    gate_report.write(output_dir, described)
    return described


def mention_sets(
    config: Config, workdir: Path
) -> tuple[Corpus, dict[str, list[Mention]]]:
    """What the models are judged by; also tells early that nothing is wrong with it.

    Returns:
      The corpus, and by name the mentions: 'held_out', at most gate.max_mentions of
      eval.split, and 'golden', all of gate.golden_mentions, if there are any. Their
      candidates are those of the corpus or of the golden file, else those that the
      config's candidate generation finds.

    Raises:
      UserError: the corpus or the golden mentions cannot be read, or there is no
        held-out mention with an entity.
    """
    bad = BadRecords(config.corpus.max_bad_records)
    corpus = load_corpus(config.corpus, workdir, bad)
    held_out = corpus.mentions(config.eval.split)
    most = config.gate.max_mentions
    sets = {"held_out": list(held_out if most is None else sample(held_out, most))}
    if all(mention.gold is None for mention in sets["held_out"]):
        raise UserError(
            f"the gate has no mention with an entity to judge by: the "
            f"{config.eval.split} split has {len(sets['held_out'])} mentions, none of "
            f"them with one; set config.corpus.{config.eval.split}_mentions or "
            f"config.corpus.{config.eval.split}_fraction, or config.eval.split"
        )
    if path := config.gate.golden_mentions:
        # None may be left out: the set stays the same from run to run.
        golden = jsonl.read_mentions(path, BadRecords(), corpus.entities)
        try:
            sets["golden"] = [_with_candidates(m, corpus, config) for m in golden]
        except UserError as error:
            raise UserError(
                f"config.gate.golden_mentions: {str(error).splitlines()[0]}; mend the "
                "file, which is never judged in part"
            ) from error
    return corpus, sets


def _with_candidates(mention: Mention, corpus: Corpus, config: Config) -> Mention:
    found = mention.candidates
    if found is None:
        found = corpus.generator.lookup(mention.surface)
    limit = config.corpus.max_candidates
    return dataclasses.replace(mention, candidates=found[:limit])


def _in_train(corpus: Corpus, mentions: Sequence[Mention]) -> int:
    """How many mentions have a text that training has seen."""
    seen = {mention.text for mention in mentions}
    seen &= {m.text for m in corpus.mentions_as_given("train") if m.text in seen}
    return sum(mention.text in seen for mention in mentions)


def _load(what: str, artifact: Path, entities: Mapping[str, Entity]) -> ArtifactLinker:
    try:
        return ArtifactLinker(artifact, entities)
    except UserError as error:
        message = str(error).removeprefix("link: ")
        raise UserError(f"the gate cannot load the {what}: {message}") from error


def link(
    linker: ArtifactLinker, mentions: Sequence[Mention]
) -> list[LinkedMention | None]:
    """A model's answers in the order of the mentions; None where it cannot read one.

    Raises:
      StageError: the model failed on a request.
    """
    answers: list[LinkedMention | None] = []
    with tqdm(
        total=len(mentions), unit=" mentions", desc="gate", disable=None
    ) as progress:
        for first in range(0, len(mentions), _BATCH):
            batch = mentions[first : first + _BATCH]
            try:
                answers += linker.link(batch)
            except UnreadableMention:
                answers += itertools.chain.from_iterable(
                    _link_one(linker, mention) for mention in batch
                )
            progress.update(len(batch))
    return answers


def _link_one(
    linker: ArtifactLinker, mention: Mention
) -> list[LinkedMention] | list[None]:
    try:
        return list(linker.link([mention]))
    except UnreadableMention:
        return [None]


def _scored(
    name: str,
    mentions: Sequence[Mention],
    entities: Mapping[str, Entity],
    answered: Mapping[str, Sequence[LinkedMention | None]],
) -> Scored:
    """A set of mentions with its slices and what the models answered."""
    slices = {
        "candidates": [_size_group(len(m.candidates or ())) for m in mentions],
        "script": [script_of(m.text) for m in mentions],
    }
    types = [
        None if m.gold is None else entities[m.gold].type or _UNTYPED for m in mentions
    ]
    if any(kind not in (None, _UNTYPED) for kind in types):
        # Mentions without an entity are in no slice of any kind.
        slices["type"] = [kind or _UNTYPED for kind in types]
    texts: dict[str, int] = {}
    production = answered.get("production")
    return Scored(
        name=name,
        is_nil=np.array([mention.gold is None for mention in mentions], bool),
        texts=np.array([texts.setdefault(m.text, len(texts)) for m in mentions]),
        slices=slices,
        candidate=_answers(answered["candidate"]),
        production=None if production is None else _answers(production),
    )


def _size_group(candidates: int) -> str:
    """The group of `metrics.SIZE_GROUPS`; '0' for none."""
    for name, fewest, most in SIZE_GROUPS:
        if fewest <= candidates <= most:
            return name
    return "0"


def _answers(linked: Sequence[LinkedMention | None]) -> Answers:
    return Answers(
        rank=np.array([_rank(result) for result in linked], np.int64),
        calls_nil=np.array([bool(result and result.is_nil) for result in linked]),
        unreadable=np.array([result is None for result in linked]),
    )


def _rank(result: LinkedMention | None) -> int:
    """The gold entity's place, candidates that score as high before it; 0 for none."""
    if result is None:
        return 0
    gold = [c.score for c in result.candidates if c.entity.id == result.mention.gold]
    if not gold:
        return 0
    return sum(candidate.score >= gold[0] for candidate in result.candidates)


def artifact_bytes(artifact: Path) -> int:
    """The size of all files that an artifact's manifest lists."""
    files = manifest.read(artifact)["files"]
    return sum(described["bytes"] for described in files.values())


def _readable(
    answered: Mapping[str, Sequence[LinkedMention | None]],
) -> list[Mention]:
    """Mentions with candidates that every model could read."""
    return [
        results[0].mention
        for results in zip(*answered.values(), strict=True)
        if results[0] is not None and all(results) and results[0].candidates
    ]


def latencies(
    linkers: Mapping[str, ArtifactLinker], mentions: Sequence[Mention]
) -> dict[str, Any]:
    """How long the models take for a mention with its candidates, in turns.

    Each request is built by the model's own vocabulary beforehand. The models answer
    one after the other, the first one second the next time, so that whatever else the
    machine does slows all of them alike.

    Args:
      linkers: the models by name.
      mentions: with candidates; those that are timed are spread over them.

    Returns:
      By model `median_ms`, `p95_ms` and `runs`; 'candidate' and 'production' are
      always there, None where there is no such model.
    """
    chosen = list(sample(mentions, _TIMED_REQUESTS))
    found: dict[str, Any] = {"candidate": None, "production": None}
    if not chosen:
        raise UserError(
            "the gate has no request to time: no held-out mention has candidates and "
            "can be read"
        )
    requests: dict[str, list[dict[str, tf.Tensor]]] = {
        name: [
            linker.encode([(mention, id) for id in mention.candidates or ()])
            for mention in chosen
        ]
        for name, linker in linkers.items()
    }
    milliseconds: dict[str, list[float]] = {name: [] for name in linkers}
    order = list(linkers)
    for name in order:
        for request in requests[name]:
            linkers[name].answer(request)
    started = time.perf_counter()
    for _ in range(_ROUNDS):
        if time.perf_counter() - started > _TIMED_SECONDS:
            break
        for number in range(len(chosen)):
            for name in order:
                before = time.perf_counter()
                linkers[name].answer(requests[name][number])
                milliseconds[name].append(1000 * (time.perf_counter() - before))
            order.reverse()
    for name, times in milliseconds.items():
        found[name] = {
            "median_ms": float(np.median(times)),
            "p95_ms": float(np.percentile(times, 95)),
            "runs": len(times),
        }
    return found


def _changes(
    answered: Mapping[str, Sequence[LinkedMention | None]],
) -> dict[str, Any] | None:
    """Where the models differ; None without production.

    Returns:
      `won` and `lost`: mentions that only the candidate, or only production, answers
      rightly, NIL included; `examples`: some that are lost, spread over them.
    """
    if "production" not in answered:
        return None
    won, lost = 0, []
    pairs = zip(answered["candidate"], answered["production"], strict=True)
    for new, old in pairs:
        new_right, old_right = (bool(x and x.is_right) for x in (new, old))
        won += new_right and not old_right
        if old_right and not new_right:
            assert old is not None
            lost.append(_example(new, old))
    few = min(_EXAMPLES, len(lost))
    shown = [lost[number * len(lost) // few] for number in range(few)]
    return {"won": int(won), "lost": len(lost), "examples": shown}


def _example(new: LinkedMention | None, old: LinkedMention) -> dict[str, Any]:
    mention = old.mention
    names = {c.entity.id: c.entity.name for c in old.candidates}

    def named(entity_id: str | None) -> str | None:
        return None if entity_id is None else names.get(entity_id, entity_id)

    return {
        "text": mention.text,
        "start": mention.start,
        "end": mention.end,
        "gold": mention.gold,
        "gold_name": named(mention.gold),
        "candidate": None if new is None else new.prediction,
        "candidate_name": None if new is None else named(new.prediction),
        "candidate_unreadable": new is None,
    }

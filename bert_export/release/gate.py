"""The gate: holds a candidate's answers against production's and decides.

Pure numpy, nothing of a model: `judge.py` has the models answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bert_export.config import GateConfig

# Equal figures differ in their last digits after another order of summation.
_TOLERANCE = 1e-9
# Numbers drawn at a time.
_BLOCK = 1 << 20
_SEED = 17
METRICS = {"link_accuracy": "link accuracy", "mrr": "MRR", "nil_f1": "NIL F1"}
SETS = {"held_out": "held-out", "golden": "golden"}


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a model answered to the mentions of a set.

    Attributes:
      rank: [mentions] int: place of the gold entity, counted from 1, candidates that
        score as high as it before it; 0 where it is not among the candidates, where
        there is none, and where the model could not read the mention.
      calls_nil: [mentions] bool: the model says that the knowledge base lacks the
        entity.
      unreadable: [mentions] bool: the model could not read the mention.
    """

    rank: np.ndarray
    calls_nil: np.ndarray
    unreadable: np.ndarray


@dataclasses.dataclass(frozen=True)
class Scored:
    """A set of mentions with the answers of both models.

    Attributes:
      name: one of SETS.
      is_nil: [mentions] bool: the knowledge base lacks the entity.
      texts: [mentions] int: equal for the mentions of one text.
      slices: by what mentions are grouped: the group of each.
      candidate: answers of the new model.
      production: answers of the published one; None if there is none.
    """

    name: str
    is_nil: np.ndarray
    texts: np.ndarray
    slices: Mapping[str, Sequence[str]]
    candidate: Answers
    production: Answers | None


def decide(
    config: GateConfig,
    sets: Sequence[Scored],
    size: Mapping[str, int | None],
    latency: Mapping[str, Any],
    proofs: Mapping[str, str | None],
) -> dict[str, Any]:
    """Holds all figures against the config's limits.

    Args:
      config: the limits.
      sets: the held-out mentions first, then the golden ones if there are any.
      size: bytes of the artifacts, by 'candidate' and 'production' (None: no such).
      latency: of both, each with `median_ms` (None: no such).
      proofs: by target, why its proof failed; None where it passed.

    Returns:
      JSON-able: `passed`, `criteria`, `metrics` by set, `slices`, `size`, `latency`
      and `proofs`, as docs/gate.md describes them.
    """
    criteria = [
        _criterion(
            f"proof.{target}",
            reason is None,
            detail=f"the proof of {target} "
            + ("passed" if reason is None else f"failed: {reason}"),
        )
        for target, reason in proofs.items()
    ]
    metrics: dict[str, Any] = {}
    slices: list[dict[str, Any]] = []
    for scored in sets:
        measured = measure(scored, config.confidence, config.bootstrap_samples)
        metrics[scored.name] = measured
        if scored.name == "held_out":
            criteria.append(_lowest_accuracy(config, measured))
        if scored.production is not None:
            criteria += [_drop(config, scored.name, m, measured) for m in METRICS]
        slices += _slices(config, scored)
    criteria += [_slice_drop(config, entry) for entry in slices if entry["judged"]]
    if size["production"] is not None:
        criteria.append(
            _ratio_limit(
                "size",
                "size of the saved_model",
                {name: (size[name] or 0) / 1e6 for name in ("candidate", "production")},
                "MB",
                config.max_size_ratio,
            )
        )
        criteria.append(
            _ratio_limit(
                "latency",
                "median latency of a mention with its candidates",
                {n: latency[n]["median_ms"] for n in ("candidate", "production")},
                "ms",
                config.max_latency_ratio,
            )
        )
    return {
        "passed": all(criterion["passed"] for criterion in criteria),
        "criteria": criteria,
        "metrics": metrics,
        "slices": slices,
        "size": dict(size),
        "latency": dict(latency),
        "proofs": dict(proofs),
    }


def measure(scored: Scored, confidence: float, samples: int) -> dict[str, Any]:
    """The figures of a set: of both models, and of their difference.

    The difference has the ends of its one-sided intervals by the paired bootstrap
    (Koehn 2004, https://aclanthology.org/W04-3250), with percentiles (Efron and
    Tibshirani 1993, chapter 13): both models are measured on texts drawn with
    replacement, each with all its mentions.

    Returns:
      `mentions`, `in_kb`, `nil`, `unreadable` by model, and by name of METRICS
      `candidate`, `production`, `difference`, `lower` and `upper`, parts of 1; None
      where the set has no mention to measure it on, or there is no production model.
    """
    nil = int(scored.is_nil.sum())
    in_kb = len(scored.is_nil) - nil
    found: dict[str, Any] = {
        "mentions": len(scored.is_nil),
        "in_kb": in_kb,
        "nil": nil,
        "unreadable": {
            "candidate": int(scored.candidate.unreadable.sum()),
            "production": None
            if scored.production is None
            else int(scored.production.unreadable.sum()),
        },
    }
    for metric in METRICS:
        counted = nil if metric == "nil_f1" else in_kb
        found[metric] = _compare(scored, metric, confidence, samples, counted > 0)
    return found


def _compare(
    scored: Scored, metric: str, confidence: float, samples: int, measurable: bool
) -> dict[str, float | None]:
    names = ("candidate", "production", "difference", "lower", "upper")
    unknown: dict[str, float | None] = dict.fromkeys(names)
    if not measurable:
        return unknown
    parts = _parts(scored.is_nil, scored.candidate, metric)
    candidate = float(_quotient(parts.sum(axis=1)))
    if scored.production is None:
        return unknown | {"candidate": candidate}
    before = _parts(scored.is_nil, scored.production, metric)
    production = float(_quotient(before.sum(axis=1)))
    drawn = bootstrap(np.concatenate([parts, before]), scored.texts, samples)
    differences = _quotient(drawn[:2]) - _quotient(drawn[2:])
    ends = np.quantile(differences, [1 - confidence, confidence])
    found = (candidate, production, candidate - production, *map(float, ends))
    return dict(zip(names, found, strict=True))


def _parts(is_nil: np.ndarray, answers: Answers, metric: str) -> np.ndarray:
    """[2, mentions] float: what each mention adds above and below a metric's bar."""
    if metric == "nil_f1":
        return np.stack(
            [2.0 * (answers.calls_nil & is_nil), 1.0 * answers.calls_nil + is_nil]
        )
    if metric == "link_accuracy":
        right = 1.0 * (answers.rank == 1)
    else:
        right = np.where(answers.rank > 0, 1 / np.maximum(answers.rank, 1), 0.0)
    return np.stack([np.where(is_nil, 0.0, right), 1.0 * ~is_nil])


def _quotient(parts: np.ndarray) -> np.ndarray:
    """[2, ...] → [...]: the first by the second; 0 where both are."""
    above, below = parts
    return above / np.where(below == 0, 1.0, below)


def bootstrap(parts: np.ndarray, texts: np.ndarray, samples: int) -> np.ndarray:
    """Sums over texts that are drawn with replacement; the same on every call.

    Args:
      parts: [n, mentions] float: what each mention adds to each of n sums.
      texts: [mentions] int: equal for the mentions of one text.
      samples: how often as many texts are drawn as there are.

    Returns:
      [n, samples] float: the sums over each draw.
    """
    _, text = np.unique(texts, return_inverse=True)
    count = int(text.max()) + 1
    by_text = np.stack([np.bincount(text, row, minlength=count) for row in parts])
    generator = np.random.default_rng(_SEED)
    at_once = max(1, _BLOCK // count)
    sums = []
    for first in range(0, samples, at_once):
        size = min(at_once, samples - first), count
        drawn = generator.integers(count, size=size)
        sums.append(by_text[:, drawn].sum(axis=2))
    return np.concatenate(sums, axis=1)


def _slices(config: GateConfig, scored: Scored) -> list[dict[str, Any]]:
    """Link accuracy of both models, slice by slice, the largest of a kind first."""
    found: list[dict[str, Any]] = []
    in_kb = ~scored.is_nil
    for kind, labels in scored.slices.items():
        names = np.array(labels, dtype=object)
        rows: list[dict[str, Any]] = []
        for name in sorted(set(labels)):
            chosen = (names == name) & in_kb
            mentions = int(chosen.sum())
            if not mentions:
                continue
            candidate = float((scored.candidate.rank[chosen] == 1).mean())
            production = change = None
            if scored.production is not None:
                production = float((scored.production.rank[chosen] == 1).mean())
                change = candidate - production
            passed = None
            if change is not None and mentions >= config.min_slice_mentions:
                passed = _at_least(change, config.slice_max_drop)
            rows.append(
                {
                    "set": scored.name,
                    "by": kind,
                    "name": name,
                    "mentions": mentions,
                    "candidate": candidate,
                    "production": production,
                    "difference": change,
                    "judged": passed is not None,
                    "passed": passed,
                }
            )
        found += sorted(rows, key=lambda row: row["mentions"], reverse=True)
    return found


def _criterion(
    name: str,
    passed: bool,
    *,
    value: float | None = None,
    limit: float | None = None,
    unit: str | None = None,
    detail: str,
) -> dict[str, Any]:
    return {
        "name": name,
        "passed": bool(passed),
        "value": value,
        "limit": limit,
        "unit": unit,
        "detail": detail,
    }


def _lowest_accuracy(config: GateConfig, measured: Mapping[str, Any]) -> dict[str, Any]:
    value = 100 * measured["link_accuracy"]["candidate"]
    return _criterion(
        "held_out.min_link_accuracy",
        value >= config.min_link_accuracy - _TOLERANCE,
        value=value,
        limit=config.min_link_accuracy,
        unit="percent",
        detail=f"link accuracy on the held-out mentions is {value:.2f} %, expected "
        f"{config.min_link_accuracy:g} % or more",
    )


def _drop(
    config: GateConfig, name: str, metric: str, measured: Mapping[str, Any]
) -> dict[str, Any]:
    limit = config.max_drop if name == "held_out" else config.golden_max_drop
    found = measured[metric]
    what = f"{METRICS[metric]} on the {SETS[name]} mentions"
    if found["difference"] is None:
        value, passed = None, True
        kind = "NIL mention" if metric == "nil_f1" else "mention with an entity"
        detail = f"{what}: not judged, there is no {kind} among them"
    else:
        value = 100 * found["lower"]
        passed = _at_least(found["lower"], limit)
        detail = (
            f"{what} went from {100 * found['production']:.2f} to "
            f"{100 * found['candidate']:.2f} % ({signed(100 * found['difference'])} "
            f"points); with {100 * config.confidence:g} % confidence the difference is "
            f"{signed(value)} points or more, expected {signed(-limit)} or more"
        )
        margin = 100 * (found["difference"] - found["lower"])
        if not passed and margin > limit:
            counted = measured["mentions" if metric == "nil_f1" else "in_kb"]
            detail += (
                f"; {counted:,} mentions tell models apart to within "
                f"{margin:.2f} points only, so take more of them or a wider limit"
            )
    return _criterion(
        f"{name}.{metric}",
        passed,
        value=value,
        limit=-limit,
        unit="points",
        detail=detail,
    )


def _slice_drop(config: GateConfig, entry: Mapping[str, Any]) -> dict[str, Any]:
    value = 100 * entry["difference"]
    return _criterion(
        f"{entry['set']}.slice.{entry['by']}.{entry['name']}",
        entry["passed"],
        value=value,
        limit=-config.slice_max_drop,
        unit="points",
        detail=f"link accuracy on the {entry['mentions']:,} {SETS[entry['set']]} "
        f"mentions of {entry['by']} {entry['name']} went from "
        f"{100 * entry['production']:.2f} to {100 * entry['candidate']:.2f} % "
        f"({signed(value)} points), expected {signed(-config.slice_max_drop)} or more",
    )


def _ratio_limit(
    name: str, what: str, values: Mapping[str, float], unit: str, limit: float
) -> dict[str, Any]:
    ratio = values["candidate"] / values["production"]
    return _criterion(
        name,
        ratio <= limit + _TOLERANCE,
        value=ratio,
        limit=limit,
        unit="times",
        detail=f"{what} went from {values['production']:.4g} to "
        f"{values['candidate']:.4g} {unit} ({ratio:.2f} times), expected at most "
        f"{limit:g} times",
    )


def _at_least(difference: float, max_drop: float) -> bool:
    return 100 * difference >= -max_drop - _TOLERANCE


def signed(points: float) -> str:
    """'+0.42', '−1.30' or '0.00'."""
    text = f"{points:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "−")

"""Link accuracy, MRR, ROC-AUC and NIL detection from scores, beside baselines."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from bert_export.features.records import MISSED, NIL

# (name, fewest, most) candidates of the groups that accuracy is broken down by.
SIZE_GROUPS = (
    ("1", 1, 1),
    ("2", 2, 2),
    ("3", 3, 3),
    ("4-5", 4, 5),
    ("6-9", 6, 9),
    ("10+", 10, np.inf),
)


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Scored candidates of a split's mentions, in the order of the records."""

    scores: np.ndarray  # [pairs] float
    probabilities: np.ndarray  # [pairs] float: of a link
    sizes: np.ndarray  # [mentions] int: candidates of each mention
    gold: np.ndarray  # [mentions] int: its index among them, or NIL or MISSED
    # Mentions that have no candidate at all.
    nil_without_candidates: int = 0
    missed_without_candidates: int = 0

    @property
    def starts(self) -> np.ndarray:
        """[mentions] int: index of each mention's first pair."""
        return np.cumsum(self.sizes) - self.sizes

    @property
    def top_probability(self) -> np.ndarray:
        """[mentions] float: the highest link probability of each mention."""
        return np.maximum.reduceat(self.probabilities, self.starts)


def choose_nil_threshold(dev: Ranking) -> float | None:
    """The link probability below which a mention is called NIL, with the best F1.

    Args:
      dev: the scored dev split.

    Returns:
      A threshold half-way between two neighbouring probabilities; None if the split
      has no NIL mention with candidates, or nothing but such, to choose by.
    """
    is_nil = dev.gold == NIL
    if not is_nil.any() or is_nil.all():
        return None
    order = np.argsort(dev.top_probability, kind="stable")
    top, is_nil = dev.top_probability[order], is_nil[order]
    # Calling the first n mentions NIL, for every n that a threshold can tell apart.
    called = np.arange(1, len(top) + 1)
    f1 = 2 * np.cumsum(is_nil) / (called + is_nil.sum())
    f1[:-1][top[1:] == top[:-1]] = -1
    best = int(np.argmax(f1))
    above = top[best + 1] if best + 1 < len(top) else 1.0
    return float((top[best] + above) / 2)


def link_metrics(ranking: Ranking, nil_threshold: float | None) -> dict[str, Any]:
    """All figures of one split.

    Link accuracy and MRR count every mention whose gold is in the knowledge base,
    those whose candidates miss it as wrong; a tie with the gold is a miss.

    Args:
      ranking: the scored split.
      nil_threshold: from `choose_nil_threshold`; None leaves NIL figures out.

    Returns:
      JSON-able figures; None where there is nothing to measure.
    """
    linked = ranking.gold >= 0
    missed = int((ranking.gold == MISSED).sum()) + ranking.missed_without_candidates
    in_kb = int(linked.sum()) + missed
    ranks = _gold_ranks(ranking)
    sizes = ranking.sizes[linked]
    return {
        "mentions": len(ranking.sizes)
        + ranking.nil_without_candidates
        + ranking.missed_without_candidates,
        "pairs": len(ranking.scores),
        "link_accuracy": _ratio((ranks == 1).sum(), in_kb),
        "mrr": _ratio((1 / ranks).sum(), in_kb),
        "candidate_recall": _ratio(linked.sum(), in_kb),
        "baselines": {
            "first_candidate": _ratio((ranking.gold == 0).sum(), in_kb),
            "random": _ratio((1 / sizes).sum(), in_kb),
        },
        "by_candidates": [
            {
                "candidates": name,
                "mentions": int(chosen.sum()),
                "link_accuracy": _ratio((ranks[chosen] == 1).sum(), chosen.sum()),
                "first_candidate": _ratio(
                    (ranking.gold[linked][chosen] == 0).sum(), chosen.sum()
                ),
                "random": _ratio((1 / sizes[chosen]).sum(), chosen.sum()),
            }
            for name, low, high in SIZE_GROUPS
            for chosen in [(sizes >= low) & (sizes <= high)]
            if chosen.any()
        ],
        "roc_auc": _roc_auc(ranking),
        "nil": _nil_metrics(ranking, nil_threshold),
    }


def _gold_ranks(ranking: Ranking) -> np.ndarray:
    """[linked mentions] int: 1 + the rivals that score as high as the gold."""
    linked = ranking.gold >= 0
    gold_scores = np.full(len(ranking.sizes), np.inf)
    gold_scores[linked] = ranking.scores[ranking.starts[linked] + ranking.gold[linked]]
    rivals = ranking.scores >= np.repeat(gold_scores, ranking.sizes)
    # The gold itself is among those that score as high as it.
    return np.add.reduceat(rivals, ranking.starts, dtype=np.int64)[linked]


def _roc_auc(ranking: Ranking) -> float | None:
    """The chance that a link scores above a non-link (Mann-Whitney U), ties half."""
    labels = np.zeros(len(ranking.scores), bool)
    linked = ranking.gold >= 0
    labels[ranking.starts[linked] + ranking.gold[linked]] = True
    values, inverse = np.unique(ranking.scores, return_inverse=True)
    links = np.bincount(inverse[labels], minlength=len(values))
    others = np.bincount(inverse[~labels], minlength=len(values))
    below = np.cumsum(others) - others
    wins = (links * (below + others / 2)).sum()
    return _ratio(wins, float(links.sum()) * float(others.sum()))


def _nil_metrics(ranking: Ranking, threshold: float | None) -> dict[str, Any] | None:
    without = ranking.nil_without_candidates, ranking.missed_without_candidates
    is_nil = ranking.gold == NIL
    total = int(is_nil.sum()) + without[0]
    if threshold is None or not total:
        return None
    called = ranking.top_probability < threshold
    # A mention without candidates is always called NIL.
    right = int((called & is_nil).sum()) + without[0]
    calls = int(called.sum()) + sum(without)
    return {
        "mentions": total,
        "threshold": threshold,
        "precision": _ratio(right, calls),
        "recall": _ratio(right, total),
        "f1": _ratio(2 * right, calls + total),
    }


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None

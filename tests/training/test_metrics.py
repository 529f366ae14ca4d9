"""Link metrics against figures worked out by hand and by brute force."""

import itertools

import numpy as np
import pytest

from bert_export.features.records import MISSED, NIL
from bert_export.training.metrics import Ranking, choose_nil_threshold, link_metrics


def ranking(mentions, **kwargs):
    """Of (scores, gold) pairs; the probability is the score's sigmoid."""
    scores = np.concatenate([np.array(s, np.float64) for s, _ in mentions])
    return Ranking(
        scores,
        1 / (1 + np.exp(-scores)),
        np.array([len(s) for s, _ in mentions]),
        np.array([gold for _, gold in mentions]),
        **kwargs,
    )


def test_figures_worked_out_by_hand():
    metrics = link_metrics(
        ranking(
            [
                ([3.0, 1.0], 0),  # right
                ([1.0, 2.0, 3.0], 1),  # second place
                ([0.0, 5.0], 1),  # right
                ([1.0, -1.0], MISSED),
            ],
            missed_without_candidates=1,
        ),
        None,
    )
    assert metrics["mentions"] == 5
    assert metrics["pairs"] == 9
    assert metrics["link_accuracy"] == pytest.approx(2 / 5)
    assert metrics["mrr"] == pytest.approx((1 + 0.5 + 1) / 5)
    assert metrics["candidate_recall"] == pytest.approx(3 / 5)
    assert metrics["baselines"]["first_candidate"] == pytest.approx(1 / 5)
    assert metrics["baselines"]["random"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 5)
    assert metrics["nil"] is None
    two, three = metrics["by_candidates"]
    assert (two["candidates"], two["mentions"], two["link_accuracy"]) == ("2", 2, 1.0)
    assert two["first_candidate"] == pytest.approx(0.5)
    assert (three["candidates"], three["link_accuracy"]) == ("3", 0.0)


def test_a_constant_model_scores_nothing():
    metrics = link_metrics(ranking([([1.0, 1.0], 0), ([1.0, 1.0, 1.0], 2)]), None)
    assert metrics["link_accuracy"] == 0.0
    assert metrics["mrr"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert metrics["roc_auc"] == 0.5


def test_roc_auc_is_the_share_of_pairs_in_the_right_order():
    rng = np.random.default_rng(3)
    mentions = [
        (rng.integers(0, 5, size=k).astype(float), int(rng.integers(k)))
        for k in rng.integers(1, 6, size=30)
    ]
    links = [scores[gold] for scores, gold in mentions]
    others = [s for scores, gold in mentions for s in np.delete(scores, gold)]
    wins = [
        1.0 if link > other else 0.5 if link == other else 0.0
        for link, other in itertools.product(links, others)
    ]
    assert link_metrics(ranking(mentions), None)["roc_auc"] == pytest.approx(
        np.mean(wins)
    )


def test_nil_threshold_has_the_best_f1_of_all_thresholds():
    rng = np.random.default_rng(4)
    dev = ranking(
        [
            (rng.normal(0.0 if nil else 1.5, 1.0, size=3), NIL if nil else 0)
            for nil in rng.random(60) < 0.3
        ]
    )

    def f1(threshold):
        return link_metrics(dev, threshold)["nil"]["f1"]

    chosen = choose_nil_threshold(dev)
    assert 0 < chosen < 1
    assert f1(chosen) == pytest.approx(max(f1(t) for t in np.linspace(0, 1, 2001)))


def test_nil_figures_count_mentions_without_candidates_as_called():
    metrics = link_metrics(
        ranking(
            [([2.0], NIL), ([-2.0], NIL), ([-2.0], 0), ([2.0], 0)],
            nil_without_candidates=2,
            missed_without_candidates=1,
        ),
        0.5,
    )["nil"]
    # Called NIL: the second and third mention and the three without candidates.
    assert metrics["mentions"] == 4
    assert metrics["precision"] == pytest.approx(3 / 5)
    assert metrics["recall"] == pytest.approx(3 / 4)
    assert metrics["f1"] == pytest.approx(2 * 3 / (5 + 4))


@pytest.mark.parametrize("gold", [[0, 0], [NIL, NIL]])
def test_no_threshold_without_both_kinds_of_mentions(gold):
    assert choose_nil_threshold(ranking([([1.0], g) for g in gold])) is None


def test_equal_probabilities_are_never_split():
    dev = ranking([([0.0], NIL), ([0.0], 0), ([0.0], 0), ([2.0], 0)])
    threshold = choose_nil_threshold(dev)
    assert 0.5 < threshold < 1 / (1 + np.exp(-2.0))

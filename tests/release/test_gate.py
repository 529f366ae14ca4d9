"""The gate's figures against plain Python, and each way to be refused."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
import statistics

import numpy as np
import pytest

from bert_export.config import GateConfig
from bert_export.release import gate
from bert_export.release.gate import Answers, Scored

LATENCY = {
    "candidate": {"median_ms": 10.0, "p95_ms": 12.0, "runs": 300},
    "production": {"median_ms": 10.0, "p95_ms": 12.0, "runs": 300},
}
SIZE = {"candidate": 1_000_000, "production": 1_000_000}
MENTIONS = 400


def answers(rank, calls_nil=None, unreadable=None) -> Answers:
    rank = np.array(rank)
    nothing = np.zeros(len(rank), bool)
    return Answers(
        rank,
        nothing if calls_nil is None else np.array(calls_nil),
        nothing if unreadable is None else np.array(unreadable),
    )


def scored(
    candidate: Answers,
    production: Answers | None,
    is_nil=None,
    texts=None,
    slices=None,
    name: str = "held_out",
) -> Scored:
    count = len(candidate.rank)
    return Scored(
        name,
        np.zeros(count, bool) if is_nil is None else np.array(is_nil),
        np.arange(count) if texts is None else np.array(texts),
        {} if slices is None else slices,
        candidate,
        production,
    )


def random_set(seed: int, mentions: int = 300) -> Scored:
    """Mentions of which some are NIL, some share a text, and models that differ."""
    generator = np.random.default_rng(seed)
    is_nil = generator.random(mentions) < 0.2

    def answer() -> Answers:
        rank = generator.integers(0, 5, mentions)
        calls = np.where(is_nil, 0.7, 0.1) > generator.random(mentions)
        return answers(np.where(is_nil, 0, rank), calls)

    return scored(
        answer(), answer(), is_nil, np.sort(generator.integers(0, 200, mentions))
    )


def by_hand(is_nil, model: Answers, chosen) -> dict[str, float]:
    """The three metrics over mentions that may be chosen more than once."""
    right = reciprocal = in_kb = found = called = nil = 0.0
    for index in chosen:
        if is_nil[index]:
            nil += 1
            found += bool(model.calls_nil[index])
        else:
            in_kb += 1
            rank = int(model.rank[index])
            right += rank == 1
            reciprocal += 1 / rank if rank else 0.0
        called += bool(model.calls_nil[index])
    precision = found / called if called else 0.0
    recall = found / nil if nil else 0.0
    f1 = 2 * precision * recall / (precision + recall) if found else 0.0
    return {
        "link_accuracy": right / in_kb if in_kb else 0.0,
        "mrr": reciprocal / in_kb if in_kb else 0.0,
        "nil_f1": f1,
    }


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_those_of_plain_loops(seed):
    mentions = random_set(seed)
    measured = gate.measure(mentions, 0.95, 10)
    everything = range(len(mentions.is_nil))
    assert measured["nil"] == sum(mentions.is_nil)
    assert measured["in_kb"] + measured["nil"] == measured["mentions"] == 300
    for model in ("candidate", "production"):
        expected = by_hand(mentions.is_nil, getattr(mentions, model), everything)
        for metric, value in expected.items():
            assert measured[metric][model] == pytest.approx(value, abs=1e-12)


def test_bootstrap_agrees_with_another_one_of_plain_loops():
    mentions = random_set(7)
    measured = gate.measure(mentions, 0.95, 8000)
    by_text: dict[int, list[int]] = {}
    for index, text in enumerate(mentions.texts):
        by_text.setdefault(text, []).append(index)
    texts = list(by_text.values())
    generator = random.Random(1)
    differences: dict[str, list[float]] = {metric: [] for metric in gate.METRICS}
    for _ in range(1500):
        drawn = generator.choices(texts, k=len(texts))
        chosen = list(itertools.chain.from_iterable(drawn))
        new = by_hand(mentions.is_nil, mentions.candidate, chosen)
        old = by_hand(mentions.is_nil, mentions.production, chosen)
        for metric in gate.METRICS:
            differences[metric].append(new[metric] - old[metric])
    for metric, values in differences.items():
        found = measured[metric]
        cuts = statistics.quantiles(values, n=20)
        # The spread of a 5 % quantile of 1500 draws is some 0.05 of the spread of
        # what is drawn.
        spread = statistics.stdev(values)
        assert found["lower"] == pytest.approx(cuts[0], abs=0.25 * spread)
        assert found["upper"] == pytest.approx(cuts[-1], abs=0.25 * spread)
        assert found["lower"] < found["difference"] < found["upper"]


def test_bootstrap_of_a_few_texts_has_the_exact_distribution():
    # Two mentions of the first text are drawn together or not at all.
    parts = np.array([[1.0, 2.0, 4.0, 8.0]])
    texts = np.array([5, 5, 1, 3])
    drawn = gate.bootstrap(parts, texts, 27000)[0]
    sums = [3.0, 4.0, 8.0]
    exact = [sum(choice) for choice in itertools.product(sums, repeat=3)]
    values, counts = np.unique(drawn, return_counts=True)
    assert set(values) == set(exact)
    for value, count in zip(values, counts, strict=True):
        probability = exact.count(value) / 27
        assert count / 27000 == pytest.approx(probability, abs=0.01)


def test_interval_is_the_normal_ones_where_there_are_many_mentions():
    generator = np.random.default_rng(3)
    old = generator.random(4000) < 0.8
    new = np.where(generator.random(4000) < 0.1, ~old, old)
    mentions = scored(answers(new.astype(int)), answers(old.astype(int)))
    found = gate.measure(mentions, 0.95, 4000)["link_accuracy"]
    changes = new.astype(float) - old
    margin = 1.645 * changes.std() / math.sqrt(4000)
    assert found["difference"] == pytest.approx(changes.mean())
    assert found["lower"] == pytest.approx(changes.mean() - margin, rel=0, abs=6e-4)
    assert found["upper"] == pytest.approx(changes.mean() + margin, rel=0, abs=6e-4)


def test_the_same_on_every_call():
    first, second = (gate.measure(random_set(1), 0.9, 500) for _ in range(2))
    assert first == second


def test_draws_do_not_depend_on_how_many_are_made_at_a_time(monkeypatch):
    mentions = random_set(2)
    parts = np.ones((1, 300)) * np.arange(300)
    whole = gate.bootstrap(parts, mentions.texts, 50)
    monkeypatch.setattr(gate, "_BLOCK", 1000)
    assert np.array_equal(whole, gate.bootstrap(parts, mentions.texts, 50))


# --- the verdict ----------------------------------------------------------------------


@dataclasses.dataclass
class Case:
    """Figures of two models, equal at first, for a test to make worse."""

    config: GateConfig = dataclasses.field(
        default_factory=lambda: GateConfig(bootstrap_samples=200)
    )
    rank: np.ndarray = dataclasses.field(
        default_factory=lambda: np.where(np.arange(MENTIONS) % 4 == 0, 2, 1)
    )
    calls_nil: np.ndarray = dataclasses.field(
        default_factory=lambda: np.arange(MENTIONS) >= MENTIONS - 40
    )
    golden_rank: np.ndarray | None = None
    golden_calls_nil: np.ndarray | None = None
    size: dict = dataclasses.field(default_factory=lambda: dict(SIZE))
    latency: dict = dataclasses.field(default_factory=lambda: dict(LATENCY))
    proofs: dict = dataclasses.field(
        default_factory=lambda: {"saved_model": None, "onnx": None}
    )

    def decide(self) -> dict:
        usual = Case()
        is_nil = np.arange(MENTIONS) >= MENTIONS - 40
        groups = [["2", "3", "4-5"][index % 3] for index in range(MENTIONS)]
        small = ["rare" if index < 20 else "usual" for index in range(MENTIONS)]
        slices = {"candidates": groups, "type": small}

        def answered(rank, calls_nil) -> Answers:
            return answers(np.where(is_nil, 0, rank), calls_nil)

        production = answered(usual.rank, usual.calls_nil)
        golden = answered(
            usual.rank if self.golden_rank is None else self.golden_rank,
            usual.calls_nil if self.golden_calls_nil is None else self.golden_calls_nil,
        )
        candidate = answered(self.rank, self.calls_nil)
        return gate.decide(
            self.config,
            [
                scored(candidate, production, is_nil, slices=slices),
                scored(golden, production, is_nil, slices=slices, name="golden"),
            ],
            self.size,
            self.latency,
            self.proofs,
        )


def refused(verdict: dict) -> list[str]:
    names = [c["name"] for c in verdict["criteria"] if not c["passed"]]
    assert verdict["passed"] == (not names)
    return names


def config(**options) -> GateConfig:
    return GateConfig(bootstrap_samples=200, **options)


def test_equal_models_pass_the_strictest_limits():
    strict = config(
        max_drop=0.0,
        golden_max_drop=0.0,
        slice_max_drop=0.0,
        min_slice_mentions=1,
        max_size_ratio=1.0,
        max_latency_ratio=1.0,
        min_link_accuracy=75.0,
    )
    verdict = Case(strict).decide()
    assert refused(verdict) == []
    assert verdict["passed"] is True
    names = [criterion["name"] for criterion in verdict["criteria"]]
    assert len(set(names)) == len(names)
    assert names[:6] == [
        "proof.saved_model",
        "proof.onnx",
        "held_out.min_link_accuracy",
        "held_out.link_accuracy",
        "held_out.mrr",
        "held_out.nil_f1",
    ]
    assert {"golden.link_accuracy", "golden.mrr", "golden.nil_f1"} <= set(names)
    assert names[-2:] == ["size", "latency"]
    assert json.loads(json.dumps(verdict)) == verdict


def worse_links(case: Case) -> None:
    case.rank[1:200:4] = 2


def worse_ranks(case: Case) -> None:
    case.rank[case.rank == 2] = 9


def worse_nil(case: Case) -> None:
    case.calls_nil[-20:] = False


def worse_golden(case: Case) -> None:
    case.golden_rank = Case().rank
    case.golden_rank[1:200:4] = 2


def worse_golden_nil(case: Case) -> None:
    case.golden_calls_nil = np.zeros(MENTIONS, bool)


def too_low(case: Case) -> None:
    case.config = config(min_link_accuracy=75.1)


def too_large(case: Case) -> None:
    case.size["candidate"] = 1_250_001


def too_slow(case: Case) -> None:
    case.latency["candidate"] = LATENCY["candidate"] | {"median_ms": 15.1}


def unproven(case: Case) -> None:
    case.proofs["onnx"] = "largest difference 0.3"


@pytest.mark.parametrize(
    ("make_worse", "criteria"),
    [
        (worse_links, ["held_out.link_accuracy", "held_out.mrr"]),
        (worse_ranks, ["held_out.mrr"]),
        (worse_nil, ["held_out.nil_f1"]),
        (worse_golden, ["golden.link_accuracy", "golden.mrr"]),
        (worse_golden_nil, ["golden.nil_f1"]),
        (too_low, ["held_out.min_link_accuracy"]),
        (too_large, ["size"]),
        (too_slow, ["latency"]),
        (unproven, ["proof.onnx"]),
    ],
)
def test_a_worse_model_is_refused_by_its_criterion(make_worse, criteria):
    # Slices have a test of their own.
    case = Case(config(slice_max_drop=100.0))
    make_worse(case)
    if make_worse is too_low:
        case.config = dataclasses.replace(case.config, slice_max_drop=100.0)
    assert refused(case.decide()) == criteria


def test_a_slice_that_falls_is_refused_though_the_whole_does_not():
    case = Case(config(max_drop=1.0, golden_max_drop=1.0))
    fell = np.arange(MENTIONS) % 3 == 0  # two candidates
    rose = np.arange(MENTIONS) % 3 == 1
    case.rank[np.flatnonzero(fell & (case.rank == 1))[:14]] = 2
    case.rank[np.flatnonzero(rose & (case.rank == 2))[:24]] = 1
    verdict = case.decide()
    assert refused(verdict) == ["held_out.slice.candidates.2"]
    (entry,) = (
        s for s in verdict["slices"] if s["name"] == "2" and s["set"] == "held_out"
    )
    (criterion,) = (
        c for c in verdict["criteria"] if c["name"] == "held_out.slice.candidates.2"
    )
    # 360 mentions have an entity, 120 of them two candidates.
    assert entry["mentions"] == 120
    assert entry["difference"] == pytest.approx(-14 / 120)
    assert criterion["value"] == pytest.approx(-100 * 14 / 120)
    assert criterion["limit"] == -10
    assert "on the 120 held-out mentions of candidates 2" in criterion["detail"]


def test_a_drop_of_just_the_limit_is_allowed():
    case = Case(config(max_drop=100.0))
    fell = np.flatnonzero((np.arange(MENTIONS) % 3 == 0) & (case.rank == 1))
    case.rank[fell[:12]] = 2  # 12 of 120 are 10 points
    assert refused(case.decide()) == []
    case.rank[fell[:13]] = 2
    assert refused(case.decide()) == ["held_out.slice.candidates.2"]


def test_slices_of_a_few_mentions_are_shown_and_not_judged():
    case = Case(config(max_drop=100.0))
    case.rank[:20] = 2
    verdict = case.decide()
    assert refused(verdict) == []
    rare = next(s for s in verdict["slices"] if s["name"] == "rare")
    assert (rare["mentions"], rare["candidate"]) == (20, 0.0)
    assert (rare["judged"], rare["passed"]) == (False, None)
    case.config = dataclasses.replace(case.config, min_slice_mentions=20)
    assert "held_out.slice.type.rare" in refused(case.decide())


def test_a_refusal_for_want_of_mentions_says_so():
    rank = np.ones(20, int)
    worse = rank.copy()
    worse[:2] = 2
    mentions = scored(answers(worse), answers(rank))
    verdict = gate.decide(config(slice_max_drop=100.0), [mentions], SIZE, LATENCY, {})
    assert refused(verdict) == ["held_out.link_accuracy", "held_out.mrr"]
    detail = verdict["criteria"][1]["detail"]
    assert "went from 100.00 to 90.00 % (−10.00 points)" in detail
    assert "20 mentions tell models apart to within" in detail


def test_without_production_only_proofs_and_the_lowest_accuracy_are_judged():
    mentions = scored(
        answers([1, 2, 1, 1]), None, slices={"script": ["Latin", "Han"] * 2}
    )
    size, latency = (
        {"candidate": 1, "production": None},
        {"candidate": LATENCY["candidate"], "production": None},
    )
    verdict = gate.decide(
        config(min_link_accuracy=75.0), [mentions], size, latency, {"saved_model": None}
    )
    assert [c["name"] for c in verdict["criteria"]] == [
        "proof.saved_model",
        "held_out.min_link_accuracy",
    ]
    assert refused(verdict) == []
    assert verdict["metrics"]["held_out"]["link_accuracy"] == {
        "candidate": 0.75,
        "production": None,
        "difference": None,
        "lower": None,
        "upper": None,
    }
    assert [(s["name"], s["candidate"], s["judged"]) for s in verdict["slices"]] == [
        ("Han", 0.5, False),
        ("Latin", 1.0, False),
    ]
    verdict = gate.decide(
        config(min_link_accuracy=75.1), [mentions], size, latency, {"saved_model": "no"}
    )
    assert refused(verdict) == ["proof.saved_model", "held_out.min_link_accuracy"]


def test_a_set_without_nil_mentions_says_that_nil_is_not_judged():
    mentions = scored(answers([1, 1], [True, False]), answers([1, 1]))
    verdict = gate.decide(config(slice_max_drop=100.0), [mentions], SIZE, LATENCY, {})
    nil = next(c for c in verdict["criteria"] if c["name"] == "held_out.nil_f1")
    assert (nil["passed"], nil["value"]) == (True, None)
    assert "not judged, there is no NIL mention" in nil["detail"]
    assert verdict["metrics"]["held_out"]["nil_f1"]["candidate"] is None


def test_what_a_model_cannot_read_is_wrong_for_it_and_counted():
    rank = np.ones(200, int)
    unread = np.arange(200) < 30
    mentions = scored(
        answers(np.where(unread, 0, rank), unreadable=unread), answers(rank)
    )
    verdict = gate.decide(config(), [mentions], SIZE, LATENCY, {})
    measured = verdict["metrics"]["held_out"]
    assert measured["unreadable"] == {"candidate": 30, "production": 0}
    assert measured["link_accuracy"]["candidate"] == pytest.approx(0.85)
    assert measured["mrr"]["candidate"] == pytest.approx(0.85)
    assert refused(verdict) == ["held_out.link_accuracy", "held_out.mrr"]


@pytest.mark.parametrize(
    ("points", "text"),
    [(0.0, "0.00"), (-0.001, "0.00"), (-1.3, "−1.30"), (0.42, "+0.42")],
)
def test_signed(points, text):
    assert gate.signed(points) == text

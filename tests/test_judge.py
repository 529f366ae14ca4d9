"""The gate with real artifacts, against their answers taken apart by hand."""

from __future__ import annotations

import dataclasses
import functools
import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from bert_export import judge
from bert_export.config import Config, CorpusConfig, FeaturesConfig, GateConfig
from bert_export.corpus import jsonl
from bert_export.corpus.records import Entity, Mention
from bert_export.errors import UserError
from bert_export.linking import ArtifactLinker
from bert_export.release import gate_report, manifest
from tests import tiny_artifact

# Where either model calls some mentions NIL.
THRESHOLDS = {"one": 0.9, "other": 0.95}
WORDS = [f"w{number}" for number in range(60)]
# That are answered by hand, too.
MENTIONS = 150


@functools.cache
def temporary() -> tempfile.TemporaryDirectory[str]:
    # Kept until the interpreter ends.
    return tempfile.TemporaryDirectory(prefix="test judge ")


@functools.cache
def artifact(name: str) -> Path:
    """'one' and 'other', of different vocabularies and thresholds."""
    directory = Path(temporary().name) / name
    if name == "one":
        tiny_artifact.export(tiny_artifact.trained(), directory)
    else:
        # With other words for its pieces, the same weights answer otherwise.
        shutil.copytree(artifact("one"), directory)
        vocab = directory / "assets.extra" / "vocab.txt"
        words = vocab.read_text().split()
        words[4:] = reversed(words[4:])
        vocab.write_text("".join(f"{word}\n" for word in words))
    describe(directory, nil={"threshold": THRESHOLDS[name]})
    return directory


def describe(directory: Path, max_seq_length: int = 20, **metrics: Any) -> None:
    """Writes a manifest of the files as they are, with a whole config."""
    features = FeaturesConfig(max_seq_length=max_seq_length)
    config = dataclasses.asdict(configured(features=features))
    described = manifest.read(directory)
    described["config"] = config
    described["metrics"] |= metrics
    described["files"] = manifest.list_files(directory)
    manifest.write(directory, described)


def configured(corpus: CorpusConfig | None = None, **options: Any) -> Config:
    base = Config(corpus=corpus or CorpusConfig(entities="none", mentions="none"))
    model = dataclasses.replace(base.model, bert_config="none", vocab="none")
    return dataclasses.replace(base, name="tiny", model=model, **options)


@functools.cache
def entities() -> dict[str, Entity]:
    generator = random.Random(1)
    kinds = ["thing", "place", None]
    return {
        f"e{number}": Entity(
            f"e{number}",
            f"w{number % 10}",
            (),
            " ".join(generator.choices(WORDS, k=4)),
            kinds[number % 3],
        )
        for number in range(30)
    }


def mention(seed: int, words: int = 1, **changes: Any) -> Mention:
    """A text of eight words or so; three candidates, none of them gold."""
    generator = random.Random(seed)
    # A number of its own keeps each text apart.
    chosen = [*generator.choices(WORDS, k=8), str(seed)]
    start = len(" ".join(["", *chosen[:2]]))
    end = start + len(" ".join(chosen[2 : 2 + words]))
    found = tuple(generator.sample(sorted(entities()), 3))
    given = Mention(" ".join(chosen), start, end, None, found)
    return dataclasses.replace(given, **changes)


@functools.cache
def answers(name: str) -> list[tuple[list[float], list[float]]]:
    """Scores and probabilities of all mentions' candidates, without our encoder."""
    directory = artifact(name)
    vocab = (directory / "assets.extra" / "vocab.txt").read_text().split()
    rows = []
    for seed in range(MENTIONS):
        given = mention(seed)
        for candidate in given.candidates or ():
            entity = entities()[candidate]
            text = ["[UNK]" if word.isdigit() else word for word in given.text.split()]
            # The colon behind the name is not in the vocabulary.
            second = [entity.name, "[UNK]", *entity.description.split()]
            tokens = ["[CLS]", *text, "[SEP]", *second, "[SEP]"]
            assert len(tokens) <= 20
            rows.append(([vocab.index(token) for token in tokens], len(text) + 2))
    longest = max(len(ids) for ids, _ in rows)

    def padded(values: list[list[int]]) -> tf.Tensor:
        return tf.constant([v + [0] * (longest - len(v)) for v in values], tf.int64)

    model = tf.saved_model.load(str(directory))
    answered = model.signatures["tensors"](
        input_ids=padded([ids for ids, _ in rows]),
        input_mask=padded([[1] * len(ids) for ids, _ in rows]),
        segment_ids=padded([[0] * n + [1] * (len(ids) - n) for ids, n in rows]),
        start_ps=tf.constant([3] * len(rows), tf.int64),
        end_ps=tf.constant([3] * len(rows), tf.int64),
    )
    scores = answered["score"].numpy().reshape(MENTIONS, 3).tolist()
    links = answered["probabilities"].numpy()[:, 1].reshape(MENTIONS, 3).tolist()
    return list(zip(scores, links, strict=True))


def best(name: str, seed: int) -> str:
    """The id that a model ranks first."""
    found = answers(name)[seed][0]
    return (mention(seed).candidates or ())[found.index(max(found))]


def expected(name: str, mentions: dict[int, Mention]) -> dict[str, float]:
    """The figures of a model, worked out in plain loops."""
    right = reciprocal = in_kb = nil_right = called = nil = 0.0
    for seed, given in mentions.items():
        found, probabilities = answers(name)[seed]
        calls_nil = max(probabilities) < THRESHOLDS[name]
        called += calls_nil
        if given.gold is None:
            nil += 1
            nil_right += calls_nil
            continue
        in_kb += 1
        if given.gold in (given.candidates or ()):
            gold = found[(given.candidates or ()).index(given.gold)]
            rank = 1 + sum(score > gold for score in found)
            right += rank == 1
            reciprocal += 1 / rank
    return {
        "link_accuracy": right / in_kb,
        "mrr": reciprocal / in_kb,
        "nil_f1": 2 * nil_right / (called + nil),
    }


class Workspace:
    """A corpus in files, and the judge at work on it."""

    def __init__(self, root: Path):
        self.root = root
        root.mkdir(exist_ok=True)
        jsonl.write_entities(root / "entities.jsonl", entities().values())
        self.write("train", [mention(-1, gold="e1")])
        self.write("dev", [mention(-2, gold="e1")])

    def write(self, name: str, mentions: list[Mention]) -> str:
        path = self.root / f"{name}.jsonl"
        jsonl.write_mentions(path, mentions)
        return str(path)

    def judge(
        self,
        test: list[Mention],
        golden: list[Mention] | None = None,
        candidate: str | Path = "one",
        production: str | Path | None = "one",
        proofs: dict[str, str | None] | None = None,
        **limits: Any,
    ) -> dict[str, Any]:
        self.write("test", test)
        if golden is not None:
            limits["golden_mentions"] = self.write("golden", golden)
        # No test judges how fast the machine is.
        limits.setdefault("max_latency_ratio", 100.0)
        config = configured(
            CorpusConfig(
                entities=str(self.root / "entities.jsonl"),
                mentions=str(self.root / "train.jsonl"),
                dev_mentions=str(self.root / "dev.jsonl"),
                test_mentions=str(self.root / "test.jsonl"),
            ),
            gate=GateConfig(bootstrap_samples=200, **limits),
        )
        found = artifact(candidate) if isinstance(candidate, str) else candidate
        if isinstance(production, str):
            production = artifact(production)
        return judge.judge(
            config,
            self.root / "work",
            candidate=found,
            production=production,
            proofs={"saved_model": None} if proofs is None else proofs,
            output_dir=self.root / "gate",
            run_id="20260101T030000Z",
            version=12,
            production_version=None if production is None else 11,
        )


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(tmp_path / "a corpus")


def refused(verdict: dict[str, Any]) -> list[str]:
    names = [c["name"] for c in verdict["criteria"] if not c["passed"]]
    assert verdict["passed"] == (not names)
    return names


def test_figures_are_those_of_the_artifacts_answers(workspace):
    generator = random.Random(4)
    mentions = {}
    for seed in range(60):
        one = mention(seed)
        golds = [None, "e0", *(one.candidates or ())]
        mentions[seed] = dataclasses.replace(one, gold=generator.choice(golds))
    given = list(mentions.values())
    verdict = workspace.judge(given, candidate="other", min_slice_mentions=5)
    measured = verdict["metrics"]["held_out"]
    assert measured["unreadable"] == {"candidate": 0, "production": 0}
    assert measured["mentions"] == 60
    for model, name in (("candidate", "other"), ("production", "one")):
        for metric, value in expected(name, mentions).items():
            assert measured[metric][model] == pytest.approx(value), (model, metric)
    differences = [measured[m]["difference"] for m in ("link_accuracy", "nil_f1")]
    assert all(differences), "the models answer alike, so that nothing was compared"
    assert measured["nil_f1"]["production"] > 0

    by_type = {s["name"]: s["mentions"] for s in verdict["slices"] if s["by"] == "type"}
    golds = [entities()[m.gold].type for m in mentions.values() if m.gold]
    assert by_type == {
        kind or "no type": golds.count(kind) for kind in ("thing", "place", None)
    }
    in_kb = measured["in_kb"]
    sizes = [(s["by"], s["name"], s["mentions"]) for s in verdict["slices"][:2]]
    assert sizes == [("candidates", "3", in_kb), ("script", "Latin", in_kb)]

    def right(name: str, seed: int) -> bool:
        probabilities = answers(name)[seed][1]
        is_nil = max(probabilities) < THRESHOLDS[name]
        return (None if is_nil else best(name, seed)) == mentions[seed].gold

    answered = [(right("other", seed), right("one", seed)) for seed in mentions]
    changes = verdict["changes"]["held_out"]
    assert changes["won"] == answered.count((True, False))
    assert changes["lost"] == answered.count((False, True))
    lost = {m.text for m, pair in zip(given, answered) if pair == (False, True)}
    assert {entry["text"] for entry in changes["examples"]} <= lost
    assert len(changes["examples"]) == min(20, len(lost))

    # And all of it is written.
    directory = workspace.root / "gate"
    assert json.loads((directory / "gate.json").read_text("utf-8")) == verdict
    assert {path.name for path in directory.iterdir()} == {
        "gate.json",
        "report.md",
        "report.html",
        "differences.png",
        "slices.png",
    }
    assert verdict["format_version"] == 1
    assert (verdict["version"], verdict["production_version"]) == (12, 11)
    assert verdict["run_id"] == "20260101T030000Z"
    assert measured["split"] == "test"
    assert verdict["limits"]["max_drop"] == 2.0
    assert verdict["size"]["candidate"] == sum(
        path.stat().st_size
        for path in artifact("other").rglob("*")
        if path.is_file() and path.name != "manifest.json"
    )


def test_the_same_model_passes_the_strictest_limits(workspace):
    given = [mention(seed, gold=best("one", seed)) for seed in range(25)]
    given += [mention(seed) for seed in range(25, 30)]
    verdict = workspace.judge(
        given,
        given,
        max_drop=0.0,
        golden_max_drop=0.0,
        slice_max_drop=0.0,
        min_slice_mentions=1,
        max_size_ratio=1.0,
    )
    assert refused(verdict) == []
    assert verdict["metrics"]["held_out"]["link_accuracy"]["lower"] == 0.0
    assert verdict["changes"]["golden"] == {"won": 0, "lost": 0, "examples": []}
    runs = {model["runs"] for model in verdict["latency"].values()}
    assert runs == {90}
    assert all(m["p95_ms"] >= m["median_ms"] > 0 for m in verdict["latency"].values())


def test_a_regression_on_golden_mentions_alone_is_refused(workspace):
    seeds = range(MENTIONS)
    agreed = [seed for seed in seeds if best("one", seed) == best("other", seed)]
    apart = [seed for seed in seeds if seed not in agreed]
    assert min(len(agreed), len(apart)) >= 30
    held_out = [mention(seed, gold=best("one", seed)) for seed in agreed]
    golden = [mention(seed, gold=best("one", seed)) for seed in apart]
    verdict = workspace.judge(
        held_out, golden, candidate="other", min_slice_mentions=1000
    )
    assert refused(verdict) == ["golden.link_accuracy", "golden.mrr"]
    assert verdict["metrics"]["golden"]["link_accuracy"]["candidate"] == 0.0


def test_a_larger_or_slower_or_unproven_artifact_is_refused(workspace, tmp_path):
    given = [mention(seed, gold=best("one", seed)) for seed in range(8)]
    larger = Path(shutil.copytree(artifact("one"), tmp_path / "larger"))
    size = judge.artifact_bytes(larger)
    (larger / "assets.extra" / "more").write_bytes(bytes(size // 4 + 2))
    describe(larger)
    proofs = {"saved_model": None, "onnx": "damaged"}
    # No model is as fast as that.
    verdict = workspace.judge(
        given, candidate=larger, proofs=proofs, max_latency_ratio=1e-6
    )
    assert refused(verdict) == ["proof.onnx", "size", "latency"]
    assert verdict["proofs"] == proofs
    assert verdict["size"]["production"] == size
    assert "refused: 3 of" in gate_report.text_table(verdict)


def test_mentions_that_one_model_cannot_read_are_wrong_for_it(workspace, tmp_path):
    shorter = Path(shutil.copytree(artifact("one"), tmp_path / "shorter"))
    describe(shorter, max_seq_length=12)
    # Five pieces of text fit, hence no mention of six words.
    given = [mention(seed, gold=best("one", seed)) for seed in range(20)]
    given[3] = mention(3, words=6, gold=given[3].gold)
    given[4] = mention(4, words=6)
    verdict = workspace.judge(given, candidate=shorter, max_drop=100.0)
    measured = verdict["metrics"]["held_out"]
    assert measured["unreadable"] == {"candidate": 2, "production": 0}
    report = (workspace.root / "gate" / "report.md").read_text("utf-8")
    assert "2 of the held-out mentions could not be read by the candidate" in report
    # Those beside them in a request are answered as they are alone.
    linker = ArtifactLinker(shorter, entities())
    right = 0
    for one in given:
        if one.end - one.start < 4:
            (alone,) = linker.link([one])
            right += alone.candidates[0].entity.id == one.gold
    assert 0 < right < 19
    assert measured["link_accuracy"]["candidate"] == pytest.approx(right / 19)


def test_without_production_the_proofs_and_the_lowest_accuracy_decide(workspace):
    given = [mention(seed, gold=best("one", seed)) for seed in range(8)]
    verdict = workspace.judge(given, production=None, min_link_accuracy=100.0)
    assert refused(verdict) == []
    assert len(verdict["criteria"]) == 2
    assert verdict["latency"]["production"] is None
    report = (workspace.root / "gate" / "report.md").read_text("utf-8")
    assert "There was no model in production" in report


def test_sets_are_what_the_config_asks_for(workspace):
    given = [mention(seed, gold=best("one", seed)) for seed in range(30)]
    # Three entities are called w4, and nobody says that they are the candidates.
    unresolved = mention(40, text="w4 w5 w6", start=0, end=2, gold="e24")
    golden = [*given[:7], dataclasses.replace(unresolved, candidates=None)]
    workspace.write("train", [*given[:3], given[1]])
    verdict = workspace.judge(given, golden, max_mentions=10)
    assert verdict["metrics"]["held_out"]["mentions"] == 10
    assert verdict["metrics"]["golden"]["mentions"] == 8
    assert verdict["metrics"]["golden"]["in_train"] == 3
    assert "in_train" not in verdict["metrics"]["held_out"]
    found = [(s["set"], s["by"], s["name"], s["mentions"]) for s in verdict["slices"]]
    assert ("golden", "candidates", "3", 8) in found


@pytest.mark.parametrize(
    ("golden", "message"),
    [
        (None, "No such file"),
        ("", "no mentions in it"),
        ('{"text": "w1", "start": 0, "end": 2, "gold": "gone"}', ":1: unknown gold: "),
        ("{", ":1: broken JSON"),
    ],
)
def test_golden_mentions_are_never_judged_in_part(workspace, golden, message):
    path = workspace.root / "frozen.jsonl"
    if golden is not None:
        good = '{"text": "w1", "start": 0, "end": 2, "gold": "e1"}\n' if golden else ""
        path.write_text(f"{golden}\n{good}", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        workspace.judge([mention(1, gold="e1")], golden_mentions=str(path))
    text = str(caught.value)
    assert text.startswith(f"config.gate.golden_mentions: {path}")
    assert message in text
    assert len(text.splitlines()) == 1
    assert not (workspace.root / "gate").exists()


def test_a_split_without_entities_cannot_judge(workspace):
    with pytest.raises(UserError, match="no mention with an entity to judge by: the"):
        workspace.judge([mention(1)])


def test_an_artifact_that_cannot_be_loaded_is_named(workspace, tmp_path):
    given = [mention(1, gold="e1")]
    with pytest.raises(UserError, match=r"cannot load the candidate: .*manifest\.json"):
        workspace.judge(given, candidate=tmp_path)
    damaged = Path(shutil.copytree(artifact("one"), tmp_path / "damaged"))
    (damaged / "saved_model.pb").write_bytes(b"no model")
    with pytest.raises(UserError, match="cannot load the production: "):
        workspace.judge(given, production=damaged)
    assert not (workspace.root / "gate").exists()

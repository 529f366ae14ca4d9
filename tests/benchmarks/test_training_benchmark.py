"""The benchmark of training, with a tiny model: ours, and peers where they are."""

from __future__ import annotations

import copy
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from bert_export.config import read_json, resolve
from bert_export.features.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "scripts" / "benchmarks" / "training_bench"
MODULES = ("measure", "report", "turns", "work", "peers", "common")
# A contender that takes turns without learning anything.
IDLE = """
import sys
sys.path.insert(0, sys.argv[1])
from turns import Turns
turns = Turns(sys.argv[2])
with turns.failures():
    print("noise of a library")
    if turns.wait():
        while turns.step_done():
            pass
    raise ValueError("no scores")
"""


@pytest.fixture(scope="module")
def measure():
    """The benchmark's main module; other benchmarks have modules of such names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        for name in MODULES:
            patch.delitem(sys.modules, name, raising=False)
        yield importlib.import_module("measure")
        for name in MODULES:
            sys.modules.pop(name, None)


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    # Not scripts/benchmarks/training, which would set up a .venv.
    return subprocess.run(
        [sys.executable, str(BENCH / "measure.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, **variables},
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """The workdir and the output of a quick run where there is no Python 3.7."""
    directory = tmp_path_factory.mktemp("with a blank")
    shim = directory / "bin" / "python3.7"
    shim.parent.mkdir()
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    result = run(
        "--quick",
        "--contenders=ours_float32,google_float32",
        f"--workdir={directory}",
        f"--output={directory}",
        PATH=f"{shim.parent}:/usr/bin:/bin",
        PYENV_ROOT=str(directory),
    )
    assert result.returncode == 0, result.stderr
    return directory


@pytest.fixture(scope="module")
def measured(directory):
    return read_json(directory / "benchmarks" / "training.json")


def test_speed_and_memory_are_measured(measured):
    (speed,) = measured["speed"]["contenders"].values()
    rate = speed["examples_a_second"]
    assert rate["runs"] == len(speed["turns"]) == 2
    assert 10 < rate["q1"] <= rate["median"] <= rate["q3"]
    assert speed["steps"] >= 2
    assert 1 < speed["first_step_seconds"] < 200
    # A process with TensorFlow in it, and not much else.
    assert 1e8 < speed["peak_bytes"] < 4e9
    peak = measured["peak"]["float32"]
    assert speed["share_of_bound"] == speed["flops_a_second"] / peak
    assert 0 < speed["share_of_bound"] < 1


def test_accuracy_is_measured_on_mentions_it_was_not_trained_on(measured):
    accuracy = measured["accuracy"]
    assert accuracy["steps"] == 5
    assert accuracy["contenders"].keys() == {"ours_float32"}
    result = accuracy["contenders"]["ours_float32"]
    # Those without a right candidate do not count.
    assert 10 < result["mentions"] <= 20
    assert 0 <= result["link_accuracy"] <= 1


def test_a_peer_that_cannot_be_had_is_skipped_and_said_so(measured, directory):
    assert measured["skipped"].keys() == {"google_float32"}
    assert "Python 3.7" in measured["skipped"]["google_float32"]
    page = (directory / "benchmarks.md").read_text("utf-8")
    assert "- skipped: google-research BERT, fixed length, float32: Python 3.7" in page


def test_texts_and_tokens_are_the_same_pairs(measure, directory):
    work, at = measure.work, directory / "training_quick"
    config = resolve(read_json(at / work.CONFIG))
    tokenizer = load_tokenizer(ROOT / "data" / "vocab.txt", config.features)
    count = {}
    for split in ("train", "test"):
        pairs, labels = work.pairs(str(at), split)
        texts = work.texts(str(at), split)
        assert len(pairs) == len(labels) == len(texts)
        count[split] = len(pairs)
        for pair, (text, candidate) in list(zip(pairs, texts))[:200]:
            first, second = tokenizer.tokenize([text, candidate]).to_list()
            expected = [tokenizer.cls_id, *first, tokenizer.sep_id]
            types = [0] * len(expected) + [1] * (len(second) + 1)
            expected += [*second, tokenizer.sep_id]
            if len(expected) <= config.features.max_seq_length:
                assert pair == {"input_ids": expected, "token_type_ids": types}
    about = work.about(str(at))
    assert 0 <= count["train"] - about["train_pairs"] < about["pairs_a_step"]
    with np.load(at / work.PAIRS) as arrays:
        assert arrays["train_step_pairs"].sum() == count["train"]
        # A mention's pairs stand together, and one of them at most is gold.
        mentions, labels = arrays["test_mentions"], arrays["test_labels"]
        ends = np.flatnonzero(np.diff(mentions)) + 1
        assert len(ends) + 1 == len(np.unique(mentions)) <= 20
        assert all(part.sum() <= 1 for part in np.split(labels, ends))


def test_the_page_has_the_measured_numbers_and_the_docs_text(directory, measured):
    page = (directory / "benchmarks.md").read_text("utf-8")
    docs = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
    pattern = r"(<!-- measured: training\w* -->\n).*?(<!-- end -->)"
    emptied = [re.sub(pattern, r"\1\2", text, flags=re.S) for text in (page, docs)]
    assert emptied[0] == emptied[1]
    found = dict(
        re.findall(r"<!-- measured: (training\w*) -->\n(.*?)<!-- end -->", page, re.S)
    )
    assert len(found) == 5
    assert all(text.strip() for text in found.values())
    speed = measured["speed"]["contenders"]["ours_float32"]
    assert f"| {speed['examples_a_second']['median']:.1f} (" in found["training"]
    assert f"| {speed['peak_bytes'] / 1e6:.0f} " in found["training_memory"]
    accuracy = measured["accuracy"]["contenders"]["ours_float32"]["link_accuracy"]
    assert f"| {100 * accuracy:.1f} % " in found["training_accuracy"]


def test_a_report_of_all_contenders_is_written_again_from_json(
    measure, directory, measured, tmp_path
):
    everything = copy.deepcopy(measured)
    speed = everything["speed"]["contenders"]
    for number, name in enumerate(measure.CONTENDERS):
        speed[name] = copy.deepcopy(speed["ours_float32"])
        rate = 1000.5 + number
        speed[name]["examples_a_second"] = measure.quartiles([rate - 1, rate, rate + 1])
        if name not in measure.OURS:
            del speed[name]["share_of_bound"]
    everything["goals"] = measure.find_goals(speed)
    (tmp_path / "all.json").write_text(json.dumps(everything), "utf-8")
    result = run(f"--report={tmp_path / 'all.json'}", f"--output={tmp_path}")
    assert result.returncode == 0, result.stderr
    assert read_json(tmp_path / "benchmarks" / "training.json") == everything
    page = (tmp_path / "benchmarks.md").read_text("utf-8")
    for number in range(len(measure.CONTENDERS)):
        assert f"| {1000.5 + number:.1f} (" in page
    pixels = image.imread(tmp_path / "benchmarks" / "training.png")
    assert pixels.shape[2] == 4
    assert pixels[0, 0, 3] == 0
    drawn = pixels[pixels[:, :, 3] > 0.9][:, :3]
    assert len(drawn) > 10_000
    # Neither black nor white, which would vanish on one of the two.
    assert drawn.mean(axis=1).min() > 0.2
    assert drawn.mean(axis=1).max() < 0.8


def test_goals_are_held_against_the_fastest_peer_of_the_precision(measure):
    turns = {
        "ours_float32": [40.0, 42.0, 44.0],
        "ours_bfloat16": [60.0, 60.0, 60.0],
        "cross_encoder_float32": [10.0, 10.0, 10.0],
        "trainer_float32": [20.0, 21.0, 11.0],
        "trainer_bfloat16": [30.0, 30.0, 30.0],
        "google_float32": [5.0, 7.0, 4.0],
    }
    speed = {
        name: {"turns": rates, "examples_a_second": measure.quartiles(rates)}
        for name, rates in turns.items()
    }
    speed["ours_float32"]["share_of_bound"] = 0.61
    google, pytorch, bound, *bfloat16 = measure.find_goals(speed)
    assert google["theirs"] == "google_float32"
    # The median of 8, 6 and 11, turn by turn.
    assert (google["ratio"]["median"], google["goal"], google["reached"]) == (
        8,
        8,
        True,
    )
    assert pytorch["theirs"] == "trainer_float32"
    assert (pytorch["ratio"]["median"], pytorch["goal"]) == (2, 3)
    assert not pytorch["reached"]
    assert (bound["goal"], bound["reached"]) == (0.6, True)
    assert [goal["theirs"] for goal in bfloat16] == [
        "google_float32",
        "trainer_bfloat16",
    ]
    del speed["google_float32"], speed["ours_float32"]
    assert [goal["theirs"] for goal in measure.find_goals(speed)] == [
        "trainer_bfloat16"
    ]


def test_link_accuracy_counts_mentions_with_a_right_candidate(measure):
    # Right, wrong, tied, without a right one, and with a single candidate.
    mentions = np.array([4, 4, 4, 2, 2, 7, 7, 1, 1, 9])
    labels = np.array([0, 1, 0, 1, 0, 1, 0, 0, 0, 1])
    scores = [0.1, 0.5, 0.2, -2.0, -1.0, 0.3, 0.3, 5.0, 6.0, -9.0]
    assert measure.link_accuracy(scores, labels, mentions) == {
        "mentions": 4,
        "link_accuracy": 0.5,
    }


def test_a_contender_trains_so_many_steps_and_waits(measure, tmp_path):
    log = tmp_path / "idle.log"
    worker = measure.Worker([sys.executable, "-uc", IDLE, BENCH, log])
    try:
        assert len(worker.call("train", 3)) == 3
        assert all(seconds >= 0 for seconds in worker.call("train", 2))
        assert 1e6 < worker.call("memory") < 1e9
        with pytest.raises(RuntimeError, match="ValueError: no scores"):
            worker.call("score")
    finally:
        worker.close()
    assert "noise of a library" in log.read_text("utf-8")


@pytest.mark.parametrize("name", ["cross_encoder_float32", "google_float32"])
def test_peers_train_on_the_same_pairs(measure, directory, name):
    environments = measure.peers.default_directory() / "envs"
    peer = measure.CONTENDERS[name].peer
    if not (environments / peer / "complete").exists():
        pytest.skip(f"no environment of {peer}: scripts/benchmarks/training makes it")
    python = measure.peers.python(peer, environments)
    bench = measure.Bench(directory / "training_quick", {name: python}, threads=2)
    worker = bench.start(name, num_train_steps=10)
    try:
        assert len(worker.call("train", 2)) == 2
        scores = np.array(worker.call("score"))
    finally:
        worker.close()
    with np.load(directory / "training_quick" / measure.work.PAIRS) as arrays:
        assert scores.shape == arrays["test_labels"].shape
    assert np.isfinite(scores).all()
    assert scores.std() > 0


def test_an_unknown_contender_is_named_before_any_work(tmp_path):
    result = run("--contenders=ours_float32,gpt", f"--output={tmp_path / 'output'}")
    assert result.returncode == 2
    assert "'gpt'" in result.stderr
    assert "google_float32" in result.stderr
    assert not (tmp_path / "output").exists()

"""Training that was killed, terminated or damaged ends as if unbroken, bit by bit."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from bert_export.training import checkpoints
from tests.command_line import ROOT
from tests.training import interrupted_runs

ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
FAST = ("flip_newest", "halve_state", "terminated")
SLOW = sorted({*interrupted_runs.DAMAGES, *interrupted_runs.OTHERS} - {*FAST})


class Runs:
    """Directories of runs, and what each said."""

    def __init__(self, directory: Path, names: tuple[str, ...]) -> None:
        process = subprocess.run(
            [
                sys.executable,
                "-m",
                "tests.training.interrupted_runs",
                directory,
                *names,
            ],
            cwd=ROOT,
            env=os.environ | ONE_THREAD,
            capture_output=True,
            encoding="utf-8",
            timeout=300,
        )
        assert process.returncode == 0, f"{process.stdout}\n{process.stderr}"
        self.directory = directory
        parts = re.split("^-- (.*)\n", process.stdout, flags=re.MULTILINE)[1:]
        self.said = dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.fixture(scope="module")
def fast_runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("fast runs"), FAST)


@pytest.fixture(scope="module")
def slow_runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("slow runs"), tuple(SLOW))


def tensors(prefix: str | None) -> dict[str, np.ndarray]:
    assert prefix is not None
    reader = tf.train.load_checkpoint(prefix)
    return {
        name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()
    }


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(other[name], value, err_msg=name)


def assert_ended_like_unbroken(runs: Runs, name: str) -> None:
    unbroken, run = runs.directory / "unbroken", runs.directory / name
    newest = tensors(checkpoints.newest_checkpoint(unbroken))
    assert newest["global_step"] == interrupted_runs.STEPS
    # Every weight, and the optimizer's moments too.
    assert len([key for key in newest if key.endswith("adam_v")]) > 10
    assert_same(newest, tensors(checkpoints.newest_checkpoint(run)))
    best = tensors(checkpoints.best_checkpoint(unbroken))
    assert_same(best, tensors(checkpoints.best_checkpoint(run)))
    curve = checkpoints.read_curve(unbroken)
    assert [point["step"] for point in curve] == [0, 4, 8, 12, 14]
    assert checkpoints.read_curve(run) == curve

    def files(directory: Path) -> set[str]:
        found = {str(p.relative_to(directory)) for p in directory.rglob("*")}
        return {file for file in found if "tfevents" not in file}

    if name == "flip_middle":
        # It cannot be had again, and an older one is kept in its place.
        assert len(files(run)) == len(files(unbroken))
    else:
        assert files(run) == files(unbroken)
        state = (unbroken / "checkpoint").read_bytes()
        assert (run / "checkpoint").read_bytes() == state


@pytest.mark.parametrize("name", FAST)
def test_it_ends_like_an_unbroken_run(fast_runs, name):
    assert_ended_like_unbroken(fast_runs, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_it_ends_like_an_unbroken_run_whatever_is_damaged(slow_runs, name):
    assert_ended_like_unbroken(slow_runs, name)


def test_the_average_is_the_best(fast_runs):
    """Else nothing here would tell whether averages are made again rightly."""
    unbroken = fast_runs.directory / "unbroken"
    best = checkpoints.global_step(checkpoints.best_checkpoint(unbroken))
    assert best == 8


def test_a_damaged_checkpoint_is_named_in_a_line(fast_runs):
    said = fast_runs.said["flip_newest"]
    (line,) = (line for line in said.splitlines() if "damaged" in line)
    assert re.search("damaged, passed over: .*flip_newest/model.ckpt-12: ", line)
    assert "Checksum does not match" in line
    assert "going on from step 8 of 14" in said


def test_sigterm_finishes_the_step_and_says_where_it_stopped(fast_runs):
    said = fast_runs.said["terminated"]
    assert "terminated at step 6 of 14; run again to go on" in said
    assert "going on from step 6 of 14" in said
    assert "terminated at step 7 of 14" in said
    assert "going on from step 7 of 14" in said
    assert "damaged" not in said


@pytest.mark.slow
def test_sigterm_while_a_checkpoint_is_scored_leaves_that_for_later(slow_runs):
    said = slow_runs.said["terminated_while_scoring"]
    assert "terminated at a checkpoint that is yet to be scored" in said
    assert "going on from step 8 of 14" in said


@pytest.mark.slow
def test_what_cannot_be_had_again_starts_anew_and_says_so(slow_runs):
    for name in ("flip_all", "halve_curve", "flip_best_at_the_end"):
        assert "training starts anew: " in slow_runs.said[name], name
        assert "going on" not in slow_runs.said[name], name
    for name in ("flip_best", "flip_best_and_newest"):
        assert "made anew: " in slow_runs.said[name], name
        assert "going on" in slow_runs.said[name], name
    for name in ("lose_state", "leave_half_a_save"):
        assert "going on from step 12 of 14" in slow_runs.said[name], name


@pytest.fixture
def checkpoint(fast_runs, tmp_path):
    """A copy of a whole checkpoint."""
    best = fast_runs.directory / "unbroken" / "best"
    checkpoints.copy_checkpoint(checkpoints.newest_checkpoint(best), tmp_path / "copy")
    prefix = checkpoints.newest_checkpoint(tmp_path / "copy")
    assert prefix is not None
    return Path(prefix)


@pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00001"])
def test_no_flipped_bit_passes_for_whole(checkpoint, suffix, capsys):
    file = checkpoint.with_name(checkpoint.name + suffix)
    content = file.read_bytes()
    before = tensors(str(checkpoint))
    unnoticed = []
    step = max(1, len(content) // 400)
    for place in range(0, len(content), step):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        if checkpoints.is_whole(str(checkpoint)):
            # Some bytes stand for nothing: an index's padding.
            assert_same(before, tensors(str(checkpoint)))
            unnoticed.append(place)
    assert len(unnoticed) < 0.1 * len(content) / step
    for length in range(0, len(content), step):
        file.write_bytes(content[:length])
        assert not checkpoints.is_whole(str(checkpoint)), length
    file.unlink()
    assert not checkpoints.is_whole(str(checkpoint))
    file.write_bytes(content)
    assert checkpoints.is_whole(str(checkpoint))
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("damaged, passed over: ") for line in lines)

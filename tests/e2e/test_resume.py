"""A training that is killed goes on from its last checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from bert_export.training import estimator as training
from tests.command_line import ROOT, SAMPLE, done, run

STEPS = 80
EVERY = 20


def test_killed_training_goes_on(tmp_path):
    arguments = (
        "train",
        SAMPLE,
        f"--workdir={tmp_path}",
        f"--config.train.max_steps={STEPS}",
        f"--config.train.save_checkpoints_steps={EVERY}",
        "--config.eval.checkpoint_mentions=4",
    )
    model_dir = tmp_path / "model"
    process = subprocess.Popen(
        [sys.executable, "-m", "bert_export", *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 200
        while not (model_dir / f"model.ckpt-{2 * EVERY}.index").exists():
            assert process.poll() is None, "ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    killed_at = training.global_step(training.newest_checkpoint(model_dir))
    assert EVERY <= killed_at < STEPS
    assert not (tmp_path / "evaluation.json").exists()

    # Another config is refused, and changes nothing.
    config = (tmp_path / "config.json").read_bytes()
    other = run(*arguments, "--config.train.learning_rate=1.0")
    assert other.returncode == 2
    assert "holds a model trained with train.learning_rate=" in other.stderr
    assert (tmp_path / "config.json").read_bytes() == config

    result = done(*arguments)
    assert f"going on from step {killed_at} of {STEPS}" in result.stdout
    newest = training.newest_checkpoint(model_dir)
    assert training.global_step(newest) == STEPS
    steps = [point["step"] for point in training.read_curve(model_dir)]
    assert steps == list(range(0, STEPS + 1, EVERY))
    assert (tmp_path / "config.json").read_bytes() == config

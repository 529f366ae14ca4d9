"""A training that is killed or terminated goes on from its last checkpoint."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time

from bert_export.training import estimator as training
from tests.command_line import ROOT, SAMPLE, done, run

STEPS = 80
EVERY = 20


@contextlib.contextmanager
def started(*arguments: str):
    process = subprocess.Popen(
        [sys.executable, "-m", "bert_export", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


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
    with started(*arguments) as process:
        deadline = time.monotonic() + 200
        while not (model_dir / f"model.ckpt-{EVERY}.index").exists():
            assert process.poll() is None, "ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    killed_at = training.global_step(training.newest_checkpoint(model_dir))
    assert killed_at < STEPS
    assert not (tmp_path / "evaluation.json").exists()

    # Another config is refused, and changes nothing.
    config = (tmp_path / "config.json").read_bytes()
    other = run(*arguments, "--config.train.learning_rate=1.0")
    assert other.returncode == 2
    assert "holds a model trained with train.learning_rate=" in other.stderr
    assert (tmp_path / "config.json").read_bytes() == config

    with started(*arguments) as process:
        for line in process.stdout:
            if "going on from step" in line:
                process.send_signal(signal.SIGTERM)
                break
        output, _ = process.communicate(timeout=200)
        last = output.splitlines()[-1]
        assert process.returncode == 143, output
        assert last.startswith("bert-export: terminated at step ")
    terminated_at = int(re.search(r"at step (\d+)", last)[1])
    assert killed_at < terminated_at < STEPS
    newest = training.newest_checkpoint(model_dir)
    assert training.global_step(newest) == terminated_at
    assert not (tmp_path / "error.log").exists()

    result = done(*arguments)
    assert f"going on from step {terminated_at} of {STEPS}" in result.stdout
    newest = training.newest_checkpoint(model_dir)
    assert training.global_step(newest) == STEPS
    assert not (model_dir / "interrupted").exists()
    steps = [point["step"] for point in training.read_curve(model_dir)]
    assert steps == list(range(0, STEPS + 1, EVERY))
    assert (tmp_path / "config.json").read_bytes() == config

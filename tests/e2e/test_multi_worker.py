"""Two worker processes train as one does, survive each other, and leave the chief."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from bert_export.training import checkpoints
from tests.command_line import ROOT, SAMPLE, done

STEPS, EVERY = 40, 20


def free_addresses(count: int) -> list[str]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


@contextlib.contextmanager
def started(*arguments: str):
    """Two processes of a command, the chief first; killed at the end at the latest."""
    cluster = {"worker": free_addresses(2)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "bert_export", *arguments],
            cwd=ROOT,
            env=os.environ
            | {
                "TF_CONFIG": json.dumps(
                    {"cluster": cluster, "task": {"type": "worker", "index": index}}
                )
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        for index in range(2)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 200
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_two_workers_end_like_one(tmp_path):
    bert = json.loads((ROOT / "data" / "bert_config.json").read_text("utf-8"))
    # Dropout differs from worker to worker.
    bert |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    bert_config = tmp_path / "bert_config.json"
    bert_config.write_text(json.dumps(bert), encoding="utf-8")

    def arguments(workdir: Path) -> tuple[str, ...]:
        return (
            SAMPLE,
            f"--workdir={workdir}",
            f"--config.model.bert_config={bert_config}",
            f"--config.train.max_steps={STEPS}",
            f"--config.train.save_checkpoints_steps={EVERY}",
            "--config.eval.checkpoint_mentions=8",
        )

    one, two = tmp_path / "one", tmp_path / "two"
    done("train", *arguments(one))

    with started("train", *arguments(two)) as (chief, helper):
        wait_for(two / "model" / f"model.ckpt-{EVERY}.index", chief)
        helper.kill()
        output, _ = chief.communicate(timeout=200)
        # It does not go on alone, nor wait for ever.
        assert chief.returncode == 1, output
        assert "another worker was lost" in output
    assert checkpoints.newest_checkpoint(two / "model") is not None

    with started("run", *arguments(two)) as processes:
        outputs = [process.communicate(timeout=280)[0] for process in processes]
        assert [p.returncode for p in processes] == [0, 0], outputs
    for output in outputs:
        assert "going on from step" in output
    chief_said, helper_said = outputs
    # The chief alone evaluates and exports.
    assert "published: " in chief_said
    assert "link accuracy" in chief_said
    assert "published" not in helper_said
    assert "link accuracy" not in helper_said
    (artifact,) = (p for p in (two / "export").iterdir() if p.name.isdigit())
    done("smoke_test", f"--artifact={artifact}")

    curves = [checkpoints.read_curve(workdir / "model") for workdir in (one, two)]
    assert [point["step"] for point in curves[0]] == list(range(0, STEPS + 1, EVERY))
    for alone, together in zip(*curves, strict=True):
        assert together == pytest.approx(alone, rel=1e-5)
    # Sums are added up in another order: float32's last digits differ, and Adam, which
    # divides by a gradient's own size, carries them on.
    ends = [
        tf.train.load_checkpoint(checkpoints.newest_checkpoint(workdir / "model"))
        for workdir in (one, two)
    ]
    shapes = [end.get_variable_to_shape_map() for end in ends]
    assert shapes[0] == shapes[1]
    for name in shapes[0]:
        alone, together = (end.get_tensor(name) for end in ends)
        np.testing.assert_allclose(together, alone, atol=1e-4, err_msg=name)

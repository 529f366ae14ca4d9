"""Retraining that is killed again and again ends as if it had not been.

One clean run gives the model to expect. Then the same run is killed at many moments:
at every change of a file while it publishes and at some in the stages before; its
corpus is replaced, it is terminated, its newest checkpoint is damaged, and its disk is
full. All the while another process looks at what is there to be served.
"""

from __future__ import annotations

import collections
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import pytest

from bert_export.config import RETRAIN_STAGES
from bert_export.release import manifest
from tests.command_line import ROOT

DATA = ROOT / "data"
NAME = "sample_linker"
STEPS, EVERY = 30, 10
# A stage is killed at its 4th change of a file, its 8th, 16th …, and at last every 64.
FIRST_KILL, STRIDE = 4, 64
EXPECTED_KILLS = 40


class Retraining:
    """A workdir, a model base and a corpus to retrain with."""

    def __init__(self, directory: Path, base: Path | None = None) -> None:
        self.directory = directory
        self.workdir = directory / "work"
        self.base = directory / "base"
        self.corpus = directory / "mentions.jsonl"
        directory.mkdir(exist_ok=True)
        if base is not None:
            shutil.copytree(base, self.base)

    def command(self, *flags: str) -> list[str]:
        return [
            "retrain",
            "--config=configs/sample.py",
            f"--workdir={self.workdir}",
            f"--model_base={self.base}",
            f"--config.corpus.mentions={self.corpus}",
            "--config.export.proof_mentions=10",
            "--config.export.golden_requests=8",
            "--config.export.warmup_requests=1",
            "--config.eval.checkpoint_mentions=4",
            f"--config.train.max_steps={STEPS}",
            f"--config.train.save_checkpoints_steps={EVERY}",
            # A model as small as this is good and bad by chance.
            "--config.gate.max_drop=100",
            "--config.gate.golden_max_drop=100",
            "--config.gate.slice_max_drop=100",
            "--config.gate.max_latency_ratio=100",
            *flags,
        ]

    def start(self, *flags: str, kill_at: int | None = None) -> subprocess.Popen[str]:
        program = ["-m", "bert_export"]
        if kill_at is not None:
            directories = f"{self.workdir},{self.base}"
            program = ["tests/kill_at.py", str(kill_at), directories]
        environment = os.environ | {
            "TF_NUM_INTRAOP_THREADS": "1",
            "TF_NUM_INTEROP_THREADS": "1",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        return subprocess.Popen(
            [sys.executable, *program, *self.command(*flags)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )

    def run(self, *flags: str, kill_at: int | None = None) -> tuple[int, str]:
        """The exit code and all that was printed."""
        process = self.start(*flags, kill_at=kill_at)
        output, _ = process.communicate(timeout=300)
        return process.returncode, output

    def done(self, *flags: str) -> str:
        code, output = self.run(*flags)
        assert code == 0, output
        return output

    def state(self) -> dict:
        path = self.workdir / "retrain.json"
        return json.loads(path.read_text("utf-8")) if path.exists() else {}

    @property
    def completed(self) -> dict:
        """The stages of the run that is not over."""
        return (self.state().get("run") or {}).get("completed", {})

    def run_dir(self) -> Path:
        return self.workdir / "runs" / self.state()["run"]["run_id"]

    def events(self, *names: str) -> list[dict]:
        path = self.workdir / "log.jsonl"
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] in names]

    def current(self) -> dict:
        return json.loads((self.base / NAME / "current.json").read_text("utf-8"))

    def published(self) -> Path:
        return self.base / NAME / str(self.current()["version"])

    def files(self) -> set[str]:
        """All that lies in the workdir, with names of runs and versions left out."""
        found = set()
        for path in (path for path in self.workdir.rglob("*") if path.is_file()):
            parts = path.relative_to(self.workdir).parts
            if parts[0] == "runs":
                parts = ("runs", *parts[2:])
            name = "/".join("N" if part.isdigit() else part for part in parts)
            found.add("events" if "tfevents" in name else name)
        return found


def write_corpus(path: Path, last: int) -> None:
    """The sample's mentions but for the last few, by one rename."""
    lines = (DATA / "mentions.jsonl").read_text("utf-8").splitlines(keepends=True)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(lines[: len(lines) - last]), "utf-8")
    partial.rename(path)


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> Retraining:
    """A base with a first version, and a clean run that publishes a second one."""
    first = Retraining(tmp_path_factory.mktemp("a clean") / "first")
    write_corpus(first.corpus, last=1)
    first.done("--config.train.max_steps=2")
    clean = Retraining(first.directory.parent / "clean", first.base)
    write_corpus(clean.corpus, last=0)
    # Refused, then judged by another limit: not trained again.
    code, output = clean.run("--config.gate.max_size_ratio=0.5")
    assert code == 3, output
    assert "is not published: size" in output
    assert clean.current() == first.current()
    output = clean.done()
    assert [event["stage"] for event in clean.events("skip")] == [
        "prepare",
        "train",
        "evaluate",
        "export",
    ]
    assert "published: " in output
    assert clean.current()["previous"] == first.current()["version"]
    clean.first = first  # type: ignore[attr-defined]
    return clean


@pytest.fixture
def retraining(expected, tmp_path) -> Iterator[Retraining]:
    """The same task, with a reader of the base that must never see half a version."""
    task = Retraining(tmp_path / "killed", expected.first.base)
    write_corpus(task.corpus, last=0)
    report = tmp_path / "reader.json"
    reader = subprocess.Popen(
        [sys.executable, "tests/read_base.py", str(task.base / NAME), str(report)],
        cwd=ROOT,
    )
    try:
        yield task
    finally:
        reader.terminate()
        assert reader.wait(60) == 0
    seen = json.loads(report.read_text("utf-8"))
    assert seen["wrong"] == []
    assert seen["polls"] > 100
    assert set(seen["versions"]) == {
        path.name for path in (task.base / NAME).iterdir() if path.name.isdigit()
    }
    assert seen["current"] == [
        expected.first.current()["version"],
        task.current()["version"],
    ]


def assert_same(found: Retraining, expected: Retraining) -> None:
    """The published model, and what is left of the run, are the clean run's."""
    ours, clean = manifest.read(found.published()), manifest.read(expected.published())
    assert ours["data_fingerprint"] == clean["data_fingerprint"]
    assert ours["checkpoint"] == clean["checkpoint"]
    for key in ("link_accuracy", "mrr", "roc_auc"):
        assert ours["metrics"][key] == pytest.approx(clean["metrics"][key], abs=1e-6)
    ours_golden, clean_golden = (
        json.loads((task.published() / "assets.extra/golden_requests.json").read_text())
        for task in (found, expected)
    )
    for ours, clean in zip(
        ours_golden["requests"], clean_golden["requests"], strict=True
    ):
        assert ours["example"] == clean["example"]
        assert ours["score"] == pytest.approx(clean["score"], abs=1e-6)
    assert found.current()["previous"] == expected.current()["previous"]
    # The disk is used as if nothing had happened, and no lock sticks.
    assert found.files() - {"runs/error.log"} == expected.files()
    assert {path.name for path in (found.base / NAME).rglob(".*")} <= {".lock"}
    assert found.state()["run"] is None
    assert "nothing to do" in found.done()


@pytest.mark.slow
def test_killed_at_every_change_of_a_file(retraining, expected):
    kills: collections.Counter[int] = collections.Counter()

    def killed(kill_at: int) -> bool:
        code, output = retraining.run(kill_at=kill_at)
        if code == 0:
            return False
        assert code == -signal.SIGKILL, output
        kills[len(retraining.completed)] += 1
        return True

    # Here and there in each stage until the model is judged …
    for stage in RETRAIN_STAGES[:-1]:
        change = FIRST_KILL
        while stage not in retraining.completed:
            assert killed(change)
            change += min(change, STRIDE)
    # … then at each change.
    change = 1
    while killed(change):
        change += 1
    assert kills.total() >= EXPECTED_KILLS
    assert len(kills) >= 4
    assert_same(retraining, expected)


@pytest.mark.slow
def test_replaced_terminated_and_damaged(retraining, expected):
    write_corpus(retraining.corpus, last=5)
    process = retraining.start()
    wait_until(lambda: retraining.events("done"), process)
    given_up = retraining.state()["run"]["run_id"]
    write_corpus(retraining.corpus, last=0)
    wait_until(lambda: retraining.events("dropped"), process)
    (dropped,) = retraining.events("dropped")
    assert dropped["run_id"] == given_up
    assert "replaced during the run: corpus.mentions" in dropped["message"]
    wait_until(
        lambda: list(retraining.workdir.glob(f"runs/*/model/model.ckpt-{EVERY}.index")),
        process,
    )
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143, output
    assert "terminated" in output
    assert retraining.state()["run"]["run_id"] != given_up

    # What the training wrote last cannot be read any more.
    model_dir = retraining.run_dir() / "model"
    newest = max(model_dir.rglob("model.ckpt-*.data-*"), key=os.path.getmtime)
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    output = retraining.done()
    assert "damaged" in output
    # What is left of the run that was given up goes with time, as those of any run.
    shutil.rmtree(retraining.workdir / "runs" / given_up)
    assert_same(retraining, expected)


@pytest.mark.slow
def test_disk_full_in_every_stage(expected, tmp_path):
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", directory],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.decode().strip()}")

    def resize(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", directory], check=True)

    try:
        shutil.copytree(expected.first.base, directory / "base")
        task = Retraining(directory)
        write_corpus(task.corpus, last=0)
        for stage in RETRAIN_STAGES:
            used = shutil.disk_usage(directory).used
            # Two pages are left.
            resize(f"{used // 1024 + 8}k")
            code, output = task.run(f"--until={stage}")
            assert code == 1, output
            assert "Traceback" not in output
            assert "No space left" in output, output
            assert task.current() == expected.first.current()
            assert stage not in task.completed
            resize("64m")
            task.done(f"--until={stage}")
        assert_same(task, expected)
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


@pytest.mark.slow
def test_training_goes_on_from_production(expected, tmp_path):
    task = Retraining(tmp_path / "warm", expected.first.base)
    write_corpus(task.corpus, last=3)
    vocab = tmp_path / "vocab.txt"
    vocab.write_bytes((DATA / "vocab.txt").read_bytes().replace(b"a\n", b"zz\n", 1))
    code, output = task.run(
        "--warm_start", "--until=prepare", f"--config.model.vocab={vocab}"
    )
    assert code == 2
    assert "is not that of the model in production" in output
    output = task.done("--warm_start", "--until=train")
    version = expected.first.current()["version"]
    assert f"training goes on from version {version}" in output
    (loaded,) = re.findall(r"weights: .*: (\d+ variables loaded.*)", output)
    assert "new:" not in loaded


@pytest.mark.slow
def test_one_at_a_time(expected):
    lock = filelock.FileLock(expected.workdir / "retrain.lock")
    with lock:
        holder = {"pid": os.getpid(), "host": "here", "since": "2026-01-01T00:00:00Z"}
        (expected.workdir / "retrain.lock.json").write_text(json.dumps(holder))
        code, output = expected.run()
    assert code == 4
    assert f"another run is at work: process {os.getpid()} on here, since" in output
    (expected.workdir / "retrain.lock.json").unlink()

    def times() -> dict[Path, int]:
        paths = (path for path in expected.base.rglob("*") if path.is_file())
        return {path: path.stat().st_mtime_ns for path in paths}

    before = times()
    environment = os.environ | {"PYTHONPROFILEIMPORTTIME": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "bert_export", *expected.command()],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert "nothing to do" in result.stdout
    assert " tensorflow\n" not in result.stderr
    assert times() == before


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        if process.poll() is not None:
            pytest.fail(f"ended with {process.returncode}: {process.communicate()[0]}")
        assert time.monotonic() < deadline
        time.sleep(0.01)

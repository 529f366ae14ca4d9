"""The benchmark of inference with a tiny model; its peers where they are installed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib import image

from tests import torch_environment

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "scripts" / "benchmarks" / "inference_bench"
ARTIFACTS = ("saved_model", "serving_model", "onnx")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    # Not scripts/benchmarks/inference, which would set up a .venv.
    return subprocess.run(
        [sys.executable, str(BENCH / "measure.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("with a blank")


@pytest.fixture(scope="module")
def output(workdir):
    names = ",".join(("estimator", *ARTIFACTS))
    directory = workdir / "output"
    result = run(
        "--quick",
        f"--contenders={names}",
        f"--workdir={workdir}",
        f"--output={directory}",
    )
    assert result.returncode == 0, result.stderr
    return directory


@pytest.fixture(scope="module")
def measured(output):
    return json.loads((output / "benchmarks" / "inference.json").read_text("utf-8"))


def worker(interpreter: Path, program: str, name: str, model: Path, requests: Path):
    """The scores of all batches, from ids, by a worker that the test starts itself."""
    calls = [{"call": "scores", "args": ["ids", "batches", None]}]
    done = subprocess.run(
        [
            *map(str, (interpreter, BENCH / program, name, model, requests)),
            str(requests.with_name("test.log")),
        ],
        input="".join(f"{json.dumps(call)}\n" for call in calls),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "2", "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    ready, answer = map(json.loads, done.stdout.splitlines())
    assert ready == {"result": "ready"}
    return [score for batch in answer["result"] for score in batch]


def test_every_contender_is_timed_for_every_kind_of_requests(measured):
    cells = measured["trained"]["contenders"]
    assert set(cells) == set(ARTIFACTS)
    for cell in cells.values():
        assert cell["start_seconds"] > 0
        assert cell["first_ms"] > 0
        assert set(cell["times"]) == set(cell["measures"])
        for kinds in cell["times"].values():
            assert set(kinds) == {"mentions", "batches"}
            for times in kinds.values():
                assert 0 < times["q1"] <= times["median"] <= times["q3"]
        assert cell["times"]["ids"]["mentions"]["runs"] == 20
    assert cells["serving_model"]["measures"] == ["ids", "text"]
    assert cells["saved_model"]["measures"] == ["ids"]


def test_all_link_alike(measured):
    cells = measured["trained"]["contenders"]
    assert {cell["same_links"] for cell in cells.values()} == {1.0}
    assert len({cell["link_accuracy"] for cell in cells.values()}) == 1


def test_cold_starts_are_those_of_artifacts_and_of_the_checkpoint(measured):
    assert set(measured["cold"]) == {"estimator", "saved_model", "onnx"}
    # What its goal is about: the artifact imports no TensorFlow.
    assert measured["cold"]["onnx"]["q3"] < measured["cold"]["estimator"]["q1"]


def test_the_page_has_the_measured_numbers_and_the_docs_text(output, measured):
    page = (output / "benchmarks.md").read_text("utf-8")
    sections = dict(
        re.findall(r"<!-- measured: (\w+) -->\n(.*?)<!-- end -->", page, re.S)
    )
    for cell in measured["trained"]["contenders"].values():
        median = cell["times"]["ids"]["mentions"]["median"]
        assert f"{median:.2f} (" in sections["inference_one"]
    docs = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
    own_text = r"(<!-- measured: \w+ -->\n).*?(<!-- end -->)"
    emptied = [re.sub(own_text, r"\1\2", text, flags=re.S) for text in (page, docs)]
    assert emptied[0] == emptied[1]


def test_the_plot_has_no_background_of_its_own(output):
    pixels = image.imread(output / "benchmarks" / "inference.png")
    assert pixels.shape[2] == 4
    assert pixels[0, 0, 3] == 0


def test_an_earlier_measurement_is_written_again(output, tmp_path):
    source = output / "benchmarks" / "inference.json"
    result = run(f"--report={source}", f"--output={tmp_path}")
    assert result.returncode == 0, result.stderr
    for name in ("benchmarks.md", "benchmarks/inference.json"):
        assert (tmp_path / name).read_bytes() == (output / name).read_bytes()


def test_a_peer_with_the_pooler_scores_as_we_do(output, workdir):
    python = torch_environment.interpreter()
    model = workdir / "inference" / "tiny"
    requests = model / "requests.json"
    ours = worker(
        Path(sys.executable), "ours_runtimes.py", "onnx", model / "ours/onnx", requests
    )
    peer = worker(
        python, "pytorch.py", "cross_encoder", model / "peers/pytorch", requests
    )
    assert peer == pytest.approx(ours, abs=2e-4)


def test_an_unknown_contender_is_named(tmp_path):
    result = run("--quick", "--contenders=onnx,nobody", f"--output={tmp_path}")
    assert result.returncode == 2
    assert "'nobody' is none of saved_model, serving_model, onnx" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_directory_without_a_run_is_refused(tmp_path):
    result = run(f"--run={tmp_path}", f"--workdir={tmp_path / 'w'}")
    assert result.returncode == 2
    assert "there is no config.json" in result.stderr
    assert "Traceback" not in result.stderr

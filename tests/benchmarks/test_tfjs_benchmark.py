"""The benchmark of TensorFlow.js with small models, in real Node and Chromium."""

from __future__ import annotations

import collections
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib import image

from bert_export import javascript
from bert_export.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "benchmarks" / "tfjs_bench" / "measure.py"
RUNTIMES = ("browser_webgl", "browser_wasm", "node_tensorflow", "node_wasm")
MODELS = ("mlp_small", "mobilenet_v2", "linker")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Not scripts/benchmarks/tfjs, which would set up a .venv.
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    try:
        javascript.node()
        chromium = javascript.chromium()
    except UserError as error:
        pytest.skip(str(error))
    if not shutil.which("npm"):
        pytest.skip("npm was not found on the PATH: install it with Node.js")
    if chromium is None:
        pytest.skip("no Chromium: install it, or name one with CHROMIUM_PATH")
    directory = tmp_path_factory.mktemp("with a blank")
    result = run("--quick", f"--output={directory}")
    assert result.returncode == 0, result.stderr
    return directory


@pytest.fixture(scope="module")
def measured(output):
    return json.loads((output / "tfjs.json").read_text("utf-8"))


def test_every_model_is_timed_in_every_runtime(measured):
    cells = {(cell["model"], cell["runtime"]) for cell in measured["cells"]}
    assert cells == {(model, runtime) for model in MODELS for runtime in RUNTIMES}
    assert [model["name"] for model in measured["models"]] == list(MODELS)
    # 32 * 64 + 64, 64 * 64 + 64, 64 * 10 + 10.
    assert measured["models"][0]["parameters"] == 6922


def test_layers_and_graph_compute_the_same_and_both_are_timed(measured):
    for cell in measured["cells"]:
        assert 0 <= cell["difference"] <= 1e-4
        assert 0 <= cell["difference_to_keras"] <= 1e-4
        layers, graph = cell["layers"], cell["graph"]
        assert layers["runs"] == graph["runs"] >= 3
        for times in (layers, graph):
            assert 0 < times["q1"] <= times["median"] <= times["q3"] < 60_000
        assert cell["ratio"] == layers["median"] / graph["median"]


def test_bigger_models_take_longer(measured):
    # All runtimes together: in one of them another process may be in the way.
    total = collections.Counter()
    for cell in measured["cells"]:
        total[cell["model"]] += cell["graph"]["median"]
    assert total["mobilenet_v2"] > total["mlp_small"]


def test_kernels_show_what_the_conversion_fuses(measured):
    for cell in measured["cells"]:
        layers, graph = (
            {name: used["count"] for name, used in cell[kind]["kernels"].items()}
            for kind in ("layers", "graph")
        )
        if cell["model"] == "mobilenet_v2":
            assert layers["FusedBatchNorm"] == 52
            assert "FusedBatchNorm" not in graph
            assert graph["FusedDepthwiseConv2D"] == 17
            assert sum(graph.values()) < sum(layers.values())
        elif cell["model"] == "linker":
            assert layers["Erf"] == graph["Erf"] == 2
            assert layers["Softmax"] == graph["Softmax"] == 3
        else:
            assert layers["_FusedMatMul"] == graph["_FusedMatMul"] == 3
        native = [cell[kind].get("native") for kind in ("layers", "graph")]
        if cell["runtime"] == "node_tensorflow":
            for share in native:
                assert share["calls"] >= 4
                assert 0 < share["native"] < share["total"]
        else:
            assert native == [None, None]


def test_the_exported_linker_agrees_with_python_and_is_held_against_the_goals(measured):
    goals = measured["goals"]
    converted = {"node_saved_model", *RUNTIMES}
    assert set(goals) == {"python", *converted}
    assert measured["linker"]["pairs"] == 6
    for runtime in converted:
        goal = goals[runtime]
        assert goal["difference"] <= 1e-4
        assert goal["ratio"] == goal["median"] / goals["python"]["median"]
    for runtime, limit in (
        ("node_saved_model", 1.5),
        ("node_tensorflow", 1.5),
        ("browser_wasm", 4.0),
    ):
        assert goals[runtime]["limit"] == limit
        assert goals[runtime]["reached"] == (goals[runtime]["ratio"] <= limit)


def test_the_page_has_the_measured_numbers_and_the_docs_text(output, measured):
    page = (output / "tfjs.md").read_text("utf-8")
    sections = re.findall(r"<!-- measured: (\w+) -->\n(.*?)<!-- end -->", page, re.S)
    assert all(text.strip() for _, text in sections)
    summary = dict(sections)["summary"]
    for cell in measured["cells"]:
        assert f"{100 * (cell['ratio'] - 1):.0f} %" in summary
    docs = (ROOT / "docs" / "benchmarks" / "tfjs.md").read_text("utf-8")
    own_text = r"(<!-- measured: \w+ -->\n).*?(<!-- end -->)"
    emptied = [re.sub(own_text, r"\1\2", text, flags=re.S) for text in (page, docs)]
    assert emptied[0] == emptied[1]


def test_the_plot_has_no_background_of_its_own(output):
    pixels = image.imread(output / "tfjs.png")
    assert pixels.shape[2] == 4
    assert pixels[0, 0, 3] == 0
    drawn = pixels[pixels[:, :, 3] > 0.9][:, :3]
    assert len(drawn) > 10_000
    # Neither black nor white, which would vanish on one of the two.
    assert drawn.mean(axis=1).min() > 0.2
    assert drawn.mean(axis=1).max() < 0.8


def test_a_missing_browser_is_said_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setenv("CHROMIUM_PATH", str(tmp_path / "nowhere"))
    result = run("--quick", f"--output={tmp_path / 'output'}")
    assert result.returncode == 2
    assert "CHROMIUM_PATH" in result.stderr
    assert not (tmp_path / "output").exists()

"""Times LayersModels and GraphModels in TensorFlow.js, and the exported linker.

Run it as scripts/benchmarks/tfjs, which sets up what it needs.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import report
from common import Worker, machine, quartiles, run
from names import EXPORTED, FROZEN, GRAPH, INPUTS, KINDS, MODELS_FILE, SAVED
from server import serve

from bert_export import javascript
from bert_export.config import read_json
from bert_export.errors import UserError

HERE = Path(__file__).resolve().parent
# By name: how people call it.
RUNTIMES = {
    "browser_webgl": "browser, WebGL",
    "browser_wasm": "browser, WASM",
    "node_tensorflow": "Node, tfjs-node",
    "node_wasm": "Node, WASM",
}
PYTHON = "python"
# tfjs-node also runs SavedModels, as a whole in TensorFlow's library.
NATIVE = "node_saved_model"
# How many times as long as in Python a request may take.
GOALS = {NATIVE: 1.5, "node_tensorflow": 1.5, "browser_wasm": 4.0}
# What has been published of GraphModels: % faster than LayersModels.
PUBLISHED = {"browser_webgl": [20, 30], "node_tensorflow": [70, 90]}
# Of LayersModel and GraphModel, and of GraphModel and Keras: the largest difference of
# two outputs, relative to the largest output.
TOLERANCE = 1e-4
WARM_UP = 0.1  # of the time measured
PROFILED_RUNS = 10


class Runtimes:
    """Worker processes by the name of their runtime, started when first asked for."""

    def __init__(self, address: str, packages: Path, threads: int):
        self.address = address
        self._threads = threads
        self._packages = packages
        self._workers: dict[str, Worker] = {}

    def __getitem__(self, name: str) -> Worker:
        if name not in self._workers:
            self._workers[name] = Worker(self._command(name))
        return self._workers[name]

    def _command(self, name: str) -> list[str | Path]:
        if name == PYTHON:
            return [sys.executable, HERE / "python_graph.py"]
        place, _, backend = name.partition("_")
        script = [javascript.node(), HERE / f"{place}.mjs", backend, self._packages]
        if place == "browser":
            script += [chromium(), self.address, str(self._threads)]
        return script

    def close(self, name: str) -> None:
        """Ends a worker."""
        self._workers.pop(name).close()

    def close_all(self) -> None:
        """Ends all workers."""
        for name in list(self._workers):
            self.close(name)


def chromium() -> Path:
    """The browser.

    Raises:
      UserError: there is none.
    """
    found = javascript.chromium()
    if found is None:
        raise UserError(
            "no Chromium found: install it (Debian, Ubuntu: apt-get install chromium), "
            "or name one with CHROMIUM_PATH"
        )
    return found


def measure_cell(
    runtimes: Runtimes, runtime: str, model: dict[str, Any], seconds: float, least: int
) -> dict[str, Any]:
    """LayersModel against GraphModel of one model in one runtime.

    Raises:
      RuntimeError: the two do not compute the same as Keras.
    """
    worker = runtimes[runtime]
    expected = np.array(model["expected"])
    ids = [f"{model['name']}/{kind}" for kind in KINDS]
    cell: dict[str, Any] = {"model": model["name"], "runtime": runtime}
    outputs = {}
    for kind, name in zip(KINDS, ids):
        loaded = worker.call("load", name, kind, *urls(runtimes, model["name"], kind))
        (output,) = loaded.values()
        outputs[kind] = np.array(output)
    largest = np.abs(expected).max()
    cell["difference"] = float(
        np.abs(outputs["layers"] - outputs["graph"]).max() / largest
    )
    cell["difference_to_keras"] = float(
        max(np.abs(output - expected).max() for output in outputs.values()) / largest
    )
    worst = max(cell["difference"], cell["difference_to_keras"])
    # NaN is not at most anything.
    if not worst <= TOLERANCE:
        raise RuntimeError(
            f"{model['title']} in {RUNTIMES[runtime]}: outputs differ by {worst:.1e} "
            f"of the largest, at most {TOLERANCE:.0e} was expected"
        )
    worker.call("time", ids, seconds * WARM_UP, 1, False)
    times = worker.call("time", ids, seconds, least, False)
    for kind, name in zip(KINDS, ids):
        cell[kind] = {
            **quartiles(times[name]),
            "kernels": worker.call("profile", name),
        }
        if runtime == "node_tensorflow":
            shares = worker.call("nativeShare", name, PROFILED_RUNS)
            cell[kind]["native"] = {
                key: float(np.median([share[key] for share in shares]))
                for key in ("calls", "native", "total")
            }
        worker.call("unload", name)
    cell["ratio"] = cell["layers"]["median"] / cell["graph"]["median"]
    return cell


def measure_goals(
    runtimes: Runtimes, models: Path, seconds: float, least: int
) -> dict[str, Any]:
    """The exported linker in every runtime, and the same graph in Python.

    All processes are there from the beginning and take turns, `least` of them; those
    that wait are idle. A run begins with arrays and ends with arrays.

    Raises:
      RuntimeError: one does not compute what Python does.
    """
    names = [PYTHON, NATIVE, *RUNTIMES]
    # By name: the process, and what the linker is called there.
    places = {name: (name, EXPORTED) for name in RUNTIMES}
    places[NATIVE] = ("node_tensorflow", SAVED)
    graph = models / EXPORTED / FROZEN
    inputs = models / EXPORTED / INPUTS
    expected = runtimes[PYTHON].call("load", EXPORTED, str(graph), str(inputs))
    differences = {}
    for name, (process, linker) in places.items():
        address, inputs_address = urls(runtimes, EXPORTED, GRAPH)
        kind = GRAPH
        if name == NATIVE:
            kind, address = "saved", str(models / EXPORTED / SAVED)
        loaded = runtimes[process].call("load", linker, kind, address, inputs_address)
        differences[name] = max(
            float(np.abs(np.subtract(loaded[key], value)).max())
            for key, value in expected.items()
        )
        if not differences[name] <= TOLERANCE:
            raise RuntimeError(
                f"the linker in {name} differs by {differences[name]:.1e} "
                f"from Python, at most {TOLERANCE:.0e} was expected"
            )

    def time(name: str, budget: float, runs: int) -> list[float]:
        if name == PYTHON:
            return runtimes[name].call("time", EXPORTED, budget, runs)
        process, linker = places[name]
        return runtimes[process].call("time", [linker], budget, runs, True)[linker]

    times: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        time(name, seconds * WARM_UP, 1)
    for turn in tqdm(range(least), desc="goals", unit="turn"):
        for name in names if turn % 2 else names[::-1]:
            times[name] += time(name, seconds / least, 1)
    goals = {name: quartiles(times[name]) for name in names}
    for name in places:
        goals[name]["difference"] = differences[name]
        goals[name]["ratio"] = goals[name]["median"] / goals[PYTHON]["median"]
        if name in RUNTIMES:
            goals[name]["kernels"] = runtimes[name].call("profile", EXPORTED)
        if name in GOALS:
            goals[name]["limit"] = GOALS[name]
            goals[name]["reached"] = goals[name]["ratio"] <= GOALS[name]
    return goals


def urls(runtimes: Runtimes, model: str, kind: str) -> tuple[str, str]:
    """Where a model and its inputs are."""
    base = f"{runtimes.address}/models/{model}"
    return f"{base}/{kind}/model.json", f"{base}/{INPUTS}"


def about_runtimes(runtimes: Runtimes) -> dict[str, Any]:
    """What it was measured on, and with."""
    node = subprocess.run(
        [javascript.node(), "--version"], capture_output=True, text=True, check=True
    )
    return {
        **machine(),
        "node": node.stdout.strip(),
        "chromium": runtimes["browser_wasm"].call("version"),
        **runtimes[PYTHON].call("about"),
        "runtimes": {name: runtimes[name].call("about") for name in RUNTIMES},
    }


@contextlib.contextmanager
def made_models(quick: bool, workdir: Path | None) -> Iterator[Path]:
    """A directory with all models, made by a process of its own."""
    with tempfile.TemporaryDirectory(prefix="tfjs_benchmark_") as directory:
        command = [sys.executable, str(HERE / "make_models.py"), directory]
        command += ["quick" if quick else "full"] + ([str(workdir)] if workdir else [])
        made = subprocess.run(command, check=False)
        if made.returncode:
            # It has said why.
            sys.exit(made.returncode)
        yield Path(directory)


def main() -> None:
    """Measures everything and writes the report."""
    parser = argparse.ArgumentParser(
        prog="scripts/benchmarks/tfjs", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--seconds",
        type=float,
        help="for each model in each runtime, both kinds together (default: 15)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="small models, for a moment each"
    )
    parser.add_argument(
        "--workdir",
        type=Path,
        help="a run with a trained linker (default: MiniLM with an untrained head)",
    )
    parser.add_argument(
        "--output", type=Path, default=report.DOCS, help="default: docs/benchmarks"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=2 if os.cpu_count() in (2, 3) else 0,
        help="of WASM in the browser; 0 for its own choice, half of the cores "
        "(default: as on the linking page, both of two cores)",
    )
    options = parser.parse_args()
    seconds = options.seconds or (0.3 if options.quick else 15.0)
    least = 3 if options.quick else 7
    packages = javascript.packages()
    chromium()
    with made_models(options.quick, options.workdir) as models:
        known = read_json(models / MODELS_FILE)
        directories = {
            "bench": HERE,
            "packages": packages / "node_modules",
            "models": models,
        }
        with serve(directories) as address:
            runtimes = Runtimes(address, packages, options.threads)
            try:
                about = about_runtimes(runtimes)
                goals = measure_goals(runtimes, models, seconds, least)
                runtimes.close_all()
                cells = []
                progress = tqdm(total=len(RUNTIMES) * len(known["models"]), unit="cell")
                for runtime in RUNTIMES:
                    for model in known["models"]:
                        progress.set_description(
                            f"{RUNTIMES[runtime]}: {model['title']}"
                        )
                        cells.append(
                            measure_cell(runtimes, runtime, model, seconds, least)
                        )
                        progress.update()
                    runtimes.close(runtime)
                progress.close()
            finally:
                runtimes.close_all()
    for model in known["models"]:
        del model["expected"]
    measured = {
        "date": datetime.date.today().isoformat(),
        "machine": about,
        "seconds": seconds,
        "runtimes": RUNTIMES,
        "published": PUBLISHED,
        **known,
        "cells": cells,
        "goals": goals,
    }
    report.write(measured, options.output)
    print(report.tables(measured))
    print(f"written: {options.output}/tfjs.json, tfjs.md, tfjs.png")


if __name__ == "__main__":
    run(main)

"""Times models of many shapes beside what arithmetic alone would take.

Run it as scripts/benchmarks/scaling, which sets up what it needs.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import linear
import names
import report
from arithmetic import Operations, forward, step
from common import (
    Worker,
    find_peak,
    machine,
    quartiles,
    quiet_environment,
    run,
    tensorflow_threads,
)
from names import FEW_PAIRS, MANY_PAIRS, TYPICAL_LENGTH
from peers import default_directory

from bert_export.config import read_json
from bert_export.errors import UserError
from bert_export.modeling.bert_config import BertConfig

HERE = Path(__file__).resolve().parent
# Kind of model: the precision of its products with weights.
SERVING = {names.ONNX: "float32", names.ONNX_INT8: "int8", names.SAVED_MODEL: "float32"}
TRAINING = {names.TRAINING: "float32", names.TRAINING_BFLOAT16: "bfloat16"}
# (layers, batch, length) of each series; all go through one point.
LENGTHS = (16, 32, 64, 128, 256, 512)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TRAINING_BATCHES = (1, 4, 16, 48, 128)
LAYERS = 6
# Each kind of model is timed at a point in so many turns.
TURNS = 2
# Of real requests, in one profile.
PROFILED = 8
# Of real requests, for which XLA compiles.
COMPILED = 4
# For XLA to compile whatever it can of a graph, on a CPU too.
XLA = {"TF_XLA_FLAGS": "--tf_xla_auto_jit=2 --tf_xla_cpu_global_jit"}
PREPARED = (1_000, 10_000, 100_000, 1_000_000)
EVALUATED = (1_000, 20_000, 100_000)
# Parts of the bound, and pairs a second.
GOALS = {"serving": 0.7, "training": 0.6, "prepare": 40_000}


class Bench:
    """Times points with worker processes, of which one computes at a time."""

    def __init__(self, models: Path, threads: int, peak: Mapping[str, float]):
        """Nothing is started yet."""
        self._models = models
        self._threads = threads
        self._peak = peak
        self._workers: dict[str, Worker] = {}
        self._layers = 0

    def start(
        self, kinds: Mapping[str, str], environment: Mapping[str, str] | None = None
    ) -> None:
        """Starts a process for each kind."""
        self._kinds = kinds
        threads = str(self._threads)
        for kind in kinds:
            self._workers[kind] = Worker(
                [sys.executable, HERE / "worker.py", kind, threads],
                {
                    "OMP_NUM_THREADS": threads,
                    **tensorflow_threads(self._threads),
                    **(environment or {}),
                },
            )

    def load(self, layers: int) -> None:
        """Has all load the model of that many layers."""
        self._layers = layers
        self._bert = BertConfig(**read_json(self._path / names.MODEL)["bert"])
        self._reads = read_json(self._path / names.MODEL)["reads"]
        for worker in self._workers.values():
            worker.call("load", str(self._path))

    @property
    def _path(self) -> Path:
        return self._models / str(self._layers)

    def time(
        self, work: str, requests: Sequence[Sequence[int]], seconds: float
    ) -> list[dict[str, Any]]:
        """A point for each kind.

        Args:
          work: names the requests.
          requests: tokens of each pair, by request.
          seconds: for each kind.
        """
        first, times = {}, {kind: [] for kind in self._workers}
        for kind, worker in self._workers.items():
            (first[kind],) = worker.call("time", requests[:1], 0, 1)
        for turn in range(TURNS):
            kinds = list(self._workers)
            for kind in kinds if turn % 2 else kinds[::-1]:
                times[kind] += self._workers[kind].call(
                    "time", requests, seconds / TURNS, min(2, len(requests))
                )
        pairs = sum(map(len, requests)) / len(requests)
        points = []
        for kind, taken in times.items():
            needed = self._needed(kind, requests)
            precision = self._kinds[kind]
            bound = needed.seconds(self._peak, precision) * 1000
            ms = quartiles(taken)
            points.append(
                {
                    "kind": kind,
                    "work": work,
                    "threads": self._threads,
                    "layers": self._layers,
                    "batch": pairs,
                    "length": sum(map(sum, requests)) / sum(map(len, requests)),
                    "first_ms": first[kind],
                    "ms": ms,
                    "pairs_a_second": 1000 * pairs / ms["median"],
                    "flops": needed.total,
                    "bound_ms": bound,
                    "share": bound / ms["median"],
                }
            )
        return points

    def _needed(self, kind: str, requests: Sequence[Sequence[int]]) -> Operations:
        """The mean of what requests need."""
        count = step if kind in TRAINING else forward
        every = [count(self._bert, lengths, self._reads) for lengths in requests]
        return Operations(
            sum(needed.weights for needed in every) // len(every),
            sum(needed.attention for needed in every) // len(every),
        )

    def profile(self, requests: Sequence[Sequence[int]]) -> dict[str, Any]:
        """By kind and operation: milliseconds and executions in a run."""
        return {
            kind: worker.call("profile", requests)
            for kind, worker in self._workers.items()
        }

    def close(self) -> None:
        """Ends all processes."""
        for worker in self._workers.values():
            worker.close()
        self._workers = {}


def shapes(layers: Sequence[int], largest: int) -> list[tuple[int, int, int]]:
    """(layers, batch, length) of all series, each once, layer by layer."""
    points = {
        *((LAYERS, FEW_PAIRS, length) for length in LENGTHS),
        *((LAYERS, batch, TYPICAL_LENGTH) for batch in BATCHES),
        *((count, MANY_PAIRS, TYPICAL_LENGTH) for count in layers),
    }
    return sorted(point for point in points if point[1] * point[2] <= largest)


def training_shapes(largest: int) -> list[tuple[int, int, int]]:
    """The same of training steps."""
    points = {
        *((LAYERS, FEW_PAIRS, length) for length in LENGTHS),
        *((LAYERS, batch, TYPICAL_LENGTH) for batch in TRAINING_BATCHES),
    }
    return sorted(point for point in points if point[1] * point[2] <= largest)


def real_requests(models: Path) -> dict[str, list[list[int]]]:
    """Requests with the lengths of real pairs: by mention, and in batches."""
    mentions = json.loads((models / names.LENGTHS).read_text("utf-8"))
    pairs = [length for mention in mentions for length in mention]
    whole = len(pairs) - MANY_PAIRS + 1
    return {
        "mentions": mentions,
        "batches": [pairs[at : at + MANY_PAIRS] for at in range(0, whole, MANY_PAIRS)]
        or [pairs],
    }


def measure_models(
    models: Path,
    all_threads: Sequence[int],
    peaks: Mapping[int, Mapping[str, float]],
    seconds: float,
    largest: int,
) -> dict[str, Any]:
    """Points of serving and training, and profiles with the most threads.

    Args:
      models: what make_models.py has written.
      all_threads: numbers of threads, ascending.
      peaks: by number of threads, operations a second by precision.
      seconds: for each kind at each point.
      largest: tokens of a batch.
    """
    layers = sorted(int(path.name) for path in models.iterdir() if path.name.isdigit())
    real = real_requests(models)
    points: list[dict[str, Any]] = []
    profiles: dict[str, Any] = {}
    for threads in all_threads:
        most = threads == max(all_threads)
        for kinds, todo in (
            (SERVING, shapes(layers, largest)),
            # One thread shows the same of bfloat16.
            (
                TRAINING if most else {names.TRAINING: "float32"},
                training_shapes(largest),
            ),
        ):
            bench = Bench(models, threads, peaks[threads])
            title = "training" if names.TRAINING in kinds else "serving"
            try:
                bench.start(kinds)
                loaded = 0
                for count, batch, length in tqdm(
                    todo, desc=f"{title}, threads: {threads}", unit="point"
                ):
                    if count != loaded:
                        bench.load(count)
                        loaded = count
                    requests = [[length] * batch]
                    points += bench.time("generated", requests, seconds)
                bench.load(LAYERS)
                for work, requests in real.items():
                    if kinds is SERVING or work == "batches":
                        points += bench.time(work, requests, 2 * seconds)
                if most:
                    profiles |= bench.profile(real["batches"][:PROFILED])
            finally:
                bench.close()
    return {"points": points, "profiles": profiles}


def measure_xla(
    models: Path, threads: int, peak: Mapping[str, float], seconds: float
) -> list[dict[str, Any]]:
    """The same points without XLA and with it: of one shape, and of real lengths.

    What XLA refuses has an `error` in place of times.
    """
    rows = []
    for kind in (names.SAVED_MODEL, names.TRAINING):
        for on in (False, True):
            bench = Bench(models, threads, peak)
            try:
                bench.start({kind: "float32"}, XLA if on else None)
                bench.load(LAYERS)
                for work, requests in (
                    ("generated", [[TYPICAL_LENGTH] * MANY_PAIRS]),
                    ("batches", real_requests(models)["batches"][:COMPILED]),
                ):
                    about = {"xla": on, "kind": kind, "work": work}
                    try:
                        (point,) = bench.time(work, requests, seconds)
                    except RuntimeError as error:
                        rows.append({**about, "error": str(error)})
                    else:
                        rows.append({**about, **point})
            finally:
                bench.close()
    return rows


def find_goals(measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was to be reached, and what was."""
    most = max(measured["threads"])

    def share(kind: str) -> float:
        (found,) = (
            point["share"]
            for point in measured["points"]
            if (point["kind"], point["work"], point["threads"])
            == (kind, "batches", most)
        )
        return found

    last = measured["linear"]["prepare"][-1]
    found = [
        *((kind, "share", share(kind), GOALS["serving"]) for kind in SERVING),
        *((kind, "share", share(kind), GOALS["training"]) for kind in TRAINING),
        ("prepare", "pairs a second", 1 / last["seconds_a_pair"], GOALS["prepare"]),
    ]
    return [
        {
            "name": name,
            "of": unit,
            "value": value,
            "goal": goal,
            "reached": value >= goal,
        }
        for name, unit, value, goal in found
    ]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All that the report tells of."""
    quick = options.quick
    config = names.QUICK_CONFIG if quick else names.CONFIG
    options.workdir.mkdir(parents=True, exist_ok=True)
    repeats = 1 if quick else linear.REPEATS
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="scaling_", dir=options.workdir) as made:
        models, scratch = Path(made) / "models", Path(made) / "linear"
        for directory in (models, scratch):
            directory.mkdir()
        run = options.workdir / f"scaling_{config}"
        making = subprocess.run(
            [sys.executable, str(HERE / "make_models.py"), str(models), run, config],
            env=quiet_environment(),
            check=False,
        )
        if making.returncode:
            # It has said why.
            sys.exit(making.returncode)
        words = json.loads((models / names.WORDS).read_text("utf-8"))
        about = read_json(models / str(LAYERS) / names.MODEL)
        made_in = time.perf_counter() - began
        all_threads = sorted({1, options.threads})
        rates = {
            threads: find_peak(threads, 0.01 if quick else 0.4)
            for threads in all_threads
        }
        peaks = {
            threads: {name: max(found.values()) for name, found in rate.items()}
            for threads, rate in rates.items()
        }
        measured = {
            "date": datetime.date.today().isoformat(),
            "machine": machine(),
            "versions": {
                name: importlib.metadata.version(name)
                for name in ("tensorflow", "onnxruntime")
            },
            "threads": all_threads,
            "model": about,
            "corpus": config,
            "peak": {str(threads): rate for threads, rate in rates.items()},
            **measure_models(
                models, all_threads, peaks, options.seconds, 1024 if quick else 8192
            ),
            "xla": measure_xla(
                models, options.threads, peaks[options.threads], options.seconds
            ),
            "linear": {
                "prepare": linear.measure_prepare(
                    config, (100, 1000) if quick else PREPARED, words, scratch, repeats
                ),
                "evaluate": linear.measure_evaluate(
                    config,
                    (100, 500) if quick else EVALUATED,
                    words,
                    models / names.SMALL,
                    scratch,
                    repeats,
                ),
            },
        }
        shutil.rmtree(scratch)
    measured["goals"] = find_goals(measured)
    measured["seconds"] = {
        "models": made_in,
        "all": time.perf_counter() - began,
    }
    return measured


def parse() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        prog="scripts/benchmarks/scaling", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--seconds",
        type=float,
        help="for each kind of model at each point, at least (default: 0.6)",
    )
    parser.add_argument(
        "--threads", type=int, default=2, help="and one thread (default: 2)"
    )
    parser.add_argument(
        "--workdir",
        type=Path,
        default=default_directory(),
        help="keeps the prepared corpus "
        "(default: bert_export_benchmarks in the user's cache)",
    )
    parser.add_argument(
        "--output", type=Path, default=report.DOCS, help="default: docs"
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny models, for a moment each"
    )
    parser.add_argument(
        "--report", type=Path, metavar="JSON", help="measure nothing, write its tables"
    )
    options = parser.parse_args()
    if options.seconds is None:
        options.seconds = 0.01 if options.quick else 0.6
    for name in ("seconds", "threads"):
        if getattr(options, name) <= 0:
            raise UserError(f"--{name}: expected more than 0")
    return options


def main() -> None:
    """Measures and writes the report."""
    options = parse()
    measured = read_json(options.report) if options.report else measure(options)
    report.write(measured, options.output)
    print(report.tables(measured))


if __name__ == "__main__":
    run(main)

"""Times exported linkers against what else serves the same weights on a CPU.

Run it as scripts/benchmarks/inference, which sets up what it needs.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import peers
import report
from common import (
    Worker,
    machine,
    quartiles,
    quiet_environment,
    run,
    tensorflow_threads,
)
from contenders import (
    BY_NAME,
    COLD,
    CONTENDERS,
    QUICK,
    REFERENCE,
    SAME_SCORES,
    SLOW,
    Contender,
)

from bert_export.config import read_json
from bert_export.errors import UserError
from bert_export.files import write_json

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
SEED = 17
# Requests of a kind that each answers, one after another, when it is its turn.
BLOCK = {"mentions": 10, "batches": 4}
BASE_BLOCK = {"mentions": 5, "batches": 2}
# Batches of which the scores are compared where link accuracy means nothing.
COMPARED = 10


class Bench:
    """The contenders with one model: what they are started with, and what was seen."""

    def __init__(
        self,
        models: Path,
        environments: Path | None,
        threads: int,
        contenders: list[Contender],
    ):
        """Looks for their environments and makes the peers' models.

        Args:
          models: what make_models.py has written.
          environments: where theirs are, or are made; None to take our own.
          threads: of each process.
          contenders: who is to take part.
        """
        self.models = models
        self.about = read_json(models / "model.json")
        self.skipped: dict[str, str] = {}
        self.commands: dict[str, list[str | Path]] = {}
        self._environment = {
            **dict.fromkeys(
                ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"),
                str(threads),
            ),
            **tensorflow_threads(threads),
            # Nothing is fetched while it is measured.
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "true",
            "PYTHONWARNINGS": "ignore",
        }
        interpreters = {None: Path(sys.executable)}
        reasons: dict[str, str] = {}
        for contender in contenders:
            name = contender.environment
            if environments is None:
                interpreters[name] = Path(sys.executable)
            if name in interpreters or name in reasons:
                continue
            try:
                interpreters[name] = peers.python(name, environments)
                _make_peer_models(name, interpreters[name], models, self._environment)
            except peers.Unavailable as error:
                reasons[name] = str(error)
        for contender in contenders:
            if contender.environment in reasons:
                self.skipped[contender.name] = reasons[contender.environment]
            else:
                self.commands[contender.name] = [
                    interpreters[contender.environment],
                    HERE / contender.program,
                    contender.name,
                    models / contender.model,
                ]
        self.logs = models / "logs"
        self.logs.mkdir(exist_ok=True)

    def start(self, name: str, requests: str = "requests.json") -> Worker:
        """A contender's process, when it has loaded its model.

        Raises:
          RuntimeError: it cannot be loaded.
        """
        log = self.logs / f"{name}.log"
        return Worker(
            [*self.commands[name], self.models / requests, log], self._environment
        )


def _make_peer_models(
    name: str, python: Path, models: Path, environment: dict[str, str]
) -> None:
    """Lets a peer's own exporters write what its runtimes load, unless they have.

    Raises:
      Unavailable: they failed.
    """
    commands = {
        "pytorch": [
            HERE / "pytorch_artifacts.py",
            models / "peers" / "pytorch",
            models / "peers" / "texts.json",
        ],
        "google_bert": [
            HERE / "google_bert.py",
            "export",
            models / "peers" / "google",
        ],
    }
    if name not in commands:
        return
    made = models / "peers" / f"{name}_made"
    made_with = "\n".join([*peers.PEERS[name], commands[name][0].read_text("utf-8")])
    if made.exists() and made.read_text("utf-8") == made_with:
        return
    print(f"{name}: exporting its models", file=sys.stderr)
    done = subprocess.run(
        [str(part) for part in (python, *commands[name])],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise peers.Unavailable(f"{name} cannot export its models: {words[-1]}")
    # Last: what was interrupted is made anew.
    made.write_text(made_with, "utf-8")


def measure(
    bench: Bench,
    rounds: int,
    block: dict[str, int],
    measures: tuple[str, ...],
    scored: int | None,
) -> dict[str, Any]:
    """All contenders of a bench, in turns; then their scores.

    Args:
      bench: the contenders.
      rounds: how often it is everybody's turn.
      block: requests of each kind that are answered in a turn.
      measures: "text", "ids" or both.
      scored: batches of which the scores are compared; None for all.

    Returns:
      By contender: `start_seconds` until its model was loaded, `measures` that it
      has, `first_ms` of the very first request, and `times` by measure and kind; or
      `skipped`, why it did not take part.
    """
    cells: dict[str, dict[str, Any]] = {
        name: {"skipped": reason} for name, reason in bench.skipped.items()
    }
    workers: dict[str, Worker] = {}
    order = {
        "mentions": list(range(bench.about["mentions"])),
        # The last one may be short.
        "batches": list(range(max(1, bench.about["pairs"] // bench.about["batch"]))),
    }
    generator = random.Random(SEED)
    for indices in order.values():
        generator.shuffle(indices)
    try:
        names = [name for name in bench.commands if BY_NAME[name].turns]
        for name in tqdm(names, desc="loading", unit="contender"):
            started = time.perf_counter()
            try:
                worker = workers[name] = bench.start(name)
                cell: dict[str, Any] = {"start_seconds": time.perf_counter() - started}
                cell["measures"] = [m for m in worker.call("ways") if m in measures]
                cell["times"] = {
                    m: {kind: [] for kind in block} for m in cell["measures"]
                }
                (cell["first_ms"],) = worker.call(
                    "time", "ids", "mentions", order["mentions"][:1]
                )
                for m in cell["measures"]:
                    for kind, size in block.items():
                        # Some compile anew for some shapes.
                        size = 1 if name in SLOW else size
                        worker.call("time", m, kind, order[kind][:size])
            except RuntimeError as error:
                cells[name] = {"skipped": str(error)}
                if name in workers:
                    workers.pop(name).close()
            else:
                cells[name] = cell
        for turn in tqdm(range(rounds), desc="rounds", unit="round"):
            generator.shuffle(names)
            for kind, size in block.items():
                indices = order[kind]
                chosen = [
                    indices[(turn * size + step) % len(indices)] for step in range(size)
                ]
                for name in names:
                    if name not in workers:
                        continue
                    cell = cells[name]
                    for m in cell["measures"]:
                        if name in SLOW:
                            taken = workers[name].call("time", m, kind, chosen[:1])
                        else:
                            # The first one wakes the process up.
                            taken = workers[name].call(
                                "time", m, kind, [chosen[-1], *chosen]
                            )[1:]
                        cell["times"][m][kind] += taken
        _score(bench, cells, workers, scored)
    finally:
        for worker in workers.values():
            worker.close()
    for cell in cells.values():
        for kinds in cell.get("times", {}).values():
            for kind, taken in kinds.items():
                kinds[kind] = quartiles(taken)
    return cells


def _score(
    bench: Bench, cells: dict[str, Any], workers: dict[str, Worker], count: int | None
) -> None:
    """Adds to each cell its link accuracy and how often it links as the reference.

    Scores are kept beside the models, as they do not change with the machine's mood.

    Args:
      bench: what was measured.
      cells: of `measure`.
      workers: the contenders' processes.
      count: batches to answer where the weights are random, which have no accuracy;
        None for all.
    """
    about = bench.about
    links = {
        name: _links(_scores(bench, name, worker, count), about["sizes"])
        for name, worker in tqdm(workers.items(), desc="scores", unit="contender")
        if name not in SAME_SCORES
    }
    for name, cell in cells.items():
        own = links.get(SAME_SCORES.get(name, name))
        if own is None or "skipped" in cell:
            continue
        cell["mentions"] = len(own)
        if count is None:
            cell["link_accuracy"] = _share(own, about["gold"])
        if REFERENCE in links:
            cell["same_links"] = _share(own, links[REFERENCE])


def _scores(bench: Bench, name: str, worker: Worker, count: int | None) -> list[float]:
    """A contender's scores of all pairs, or of those of the first batches."""
    contender = BY_NAME[name]
    described = json.dumps(
        [
            count,
            peers.PEERS.get(contender.environment or ""),
            (HERE / contender.program).read_text("utf-8"),
            *(
                [str(path), path.stat().st_size, path.stat().st_mtime_ns]
                for path in sorted((bench.models / contender.model).rglob("*"))
                if path.is_file()
            ),
            hashlib.sha256((bench.models / "requests.json").read_bytes()).hexdigest(),
        ]
    )
    key = hashlib.sha256(described.encode()).hexdigest()
    kept = bench.models / "scores" / f"{name}.json"
    if kept.exists() and (stored := read_json(kept))["key"] == key:
        return stored["scores"]
    measure = "text" if "text" in worker.call("ways") else "ids"
    batches = worker.call("scores", measure, "batches", count)
    scores = [value for batch in batches for value in batch]
    kept.parent.mkdir(exist_ok=True)
    write_json(kept, {"key": key, "scores": scores})
    return scores


def _links(scores: list[float], sizes: list[int]) -> list[int]:
    """The index of the best candidate of each mention whose pairs all have scores."""
    links, first = [], 0
    for size in sizes:
        own = scores[first : first + size]
        if len(own) < size:
            break
        links.append(max(range(size), key=own.__getitem__))
        first += size
    return links


def _share(own: list[int], others: list[int]) -> float:
    same = [one == other for one, other in zip(own, others)]
    return sum(same) / len(same)


def cold_starts(bench: Bench, rounds: int) -> dict[str, Any]:
    """Seconds from a process' start to its first answer, in fresh processes.

    All files are in the page cache: each has been read before.
    """
    names = [name for name in COLD if name in bench.commands]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in tqdm(range(rounds), desc="cold starts", unit="round"):
        for name in names if turn % 2 else names[::-1]:
            started = time.perf_counter()
            worker = bench.start(name, "first.json")
            worker.call("time", "ids", "mentions", [0])
            seconds[name].append(time.perf_counter() - started)
            worker.close()
    return {name: quartiles(values) for name, values in seconds.items() if values}


def make_models(shape: str, directory: Path, run: Path | None) -> None:
    """Has our artifacts, the peers' weights and the requests written.

    Raises:
      SystemExit: they cannot be; it has been said why.
    """
    command = [sys.executable, HERE / "make_models.py", shape, directory]
    done = subprocess.run(
        [str(part) for part in [*command, *([run] if run else [])]],
        env=quiet_environment(),
        check=False,
    )
    if done.returncode:
        sys.exit(done.returncode)


def trained_run(workdir: Path) -> Path:
    """A finished run of configs/benchmark.py, which is made where it is not there."""
    run = workdir / "run"
    if not (run / "evaluation.json").exists():
        print(f"training the linker in {run}, which takes a while", file=sys.stderr)
        for command in ("train", "evaluate"):
            done = subprocess.run(
                [
                    *(sys.executable, "-m", "bert_export", command),
                    f"--config={ROOT / 'configs' / 'benchmark.py'}",
                    f"--workdir={run}",
                ],
                cwd=ROOT,
                check=False,
            )
            if done.returncode:
                sys.exit(done.returncode)
    return run


def main() -> None:
    """Measures everything and writes the report."""
    parser = argparse.ArgumentParser(
        prog="scripts/benchmarks/inference", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--threads", type=int, default=2, help="of each process")
    parser.add_argument(
        "--run",
        type=Path,
        help="a finished run of configs/benchmark.py (default: one in the workdir, "
        "which is trained at first)",
    )
    parser.add_argument(
        "--workdir",
        type=Path,
        default=peers.default_directory(),
        help="keeps environments, models and scores (default: in the user's cache)",
    )
    parser.add_argument("--rounds", type=int, help="with MiniLM (default: 6)")
    parser.add_argument("--base_rounds", type=int, help="with BERT-base (default: 3)")
    parser.add_argument(
        "--contenders", help="names to measure, with commas between them (default: all)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a tiny model and no peers, for a moment"
    )
    parser.add_argument(
        "--report", type=Path, help="measure nothing; write the page of this JSON file"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="for the page, the JSON and the picture (default: docs)",
    )
    options = parser.parse_args()
    if options.report:
        report.write(read_json(options.report), options.output)
        return
    chosen = list(QUICK if options.quick else BY_NAME)
    if options.contenders:
        chosen = options.contenders.split(",")
        if unknown := sorted(set(chosen) - set(BY_NAME)):
            parser.error(
                f"--contenders: {unknown[0]!r} is none of {', '.join(BY_NAME)}"
            )
    contenders = [contender for contender in CONTENDERS if contender.name in chosen]
    rounds = options.rounds or (2 if options.quick else 6)
    base_rounds = 3 if options.base_rounds is None else options.base_rounds
    environments = None if options.quick else options.workdir / "envs"
    models = options.workdir / "inference"
    run = None
    if not options.quick:
        # Told before anything heavy is imported.
        if options.run and not (options.run / "config.json").is_file():
            raise UserError(
                f"--run={options.run}: there is no config.json; name the directory of "
                "a run of configs/benchmark.py"
            )
        run = options.run or trained_run(options.workdir)
    shape = "tiny" if options.quick else "trained"
    make_models(shape, models / shape, run)
    bench = Bench(models / shape, environments, options.threads, contenders)
    measured: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "threads": options.threads,
        "versions": {name: list(pinned) for name, pinned in peers.PEERS.items()},
    }
    cells = measure(bench, rounds, BLOCK, ("text", "ids"), None)
    measured["trained"] = {"about": bench.about, "contenders": cells}
    measured["cold"] = cold_starts(bench, 1 if options.quick else 3)
    if base_rounds and not options.quick:
        make_models("base", models / "base", run)
        base = Bench(
            models / "base",
            environments,
            options.threads,
            [
                contender
                for contender in contenders
                if contender.base and contender.turns
            ],
        )
        cells = measure(base, base_rounds, BASE_BLOCK, ("ids",), COMPARED)
        measured["base"] = {"about": base.about, "contenders": cells}
    for shape in ("trained", "base"):
        if shape in measured:
            for key in ("gold", "sizes"):
                del measured[shape]["about"][key]
    report.write(measured, options.output)


if __name__ == "__main__":
    run(main)

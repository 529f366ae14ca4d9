"""Times training beside what people would use otherwise, and what the models learn.

Run it as scripts/benchmarks/training, which sets up what it needs.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import peers
import report
import work
from common import (
    Worker,
    find_peak,
    machine,
    quartiles,
    quiet_environment,
    run,
    tensorflow_threads,
)
from scaling_bench import arithmetic

from bert_export.config import read_json
from bert_export.errors import UserError
from bert_export.modeling.bert_config import BertConfig

HERE = Path(__file__).resolve().parent
# Steps for which there are pairs; a library that needs more begins anew.
STEPS = 400
# Of the learning rate's schedule where speed is measured: no turn gets that far.
LONG = 10_000
# After the first one, before a turn's steps are counted off.
TRIED_STEPS = 2


@dataclasses.dataclass(frozen=True)
class Contender:
    """A library as people train with it."""

    title: str
    peer: str | None  # whose environment it runs in, a name of peers.PEERS
    script: str
    precision: str
    library: str = ""  # where a script has more than one


CONTENDERS = {
    "ours_float32": Contender("bert_export", None, "ours.py", "float32"),
    "ours_bfloat16": Contender("bert_export", None, "ours.py", "bfloat16"),
    "cross_encoder_float32": Contender(
        "sentence-transformers CrossEncoderTrainer",
        "pytorch",
        "pytorch.py",
        "float32",
        "cross_encoder",
    ),
    "cross_encoder_bfloat16": Contender(
        "sentence-transformers CrossEncoderTrainer",
        "pytorch",
        "pytorch.py",
        "bfloat16",
        "cross_encoder",
    ),
    "trainer_float32": Contender(
        "transformers Trainer, group_by_length",
        "pytorch",
        "pytorch.py",
        "float32",
        "trainer",
    ),
    "trainer_bfloat16": Contender(
        "transformers Trainer, group_by_length",
        "pytorch",
        "pytorch.py",
        "bfloat16",
        "trainer",
    ),
    "google_float32": Contender(
        "google-research BERT, fixed length", "google_bert", "google_bert.py", "float32"
    ),
}
OURS = ("ours_float32", "ours_bfloat16")
# How many times as many examples a second: of float32 to float32.
GOALS = {"google": 8.0, "pytorch": 3.0}
# The least part of the arithmetic bound.
BOUND_GOAL = 0.6


class Bench:
    """Starts contenders' processes on one piece of work."""

    def __init__(self, directory: Path, interpreters: dict[str, Path], threads: int):
        self.directory = directory
        self._interpreters = interpreters
        self._threads = threads

    def start(self, name: str, num_train_steps: int) -> Worker:
        """A process that is about to train from the pretrained weights."""
        contender = CONTENDERS[name]
        log = self.log(name)
        log.parent.mkdir(exist_ok=True)
        job = {
            "work": str(self.directory),
            "log": str(log),
            "library": contender.library,
            "precision": contender.precision,
            "num_train_steps": num_train_steps,
            "threads": self._threads,
        }
        count = str(self._threads)
        return Worker(
            [self._interpreters[name], HERE / contender.script, json.dumps(job)],
            {
                **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), count),
                **tensorflow_threads(self._threads),
                "HF_HUB_OFFLINE": "1",
                "TOKENIZERS_PARALLELISM": "false",
            },
        )

    def log(self, name: str) -> Path:
        """What a contender's libraries print."""
        return self.directory / "logs" / f"{name}.log"


def measure_speed(
    bench: Bench, names: Sequence[str], turns: int, seconds: float, peak: dict[str, Any]
) -> dict[str, Any]:
    """Examples a second, memory and the first step of each contender.

    All processes are there from the beginning and take turns; those that wait are idle.

    Args:
      bench: starts them.
      names: of contenders.
      turns: of each.
      seconds: that a turn is to last, at least one step.
      peak: FLOPs a second by precision, the bound of our own.
    """
    about = work.about(str(bench.directory))
    with np.load(bench.directory / work.PAIRS) as arrays:
        lengths = np.split(
            arrays["train_lengths"], np.cumsum(arrays["train_step_pairs"])[:-1]
        )
    workers: dict[str, Worker] = {}
    first, counts, done = {}, {}, {}
    # By name: each turn's pairs, seconds and needed FLOPs.
    made: dict[str, list[tuple[int, float, int]]] = {name: [] for name in names}
    bert = BertConfig(**about["bert"])
    try:
        for name in tqdm(names, desc="start", unit="contender"):
            began = time.perf_counter()
            workers[name] = bench.start(name, LONG)
            workers[name].call("train", 1)
            first[name] = time.perf_counter() - began
            tried = workers[name].call("train", TRIED_STEPS)
            most = (STEPS - 1 - TRIED_STEPS) // (turns + 1)
            counts[name] = max(1, min(most, round(seconds / min(tried))))
            done[name] = 1 + TRIED_STEPS
        # The first turn warms up.
        for turn in tqdm(range(turns + 1), desc="train", unit="turn"):
            for name in names if turn % 2 else names[::-1]:
                took = sum(workers[name].call("train", counts[name]))
                pairs = counts[name] * about["pairs_a_step"]
                flops = 0
                if name in OURS:
                    steps = lengths[done[name] : done[name] + counts[name]]
                    pairs = sum(map(len, steps))
                    flops = sum(
                        arithmetic.step(bert, step.tolist(), about["reads"]).total
                        for step in steps
                    )
                done[name] += counts[name]
                if turn:
                    made[name].append((pairs, took, flops))
        speed: dict[str, Any] = {}
        for name in names:
            pairs_made, times, flops_made = map(np.array, zip(*made[name]))
            speed[name] = {
                "examples_a_second": quartiles(pairs_made / times),
                "turns": (pairs_made / times).tolist(),
                "steps": counts[name] * turns,
                "first_step_seconds": first[name],
                "peak_bytes": workers[name].call("memory"),
            }
            if name in OURS:
                rate = float(flops_made.sum() / times.sum())
                speed[name]["flops_a_second"] = rate
                speed[name]["share_of_bound"] = rate / peak[CONTENDERS[name].precision]
    finally:
        for worker in workers.values():
            worker.close()
    return speed


def find_goals(speed: dict[str, Any]) -> list[dict[str, Any]]:
    """Ratios of examples a second, turn by turn, and the bound, with their goals."""

    def ratio(ours: str, theirs: str, goal: float | None) -> dict[str, Any]:
        turns = np.divide(speed[ours]["turns"], speed[theirs]["turns"])
        found = {"ours": ours, "theirs": theirs, "ratio": quartiles(turns)}
        if goal is not None:
            found |= {"goal": goal, "reached": found["ratio"]["median"] >= goal}
        return found

    def fastest(peer: str, precisions: Sequence[str]) -> list[str]:
        """The name of a peer's fastest contender; none where none was measured."""
        names = [
            name
            for name in speed
            if CONTENDERS[name].peer == peer
            and CONTENDERS[name].precision in precisions
        ]
        rate = {name: speed[name]["examples_a_second"]["median"] for name in names}
        return sorted(names, key=lambda name: -rate[name])[:1]

    goals = []
    any_precision = ("float32", "bfloat16")
    if "ours_float32" in speed:
        for theirs in fastest("google_bert", ["float32"]):
            goals.append(ratio("ours_float32", theirs, GOALS["google"]))
        for theirs in fastest("pytorch", ["float32"]):
            goals.append(ratio("ours_float32", theirs, GOALS["pytorch"]))
        share = speed["ours_float32"]["share_of_bound"]
        goals.append(
            {
                "ours": "ours_float32",
                "share_of_bound": share,
                "goal": BOUND_GOAL,
                "reached": share >= BOUND_GOAL,
            }
        )
    if "ours_bfloat16" in speed:
        for peer in ("google_bert", "pytorch"):
            for theirs in fastest(peer, any_precision):
                goals.append(ratio("ours_bfloat16", theirs, None))
    return goals


def measure_accuracy(
    bench: Bench, names: Sequence[str], steps: int, chunk: int = 5
) -> dict[str, Any]:
    """Held-out link accuracy of each contender after as many steps."""
    with np.load(bench.directory / work.PAIRS) as arrays:
        mentions, labels = arrays["test_mentions"], arrays["test_labels"]
    found: dict[str, Any] = {}
    with tqdm(total=steps * len(names), unit="step") as progress:
        for name in names:
            progress.set_description(name)
            worker = bench.start(name, steps)
            try:
                left = steps
                while left:
                    trained = worker.call("train", min(chunk, left))
                    left -= len(trained)
                    progress.update(len(trained))
                found[name] = link_accuracy(worker.call("score"), labels, mentions)
            finally:
                worker.close()
    return {"steps": steps, "contenders": found}


def link_accuracy(
    scores: Sequence[float], labels: np.ndarray, mentions: np.ndarray
) -> dict[str, Any]:
    """The part of mentions whose gold candidate scores highest; ties are misses.

    Args:
      scores: [pairs].
      labels: [pairs], 1 for the gold candidate.
      mentions: [pairs], in which each mention's pairs stand together. One without a
        gold candidate does not count.
    """
    assert len(scores) == len(labels) == len(mentions)
    ends = np.flatnonzero(np.diff(mentions)) + 1
    hits = [
        bool(score[label > 0].max() > score[label == 0].max(initial=-np.inf))
        for score, label in zip(
            np.split(np.array(scores), ends), np.split(labels, ends)
        )
        if label.any()
    ]
    return {"mentions": len(hits), "link_accuracy": float(np.mean(hits))}


def find_interpreters(
    names: Sequence[str], workdir: Path
) -> tuple[dict[str, Path], dict[str, str]]:
    """Each contender's Python; and why, where there is none."""
    found, skipped = {}, {}
    for name in names:
        peer = CONTENDERS[name].peer
        try:
            found[name] = (
                Path(sys.executable) if peer is None else peers.python(peer, workdir)
            )
        except peers.Unavailable as error:
            skipped[name] = str(error)
    return found, skipped


def make_work(directory: Path, steps: int, mentions: int, quick: bool) -> None:
    """Has the work made by a process of its own, which then takes its memory along."""
    command = [sys.executable, HERE / "make_work.py", directory, steps, mentions]
    command.append("quick" if quick else "full")
    made = subprocess.run(
        [str(part) for part in command], env=quiet_environment(), check=False
    )
    if made.returncode:
        # It has said why.
        sys.exit(made.returncode)


def parse() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        prog="scripts/benchmarks/training", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--part", choices=["all", "speed", "accuracy"], default="all")
    parser.add_argument(
        "--contenders",
        default=",".join(CONTENDERS),
        help=f"names separated by commas (default: {','.join(CONTENDERS)})",
    )
    parser.add_argument("--turns", type=int, help="of each contender (default: 8)")
    parser.add_argument(
        "--seconds", type=float, help="that a turn lasts, about (default: 4)"
    )
    parser.add_argument("--accuracy_steps", type=int, help="of training (default: 300)")
    parser.add_argument(
        "--accuracy_mentions", type=int, help="to link after it (default: 500)"
    )
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument(
        "--workdir",
        type=Path,
        default=peers.default_directory(),
        help="keeps environments and the prepared corpus "
        "(default: bert_export_benchmarks in the user's cache)",
    )
    parser.add_argument(
        "--output", type=Path, default=report.DOCS, help="default: docs"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a tiny model, for a moment each"
    )
    parser.add_argument(
        "--report", type=Path, metavar="JSON", help="measure nothing, write its tables"
    )
    options = parser.parse_args()
    quick = options.quick
    for name, usual, short in (
        ("turns", 8, 2),
        ("seconds", 4.0, 0.1),
        ("accuracy_steps", 300, 5),
        ("accuracy_mentions", 500, 20),
    ):
        if getattr(options, name) is None:
            setattr(options, name, short if quick else usual)
        if getattr(options, name) <= 0:
            raise UserError(f"--{name}: expected more than 0")
    options.contenders = options.contenders.split(",")
    for name in options.contenders:
        if name not in CONTENDERS:
            raise UserError(
                f"--contenders: there is no {name!r}; expected some of "
                f"{', '.join(CONTENDERS)}"
            )
    return options


def main() -> None:
    """Measures and writes the report."""
    options = parse()
    if options.report:
        measured = read_json(options.report)
        report.write(measured, options.output)
        return
    interpreters, skipped = find_interpreters(
        options.contenders, options.workdir / "envs"
    )
    names = list(interpreters)
    directory = options.workdir / ("training_quick" if options.quick else "training")
    steps = max(STEPS, options.accuracy_steps)
    make_work(directory, steps, options.accuracy_mentions, options.quick)
    about = work.about(str(directory))
    measured = {
        "machine": {
            **machine(),
            "threads": options.threads,
            "tensorflow": importlib.metadata.version("tensorflow"),
        },
        "versions": {
            contender.peer: list(peers.PEERS[contender.peer])
            for contender in CONTENDERS.values()
            if contender.peer
        },
        "contenders": {
            name: dataclasses.asdict(CONTENDERS[name]) for name in CONTENDERS
        },
        "skipped": skipped,
        "work": {
            key: about[key]
            for key in (
                "weights",
                "corpus",
                "tokens_a_pair",
                "pairs_a_step",
                "max_seq_length",
                "learning_rate",
                "warmup_fraction",
                "weight_decay",
                "clip_norm",
            )
        },
    }
    today = datetime.date.today().isoformat()
    bench = Bench(directory, interpreters, options.threads)
    earlier = options.output / report.JSON
    if options.part != "all" and earlier.exists():
        kept = "accuracy" if options.part == "speed" else "speed"
        parts = (kept, "peak", "goals") if kept == "speed" else (kept,)
        before = read_json(earlier)
        measured |= {part: before[part] for part in parts if part in before}
    if options.part != "accuracy":
        rates = find_peak(options.threads, 0.01 if options.quick else 0.4)
        measured["peak"] = {name: max(found.values()) for name, found in rates.items()}
        contenders = measure_speed(
            bench, names, options.turns, options.seconds, measured["peak"]
        )
        measured["speed"] = {"date": today, "contenders": contenders}
        measured["goals"] = find_goals(contenders)
    if options.part != "speed":
        measured["accuracy"] = {
            "date": today,
            **measure_accuracy(bench, names, options.accuracy_steps),
        }
    report.write(measured, options.output)
    print(report.tables(measured))
    print(f"written: {options.output}: {report.PAGE}, {report.JSON}, {report.PNG}")


if __name__ == "__main__":
    run(main)

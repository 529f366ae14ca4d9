"""Whether cost grows linearly: `prepare` and `evaluate` of generated mentions."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "configs"
ENTITIES = 2000
# Of each mention.
CANDIDATES = 10
# As long as WordNet's examples and definitions: about 24 word pieces a pair.
TEXT_WORDS = 9
DESCRIPTION_WORDS = 11
# How often what takes little longer than its start is measured.
REPEATS = 3
_SHORT = 10_000
_SEED = 17


def generate(directory: Path, pairs: int, words: Sequence[str], split: str) -> None:
    """Writes entities.jsonl and SPLIT.jsonl of generated texts.

    Args:
      directory: is made.
      pairs: mentions times candidates.
      words: to make texts of, each one word piece.
      split: the file's name.
    """
    directory.mkdir(parents=True, exist_ok=True)
    rng = random.Random(_SEED)
    with open(directory / "entities.jsonl", "w", encoding="utf-8") as file:
        for number in range(ENTITIES):
            description = " ".join(rng.choices(words, k=DESCRIPTION_WORDS))
            entity = {
                "id": f"e{number}",
                "name": words[number % len(words)],
                "aliases": [],
                "description": description,
            }
            print(json.dumps(entity), file=file)
    with open(directory / f"{split}.jsonl", "w", encoding="utf-8") as file:
        for number in range(pairs // CANDIDATES):
            chosen = rng.choices(words, k=TEXT_WORDS)
            place = rng.randrange(TEXT_WORDS)
            start = sum(len(word) + 1 for word in chosen[:place])
            first = rng.randrange(ENTITIES)
            # Mentions without candidates of their own would be looked up by name.
            candidates = [f"e{(first + n) % ENTITIES}" for n in range(CANDIDATES)]
            mention = {
                # Else texts would repeat, and be in one split.
                "text": f"{' '.join(chosen)} {number}",
                "start": start,
                "end": start + len(chosen[place]),
                "gold": candidates[number % CANDIDATES],
                "candidates": candidates,
            }
            print(json.dumps(mention), file=file)


def run(command: str, config: str, workdir: Path, *flags: str) -> dict[str, float]:
    """Seconds and bytes of memory of a command of bert-export, its start included.

    Raises:
      RuntimeError: it failed.
    """
    log = workdir.with_suffix(".log")
    began = time.perf_counter()
    with open(log, "w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "bert_export", command),
                *(f"--config={CONFIGS / config}.py", f"--workdir={workdir}"),
                *flags,
            ],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = log.read_text("utf-8").strip().splitlines()[-1:]
        raise RuntimeError(f"bert-export {command} failed: {' '.join(last)}")
    unit = 1 if sys.platform == "darwin" else 1024
    return {"seconds": seconds, "peak_bytes": unit * usage.ru_maxrss}


def measure_prepare(
    config: str,
    sizes: Sequence[int],
    words: Sequence[str],
    directory: Path,
    repeats: int = REPEATS,
) -> list[dict[str, Any]]:
    """`prepare` of ever more pairs, the first of them being little but its start."""
    rows = []
    for pairs in tqdm(sizes, desc="prepare"):
        corpus = directory / f"corpus_{pairs}"
        generate(corpus, pairs, words, "mentions")
        runs = [
            run(
                "prepare",
                config,
                directory / f"prepared_{pairs}_{repeat}",
                "--config.corpus.builder=jsonl",
                f"--config.corpus.entities={corpus / 'entities.jsonl'}",
                f"--config.corpus.mentions={corpus / 'mentions.jsonl'}",
            )
            for repeat in range(repeats if pairs <= _SHORT else 1)
        ]
        rows.append({"pairs": pairs, **_medians(runs)})
    return beyond_first(rows)


def measure_evaluate(
    config: str,
    sizes: Sequence[int],
    words: Sequence[str],
    model: Path,
    directory: Path,
    repeats: int = REPEATS,
) -> list[dict[str, Any]]:
    """`evaluate` of ever more of the same prepared pairs.

    Args:
      config: a name in configs/.
      sizes: pairs.
      words: see `generate`.
      model: the directory of a small model, with bert_config.json and random.ckpt.
      directory: for what is written.
      repeats: of what takes little longer than its start.
    """
    corpus, workdir = directory / "corpus_scored", directory / "scored"
    for split, pairs in (
        ("mentions", CANDIDATES),
        ("dev", CANDIDATES),
        ("test", max(sizes)),
    ):
        generate(corpus, pairs, words, split)
    flags = [
        "--config.corpus.builder=jsonl",
        f"--config.corpus.entities={corpus / 'entities.jsonl'}",
        f"--config.corpus.mentions={corpus / 'mentions.jsonl'}",
        f"--config.corpus.dev_mentions={corpus / 'dev.jsonl'}",
        f"--config.corpus.test_mentions={corpus / 'test.jsonl'}",
        f"--config.model.bert_config={model / 'bert_config.json'}",
        f"--config.model.init_checkpoint={model / 'random.ckpt'}",
        "--nodo_train",
    ]
    run("prepare", config, workdir, *flags)
    rows = []
    for pairs in tqdm(sizes, desc="evaluate"):
        mentions = f"--config.eval.max_mentions={pairs // CANDIDATES}"
        runs = [
            run("evaluate", config, workdir, *flags, mentions)
            for _ in range(repeats if pairs <= _SHORT else 1)
        ]
        rows.append({"pairs": pairs, **_medians(runs)})
    return beyond_first(rows)


def beyond_first(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds the time of a pair: what a row takes longer than the first, its start."""
    first = rows[0]
    for row in rows[1:]:
        row["seconds_a_pair"] = (row["seconds"] - first["seconds"]) / (
            row["pairs"] - first["pairs"]
        )
    return rows


def _medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    return {
        "runs": len(runs),
        **{key: statistics.median(run[key] for run in runs) for key in runs[0]},
    }

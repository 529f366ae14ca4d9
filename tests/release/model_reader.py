"""Polls a model base as a model server does, and loads whatever it sees.

    python model_reader.py MODEL_BASE/NAME local|remote [hash|tensorflow]

Prints READY, polls until its standard input ends, then prints what it saw as JSON.
"""

from __future__ import annotations

import json
import os
import select
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import model_versions


def identity(path: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    # The time of a directory would change with the first of its files that goes.
    return (found.st_ino, 0 if path.is_dir() else found.st_mtime_ns)


def versions(directory: Path) -> list[Path]:
    try:
        return [directory / name for name in os.listdir(directory) if name.isdigit()]
    except FileNotFoundError:
        return []


def load(version: Path) -> str:
    import tensorflow as tf

    try:
        model = tf.saved_model.load(str(version))
        sequence, scalar = tf.ones([1, 4], tf.int64), tf.ones([1], tf.int64)
        answer = model.signatures["tensors"](
            input_ids=sequence,
            input_mask=sequence,
            segment_ids=sequence,
            start_ps=scalar,
            end_ps=scalar,
        )
        return "" if answer["score"].shape == (1,) else "no score"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def main(base: Path, kind: str, how: str) -> dict[str, Any]:
    seen: set[str] = set()
    violations: list[str] = []
    polls = 0
    if how == "tensorflow":
        import tensorflow  # noqa: F401
    print("READY", flush=True)
    while not select.select([sys.stdin], [], [], 0.001)[0]:
        polls += 1
        for target, marker in model_versions.MARKERS.items():
            parent = base if target == "saved_model" else base / target
            for version in versions(parent):
                # A rename shows all of a directory at once; elsewhere a version is
                # there as soon as the file that makes it one is.
                what = version if kind == "local" else version / marker
                before = identity(what)
                if before is None:
                    continue
                is_loaded = how == "tensorflow" and target == "saved_model"
                wrong = (load if is_loaded else model_versions.damage)(version)
                if wrong and identity(what) == before:
                    violations.append(f"{version}: {wrong}")
                elif not wrong:
                    seen.add(str(version.relative_to(base)))
        path = base / "current.json"
        before = identity(path)
        if before is not None:
            try:
                number = json.loads(path.read_bytes())["version"]
                wrong = model_versions.damage(base / str(number))
            except (OSError, ValueError) as error:
                wrong = repr(error)
            if wrong and identity(path) == before:
                violations.append(f"current.json: {wrong}")
    return {"polls": polls, "seen": sorted(seen), "violations": violations[:20]}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], (*sys.argv[3:], "hash")[0])))

"""Looks at a model's published versions every few milliseconds, as servers do.

    python tests/read_base.py MODEL_BASE/NAME REPORT.json

Every directory with a number for a name must be whole: all files of its manifest, with
their sums. current.json must name one that is there. When terminated it writes what it
saw: `polls`, `versions`, `current` (the versions that it named, in order) and `wrong`.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bert_export.files import list_directory
from bert_export.release.manifest_file import NOT_LISTED

SECONDS = 0.002


def main(directory: Path, report: Path) -> None:
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    polls, wrong = 0, []
    whole: set[str] = set()
    current: list[int] = []
    while not stopped:
        polls += 1
        parents = [path for path in directory.iterdir() if path.is_dir()]
        for parent in (directory, *parents):
            for version in versions_in(parent):
                if str(version) not in whole:
                    whole.add(str(version))
                    wrong += check(version)
        now = json.loads((directory / "current.json").read_text("utf-8"))
        if now["version"] not in current[-1:]:
            current.append(now["version"])
            for artifact in now["artifacts"].values():
                if not (directory / artifact["path"] / "manifest.json").is_file():
                    wrong.append(f"current.json names {artifact['path']}")
        time.sleep(SECONDS)
    versions = [Path(path).name for path in whole if Path(path).parent == directory]
    report.write_text(
        json.dumps(
            {"polls": polls, "versions": versions, "current": current, "wrong": wrong}
        )
    )


def versions_in(parent: Path) -> list[Path]:
    """A directory's versions; none of one that has just got another name."""
    try:
        return [path for path in parent.iterdir() if path.name.isdigit()]
    except FileNotFoundError:
        return []


def check(version: Path) -> list[str]:
    """What is wrong with a version that is there to be served."""
    try:
        listed = json.loads((version / "manifest.json").read_text("utf-8"))["files"]
    except FileNotFoundError:
        return [f"{version} has no manifest"]
    found = list_directory(version, leave_out=NOT_LISTED)
    return [] if found == listed else [f"{version}: {found} is not {listed}"]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

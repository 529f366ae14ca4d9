"""Runs the smoke test on an artifact in a fresh process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from bert_export.errors import StageError, UserError
from bert_export.export.publish import SMOKE_TEST_FILE

SCRIPT = Path(__file__).with_name("smoke_test.py")
_STDERR_LINES = 15


def run_smoke_test(
    artifact_dir: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Proves an artifact in a process that imports nothing of bert_export.

    Args:
      artifact_dir: the artifact.
      output: where the result is written; `smoke_test.json` in the artifact when
        unset.

    Returns:
      The result: `passed`, `seconds`, `versions` and `checks`, each check with
      `name`, `result` and `detail`.

    Raises:
      UserError: `artifact_dir` is not a directory.
      StageError: a check failed, or the process died. The result is written in the
        former case.
    """
    artifact = Path(artifact_dir)
    if not artifact.is_dir():
        raise UserError(f"{artifact}: no such directory; expected an exported version")
    path = Path(output) if output else artifact / SMOKE_TEST_FILE
    path.unlink(missing_ok=True)
    # -I: neither the environment nor the current directory decides what is imported.
    process = subprocess.run(
        [sys.executable, "-I", str(SCRIPT), str(artifact), f"--output={path}"],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if process.returncode not in (0, 1) or not path.exists():
        code = process.returncode
        ended = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        last_words = "\n".join(process.stderr.splitlines()[-_STDERR_LINES:])
        raise StageError(f"the smoke test died ({ended}):\n{last_words}")
    result = json.loads(path.read_text(encoding="utf-8"))
    return passed("the smoke test", result)


def passed(what: str, result: dict[str, Any]) -> dict[str, Any]:
    """The result of `what`, if all of its checks passed.

    Raises:
      StageError: some did not; they are named.
    """
    if not result["passed"]:
        broken = [check for check in result["checks"] if check["result"] == "failed"]
        details = "".join(f"\n  {check['name']}: {check['detail']}" for check in broken)
        count = f"{len(broken)} of {len(result['checks'])} checks failed"
        raise StageError(f"{what} failed, {count}:{details}")
    return result

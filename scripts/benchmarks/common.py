"""What all benchmarks share: worker processes, quartiles, pages filled with tables."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_export.errors import Failure
from bert_export.files import write_text

_PEAK = Path(__file__).resolve().parent / "scaling_bench" / "peak.py"
DOCS = Path(__file__).resolve().parents[2] / "docs"
# What stands between the two is measured; the rest of a page is for people to write.
_MEASURED = re.compile(r"(<!-- measured: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def tensorflow_threads(threads: int) -> dict[str, str]:
    """Variables with which TensorFlow has `threads` threads for two halves of a batch.

    Operations of its own accord have as many each, and run side by side besides.
    """
    return {
        "TF_NUM_INTRAOP_THREADS": str(max(1, threads // 2)),
        "TF_NUM_INTEROP_THREADS": str(threads),
    }


class Worker:
    """A process that answers calls, one JSON line each; idle in between."""

    def __init__(
        self,
        command: Sequence[str | Path],
        environment: Mapping[str, str] | None = None,
    ):
        """Starts it and waits until it is ready.

        Args:
          command: what to start. It prints {"result": …} when it is ready, and after
            that one line for each line {"call": …, "args": […]} that it reads.
          environment: variables to add to this process' own.

        Raises:
          RuntimeError: it ended instead.
        """
        self._process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            env={**quiet_environment(), **(environment or {})},
        )
        self._answer()

    def call(self, name: str, *args: Any) -> Any:
        """The result of a function; arguments and result are JSON.

        Raises:
          RuntimeError: the function raised something, or the process ended.
        """
        assert self._process.stdin is not None
        print(json.dumps({"call": name, "args": args}), file=self._process.stdin)
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            command = " ".join(map(str, self._process.args))
            raise RuntimeError(f"ended with {self._process.wait()}: {command}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]

    def close(self) -> None:
        """Ends the process, which its input's end tells it to."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def quiet_environment() -> dict[str, str]:
    """This process' variables, with which TensorFlow tells of fatal errors alone."""
    # It tells of graphics cards that it does not find as of errors.
    return {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}


def run(main: Callable[[], None]) -> None:
    """Calls a benchmark's main function; errors become a line and an exit code."""
    try:
        main()
    except Failure as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def find_peak(threads: int, seconds: float) -> dict[str, dict[str, float]]:
    """Operations a second by precision and engine, from a process of its own.

    Raises:
      RuntimeError: it failed.
    """
    done = subprocess.run(
        [sys.executable, str(_PEAK), str(threads), str(seconds)],
        env=quiet_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{_PEAK.name}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def quartiles(times: Sequence[float]) -> dict[str, Any]:
    """Runs, and the quartiles of their times, in the unit of the times."""
    q1, median, q3 = np.percentile(times, [25, 50, 75]).tolist()
    return {"runs": len(times), "q1": q1, "median": median, "q3": q3}


def machine() -> dict[str, Any]:
    """The processor, how many cores of it this process may use, and the system."""
    cpu = platform.processor() or platform.machine()
    flags: list[str] = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = (part.strip() for part in line.partition(":"))
            if key == "model name":
                cpu = value
            elif key == "flags":
                flags = value.split()
                break
    return {
        "cpu": cpu,
        # What decides how fast bfloat16 and int8 are.
        "features": [
            flag
            for flag in flags
            if flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")
        ],
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def fill_page(page: Path, sections: Mapping[str, str], output: Path) -> None:
    """Puts measured sections into a page.

    Args:
      page: has `<!-- measured: NAME -->` … `<!-- end -->` where they go; those of other
        names stay as they are.
      sections: Markdown by NAME.
      output: the page to write, which may be `page`.
    """

    def fill(match: re.Match[str]) -> str:
        if match[2] not in sections:
            return match[0]
        return f"{match[1]}{sections[match[2]]}\n{match[3]}"

    write_text(output, _MEASURED.sub(fill, page.read_text("utf-8")))

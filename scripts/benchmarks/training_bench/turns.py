"""The turns of a process that trains: so many steps when it is told to, then idle.

Runs in Python 3.7, too, which TensorFlow 1.15 needs.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any


class Turns:
    """Answers the calls of measure.py between the steps of a library's own loop.

    Calls are JSON lines, {"call": NAME, "args": [...]}. `train` takes the number of
    steps and gives the seconds of each; `memory` gives the most memory that the process
    has had, in bytes; `score` ends training.
    """

    def __init__(self, log: str) -> None:
        """Says that the process is ready.

        Args:
          log: a file for all that libraries print.
        """
        self._answers = os.fdopen(os.dup(1), "w")
        with open(log, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        self._steps = 0
        self._seconds: list[float] = []
        self._since = 0.0
        self.answer("ready")

    def answer(self, result: Any) -> None:
        """Gives the result of the call at hand."""
        print(json.dumps({"result": result}), file=self._answers, flush=True)

    @contextlib.contextmanager
    def failures(self) -> Iterator[None]:
        """Tells measure.py of an exception, with its traceback in the log."""
        try:
            yield
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            print(json.dumps({"error": message}), file=self._answers, flush=True)
            raise

    def wait(self) -> bool:
        """Waits for a call; true if more steps are to be trained.

        Ends the process when there are no more calls.
        """
        for line in sys.stdin:
            request = json.loads(line)
            if request["call"] == "memory":
                self.answer(_peak_memory())
                continue
            if request["call"] == "train":
                (self._steps,) = request["args"]
                self._seconds = []
                self._since = time.perf_counter()
                return True
            return False
        # At once: a library would save checkpoints.
        os._exit(0)

    def step_done(self) -> bool:
        """Notes a step, and waits at the end of a turn; false to end training."""
        now = time.perf_counter()
        self._seconds.append(now - self._since)
        self._since = now
        if len(self._seconds) < self._steps:
            return True
        self.answer(self._seconds)
        return self.wait()


def _peak_memory() -> int:
    """Bytes of resident memory at their most, of this program alone."""
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    # On Linux this would include what the parent had when it started this process.
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

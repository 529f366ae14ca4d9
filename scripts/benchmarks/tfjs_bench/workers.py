"""Processes that run models, and the HTTP server that they load them from."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

HERE = Path(__file__).resolve().parent


class Worker:
    """A process that answers calls, one JSON line each; idle in between."""

    def __init__(self, command: Sequence[str | Path]):
        """Starts it and waits until it is ready.

        Raises:
          RuntimeError: it ended instead.
        """
        self._process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            # TensorFlow tells of graphics cards that it does not find as of errors.
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
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


@contextlib.contextmanager
def serve(directories: dict[str, Path]) -> Iterator[str]:
    """Serves directories by the first part of the path, on the loopback interface.

    Pages are isolated from other origins, which is what a browser wants before it
    lets WebAssembly have threads and clocks be precise.

    Yields:
      The address, without a slash at its end.
    """
    handler = functools.partial(_Handler, directories)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Reads files of the directories it is given."""

    extensions_map: ClassVar = {
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def __init__(self, directories: dict[str, Path], *args: Any):
        self.directories = directories
        super().__init__(*args)

    def translate_path(self, path: str) -> str:
        first, _, rest = path.lstrip("/").partition("/")
        self.directory = str(self.directories.get(first, "/nonexistent"))
        return super().translate_path(f"/{rest}")

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *args: Any) -> None:
        pass

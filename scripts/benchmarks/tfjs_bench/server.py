"""The HTTP server that models are loaded from."""

from __future__ import annotations

import contextlib
import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar


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

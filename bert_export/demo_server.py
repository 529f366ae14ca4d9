"""Serves a tfjs artifact with its linking page, for a look at it on this computer."""

from __future__ import annotations

import contextlib
import email.utils
import errno
import gzip
import hashlib
import html
import http.server
import json
import threading
import urllib.parse
from http import HTTPStatus
from pathlib import Path
from typing import Any

from bert_export.errors import UserError

_PAGE = "/page/"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
    ".bin": "application/octet-stream",
    ".gz": "application/gzip",
}
# Not the weights: on one computer, sending them is faster than compressing them.
_COMPRESSED = {".html", ".css", ".js", ".mjs", ".json", ".txt", ".wasm"}
_FOREVER = "public, max-age=31536000, immutable"
_ASK_EACH_TIME = "no-cache"
_BLOCK = 1 << 18


def serve(artifact: Path, port: int, host: str = "127.0.0.1") -> None:
    """Serves until Ctrl-C; prints the page's address.

    Args:
      artifact: a version directory of the format tfjs.
      port: 0 for any that is free.
      host: the address to listen at; the default is for this computer only.

    Raises:
      UserError: the directory is no whole tfjs artifact with a page, or the port is
        taken.
    """
    with create_server(artifact, port, host) as server:
        shown = f"[{host}]" if ":" in host else host
        print(
            f"Serving {artifact} at http://{shown}:{server.server_port}/ "
            "(Ctrl-C ends it)",
            flush=True,
        )
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
        print()


def create_server(
    artifact: Path, port: int, host: str = "127.0.0.1"
) -> http.server.ThreadingHTTPServer:
    """The server, listening but not serving yet; arguments and errors of `serve`."""
    check(artifact)
    handler = type("Handler", (_Handler,), {"files": _Files(artifact)})
    try:
        return _Server((host, port), handler)
    except OverflowError as error:
        raise UserError(f"demo: --port={port}: expected 0 to 65535") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"demo: port {port} of {host} is taken by another program; choose one "
                "with --port=N, or --port=0 for any that is free"
            ) from error
        raise UserError(
            f"demo: cannot listen at port {port} of {host}: {error.strerror}"
        ) from error


def check(artifact: Path) -> None:
    """Makes sure that a directory is a whole tfjs artifact with a page.

    Raises:
      UserError: it is not; the message names the file.
    """
    model_path = artifact / "model.json"
    if not artifact.is_dir():
        raise UserError(f"demo: there is no directory {artifact}")
    if not model_path.is_file():
        raise UserError(
            f"demo: {artifact} has no model.json; expected a version directory of the "
            "format tfjs, such as WORKDIR/export/tfjs/1700000000"
        )
    try:
        model = json.loads(model_path.read_text(encoding="utf-8"))
        groups = model["weightsManifest"]
        paths = [path for group in groups for path in group["paths"]]
        expected = sum(map(_stored_bytes, (w for g in groups for w in g["weights"])))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"demo: {model_path} describes no TensorFlow.js model "
            f"({type(error).__name__}: {error})"
        ) from error
    tokenizer = _recorded_tokenizer(model)
    if tokenizer != "wordpiece":
        raise UserError(
            f"demo: {artifact} has no linking page, as the page cannot tokenize with "
            f"{tokenizer}; serve an artifact that was made with wordpiece"
        )
    for path in (*paths, "assets.extra/vocab.txt"):
        if not (artifact / path).is_file():
            named = " names" if path in paths else " needs"
            raise UserError(
                f"demo: {model_path}{named} {path}, which does not exist; copy or "
                "export the artifact again, whole"
            )
    found = {path: (artifact / path).stat().st_size for path in paths}
    for path, size in _recorded_sizes(artifact).items():
        if path in found and found[path] != size:
            raise UserError(
                f"demo: {artifact / path} has {found[path]} bytes, expected {size}; it "
                "is truncated or of another version. Copy or export the artifact again"
            )
    if sum(found.values()) != expected:
        raise UserError(
            f"demo: the weights of {model_path} have {sum(found.values())} bytes, "
            f"expected {expected}; one of {', '.join(paths)} is truncated or of "
            "another version. Copy or export the artifact again"
        )
    if not (artifact / "page" / "index.html").is_file():
        raise UserError(
            f"demo: {artifact} has no page/index.html; export it again with this "
            "bert_export"
        )


def _recorded_tokenizer(model: dict[str, Any]) -> str:
    """The one that model.json's metadata names; of old, there was but one."""
    try:
        features = model["userDefinedMetadata"]["bert_export"]["features"]
        return features["tokenizer"]
    except (KeyError, TypeError):
        return "wordpiece"


def _stored_bytes(weight: dict[str, Any]) -> int:
    size = {"float32": 4, "int32": 4, "float16": 2, "uint16": 2, "uint8": 1, "bool": 1}
    stored = weight.get("quantization", {}).get("dtype", weight["dtype"])
    values = 1
    for dimension in weight["shape"]:
        values *= dimension
    return values * size[stored]


def _recorded_sizes(artifact: Path) -> dict[str, int]:
    """Of the files, by the manifest; nothing where there is none."""
    try:
        manifest = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
        return {path: file["bytes"] for path, file in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


class _Files:
    """An artifact's files as they are sent: compressed where that pays."""

    def __init__(self, artifact: Path):
        self._root = artifact.resolve()
        self._lock = threading.Lock()
        # By path, size and time of change: a file may be replaced while we serve.
        self._compressed: dict[tuple[Path, int, int], bytes] = {}

    def find(self, url_path: str) -> Path | None:
        """The file of an address; None if there is none inside the artifact."""
        relative = urllib.parse.unquote(url_path, errors="strict").lstrip("/")
        if relative.endswith("/") or not relative:
            relative += "index.html"
        if "\0" in relative:
            return None
        path = (self._root / relative).resolve()
        inside = path.is_relative_to(self._root) and path.is_file()
        return path if inside else None

    def body(self, path: Path) -> bytes | None:
        """The compressed content, if the file's kind is worth it."""
        if path.suffix not in _COMPRESSED:
            return None
        status = path.stat()
        key = (path, status.st_size, status.st_mtime_ns)
        with self._lock:
            if key not in self._compressed:
                self._compressed[key] = gzip.compress(path.read_bytes(), 6, mtime=0)
            return self._compressed[key]


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of browsers that hang up, as they do when a tab is closed."""


class _Handler(http.server.BaseHTTPRequestHandler):
    files: _Files
    server_version = "bert-export"
    sys_version = ""
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        """As GET, without the content."""
        self.do_GET()

    def do_GET(self) -> None:
        """Sends a file of the artifact."""
        url_path = urllib.parse.urlsplit(self.path).path
        if url_path in ("/", _PAGE.rstrip("/")):
            self._answer(HTTPStatus.FOUND, {"Location": _PAGE})
            return
        try:
            path = self.files.find(url_path)
        except (UnicodeDecodeError, ValueError, OSError):
            path = None
        if path is None:
            text = f"There is no {html.escape(url_path)} here.\n".encode()
            headers = {"Content-Type": "text/plain; charset=utf-8"}
            self._answer(HTTPStatus.NOT_FOUND, headers, text)
            return
        self._send_file(path, url_path)

    def _send_file(self, path: Path, url_path: str) -> None:
        body = self.files.body(path) if self._accepts_gzip() else None
        status = path.stat()
        coding = "" if body is None else "-gzip"
        stamp = f"{status.st_mtime_ns}-{status.st_size}{coding}".encode()
        headers = {
            "Content-Type": _TYPES.get(path.suffix, "application/octet-stream"),
            "ETag": f'"{hashlib.sha256(stamp).hexdigest()[:20]}"',
            "Last-Modified": email.utils.formatdate(status.st_mtime, usegmt=True),
            "Cache-Control": _FOREVER if _is_versioned(url_path) else _ASK_EACH_TIME,
            "Vary": "Accept-Encoding",
        }
        known = self.headers.get("If-None-Match", "")
        if headers["ETag"] in (tag.strip() for tag in known.split(",")):
            self._answer(HTTPStatus.NOT_MODIFIED, headers)
            return
        if body is not None:
            headers["Content-Encoding"] = "gzip"
            self._answer(HTTPStatus.OK, headers, body)
            return
        self._head(HTTPStatus.OK, headers, status.st_size)
        if self.command == "HEAD":
            return
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                self.wfile.write(block)

    def _accepts_gzip(self) -> bool:
        codings = self.headers.get("Accept-Encoding", "").split(",")
        return any(coding.split(";")[0].strip() == "gzip" for coding in codings)

    def _answer(
        self, status: HTTPStatus, headers: dict[str, str], body: bytes = b""
    ) -> None:
        self._head(status, headers, len(body))
        if self.command != "HEAD" and body:
            self.wfile.write(body)

    def _head(self, status: HTTPStatus, headers: dict[str, str], length: int) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Length", str(length))
        # With these a page may share memory between threads, which WASM needs.
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: the page says what goes wrong."""


def _is_versioned(url_path: str) -> bool:
    """Whether the address has the version in it: `/page/<version>/…`."""
    parts = url_path.split("/")
    return len(parts) > 3 and parts[1] == "page" and parts[2] not in ("", "..")

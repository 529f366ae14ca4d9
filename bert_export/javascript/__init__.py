"""Finds Node.js and Chromium, and installs the JavaScript packages that run models."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bert_export.errors import UserError
from bert_export.files import user_cache
from bert_export.javascript import build_tfjs_node

_HERE = Path(__file__).parent
_PACKAGE_FILES = ("package.json", "package-lock.json")
_MIN_NODE = 18
_FINISHED = ".finished"
_CHROMIUM_NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
)
_INSTALL_SECONDS = 900
# tfjs-node's own installation downloads about 100 MB.
_DOWNLOAD_SECONDS = 180
_GET_NODE = (
    f"Install Node.js {_MIN_NODE} or newer with npm (Debian, Ubuntu: apt-get install "
    "nodejs npm; macOS: brew install node; anywhere: nodejs.org)."
)


def node() -> Path:
    """The Node.js executable on the PATH.

    Raises:
      UserError: there is none, or it is older than 18.
    """
    found = shutil.which("node") or shutil.which("nodejs")
    if not found:
        raise UserError(f"Node.js was not found on the PATH. {_GET_NODE}")
    version = _node_version(found)
    if int(version.lstrip("v").split(".")[0]) < _MIN_NODE:
        raise UserError(f"{found} is Node.js {version}, too old. {_GET_NODE}")
    return Path(found)


@functools.cache
def _node_version(executable: str) -> str:
    """Such as v20.1.0."""
    process = subprocess.run(
        [executable, "--version"], capture_output=True, text=True, check=False
    )
    if process.returncode or not process.stdout.startswith("v"):
        said = (process.stderr or process.stdout).strip().splitlines()[-1:]
        raise UserError(f"{executable} does not run: {' '.join(said)} {_GET_NODE}")
    return process.stdout.strip()


def chromium() -> Path | None:
    """A Chromium or Chrome executable: $CHROMIUM_PATH, or one on the PATH.

    Returns:
      None where there is none.

    Raises:
      UserError: CHROMIUM_PATH names no executable file.
    """
    if named := os.environ.get("CHROMIUM_PATH"):
        if not os.access(named, os.X_OK) or not os.path.isfile(named):
            raise UserError(
                f"CHROMIUM_PATH={named}: not an executable file; name a Chromium or "
                "Chrome, or unset it to have one looked for on the PATH"
            )
        return Path(named)
    for name in _CHROMIUM_NAMES:
        if found := shutil.which(name):
            return Path(found)
    return None


def packages() -> Path:
    """A directory whose node_modules holds what package-lock.json pins.

    It is installed once, into the user's cache, by `npm ci`. tfjs-node's native
    binding is downloaded by the package's own installation or, where that cannot be
    had, compiled against the TensorFlow that is installed here. The directory's name
    depends on all of this: the lock, the Node.js and the TensorFlow.

    Raises:
      UserError: Node.js, npm or what the binding needs is missing, or the packages
        cannot be installed; the message says which.
    """
    executable = node()
    cache = user_cache() / "javascript"
    directory = cache / _key(executable)
    if (directory / _FINISHED).exists():
        return directory
    npm = shutil.which("npm")
    if not npm:
        raise UserError(f"npm was not found on the PATH. {_GET_NODE}")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _lock(cache / ".lock"):
            # Another process may have been faster.
            if not (directory / _FINISHED).exists():
                _install(directory, npm, executable)
    except OSError as error:
        raise UserError(
            f"{error.filename or cache}: {error.strerror}; the JavaScript packages are "
            "kept in the user's cache: make it writable, or name another one with "
            "XDG_CACHE_HOME"
        ) from error
    return directory


def _key(executable: Path) -> str:
    """A name for the packages as they would be installed now."""
    digest = hashlib.sha256()
    for name in (*_PACKAGE_FILES, "build_tfjs_node.py"):
        digest.update((_HERE / name).read_bytes())
    # The compiled binding is linked to a TensorFlow at a place.
    tensorflow = build_tfjs_node.tensorflow_directory()
    if tensorflow:
        version = build_tfjs_node.tensorflow_version(tensorflow)
        digest.update(f"{tensorflow} {version}".encode())
    return f"{_node_version(str(executable))}-{digest.hexdigest()[:16]}"


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("Waiting for another installation of the JavaScript packages ...")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _install(directory: Path, npm: str, executable: Path) -> None:
    """Installs the packages, complete or not at all."""
    _say(f"Installing the JavaScript packages into {directory} ...")
    with tempfile.TemporaryDirectory(
        prefix=".installing-", dir=directory.parent
    ) as temporary:
        staging = Path(temporary) / "packages"
        staging.mkdir()
        for name in _PACKAGE_FILES:
            shutil.copy(_HERE / name, staging / name)
        # npm runs the node that it finds on the PATH.
        path = os.pathsep.join([str(executable.parent), os.environ.get("PATH", "")])
        environment = {**os.environ, "PATH": path}
        quiet = ("--no-audit", "--no-fund", "--loglevel=error")
        try:
            _run(
                [npm, "ci", "--ignore-scripts", *quiet],
                staging,
                environment,
                _INSTALL_SECONDS,
            )
        except subprocess.SubprocessError as error:
            raise UserError(
                "the JavaScript packages could not be installed:\n"
                f"{_last_words(error)}\n"
                "npm uses the registry, proxy and certificates that it is configured "
                "to use; npm config get registry names the first."
            ) from error
        _install_binding(staging, npm, environment, executable)
        (staging / _FINISHED).touch()
        shutil.rmtree(directory, ignore_errors=True)
        os.replace(staging, directory)
    _say("The JavaScript packages are installed.")


def _install_binding(
    directory: Path, npm: str, environment: Mapping[str, str], executable: Path
) -> None:
    """Adds tfjs-node's native binding: downloaded or, if that fails, compiled."""
    modules = directory / "node_modules"
    try:
        _run(
            [npm, "rebuild", "@tensorflow/tfjs-node", "--loglevel=error"],
            directory,
            environment,
            _DOWNLOAD_SECONDS,
        )
        # Its installation also ends well with an error page for a download.
        build_tfjs_node.verify(modules, executable)
    except (subprocess.SubprocessError, UserError) as error:
        reason = next(
            (
                line
                for line in _last_words(error).splitlines()
                if "Error" in line or "timed out" in line
            ),
            "its own installation failed",
        )
        _say(f"tfjs-node's binding cannot be downloaded ({_plain(reason)}).")
        _say("Compiling it against the installed TensorFlow ...")
        build_tfjs_node.build(modules, executable)


def _plain(line: str) -> str:
    return line.removeprefix("npm error").strip()


def _run(
    command: Sequence[str],
    directory: Path,
    environment: Mapping[str, str],
    seconds: float,
) -> None:
    """Runs a command with all that it starts, for so long at most.

    Raises:
      subprocess.SubprocessError: it failed, or time is up.
    """
    with (
        tempfile.TemporaryFile("w+", errors="replace") as output,
        subprocess.Popen(
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            code = process.wait(seconds)
        except BaseException:
            # npm's children would go on.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
        if code:
            output.seek(0)
            raise subprocess.CalledProcessError(code, command, output.read())


def _last_words(error: Exception) -> str:
    said = getattr(error, "output", None) or str(error)
    return "\n".join(str(said).strip().splitlines()[-20:])


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

"""Compiles the native binding of @tensorflow/tfjs-node against TensorFlow's wheel.

The package downloads its binding and libtensorflow when it is installed. Where that
is out of reach, the library and the headers inside the TensorFlow wheel do as well:
its libtensorflow_cc.so.2 exports the C functions that the binding calls.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bert_export.errors import UserError

_LIBRARIES = ("libtensorflow_cc.so.2", "libtensorflow_framework.so.2")
_SOURCES = ("tfjs_backend.cc", "tfjs_binding.cc")
_SECONDS = 300
# Asks the package where it looks for its binding.
_WHERE = """
const manifest = require.resolve("@tensorflow/tfjs-node/package.json");
console.log(require("@mapbox/node-pre-gyp").find(manifest));
"""
# The two functions are what the package needs of Node.js before 23.
_MULTIPLY = """
const util = require("util");
util.isNullOrUndefined ??= (value) => value === null || value === undefined;
util.isArray ??= Array.isArray;
const tf = require("@tensorflow/tfjs-node");
const product = tf.matMul(tf.tensor2d([[1, 2], [3, 4]]), tf.tensor2d([[5, 6], [7, 8]]));
console.log(JSON.stringify([tf.getBackend(), Array.from(product.dataSync())]));
"""
_PRODUCT = '["tensorflow",[19,22,43,50]]'


def tensorflow_directory() -> Path | None:
    """Where the `tensorflow` package is installed; it is not imported."""
    spec = importlib.util.find_spec("tensorflow")
    return Path(spec.origin).parent if spec and spec.origin else None


def tensorflow_version(directory: Path) -> str:
    """The version of the TensorFlow in a directory, as its own headers have it."""
    path = directory / "include/tensorflow/core/public/version.h"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    return ".".join(
        match[1]
        for match in re.finditer(
            r"#define TF_(?:MAJOR|MINOR|PATCH)_VERSION (\d+)", text
        )
    )


def build(node_modules: Path, node: Path) -> Path:
    """Compiles the binding and makes sure that it works.

    Args:
      node_modules: has @tensorflow/tfjs-node.
      node: the Node.js executable.

    Returns:
      The binding, where the package looks for it.

    Raises:
      UserError: something that it takes is missing, or the compiler fails.
    """
    package = node_modules / "@tensorflow" / "tfjs-node"
    if not (package / "binding" / _SOURCES[0]).is_file():
        raise UserError(
            f"{node_modules}: has no @tensorflow/tfjs-node with its binding's sources; "
            "name the node_modules directory that it is installed in"
        )
    tensorflow = _tensorflow()
    headers = _node_headers(node)
    compiler = shutil.which(os.environ.get("CXX") or "g++")
    if not compiler:
        raise UserError(
            f"no C++ compiler ({os.environ.get('CXX') or 'g++'}) for tfjs-node's "
            "binding; install one (Debian, Ubuntu: apt-get install g++)"
        )
    target = Path(_run([str(node), "-e", _WHERE], node_modules))
    version = re.search(r"napi-v(\d+)", str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    command = [
        *(compiler, "-shared", "-fPIC", "-O2", "-std=c++17", "-w"),
        f"-DNAPI_VERSION={version[1] if version else 8}",
        *(f"-I{folder}" for folder in (package, headers, tensorflow / "include")),
        *(str(package / "binding" / source) for source in _SOURCES),
        *(str(tensorflow / library) for library in _LIBRARIES),
        # The libraries are found where they are, without LD_LIBRARY_PATH.
        f"-Wl,-rpath,{tensorflow}",
        *("-o", str(partial)),
    ]
    try:
        _run(command, node_modules)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    verify(node_modules, node)
    return target


def verify(node_modules: Path, node: Path) -> None:
    """Loads tfjs-node and multiplies two matrices with it.

    Raises:
      UserError: it does not load, or computes something else.
    """
    said = _run([str(node), "-e", _MULTIPLY], node_modules).splitlines()[-1:]
    if said != [_PRODUCT]:
        raise UserError(
            f"tfjs-node in {node_modules} loads, but a product of two matrices is "
            f"{''.join(said)}, expected {_PRODUCT}"
        )


def _tensorflow() -> Path:
    directory = tensorflow_directory()
    if directory is None:
        raise UserError(
            "TensorFlow is not installed in this Python; tfjs-node's binding is "
            "compiled against its library (scripts/setup installs it)"
        )
    needed = [*_LIBRARIES, "include/tensorflow/c/eager/c_api.h"]
    if missing := [name for name in needed if not (directory / name).exists()]:
        raise UserError(
            f"{directory}: has no {' and no '.join(missing)}; the binding needs a "
            "TensorFlow wheel for Linux, such as tensorflow 2.15.1 from PyPI"
        )
    return directory


def _node_headers(node: Path) -> Path:
    """Where Node's headers (node_api.h) are."""
    places = []
    if npm := shutil.which("npm"):
        process = subprocess.run(
            [npm, "config", "get", "nodedir"],
            capture_output=True,
            text=True,
            check=False,
        )
        nodedir = process.stdout.strip()
        if nodedir not in ("", "undefined", "null"):
            places.append(Path(nodedir) / "include" / "node")
    executable = _run([str(node), "-p", "process.execPath"], Path.cwd())
    places.append(Path(executable).parents[1] / "include" / "node")
    places.append(Path("/usr/include/node"))
    for place in places:
        if (place / "node_api.h").is_file():
            return place
    looked = ", ".join(str(place) for place in dict.fromkeys(places))
    raise UserError(
        f"no Node.js headers (node_api.h) in {looked}; install them (Debian, Ubuntu: "
        "apt-get install libnode-dev; they are part of nodejs.org's packages), or "
        "name their prefix with npm config set nodedir=DIR"
    )


def _run(command: Sequence[str], directory: Path) -> str:
    """Runs a command; returns what it printed.

    Raises:
      UserError: it failed; with its last words.
    """
    try:
        process = subprocess.run(
            command,
            cwd=directory,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{command[0]} has not ended after {_SECONDS} s") from error
    if process.returncode:
        said = "\n".join(process.stderr.strip().splitlines()[-20:])
        raise UserError(f"{command[0]} failed for tfjs-node's binding:\n{said}")
    return process.stdout.strip()


def main() -> int:
    """Compiles the binding for the node_modules that the command line names."""
    from bert_export import javascript

    parser = argparse.ArgumentParser(
        "build_tfjs_node", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "node_modules",
        type=Path,
        nargs="?",
        help="directory that has @tensorflow/tfjs-node (default: the packages in the "
        "user's cache, which are installed first)",
    )
    args = parser.parse_args()
    try:
        if args.node_modules is None:
            node_modules = javascript.packages() / "node_modules"
        else:
            node_modules = args.node_modules.resolve()
        target = build(node_modules, javascript.node())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{target} works.")
    return 0

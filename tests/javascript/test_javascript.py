"""Node.js, Chromium and the JavaScript packages, found and installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bert_export import javascript
from bert_export.errors import UserError
from bert_export.javascript import build_tfjs_node

ROOT = Path(__file__).resolve().parents[2]

needs_npm = pytest.mark.skipif(
    not (shutil.which("node") and shutil.which("npm")),
    reason="Node.js with npm is missing (apt-get install nodejs npm)",
)


def executable(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_no_node(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"Node\.js was not found.*apt-get install"):
        javascript.node()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo v16.20.0", "is Node.js v16.20.0, too old"),
        ("echo broken library >&2; exit 127", "does not run: broken library"),
    ],
)
def test_unfit_node(tmp_path, monkeypatch, script, message):
    executable(tmp_path / "node", script)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=message):
        javascript.node()


def test_chromium_is_named_or_found(tmp_path, monkeypatch):
    monkeypatch.delenv("CHROMIUM_PATH", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert javascript.chromium() is None
    found = executable(tmp_path / "google-chrome", "exit 0")
    assert javascript.chromium() == found
    named = executable(tmp_path / "mine", "exit 0")
    monkeypatch.setenv("CHROMIUM_PATH", str(named))
    assert javascript.chromium() == named
    named.chmod(0o644)
    with pytest.raises(UserError, match="not an executable file"):
        javascript.chromium()


@needs_npm
def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    # A file where the directory should be: root may write anywhere else.
    (tmp_path / "bert_export").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="XDG_CACHE_HOME"):
        javascript.packages()


@needs_npm
def test_failed_installation_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    with pytest.raises(UserError, match="could not be installed"):
        javascript.packages()
    left = [path.name for path in (tmp_path / "cache/bert_export/javascript").iterdir()]
    assert left == [".lock"]


@needs_npm
def test_the_binding_multiplies_and_is_built_again():
    directory = javascript.packages()
    assert javascript.packages() == directory
    modules = directory / "node_modules"
    build_tfjs_node.verify(modules, javascript.node())
    if not shutil.which("g++"):
        pytest.skip("g++ is missing (apt-get install g++)")
    target = build_tfjs_node.build(modules, javascript.node())
    assert target.is_relative_to(modules)
    assert [path.name for path in target.parent.iterdir()] == [target.name]


@needs_npm
@pytest.mark.slow
def test_two_processes_install_once(tmp_path):
    program = "from bert_export import javascript; print(javascript.packages())"
    cache = tmp_path / "a cache"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, "XDG_CACHE_HOME": str(cache)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert sum(err.count("packages are installed") for _, err in said) == 1
    made = Path(said[0][0].strip())
    assert sorted(path.name for path in made.parent.iterdir()) == [".lock", made.name]
    build_tfjs_node.verify(made / "node_modules", javascript.node())


@needs_npm
def test_node_modules_without_the_package(tmp_path):
    with pytest.raises(UserError, match="has no @tensorflow/tfjs-node"):
        build_tfjs_node.build(tmp_path, javascript.node())


def test_the_version_is_that_of_the_wheel():
    from importlib.metadata import version

    directory = build_tfjs_node.tensorflow_directory()
    assert build_tfjs_node.tensorflow_version(directory) == version("tensorflow")


def test_the_lock_names_no_registry():
    lock = (ROOT / "bert_export/javascript/package-lock.json").read_text()
    assert '"resolved"' not in lock


@needs_npm
@pytest.mark.skipif(
    not (ROOT / ".venv/.ready-demo").exists(),
    reason=".venv was not made by scripts/setup",
)
def test_the_script_works_from_anywhere(tmp_path):
    script = ROOT / "scripts" / "build_tfjs_node"
    process = subprocess.run([script], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.endswith("tfjs_binding.node works.\n")
    process = subprocess.run(
        [script, "."], cwd=tmp_path, capture_output=True, text=True
    )
    assert process.returncode == 2
    assert "has no @tensorflow/tfjs-node" in process.stderr

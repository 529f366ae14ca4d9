"""scripts/setup, as far as it goes without a download."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What scripts/setup calls besides Python, uv and pip.
TOOLS = ("bash", "cat", "cksum", "dirname", "env", "find", "flock", "head", "mkdir")
TOOLS += ("rm", "sed", "tail")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The files that setup reads, in a directory with a space in its name."""
    tree = tmp_path / "a tree"
    (tree / "scripts").mkdir(parents=True)
    for name in ("pyproject.toml", "constraints.txt", "scripts/setup"):
        shutil.copy(ROOT / name, tree / name)
    return tree


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    """A PATH directory with the tools, and no Python."""
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    for tool in TOOLS:
        if found := shutil.which(tool):
            (bin_dir / tool).symlink_to(found)
    return bin_dir


def add_command(directory: Path, name: str, script: str) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def add_python(directory: Path, name: str) -> Path:
    """The Python that runs this test, under another name."""
    return add_command(directory, name, f'exec "{sys.executable}" "$@"')


def setup(
    tree: Path, *args: str, path: str | Path | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [tree / "scripts/setup", *args],
        env={"PATH": str(path or os.environ["PATH"]), **env},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
    )


def make_ready(tree: Path, *profiles: str) -> None:
    """Leaves what a finished set-up of these profiles leaves."""
    (tree / ".venv/bin").mkdir(parents=True, exist_ok=True)
    (tree / ".venv/bin/python").symlink_to(sys.executable)
    files = [tree / "pyproject.toml", tree / "constraints.txt", tree / "scripts/setup"]
    joined = b"".join(file.read_bytes() for file in files)
    checksum = subprocess.run(["cksum"], input=joined, capture_output=True).stdout
    for profile in profiles:
        (tree / f".venv/.ready-{profile}").write_text(
            f"{tree.resolve()}\n{checksum.decode()}"
        )


def test_an_unknown_argument_is_a_usage_error(tree: Path) -> None:
    result = setup(tree, "everything")
    assert result.returncode == 2
    assert "no such argument: everything" in result.stderr
    assert "scripts/setup [demo|test]" in result.stdout + result.stderr
    assert not (tree / ".venv").exists()


def test_two_arguments_are_a_usage_error(tree: Path) -> None:
    result = setup(tree, "demo", "test")
    assert result.returncode == 2
    assert "one argument at most" in result.stderr


def test_help_goes_to_standard_output(tree: Path) -> None:
    result = setup(tree, "--help")
    assert result.returncode == 0
    assert "scripts/setup [demo|test]" in result.stdout


def test_finds_a_python_by_any_of_its_names(tree: Path, bin_dir: Path) -> None:
    python = add_python(bin_dir, "python")
    result = setup(tree, "--find-python", path=bin_dir)
    assert (result.returncode, result.stdout) == (0, f"{python}\n")


def test_failing_shims_and_other_versions_are_passed_over(
    tree: Path, bin_dir: Path, tmp_path: Path
) -> None:
    shims = tmp_path / "shims"
    add_command(
        shims, "python3.11", "echo 'python3.11: command not found' >&2\nexit 127"
    )
    add_command(shims, "python3.10", "exit 1")
    add_command(shims, "python3", "echo 'other version'")
    # The same name further down the PATH is not hidden by the shim.
    python = add_python(bin_dir, "python3.10")
    result = setup(tree, "--find-python", path=f"{shims}:{bin_dir}")
    assert (result.returncode, result.stdout) == (0, f"{python}\n")


def test_finds_a_pyenv_version_that_is_not_active(tree: Path, bin_dir: Path) -> None:
    pyenv = tree / "pyenv"
    python = pyenv / "versions/3.11.9/bin/python"
    python.parent.mkdir(parents=True)
    add_python(python.parent, "python")
    result = setup(tree, "--find-python", path=bin_dir, PYENV_ROOT=str(pyenv))
    assert (result.returncode, result.stdout) == (0, f"{python}\n")


def test_no_python_says_what_to_install(tree: Path, bin_dir: Path) -> None:
    result = setup(tree, "test", path=bin_dir, HOME=str(tree))
    assert result.returncode == 2
    assert "Found no Python 3.11 or 3.10" in result.stderr
    for advice in ("apt-get install", "brew install", "uv"):
        assert advice in result.stderr
    assert not (tree / ".venv").exists()


def test_a_python_without_venv_says_what_to_install(tree: Path, bin_dir: Path) -> None:
    python = add_command(bin_dir, "python3.11", "echo 'no venv'")
    result = setup(tree, path=bin_dir, HOME=str(tree))
    assert result.returncode == 2
    assert f"{python} cannot make virtual environments" in result.stderr
    assert "python3-venv" in result.stderr


def test_a_uv_that_cannot_fetch_a_python_is_quoted(tree: Path, bin_dir: Path) -> None:
    add_command(bin_dir, "uv", "echo 'error: No interpreter found' >&2\nexit 2")
    result = setup(tree, path=bin_dir, HOME=str(tree))
    assert result.returncode == 2
    assert "Creating .venv with uv ... failed" in result.stdout
    assert "error: No interpreter found" in result.stderr
    assert "Found no Python 3.11 or 3.10" in result.stderr


@pytest.mark.parametrize("python", ["/nonexistent/python", "/bin/cat"])
def test_a_named_python_must_fit(tree: Path, python: str) -> None:
    result = setup(tree, "--find-python", BERT_EXPORT_PYTHON=python)
    assert result.returncode == 2
    assert f"BERT_EXPORT_PYTHON={python} is no Python" in result.stderr


def test_does_nothing_where_all_is_there(tree: Path, bin_dir: Path) -> None:
    make_ready(tree, "demo", "test")
    began = time.monotonic()
    for profile in ("demo", "test"):
        result = setup(tree, profile, path=bin_dir, HOME=str(tree))
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    ("ready", "asked", "edited"),
    [
        ("demo", "test", None),
        ("test", "demo", None),
        ("demo", "demo", "constraints.txt"),
    ],
)
def test_what_is_missing_or_changed_is_not_taken_for_ready(
    tree: Path, bin_dir: Path, ready: str, asked: str, edited: str | None
) -> None:
    make_ready(tree, ready)
    if edited:
        with (tree / edited).open("a") as file:
            file.write("\n# another version\n")
    # Without a usable pip or Python it ends there, which shows that it went on.
    (tree / ".venv/bin/python").unlink()
    result = setup(tree, asked, path=bin_dir, HOME=str(tree))
    assert result.returncode == 2
    assert "Found no Python" in result.stderr


def test_a_moved_tree_is_not_taken_for_ready(tree: Path, bin_dir: Path) -> None:
    make_ready(tree, "demo")
    moved = tree.rename(tree.with_name("elsewhere"))
    result = setup(moved, path=bin_dir, HOME=str(tree))
    assert result.returncode == 2
    assert "Found no Python" in result.stderr


def test_a_failed_installation_shows_why_and_is_started_over(
    tree: Path, bin_dir: Path
) -> None:
    half_made = tree / ".venv/lib/half-made"
    half_made.mkdir(parents=True)
    add_python(bin_dir, "python3")
    # pip is left without a place to get anything from.
    nowhere = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    result = setup(tree, path=bin_dir, HOME=str(tree), **nowhere)
    assert result.returncode == 1
    assert "Removing a .venv that was not finished" in result.stdout
    assert "Installing the build tool ... failed" in result.stdout
    assert "setuptools" in result.stderr
    assert f"The whole log: {tree}/.venv/setup.log" in result.stderr
    assert not half_made.exists()
    assert not list(tree.glob(".venv/.ready-*"))


def test_a_second_call_waits_for_the_first(tree: Path, bin_dir: Path) -> None:
    if not shutil.which("flock"):
        pytest.skip("flock is not installed")
    with (tree / "scripts/setup").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = subprocess.Popen(
            [tree / "scripts/setup"],
            env={"PATH": str(bin_dir), "HOME": str(tree)},
            stdout=subprocess.PIPE,
            text=True,
        )
        with second:
            assert second.stdout is not None
            assert "Waiting for another set-up" in second.stdout.readline()
            make_ready(tree, "demo")
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert second.stdout.read() == ""
        assert second.returncode == 0

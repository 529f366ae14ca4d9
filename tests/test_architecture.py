"""The direction of imports between rooms, and what may load TensorFlow."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "bert_export"
# Left to right: a room imports only rooms before it.
ROOMS = (
    "corpus",
    "features",
    "modeling",
    "training",
    "export",
    "verification",
    "release",
)
SHARED = {"config", "errors", "files", "javascript"}
ROOM_MODULES = sorted(path for room in ROOMS for path in (PACKAGE / room).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of everything imported, at any depth.

    `package` is the package that relative imports start from.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                kept = package.split(".")[: 1 - node.level or None]
                base = ".".join(filter(None, [*kept, base]))
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def misdirected(path: Path) -> list[str]:
    room = path.relative_to(PACKAGE).parts[0]
    allowed = {*ROOMS[: ROOMS.index(room) + 1], *SHARED}
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = []
    for line, imported in imports_of(ast.parse(path.read_text("utf-8")), package):
        parts = imported.split(".")
        if parts[0] == "bert_export" and not (len(parts) > 1 and parts[1] in allowed):
            found.append(f"{path}:{line}: {room} must not import {imported}")
    return found


def test_relative_and_nested_imports_are_seen() -> None:
    source = "def f():\n    from .. import export\n    from ..export.a import b\n"
    found = list(imports_of(ast.parse(source), "bert_export.corpus"))
    assert found == [(2, "bert_export.export"), (3, "bert_export.export.a.b")]


@pytest.mark.parametrize("path", ROOM_MODULES, ids=module_name)
def test_a_room_imports_only_rooms_to_its_left(path: Path) -> None:
    assert misdirected(path) == []


def test_the_shared_modules_import_no_room() -> None:
    paths = [PACKAGE / f"{name}.py" for name in SHARED - {"javascript"}]
    for path in [*paths, *(PACKAGE / "javascript").glob("*.py")]:
        tree = ast.parse(path.read_text("utf-8"))
        for line, imported in imports_of(tree, "bert_export"):
            room = imported.split(".")[1] if imported.startswith("bert_export.") else ""
            assert room in {"", *SHARED}, f"{path}:{line} imports {imported}"


def test_corpus_config_and_command_line_do_not_load_tensorflow() -> None:
    modules = [
        module_name(path)
        for path in ROOM_MODULES
        if path.relative_to(PACKAGE).parts[0] == "corpus"
    ]
    modules += ["bert_export.config", "bert_export.errors", "bert_export.__main__"]
    script = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "    if 'tensorflow' in sys.modules:\n"
        "        sys.exit(f'{name} loads TensorFlow')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr

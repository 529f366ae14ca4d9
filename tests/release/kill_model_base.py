"""Kills what changes a model base before each of its file operations, in turn.

    python kill_model_base.py BASE publish|rollback|back whole|torn SCRATCH

BASE is a directory or a URL of file://. Each time the operation is then started again,
and has to complete. With `torn`, the file that was written last is cut in half, as if
the kill had come in the middle of writing it. Prints how often it killed.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).parents[2])]
import model_versions  # noqa: E402

from bert_export.release.model_base import ModelBase  # noqa: E402

_CHANGES = (
    "os.rename",
    "os.mkdir",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.truncate",
    "shutil.copyfile",
    "shutil.copytree",
    "shutil.move",
    "shutil.rmtree",
)


def is_opened_to_write(event: str, args: tuple) -> bool:
    if event != "open" or not isinstance(args[0], (str, bytes)):
        return False
    _, mode, flags = args
    if isinstance(mode, str):
        return bool(set(mode) & set("wax+"))
    return bool(flags & (os.O_WRONLY | os.O_RDWR))


def is_killed(operation: Callable[[], object], nth: int, torn: bool) -> bool:
    """Whether the operation came as far as its nth change, where it is killed."""
    child = os.fork()
    if child == 0:
        count, written = 0, None

        def hook(event: str, args: tuple) -> None:
            nonlocal count, written
            writes = is_opened_to_write(event, args)
            if not writes and event not in _CHANGES:
                return
            count += 1
            if count == nth:
                if torn and written is not None and os.path.exists(written):
                    count += 1  # truncating is an event, too
                    os.truncate(written, os.path.getsize(written) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            written = args[0] if writes else None

        sys.addaudithook(hook)
        try:
            operation()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0, "the operation failed"
    return False


def check(base: ModelBase, current: int, expected: dict[int, str]) -> None:
    """The base has these versions in these states, whole, and nothing else."""
    found = {version.version: version.state for version in base.versions()}
    assert found == expected, (found, expected)
    for number in expected:
        checks = base.verify(None if number == current else number)
        assert all(is_well for _, is_well, _ in checks), checks
    places = [
        f"withdrawn-{number}" if state == "withdrawn" else f"{number}"
        for number, state in expected.items()
    ]
    tree = {"current.json", "records", "onnx", *places}
    tree |= {f"onnx/{place}" for place in places}
    tree |= {f"records/{number}.json" for number in expected}
    extra = model_versions.tree(directory(base)) - {".lock"}
    assert extra == tree, extra ^ tree


def directory(base: ModelBase) -> Path:
    return Path(str(base).removeprefix("file://"))


def main(url: str, scenario: str, torn: bool, scratch: Path) -> int:
    base = ModelBase(url, "tiny")
    sources = [model_versions.make_all(scratch / content, content) for content in "ab"]

    def publish(number: int) -> str:
        return base.publish(sources[number % 2], number, keep=2)

    for number in (1, 2):
        publish(number)
    nth = 1
    while True:
        number = nth + 2
        if scenario == "publish":
            killed = is_killed(functools.partial(publish, number), nth, torn)
            assert publish(number).endswith(f"tiny/{number}")
            check(base, number, {number: "current", number - 1: "previous"})
        elif scenario == "rollback":
            # To the one before, which withdraws; and to the one that was withdrawn.
            killed = is_killed(lambda: base.rollback(1), nth, torn)
            assert base.rollback(1)[1] == 1
            check(base, 1, {2: "withdrawn", 1: "current"})
            killed |= is_killed(lambda: base.rollback(2), nth, torn)
            assert base.rollback(2)[1] == 2
            check(base, 2, {2: "current", 1: "previous"})
        else:
            publish(number)
            killed = is_killed(lambda: base.rollback(None), nth, torn)
            done = {number: "withdrawn", number - 1: "current"}
            if {v.version: v.state for v in base.versions()} != done:
                assert base.rollback(None)[1] == number - 1
            check(base, number - 1, done)
            base.rollback(number)
        if not killed:
            return nth - 1
        nth += 1


if __name__ == "__main__":
    print(main(sys.argv[1], sys.argv[2], sys.argv[3] == "torn", Path(sys.argv[4])))

"""Runs the program and kills it, with SIGKILL, at its n-th change of a file.

    python tests/kill_at.py N DIRECTORY[,DIRECTORY] COMMAND FLAGS…

Only changes that Python makes below the directories count: files opened to be
written, renamed or removed, directories made or removed. With N = 0 nothing is
killed, and the number of changes is printed last.
"""

from __future__ import annotations

import os
import signal
import sys

CHANGES = (
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.truncate",
    "shutil.rmtree",
    "shutil.copyfile",
)
IN_DIRECTORY = ("os.remove", "os.mkdir", "os.rmdir")
WRITING = os.O_WRONLY | os.O_RDWR


def install(last: int, directories: list[str]) -> list[str]:
    """Installs the hook; returns the list to which it adds every change."""
    changes: list[str] = []

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not (isinstance(flags, int) and flags & WRITING):
                return
        elif event not in CHANGES:
            return
        else:
            path = arguments[0]
        if not isinstance(path, (str, os.PathLike)):
            return
        directory = arguments[-1]
        if event in IN_DIRECTORY and isinstance(directory, int) and directory >= 0:
            # shutil.rmtree names files relative to an open directory.
            path = os.path.join(os.readlink(f"/proc/self/fd/{directory}"), path)
        absolute = os.path.abspath(path)
        if not absolute.startswith(tuple(directories)):
            return
        changes.append(f"{event} {absolute}")
        if len(changes) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return changes


if __name__ == "__main__":
    number, paths = int(sys.argv[1]), sys.argv[2]
    sys.path.insert(0, os.getcwd())
    from bert_export.__main__ import main

    found = install(number, [os.path.abspath(path) for path in paths.split(",")])
    code = main(["bert-export", *sys.argv[3:]])
    if not number:
        print(len(found))
    sys.exit(code)

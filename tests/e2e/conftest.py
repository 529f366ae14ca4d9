"""The sample config, run once from end to end for all tests here."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from tests import command_line
from tests.command_line import SAMPLE


@dataclasses.dataclass(frozen=True)
class Sample:
    """What `run` on configs/sample.py left behind and printed. Not to be changed."""

    workdir: Path
    version: Path
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def sample(tmp_path_factory) -> Sample:
    workdir = tmp_path_factory.mktemp("sample") / "work"
    result = command_line.done("run", SAMPLE, f"--workdir={workdir}")
    (version,) = (
        path for path in (workdir / "export").iterdir() if path.name.isdigit()
    )
    return Sample(workdir, version, result.stdout, result.stderr)


@pytest.fixture
def copied(sample, tmp_path) -> Path:
    """A copy of the sample's workdir, to go on in."""
    return Path(shutil.copytree(sample.workdir, tmp_path / "work"))

"""The smoke test as a process: exit codes, result file, isolation."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bert_export.errors import StageError, UserError
from bert_export.verification import run, smoke_test
from tests import tiny_artifact


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_artifact.artifact(), tmp_path / "artifact"))


def test_good_artifact(artifact):
    result = run.run_smoke_test(artifact)
    assert result == json.loads((artifact / "smoke_test.json").read_text())
    assert list(result) == [
        "format_version",
        "passed",
        "seconds",
        "versions",
        "checks",
    ]
    assert result["passed"]
    assert list(result["checks"][0]) == ["name", "result", "detail"]
    assert result["checks"][-1]["name"] == "isolation"
    # The result is no part of what the manifest lists: it can be tested again.
    assert run.run_smoke_test(artifact, output=artifact.parent / "again.json")


def test_failure_names_the_signature_and_the_difference(artifact):
    path = artifact / smoke_test.GOLDEN
    golden = json.loads(path.read_text())
    golden["requests"][3]["score"] += 0.25
    path.write_text(json.dumps(golden))
    with pytest.raises(StageError) as caught:
        run.run_smoke_test(artifact)
    message = str(caught.value)
    assert message.startswith("the smoke test failed, ")
    assert "replay:serving_default:session" in message
    assert "score differs by 0." in message
    result = json.loads((artifact / "smoke_test.json").read_text())
    assert not result["passed"]


def test_old_result_does_not_outlive_a_failure_to_run(artifact):
    with pytest.raises(StageError, match="the smoke test died"):
        run.run_smoke_test(artifact, output=artifact / "missing" / "result.json")


def test_no_artifact(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        run.run_smoke_test(tmp_path / "missing")


@pytest.mark.parametrize(
    ("args", "code"), [(["."], 1), ([], 2), (["missing"], 2), ([".", "--what"], 2)]
)
def test_exit_codes(tmp_path, args, code):
    process = subprocess.run(
        [sys.executable, "-I", str(run.SCRIPT), *args],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert process.returncode == code
    assert "Traceback" not in process.stderr

"""Publishing: nobody ever sees a part of a version."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bert_export.errors import StageError, UserError
from bert_export.export import publish
from bert_export.release import manifest
from bert_export.verification.run import run_smoke_test
from tests import tiny_artifact

# Stages version 7 and waits to be killed.
STAGE_AND_WAIT = """
import sys, time
from bert_export.export import publish
with publish.staging(sys.argv[1], 7) as directory:
    (directory / "file").write_text("half")
    print(directory, flush=True)
    time.sleep(600)
"""


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_versions_are_numbers(tmp_path):
    for name in ("12", "3", ".staging-99-1", "best", "7x", "-1"):
        (tmp_path / name).mkdir()
    (tmp_path / "44").write_text("a file")
    assert publish.versions(tmp_path) == [3, 12]
    assert publish.versions(tmp_path / "missing") == []


def test_new_version_is_the_time_and_above_all_others(tmp_path):
    before = int(time.time())
    assert before <= publish.new_version(tmp_path / "new") <= time.time()
    (tmp_path / "99999999999").mkdir()
    assert publish.new_version(tmp_path) == 100000000000
    (tmp_path / ".staging-100000000000-1").mkdir()
    assert publish.new_version(tmp_path) == 100000000001


def test_unwritable_export_dir_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    for directory in (tmp_path / "file", tmp_path / "file" / "export"):
        with pytest.raises(UserError, match="cannot write versions here") as caught:
            publish.new_version(directory)
        assert str(directory) in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_export_dir_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"):
        publish.check_export_dir(tmp_path)


def test_published_version_is_what_was_staged(tmp_path):
    for name in (publish.FAILED_SMOKE_TEST_FILE, publish.FAILED_PROOF_FILE):
        (tmp_path / name).write_text("of an earlier attempt")
    with publish.staging(tmp_path, 5) as directory:
        assert directory.parent == tmp_path
        assert publish.versions(tmp_path) == []
        (directory / "sub").mkdir()
        (directory / "sub" / "file").write_text("whole")
        assert publish.publish(directory, tmp_path, 5) == tmp_path / "5"
    assert names(tmp_path) == {"5"}
    assert (tmp_path / "5" / "sub" / "file").read_text() == "whole"
    # Readable by whom the umask lets read, such as TF Serving's own user.
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "5").stat().st_mode & 0o777 == 0o777 & ~umask


def test_published_versions_never_change(tmp_path):
    (tmp_path / "5").mkdir()
    with publish.staging(tmp_path, 5) as directory:
        (directory / "file").write_text("new")
        with pytest.raises(StageError, match="this version exists"):
            publish.publish(directory, tmp_path, 5)
    assert names(tmp_path) == {"5"}
    assert names(tmp_path / "5") == set()


@pytest.mark.parametrize(
    ("written", "left"),
    [
        (["saved_model.pb"], set()),
        (["smoke_test.json"], {"failed_smoke_test.json"}),
        (["proof.json"], {"failed_proof.json"}),
        (["smoke_test.json", "proof.json"], {"failed_proof.json"}),
    ],
)
def test_failure_leaves_only_the_last_tests_result(tmp_path, written, left):
    def fail() -> None:
        with publish.staging(tmp_path, 5) as directory:
            for name in written:
                (directory / name).write_text("by the failed attempt")
            (directory / "sub").mkdir()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert names(tmp_path) == left
    for path in tmp_path.iterdir():
        assert path.read_text() == "by the failed attempt"


def test_leftovers_of_dead_processes_are_removed_and_of_living_ones_kept(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", STAGE_AND_WAIT, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(publish.__file__).parents[2],
    )
    try:
        assert process.stdout is not None
        staged = Path(process.stdout.readline().strip())
        with publish.staging(tmp_path, 8):
            assert (staged / "file").exists()
        assert publish.new_version(tmp_path) > 7
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert staged.exists()
        with publish.staging(tmp_path, 8) as directory:
            assert names(tmp_path) == {directory.name}
    finally:
        process.kill()
        process.communicate()
    assert names(tmp_path) == set()


def test_a_failed_smoke_test_leaves_no_version(tmp_path):
    version = publish.new_version(tmp_path)

    def export_defective() -> None:
        with publish.staging(tmp_path, version) as directory:
            shutil.copytree(tiny_artifact.artifact(), directory, dirs_exist_ok=True)
            vocab = directory / "assets.extra" / "vocab.txt"
            vocab.write_text(vocab.read_text().replace("w1\n", "w!\n"))
            run_smoke_test(directory)
            publish.publish(directory, tmp_path, version)

    with pytest.raises(StageError, match=r"files: assets.extra/vocab.txt was altered"):
        export_defective()
    assert names(tmp_path) == {publish.FAILED_SMOKE_TEST_FILE}


def test_a_polling_reader_sees_whole_versions_only(tmp_path):
    """A reader as quick as can be, during an export that writes file by file."""
    source = tiny_artifact.artifact()
    expected = manifest.read(source)["files"]
    seen: set[str] = set()
    broken: list[str] = []
    done = threading.Event()

    def poll() -> None:
        while not done.is_set():
            for version in publish.versions(tmp_path):
                seen.add(str(version))
                if manifest.list_files(tmp_path / str(version)) != expected:
                    broken.append(str(version))

    reader = threading.Thread(target=poll)
    reader.start()
    try:
        for version in range(1, 6):
            with publish.staging(tmp_path, version) as directory:
                for path in sorted(source.rglob("*")):
                    target = directory / path.relative_to(source)
                    if path.is_dir():
                        target.mkdir()
                    else:
                        target.write_bytes(path.read_bytes())
                    time.sleep(0.005)
                publish.publish(directory, tmp_path, version)
    finally:
        time.sleep(0.05)
        done.set()
        reader.join()
    assert seen == {"1", "2", "3", "4", "5"}
    assert broken == []

"""The model base: whole versions or none, whatever is killed, full or damaged."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import pytest

from bert_export.errors import Damaged, LockHeld, StageError, UserError
from bert_export.release import model_store, published
from bert_export.release.model_base import ModelBase
from tests import command_line
from tests.release import model_versions
from tests.release.model_versions import content, damage, make, make_all, tree

HERE = Path(__file__).parent
KINDS = ("local", "file")


def open_base(kind: str, directory: Path) -> ModelBase:
    url = {"local": "", "file": "file://"}[kind]
    return ModelBase(f"{url}{directory}", "tiny")


@pytest.fixture(params=KINDS)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> ModelBase:
    return open_base(request.param, tmp_path / "the base")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where `base` keeps its files."""
    return tmp_path / "the base" / "tiny"


@pytest.fixture
def artifacts(tmp_path: Path) -> dict[str, dict[str, Path]]:
    return {letter: make_all(tmp_path / letter, letter) for letter in "abcd"}


def states(base: ModelBase) -> dict[int, str]:
    return {version.version: version.state for version in base.versions()}


def current(base: ModelBase) -> tuple[int, int | None]:
    found = base.current()
    assert found is not None
    return found.version, found.previous


def wrong(base: ModelBase, version: int | None = None) -> dict[str, str]:
    checks = base.verify(version)
    return {name: detail for name, is_well, detail in checks if not is_well}


def publish_abc(base: ModelBase, artifacts: dict[str, Any], keep: int = 5) -> None:
    for version, letter in enumerate("abc", 1):
        base.publish(artifacts[letter], version, keep)


def test_a_published_version_is_what_was_exported(base, root, artifacts):
    assert base.current() is None
    assert base.versions() == []
    place = base.publish(artifacts["a"], 7, keep=5)
    assert place == str(root / "7") or place == f"file://{root / '7'}"
    for target, path in (("saved_model", "7"), ("onnx", "onnx/7")):
        source = artifacts["a"][target]
        for file in source.rglob("*"):
            if file.is_file():
                copy = root / path / file.relative_to(source)
                assert copy.read_bytes() == file.read_bytes()
        assert len(list(source.rglob("*"))) == len(list((root / path).rglob("*")))
    hashes = {
        target: hashlib.sha256((source / "manifest.json").read_bytes()).hexdigest()
        for target, source in artifacts["a"].items()
    }
    found = base.current()
    assert found is not None
    assert (found.version, found.previous) == (7, None)
    assert found.manifest_sha256 == hashes["saved_model"]
    assert found.artifacts == {
        "saved_model": {"path": "7", "manifest_sha256": hashes["saved_model"]},
        "onnx": {"path": "onnx/7", "manifest_sha256": hashes["onnx"]},
    }
    (version,) = base.versions()
    assert (version.version, version.state) == (7, "current")
    assert version.date == found.published
    assert abs(time.time() - _seconds(found.published)) < 60
    assert version.metrics["link_accuracy"] == 0.75
    files = [f for d in (root / "7", root / "onnx" / "7") for f in d.rglob("*")]
    assert version.bytes == sum(f.stat().st_size for f in files if f.is_file())
    assert wrong(base) == {}
    # Model servers of other users have to read it.
    umask = os.umask(0)
    os.umask(umask)
    assert (root / "7").stat().st_mode & 0o777 == 0o777 & ~umask
    assert (root / "7" / "saved_model.pb").stat().st_mode & 0o777 == 0o666 & ~umask


def _seconds(iso: str) -> float:
    return datetime.datetime.fromisoformat(iso).timestamp()


def test_publishing_again_changes_nothing(base, root, artifacts):
    base.publish(artifacts["a"], 3, keep=5)
    base.publish(artifacts["b"], 4, keep=5)
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}
    for version, letter in ((3, "a"), (4, "b")):
        base.publish(artifacts[letter], version, keep=5)
    assert current(base) == (4, 3)
    after = {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}
    assert {k: v for k, v in after.items() if k.name != ".lock"} == {
        k: v for k, v in before.items() if k.name != ".lock"
    }


def test_a_version_never_changes(base, root, artifacts):
    base.publish(artifacts["a"], 3, keep=5)
    with pytest.raises(StageError, match="version 3 exists with another content"):
        base.publish(artifacts["b"], 3, keep=5)
    assert content(root / "3") == "a"
    assert wrong(base) == {}


def test_a_version_below_one_that_servers_see_is_refused(base, root, artifacts):
    base.publish(artifacts["a"], 3, keep=5)
    with pytest.raises(StageError, match="servers would go on serving 3"):
        base.publish(artifacts["b"], 2, keep=5)
    assert states(base) == {3: "current"}


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("variables/variables.index", b"other", "variables.index: other content"),
        ("saved_model.pb", None, "saved_model.pb: missing"),
        ("left_over", b"", "left_over: not in the manifest"),
    ],
)
def test_a_damaged_export_is_not_published(
    base, root, artifacts, file, change, message
):
    path = artifacts["a"]["saved_model"] / file
    path.unlink() if change is None else path.write_bytes(change)
    with pytest.raises(StageError, match=f"not what was exported: .*{message}"):
        base.publish(artifacts["a"], 3, keep=5)
    assert not root.exists()


def test_what_cannot_be_published_is_refused(base, root, artifacts):
    with pytest.raises(UserError, match=r"needs saved_model.* found onnx"):
        base.publish({"onnx": artifacts["a"]["onnx"]}, 3, keep=5)
    with pytest.raises(UserError, match="expected the directory of an exported"):
        base.publish({"saved_model": root / "missing"}, 3, keep=5)
    assert not root.exists()


def test_a_link_out_of_an_export_is_not_followed(base, artifacts, tmp_path):
    secret = tmp_path / "secret"
    file = artifacts["a"]["saved_model"] / "saved_model.pb"
    file.rename(secret)
    file.symlink_to(secret)
    with pytest.raises(StageError, match=r"saved_model\.pb: missing"):
        base.publish(artifacts["a"], 3, keep=5)


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a b"])
def test_a_name_that_is_no_directory_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="expected a name"):
        ModelBase(str(tmp_path), name)


def test_retention_keeps_the_newest(base, root, artifacts):
    publish_abc(base, artifacts, keep=2)
    assert states(base) == {3: "current", 2: "previous"}
    expected = {"2", "3", "onnx", "onnx/2", "onnx/3", "current.json", "records"}
    expected |= {"records/2.json", "records/3.json"}
    assert tree(root) - {".lock"} == expected


def test_retention_spares_current_and_previous(base, artifacts):
    publish_abc(base, artifacts)
    base.rollback(1)
    base.publish(artifacts["d"], 4, keep=1)
    assert states(base) == {4: "current", 1: "previous"}
    assert wrong(base, 1) == {}


def test_retention_spares_what_others_put_there(base, root, artifacts):
    make(root / "1", "foreign")
    (root / "README").write_text("ours")
    for version, letter in ((2, "a"), (3, "b"), (4, "c")):
        base.publish(artifacts[letter], version, keep=1)
    assert states(base) == {4: "current", 3: "previous", 1: "incomplete"}
    assert content(root / "1") == "foreign"
    assert (root / "README").exists()


def test_rollback_goes_one_back_each_time(base, root, artifacts):
    publish_abc(base, artifacts)
    assert current(base) == (3, 2)
    assert base.rollback(None) == (3, 2)
    assert current(base) == (2, 1)
    assert states(base) == {3: "withdrawn", 2: "current", 1: "previous"}
    # Out of the sight of servers of all formats, yet not lost.
    for directory in (root, root / "onnx"):
        assert not (directory / "3").exists()
        assert damage(directory / "withdrawn-3") == ""
    assert base.rollback(None) == (2, 1)
    assert current(base) == (1, None)
    with pytest.raises(UserError, match="no version before 1"):
        base.rollback(None)
    assert states(base) == {3: "withdrawn", 2: "withdrawn", 1: "current"}
    assert wrong(base) == {}


def test_rollback_brings_a_withdrawn_version_back(base, root, artifacts):
    publish_abc(base, artifacts)
    base.rollback(1)
    assert base.rollback(3) == (1, 3)
    assert current(base) == (3, 1)
    assert states(base) == {3: "current", 2: "withdrawn", 1: "previous"}
    assert wrong(base) == {}
    assert content(root / "onnx" / "3") == "c"
    assert base.rollback(3) == (3, 3)
    assert current(base) == (3, 1)


def test_a_withdrawn_version_is_not_published_again(base, artifacts):
    publish_abc(base, artifacts)
    base.rollback(None)
    with pytest.raises(StageError, match=r"3 was withdrawn .* rollback --version=3"):
        base.publish(artifacts["c"], 3, keep=5)
    assert states(base)[3] == "withdrawn"
    # Its number is not given to another either.
    assert base.new_version() > 3


def test_rollback_to_what_is_not_there(base, root, artifacts):
    with pytest.raises(UserError, match="nothing has been published"):
        base.rollback(None)
    assert not root.exists()
    base.publish(artifacts["a"], 1, keep=5)
    with pytest.raises(UserError, match="no version 9"):
        base.rollback(9)
    assert states(base) == {1: "current"}


def test_rollback_refuses_a_damaged_version(base, root, artifacts):
    publish_abc(base, artifacts)
    (root / "2" / "variables" / "variables.index").write_bytes(b"rotten")
    before = tree(root)
    with pytest.raises(Damaged, match=r"2: variables/variables.index: other content"):
        base.rollback(None)
    assert tree(root) == before
    assert base.rollback(1) == (3, 1)


@pytest.mark.parametrize("file", ["saved_model.pb", "variables/variables.index"])
def test_rollback_from_a_damaged_version(base, root, artifacts, file):
    publish_abc(base, artifacts)
    (root / "3" / file).unlink()
    assert base.rollback(None)[1] == 2
    assert states(base)[2] == "current"
    assert not (root / "3").exists()


def test_rollback_repairs_a_damaged_current_file(base, root, artifacts):
    publish_abc(base, artifacts)
    (root / "current.json").write_text("{")
    for call in (base.current, lambda: base.rollback(None)):
        with pytest.raises(Damaged, match=r"not JSON.*rollback --version=N"):
            call()
    assert "not JSON" in wrong(base)["current.json"]
    base.rollback(3)
    assert current(base) == (3, 2)
    assert wrong(base) == {}


def killed_before_current(
    base: ModelBase, root: Path, artifacts: dict[str, Path], version: int
) -> None:
    """Leaves the base as a kill does between a version's rename and current.json."""
    before = (root / "current.json").read_bytes()
    base.publish(artifacts, version, keep=5)
    (root / "current.json").write_bytes(before)


def test_rollback_of_a_publish_that_was_killed(base, root, artifacts):
    base.publish(artifacts["a"], 1, keep=5)
    base.publish(artifacts["b"], 2, keep=5)
    killed_before_current(base, root, artifacts["c"], 3)
    assert states(base) == {3: "incomplete", 2: "current", 1: "previous"}
    assert wrong(base) == {"served": "current.json names 2; servers see 3"}
    # What servers have goes, and not also what they had before.
    assert base.rollback(None) == (3, 2)
    assert states(base) == {3: "withdrawn", 2: "current", 1: "previous"}
    assert wrong(base) == {}


def test_a_publish_that_was_killed_may_be_overtaken(base, root, artifacts):
    base.publish(artifacts["a"], 1, keep=5)
    killed_before_current(base, root, artifacts["b"], 2)
    base.publish(artifacts["c"], 3, keep=5)
    assert states(base) == {3: "current", 2: "kept", 1: "previous"}


@pytest.mark.parametrize("how", ["clean", "publish"])
def test_half_of_a_publish_is_cleaned_away(base, root, artifacts, how):
    publish_abc(base, artifacts)
    before = tree(root)
    # As a kill leaves it: the copies of version 4 are not all in their places, an
    # older version is on its way out.
    killed_before_current(base, root, artifacts["d"], 4)
    shutil.rmtree(root / "4")
    assert states(base)[4] == "incomplete"
    litter = [".staging-4/saved_model.pb", "onnx/.trash-1/model.onnx", ".probe"]
    litter += [".current.json.partial", "records/.4.json.partial"]
    if str(base).startswith("file:"):
        litter = ["current.json.partial", "records/4.json.partial", ".probe"]
    for name in litter:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("half")
    if how == "clean":
        # Its publisher may yet come back.
        base.clean()
        assert tree(root) - before >= {"records/4.json", "onnx/4"}
    base.publish(artifacts["d"], 5, keep=5)
    assert states(base) == {5: "current", 3: "previous", 2: "kept", 1: "kept"}
    assert tree(root) == before | {"5", "onnx/5", "records/5.json"}


def test_cleaning_spares_a_damaged_previous_version(base, root, artifacts):
    publish_abc(base, artifacts)
    (root / "2" / "saved_model.pb").unlink()
    base.clean()
    base.publish(artifacts["c"], 3, keep=1)
    assert states(base) == {3: "current", 2: "previous"}
    assert (root / "2" / "manifest.json").exists()


def test_new_versions_grow_whatever_the_clock_says(base, root, artifacts):
    now = int(time.time())
    assert now <= base.new_version() <= time.time()
    assert not root.exists()
    # As if it had been ahead by a century when these were made.
    ahead = now + 100 * 365 * 86400
    base.publish(artifacts["a"], ahead, keep=5)
    assert base.new_version() == ahead + 1
    base.publish(artifacts["b"], ahead + 5, keep=5)
    base.rollback(None)
    assert base.new_version() == ahead + 6
    base.publish(artifacts["c"], ahead + 6, keep=1)
    assert current(base) == (ahead + 6, ahead)
    # What was only begun counts, too, as does what others put there.
    shutil.copy(
        root / "records" / f"{ahead}.json", root / "records" / f"{ahead + 8}.json"
    )
    assert base.new_version() == ahead + 9
    (root / "onnx" / f"{ahead + 20}").mkdir()
    (root / f"withdrawn-{ahead + 30}").mkdir()
    assert base.new_version() == ahead + 31


@pytest.mark.parametrize(
    ("file", "change", "check", "message"),
    [
        ("3/saved_model.pb", b"x", "saved_model", "saved_model.pb: other content"),
        ("3/variables/variables.index", None, "saved_model", "missing"),
        ("3/extra.so", b"x", "saved_model", "extra.so: not in the manifest"),
        ("onnx/3/model.onnx", b"x", "onnx", "model.onnx: other content"),
        ("onnx/3/manifest.json", None, "onnx", "manifest.json: missing"),
        ("3/manifest.json", b"{}", "saved_model", "not what was published"),
        ("records/3.json", None, "records/3.json", "missing"),
        ("records/3.json", b"[]", "records/3.json", "expected format_version 1"),
        ("current.json", b"{}", "current.json", "expected format_version 1"),
    ],
)
def test_verify_finds_damage(base, root, artifacts, file, change, check, message):
    publish_abc(base, artifacts)
    assert wrong(base) == {}
    path = root / file
    path.unlink() if change is None else path.write_bytes(change)
    found = wrong(base)
    assert message in found[check]
    assert wrong(base, 2) == ({} if file != "current.json" else wrong(base, 2))


def test_verify_sees_a_model_that_was_exchanged_whole(base, root, artifacts):
    publish_abc(base, artifacts)
    shutil.rmtree(root / "3")
    shutil.copytree(artifacts["d"]["saved_model"], root / "3")
    assert damage(root / "3") == ""
    assert wrong(base) == {"saved_model": "manifest.json: not what was published"}


def test_verify_sees_a_newer_model_that_nobody_published(base, root, artifacts):
    publish_abc(base, artifacts)
    shutil.copytree(artifacts["d"]["saved_model"], root / "99")
    assert wrong(base) == {"served": "current.json names 3; servers see 99"}
    base.rollback(3)
    assert wrong(base) == {}
    assert content(root / "withdrawn-99") == "d"


def test_verify_of_what_is_not_there(base, artifacts):
    with pytest.raises(UserError, match="nothing has been published"):
        base.verify(None)
    base.publish(artifacts["a"], 1, keep=5)
    with pytest.raises(UserError, match="no version 2"):
        base.verify(2)


@pytest.mark.parametrize("path", ["../../elsewhere", "/etc", "2", "", None, 3])
def test_paths_of_json_cannot_leave_their_place(base, root, artifacts, path):
    publish_abc(base, artifacts)
    for name, call in (
        ("current.json", base.current),
        ("records/3.json", base.versions),
    ):
        file = root / name
        before = file.read_bytes()
        values = json.loads(before)
        values["artifacts"]["onnx"]["path"] = path
        file.write_text(json.dumps(values))
        with pytest.raises(UserError, match="onnx: expected the path 'onnx/3', found"):
            call()
        values["artifacts"]["onnx"]["path"] = "onnx/3"
        values["artifacts"]["../onnx"] = {"path": "../onnx/3", "manifest_sha256": ""}
        file.write_text(json.dumps(values))
        with pytest.raises(UserError, match=r"artifacts: \.\./onnx"):
            call()
        file.write_bytes(before)


@pytest.mark.parametrize(
    "name", ["../saved_model.pb", "/etc/passwd", "a/../../b", "a\\b", ""]
)
def test_paths_of_a_manifest_cannot_leave_their_place(base, root, artifacts, name):
    manifest = artifacts["a"]["saved_model"] / "manifest.json"
    values = json.loads(manifest.read_bytes())
    values["files"][name] = {"sha256": "0" * 64, "bytes": 3}
    manifest.write_text(json.dumps(values))
    with pytest.raises(UserError, match="paths inside of the directory"):
        base.publish(artifacts["a"], 3, keep=5)
    assert not root.exists()


def test_fetch_gives_a_verified_directory(base, root, artifacts, tmp_path):
    publish_abc(base, artifacts)
    base.rollback(None)
    for version, letter in ((2, "b"), (3, "c")):
        fetched = base.fetch(version, tmp_path / "fetched")
        assert content(fetched) == letter
        assert damage(fetched) == ""
        is_local = not str(base).startswith("file:")
        assert fetched.is_relative_to(root if is_local else tmp_path / "fetched")
    with pytest.raises(UserError, match="no version 9"):
        base.fetch(9, tmp_path / "fetched")
    (root / "2" / "saved_model.pb").write_bytes(b"rotten")
    shutil.rmtree(tmp_path / "fetched", ignore_errors=True)
    with pytest.raises(Damaged, match=r"saved_model\.pb: other content"):
        base.fetch(2, tmp_path / "fetched")
    assert not list((tmp_path / "fetched").glob("**/*"))


def test_a_store_that_is_no_file_system(artifacts, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    base = ModelBase(f"memory://{tmp_path.name}/models", "tiny")
    base.check_writable()
    assert base.versions() == []
    publish_abc(base, artifacts, keep=2)
    assert base.publish(artifacts["d"], 4, keep=2).startswith("memory://")
    assert states(base) == {4: "current", 3: "previous"}
    assert base.rollback(None) == (4, 3)
    assert states(base) == {4: "withdrawn", 3: "current"}
    assert content(base.fetch(4, tmp_path / "fetched")) == "d"
    assert base.rollback(4) == (3, 4)
    assert wrong(base) == {}
    store = fsspec.filesystem("memory")
    with store.open(f"/{tmp_path.name}/models/tiny/4/saved_model.pb", "wb") as file:
        file.write(b"rotten")
    assert "saved_model.pb: other content" in wrong(base)["saved_model"]
    files = store.find(f"/{tmp_path.name}/models/tiny")
    assert not [name for name in files if ".p" in name.replace(".pb", "")]


def test_a_url_that_nothing_opens():
    with pytest.raises(UserError, match="--model_base: cannot open nosuch://x/tiny"):
        ModelBase("nosuch://x", "tiny")


def test_check_writable(base, root, tmp_path):
    base.check_writable()
    assert tree(root) <= {".lock"}
    (tmp_path / "file").write_text("")
    for kind in KINDS:
        with pytest.raises(UserError, match="--model_base: cannot write"):
            open_base(kind, tmp_path / "file").check_writable()


@contextlib.contextmanager
def reading(root: Path, kind: str, how: str = "hash") -> Iterator[dict[str, Any]]:
    """Polls the base in another process; what it saw is there when the block ends."""
    process = subprocess.Popen(
        [sys.executable, HERE / "model_reader.py", root, kind, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    found: dict[str, Any] = {}
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "READY\n"
        yield found
        output, _ = process.communicate(timeout=60)
        found.update(json.loads(output))
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("scenario", ["publish", "rollback", "back"])
@pytest.mark.parametrize("kind", KINDS)
def test_killed_before_every_file_operation(tmp_path, kind, scenario):
    directory = tmp_path / "the base"
    url = f"file://{directory}" if kind == "file" else str(directory)
    with reading(directory / "tiny", kind) as found:
        for how in ("whole",) if scenario == "back" else ("whole", "torn"):
            script = HERE / "kill_model_base.py"
            done = subprocess.run(
                [sys.executable, script, url, scenario, how, tmp_path / "sources"],
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode == 0, done.stderr
            # A rollback on a file system is but a few renames.
            fewest = 8 if kind == "local" and scenario != "publish" else 50
            assert int(done.stdout) >= fewest
            shutil.rmtree(tmp_path / "sources")
            directory.rename(tmp_path / f"done {how}")
    assert found["violations"] == []
    assert found["polls"] > 20
    assert len(found["seen"]) >= 2


def test_the_reader_sees_half_a_version(tmp_path):
    """The test above could not pass with a base that shows one."""
    for kind in ("local", "remote"):
        root = tmp_path / kind / "tiny"
        with reading(root, kind) as found:
            make(root / "5", "whole")
            time.sleep(0.3)
            (root / "5" / "variables" / "variables.index").unlink()
            time.sleep(0.3)
        assert "5" in found["seen"]
        assert found["violations"]


def test_two_publishers_at_once(tmp_path, artifacts):
    script = (
        "import sys; from pathlib import Path\n"
        "from bert_export.errors import StageError\n"
        "from bert_export.release.model_base import ModelBase\n"
        "base = ModelBase(sys.argv[1], 'tiny')\n"
        "sources = {t: Path(sys.argv[2], t) for t in ('saved_model', 'onnx')}\n"
        "for version in map(int, sys.argv[3:]):\n"
        "    try:\n"
        "        base.publish(sources, version, keep=2)\n"
        "    except StageError as error:\n"
        "        assert 'go on serving' in str(error), error\n"
    )
    directory = tmp_path / "the base"
    with reading(directory / "tiny", "local") as found:
        publishers = [
            subprocess.Popen(
                [
                    *(sys.executable, "-c", script, directory),
                    *(tmp_path / letter, *map(str, range(first, 40, 2))),
                ],
                cwd=command_line.ROOT,
            )
            for letter, first in (("a", 1), ("b", 2))
        ]
        assert [process.wait(timeout=60) for process in publishers] == [0, 0]
    base = open_base("local", directory)
    assert current(base)[0] == 39
    assert wrong(base) == {}
    assert set(states(base).values()) == {"current", "previous"}
    assert found["violations"] == []


def test_a_held_lock_is_waited_for_and_named(tmp_path, artifacts, monkeypatch):
    base = open_base("local", tmp_path)
    base.publish(artifacts["a"], 1, keep=5)
    monkeypatch.setattr(model_store, "_LOCK_SECONDS", 0.2)
    with filelock.FileLock(tmp_path / "tiny" / ".lock"):
        for call in (
            lambda: base.publish(artifacts["b"], 2, keep=5),
            lambda: base.rollback(None),
            base.clean,
        ):
            with pytest.raises(LockHeld, match=r"another process .* holds \.lock"):
                call()
        # Looking needs no lock.
        assert states(base) == {1: "current"}
        assert wrong(base) == {}
    base.publish(artifacts["b"], 2, keep=5)
    assert current(base) == (2, 1)


# Runs in a mount namespace of its own.
IN_NAMESPACE = """
import subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from bert_export.errors import StageError, UserError
from bert_export.release.model_base import ModelBase
from tests.release import model_versions as made

mount, scratch = Path(sys.argv[2]), Path(sys.argv[3])

def mounted(options):
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", mount]
    if subprocess.run(command, capture_output=True).returncode:
        sys.exit(77)

small, large = (made.make_all(scratch / name, name, 40_000) for name in ("a", "b"))
size = sum(f.stat().st_size for f in scratch.glob("b/**/*") if f.is_file())
mounted(f"size={size * 5 // 4}")
for url in (str(mount), f"file://{mount}"):
    base = ModelBase(url, "tiny")
    base.publish(small, 1, keep=5)
    try:
        base.publish(large, 2, keep=5)
    except StageError as error:
        assert "No space left" in str(error), error
    else:
        raise AssertionError("there was room")
    assert base.current().version == 1
    assert all(well for _, well, _ in base.verify(None)), base.verify(None)
    assert not (mount / "tiny" / "2" / "saved_model.pb").exists()
    if url == str(mount):
        assert made.tree(mount / "tiny") == {
            "1", "onnx", "onnx/1", "current.json", "records", ".lock",
            "records/1.json", "records/2.json",
        }, made.tree(mount / "tiny")
    subprocess.run(["mount", "-o", f"remount,size={size * 4}", mount], check=True)
    base.publish(large, 2, keep=5)
    assert base.current().version == 2
    assert all(well for _, well, _ in base.verify(None))
    subprocess.run(["rm", "-r", mount / "tiny"], check=True)
    subprocess.run(
        ["mount", "-o", f"remount,size={size * 5 // 4}", mount], check=True
    )

subprocess.run(["mount", "-o", f"remount,size={size * 9}", mount], check=True)
base = ModelBase(str(mount), "tiny")
base.publish(small, 1, keep=5)
base.publish(large, 2, keep=5)
subprocess.run(["mount", "-o", "remount,ro", mount], check=True)
for call in (
    base.check_writable,
    lambda: base.publish(small, 3, keep=5),
    lambda: base.rollback(None),
    ModelBase(str(mount), "another").check_writable,
    ModelBase(f"file://{mount}", "tiny").check_writable,
):
    try:
        call()
    except UserError as error:
        assert "--model_base: cannot write" in str(error), error
        assert "Read-only file system" in str(error), error
    else:
        raise AssertionError("it was written")
# What only reads goes on.
assert base.current().version == 2
assert [v.state for v in base.versions()] == ["current", "previous"]
assert all(well for _, well, _ in base.verify(None))
assert base.fetch(2, scratch) == mount / "tiny" / "2"
"""


def test_a_full_disk_and_a_read_only_base(tmp_path):
    (tmp_path / "mount").mkdir()
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rm", "true"]).returncode:
        pytest.skip("no mount namespaces here")
    command = [sys.executable, "-c", IN_NAMESPACE, command_line.ROOT]
    done = subprocess.run(
        [unshare, "-rm", *command, tmp_path / "mount", tmp_path / "scratch"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode == 77:
        pytest.skip("tmpfs cannot be mounted here")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_base_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"cannot write .*Permission denied"):
        open_base("local", tmp_path).check_writable()


def test_neither_module_loads_tensorflow():
    script = (
        "import sys, bert_export.release.published\n"
        "sys.exit('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=command_line.ROOT)
    assert done.returncode == 0


def test_the_table_of_versions(base, artifacts):
    assert published.versions_table([]) == "nothing has been published here"
    publish_abc(base, artifacts)
    base.rollback(None)
    header, _, *rows = published.versions_table(base.versions()).splitlines()
    assert header.split("  ")[0] == "version"
    assert [row.split()[:2] for row in rows] == [
        ["3", "withdrawn"],
        ["2", "current"],
        ["1", "previous"],
    ]
    assert rows[0].split()[3:] == ["75.0", "80.0", "50.0", "0.1"]


def test_wrong_usage_of_the_commands(tmp_path):
    message = command_line.refused("versions", "--name=tiny")
    assert "--model_base=DIR is needed" in message
    message = command_line.refused("rollback", f"--model_base={tmp_path}")
    assert "--name=NAME is needed" in message
    flags = (f"--model_base={tmp_path / 'none'}", "--name=tiny")
    assert "nothing has been published" in command_line.refused("rollback", *flags)
    assert not (tmp_path / "none").exists()


def test_the_commands(tmp_path, artifacts):
    base = open_base("local", tmp_path / "base")
    publish_abc(base, artifacts)
    model_base = f"--model_base={tmp_path / 'base'}"
    config = ("--config=configs/sample.py", "--config.name=tiny")
    done = command_line.done("versions", model_base, "--name=tiny", "--json")
    rows = json.loads(done.stdout)
    assert [row["version"] for row in rows] == [3, 2, 1]
    assert rows[0]["state"] == "current"
    done = command_line.done("rollback", model_base, *config)
    assert "version 2 is in production; before, servers had 3" in done.stdout
    (tmp_path / "base" / "tiny" / "2" / "saved_model.pb").write_bytes(b"rotten")
    damaged = command_line.run("verify_version", model_base, *config)
    assert damaged.returncode == 5
    assert "other content" in damaged.stdout
    assert damaged.stderr.startswith("bert-export: ")
    assert len(damaged.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_real_model_is_verified_and_loaded_while_publishers_are_killed(tmp_path):
    """The reader loads with TensorFlow whatever it sees."""
    # Not above: it takes TensorFlow, and seconds, and the other tests need none.
    from tests import tiny_artifact

    artifact = tiny_artifact.artifact()
    directory = tmp_path / "base"
    base = open_base("local", directory)
    script = (
        "import sys; from pathlib import Path\n"
        "from bert_export.release.model_base import ModelBase\n"
        "print('READY', flush=True)\n"
        "base = ModelBase(sys.argv[1], 'tiny')\n"
        "base.publish({'saved_model': Path(sys.argv[2])}, int(sys.argv[3]), keep=2)\n"
        "if int(sys.argv[3]) % 3 == 0: base.rollback(None)\n"
    )
    generator = random.Random(7)
    deadline = time.monotonic() + 20
    version, kills = 0, 0
    with reading(directory / "tiny", "local", "tensorflow") as found:
        while time.monotonic() < deadline:
            version += 1
            process = subprocess.Popen(
                [sys.executable, "-c", script, directory, artifact, str(version)],
                cwd=command_line.ROOT,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert process.stdout is not None
            assert process.stdout.readline() == "READY\n"
            time.sleep(generator.uniform(0, 0.05))
            process.kill()
            kills += process.wait() == -signal.SIGKILL
            if (state := states(base).get(version)) != "withdrawn":
                base.publish({"saved_model": artifact}, version, keep=2)
            else:
                assert state == "withdrawn"
    assert kills > 5
    assert found["violations"] == []
    assert len(found["seen"]) > 2
    assert model_versions.damage(directory / "tiny" / str(current(base)[0])) == ""
    flags = (f"--model_base={directory}", "--name=tiny")
    done = command_line.done("verify_version", *flags)
    assert "smoke test" in done.stdout
    assert "failed" not in done.stdout

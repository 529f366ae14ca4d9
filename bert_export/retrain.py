"""A scheduled run: nothing for unchanged inputs, else a judged and published model.

Every stage's completion is recorded in WORKDIR/retrain.json, by one rename, so that a
run that was killed at any moment goes on where it was when it is started again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

from bert_export.config import RETRAIN_STAGES, Config, export_targets
from bert_export.errors import (
    Failure,
    GateRefused,
    LockHeld,
    StageError,
    Terminated,
    UserError,
)
from bert_export.files import sha256_file, write_json
from bert_export.inputs import differences, digest, fingerprints
from bert_export.release.model_base import Current, ModelBase, Version
from bert_export.run_log import RunLog, notify, now, write_metrics
from bert_export.workdir import read_summary, record_config, stage, unwritable

# TensorFlow takes seconds to import; a run with nothing to do, or with nothing left to
# do but to publish, is over before. So `pipeline` and `judge` are imported by stages.

STATE_FILE = "retrain.json"
LOCK_FILE = "retrain.lock"
HOLDER_FILE = "retrain.lock.json"
LOG_FILE = "log.jsonl"
RUNS_DIR = "runs"
TEMPORARY_DIR = "tmp"
GATE_DIR = "gate"
_STATE_FORMAT = 1
_RUN_ID = re.compile(r"\d{8}T\d{6}Z(-\d+)?")
# Inputs that change while a run reads them make it begin again, so many times.
_MAX_STARTS = 3
# What stays of a run that is over. TensorBoard finds events at any depth.
_KEPT = (
    "config.json",
    "error.log",
    "evaluation.json",
    "summary.json",
    f"{GATE_DIR}/**/*",
    "export/reports/**/*",
    "model/curve.jsonl",
    "model/**/events.out.tfevents.*",
)


@dataclasses.dataclass(frozen=True)
class Options:
    """What one run is asked for.

    Attributes:
      force: retrain though nothing has changed since the last success.
      until: the last of RETRAIN_STAGES to run.
      warm_start: train from the model in production in place of pretrained weights.
      notify_command: is given the summary as JSON; None for none.
      metrics_file: gets Prometheus' text format; None for none.
      json: print the summary as JSON, and all else on standard error.
    """

    force: bool = False
    until: str = RETRAIN_STAGES[-1]
    warm_start: bool = False
    notify_command: str | None = None
    metrics_file: str | None = None
    json: bool = False


def retrain(config: Config, workdir: Path, model_base: str, options: Options) -> None:
    """Retrains, judges and publishes, as far as there is anything to do.

    Args:
      config: the run's.
      workdir: where runs, their state and their log are kept.
      model_base: the directory, or URL of fsspec, under which models are published.
      options: see there. The summary that some of them ask for is described in
        docs/retrain.md.

    Raises:
      UserError: bad input, or the model base cannot be written.
      StageError: a stage failed.
      GateRefused: the model was not good enough.
      LockHeld: another run is at work in the workdir.
      Terminated: SIGTERM came.
    """
    started = time.monotonic()
    if "://" not in model_base:
        model_base = os.path.abspath(model_base)
    log = RunLog(workdir / LOG_FILE)
    summary: dict[str, Any] = {
        "name": config.name,
        "run_id": None,
        "outcome": "failed",
        "exit_code": 1,
        "error": None,
        "version": None,
        "previous_version": None,
        "current_version": None,
        "gate_passed": None,
        "gate": None,
        "metrics": {},
        "link_accuracy": None,
        "changed": [],
        "last_success": None,
        "model_base": model_base,
        "workdir": str(workdir.resolve()),
    }
    try:
        # What people read goes elsewhere when a program reads the summary.
        people = sys.stderr if options.json else sys.stdout
        with (
            contextlib.redirect_stdout(people),
            _exclusively(workdir),
            _terminable(),
        ):
            _Retraining(config, workdir, model_base, options, log, summary).run()
        summary["exit_code"] = 0
    except (Failure, Terminated) as error:
        _failed(summary, error, error.exit_code)
        raise
    except KeyboardInterrupt as error:
        _failed(summary, error, 130)
        raise
    except OSError as error:
        _failed(summary, error, 1)
        raise StageError(f"retrain failed: {error}") from error
    finally:
        summary["ended"] = time.time()
        summary["seconds"] = round(time.monotonic() - started, 3)
        if summary["outcome"] != "locked":
            log.event("end", **summary)
            if options.metrics_file:
                write_metrics(options.metrics_file, summary)
        if options.notify_command:
            notify(options.notify_command, summary)
        if options.json:
            print(json.dumps(summary, indent=2, ensure_ascii=False))


def _failed(summary: dict[str, Any], error: BaseException, exit_code: int) -> None:
    outcomes = {
        GateRefused.exit_code: "refused",
        LockHeld.exit_code: "locked",
        Terminated.exit_code: "terminated",
        130: "interrupted",
    }
    summary["outcome"] = outcomes.get(exit_code, "failed")
    summary["exit_code"] = exit_code
    summary["error"] = str(error) or type(error).__name__


class _InputsChanged(Exception):
    """Files were replaced while a run was reading them."""


@dataclasses.dataclass
class _Run:
    """A run that is not over, as STATE_FILE records it.

    Attributes:
      run_id: its name and its directory's.
      version: what it will be published as.
      inputs: see `fingerprints`.
      completed: by stage, what is known of it.
    """

    run_id: str
    version: int
    inputs: dict[str, str]
    completed: dict[str, Any]


class _Retraining:
    """One run, from the look at its inputs to the tidying up."""

    def __init__(
        self,
        config: Config,
        workdir: Path,
        model_base: str,
        options: Options,
        log: RunLog,
        summary: dict[str, Any],
    ) -> None:
        if not config.train.do_train:
            raise UserError("retrain: config.train.do_train is False; add --do_train")
        if config.export.dir:
            raise UserError(
                "retrain: artifacts are published under --model_base; leave "
                f"config.export.dir unset, found {config.export.dir!r}"
            )
        if "TF_CONFIG" in os.environ:
            raise UserError(
                "retrain works on one machine; unset TF_CONFIG. 'bert-export train' "
                "trains on several"
            )
        targets = export_targets(config.export)
        if not any(target.name == "saved_model" for target in targets):
            raise UserError(
                "config.export.formats: retrain judges and publishes a saved_model; "
                f"add it, found {', '.join(target.name for target in targets)}"
            )
        golden = config.gate.golden_mentions
        if golden and not Path(golden).is_file():
            raise UserError(f"config.gate.golden_mentions: there is no file {golden}")
        self._config = config
        self._workdir = workdir
        self._base = ModelBase(model_base, config.name)
        self._options = options
        self._log = log
        self._summary = summary
        self._prepared: dict[str, Any] = {}
        self._state = _read_state(workdir)

    def run(self) -> None:
        """Runs what there is to run, and says what it was in the summary."""
        self._tidy()
        self._base.check_writable()
        self._base.clean()
        self._report_current()
        success = self._state.get("last_success")
        self._summary["last_success"] = success and success["time"]
        for _ in range(_MAX_STARTS):
            try:
                self._run_stages()
                return
            except _InputsChanged as change:
                self._drop_run(str(change))
        raise StageError(
            f"inputs were replaced during each of {_MAX_STARTS} tries; start again "
            "when they stay as they are"
        )

    def _run_stages(self) -> None:
        inputs = self._fingerprints()
        run = self._pending(inputs)
        # Asked once: on object stores it is a request a version.
        versions = self._base.versions() if run else []
        if run and _is_withdrawn(run, versions):
            self._succeed(run, "unchanged")
            self._say(
                "unchanged",
                f"nothing to do: version {run.version} of these inputs was taken back "
                "by a rollback",
            )
            return
        if run is None:
            if self._is_unchanged(inputs):
                return
            run = self._new_run(inputs)
        else:
            self._renumber(run, versions)
            done = ", ".join(run.completed) or "nothing"
            self._say("resume", f"going on with run {run.run_id}; done: {done}")
        self._log.run_id = self._summary["run_id"] = run.run_id
        self._summary["version"] = run.version
        directory = self._directory(run)
        # Whatever libraries leave in the directory for temporary files is removed with
        # it. Near the root, as paths of sockets may have 107 characters.
        temporary = self._workdir / TEMPORARY_DIR
        temporary.mkdir(exist_ok=True)
        os.environ["TMPDIR"] = str(temporary)
        tempfile.tempdir = None
        config = self._run_config(run)
        record_config(config, directory)
        work = {
            "prepare": self._prepare,
            "train": self._train,
            "evaluate": self._evaluate,
            "export": self._export,
            "gate": self._gate,
            "publish": self._publish,
        }
        for name in RETRAIN_STAGES[: RETRAIN_STAGES.index(self._options.until) + 1]:
            if name in run.completed and name != "gate":
                self._log.event("skip", stage=name)
                continue
            began = time.monotonic()
            self._log.event("begin", stage=name)
            try:
                run.completed[name] = work[name](run, config)
            except BaseException as error:
                message = str(error) or type(error).__name__
                self._log.event("failed", stage=name, error=message)
                raise
            seconds = round(time.monotonic() - began, 3)
            self._log.event("done", stage=name, seconds=seconds)
            if name != "publish":
                self._record(run)
                self._check_inputs(run)
        if self._options.until == "publish":
            self._succeed(run)
        else:
            until = self._options.until
            self._summary["outcome"] = "dry_run" if until == "gate" else "stopped"
            self._say("stop", f"stopped after {self._options.until}, as asked")

    # The stages. Each may be run again after it was killed at any moment.

    def _prepare(self, run: _Run, config: Config) -> dict[str, Any]:
        from bert_export import judge, pipeline

        directory = self._directory(run)
        pipeline.check(config, directory)
        fingerprint = self._data(run, config).fingerprint
        # Whatever the gate could not read is found before hours of training.
        judge.mention_sets(config, directory)
        return {"data_fingerprint": fingerprint}

    def _train(self, run: _Run, config: Config) -> dict[str, Any]:
        from bert_export import pipeline

        pipeline.train(config, self._directory(run), self._data(run, config))
        return {}

    def _evaluate(self, run: _Run, config: Config) -> dict[str, Any]:
        from bert_export import pipeline

        directory = self._directory(run)
        checkpoint = pipeline.choose_checkpoint(config, directory)
        data = self._data(run, config)
        metrics = pipeline.evaluate(config, directory, data, checkpoint)
        return {"link_accuracy": metrics["link_accuracy"]}

    def _export(self, run: _Run, config: Config) -> dict[str, Any]:
        from bert_export import pipeline

        directory = self._directory(run)
        # Half of an earlier try's artifacts may be there.
        shutil.rmtree(directory / "export", ignore_errors=True)
        checkpoint = pipeline.choose_checkpoint(config, directory)
        data = self._data(run, config)
        try:
            pipeline.export(config, directory, data, checkpoint, run.version)
        except StageError:
            # An artifact that failed its proof is for the gate to refuse.
            if not read_summary(directory).get("not_published"):
                raise
        exported = read_summary(directory)
        if "saved_model" not in exported["artifacts"]:
            raise StageError(
                f"the saved_model was not exported: {exported['not_published']}"
            )
        return {
            "artifacts": {
                name: str(Path(path).relative_to(directory))
                for name, path in exported["artifacts"].items()
            },
            "not_published": exported["not_published"],
        }

    def _gate(self, run: _Run, config: Config) -> dict[str, Any]:
        production = self._base.current()
        passed = run.completed.get("gate")
        if production and production.version == run.version:
            # It was killed while it published.
            assert passed
            return self._judged(run, passed)
        judged = {
            "limits": digest(dataclasses.asdict(config.gate)),
            "golden": config.gate.golden_mentions
            and sha256_file(config.gate.golden_mentions),
            "production": production and production.manifest_sha256,
        }
        if passed and passed["judged"] == judged:
            self._log.event("skip", stage="gate")
            return self._judged(run, passed)
        from bert_export import judge
        from bert_export.release import gate_report

        directory = self._directory(run)
        exported = run.completed["export"]
        with stage("gate", directory):
            verdict = judge.judge(
                config,
                directory,
                candidate=directory / exported["artifacts"]["saved_model"],
                production=self._fetch(production, run),
                proofs={
                    **dict.fromkeys(exported["artifacts"], None),
                    **exported["not_published"],
                },
                output_dir=directory / GATE_DIR,
                run_id=run.run_id,
                version=run.version,
                production_version=production.version if production else None,
            )
            print(gate_report.text_table(verdict))
        result = {
            "judged": judged,
            "passed": verdict["passed"],
            "metrics": verdict["metrics"],
        }
        self._judged(run, result)
        if not verdict["passed"]:
            # To be judged again, by other limits perhaps, but not trained again.
            run.completed.pop("gate", None)
            self._record(run)
            failed = [c for c in verdict["criteria"] if not c["passed"]]
            raise GateRefused(
                f"version {run.version} is not published: "
                + "; ".join(f"{c['name']}: {c['detail']}" for c in failed)
                + f" (report: {directory / GATE_DIR / 'report.html'})"
            )
        return result

    def _judged(self, run: _Run, result: dict[str, Any]) -> dict[str, Any]:
        """Puts a verdict into the summary."""
        self._summary["gate_passed"] = result["passed"]
        self._summary["gate"] = str(self._directory(run) / GATE_DIR / "gate.json")
        self._summary["metrics"] = result["metrics"]
        return result

    def _publish(self, run: _Run, config: Config) -> dict[str, Any]:
        directory = self._directory(run)
        artifacts = run.completed["export"]["artifacts"]
        with stage("publish", directory):
            place = self._base.publish(
                {name: directory / path for name, path in artifacts.items()},
                run.version,
                config.release.keep_versions,
            )
        self._say("published", f"published: {place}")
        return {}

    # What the stages share.

    def _data(self, run: _Run, config: Config) -> Any:
        if run.run_id not in self._prepared:
            from bert_export import pipeline

            data = pipeline.prepare(config, self._directory(run))
            self._prepared = {run.run_id: data}
        return self._prepared[run.run_id]

    def _fetch(self, production: Current | None, run: _Run) -> Path | None:
        """The model in production on this machine, its files verified."""
        if production is None:
            return None
        directory = self._directory(run) / "production"
        shutil.rmtree(directory, ignore_errors=True)
        return self._base.fetch(production.version, directory)

    def _directory(self, run: _Run) -> Path:
        return self._workdir / RUNS_DIR / run.run_id

    def _run_config(self, run: _Run) -> Config:
        """The config with which a run's stages work."""
        if not self._options.warm_start:
            return self._config
        prefix = self._directory(run) / "warm_start" / "variables"
        if "warm_start" not in run.completed:
            production = self._base.current()
            run.completed["warm_start"] = self._copy_weights(production, run, prefix)
            self._record(run)
        if run.completed["warm_start"] is None:
            return self._config
        model = dataclasses.replace(self._config.model, init_checkpoint=str(prefix))
        return dataclasses.replace(self._config, model=model)

    def _copy_weights(
        self, production: Current | None, run: _Run, prefix: Path
    ) -> int | None:
        """Copies production's variables; returns its version, None if there is none."""
        artifact = self._fetch(production, run)
        if production is None or artifact is None:
            self._say("warm_start", "no model in production: from pretrained weights")
            return None
        from bert_export import pipeline

        pipeline.check_same_vocabulary(self._config, artifact)
        shutil.rmtree(prefix.parent, ignore_errors=True)
        prefix.parent.mkdir(parents=True)
        for file in (artifact / "variables").glob("variables.*"):
            shutil.copyfile(file, prefix.parent / file.name)
        self._say("warm_start", f"training goes on from version {production.version}")
        return production.version

    # Inputs and state.

    def _fingerprints(self) -> dict[str, str]:
        return fingerprints(self._config, self._workdir, self._options.warm_start)

    def _check_inputs(self, run: _Run) -> None:
        changed = differences(run.inputs, self._fingerprints())
        if changed:
            raise _InputsChanged(
                f"replaced during the run: {', '.join(changed)}; beginning again"
            )

    def _pending(self, inputs: Mapping[str, str]) -> _Run | None:
        """The run to go on with, if there is one of these inputs."""
        recorded = self._state.get("run")
        if recorded is None:
            return None
        run = _Run(**recorded)
        changed = differences(run.inputs, inputs)
        if not changed:
            return run
        self._drop_run(f"run {run.run_id} is given up, changed: {', '.join(changed)}")
        return None

    def _renumber(self, run: _Run, versions: Sequence[Version]) -> None:
        """Gives a run another number if somebody has published a newer version."""
        newest = max((v.version for v in versions), default=0)
        current = self._base.current()
        if newest > run.version and (current is None or current.version != run.version):
            run.version = self._base.new_version()
            # They bear the number; what was trained stays.
            for name in ("export", "gate"):
                run.completed.pop(name, None)
            self._record(run)

    def _is_unchanged(self, inputs: Mapping[str, str]) -> bool:
        success = self._state.get("last_success")
        current = self._base.current()
        if not success or success["model_base"] != self._summary["model_base"]:
            return False
        changed = differences(success["inputs"], inputs)
        self._summary["changed"] = changed
        if changed or current is None or self._options.force:
            return False
        self._summary["outcome"] = "unchanged"
        self._summary["run_id"] = self._log.run_id = success["run_id"]
        self._summary["last_success"] = time.time()
        self._say(
            "unchanged",
            f"nothing to do: inputs are those of run {success['run_id']}, published "
            f"as version {success['version']}; current is version {current.version} "
            "(--force retrains all the same)",
        )
        self._state["last_success"] = success | {"time": time.time()}
        write_json(self._workdir / STATE_FILE, self._state)
        return True

    def _new_run(self, inputs: dict[str, str]) -> _Run:
        moment = datetime.datetime.now(datetime.timezone.utc)
        first = run_id = moment.strftime("%Y%m%dT%H%M%SZ")
        number = 1
        while (self._workdir / RUNS_DIR / run_id).exists():
            number += 1
            run_id = f"{first}-{number}"
        run = _Run(run_id, self._base.new_version(), inputs, {})
        self._directory(run).mkdir(parents=True)
        self._record(run)
        because = ", ".join(self._summary["changed"])
        self._say(
            "start",
            f"run {run_id}: " + (f"changed: {because}" if because else "begins"),
        )
        return run

    def _record(self, run: _Run) -> None:
        self._state["run"] = dataclasses.asdict(run)
        write_json(self._workdir / STATE_FILE, self._state)

    def _drop_run(self, why: str) -> None:
        self._log.run_id = self._state["run"]["run_id"]
        self._say("dropped", why)
        self._log.run_id = None
        self._state["run"] = None
        write_json(self._workdir / STATE_FILE, self._state)
        self._tidy()

    def _succeed(self, run: _Run, outcome: str = "published") -> None:
        """Records the success, by one rename, and tidies up."""
        ended = time.time()
        self._state = {
            "format": _STATE_FORMAT,
            "run": None,
            "last_success": {
                "run_id": run.run_id,
                "version": run.version,
                "inputs": run.inputs,
                "model_base": self._summary["model_base"],
                "time": ended,
            },
        }
        write_json(self._workdir / STATE_FILE, self._state)
        self._summary["outcome"] = outcome
        self._summary["last_success"] = ended
        self._report_current()
        self._tidy()

    def _report_current(self) -> None:
        current = self._base.current()
        if current is None:
            return
        self._summary["current_version"] = current.version
        self._summary["previous_version"] = current.previous
        for version in self._base.versions():
            if version.version == current.version:
                self._summary["link_accuracy"] = version.metrics.get("link_accuracy")

    def _tidy(self) -> None:
        """Removes what no run needs any more, and what dead ones left behind."""
        runs_dir = self._workdir / RUNS_DIR
        pending = (self._state.get("run") or {}).get("run_id")
        runs = sorted(
            path
            for path in (runs_dir.iterdir() if runs_dir.is_dir() else ())
            if _RUN_ID.fullmatch(path.name) and path.name != pending
        )
        for run_dir in runs[: -self._config.release.keep_runs]:
            shutil.rmtree(run_dir)
        for run_dir in runs[-self._config.release.keep_runs :]:
            _keep_only(run_dir, _KEPT)
        if pending:
            _remove_partial(runs_dir / pending)
        shutil.rmtree(self._workdir / TEMPORARY_DIR, ignore_errors=True)
        for path in self._workdir.glob(".*.partial"):
            path.unlink()

    def _say(self, event: str, message: str) -> None:
        """Tells people and the log."""
        print(message, flush=True)
        self._log.event(event, message=message)


def _is_withdrawn(run: _Run, versions: Sequence[Version]) -> bool:
    """Whether somebody took a run's version back before the run was over."""
    return any(
        version.version == run.version and version.state == "withdrawn"
        for version in versions
    )


def _keep_only(run_dir: Path, patterns: tuple[str, ...]) -> None:
    """Removes all else from a directory."""
    kept = {path for pattern in patterns for path in run_dir.glob(pattern)}
    for path in sorted(run_dir.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):
                path.rmdir()
        elif path not in kept:
            path.unlink()


def _remove_partial(run_dir: Path) -> None:
    """Removes the temporary siblings that a dead process was writing."""
    for path in list(run_dir.rglob(".*.partial*")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _read_state(workdir: Path) -> dict[str, Any]:
    path = workdir / STATE_FILE
    if not path.exists():
        return {"format": _STATE_FORMAT, "run": None, "last_success": None}
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path}: not JSON: {error}; remove it to begin anew"
        ) from error
    found = state.get("format") if isinstance(state, dict) else None
    if found != _STATE_FORMAT:
        raise UserError(
            f"{path}: format is {found!r}, expected {_STATE_FORMAT}; remove it to "
            "begin anew"
        )
    return state


@contextlib.contextmanager
def _exclusively(workdir: Path) -> Iterator[None]:
    """Holds the workdir's lock, which the system takes from a process that dies.

    Raises:
      LockHeld: another process holds it.
      UserError: the workdir cannot be written.
    """
    holder_path = workdir / HOLDER_FILE
    lock = filelock.FileLock(workdir / LOCK_FILE, blocking=False)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        raise LockHeld(f"{workdir}: {_holder(holder_path)}") from None
    except OSError as error:
        raise unwritable(f"--workdir: cannot write {workdir}", error) from error
    try:
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": now()}
        write_json(holder_path, holder)
        yield
    finally:
        holder_path.unlink(missing_ok=True)
        lock.release()


def _holder(path: Path) -> str:
    """Who holds the lock."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return (
            f"another run is at work: process {found['pid']} on {found['host']}, since "
            f"{found['since']}"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return "another run is at work, and has not yet said which"


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Makes SIGTERM raise Terminated, so that what is half written is removed."""

    def terminate(number: int, frame: object) -> None:
        raise Terminated("terminated; start again to go on")

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

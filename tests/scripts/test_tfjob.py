"""The example for Kubeflow's training operator is one that its own client knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import environments
from tests.command_line import ROOT

yaml = pytest.importorskip("yaml")

KUBERNETES = ROOT / "scripts" / "schedule" / "kubernetes"


def documents(name: str) -> dict[str, dict]:
    text = (KUBERNETES / name).read_text("utf-8")
    return {found["kind"]: found for found in yaml.safe_load_all(text)}


def pods() -> dict[str, dict]:
    replicas = documents("tfjob.yaml")["TFJob"]["spec"]["tfReplicaSpecs"]
    return {name: found["template"]["spec"] for name, found in replicas.items()}


def read_by_the_client(job: dict, tmp_path: Path) -> dict:
    path = tmp_path / "tfjob.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    python = environments.interpreter("kubeflow-training==1.9.4")
    read = environments.run(python, Path(__file__).with_name("tfjob_models.py"), path)
    assert read.returncode == 0, read.stderr
    return json.loads(read.stdout)


@pytest.mark.slow
def test_kubeflows_client_knows_every_field(tmp_path):
    job = documents("tfjob.yaml")["TFJob"]
    assert read_by_the_client(job, tmp_path) == job
    job["spec"]["runPolicy"]["backOffLimit"] = 1
    assert read_by_the_client(job, tmp_path) != job


def test_all_workers_share_the_workdir():
    claim = documents("tfjob.yaml")["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert set(pods()) == {"Chief", "Worker"}
    for pod in pods().values():
        (volume,) = (v for v in pod["volumes"] if v["name"] == "work")
        claimed = volume["persistentVolumeClaim"]["claimName"]
        assert claimed == claim["metadata"]["name"]
        # The operator sets TF_CONFIG in the container of this name.
        (container,) = pod["containers"]
        assert container["name"] == "tensorflow"
        assert container["args"][0] == "run"


def test_workers_run_without_rights_as_the_cron_job_does():
    job = documents("cronjob.yaml")["CronJob"]["spec"]["jobTemplate"]["spec"]
    cron = job["template"]["spec"]
    for pod in pods().values():
        assert pod["securityContext"] == cron["securityContext"]
        (container,), (other,) = pod["containers"], cron["containers"]
        assert container["securityContext"] == other["securityContext"]
        assert container["image"] == other["image"]

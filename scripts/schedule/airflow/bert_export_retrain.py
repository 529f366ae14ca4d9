"""Nightly retraining as an Airflow DAG: a task a stage, the gate's verdict a branch.

Put this file into the DAGs folder of Airflow 3; see docs/scheduling.md. Airflow and
bert_export live in environments of their own: tasks start the program that a Variable
names. Each is `bert-export retrain --until=STAGE`, which goes on where the one before
ended, so that tasks may be killed, retried and cleared at any time.
"""

from __future__ import annotations

import datetime
import json

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, Param, task

# Airflow Variables, and what they are unless somebody sets them. Not parameters of a
# run: whoever may start one could then start any program.
VARIABLES = {
    "bert_export_program": "/opt/bert_export/.venv/bin/bert-export",
    "bert_export_config": "/etc/bert_export/retrain.py",
    "bert_export_workdir": "/var/lib/bert_export/work",
    "bert_export_model_base": "/var/lib/bert_export/models",
    "bert_export_metrics_file": "/var/lib/prometheus/node-exporter/bert_export.prom",
    # Given the run's summary as JSON when a model was published or refused.
    "bert_export_notify_command": "",
}
# Each reaches its task as an environment variable, which needs no quoting.
ENVIRONMENT = {
    name.upper(): f"{{{{ var.value.get('{name}', '{default}') }}}}"
    for name, default in VARIABLES.items()
}
RETRAIN = (
    '"$BERT_EXPORT_PROGRAM" retrain --config="$BERT_EXPORT_CONFIG" '
    '--workdir="$BERT_EXPORT_WORKDIR" --model_base="$BERT_EXPORT_MODEL_BASE" '
    '--metrics_file="$BERT_EXPORT_METRICS_FILE"'
)

with DAG(
    dag_id="bert_export_retrain",
    description=__doc__.splitlines()[0],
    doc_md=__doc__,
    schedule="0 3 * * *",
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
    catchup=False,
    # The program has a lock of its own; this spares a second run that only waits.
    max_active_runs=1,
    params={
        "force": Param(
            False,
            type="boolean",
            description="Retrain even if nothing has changed since the last success.",
        )
    },
    default_args={
        "retries": 2,
        "retry_delay": datetime.timedelta(minutes=10),
        # The program gets SIGTERM then and saves a checkpoint, from which the retry
        # goes on.
        "execution_timeout": datetime.timedelta(hours=12),
        "env": ENVIRONMENT,
        "append_env": True,
    },
    tags=["bert_export"],
) as dag:
    # exec: SIGTERM then reaches the program, and its exit code Airflow. Only the first
    # stage may be forced to begin a new run; the others go on with it.
    prepare = BashOperator(
        task_id="prepare",
        bash_command=f"exec {RETRAIN} --until=prepare "
        "{{ '--force' if params.force else '' }}",
    )
    train, evaluate, export = (
        BashOperator(task_id=stage, bash_command=f"exec {RETRAIN} --until={stage}")
        for stage in ("train", "evaluate", "export")
    )
    # A refusal, exit code 3, is no failure of this task. What it prints last is its
    # result: the run's summary, one line of JSON.
    gate = BashOperator(
        task_id="gate",
        bash_command=f"""\
{RETRAIN} --until=gate --notify_command="tee '$PWD/summary.json'"
code=$?
[ $code = 0 ] || [ $code = 3 ] || exit $code
cat summary.json
""",
    )

    @task.branch
    def verdict(summary: str) -> str | None:
        """The task to go on with; None, so neither, if nothing had changed."""
        next_task = {"dry_run": "publish", "refused": "refused", "unchanged": None}
        return next_task[json.loads(summary)["outcome"]]

    publish = BashOperator(
        task_id="publish",
        bash_command=f'exec {RETRAIN} --notify_command="$BERT_EXPORT_NOTIFY_COMMAND"',
    )
    refused = BashOperator(
        task_id="refused",
        env={**ENVIRONMENT, "SUMMARY": "{{ ti.xcom_pull(task_ids='gate') }}"},
        bash_command="""\
echo "$SUMMARY"
[ -z "$BERT_EXPORT_NOTIFY_COMMAND" ] ||
  echo "$SUMMARY" | bash -c "$BERT_EXPORT_NOTIFY_COMMAND"
""",
    )

    prepare >> train >> evaluate >> export >> gate
    verdict(gate.output) >> [publish, refused]

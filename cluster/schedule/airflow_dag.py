"""Re-encodes when the VAE has changed, every night, by Airflow. Copy it into Airflow's folder of DAGs.

FILL IN `PROJECT` and `CONFIG`: paths on the worker, which has a GPU or, with RAY_ADDRESS below, reaches a Ray cluster.

    airflow dags test latents_reencode       # now, in this terminal

Airflow runs one command in the project's own environment, and needs none of its packages. A failed check fails the
task and leaves the old latents promoted; the next night goes on, and so does `airflow tasks clear`. Written for Airflow
3 (with 2, import DAG from airflow and BashOperator from airflow.operators.bash), never run by a real one.
"""

from __future__ import annotations

import shlex
from datetime import datetime, timezone

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

PROJECT = "/home/ubuntu/latent-clip-pipeline"
CONFIG = "/home/ubuntu/encode.yaml"

with DAG(
    dag_id="latents_reencode",
    schedule="17 3 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),  # noqa: UP017 - Airflow's own Python may be older
    catchup=False,
    max_active_runs=1,
):
    BashOperator(
        task_id="reencode",
        cwd=PROJECT,
        bash_command=f".venv/bin/python -m encode_pipeline reencode --config {shlex.quote(CONFIG)} --if-changed",
        append_env=True,
        env={"PYTHONUNBUFFERED": "1"},  # and RAY_ADDRESS, where there is a cluster
        retries=0,
    )

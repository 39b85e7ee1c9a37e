"""Cron, systemd, Airflow and the CronJob: each calls the same command, and it does what it should from there."""

from __future__ import annotations

import os
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from cluster.check.schedules import cron_fault
from cluster.kuberay.start_reencode import read_template, reencode_job
from encode_pipeline.latents.audit import Audit
from encode_pipeline.latents.store import Store
from tests.kubernetes_api import KubernetesApi

ROOT = Path(__file__).parent.parent
SCHEDULE = ROOT / "cluster" / "schedule"
TEMPLATE = ROOT / "cluster" / "kuberay" / "rayjob-encode.yaml"
HOME_OF_EXAMPLES = "/home/ubuntu"


@dataclass(frozen=True)
class Call:
    """What a scheduler runs: words, where, and how."""

    words: list[str]
    folder: str
    run: Callable[[Path], subprocess.CompletedProcess[str]]
    """Does it as that scheduler would, for a user with this home."""


def crontab() -> Call:
    lines = [line for line in (SCHEDULE / "crontab").read_text().splitlines() if line and line[0] not in "#"]
    *settings, entry = lines
    assert all("=" in line.split()[0] for line in settings)
    *times, command = entry.split(maxsplit=5)
    assert cron_fault(" ".join(times), kubernetes=False) is None
    assert "%" not in command  # which cron turns into the end of a line
    change, rest = command.split(" && ")
    words = shlex.split(rest.replace("$HOME", HOME_OF_EXAMPLES).split(">>")[0])

    def run(home: Path) -> subprocess.CompletedProcess[str]:
        environment = {"HOME": str(home), "PATH": "/usr/bin:/bin", "SHELL": "/bin/sh", "LOGNAME": "someone"}
        return shell(["/bin/sh", "-c", command], home, environment)

    return Call(words, shlex.split(change)[1].replace("$HOME", HOME_OF_EXAMPLES), run)


def service() -> Call:
    lines = (SCHEDULE / "latents-reencode.service").read_text().splitlines()
    section = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    words = shlex.split(section["ExecStart"])

    def run(home: Path) -> subprocess.CompletedProcess[str]:
        here = [word.replace(HOME_OF_EXAMPLES, str(home)) for word in words]
        folder = Path(section["WorkingDirectory"].replace(HOME_OF_EXAMPLES, str(home)))
        return shell(here, folder, {"HOME": str(home), "PATH": "/usr/bin:/bin"})

    return Call(words, section["WorkingDirectory"], run)


def airflow() -> Call:
    """The file as Airflow would load it, with stand-ins that only take down what they are told."""
    told: list[dict[str, Any]] = []

    class Stage:
        def __init__(self, **words: Any) -> None:
            told.append(words)

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    names = ["airflow", "airflow.providers", "airflow.providers.standard", "airflow.providers.standard.operators"]
    modules = {name: ModuleType(name) for name in [*names, "airflow.sdk", "airflow.providers.standard.operators.bash"]}
    modules["airflow.sdk"].DAG = Stage  # type: ignore[attr-defined]
    modules["airflow.providers.standard.operators.bash"].BashOperator = Stage  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        runpy.run_path(str(SCHEDULE / "airflow_dag.py"))
    dag, task = told
    assert dag["max_active_runs"] == 1 and not dag["catchup"] and dag["start_date"].tzinfo
    assert cron_fault(dag["schedule"], kubernetes=False) is None

    def run(home: Path) -> subprocess.CompletedProcess[str]:
        folder, command = (task[key].replace(HOME_OF_EXAMPLES, str(home)) for key in ("cwd", "bash_command"))
        environment = {**os.environ, **task["env"]} if task["append_env"] else task["env"]
        return shell(["bash", "-c", command], Path(folder), environment)

    return Call(shlex.split(task["bash_command"]), task["cwd"], run)


def shell(words: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)


SCHEDULERS = {"cron": crontab, "systemd": service, "airflow": airflow}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, world: Path, small_vae: Path) -> Path:
    """A user's home as the README leaves it: the project with its environment, and a configuration."""
    home = tmp_path_factory.mktemp("home")
    project = home / "latent-clip-pipeline"
    project.mkdir()
    for path in ROOT.iterdir():
        if not path.name.startswith("."):
            (project / path.name).symlink_to(path)
    (project / ".venv").symlink_to(sys.prefix)
    settings = {
        "source": str(world / "train" / "00000.tar"),
        "store": str(home / "store"),
        "vae": str(small_vae),
        "views": 1,
        "image_size": 64,
    }
    (home / "encode.yaml").write_text(yaml.safe_dump(settings))
    for words in (["run", "--config", "../encode.yaml"], ["seal", "../store"], ["promote", "../store"]):
        done = shell([".venv/bin/python", "-m", "encode_pipeline", *words], project, {"HOME": str(home)})
        assert done.returncode == 0, done.stderr
    return home


def events(home: Path) -> list[str]:
    return [entry.event for entry in Audit(Store(str(home / "store")).storage).entries()]


def test_each_calls_the_same_command_in_the_project() -> None:
    config = "/etc/latents/encode.yaml"
    job = reencode_job(read_template(TEMPLATE), "reencode-x-1", "latents", config)
    said = {"kubernetes": shlex.split(job["spec"]["entrypoint"].replace(config, f"{HOME_OF_EXAMPLES}/encode.yaml"))}
    for name, read in SCHEDULERS.items():
        call = read()
        assert call.folder == f"{HOME_OF_EXAMPLES}/latent-clip-pipeline"
        python = Path(call.folder, call.words[0])
        assert python == Path(call.folder, ".venv/bin/python")
        said[name] = ["python", *call.words[1:]]
    wanted = f"python -m encode_pipeline reencode --config {HOME_OF_EXAMPLES}/encode.yaml --if-changed".split()
    assert said == dict.fromkeys(said, wanted) and len(said) == 4


@pytest.mark.parametrize("name", SCHEDULERS)
def test_each_finds_that_nothing_has_changed(name: str, home: Path) -> None:
    done = SCHEDULERS[name]().run(home)
    said = done.stdout
    if name == "cron":
        assert not done.stdout and not done.stderr  # so that cron sends no mail
        said = (home / "reencode.log").read_text()
    assert done.returncode == 0 and said.startswith("unchanged: "), said + done.stderr
    assert events(home)[-1] == "reencode-unchanged"


def test_cron_mails_the_end_of_the_log_when_it_fails(home: Path) -> None:
    config = (home / "encode.yaml").read_text()
    try:
        (home / "encode.yaml").write_text("vae: no-such-vae\n")
        done = SCHEDULERS["cron"]().run(home)
    finally:
        (home / "encode.yaml").write_text(config)
    assert "error: " in done.stdout


def test_the_cronjob_starts_nothing_until_the_vae_is_another(home: Path, tmp_path: Path, other_small_vae: Path) -> None:
    server = KubernetesApi(tmp_path)
    environment = {**os.environ, **server.environment, "PYTHONPATH": str(ROOT)}

    def look(config: Path) -> subprocess.CompletedProcess[str]:
        words = [str(config), str(TEMPLATE), "--account", str(server.account)]
        return shell([sys.executable, "-m", "cluster.kuberay.start_reencode", *words], tmp_path, environment)

    try:
        before = events(home)
        unchanged = look(home / "encode.yaml")
        assert unchanged.returncode == 0 and unchanged.stdout.startswith("nothing to start: "), unchanged.stderr
        assert not server.asked
        changed = tmp_path / "encode.yaml"
        settings = yaml.safe_load((home / "encode.yaml").read_text())
        changed.write_text(yaml.safe_dump({**settings, "vae": str(other_small_vae)}))
        started = look(changed)
        assert started.returncode == 0, started.stderr
        (name,) = server.jobs
        assert started.stdout.startswith(f"{name} is started: ")
        assert events(home) == before  # a look writes nothing
        server.fails_with = 403, "rayjobs.ray.io is forbidden"
        assert look(changed).returncode == 2
        server.fails_with = 503, "the server is too busy"
        assert look(changed).returncode == 1
        (tmp_path / "wrong.yaml").write_text("vea: x\n")
        wrong = look(tmp_path / "wrong.yaml")
        assert wrong.returncode == 2 and "unknown key 'vea'" in wrong.stderr
    finally:
        server.close()


@pytest.fixture(scope="module")
def other_small_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.conftest import build_vae

    return build_vae(tmp_path_factory.mktemp("other-vae"), seed=1)


def test_systemd_takes_both_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    python = tmp_path / "latent-clip-pipeline" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    for name in ("latents-reencode.service", "latents-reencode.timer"):
        text = (SCHEDULE / name).read_text().replace(HOME_OF_EXAMPLES, str(tmp_path))
        (tmp_path / name).write_text(text)
    verified = shell(["systemd-analyze", "verify", "latents-reencode.timer"], tmp_path, dict(os.environ))
    assert verified.returncode == 0 and not verified.stderr, verified.stderr
    (tmp_path / "latents-reencode.timer").write_text(text.replace("OnCalendar=", "OnCalender="))
    assert "OnCalender" in shell(["systemd-analyze", "verify", "latents-reencode.timer"], tmp_path, {}).stderr

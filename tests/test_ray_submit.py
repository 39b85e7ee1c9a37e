"""A cluster as a person launches it: `ray up`, `ray submit` and `ray job submit`, by cluster/local.yaml, over ssh."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
import venv
from collections.abc import Iterator
from getpass import getuser
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from demo.world import WorldSpec, write_world
from encode_pipeline.config import EncodeConfig
from encode_pipeline.latents.failpoints import ENVIRONMENT
from encode_pipeline.latents.shard_check import check_shards
from encode_pipeline.latents.store import Store
from encode_pipeline.latents.verify import verify
from tests.conftest import SIDE
from tests.fleet import ROOT, events
from tests.ssh_machines import SshMachines, free_port, obstacle
from tests.traps import Trap, wait_for

SCRIPT = ROOT / "cluster/encode.py"
PATIENCE = 240.0
TARS = 8


class Person:
    """Somebody with a checkout of the project, cluster/local.yaml filled in, and a cluster that is up."""

    def __init__(self, machines: SshMachines, folder: Path) -> None:
        self.machines, self._folder = machines, folder
        gcs, self.dashboard = free_port(), free_port()
        values = {
            "head_ip: FILL IN": f"head_ip: {machines.addresses['head']}",
            "worker_ips: [FILL IN, FILL IN]": f"worker_ips: [{machines.addresses['worker']}]",
            "ssh_user: FILL IN": f"ssh_user: {getuser()}",
            "ssh_private_key: FILL IN": f"ssh_private_key: {machines.key}",
            "latent-clip-local": f"test-{uuid.uuid4().hex[:8]}",
            # Beside what a person fills in: ports that nobody else has here, and the environment that is here already.
            "6379": str(gcs),
            "8265": str(self.dashboard),
            "ray start --head": f"ray start --head --dashboard-agent-listen-port={free_port()}",
            "ray start --address": f"ray start --dashboard-agent-listen-port={free_port()} --address",
            "make -C ~/latent-clip-pipeline setup": f"ln -sfn {sys.prefix} ~/latent-clip-pipeline/.venv",
        }
        text = (ROOT / "cluster/local.yaml").read_text()
        for before, after in values.items():
            assert before in text, before
            text = text.replace(before, after)
        assert "FILL IN" not in str(yaml.safe_load(text)) and "ray stop" not in str(yaml.safe_load(text))
        self.cluster = folder / "local.yaml"
        self.cluster.write_text(text)

    def says(self, *words: str) -> Said:
        """A command of Ray's in the checkout."""
        return Said(self._folder / uuid.uuid4().hex, words, self.machines.command_environment)

    def puts_config(self, name: str, **settings: Any) -> None:
        """A config in the home folder of the head."""
        file = self._folder / name
        file.write_text(yaml.safe_dump(settings))
        assert self.says("rsync-up", str(self.cluster), str(file), f"~/{name}").status() == 0

    def submits(self, *arguments: str, options: tuple[str, ...] = ()) -> Said:
        return self.says("submit", str(self.cluster), str(SCRIPT), *options, "--", *arguments)

    def sees(self, command: str) -> str:
        """What a command on the head prints."""
        seen = self.says("exec", str(self.cluster), command)
        assert seen.status() == 0, seen.text
        return seen.text


class Said:
    """A command that a person has given, and what it answers."""

    def __init__(self, path: Path, words: tuple[str, ...], environment: dict[str, str]) -> None:
        self._path = path
        with path.open("wb") as out:
            self._process = subprocess.Popen(
                [Path(sys.prefix) / "bin/ray", *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=ROOT,
                start_new_session=True,
            )

    @property
    def over(self) -> bool:
        return self._process.poll() is not None

    @property
    def end(self) -> str:
        return f"exit {self._process.returncode}\n{self.text}"

    @property
    def text(self) -> str:
        return self._path.read_text()

    def status(self) -> int:
        return self._process.wait(PATIENCE)

    def error(self) -> str:
        """The one line in which it says what was wrong."""
        (line,) = [line for line in self.text.splitlines() if line.startswith("error: ")]
        return line


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    """With a head and a worker, each of which says that it has a GPU."""
    if why := obstacle():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("launched")
    machines = SshMachines(folder, {"head": ray.util.get_node_ip_address(), "worker": "127.0.0.2"})
    environment = {
        "RAY_OVERRIDE_RESOURCES": '{"GPU": 1}',
        "RAY_memory_monitor_refresh_ms": "0",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        # Each machine has a copy of its own; this one's environment, which they share, knows of another.
        "PYTHONPATH": "$HOME/latent-clip-pipeline",
    }
    for name in machines.addresses:
        lines = [f"export {key}={value if '$' in value else repr(value)}" for key, value in environment.items()]
        with (machines.home(name) / ".bashrc").open("a") as file:
            file.write("\n".join([*lines, "[ ! -f ~/traps ] || source ~/traps", ""]))
    try:
        person = Person(machines, folder)
        up = person.says("up", "--yes", str(person.cluster))
        assert up.status() == 0, up.text
        wait_for("both machines", lambda: _gpus(person) == "2.0")
        yield person
    finally:
        machines.close()
        assert not machines.processes()


def _gpus(person: Person) -> str:
    lines = person.sees("ray status").splitlines()
    return next((line.split("/")[1].split()[0] for line in lines if line.endswith(" GPU")), "0")


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's pictures, in more tars than one encoder has under way."""
    out = tmp_path_factory.mktemp("tars")
    write_world(out, WorldSpec(seed=1, train_pictures=48, test_pictures=0, pictures_per_tar=48 // TARS))
    return out / "train"


def _settings(tars: Path, store: Path) -> dict[str, Any]:
    """As in a config, with a path that counts from the folder of the config. The engine is not said."""
    vae = "latent-clip-pipeline/demo/vae"
    encode = {"vae": vae, "views": 2, "image_size": SIDE, "batch_size": 8, "threads": 1}
    return {"source": str(tars), "store": str(store), **encode}


def _check(store: Path) -> None:
    """Everything is done, once, and as it was committed."""
    version = Store(str(store)).version()
    commits = list(version.commits())
    assert len(commits) == TARS and sum(commit.read for commit in commits) == 48
    assert all(commit.read == commit.encoded for commit in commits)
    assert version.sealed and len(version.addresses()) == 2 * TARS
    assert not verify(version, False, None, 0, check_shards, lambda *_: None).problems


def test_a_job_says_in_its_log_what_the_driver_says(person: Person, tars: Path, tmp_path: Path) -> None:
    person.puts_config("job.yaml", **{**_settings(tars, tmp_path / "store"), "vae": "pixels"})
    there = ["--address", f"http://127.0.0.1:{person.dashboard}"]
    job = person.says("job", "submit", *there, "--submission-id", "encode", "--no-wait", "--", *_by_module("job.yaml"))
    assert job.status() == 0, job.text

    log = person.says("job", "logs", *there, "--follow", "encode")

    assert log.status() == 0, log.text
    assert "'encode' succeeded" in log.text
    assert f"shard {TARS}/{TARS}  48 encoded, 0 rejected" in log.text, log.text
    assert f"{TARS} shards encoded now, 0 before, 0 given up on" in log.text
    assert f"sealed: {2 * TARS} tars" in log.text
    _check(tmp_path / "store")


def _by_module(config: str) -> list[str]:
    return ["python", "-m", "cluster.encode", config]


def test_a_submitted_run_uses_all_machines_and_ends_without_one_that_dies(
    person: Person, tars: Path, tmp_path: Path
) -> None:
    settings = _settings(tars, tmp_path / "store")
    person.puts_config("encode.yaml", **settings, actors=2)
    trap = Trap(tmp_path / "marks", "mid-shard", "hold", "*", None)
    traps = person.machines.home("head") / "traps"
    traps.write_text(f"export {ENVIRONMENT}='{json.dumps([trap.facts])}'\n")
    run = person.submits("encode.yaml")
    machines = person.machines

    def at_work() -> set[str]:
        met = {mark.process for mark in trap.met()}
        return {name for name in machines.addresses if met & machines.processes(name)}

    wait_for("a shard in the making on both machines", lambda: at_work() == {"head", "worker"}, run)
    traps.unlink()
    again = person.says("up", "--yes", str(person.cluster))
    assert again.status() == 0, again.text  # and leaves the run alone
    machines.kill("worker")
    trap.release()

    assert run.status() == 0, run.text
    assert f"{TARS} shards encoded now" in run.text and "promote" in run.text, run.text
    _check(tmp_path / "store")
    config = EncodeConfig(**{**settings, "vae": str(ROOT / "demo/vae")})
    assert len({event["node"] for event in events(config, "encoder up")}) == 2
    assert events(config, "encoder lost")

    assert person.submits("encode.yaml", options=("--tmux",)).status() == 0  # and the person is free to go
    screen = "tmux capture-pane -p -J -S -"
    wait_for("the end of a run in tmux", lambda: f"sealed: {2 * TARS} tars" in person.sees(screen))
    assert f"0 shards encoded now, {TARS} before" in person.sees(screen)


def test_what_is_wrong_with_a_request_is_said_in_one_line(person: Person, tars: Path, tmp_path: Path) -> None:
    missing = person.submits("missing.yaml")
    assert missing.status() == 1  # Ray's own, whatever the script's is
    home = person.machines.home("head")
    places = f"{home}, {home / 'latent-clip-pipeline'}"
    assert missing.error() == f"error: encode.py: missing.yaml: no such file on {os.uname().nodename}, in {places}"

    person.puts_config("bad.yaml", **_settings(tars, tmp_path / "store"), viws=3)
    bad = person.submits("bad.yaml")
    assert bad.status() == 1
    assert bad.error() == f"error: {home / 'bad.yaml'}: unknown key 'viws'; did you mean 'views'?"

    several = person.submits("a", "config.yaml")
    assert several.status() == 1
    assert several.error() == "error: encode.py: takes the path of a config and nothing else, not a config.yaml"


def test_the_projects_own_python_takes_over_once(tmp_path: Path) -> None:
    (tmp_path / "encode.yaml").touch()
    words = [str(sys._base_executable), "-I", str(SCRIPT), "encode.yaml"]  # type: ignore[attr-defined]

    def start() -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, env={"HOME": str(tmp_path)}, capture_output=True, text=True, timeout=60)

    nowhere = start()
    assert nowhere.returncode == 2
    assert nowhere.stderr.startswith("error: encode.py: no latent-clip-pipeline with a .venv in ")

    environment = tmp_path / "latent-clip-pipeline/.venv"
    venv.create(environment, symlinks=True)  # with nothing in it
    empty = start()
    assert empty.returncode == 2
    assert empty.stderr.startswith(f"error: encode.py: {environment}: holds no encode_pipeline with Ray; ")

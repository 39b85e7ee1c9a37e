"""What `python -m cluster.check` says of files as they are shipped, and of each with one thing made wrong."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray")
pytest.importorskip("kubernetes_validate")

from cluster.check import clouds
from cluster.check.__main__ import command
from cluster.check.commands import ROOT
from cluster.check.kuberay import DATA
from cluster.check.kuberay import main as write_kuberay
from cluster.check.schedules import calendar_fault, cron_fault
from tests.planted_launcher import IN_CLUSTERS
from tests.planted_objects import IN_OBJECTS

PLANTED = {**IN_CLUSTERS, **IN_OBJECTS}

SMALL = """\
# FILL IN the name.
cluster_name: fill-in
provider:
  type: aws
  region: us-west-2
auht: {ssh_user: ubuntu}
head_node_type: head
available_node_types:
  head:
    resources: {}
    node_config:
      InstanceType: m7i.large
      InstanceMarketOptions:
        MarketType: spt
"""

WITHOUT_NETWORK = """
import socket, sys

def refuse(*args, **kwargs):
    raise AssertionError(f"the check asked the network: {args}")

socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = socket.getaddrinfo = refuse
from cluster.check.__main__ import command

sys.exit(command(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"the check asked the network: {args}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A copy of cluster/, to be spoilt."""
    folder = tmp_path / "cluster"
    shutil.copytree(ROOT / "cluster", folder, ignore=shutil.ignore_patterns("check", "__pycache__"))
    return folder


def check(*words: str | Path) -> int:
    return command([str(word) for word in words])


def test_what_is_shipped_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert check() == 0, capsys.readouterr().out
    assert re.fullmatch(r"\d+ files checked, nothing found\n", capsys.readouterr().out)


def test_a_copy_passes(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(files) == 0, capsys.readouterr().out


@pytest.mark.parametrize("name", PLANTED)
def test_planted_error_is_found_at_its_line_and_key(name: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planted = PLANTED[name]
    path = files / planted.file
    before = path.read_text()
    assert planted.old in before
    after = before.replace(planted.old, planted.new, 1)
    path.write_text(after)
    assert check(path) == 1
    changed = next(place for place, (old, new) in enumerate(zip(before, after, strict=False)) if old != new)
    line = after.count("\n", 0, after.index(planted.at) if planted.at else changed) + 1
    said = capsys.readouterr().out.splitlines()
    beginning = f"{path}:{line}: " + (f"{planted.key}: " if planted.key else "")
    meant = [text for text in said if text.startswith(beginning) and planted.reason in text]
    assert len(meant) == 1, (beginning, said)
    assert len(said) == 1 + planted.consequences, said


def test_as_a_command_without_network_home_or_credentials(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "nobody"), "PYTHONPATH": str(ROOT)}
    asked = [sys.executable, "-c", WITHOUT_NETWORK, "small.yaml"]
    ran = subprocess.run(asked, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (1, "")
    assert ran.stdout.splitlines() == [
        "small.yaml:6: auht: unknown key; did you mean 'auth'?",
        "small.yaml:14: available_node_types.head.node_config.InstanceMarketOptions.MarketType: "
        "'spt' is not one of its values; did you mean 'spot'?",
    ]
    shipped = subprocess.run(asked[:-1], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (shipped.returncode, shipped.stderr) == (0, ""), shipped.stdout


def test_a_file_that_is_not_there_is_a_wrong_request(capsys: pytest.CaptureFixture[str]) -> None:
    assert check("nowhere.yaml") == 2
    assert capsys.readouterr().err == "error: nowhere.yaml: no such file\n"


def test_findings_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL.replace("auht", "auth"))
    assert check(path, "--json") == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert (finding["file"], finding["line"], finding["key"].rpartition(".")[2]) == (str(path), 14, "MarketType")


def test_what_is_still_to_be_filled_in_is_reported_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL.replace("auht", "auth").replace("spt", "spot"))
    assert check(path) == 1  # the head on a spot machine
    capsys.readouterr()
    path.write_text(path.read_text().replace("spot", "capacity-block"))
    assert check(path) == 0, capsys.readouterr().out
    capsys.readouterr()
    assert check(path, "--filled") == 1
    assert capsys.readouterr().out == f"{path}:2: cluster_name: still to be filled in: fill-in\n"


def test_faults_of_yaml_that_its_own_reader_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text("source: a\nstore: b\nvae: &loop\n  one: *loop\nsource: c\non: 1\n")
    assert check(path) == 1
    said = capsys.readouterr().out.splitlines()
    assert f"{path}:5: source: given twice, first on line 1; the last one would win" in said
    assert f"{path}:6: on: this key is not text for YAML; put it in quotes" in said
    assert any(line.startswith(f"{path}:4: vae.one: an alias of what it is part of") for line in said)


@pytest.mark.parametrize("cloud", ["aws", "gcp", "local"])
def test_provider_keys_are_those_that_ray_reads(cloud: str) -> None:
    """A key that a new Ray reads, or no longer does, shows here."""
    import ray.autoscaler._private as private

    folder = Path(inspect.getfile(private)).parent
    source = "\n".join(path.read_text() for path in (folder / cloud).rglob("*.py"))
    pattern = r"(?:provider_config|config\[\"provider\"\]|self\.provider_config)(?:\.get\(|\[)\s*\"(\w+)\""
    read = set(re.findall(pattern, source)) | set(re.findall(r"\"(\w+)\" (?:not )?in config\[\"provider\"\]", source))
    made_by_ray = {"list_of_node_ips"}  # written for its own server, never by a user
    known = clouds.PROVIDER_KEYS[cloud] | clouds.EVERY_PROVIDER
    assert read - made_by_ray <= known
    assert clouds.PROVIDER_KEYS[cloud] <= read


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("17 3 * * *", None),
        ("*/15 0-6,22-23 1 JAN,jul mon-fri", None),
        ("@hourly", None),
        ("@every 1h30m", None),
        ("0 3 ? * 1", None),
        ("0 0 29 2 *", None),
        ("0 3 * * 7", "7 is no day of the week: 0 to 6"),
        ("0 0 31 2,4 *", "'0 0 31 2,4 *' never comes: there is no such day in such a month"),
        ("60 * * * *", "60 is no minute: 0 to 59"),
        ("0 5-3 * * *", "'5-3' ends before it begins"),
        ("*/0 * * * *", "'*/0' is no step of the minute"),
        ("*/90 * * * *", "'*/90': a step of 90 is longer than the minute's 0 to 59"),
        ("0 0 * * mn", "'mn' is no day of the week; did you mean 'mon'?"),
        ("0 0 12 * * ?", "'0 0 12 * * ?' has 6 fields; cron takes five: minute hour day month weekday"),
        ("@dayly", "no such schedule: '@dayly'; did you mean '@daily'?"),
        ("TZ=UTC 0 3 * * *", "Kubernetes refuses a time zone here; say it in timeZone"),
        ("", "'' has 0 fields; cron takes five: minute hour day month weekday"),
    ],
)
def test_cron_as_kubernetes_reads_it(text: str, reason: str | None) -> None:
    assert cron_fault(text, kubernetes=True) == reason


def test_cron_of_a_machine_differs() -> None:
    assert cron_fault("0 3 * * 7", kubernetes=False) is None
    assert cron_fault("@reboot", kubernetes=False) is None
    assert cron_fault("@reboot", kubernetes=True)
    assert cron_fault("0 3 ? * *", kubernetes=False) == "'?' is no day of the month"


CALENDARS = [
    *("*-*-* 03:17:00 UTC", "daily", "weekly UTC", "Mon..Fri 10:00", "Mon,Wed *-*-1..7 04:30:15", "*:0/15", "Sat"),
    *("03:17", "*-*-01,15 02:00", "*-*~1 01:00", "Mon 2026-*-* 00:00:00 Europe/Berlin"),
    *("*-*-* 25:00", "2026-13-01", "*-*-32", "every day", "00:00:60", "Foo 12:00", "10", ""),
]


def test_timers_as_systemd_reads_them() -> None:
    refused = {text for text in CALENDARS if calendar_fault(text)}
    assert refused == set(CALENDARS[11:])
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd here to compare with")
    for text in CALENDARS:
        status = subprocess.run(["systemd-analyze", "calendar", text], capture_output=True).returncode
        assert (status != 0) == (text in refused), text


def test_kuberay_schemas_are_small_and_say_where_they_are_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = json.loads(DATA.read_text())
    assert data["licence"] == "Apache-2.0" and re.fullmatch(r"v1\.\d+\.\d+", data["version"])
    assert DATA.stat().st_size < 40_000
    group = data["kinds"]["RayCluster"]["properties"]["spec"]["properties"]["workerGroupSpecs"]["items"]
    assert group["properties"]["template"]["$ref"].endswith("io.k8s.api.core.v1.PodTemplateSpec")
    crd = """
spec:
  versions:
    - name: v1
      schema:
        openAPIV3Schema:
          properties:
            apiVersion: {type: string}
            spec:
              type: object
              properties:
                size: {x-kubernetes-int-or-string: true}
                template: {type: object, properties: {spec: {type: object}}}
"""
    for name in ("rayclusters", "rayjobs", "raycronjobs"):
        (tmp_path / f"ray.io_{name}.yaml").write_text(crd)
    monkeypatch.setattr("cluster.check.kuberay.DATA", tmp_path / "kuberay.json")
    assert write_kuberay(["v9.9.9", str(tmp_path)]) == 0
    made = json.loads((tmp_path / "kuberay.json").read_text())
    spec = made["kinds"]["RayJob"]["properties"]["spec"]
    assert (made["version"], spec["additionalProperties"]) == ("v9.9.9", False)
    assert spec["properties"]["size"] == {"type": ["string", "integer"]}
    assert list(spec["properties"]["template"]) == ["$ref"]

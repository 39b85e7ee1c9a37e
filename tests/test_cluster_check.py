"""What `python -m cluster.check` says of files as they are shipped, and of each with one thing made wrong."""

from __future__ import annotations

import inspect
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.check import clouds
from cluster.check.__main__ import command
from cluster.check.commands import ROOT
from cluster.check.kuberay import DATA
from cluster.check.kuberay import main as write_kuberay
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


def test_what_is_no_text_and_what_is_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one folder with a file that is fine, which they do not keep from being read."""
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "fine.yaml").write_text("source: a\nstore: b\nvae: c\n")
    for name, content in (("bell", b"a: \x07"), ("binary", b"\x80\x01"), ("empty", b"# nothing\n"), ("list", b"- a\n")):
        (tmp_path / f"{name}.yaml").write_bytes(content)
    assert check(tmp_path / "fine.yaml") == 0, capsys.readouterr().out
    assert check(tmp_path / "folder.yaml") == 0  # and does not look elsewhere instead
    assert capsys.readouterr().out.splitlines()[-1] == "0 files checked, nothing found"
    assert check(tmp_path) == 1
    said = [line.removeprefix(f"{tmp_path}/") for line in capsys.readouterr().out.splitlines()]
    assert said[0].startswith("bell.yaml:1: not YAML: unacceptable character")
    assert said[1:] == [
        "binary.yaml:1: not text: invalid start byte at byte 0",
        "empty.yaml:1: says nothing",
        "list.yaml:1: expected keys and values",
    ]


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


def test_no_file_however_odd_ends_the_check(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Values of every other kind, put into the files that are shipped: findings or none, and never a traceback."""
    rng = random.Random(8)
    odd: list[object] = [None, 1, -1, True, "x", "a b 'c", [], [1], [None], {}, {"a": 1}, [{}]]
    for path in sorted(files.rglob("*.yaml")):
        before = path.read_text()
        for _ in range(12):
            documents = list(yaml.safe_load_all(before))
            inside = [way for way in ways(documents) if way]
            *above, last = rng.choice(inside)
            place: Any = documents
            for key in above:
                place = place[key]
            place[last] = rng.choice(odd)
            path.write_text(yaml.safe_dump_all(documents))
            assert check(path) in (0, 1)
        path.write_text(before)


def ways(value: object) -> Iterator[tuple[str | int, ...]]:
    """The way to every value."""
    yield ()
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from ((key, *rest) for rest in ways(inner))


def test_secrets_by_the_names_beside_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "secrets.yaml"
    path.write_text("""\
apiVersion: v1
kind: Secret
metadata: {name: hub}
stringData:
  key: abcd
---
apiVersion: v1
kind: ConfigMap
metadata: {name: hub}
data:
  password: abcd
  run: train --api-key=abcd --data=s3://a/b
  ssh_private_key: keys/ours.pem
  PUBLIC_KEY: abcd
  kept: TOKEN=$TOKEN SECRET=$(cat secret) PASSWORD=/run/password HUB_TOKEN_FILE=/run/token
""")
    assert check(path) == 1
    said = [line.removeprefix(f"{path}:").rpartition(": ")[0] for line in capsys.readouterr().out.splitlines()]
    assert said == ["5: stringData.key", "11: data.password", "12: data.run"]


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

"""Kubernetes: what is applied fits together, what the image holds is enough, and a re-encoding is started once."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from docker.utils.build import exclude_paths

from cluster.kuberay.start_reencode import ATTEMPTS, RayJobs, read_template, start
from encode_pipeline.latents.command import CheckFailed, RequestError
from tests.kubernetes_api import KubernetesApi, write_certificates

ROOT = Path(__file__).parent.parent
KUBERAY = ROOT / "cluster" / "kuberay"
TEMPLATE = KUBERAY / "rayjob-encode.yaml"
CONFIG = "/etc/latents/encode.yaml"
CHANGED = {"changed": True, "why": "another VAE", "fingerprint": "0123456789abcdef0123", "promoted": "fedc"}
FIRST, SECOND, THIRD = (f"reencode-0123456789abcdef-{number}" for number in (1, 2, 3))


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    server = KubernetesApi(tmp_path)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    yield server
    server.close()


def begin(api: KubernetesApi, **found: Any) -> str:
    return start({**CHANGED, **found}, CONFIG, read_template(TEMPLATE), RayJobs(api.account))


def test_a_changed_vae_becomes_one_rayjob_of_the_same_cluster(api: KubernetesApi) -> None:
    assert begin(api) == f"{FIRST} is started: another VAE"
    job, template = api.jobs[FIRST], read_template(TEMPLATE)
    assert job["metadata"]["namespace"] == "latents"
    assert job["spec"]["entrypoint"] == f"python -m encode_pipeline reencode --config {CONFIG} --if-changed"
    assert job["spec"]["backoffLimit"] == 0
    assert job["spec"]["rayClusterSpec"] == template["spec"]["rayClusterSpec"]
    assert begin(api) == f"{FIRST} is at it: another VAE"
    api.ends(FIRST, "Running")
    assert begin(api) == f"{FIRST} is at it, Running: another VAE"
    assert list(api.jobs) == [FIRST]
    begin(api, fingerprint="f" * 64)
    assert list(api.jobs) == [FIRST, "reencode-ffffffffffffffff-1"]


def test_of_two_at_the_same_moment_one_starts_it(api: KubernetesApi) -> None:
    both_have_looked = threading.Barrier(2, timeout=60)
    api.before_create = both_have_looked.wait
    said: list[str] = []
    starters = [threading.Thread(target=lambda: said.append(begin(api))) for _ in range(2)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    assert sorted(said) == [
        f"{FIRST} is started: another VAE",
        f"{FIRST} was started by another at this moment: another VAE",
    ]
    assert list(api.jobs) == [FIRST]


def test_what_has_ended_is_not_in_the_way_but_what_fails_again_and_again_stops(api: KubernetesApi) -> None:
    begin(api)
    api.ends(FIRST, "Failed", "AppFailed")
    assert begin(api) == f"{SECOND} is started: another VAE"
    api.ends(SECOND, "Complete")  # promoted; then the old VAE came back, and now the new one again
    assert begin(api) == f"{THIRD} is started: another VAE"
    names = [f"reencode-0123456789abcdef-{number}" for number in range(3, 3 + ATTEMPTS)]
    for name in names:
        begin(api)
        api.ends(name, "ValidationFailed" if name == THIRD else "Failed", "AppFailed")
    with pytest.raises(CheckFailed, match=f"failed {ATTEMPTS} times: {THIRD}.*delete rayjob {' '.join(names)}$"):
        begin(api)
    assert list(api.jobs) == [FIRST, SECOND, *names]
    for name in names:
        del api.jobs[name]
    assert begin(api) == f"{THIRD} is started: another VAE"


@pytest.mark.parametrize(
    ("status", "message", "error"),
    [(403, "rayjobs.ray.io is forbidden", RequestError), (422, "invalid", RequestError), (500, "etcd", CheckFailed)],
)
def test_what_the_server_refuses_is_said_in_one_line(
    api: KubernetesApi, status: int, message: str, error: type[Exception]
) -> None:
    api.fails_with = status, f"{message}\n  and why"
    with pytest.raises(error, match=f"^GET rayjobs/{FIRST} in latents: {status} {message} and why$"):
        begin(api)


def test_a_token_a_server_and_a_job_that_are_not_good_are_refused(
    api: KubernetesApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = read_template(TEMPLATE)
    jobs = RayJobs(api.account)
    misspelt = {**template, "spec": {**template["spec"], "entrypont": "x"}}
    with pytest.raises(RequestError, match="422 RayJob.ray.io .* is invalid: .*entrypont"):
        start(CHANGED, CONFIG, misspelt, jobs)
    assert not api.jobs

    (api.account / "token").write_text("another one")
    with pytest.raises(RequestError, match="401 Unauthorized"):
        begin(api)
    asked = len(api.asked)
    (tmp_path / "other").mkdir()
    write_certificates(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "ca.crt", api.account / "ca.crt")
    with pytest.raises(CheckFailed, match="CERTIFICATE_VERIFY_FAILED"):
        begin(api)
    assert len(api.asked) == asked  # the token went to nobody
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    with pytest.raises(RequestError, match="no pod with a service account"):
        begin(api)


def test_a_template_that_is_none_is_a_wrong_request(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [")
    for name, reason in [("missing.yaml", "No such file"), ("broken.yaml", "flow"), (str(KUBERAY / "access.yaml"), "")]:
        with pytest.raises(RequestError, match=f"{name}.*{reason}"):
            read_template(tmp_path / name)


def test_the_account_may_do_what_is_asked_and_no_more(api: KubernetesApi) -> None:
    begin(api)
    documents = yaml.safe_load_all((KUBERAY / "access.yaml").read_text())
    (role,) = (document for document in documents if document["kind"] == "Role")
    verbs = {"GET": "get", "POST": "create"}
    asked = {verbs[line.split()[0]] for line in api.asked}
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": sorted(asked)}]


def test_kubectl_builds_what_the_pods_refer_to() -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    built = subprocess.run(["kubectl", "kustomize", KUBERAY], capture_output=True, text=True, check=True)
    documents = {(d["kind"], d["metadata"]["name"]): d for d in yaml.safe_load_all(built.stdout)}
    (namespace,) = (name for kind, name in documents if kind == "Namespace")
    assert {d["metadata"].get("namespace", namespace) for d in documents.values()} == {"latents"}
    configuration = documents["ConfigMap", "latents"]["data"]
    assert configuration["rayjob-encode.yaml"] == TEMPLATE.read_text()
    pods = [documents["CronJob", "latents-reencode"]["spec"]["jobTemplate"]["spec"]["template"]["spec"], *ray_pods()]
    for pod in pods:
        assert ("ServiceAccount", pod["serviceAccountName"]) in documents
        assert [v["configMap"]["name"] for v in pod["volumes"] if "configMap" in v] == ["latents"]
    (start_words,) = ([*c["command"], *c["args"]] for c in pods[0]["containers"])
    assert [Path(word).name for word in start_words[-2:]] == list(configuration)


def ray_pods() -> list[dict[str, Any]]:
    cluster = read_template(TEMPLATE)["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_a_worker_has_time_to_hand_its_work_back_and_all_the_encoders_asked_for_fit() -> None:
    cluster = read_template(TEMPLATE)["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    pod = workers["template"]["spec"]
    (container,) = pod["containers"]
    command = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command[:-1] == ["python", "-m", "cluster.spot_notice", "--now"]
    assert int(command[-1]) < pod["terminationGracePeriodSeconds"] <= 120
    assert yaml.safe_load((KUBERAY / "encode.yaml").read_text())["actors"] == workers["maxReplicas"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_no_pod_is_privileged() -> None:
    cronjob = yaml.safe_load((KUBERAY / "cronjob-reencode.yaml").read_text())
    for pod in [cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"], *ray_pods()]:
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"]
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def dockerfile() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, each with the rest of its line."""
    text = re.sub(r"^#.*\n", "", (KUBERAY / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0], " ".join(line.split()[1:])) for line in text.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that a build gets to see, as Docker's own reading of .dockerignore picks them."""
    folder = tmp_path_factory.mktemp("image")
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    for name in sorted(exclude_paths(str(ROOT), patterns, "cluster/kuberay/Dockerfile")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def test_the_image_holds_the_program_and_no_more(image: Path) -> None:
    files = {str(path.relative_to(image)) for path in image.rglob("*") if path.is_file()}
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    left_out = {name.split("/")[0] for name in tracked.split("\0") if name and name not in files}
    assert left_out <= {".ci", ".dockerignore", ".gitignore", "tests", "download"}
    assert not {name.split("/")[0] for name in files} & {".git", ".venv", "runs", "tests"}
    sources = [words.split()[:-1] for instruction, words in dockerfile() if instruction == "COPY"]
    assert sources == [["requirements.lock"], ["."]] and "requirements.lock" in files


def test_the_program_runs_from_what_the_image_holds(image: Path, world: Path, small_vae: Path, tmp_path: Path) -> None:
    words = ["plan", str(world / "train" / "00000.tar"), f"store={tmp_path / 's'}", f"vae={small_vae}", "--json"]
    done = run_in(image, "encode_pipeline", *words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fingerprint"]
    for module in ("cluster.kuberay.start_reencode", "cluster.spot_notice"):
        assert run_in(image, module, "--help").returncode == 0


def run_in(image: Path, module: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *words]
    environment = {**os.environ, "PYTHONPATH": str(image)}
    return subprocess.run(command, cwd=image, env=environment, capture_output=True, text=True, check=False)


def test_the_image_is_what_the_pods_and_the_lock_expect() -> None:
    (user,) = (words for instruction, words in dockerfile() if instruction == "USER")
    (folder,) = (words for instruction, words in dockerfile() if instruction == "WORKDIR")
    job = read_template(TEMPLATE)["spec"]
    assert {pod["securityContext"]["runAsUser"] for pod in ray_pods()} == {int(user)}
    program = Path(job["entrypoint"].split()[1])
    assert (ROOT / program.relative_to(folder)).is_file()
    ray = re.search(r"^ray==(.+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert ray and job["rayClusterSpec"]["rayVersion"] == ray[1]

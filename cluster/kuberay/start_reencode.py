"""Starts a re-encoding on Kubernetes if the configured VAE is another one than the store's: one RayJob a fingerprint.

    python -m cluster.kuberay.start_reencode /etc/latents/encode.yaml /etc/latents/rayjob-encode.yaml

The CronJob runs it. The RayJob's name holds the fingerprint of the new version, and the API server lets a name be taken
once: that is the lock between two that start at the same moment. One that has ended is never in the way: the next takes
the next number. Ends with 0 where nothing is to be done, or a RayJob does it; 1 where the API server fails, or this
version has failed too often; 2 where the request is wrong, and trying again would not help.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from ssl import create_default_context
from typing import Any

import yaml

from encode_pipeline.latents.command import CheckFailed, RequestError

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where Kubernetes lays a pod's token, the API server's CA and the name of the namespace."""
ATTEMPTS = 3
"""RayJobs of one version that may fail one after the other; then a person has to look."""
FAILED = ("Failed", "ValidationFailed")
"""What KubeRay calls a RayJob that it will not try again; `Complete` is the other end."""


class RayJobs:
    """The RayJobs of this pod's namespace, at the API server that Kubernetes names in the environment.

    Kubernetes' own client would bring a class for every kind but KubeRay's, and move versions in requirements.lock, for
    two requests that the standard library makes as well.
    """

    def __init__(self, account: Path = ACCOUNT) -> None:
        try:
            self._where = os.environ["KUBERNETES_SERVICE_HOST"], int(os.environ["KUBERNETES_SERVICE_PORT"])
            self._token = (account / "token").read_text().strip()
            self.namespace = (account / "namespace").read_text().strip()
            self._trusted = create_default_context(cafile=account / "ca.crt")
        except (KeyError, OSError) as error:
            raise RequestError(f"this is no pod with a service account: {error}") from None

    def find(self, name: str) -> Mapping[str, Any] | None:
        status, answer = self._ask("GET", f"/{name}")
        return answer if status == 200 else None

    def create(self, job: Mapping[str, Any]) -> bool:
        """Whether it was this call that made it; else the name is taken."""
        status, _ = self._ask("POST", "", job)
        if status == 404:
            raise RequestError("the API server knows no rayjobs of ray.io/v1: is KubeRay's operator installed?")
        return status != 409

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, Mapping[str, Any]]:
        """The status, and what the API server says; what is neither done, taken nor missing is an error."""
        what = f"{method} rayjobs{path} in {self.namespace}"
        headers = {"Authorization": f"Bearer {self._token}", "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection = HTTPSConnection(*self._where, timeout=30, context=self._trusted)
        try:
            url = f"/apis/ray.io/v1/namespaces/{self.namespace}/rayjobs{path}"
            connection.request(method, url, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            text = response.read()
        except (OSError, HTTPException) as error:
            raise CheckFailed(f"{what}: {str(error) or type(error).__name__}") from None
        finally:
            connection.close()
        try:
            answer = json.loads(text)
        except ValueError:
            answer = {"message": text[:200].decode(errors="replace")}
        if response.status in (200, 201, 404, 409):
            return response.status, answer
        reason = f"{what}: {response.status} {' '.join(str(answer.get('message', '')).split())}"
        if response.status in (429, *range(500, 600)):
            raise CheckFailed(reason)
        raise RequestError(reason)


def start(found: Mapping[str, Any], config: str, template: Mapping[str, Any], jobs: RayJobs) -> str:
    """Has a RayJob do what a dry run found to be due, unless one is at it; says which."""
    failures: list[str] = []
    number = 1
    while True:
        name = f"reencode-{found['fingerprint'][:16]}-{number}"
        there = jobs.find(name)
        if there is None:
            break
        status = there.get("status", {})
        state = status.get("jobDeploymentStatus", "")
        if state == "Complete":  # the promoted version has been another one since
            failures = []
        elif state in FAILED:
            failures.append(f"{name} ({status.get('reason') or state})")
        else:
            return f"{name} is at it{f', {state}' if state else ''}: {found['why']}"
        number += 1
    if len(failures) >= ATTEMPTS:
        names = " ".join(failure.split()[0] for failure in failures)
        raise CheckFailed(
            f"failed {len(failures)} times: {', '.join(failures)}; when it is mended: "
            f"kubectl -n {jobs.namespace} delete rayjob {names}"
        )
    if jobs.create(reencode_job(template, name, jobs.namespace, config)):
        return f"{name} is started: {found['why']}"
    return f"{name} was started by another at this moment: {found['why']}"


def reencode_job(template: Mapping[str, Any], name: str, namespace: str, config: str) -> dict[str, Any]:
    """The RayJob that encodes, made to re-encode."""
    job = deepcopy(dict(template))
    job["metadata"] = {**job["metadata"], "name": name, "namespace": namespace}
    command = ["python", "-m", "encode_pipeline", "reencode", "--config", config, "--if-changed"]
    # A version that its checks refuse would be refused by every retry; the CronJob tries again, and counts.
    job["spec"] = {**job["spec"], "entrypoint": shlex.join(command), "backoffLimit": 0}
    return job


def read_template(path: Path) -> Mapping[str, Any]:
    try:
        template = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RequestError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(template, dict) or (template.get("apiVersion"), template.get("kind")) != ("ray.io/v1", "RayJob"):
        raise RequestError(f"{path}: holds no RayJob of ray.io/v1")
    return template


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cluster.kuberay.start_reencode", description=__doc__)
    parser.add_argument("config", help="YAML of the run, at a path that is the same in the RayJob's pods")
    parser.add_argument("template", type=Path, help="YAML of the RayJob that encodes; its cluster is used as it is")
    parser.add_argument("--account", type=Path, default=ACCOUNT, help="folder with token, ca.crt and namespace")
    request = parser.parse_args(argv)
    words = ["-m", "encode_pipeline", "reencode", "--config", request.config, "--if-changed", "dry_run=true", "--json"]
    looked = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, text=True, check=False)
    if looked.returncode:
        print(looked.stdout, file=sys.stderr, end="")
        return looked.returncode
    found = json.loads(looked.stdout)
    try:
        if not found["changed"]:
            print(f"nothing to start: {found['why']}")
        else:
            print(start(found, request.config, read_template(request.template), RayJobs(request.account)))
    except (RequestError, CheckFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, RequestError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

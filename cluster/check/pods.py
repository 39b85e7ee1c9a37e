"""What runs in pods, wherever an object describes them: images, resources, mounts, GPUs, commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

from cluster.check.commands import IMAGE_HOME, ROOT, Project, command_faults
from cluster.check.documents import Document, Finding, Keys, filled_in
from cluster.check.images import tag_fault

IN_IMAGE = Project((IMAGE_HOME,))
GPU = "nvidia.com/gpu"
QUANTITY = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?")


def pod_findings(document: Document) -> Iterator[Finding]:
    """What is wrong with the pods of an object, and with what KubeRay makes pods of."""
    for keys, value in document.walk():
        if not (isinstance(value, dict) and "containers" in value and keys[-1:] == ("spec",)):
            continue
        volumes = [
            document.get(*keys, "volumes", place, "name") for place in range(len(document.items(*keys, "volumes")))
        ]
        claims = (*keys[:-2], "volumeClaimTemplates")  # of a StatefulSet, whose pods have these volumes too
        volumes += [document.get(*claims, place, "metadata", "name") for place in range(len(document.items(*claims)))]
        for part in ("initContainers", "containers"):
            for place, container in enumerate(document.items(*keys, part)):
                if isinstance(container, dict):
                    yield from _container(document, (*keys, part, place), container, volumes)
    spec: Keys = {
        "RayCluster": ("spec",),
        "RayJob": ("spec", "rayClusterSpec"),
        "RayCronJob": ("spec", "jobTemplate", "rayClusterSpec"),
    }.get(str(document.get("kind")), ())
    if spec:
        yield from _ray_cluster(document, spec)


def _container(document: Document, keys: Keys, container: dict[str, Any], volumes: list[Any]) -> Iterator[Finding]:
    image = container.get("image")
    if not isinstance(image, str):
        yield document.finding((*keys, "image"), "is missing")
    elif fault := tag_fault(image):
        yield document.finding((*keys, "image"), fault)
    asked = {name for kind in ("requests", "limits") for name in document.mapping(*keys, "resources", kind)}
    for name in ("cpu", "memory"):
        if name not in asked:
            yield document.finding((*keys, "resources"), f"names no {name}; the pod would go where there is too little")
    for kind in ("requests", "limits"):
        for name, amount in document.mapping(*keys, "resources", kind).items():
            if filled_in(amount) and not QUANTITY.fullmatch(str(amount)):
                yield document.finding((*keys, "resources", kind, name), f"{amount!r} is no quantity: 4, 500m, 8Gi")
    for place, mount in enumerate(document.items(*keys, "volumeMounts")):
        if isinstance(mount, dict) and "name" in mount and mount["name"] not in volumes:
            yield document.finding((*keys, "volumeMounts", place, "name"), f"the pod has no volume {mount['name']!r}")
    for at, words in document.walk(container, keys):
        if at[-1] in ("command", "args") and isinstance(words, list):
            yield from (document.finding(at, fault) for fault in command_faults(shlex.join(map(str, words)), IN_IMAGE))


def _ray_cluster(document: Document, spec: Keys) -> Iterator[Finding]:
    wanted = _locked_ray()
    version = document.get(*spec, "rayVersion")
    if isinstance(version, str) and wanted and version != wanted:
        yield document.finding((*spec, "rayVersion"), f"{version} is not the Ray of requirements.lock, {wanted}")
    groups = document.items(*spec, "workerGroupSpecs")
    names = [group.get("groupName") for group in groups if isinstance(group, dict)]
    for place, group in enumerate(groups):
        if not isinstance(group, dict):
            continue
        at: Keys = (*spec, "workerGroupSpecs", place)
        if names.count(group.get("groupName")) > 1:
            yield document.finding((*at, "groupName"), f"{group.get('groupName')!r} names two groups")
        yield from _replicas(document, at, group)
        if _for_gpus(document, at) and not _gpu_limit(document, at):
            yield document.finding((*at, "template"), f"a worker for GPUs without a limit on {GPU} gets none")
    if document.get("kind") == "RayJob":
        given = [key for key in ("rayClusterSpec", "clusterSelector") if document.get("spec", key)]
        if len(given) != 1:
            reason = "is missing" if not given else "goes with clusterSelector: one of the two"
            yield document.finding(("spec", "rayClusterSpec"), reason)
    entrypoint = document.get(*spec[:-1], "entrypoint")
    if isinstance(entrypoint, str):
        at = (*spec[:-1], "entrypoint")
        yield from (document.finding(at, fault) for fault in command_faults(entrypoint, IN_IMAGE))


def _replicas(document: Document, at: Keys, group: dict[str, Any]) -> Iterator[Finding]:
    low, now, high = (group.get(key) for key in ("minReplicas", "replicas", "maxReplicas"))
    if isinstance(low, int) and isinstance(high, int) and low > high:
        yield document.finding((*at, "minReplicas"), f"{low} is more than maxReplicas {high}")
    elif isinstance(now, int) and isinstance(low, int) and isinstance(high, int) and not low <= now <= high:
        yield document.finding((*at, "replicas"), f"{now} is not between minReplicas {low} and maxReplicas {high}")


def _for_gpus(document: Document, group: Keys) -> bool:
    """Whether a group is meant for GPUs, by its name, by what it tells Ray or by the nodes it wants."""
    return (
        bool(re.search(r"(^|[^a-z])gpus?([^a-z]|$)", str(document.get(*group, "groupName")), re.IGNORECASE))
        or str(document.get(*group, "rayStartParams", "num-gpus") or "0") != "0"
        or "nvidia" in str(document.get(*group, "template", "spec"))
    )


def _gpu_limit(document: Document, group: Keys) -> bool:
    containers = (*group, "template", "spec", "containers")
    places = range(len(document.items(*containers)))
    return any(document.get(*containers, place, "resources", "limits", GPU) for place in places)


def _locked_ray() -> str | None:
    lock = ROOT / "requirements.lock"
    found = re.search(r"^ray==(\S+)", lock.read_text(encoding="utf-8"), re.MULTILINE) if lock.exists() else None
    return found.group(1) if found else None

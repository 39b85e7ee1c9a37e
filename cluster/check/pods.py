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


def pod_specs(document: Document) -> Iterator[tuple[Keys, dict[str, Any]]]:
    """Every description of a pod in an object, and the way to it."""
    for keys, value in document.walk():
        if isinstance(value, dict) and isinstance(value.get("containers"), list) and keys and keys[-1] == "spec":
            yield keys, value


def pod_findings(document: Document) -> Iterator[Finding]:
    """What is wrong with the pods of an object, and with what KubeRay makes pods of."""
    for keys, pod in pod_specs(document):
        volumes = {volume.get("name") for volume in pod.get("volumes") or [] if isinstance(volume, dict)}
        claims = document.get(*keys[:-2], "volumeClaimTemplates") or []
        volumes |= {claim["metadata"]["name"] for claim in claims if isinstance(claim, dict)}
        for part in ("initContainers", "containers"):
            for place, container in enumerate(pod.get(part) or []):
                if isinstance(container, dict):
                    yield from _container(document, (*keys, part, place), container, volumes)
    spec: Keys = {
        "RayCluster": ("spec",),
        "RayJob": ("spec", "rayClusterSpec"),
        "RayCronJob": ("spec", "jobTemplate", "rayClusterSpec"),
    }.get(str(document.get("kind")), ())
    if spec:
        yield from _ray_cluster(document, spec)


def _container(document: Document, keys: Keys, container: dict[str, Any], volumes: set[Any]) -> Iterator[Finding]:
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
    for place, mount in enumerate(container.get("volumeMounts") or []):
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
        if _for_gpus(group) and not _gpu_limit(group):
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


def _for_gpus(group: dict[str, Any]) -> bool:
    """Whether a group is meant for GPUs, by its name, by what it tells Ray or by the nodes it wants."""
    params = group.get("rayStartParams") or {}
    template = str({key: value for key, value in (group.get("template") or {}).items() if key != "metadata"})
    return (
        bool(re.search(r"(^|[^a-z])gpus?([^a-z]|$)", str(group.get("groupName")), re.IGNORECASE))
        or str(params.get("num-gpus", "0")) not in ("", "0")
        or "nvidia" in template
    )


def _gpu_limit(group: dict[str, Any]) -> bool:
    spec = (group.get("template") or {}).get("spec") or {}
    containers = spec.get("containers") or []
    return any(((container.get("resources") or {}).get("limits") or {}).get(GPU) for container in containers)


def _locked_ray() -> str | None:
    lock = ROOT / "requirements.lock"
    found = re.search(r"^ray==(\S+)", lock.read_text(encoding="utf-8"), re.MULTILINE) if lock.exists() else None
    return found.group(1) if found else None

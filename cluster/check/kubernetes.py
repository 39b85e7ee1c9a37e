"""Kubernetes' objects: their schemas, strictly, and what the schemas leave open."""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
from collections.abc import Iterator
from typing import Any

from referencing import Registry, Resource

from cluster.check.documents import Document, Finding, Keys, filled_in, nearest
from cluster.check.kuberay import DEFINITIONS, ray_kinds
from cluster.check.schedules import cron_fault, zone_fault
from cluster.check.schema import schema_findings

VERSION = "1.34"
"""Of Kubernetes: what clouds offer; a key that is newer would not be known everywhere."""

RAY_API = "ray.io/v1"

NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
LONGEST_NAME = {"CronJob": 52, "RayJob": 47, "RayCluster": 63, "RayCronJob": 47}
"""Other names are made of these, and must still be short enough."""

VALUES = {
    "restartPolicy": ("Always", "OnFailure", "Never"),
    "imagePullPolicy": ("Always", "IfNotPresent", "Never"),
    "concurrencyPolicy": ("Allow", "Forbid", "Replace"),
    "submissionMode": ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"),
    "effect": ("NoSchedule", "PreferNoSchedule", "NoExecute"),
    "serviceType": ("ClusterIP", "NodePort", "LoadBalancer"),
}
"""Values that the servers insist on and the schemas do not list."""


def kubernetes_findings(document: Document) -> Iterator[Finding]:
    """What is wrong with one object."""
    for key in ("apiVersion", "kind"):
        if not isinstance(document.get(key), str):
            close = [other for other in document.value if nearest(other, [key]).startswith("; did")]
            hint = f"; {close[0]!r} is no such key" if close and key not in document.value else ""
            yield document.finding((key,), f"is missing{hint}")
            return
    kind, api = document.value["kind"], document.value["apiVersion"]
    known = _apis()
    if kind not in known:
        yield document.finding(("kind",), f"no such kind: {kind!r}{nearest(kind, known)}")
        return
    if api not in known[kind]:
        yield document.finding(("apiVersion",), f"{kind} is of {' or '.join(sorted(known[kind]))}, not {api!r}")
        return
    schema = ray_kinds()[kind] if api == RAY_API else {"$ref": known[kind][api]}
    yield from schema_findings(document, (), schema, _registry())
    yield from _name(document, kind)
    yield from _values(document)
    if kind in ("CronJob", "RayCronJob"):
        yield from _cron(document, kind)
    if kind in ("Role", "ClusterRole"):
        yield from _rules(document)


@functools.cache
def _definitions() -> dict[str, Any]:
    """Kubernetes' own schemas, in which an unknown key is an error."""
    folder = importlib.resources.files("kubernetes_validate") / "kubernetes-json-schema" / f"v{VERSION}.0-local-strict"
    loaded: dict[str, Any] = json.loads((folder / "_definitions.json").read_text(encoding="utf-8"))
    return loaded


@functools.cache
def _registry() -> Registry[Any]:
    return Resource.from_contents(_definitions()) @ Registry()


@functools.cache
def _apis() -> dict[str, dict[str, str]]:
    """For each kind the API versions that have it, each with the address of its schema."""
    apis: dict[str, dict[str, str]] = {kind: {RAY_API: ""} for kind in ray_kinds()}
    for name, schema in _definitions()["$defs"].items():
        for kind in schema.get("x-kubernetes-group-version-kind", []):
            api = f"{kind['group']}/{kind['version']}".lstrip("/")
            if schema.get("properties", {}).get("apiVersion", {}).get("enum", [api]) == [api]:
                apis.setdefault(kind["kind"], {})[api] = DEFINITIONS + name
    return apis


def _name(document: Document, kind: str) -> Iterator[Finding]:
    name = document.get("metadata", "name")
    if name is None:
        if not document.get("metadata", "generateName"):
            yield document.finding(("metadata", "name"), "is missing")
    elif isinstance(name, str) and kind not in ("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"):
        if not NAME.fullmatch(name):
            yield document.finding(("metadata", "name"), f"{name!r} is no name: a-z, 0-9, - and .")
        elif len(name) > LONGEST_NAME.get(kind, 253):
            reason = f"{len(name)} characters; a {kind}'s name has {LONGEST_NAME[kind]} at most"
            yield document.finding(("metadata", "name"), reason)


def _values(document: Document) -> Iterator[Finding]:
    for keys, value in document.walk():
        if keys and keys[-1] in VALUES and isinstance(value, str) and value not in VALUES[str(keys[-1])]:
            yield document.finding(keys, f"{value!r} is not one of its values{nearest(value, VALUES[str(keys[-1])])}")


def _cron(document: Document, kind: str) -> Iterator[Finding]:
    schedule, zone = document.get("spec", "schedule"), document.get("spec", "timeZone")
    if isinstance(schedule, str) and filled_in(schedule) and (fault := cron_fault(schedule, kubernetes=True)):
        yield document.finding(("spec", "schedule"), fault)
    if isinstance(zone, str) and filled_in(zone) and (fault := zone_fault(zone)):
        yield document.finding(("spec", "timeZone"), fault)
    if kind == "CronJob" and document.get("spec", "concurrencyPolicy") in (None, "Allow"):
        at: Keys = ("spec", "concurrencyPolicy")
        yield document.finding(at, "without Forbid the next run begins while the last one is still at work")


def _rules(document: Document) -> Iterator[Finding]:
    for place in range(len(document.items("rules"))):
        for key in ("apiGroups", "resources", "verbs"):
            if "*" in document.items("rules", place, key):
                yield document.finding(("rules", place, key), "`*` gives more than is needed; name them")

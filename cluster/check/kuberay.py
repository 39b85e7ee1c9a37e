"""What KubeRay's operator takes: the ray.io kinds, as its own CRDs say it.

`kuberay.json` holds the ray.io part of those CRDs only; pods, services and the like inside it refer to Kubernetes' own
schemas. To make it anew, from a checkout of https://github.com/ray-project/kuberay (Apache-2.0) at the release's tag:

    python -m cluster.check.kuberay v1.7.0 helm-chart/kuberay-operator/crds
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

DATA = Path(__file__).with_name("kuberay.json")
KINDS = {
    "RayCluster": "ray.io_rayclusters.yaml",
    "RayJob": "ray.io_rayjobs.yaml",
    "RayCronJob": "ray.io_raycronjobs.yaml",
}

DEFINITIONS = "https://kubernetes.io/api/_definitions.json#/$defs/"
"""Where kubernetes-validate has Kubernetes' own schemas."""

KEPT = ("type", "enum", "required", "minimum", "maximum", "minItems")

OF_KUBERNETES: dict[str, str | list[str]] = {
    "template": "io.k8s.api.core.v1.PodTemplateSpec",
    "submitterPodTemplate": "io.k8s.api.core.v1.PodTemplateSpec",
    "headService": "io.k8s.api.core.v1.Service",
    "securityContext": "io.k8s.api.core.v1.SecurityContext",
    "valueFrom": "io.k8s.api.core.v1.EnvVarSource",
    "ports": ["io.k8s.api.networking.v1.NetworkPolicyPort"],
    "from": ["io.k8s.api.networking.v1.NetworkPolicyPeer"],
    "to": ["io.k8s.api.networking.v1.NetworkPolicyPeer"],
    "env": ["io.k8s.api.core.v1.EnvVar"],
    "envFrom": ["io.k8s.api.core.v1.EnvFromSource"],
    "volumeMounts": ["io.k8s.api.core.v1.VolumeMount"],
}
"""Keys whose value is Kubernetes' own, or a list of it."""


@functools.cache
def ray_kinds() -> dict[str, Any]:
    """The JSON Schema of each ray.io kind at ray.io/v1."""
    kinds: dict[str, Any] = json.loads(DATA.read_text(encoding="utf-8"))["kinds"]
    return kinds


def main(argv: Sequence[str]) -> int:
    """Write `kuberay.json` from the CRDs of a release."""
    if len(argv) != 2:
        print("usage: python -m cluster.check.kuberay VERSION FOLDER_OF_CRDS", file=sys.stderr)
        return 2
    kinds = {}
    for kind, name in KINDS.items():
        crd = yaml.load((Path(argv[1]) / name).read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
        version = next(version for version in crd["spec"]["versions"] if version["name"] == "v1")
        schema = _without_kubernetes(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"$ref": f"{DEFINITIONS}io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}
        schema["properties"].pop("status", None)
        kinds[kind] = {**schema, "required": ["apiVersion", "kind", "metadata", "spec"]}
    data = {
        "source": "https://github.com/ray-project/kuberay, helm-chart/kuberay-operator/crds",
        "licence": "Apache-2.0",
        "version": argv[0],
        "kinds": kinds,
    }
    DATA.write_text(json.dumps(data, separators=(",", ":"), sort_keys=True) + "\n", encoding="utf-8")
    print(f"{DATA}: {DATA.stat().st_size:,} bytes")
    return 0


def _without_kubernetes(part: dict[str, Any]) -> dict[str, Any]:
    """A part of a CRD as strict JSON Schema, with references for what is Kubernetes' own."""
    if part.get("x-kubernetes-int-or-string"):
        return {"type": ["string", "integer"]}
    kept: dict[str, Any] = {name: part[name] for name in KEPT if name in part}
    if "properties" in part:
        kept["properties"] = {name: _property(name, inner) for name, inner in part["properties"].items()}
        kept["additionalProperties"] = False
        filled = {name for name, inner in part["properties"].items() if "default" in inner}
        if filled & set(kept.get("required", [])):  # the server fills these in before it looks
            kept["required"] = [name for name in kept["required"] if name not in filled]
    elif isinstance(part.get("additionalProperties"), dict):
        kept["additionalProperties"] = _without_kubernetes(part["additionalProperties"])
    if "items" in part:
        kept["items"] = _without_kubernetes(part["items"])
    return kept


def _property(name: str, part: dict[str, Any]) -> dict[str, Any]:
    own = OF_KUBERNETES.get(name)
    if name == "resources" and "limits" in part.get("properties", {}):
        own = "io.k8s.api.core.v1.ResourceRequirements"
    if isinstance(own, list):
        return {"type": "array", "items": {"$ref": DEFINITIONS + own[0]}}
    return {"$ref": DEFINITIONS + own} if own else _without_kubernetes(part)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

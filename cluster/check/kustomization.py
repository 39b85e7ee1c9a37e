"""Kustomize's list of what belongs together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cluster.check.documents import Document, Finding, nearest

NAMES = ("kustomization.yaml", "kustomization.yml", "Kustomization")
API = {"Kustomization": "kustomize.config.k8s.io/v1beta1", "Component": "kustomize.config.k8s.io/v1alpha1"}

# fmt: off
KEYS = {
    "apiVersion", "kind", "metadata", "resources", "components", "bases", "crds", "namespace", "namePrefix",
    "nameSuffix", "labels", "commonLabels", "commonAnnotations", "images", "replicas", "patches",
    "patchesStrategicMerge", "patchesJson6902", "replacements", "vars", "configurations", "configMapGenerator",
    "secretGenerator", "generatorOptions", "generators", "transformers", "validators", "openapi", "buildMetadata",
    "sortOptions", "helmCharts", "helmGlobals",
}
# fmt: on


def kustomization_findings(document: Document) -> Iterator[Finding]:
    """Unknown keys, files that are not there, and files beside it that are not listed."""
    folder = Path(document.path).parent
    for key in document.value:
        if key not in KEYS:
            yield document.finding((key,), f"unknown key{nearest(key, KEYS)}")
    kind = str(document.value.get("kind", "Kustomization"))
    if kind not in API:
        yield document.finding(("kind",), f"no such kind: {kind!r}{nearest(kind, API)}")
    elif (version := document.value.get("apiVersion", API[kind])) != API[kind]:
        yield document.finding(("apiVersion",), f"{kind} is of {API[kind]}, not {version}")
    listed: set[str] = set()
    for keys in _named(document):
        name = str(document.get(*keys)).rpartition("=")[2]  # a generator may say KEY=FILE
        listed.add(Path(name).name)
        if "://" not in name and not (folder / name).exists():
            yield document.finding(keys, f"no such file or folder: {name}")
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        if path.name not in (*NAMES, *listed):
            yield document.finding(("resources",), f"{path.name} lies here and is not listed")
    for place, generator in enumerate(document.items("secretGenerator")):
        if isinstance(generator, dict) and generator.get("literals"):
            at = ("secretGenerator", place, "literals")
            yield document.finding(at, "secrets in clear; keep them out of the files that are shared")


def _named(document: Document) -> Iterator[tuple[str | int, ...]]:
    """The way to each name of a file or folder."""
    for key in ("resources", "components", "bases", "crds", "configurations", "patchesStrategicMerge"):
        yield from ((key, place) for place, _ in enumerate(document.items(key)))
    for place, patch in enumerate(document.items("patches")):
        if isinstance(patch, dict) and "path" in patch:
            yield ("patches", place, "path")
    for key in ("configMapGenerator", "secretGenerator"):
        for place in range(len(document.items(key))):
            for list_name in ("files", "envs"):
                for inner in range(len(document.items(key, place, list_name))):
                    yield (key, place, list_name, inner)

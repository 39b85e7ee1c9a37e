"""Names that one Kubernetes object has for another, and whether there is such a one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from cluster.check.documents import Document, Finding, Keys, filled_in, nearest

BY_KEY = {
    "secretRef": "Secret",
    "secretKeyRef": "Secret",
    "configMapRef": "ConfigMap",
    "configMapKeyRef": "ConfigMap",
    "configMap": "ConfigMap",
    "persistentVolumeClaim": "PersistentVolumeClaim",
}
NAME_WITHIN = {"persistentVolumeClaim": "claimName"}
ALWAYS = {("ServiceAccount", "default"), ("ConfigMap", "kube-root-ca.crt")}

Object = tuple[str, str]
"""A kind and a name."""


def made_by(documents: Iterable[Document]) -> set[Object]:
    """What the files make, kustomize's generators among them."""
    made = set(ALWAYS)
    for document in documents:
        kind, name = document.get("kind"), document.get("metadata", "name")
        if isinstance(kind, str) and isinstance(name, str):
            made.add((kind, name))
        for key, generated in (("configMapGenerator", "ConfigMap"), ("secretGenerator", "Secret")):
            made |= {(generated, str(part.get("name"))) for part in document.items(key) if isinstance(part, dict)}
    return made


def reference_findings(document: Document, made: set[Object]) -> Iterator[Finding]:
    """References to what no file makes and no comment asks the user to make."""
    asked_for = "\n".join(_asked_for(document.text))
    for keys, kind, name in _references(document):
        asked = re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", asked_for)
        if filled_in(name) and (kind, name) not in made and not asked:
            others = [other for of, other in made if of == kind and (of, other) not in ALWAYS]
            hint = nearest(name, others)
            yield document.finding(keys, f"no file here makes the {kind} {name}, and no FILL IN names it{hint}")


def _asked_for(text: str) -> Iterator[str]:
    """The comments from one that says FILL IN to the end of its block."""
    asking = False
    for line in text.splitlines():
        comment = line.partition("#")[2] if "#" in line else None
        asking = comment is not None and (asking or "FILL IN" in comment)
        if asking and comment is not None:
            yield comment


def _references(document: Document) -> Iterator[tuple[Keys, str, str]]:
    """Each reference that has to hold: the way to the name, the kind and the name."""
    for keys, value in document.walk():
        key = str(keys[-1]) if keys else ""
        if key in BY_KEY and isinstance(value, dict) and not value.get("optional"):
            within = NAME_WITHIN.get(key, "name")
            if isinstance(value.get(within), str):
                yield (*keys, within), BY_KEY[key], value[within]
        elif key == "secret" and isinstance(value, dict) and "secretName" in value and not value.get("optional"):
            yield (*keys, "secretName"), "Secret", str(value["secretName"])
        elif key == "serviceAccountName" and isinstance(value, str):
            yield keys, "ServiceAccount", value
        elif key == "imagePullSecrets" and isinstance(value, list):
            for place, part in enumerate(value):
                if isinstance(part, dict) and isinstance(part.get("name"), str):
                    yield (*keys, place, "name"), "Secret", part["name"]
        elif key == "roleRef" and isinstance(value, dict) and isinstance(value.get("name"), str):
            if value.get("kind") == "Role":
                yield (*keys, "name"), "Role", value["name"]
        elif key == "subjects" and isinstance(value, list):
            for place, part in enumerate(value):
                if isinstance(part, dict) and part.get("kind") == "ServiceAccount":
                    yield (*keys, place, "name"), "ServiceAccount", str(part.get("name"))

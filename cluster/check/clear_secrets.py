"""Secrets that stand in a file for everyone to read."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cluster.check.documents import Document, Finding, Keys, filled_in

KNOWN = (
    (re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"), "an AWS access key"),
    (re.compile(r"-----BEGIN ([A-Z]+ )*PRIVATE KEY-----"), "a private key"),
    (re.compile(r"\bAIza[0-9A-Za-z_-]{35}\b"), "a Google API key"),
    (re.compile(r"\b(ghp|gho|ghs|ghu|github_pat)_[0-9A-Za-z_]{30,}"), "a GitHub token"),
    (re.compile(r"\bhf_[0-9A-Za-z]{30,}"), "a Hugging Face token"),
    (re.compile(r"\"private_key(_id)?\"\s*:\s*\"[^\"]+"), "a service account's key"),
    (re.compile(r"://[^\s/:@$]+:[^\s/:@$]{3,}@"), "a password within an address"),
)
"""Texts that are secrets whatever they stand beside."""

NAMED = re.compile(r"(^|[_-])(key|secret|token|passw(or)?d|credentials?)$", re.IGNORECASE)
"""Names that say what their value is; one that ends in _FILE or _ID says something else."""

HARMLESS = re.compile(r"public[_-]?key$|^ssh_private_key$", re.IGNORECASE)
"""And what is for everyone to read. Ray's launcher takes a path as `ssh_private_key`; a key itself has its own look."""

ASSIGNED = re.compile(r"(?<![\w$-])(?:-e |--)?([A-Za-z][\w-]*)[=](['\"]?)([^\s'\";&|]*)")
"""NAME=value in a command."""


def text_findings(path: str, text: str) -> Iterator[Finding]:
    """Secrets by their own look, in any file."""
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, what in KNOWN:
            if pattern.search(line) and filled_in(line):
                yield Finding(path, number, "", f"{what} in clear")


def document_findings(document: Document) -> Iterator[Finding]:
    """Secrets by the name that they stand beside, in a YAML document."""
    for keys, value in document.walk():
        name = str(keys[-1]) if keys else ""
        if isinstance(value, dict) and "name" in value and "value" in value:
            if _says_secret(str(value["name"])) and _literal(value["value"]):
                yield _finding(document, (*keys, "value"), str(value["name"]))
        elif isinstance(value, str) and _says_secret(name) and name != "key" and _literal(value):
            yield _finding(document, keys, name)
        elif isinstance(value, str) and "=" in value:
            for match in ASSIGNED.finditer(value):
                if _says_secret(match.group(1)) and _literal(match.group(3)):
                    yield _finding(document, keys, match.group(1))
    if document.get("kind") == "Secret" and document.get("apiVersion") == "v1":
        for part in ("data", "stringData"):
            for name, value in document.mapping(part).items():
                if _literal(value):
                    yield _finding(document, (part, name), name)


def _finding(document: Document, keys: Keys, name: str) -> Finding:
    return document.finding(keys, f"the secret {name} in clear; refer to where it is kept, or take it from a role")


def _says_secret(name: str) -> bool:
    return bool(NAMED.search(name) and not HARMLESS.search(name))


def _literal(value: object) -> bool:
    """Whether a value is the thing itself: no reference, no path, nothing still to be filled in."""
    text = str(value).strip() if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    return bool(text) and filled_in(text) and not text.startswith(("$", "/", "~", "./", "<"))

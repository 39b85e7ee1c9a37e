"""Which rules a file is held against: by its name, else by what it says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from cluster.check.clear_secrets import document_findings, text_findings
from cluster.check.commands import ROOT
from cluster.check.documents import Document, Finding, nearest, placeholders, read_documents, relative
from cluster.check.kubernetes import kubernetes_findings
from cluster.check.kustomization import NAMES, kustomization_findings
from cluster.check.launcher import launcher_findings
from cluster.check.pods import pod_findings
from cluster.check.references import Object, made_by, reference_findings
from cluster.check.schedules import crontab_findings, service_findings, timer_findings

LAUNCHER = {"cluster_name", "provider", "available_node_types", "head_node_type", "max_workers", "auth"}
KUBERNETES = {"apiVersion", "kind", "metadata", "spec"}


def files_under(folder: Path) -> list[Path]:
    """Everything that lies there, but for Python's own."""
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return sorted(path for path in found if path.suffix not in (".pyc", ".json"))


def check_files(paths: Sequence[Path], filled: bool) -> list[Finding]:
    """All findings, in the order of files and lines."""
    findings: set[Finding] = set()
    made: dict[Path, set[Object]] = {}
    for path in paths:
        findings.update(_check_file(path, made, filled))
    return sorted(findings)


def _check_file(path: Path, made: dict[Path, set[Object]], filled: bool) -> Iterator[Finding]:
    name = relative(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        yield Finding(name, 1, "", f"not text: {error.reason} at byte {error.start}")
        return
    yield from text_findings(name, text)
    if path.suffix == ".timer":
        yield from timer_findings(name, text)
    elif path.suffix == ".service":
        yield from service_findings(name, text)
    elif path.name == "crontab" or path.suffix == ".cron":
        yield from crontab_findings(name, text)
    elif path.suffix in (".yaml", ".yml"):
        documents, faults = read_documents(name, text)
        yield from faults
        if not (documents or faults):
            yield Finding(name, 1, "", "says nothing")
        if path.parent not in made:
            made[path.parent] = made_by(document for other in _beside(path) for document in other)
        for document in documents:
            yield from _of_kind(document, path, documents, made[path.parent])
            yield from document_findings(document)
            waiting = list(placeholders(document))
            if filled:
                yield from waiting
            elif waiting and "FILL IN" not in _top_comment(text):
                reason = "a value to fill in, and the comment at the top of the file says nothing of FILL IN"
                yield Finding(name, waiting[0].line, waiting[0].where, reason)


def _beside(path: Path) -> Iterator[list[Document]]:
    """The documents of every YAML file in a file's folder."""
    for other in sorted([*path.parent.glob("*.yaml"), *path.parent.glob("*.yml")]):
        if other.is_file():
            yield read_documents(str(other), other.read_text(encoding="utf-8", errors="replace"))[0]


def _of_kind(document: Document, path: Path, documents: list[Document], made: set[Object]) -> Iterator[Finding]:
    """What the rules for this kind of document say."""
    if not isinstance(document.value, dict):
        yield document.finding((), "expected keys and values")
    elif path.name in NAMES:
        yield from kustomization_findings(document)
    elif LAUNCHER & set(document.value):
        if len(documents) == 1:
            yield from launcher_findings(document)
        elif document is documents[1]:
            yield document.finding((), "one of several documents; Ray takes one in a file")
    elif KUBERNETES & set(document.value):
        yield from kubernetes_findings(document)
        yield from pod_findings(document)
        yield from reference_findings(document, made)
    else:
        yield from pipeline_findings(document)


def pipeline_findings(document: Document) -> Iterator[Finding]:
    """What is wrong with a file that is neither Ray's nor Kubernetes', and so the pipeline's own configuration."""
    from pydantic import ValidationError

    from encode_pipeline.__main__ import VERBS
    from encode_pipeline.config import EncodeConfig

    known = {key for verb in VERBS.values() for key in verb.settings.model_fields}
    if not known & set(document.value):
        yield document.finding((), "neither a Ray cluster, nor Kubernetes', nor a configuration of encode_pipeline")
        return
    for key in document.value:
        if key not in known:
            yield document.finding((key,), f"unknown key{nearest(key, known)}")
    try:
        own = EncodeConfig.model_fields
        EncodeConfig.model_validate({key: value for key, value in document.value.items() if key in own})
    except ValidationError as error:
        for fault in error.errors():
            at = tuple(part for part in fault["loc"] if isinstance(part, str) and part in document.value)
            reason = "is missing" if fault["type"] == "missing" else fault["msg"].removeprefix("Value error, ")
            yield document.finding(at or tuple(map(str, fault["loc"][:1])), reason)


def _top_comment(text: str) -> str:
    lines = text.splitlines()
    count = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    return "\n".join(lines[:count])


def shipped() -> list[Path]:
    """The files under cluster/ that are checked when none is named."""
    return [path for path in files_under(ROOT / "cluster") if path.parent != Path(__file__).parent]

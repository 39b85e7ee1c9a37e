"""A launcher file's kinds of machines: what the cloud is asked for, how many may come, what Ray takes them to have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cluster.check import clouds
from cluster.check.documents import Document, Finding, Keys
from cluster.check.schema import schema_findings


def node_configs(document: Document, cloud: str) -> Iterator[Finding]:
    schema = clouds.node_schema(cloud)
    workers = total_workers(document)
    for name, kind in document.mapping("available_node_types").items():
        at: Keys = ("available_node_types", name, "node_config")
        config = document.mapping(*at)
        if schema is None or not isinstance(kind, dict) or "node_config" not in kind:
            continue
        if cloud == "gcp" and "machineType" not in config and {"acceleratorType", "acceleratorConfig"} & set(config):
            continue  # a TPU: another interface of the cloud, whose terms are not known here

        def hint(key: str) -> str:
            said = clouds.RAY_DECIDES[cloud].get(key)
            return f": {said}" if said else clouds.spot_hint(cloud, key)

        yield from schema_findings(document, at, schema, hint=hint)
        if cloud == "aws":
            yield from _aws_rules(document, at, config)
        if name == document.get("head_node_type") and workers and _is_spot(config):
            spot = "InstanceMarketOptions" if cloud == "aws" else "scheduling"
            yield document.finding((*at, spot), "the head on a spot machine: when it goes, the whole cluster goes")


def _aws_rules(document: Document, at: Keys, config: dict[str, Any]) -> Iterator[Finding]:
    if document.get("auth", "ssh_private_key") and not {"KeyName", "UserData"} & set(config):
        yield document.finding((*at, "KeyName"), "is missing, and Ray asks for it beside auth.ssh_private_key")
    for key in ("SubnetIds", "SecurityGroupIds"):
        if "NetworkInterfaces" in config and key in config:
            yield document.finding((*at, key), "belongs in each of NetworkInterfaces where there are any")


def _is_spot(config: dict[str, Any]) -> bool:
    market, scheduling = config.get("InstanceMarketOptions"), config.get("scheduling")
    return (isinstance(market, dict) and market.get("MarketType") == "spot") or (
        isinstance(scheduling, dict)
        and bool(scheduling.get("preemptible") or scheduling.get("provisioningModel") == "SPOT")
    )


def counts(document: Document, cloud: str) -> Iterator[Finding]:
    total, least = total_workers(document), 0
    for name, kind in document.mapping("available_node_types").items():
        if not isinstance(kind, dict):
            continue
        at: Keys = ("available_node_types", name)
        low = kind.get("min_workers", 0)
        high = kind.get("max_workers", 0 if name == document.get("head_node_type") else total)
        if not isinstance(low, int) or not isinstance(high, int):
            continue
        least += low
        if low < 0 or low > high:
            yield document.finding((*at, "min_workers"), f"{low} is not between 0 and max_workers {high}")
        if high > total:
            yield document.finding((*at, "max_workers"), f"{high} is more than the cluster's max_workers {total}")
    if least > total:
        yield document.finding(("max_workers",), f"{total} is less than the node types' min_workers, {least} together")
    if cloud == "local":
        there = len(document.items("provider", "worker_ips"))
        for key in ("min_workers", "max_workers"):
            wanted = document.get(key)
            if isinstance(wanted, int) and wanted > there and "coordinator_address" not in document.mapping("provider"):
                yield document.finding((key,), f"{wanted} is more than the {there} of provider.worker_ips")


def resources(document: Document, cloud: str) -> Iterator[Finding]:
    """Where nobody would know what a worker has, so that none is ever launched for a task."""
    for name, kind in document.mapping("available_node_types").items():
        if cloud != "gcp" or not isinstance(kind, dict) or not isinstance(kind.get("resources"), dict):
            continue  # on AWS Ray asks for the type's CPUs and GPUs; without the key its schema has spoken
        at: Keys = ("available_node_types", name, "resources")
        config = document.mapping("available_node_types", name, "node_config")
        machine = str(config.get("machineType", "")).rpartition("/")[2]
        gpus = bool(config.get("guestAccelerators")) or machine.startswith(("a2-", "a3-", "a4-", "g2-", "g4-"))
        if not kind["resources"]:
            yield document.finding(at, "is empty, and Ray does not ask GCP: say {CPU: …, GPU: …}")
        elif gpus and not kind["resources"].get("GPU"):
            yield document.finding(at, f"names no GPU, and {machine} has some; no task would be given to them")


def total_workers(document: Document) -> int:
    """How many workers may come; Ray's default where the file does not say."""
    default = len(document.items("provider", "worker_ips")) if document.get("provider", "type") == "local" else 2
    total = document.get("max_workers")
    return total if isinstance(total, int) else default

"""What each cloud takes in `provider` and `node_config`, from the libraries that Ray itself asks the cloud with."""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
from typing import Any

EVERY_PROVIDER = {
    "type",
    "use_internal_ips",
    "use_external_head_ip",
    "disable_node_updaters",
    "disable_launch_config_check",
    "foreground_node_launch",
    "worker_liveness_check",
}
"""Keys of `provider` that Ray's autoscaler reads whatever the cloud."""

PROVIDER_KEYS = {
    "aws": {
        "region",
        "availability_zone",
        "cache_stopped_nodes",
        "key_pair",
        "security_group",
        "cloudwatch",
        "aws_credentials",
    },
    "gcp": {"region", "availability_zone", "project_id", "cache_stopped_nodes", "gcp_credentials"},
    "local": {"head_ip", "worker_ips", "external_head_ip", "coordinator_address"},
}
"""And those that only one cloud's part of Ray reads; a test compares both with Ray's source."""

REQUIRED = {"aws": ("region",), "gcp": ("region", "availability_zone", "project_id"), "local": ()}

SPOT = {
    "aws": "available_node_types.TYPE.node_config.InstanceMarketOptions: {MarketType: spot}",
    "gcp": "available_node_types.TYPE.node_config.scheduling: {provisioningModel: SPOT}",
}

RAY_DECIDES = {
    "aws": {
        "MinCount": "Ray sets it; say min_workers of the node type",
        "MaxCount": "Ray sets it; say max_workers of the node type",
        "SubnetId": "Ray overwrites it; say SubnetIds, a list",
    },
    "gcp": {"name": "Ray overwrites it"},
}
"""Keys of `node_config` that the cloud knows and Ray does not let through."""


def spot_hint(cloud: str, key: str) -> str:
    """Where a key that is about spot machines belongs."""
    if cloud in SPOT and re.search("spot|preempt|market|provisioning", key, re.IGNORECASE):
        return f"; a spot machine is asked for by {SPOT[cloud]}"
    return ""


def node_schema(cloud: str) -> dict[str, Any] | None:
    """JSON Schema of `node_config`; None for clouds whose terms are not known here."""
    return {"aws": _run_instances, "gcp": _instance}[cloud]() if cloud in ("aws", "gcp") else None


def aws_regions() -> list[str]:
    """All regions of EC2, in every partition."""
    session = _botocore()
    return sorted(
        region
        for partition in session.get_available_partitions()
        for region in session.get_available_regions("ec2", partition_name=partition)
    )


@functools.cache
def _botocore() -> Any:
    import botocore.session

    return botocore.session.Session()


@functools.cache
def _run_instances() -> dict[str, Any]:
    """EC2's RunInstances, less what Ray sets itself, and with the list of subnets that Ray picks one from."""
    model = _botocore().get_service_model("ec2")
    schema = _of_shape(model.operation_model("RunInstances").input_shape)
    for key in RAY_DECIDES["aws"]:
        del schema["properties"][key]
    schema["properties"]["SubnetIds"] = {"type": "array", "items": {"type": "string"}}
    # Ray asks for the machine's type to know its GPUs, even where a launch template would have it.
    schema["required"] = ["InstanceType"]
    return schema


def _of_shape(shape: Any) -> dict[str, Any]:
    """A shape of botocore's service model as JSON Schema."""
    if shape.type_name == "structure":
        members = {name: _of_shape(member) for name, member in shape.members.items()}
        return {
            "type": "object",
            "properties": members,
            "required": list(shape.required_members),
            "additionalProperties": False,
        }
    if shape.type_name == "list":
        return {"type": "array", "items": _of_shape(shape.member)}
    if shape.type_name == "map":
        return {"type": "object", "additionalProperties": _of_shape(shape.value)}
    if shape.type_name == "string":
        return {"type": "string", **({"enum": list(shape.enum)} if shape.enum else {})}
    numbers = {"integer": "integer", "long": "integer", "float": "number", "double": "number", "boolean": "boolean"}
    return {"type": numbers[shape.type_name]} if shape.type_name in numbers else {}


@functools.cache
def _instance() -> dict[str, Any]:
    """Instance of GCP's compute v1, with the template that Ray takes out of it again, and all that it refers to."""
    documents = importlib.resources.files("googleapiclient") / "discovery_cache" / "documents"
    schemas = json.loads((documents / "compute.v1.json").read_text(encoding="utf-8"))["schemas"]
    reached: dict[str, Any] = {}
    waiting = ["Instance"]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached[name] = _of_discovery(schemas[name], waiting)
    schema: dict[str, Any] = {**reached["Instance"], "$defs": reached, "required": ["machineType"]}
    schema["properties"] = {**schema["properties"], "sourceInstanceTemplate": {"type": "string"}}
    for key in RAY_DECIDES["gcp"]:
        del schema["properties"][key]
    return schema


def _of_discovery(part: dict[str, Any], waiting: list[str]) -> dict[str, Any]:
    """A schema of Google's discovery format as JSON Schema; what it refers to is put on `waiting`."""
    if "$ref" in part:
        waiting.append(part["$ref"])
        return {"$ref": f"#/$defs/{part['$ref']}"}
    if "properties" in part:
        inner = {name: _of_discovery(value, waiting) for name, value in part["properties"].items()}
        return {"type": "object", "properties": inner, "additionalProperties": False}
    if part.get("type") == "object":
        return {"type": "object", "additionalProperties": _of_discovery(part.get("additionalProperties", {}), waiting)}
    if part.get("type") == "array":
        return {"type": "array", "items": _of_discovery(part["items"], waiting)}
    if part.get("format") in ("int64", "uint64"):  # numbers too large for JSON are text there, and taken as both
        return {"type": ["string", "integer"]}
    if part.get("type") in ("string", "integer", "number", "boolean"):
        return {"type": part["type"], **({"enum": part["enum"]} if "enum" in part else {})}
    return {}

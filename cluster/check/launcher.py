"""Ray's cluster launcher: what `ray up FILE` would do with a file, and where that is not what it says."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from cluster.check import clouds
from cluster.check.commands import LAUNCHED_HOME, ROOT, Project, command_faults, ray_options
from cluster.check.documents import Document, Finding, Keys, filled_in, nearest
from cluster.check.images import tag_fault
from cluster.check.node_types import counts, node_configs, resources, total_workers
from cluster.check.schema import schema_findings

COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)


def launcher_findings(document: Document) -> Iterator[Finding]:
    """What is wrong with a cluster file; Ray has the last word where nothing else was found."""
    found = False
    cloud = str(document.get("provider", "type"))
    for rule in (_schema, _provider, node_configs, counts, resources, _mounts, _images, _commands, _starts):
        for finding in rule(document, cloud):
            found = True
            yield finding
    if not found:
        yield from _refused_by_ray(document)


def _schema(document: Document, cloud: str) -> Iterator[Finding]:
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8"))
    if cloud == "local":  # taken out again before Ray looks at its schema
        schema["properties"]["min_workers"] = {"type": "integer", "minimum": 0}
    yield from schema_findings(document, (), schema, hint=lambda key: clouds.spot_hint(cloud, key))
    head, names = document.get("head_node_type"), document.mapping("available_node_types")
    if names and not isinstance(head, str):
        yield document.finding(("head_node_type",), "is missing")
    elif names and head not in names:
        yield document.finding(("head_node_type",), f"no such node type: {head!r}{nearest(head, names)}")
    for key in ("head_node", "worker_nodes", *(("available_node_types", "head_node_type") if cloud == "local" else ())):
        if document.get(key):
            yield document.finding((key,), f"Ray takes no such key for provider {cloud}")


def _provider(document: Document, cloud: str) -> Iterator[Finding]:
    from ray.autoscaler._private.providers import _NODE_PROVIDERS

    provider = document.mapping("provider")
    if "type" in provider and cloud not in _NODE_PROVIDERS:
        yield document.finding(("provider", "type"), f"Ray has no provider {cloud!r}{nearest(cloud, _NODE_PROVIDERS)}")
    if cloud not in clouds.PROVIDER_KEYS:
        return
    known = clouds.EVERY_PROVIDER | clouds.PROVIDER_KEYS[cloud]
    for key in provider:
        if key not in known:
            hint = clouds.spot_hint(cloud, key) or nearest(key, known)
            yield document.finding(("provider", key), f"Ray reads no such key of provider {cloud}{hint}")
    needed = clouds.REQUIRED[cloud]
    if cloud == "local":
        needed = ("coordinator_address",) if "coordinator_address" in provider else ("head_ip", "worker_ips")
    for key in needed:
        if provider.get(key) is None and not any(nearest(other, [key]) for other in set(provider) - known):
            yield document.finding(("provider", key), "is missing")
    region, zones = provider.get("region"), provider.get("availability_zone")
    if cloud == "aws" and isinstance(region, str) and filled_in(region) and region not in clouds.aws_regions():
        hint = nearest(region, clouds.aws_regions())
        yield document.finding(("provider", "region"), f"EC2 has no region {region!r}{hint}")
    elif isinstance(region, str) and isinstance(zones, str) and filled_in(region):
        for zone in zones.split(",") if cloud == "aws" else [zones]:
            if filled_in(zone) and not zone.strip().startswith(region):
                reason = f"{zone.strip()!r} is not in region {region}"
                yield document.finding(("provider", "availability_zone"), reason)
    for ip, count in Counter(str(ip) for ip in document.items("provider", "worker_ips") if filled_in(ip)).items():
        if count > 1 or ip == provider.get("head_ip"):
            also = "given twice" if count > 1 else "the head's address too"
            yield document.finding(("provider", "worker_ips"), f"{ip} is {also}")


def _mounts(document: Document, cloud: str) -> Iterator[Finding]:
    for remote, local in document.mapping("file_mounts").items():
        if not isinstance(local, str):
            yield document.finding(("file_mounts", remote), "expected the path of a file or folder here")
        elif filled_in(local) and not local.startswith(("/", "~")) and not (ROOT / local).exists():
            yield document.finding(("file_mounts", remote), f"no such file or folder here: {local}")


def _images(document: Document, cloud: str) -> Iterator[Finding]:
    kinds = [("available_node_types", name, "docker") for name in document.mapping("available_node_types")]
    for at in (("docker",), *kinds):
        for key in ("image", "head_image", "worker_image"):
            image = document.get(*at, key)
            if isinstance(image, str) and (fault := tag_fault(image)):
                yield document.finding((*at, key), fault)


def _lists(document: Document) -> Iterator[tuple[Keys, str]]:
    """Every list of commands: the way to it, and its name."""
    yield from (((name,), name) for name in COMMANDS)
    for kind in document.mapping("available_node_types"):
        yield from ((("available_node_types", kind, name), name) for name in COMMANDS[:4])


def _commands(document: Document, cloud: str) -> Iterator[Finding]:
    mounts = document.mapping("file_mounts")
    homes = tuple(remote for remote, local in mounts.items() if local in (".", "./")) or (LAUNCHED_HOME,)
    brought = tuple(local for local in mounts.values() if isinstance(local, str))
    left_out = {str(name).strip("/") for name in document.items("rsync_exclude")}
    project = Project(homes, brought, Project(()).made | left_out)
    for at, name in _lists(document):
        for place, text in enumerate(document.items(*at)):
            if isinstance(text, str):
                yield from (document.finding((*at, place), fault) for fault in command_faults(text, project))
                yield from _stops(document, (*at, place), name, text, cloud)
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        if cloud == "local" and document.get(name) is None:
            yield document.finding((name,), "is missing, and Ray's own begin with `ray stop`, which ends all Ray there")


def _stops(document: Document, at: Keys, name: str, text: str, cloud: str) -> Iterator[Finding]:
    """`ray stop` ends every Ray of the user on a machine; only a machine that is the cluster's own bears that."""
    bearable = cloud != "local" and name.endswith("start_ray_commands")
    with contextlib.suppress(ValueError):
        if not bearable and any(True for _ in ray_options(text, "stop")):
            where = "on a machine that others may use" if cloud == "local" else "whenever the files are brought anew"
            yield document.finding(at, f"`ray stop` would end every Ray there, {where}")


def _starts(document: Document, cloud: str) -> Iterator[Finding]:
    """Whether head and workers would find each other, and the head keep to its own work."""
    if cloud not in ("aws", "gcp") or not total_workers(document):
        return
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        if name not in document.mapping():
            continue  # Ray's own
        starts = []
        for place, text in enumerate(document.items(name)):
            with contextlib.suppress(ValueError):
                starts += [(place, options) for options in ray_options(str(text), "start")]
        if not starts:
            yield document.finding((name,), "no `ray start` among them, so that no machine joins the cluster")
        for place, options in starts:
            at: Keys = (name, place)
            if name.startswith("worker"):
                if "RAY_HEAD_IP" not in options.get("--address", ""):
                    yield document.finding(at, "`ray start` without --address=$RAY_HEAD_IP:PORT finds no head")
                continue
            if "--head" not in options:
                yield document.finding(at, "`ray start` without --head makes no head")
            if "--autoscaling-config" not in options:
                yield document.finding(at, "without --autoscaling-config=~/ray_bootstrap_config.yaml no worker comes")
            if options.get("--num-cpus") != "0":
                yield document.finding(at, "without --num-cpus=0 the head is given work that may take it down")


def _refused_by_ray(document: Document) -> Iterator[Finding]:
    """Ray's own verdict, which is not to print anything here."""
    from jsonschema.exceptions import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            validate_config(prepare_config(copy.deepcopy(document.value)))
    except ValidationError as error:
        yield document.finding(tuple(error.absolute_path), f"Ray: {' '.join(error.message.split())}")
    except Exception as error:  # Ray says it with asserts, KeyErrors and exceptions of its command line
        message = " ".join(str(getattr(error, "message", error)).split()) or type(error).__name__
        yield document.finding((), f"Ray: {message}")
    finally:
        logging.disable(logging.NOTSET)

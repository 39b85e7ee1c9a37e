"""Metrics as a fleet's Prometheus sees them: real nodes, real reports, real scrapes, and the dashboard's queries."""

from __future__ import annotations

import json
import math
import pickle
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from ray.cluster_utils import Cluster

from demo.warts import WartPlan
from encode_pipeline.attempt import attempt_shard
from encode_pipeline.config import EncodeConfig
from encode_pipeline.encode_shard import ShardEncoder
from encode_pipeline.latents.status import STAGES
from encode_pipeline.latents.store import Store
from encode_pipeline.on_ray.metrics import ActorMetrics, FleetMetrics
from encode_pipeline.records import FailedAttempt, ShardReport
from encode_pipeline.run import prepare
from tests.conftest import SIDE

DASHBOARD = json.loads((Path(__file__).parent.parent / "cluster" / "grafana" / "latents.json").read_text())
ON_GPUS_ONLY = {"ray_node_gpus_utilization", "ray_node_gram_used", "ray_node_gram_available"}
"""What Ray exports of nodes with a GPU alone. Where there is none, its own list of metrics is asked instead."""
LIMIT = 120.0
"""Seconds after which what should have shown counts as missing."""
VIEWS = 2
T = TypeVar("T")


def until(look: Callable[[], T | None], what: str) -> T:
    """What a look finds, as soon as it finds something."""
    deadline = time.monotonic() + LIMIT
    while (found := look()) is None:
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.2)
    return found


@dataclass(frozen=True)
class Prometheus:
    """A real one, that scrapes every second."""

    url: str

    def ask(self, path: str, **query: Any) -> Any:
        """Its answer; an error of its own is raised with its words."""
        try:
            with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
                return json.loads(answer.read())["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{query}: {error.read().decode()}") from None

    def series(self, expression: str, since: float | None = None) -> list[dict[str, Any]]:
        """The series of an expression that have a number: now, or at any second since then, as a panel asks."""
        if since is None:
            series = self.ask("/api/v1/query", query=expression)["result"]
            found = [{**one, "values": [one["value"]]} for one in series]
        else:
            span = {"start": since, "end": time.time(), "step": 1}
            found = self.ask("/api/v1/query_range", query=expression, **span)["result"]
        return [one for one in found if any(math.isfinite(float(value)) for _, value in one["values"])]


@dataclass(frozen=True)
class Fleet:
    """Two encoders and a driver that have counted these reports, a failed try and three retries."""

    fingerprint: str
    reports: list[ShardReport]
    driver: FleetMetrics
    endpoints: list[str]
    began: float

    def until(self, look: Callable[[], T | None], what: str) -> T:
        """What a look finds, while the driver's loop goes round: it says each time where it stands."""

        def turn() -> T | None:
            self.driver.encoders(live=2, wanted=3)
            self.driver.shards(waiting=5, running=1, done=2, failed=1)
            return look()

        return until(turn, what)

    def total(self, name: str, label: str | None = None) -> dict[str, float] | float:
        """A metric of this version over all processes, by a label if there is one."""
        sums: defaultdict[str, float] = defaultdict(float)
        for sample in scrape(self.endpoints):
            if sample.name == f"ray_latents_{name}" and sample.labels["version"] == self.fingerprint[:8]:
                sums[sample.labels[label] if label else ""] += sample.value
        return dict(sums) if label else sums[""]


def scrape(endpoints: list[str]) -> list[Sample]:
    """Every sample that the nodes' endpoints give, as any Prometheus would read it."""
    texts = []
    for endpoint in endpoints:
        with urllib.request.urlopen(f"http://{endpoint}/metrics", timeout=10) as answer:
            texts.append(answer.read().decode())
    return [sample for text in texts for family in text_string_to_metric_families(text) for sample in family.samples]


@pytest.fixture(scope="module")
def endpoints() -> Iterator[list[str]]:
    """Of a head and two nodes that say they have a GPU each; metrics are new every second."""
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": {"metrics_report_interval_ms": 1000}}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(num_cpus=1, num_gpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    yield [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes()]
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def prometheus(endpoints: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus | None]:
    binary = shutil.which("prometheus")
    if binary is None:
        yield None
        return
    folder = tmp_path_factory.mktemp("prometheus")
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [{"job_name": "ray", "static_configs": [{"targets": endpoints}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    words = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([binary, *words, f"--web.listen-address={address}"], stderr=log, stdout=log)

    def ready() -> bool | None:
        assert server.poll() is None, (folder / "log").read_text()
        try:
            return urllib.request.urlopen(f"http://{address}/-/ready", timeout=5).status == 200 or None
        except OSError:
            return None

    try:
        until(ready, "Prometheus")
        yield Prometheus(f"http://{address}")
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def outcomes(
    world: Path, warty_tar: tuple[Path, WartPlan], small_vae: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, list[ShardReport | FailedAttempt]]:
    """A version, and what came of a good tar, one with bad samples, the good one once more, and a broken one."""
    folder = tmp_path_factory.mktemp("encoded")
    good = world / "train" / "00000.tar"
    (folder / "broken.tar").write_bytes(good.read_bytes()[:5000])
    config = EncodeConfig(
        vae=str(small_vae),
        source=[str(good), str(warty_tar[0]), str(folder / "broken.tar")],
        store=str(folder / "store"),
        image_size=SIDE,
        views=VIEWS,
        threads=2,
        batch_size=8,
    )
    prepared = prepare(config)
    version = Store(config.store).create(prepared.spec)
    work = ShardEncoder(prepared.vae, version, config)
    first, warty, broken = prepared.sources
    return version.fingerprint, [attempt_shard(source, work) for source in (first, warty, first, broken)]


@pytest.fixture(scope="module")
def fleet(
    endpoints: list[str], prometheus: Prometheus | None, outcomes: tuple[str, list[ShardReport | FailedAttempt]]
) -> Iterator[Fleet]:
    """Two actors that count these outcomes as their own, seen by Prometheus before they begin to."""

    class Encoder:  # a class within a function travels by value
        def __init__(self, fingerprint: str) -> None:
            self.metrics = ActorMetrics(fingerprint)

        def report(self, report: ShardReport) -> None:
            self.metrics.latents(report.commit.encoded * VIEWS)
            self.metrics.shard(report)

        def failed(self, failed: FailedAttempt) -> None:
            self.metrics.failed(failed.blame)

    fingerprint, results = outcomes
    first, warty, again, broken = results
    began = time.time()
    one, two = encoders = [ray.remote(num_gpus=1)(Encoder).remote(fingerprint) for _ in range(2)]
    driver = FleetMetrics(fingerprint, gpus_per_actor=0.5)
    early = {"ray_latents_made_total": 2, "ray_latents_seconds_total": 2 * len(STAGES), "ray_latents_shards": 4}

    def seen() -> bool | None:
        driver.encoders(live=0, wanted=3)
        driver.shards(waiting=9, running=0, done=0, failed=0)
        if prometheus is not None:
            return all(len(prometheus.series(name)) == count for name, count in early.items()) or None
        return early.items() <= Counter(sample.name for sample in scrape(endpoints)).items() or None

    until(seen, f"{early}")
    ray.get([one.report.remote(first), two.report.remote(warty), two.report.remote(again)])
    ray.get(one.failed.remote(broken))
    for why in ("lost", "lost", broken.blame):
        driver.retry(why)
    yield Fleet(fingerprint, [first, warty, again], driver, endpoints, began)
    for encoder in encoders:
        ray.kill(encoder)


def test_a_scrape_gives_what_was_reported(fleet: Fleet) -> None:
    commits = [report.commit for report in fleet.reports if report.won]
    assert len(commits) == 2 and len(fleet.reports) == 3, "one report is of a shard that was done before"
    rejected = sum((Counter(commit.rejected) for commit in commits), Counter())
    seconds: Counter[str] = Counter()
    for commit in commits:
        seconds.update(commit.made_by["seconds"])
    expected = {
        ("made_total", None): sum(report.commit.encoded for report in fleet.reports) * VIEWS,
        ("committed_total", None): sum(commit.encoded for commit in commits) * VIEWS,
        ("rescued_total", None): 0,
        ("samples_read_total", None): sum(commit.read for commit in commits),
        ("samples_encoded_total", None): sum(commit.encoded for commit in commits),
        ("samples_rejected_total", "reason"): dict(rejected),
        ("shards_committed_total", None): 2,
        ("shards_done_by_others_total", None): 1,
        ("bytes_written_total", None): sum(payload.size for commit in commits for payload in commit.payloads),
        ("seconds_total", "stage"): {stage: spent for stage, spent in seconds.items() if spent},
        ("attempts_failed_total", "kind"): {"tar": 1},
        ("retries_total", "why"): {"lost": 2, "tar": 1},
        ("encoders_live", None): 2,
        ("encoders_wanted", None): 3,
        ("gpus_held", None): 1.0,
        ("shards", "state"): {"waiting": 5, "running": 1, "done": 2, "failed": 1},
    }

    def shown(name: str, label: str | None) -> Any:
        total = fleet.total(name, label)
        if isinstance(total, dict):  # what began and has not happened is there, with next to nothing
            return {value: count for value, count in total.items() if count > 1e-200}
        return total

    def differing() -> list[Any]:
        seen = {key: shown(*key) for key in expected}
        return [(key, seen[key], told) for key, told in expected.items() if seen[key] != pytest.approx(told)]

    assert rejected.total() > 5 and len(rejected) > 5, "the tar with bad samples has many kinds of them"
    try:
        fleet.until(lambda: not differing() or None, "what was reported")
    except AssertionError:
        assert not differing()


def queries() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Every query of the dashboard, with its panel, under a name that says where it is."""
    return [
        (f"{panel['id']} {panel['title']}: {target['legendFormat']}", panel, target)
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
    ]


def filled_in(expression: str, fleet: Fleet) -> str:
    """A query as Grafana sends it."""
    values = {"version": fleet.fingerprint[:8], "window": "5m", "gpu_hour_price": "2.49", "__range": "300s"}
    return re.sub(r"\$(\w+)", lambda name: values[name[1]], expression)


def metrics_in(expression: str) -> dict[str, set[str]]:
    """The metrics that a query asks for, each with the labels it is chosen by."""
    selectors = re.findall(r"\b(ray_\w+)(?:\{([^}]*)\})?", expression)
    return {name: set(re.findall(r"(\w+)[=!]", matchers)) for name, matchers in selectors}


def labels_in(target: dict[str, Any]) -> set[str]:
    """The labels that a query groups by, and those that stand in the legend."""
    grouped = ", ".join(re.findall(r"\b(?:by|without|ignoring|on) \(([^)]+)\)", target["expr"]))
    return {*re.findall(r"\w+", grouped), *re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])}


def test_the_dashboard_asks_for_metrics_and_labels_that_there_are(fleet: Fleet) -> None:
    from ray.dashboard.consts import GPU_TAG_KEYS
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    def known() -> dict[str, set[str]] | None:
        labels: defaultdict[str, set[str]] = defaultdict(set)
        for sample in scrape(fleet.endpoints):
            labels[sample.name] |= set(sample.labels)
        for name in ON_GPUS_ONLY - set(labels):
            assert name.removeprefix("ray_") in METRICS_GAUGES
            labels[name] = set(GPU_TAG_KEYS)
        wanted = {name for _, _, target in queries() for name in metrics_in(target["expr"])}
        return labels if wanted <= set(labels) else None

    labels = fleet.until(known, "every metric of the dashboard")
    for name, _, target in queries():
        asked = metrics_in(target["expr"])
        for metric, matched in asked.items():
            assert matched <= labels[metric], f"{name}: {metric}"
        assert labels_in(target) <= set().union(*(labels[metric] for metric in asked)), name


def test_the_dashboard_shows_every_metric_of_ours(fleet: Fleet) -> None:
    shown = {name for _, _, target in queries() for name in metrics_in(target["expr"])}
    ours = {sample.name for sample in scrape(fleet.endpoints) if sample.name.startswith("ray_latents_")}
    assert ours - shown == {"ray_latents_shards_committed_total"}  # the driver's shards say the same


def test_every_query_of_the_dashboard_has_an_answer_in_prometheus(fleet: Fleet, prometheus: Prometheus | None) -> None:
    if prometheus is None:
        pytest.skip("no prometheus here; Debian's package of that name has it")
    here = {sample.name for sample in scrape(fleet.endpoints)}
    waiting = {name: (panel, target) for name, panel, target in queries()}

    def answered() -> bool | None:
        for name, (panel, target) in list(waiting.items()):
            since = None if panel["type"] == "stat" else fleet.began
            series = prometheus.series(filled_in(target["expr"], fleet), since)
            if series or set(metrics_in(target["expr"])) & ON_GPUS_ONLY - here:
                del waiting[name]
        return not waiting or None

    try:
        fleet.until(answered, "an answer to every query")
    finally:
        assert not waiting, f"no data: {list(waiting)}"
    (variable,) = (one for one in DASHBOARD["templating"]["list"] if one["name"] == "version")
    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]
    assert prometheus.ask(f"/api/v1/label/{label}/values", **{"match[]": metric}) == [fleet.fingerprint[:8]]


def test_what_happens_once_is_seen_by_a_rate_too(
    fleet: Fleet, prometheus: Prometheus | None, warty_tar: tuple[Path, WartPlan]
) -> None:
    if prometheus is None:
        pytest.skip("no prometheus here; Debian's package of that name has it")
    (panel,) = (panel for panel in DASHBOARD["panels"] if panel["title"] == "Rejected, by reason")
    query = filled_in(panel["targets"][0]["expr"], fleet)

    def shares() -> dict[str, float] | None:
        found = {one["metric"]["reason"]: float(one["values"][0][1]) for one in prometheus.series(query)}
        return found if any(found.values()) else None

    seen = fleet.until(shares, "rejected samples")
    assert {reason for reason, share in seen.items() if share > 1e-9} == set(warty_tar[1].expected_rejected)


def test_the_dashboard_can_be_imported_and_read() -> None:
    variables = {one["name"] for one in DASHBOARD["templating"]["list"]} | {"__range"}
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) and DASHBOARD["schemaVersion"] <= 39  # Grafana 10.4
    places = Counter(
        (x, y)
        for at in (panel["gridPos"] for panel in panels)
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    )
    assert max(places.values()) == 1 and max(x for x, _ in places) < 24
    for name, panel, target in queries():
        assert panel["description"].endswith(".") and panel["fieldConfig"]["defaults"]["unit"], name
        assert panel["datasource"] == target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, name
        assert set(re.findall(r"\$(\w+)", target["expr"] + panel["description"])) <= variables, name


def test_metrics_outside_of_ray_harm_nothing(outcomes: tuple[str, list[ShardReport | FailedAttempt]]) -> None:
    code = """if True:
        import pickle, sys
        from encode_pipeline.on_ray.metrics import ActorMetrics, FleetMetrics
        actor, driver = ActorMetrics("0" * 16), FleetMetrics("0" * 16, 1.0)
        actor.latents(16)
        actor.shard(pickle.load(sys.stdin.buffer))
        actor.failed("TarError")
        driver.encoders(live=1, wanted=2)
        driver.shards(waiting=1, running=2, done=3, failed=4)
        driver.retry("failed")
    """
    report = pickle.dumps(outcomes[1][0])
    subprocess.run([sys.executable, "-c", code], input=report, check=True, cwd=Path(__file__).parent.parent)

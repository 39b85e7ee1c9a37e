"""The watcher on a worker: what it hears is passed on to Ray once, and what that does to a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray._private.state import state as cluster_state

from cluster.metadata import Aws, Google, Notice
from cluster.spot_notice import Drainer, RayNode, drain_node, main, ray_nodes, the_cloud
from encode_pipeline.config import EncodeConfig
from tests.fleet import ROOT, Run, done, events, settings, write_tars
from tests.machines import Machines, machines
from tests.metadata_server import TROUBLES, MetadataServer, metadata_server
from tests.reckoning import reconcile
from tests.traps import Traps, wait_for


@pytest.fixture
def aws() -> Iterator[MetadataServer]:
    with metadata_server("aws") as server:
        yield server


@pytest.fixture
def gcp() -> Iterator[MetadataServer]:
    with metadata_server("gcp") as server:
        yield server


@pytest.fixture(scope="module")
def head() -> Iterator[Machines]:
    with machines() as cluster:
        yield cluster


@pytest.fixture
def cluster(head: Machines) -> Iterator[Machines]:
    yield head
    head.clear()


@pytest.fixture
def traps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Traps:
    return Traps(monkeypatch, tmp_path)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.metadata.TIMEOUT", 0.2)
    monkeypatch.setattr("cluster.spot_notice.SEARCH_PAUSE", 0.0)


class Command:
    """`python -m cluster.spot_notice`, in a process of its own as on a worker."""

    def __init__(self, folder: Path, *words: str) -> None:
        self._log = folder / "spot_notice.log"
        command = [sys.executable, "-m", "cluster.spot_notice", *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "http_proxy": "http://127.0.0.1:9"}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=environment)

    @property
    def over(self) -> bool:
        return self.process.poll() is not None

    @property
    def end(self) -> object:
        return f"exit {self.process.returncode}\n{self.said}"

    @property
    def said(self) -> str:
        return self._log.read_text()

    def wait_to_hear(self, text: str) -> None:
        wait_for(f"the words {text!r}", lambda: text in self.said, self)

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def test_auto_finds_out_which_cloud_it_is_in(
    aws: MetadataServer,
    gcp: MetadataServer,
    hasty: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # where a watcher sees whether it is the only one
    assert isinstance(the_cloud("auto", aws.url, 1.0), Aws)
    assert isinstance(the_cloud("auto", gcp.url, 1.0), Google)
    with metadata_server("neither") as stranger:
        for trouble in (None, *TROUBLES):
            stranger.trouble = trouble
            assert main(["--metadata-url", stranger.url, "--node-id", "nobody's"]) == 0
            (line,) = capsys.readouterr().out.splitlines()
            assert "neither AWS nor Google Cloud answers" in line


def test_a_server_in_trouble_is_told_of_once_and_watched_on(aws: MetadataServer, tmp_path: Path) -> None:
    """In a process as on a worker: it does without Ray, and a proxy in its environment is not asked."""
    words = ("--cloud", "aws", "--metadata-url", aws.url, "--every", "0.01", "--node-id", "nobody's")
    with Command(tmp_path, *words) as watcher:
        watcher.wait_to_hear("looks for a notice")
        for number, trouble in enumerate(t for t in TROUBLES if t != "hang"):
            aws.trouble = trouble
            before = aws.asked.total()
            wait_for("20 questions", lambda before=before: aws.asked.total() > before + 20, watcher)
            assert watcher.said.count("no clear answer") == number + 1
            aws.trouble = None
            wait_for("its word", lambda n=number: watcher.said.count("answers again") == n + 1, watcher)
        maps = Path(f"/proc/{watcher.process.pid}/maps").read_text()
        assert "_raylet" not in maps and "numpy" not in maps
        with Command(tmp_path, *words) as second:
            second.process.wait()
            assert second.process.returncode == 0 and "another one is watching" in second.said
        aws.interrupt(100)
        watcher.wait_to_hear("no Ray node on this machine")
        before = aws.asked.total()
        wait_for("20 questions", lambda: aws.asked.total() > before + 20, watcher)
        assert watcher.said.count("notice: AWS: terminate") == 1 and "drained" not in watcher.said


@pytest.mark.parametrize(
    "words",
    [
        *(["--every", "0"], ["--every", "nan"], ["--every", "inf"], ["--now", "-1"], ["--now", "inf"]),
        *(["--metadata-url", url] for url in ("169.254.169.254", "http://", "http://here:port")),
        ["--cloud", "moon"],
    ],
)
def test_wrong_words_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(words)
    assert refused.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("python -m cluster.spot_notice: error: ")


def test_without_a_node_there_is_nothing_to_drain(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--now", "100", "--node-id", "nobody's"]) == 0
    assert "no Ray node on this machine" in capsys.readouterr().out


def test_a_disk_without_room_for_its_words_is_no_reason_not_to_drain(aws: MetadataServer, tmp_path: Path) -> None:
    """Encoders fill the disk that its log lies on, and a notice may come just then."""
    words = ("--cloud", "aws", "--metadata-url", aws.url, "--every", "0.01", "--node-id", "nobody's")
    (tmp_path / "spot_notice.log").symlink_to("/dev/full")
    with Command(tmp_path, *words) as watcher:

        def watches_on() -> None:
            before = aws.asked.total()
            wait_for("20 questions", lambda: watcher.over or aws.asked.total() > before + 20)
            assert not watcher.over

        for trouble in TROUBLES[0], None:  # of which there would be something to say
            aws.trouble = trouble
            watches_on()
        aws.interrupt(100)
        watches_on()


def test_a_drain_that_is_refused_says_why() -> None:
    refused = drain_node(RayNode("abcd", "127.0.0.1:9"), 10, "a test")
    assert refused is not None and "Invalid hex ID" in refused


def test_a_drain_is_tried_again_until_the_cluster_answers(
    cluster: Machines, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The head stands still at first. The node has nothing to do, so that it ends as soon as it is drained."""
    monkeypatch.setattr("cluster.spot_notice.PATIENCE", 4.0)
    node = cluster.add()
    assert {RayNode(node.node_id, cluster.address)} == ray_nodes(node.node_id) <= ray_nodes()
    gcs = cluster.head_process("gcs_server")
    os.kill(gcs, signal.SIGSTOP)
    try:
        drainer = Drainer(node.node_id)
        draining = Run(settings(tmp_path), lambda _: drainer.drain(Notice("a test", time.monotonic() + 200)))
        said = ""

        def heard(text: str) -> bool:
            nonlocal said
            said += capsys.readouterr().out
            return text in said

        wait_for("a complaint", lambda: heard("no answer from the cluster"), draining)
    finally:
        os.kill(gcs, signal.SIGCONT)
    assert draining.result() is True
    assert heard("drained, with") and heard("handed back") and said.count("no answer from") == 1
    assert not ray_nodes(node.node_id)


def test_a_node_that_is_still_at_work_when_the_time_is_over(
    cluster: Machines, capsys: pytest.CaptureFixture[str]
) -> None:
    node = cluster.add()
    holder = ray.remote(num_gpus=1, num_cpus=0)(Holder).remote()
    assert ray.get(holder.node.remote()) == node.node_id
    assert main(["--now", "0", "--node-id", node.node_id]) == 0
    assert "the time is over: drained, but still at work" in capsys.readouterr().out
    ray.kill(holder)
    wait_for("the end of the node", lambda: not ray_nodes(node.node_id))


class Holder:
    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()


@pytest.mark.parametrize("how", ["aws", "gcp", "now"])
def test_notice_then_drain_then_work_handed_back(
    how: str,
    cluster: Machines,
    traps: Traps,
    tmp_path: Path,
    aws: MetadataServer,
    gcp: MetadataServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """AWS: what is under way is finished in the two minutes. Else it takes too long, and is given back in time."""
    write_tars(tmp_path / "tars", tars=9)
    config = settings(tmp_path, max_attempts=1)
    begun = traps.set("before-read", "pass", times=None)
    first = traps.set("mid-shard", "hold", "0[0-2]-*", times=3)
    others = traps.set("before-commit", "hold", "0[3-8]-*", times=None)
    leaver = cluster.add()
    run = Run(config)
    held = first.wait(1, run)
    wait_for("three shards begun", lambda: len(begun.met()) == 3, run)
    words = {
        "aws": ["--cloud", "aws", "--metadata-url", aws.url],
        "gcp": ["--cloud", "auto", "--metadata-url", gcp.url],
        "now": ["--now", "25"],
    }[how]
    with Command(tmp_path, *words, "--node-id", leaver.node_id) as watcher:
        if how != "now":
            watcher.wait_to_hear("looks for a notice")
        aws.interrupt(120)
        gcp.say("preempted", "TRUE")
        watcher.wait_to_hear(f"{leaver.node_id}: drained, with")
        wait_for("the driver to hear of it", lambda: "its machine goes away in" in capsys.readouterr().err, run)
        cluster.add()
        others.wait(3, run)
        if how != "aws":
            ends = cluster_state.get_draining_nodes()[leaver.node_id] / 1000
            wait_for("the last moment", lambda: time.time() > ends - 2.0, run)
        first.release()
        watcher.wait_to_hear(f"{leaver.node_id}: handed back")
        assert not ray_nodes(leaver.node_id)
        if how == "now":
            assert watcher.process.wait() == 0
        others.release()
        result = run.result()
        with capsys.disabled():
            print("", *sequence(watcher, config), sep="\n")
        assert watcher.said.count(f"{leaver.node_id}:") == 2
    assert result["ok"] and result["shards"] == {"done": 9, "failed": 0, "done_by_others": 0}
    by_leaver = {mark.shard for mark in begun.met() if mark.process == held[0].process}
    retries = {event["shard"]: event["blame"] for event in events(config, "retry")}
    assert len(by_leaver) == 3
    if how == "aws":
        assert retries == {}
    else:
        assert set(retries) <= by_leaver and set(retries.values()) == {"called_back"}
        again = {mark.shard for mark in begun.met() if mark.process != held[0].process}
        assert set(retries) <= again
    assert done(config) == {mark.shard for mark in begun.met()}
    reconcile(config)


def sequence(watcher: Command, config: EncodeConfig) -> list[str]:
    """What the watcher said and what became of it in the run, in order."""
    kinds = ("encoder up", "draining", "retry", "encoder lost")
    lines = watcher.said.splitlines()  # both begin with the time, in the same form
    for kind in kinds:
        for event in events(config, kind):
            facts = {key: value for key, value in event.items() if key in ("encoder", "shard", "blame", "node")}
            lines.append(f"{event['at']} run: {kind} {facts}")
    return sorted(lines)

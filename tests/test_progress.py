"""What a run tells while it goes on, and what a store tells from its commits alone."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from encode_pipeline.__main__ import VERBS, watch_status
from encode_pipeline.config import StatusRequest
from encode_pipeline.latents.command import main
from encode_pipeline.latents.commit import ShardCommit, SourceShard
from encode_pipeline.latents.status import StatusReader, Tally, moment, time_share
from encode_pipeline.latents.storage import Storage
from encode_pipeline.latents.store import Store, Version
from encode_pipeline.progress import Progress, RunLog, clock_text
from encode_pipeline.records import ShardReport
from encode_pipeline.run import run
from tests.conftest import Configure


def logged(version: Version) -> list[dict[str, Any]]:
    paths = [path for path in version.storage.files("runs") if path.endswith(".jsonl")]
    return [json.loads(line) for path in paths for line in version.storage.read(path).splitlines()]


def test_the_log_in_the_store_says_what_the_console_says(
    configure: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(configure(views=2))
    version = Store(result["store"]).version()
    events = logged(version)
    assert [event["event"] for event in events] == ["shard", "shard", "shard", "end"]
    assert sum(event["read"] for event in events[:3]) == events[-1]["samples"]["read"] == 48
    assert {"input", "decode", "vae", "writer"} <= set(events[0]["seconds"])
    console = capsys.readouterr().err
    assert "shard 3/3  48 encoded, 0 rejected" in console and "latents/s" in console and "time: " in console


def test_a_run_that_breaks_off_says_so(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    from encode_pipeline import run as module

    def broken(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_do", broken)
    config = configure(views=1)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    assert [event["event"] for event in logged(Store(config.store).version())] == ["broken off"]


def test_status_is_counted_from_commits_alone(configure: Configure, capsys: pytest.CaptureFixture[str]) -> None:
    config = configure(views=2)
    run(config)
    version = Store(config.store).version()
    for path in version.storage.files("runs"):
        version.storage.delete(path)
    capsys.readouterr()
    assert main("encode_pipeline", VERBS, ["status", config.store, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["shards"] == {"total": 3, "done": 3, "failed": 0}
    assert told["samples"] == {"read": 48, "encoded": 48, "rejected": 0}
    assert told["latents_per_second"] > 0 and told["seconds_left"] == 0 and not told["sealed"]
    assert sum(told["time_share"].values()) == pytest.approx(1, abs=0.01) and "vae" in told["time_share"]


def test_a_second_look_reads_only_new_commits(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure(views=1, limit=2)
    run(config)
    store = Store(config.store)
    reader = StatusReader(store, store.version())
    assert reader.look().to_dict()["samples"]["read"] == 32
    run(configure(views=1))
    read: list[str] = []
    original = Storage.read

    def watched(self: Storage, path: str) -> bytes:
        read.append(path)
        return original(self, path)

    monkeypatch.setattr(Storage, "read", watched)
    told = reader.look().to_dict()
    assert told["samples"]["read"] == 48 and told["shards"] == {"total": 3, "done": 3, "failed": 0}
    assert len([path for path in read if path.startswith("commits/")]) == 1


def test_watch_follows_a_run_to_its_end(configure: Configure) -> None:
    config = configure(views=2)
    run(configure(views=2, limit=1))
    version = Store(config.store).version()
    from encode_pipeline.sources import find_sources

    version.record_plan(find_sources(config.source))
    looks = watch_status(StatusRequest(store=config.store, watch=True, every=0.05))
    first = next(looks)
    assert first["shards"] == {"total": 3, "done": 1, "failed": 0}
    writer = threading.Thread(target=run, args=(config,))
    writer.start()
    rest = list(looks)  # ends by itself
    writer.join()
    assert rest[-1]["shards"] == {"total": 3, "done": 3, "failed": 0} and rest[-1]["samples"]["encoded"] == 48


def test_watch_prints_an_object_a_line(configure: Configure, capsys: pytest.CaptureFixture[str]) -> None:
    config = configure(views=1, limit=1)
    run(config)
    capsys.readouterr()
    assert main("encode_pipeline", VERBS, ["status", config.store, "--watch", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["shards"]["done"] == 1


def test_lines_come_also_while_a_long_shard_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("encode_pipeline.progress.TICK", 0.2)
    out = io.StringIO()
    with Progress(5, 4, out=out) as progress:
        progress.tell(40)
        threading.Event().wait(2.5)
    assert "shard 0/5" in out.getvalue() and "so far" in out.getvalue()


def test_time_left_is_that_of_the_shards_left(configure: Configure) -> None:
    config = configure(views=1, limit=1)
    run(config)
    (commit,) = Store(config.store).version().commits()
    out = io.StringIO()
    progress = Progress(11, 1, out=out)
    progress.add(ShardReport(commit, won=True))
    assert progress.tally.seconds_left(10, rate=16.0) == 10  # ten shards of sixteen latents
    assert progress.tally.seconds_left(10, rate=None) is None
    assert clock_text(59.6) == "1:00" and clock_text(3723) == "1:02:03"


def finished(began: float, ended: float, latents: int) -> ShardCommit:
    """A commit of a shard that was worked on from then to then."""
    source = SourceShard(uri="/tars/0.tar", size=1)
    made_by = {"began": moment(began), "ended": moment(ended)}
    return ShardCommit(
        fingerprint="f", shard=source.name, attempt="a", source=source, source_sha256="0", read=latents,
        encoded=latents, rejected={}, payloads=(), made_by=made_by,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("spans", "now", "expected"),
    [
        ([(0, 100, 1000)], 100, 10.0),
        ([(0, 100, 1000), (0, 100, 1000), (50, 100, 500)], 100, 25.0),  # beside each other
        ([(0, 100, 1000), (100_000, 100_060, 4000)], 100_060, 4000 / 60),  # resumed a minute ago
        ([(0, 3600, 40_000)], 3700, 40_000 / 3600),  # one shard takes an hour
        ([(0, 100, 1000)], 100_000, None),  # nothing for a day
        ([], 100, None),
    ],
)
def test_the_rate_is_that_of_the_time_that_was_worked(
    spans: list[tuple[float, float, int]], now: float, expected: float | None
) -> None:
    tally = Tally(views=1)
    for span in spans:
        tally.add(finished(*span))
    assert tally.rate(now) == (expected if expected is None else pytest.approx(expected, rel=1e-3))


def test_a_log_that_cannot_be_written_is_said_once_and_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("encode_pipeline.progress.WINDOW", 0.0)
    (tmp_path / "runs").write_text("a file where a folder should be")
    log = RunLog(Storage(tmp_path), "runs/x")
    for number in range(3):
        log.write("shard", {"number": number})
        log.keep()
    (tmp_path / "runs").unlink()
    log.close()
    (path,) = Storage(tmp_path).files("runs/x")  # nothing is lost once it can be written
    assert [json.loads(line)["number"] for line in (tmp_path / path).read_bytes().splitlines()] == [0, 1, 2]
    assert capsys.readouterr().err.count("the log of this run is not complete: ") == 1


def test_watch_goes_on_while_what_was_given_up_on_is_tried_again(
    configure: Configure, world: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tars"
    folder.mkdir()
    whole = (world / "train" / "00000.tar").read_bytes()
    (folder / "0.tar").write_bytes(whole[: len(whole) // 2] + b"?" * (len(whole) - len(whole) // 2))
    config = configure(source=str(folder), views=1)
    assert not run(config)["ok"]
    looks = watch_status(StatusRequest(store=config.store, watch=True, every=0.05))
    assert next(looks)["shards"] == next(looks)["shards"] == {"total": 1, "done": 0, "failed": 1}
    (folder / "0.tar").write_bytes(whole)  # the same size, so the same shard
    assert run(config)["ok"]
    *_, last = looks
    assert last["shards"] == {"total": 1, "done": 1, "failed": 0}


def test_watch_ends_when_what_was_given_up_on_stays_so(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("encode_pipeline.__main__.QUIET", 0.2)
    (tmp_path / "broken.tar").write_bytes(b"?" * 2048)
    config = configure(source=str(tmp_path / "broken.tar"), views=1)
    run(config)
    looks = list(watch_status(StatusRequest(store=config.store, watch=True, every=0.05)))
    assert looks[-1]["shards"] == {"total": 1, "done": 0, "failed": 1} and len(looks) > 3


def test_the_log_keeps_every_line_in_files_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("encode_pipeline.progress.WINDOW", 0.0)
    storage = Storage(tmp_path)
    log = RunLog(storage, "runs/x")
    for number in range(3):
        log.write("shard", {"number": number})
        log.keep()
    log.close()
    lines = [json.loads(storage.read(path)) for path in storage.files("runs/x")]
    assert [line["number"] for line in lines] == [0, 1, 2]


def test_work_beside_the_encoder_is_no_part_of_its_time() -> None:
    assert time_share({"vae": 3.0, "decode": 1.0, "check": 100.0}) == {"vae": 0.75, "decode": 0.25}
    assert time_share({}) == {}


class Clock:
    """What `time.monotonic` says in a test, so that hours pass in no time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("encode_pipeline.progress.time.monotonic", lambda: self.now)

    def pass_hours(self, hours: float) -> None:
        self.now += 3600 * hours


def test_gpu_hours_are_what_was_held_whether_there_was_work_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    progress = Progress(10, 4, out=io.StringIO(), gpus=0.5)
    clock.pass_hours(2)  # waiting for the cluster: nothing is held
    assert progress.gpu_hours == 0 and "gpu_hours" not in progress.summary()
    progress.live(4)
    clock.pass_hours(1)
    progress.live(0)
    clock.pass_hours(5)
    progress.live(8)
    clock.pass_hours(0.25)
    assert progress.gpu_hours == pytest.approx(0.5 * (4 * 1 + 8 * 0.25))
    assert progress.summary()["gpu_hours"] == 3.0 and "cost" not in progress.summary()


def test_what_latents_cost_is_said_on_the_console_and_in_the_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, out = Clock(monkeypatch), io.StringIO()
    progress = Progress(2, 4, out=out, gpus=1.0, gpu_hour_price=2.5)
    progress.live(2)
    clock.pass_hours(0.5)
    assert progress.summary()["cost"] == {"gpu_hours": 1.0, "price": 2.5, "total": 2.5, "per_million_latents": None}
    clock.pass_hours(0.5)
    commit = finished(0, 3600, 100_000).model_copy(update={"made_by": {"seconds": {"vae": 3600.0}}})
    progress.tell(400_000)
    progress.add(ShardReport(commit, won=True))
    assert "$12.50 per million latents (2.00 GPU-hours at $2.5)" in out.getvalue()
    progress.add(ShardReport(commit, won=False))  # another run has paid for this one
    cost = progress.summary()["cost"]
    assert cost == {"gpu_hours": 2.0, "price": 2.5, "total": 5.0, "per_million_latents": 12.5}


def test_on_cpus_nothing_is_said_of_gpus(configure: Configure, capsys: pytest.CaptureFixture[str]) -> None:
    config = configure(views=1, limit=1, gpu_hour_price=2.49)
    words = [f"{key}={getattr(config, key)}" for key in ("vae", "store", "views", "limit", "image_size")]
    words += [f"source={config.source[0]}", "gpu_hour_price=2.49"]
    assert main("encode_pipeline", VERBS, ["run", *words]) == 0
    said = capsys.readouterr()
    events = logged(Store(config.store).version())
    if torch.cuda.is_available():
        assert "GPU-hours at $2.49" in said.out and events[-1]["cost"]["price"] == 2.49
    else:
        assert "GPU" not in said.out + said.err and "$" not in said.out + said.err
        assert not {"gpu_hours", "cost"} & set(events[-1])


def test_a_price_is_a_number_above_nothing_and_changes_no_version(configure: Configure) -> None:
    for wrong in (0, -1, float("inf"), float("nan"), "cheap"):
        with pytest.raises(ValidationError, match="gpu_hour_price"):
            configure(gpu_hour_price=wrong)
    stores = [configure(views=1, limit=1, gpu_hour_price=price) for price in (None, 2.49)]
    assert run(stores[0])["fingerprint"] == run(stores[1])["fingerprint"]


def test_show_run_prints_the_cost_or_else_the_hours(configure: Configure) -> None:
    result = dict(run(configure(views=1, limit=1)))
    show = VERBS["run"].show
    assert show is not None and "GPU" not in show(result)
    assert "4.20 GPU-hours" in show({**result, "gpu_hours": 4.2})
    cost = {"gpu_hours": 4.2, "price": 2.49, "total": 10.458, "per_million_latents": 3.1234}
    assert "$3.12 per million latents (4.20 GPU-hours at $2.49)" in show({**result, "gpu_hours": 4.2, "cost": cost})


def test_several_encoders_are_counted_on_the_console(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    progress = Progress(9, 1, out=out)
    report = ShardReport(finished(0, 1, 16).model_copy(update={"made_by": {"seconds": {}}}), won=True)
    for encoders in (1, 3, 0):
        progress.live(encoders)
        progress.add(report)
    alone, several, none = out.getvalue().splitlines()
    assert "encoders" not in alone and "from 3 encoders" in several and "from 0 encoders" in none


def test_progress_events_of_the_log_say_how_many_encoders_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("encode_pipeline.progress.TICK", 0.0)
    storage, spoken = Storage(tmp_path), threading.Event()

    class Console(io.StringIO):
        def flush(self) -> None:
            spoken.set()

    with Progress(5, 4, RunLog(storage, "runs/x"), Console()) as progress:
        progress.live(3)
        spoken.wait()
    lines = [json.loads(line) for path in storage.files("runs/x") for line in storage.read(path).splitlines()]
    assert lines[0]["event"] == "progress" and lines[0]["encoders"] == 3 and "gpu_hours" not in lines[0]


def test_events_are_lines_for_a_person_and_for_the_log(tmp_path: Path) -> None:
    storage, out = Storage(tmp_path), io.StringIO()
    log = RunLog(storage, "runs/x")
    progress = Progress(5, 4, log, out)
    progress.event("encoder lost", "encoder 3 is gone: node died", encoder=3, why="node died")
    progress.event("encoder up", None, encoder=4, name="vae-4", text="both may be facts, too")
    log.close()
    assert out.getvalue() == "encoder 3 is gone: node died\n"
    (path,) = storage.files("runs/x")
    lost, up = (json.loads(line) for line in storage.read(path).splitlines())
    assert (lost["event"], lost["encoder"], lost["why"]) == ("encoder lost", 3, "node died")
    assert (up["event"], up["encoder"], up["name"]) == ("encoder up", 4, "vae-4")

"""`verify` names the file and the fault, for every kind of damage there is."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from encode_pipeline.latents.command import main
from encode_pipeline.latents.shard_check import READERS
from encode_pipeline.latents.spec import LatentSpec
from encode_pipeline.latents.store import Store, Version
from encode_pipeline.latents.verify import Verdict
from encode_pipeline.verification import telling_verdicts
from tests.conftest import Configure, encode_and_seal
from tests.test_killed import PATIENCE, hear_interrupts
from tests.test_verify_deep import small_store
from tests.test_wrong_input import ROOT, refused


def verify_by_command(store: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, object]]:
    from encode_pipeline.__main__ import VERBS

    capsys.readouterr()
    status = main("encode_pipeline", VERBS, ["verify", str(store), "--json"])
    return status, json.loads(capsys.readouterr().out)


def first_tar(version: Version) -> Path:
    path = version.storage.local_path(version.manifest().column("path").to_pylist()[1])
    assert path is not None
    return path


def flip_a_byte(version: Version, _: Configure) -> tuple[Path, str]:
    tar = first_tar(version)
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1
    tar.write_bytes(data)
    return tar, "is not the committed"


def truncate(version: Version, _: Configure) -> tuple[Path, str]:
    tar = first_tar(version)
    tar.write_bytes(tar.read_bytes()[:-700])
    return tar, "truncated or altered"


def delete(version: Version, _: Configure) -> tuple[Path, str]:
    tar = first_tar(version)
    tar.unlink()
    return tar, "missing"


def edit_a_commit(version: Version, _: Configure) -> tuple[Path, str]:
    path = version.storage.local_path(f"commits/{sorted(version.done())[0]}.json")
    assert path is not None
    content = json.loads(path.read_text())
    content["encoded"] += 1
    content["read"] += 1
    path.write_text(json.dumps(content))
    return path, "edited or damaged"


def copy_from_another_version(version: Version, configure: Configure) -> tuple[Path, str]:
    other = encode_and_seal(configure(store=str(Path(version.storage.root).parent) + "-other", seed=7))
    ours, theirs = first_tar(version), first_tar(other)
    shutil.copyfile(theirs, ours)
    return ours, f"holds latents of version {other.fingerprint}"


def lose_a_commit(version: Version, _: Configure) -> tuple[Path, str]:
    path = version.storage.local_path(f"commits/{sorted(version.done())[0]}.json")
    assert path is not None
    path.unlink()
    return path, "missing: no commit for this shard"


def edit_the_shard_list(version: Version, _: Configure) -> tuple[Path, str]:
    path = version.storage.local_path("shards.txt")
    assert path is not None
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    return path, "does not list the manifest's tars"


def break_the_manifest(version: Version, _: Configure) -> tuple[Path, str]:
    path = version.storage.local_path("manifest.parquet")
    assert path is not None
    data = bytearray(path.read_bytes())
    data[-20] ^= 0xFF  # in the footer, where the schema is
    path.write_bytes(data)
    return path, "damaged"


def swap_two_views(version: Version, _: Configure) -> tuple[Path, str]:
    tar = first_tar(version)
    beside = tar.with_name("view0.tar")
    first, second = tar.read_bytes(), beside.read_bytes()
    tar.write_bytes(first if tar == beside else second)
    return tar, "altered" if len(first) != len(second) else "is not the committed"


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_byte,
        truncate,
        delete,
        edit_a_commit,
        copy_from_another_version,
        lose_a_commit,
        edit_the_shard_list,
        break_the_manifest,
        swap_two_views,
    ],
)
def test_damage_is_named(
    damage: Callable[[Version, Configure], tuple[Path, str]],
    sealed: Version,
    configure: Configure,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = Path(sealed.storage.root).parent
    path, fault = damage(sealed, configure)
    status, verdict = verify_by_command(store, capsys)
    assert status == 1 and verdict["ok"] is False
    problems = verdict["problems"]
    assert isinstance(problems, list) and len(problems) == 1, problems
    assert problems[0]["path"] == str(path)
    assert fault in problems[0]["problem"]


def test_an_untouched_store_is_fine(sealed: Version, capsys: pytest.CaptureFixture[str]) -> None:
    status, verdict = verify_by_command(Path(sealed.storage.root).parent, capsys)
    assert status == 0 and verdict["ok"] is True and verdict["problems"] == []
    assert verdict["checked"] == len(sealed.done()) * (1 + sealed.spec.views)


def test_a_moved_store_is_sealed_again_and_fine(sealed: Version, capsys: pytest.CaptureFixture[str]) -> None:
    from encode_pipeline.__main__ import VERBS

    old = Path(sealed.storage.root).parent
    new = old.rename(old.with_name("moved"))
    status, verdict = verify_by_command(new, capsys)
    assert status == 1 and "seal again" in str(verdict["problems"])
    assert main("encode_pipeline", VERBS, ["seal", str(new)]) == 0
    assert verify_by_command(new, capsys)[0] == 0


def test_an_edited_spec_fails_the_check(sealed: Version, capsys: pytest.CaptureFixture[str]) -> None:
    path = sealed.storage.local_path("spec.json")
    assert path is not None
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    status, verdict = verify_by_command(Path(sealed.storage.root).parent, capsys)
    assert status == 1 and "it was edited" in str(verdict["error"]) and str(path) in str(verdict["error"])


def test_a_missing_commit_is_noticed_before_the_seal_too(
    configure: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    from encode_pipeline.run import run

    config = configure()
    run(config)
    version = Store(config.store).version()
    version.storage.delete(f"commits/{sorted(version.done())[0]}.json")
    status, verdict = verify_by_command(Path(config.store), capsys)
    assert status == 1 and "no commit" in str(verdict["problems"])


def test_wrong_requests_get_one_line(tmp_path: Path) -> None:
    verify = ["encode_pipeline", "verify", str(tmp_path)]
    refused([*verify, "sample=0"], "sample=0: Input should be greater than 0")
    refused([*verify, "sample=-3"], "sample=-3: Input should be greater than 0")
    refused([*verify, "sample=some"], "sample='some': ")
    refused([*verify, "engine=foo"], "engine='foo': Input should be 'local' or 'ray'")
    refused([*verify, "deep=perhaps"], "deep='perhaps': ")
    refused([*verify, "actors=2"], "unknown key 'actors'")
    refused([*verify, "samples=2"], "unknown key 'samples'; did you mean 'sample'?")
    refused([*verify, "engine=local"], "no latent store here")


def test_the_verdict_as_people_read_it(spec: LatentSpec, tmp_path: Path) -> None:
    version = small_store(str(tmp_path / "store"), spec, tmp_path / "scratch", shards=4)
    line = [sys.executable, "-m", "encode_pipeline", "verify", str(tmp_path / "store"), "--deep", "--sample", "2"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=False)
    size = verdict_bytes(version) // 2
    assert done.returncode == 0 and done.stdout == (
        f"16 files of version {version.fingerprint} checked, {size} bytes in 2 of 4 shards read, sample by sample: "
        "all as committed\n"
    )
    assert "verified 4/4 shards, " in done.stderr and done.stderr.rstrip().endswith("0:00 left, 0 problem(s)")
    tar = version.storage.local_path(version.commit(sorted(version.done())[2]).payloads[0].path)
    assert tar is not None
    tar.unlink()
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1 and done.stdout.splitlines()[0] == f"{tar}: missing"
    assert done.stdout.endswith(": 1 problem(s)\n")


def verdict_bytes(version: Version) -> int:
    return sum(payload.size for commit in version.commits() for payload in commit.payloads)


@pytest.mark.parametrize(("shards", "lines"), [(3, 3), (250, 86), (250_000, 112)])
def test_progress_is_a_bounded_number_of_lines(shards: int, lines: int, capsys: pytest.CaptureFixture[str]) -> None:
    tell = telling_verdicts()
    for done in range(1, shards + 1):
        tell(Verdict("f", shards=done), shards)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == lines and said[0].startswith("verified 1/") and f"verified {shards}/{shards}" in said[-1]


def test_an_interrupt_ends_it_with_most_unread(spec: LatentSpec, tmp_path: Path) -> None:
    """The readers are caught in the middle of a payload each, go on once it is all being ended, and read no other."""
    small_store(str(tmp_path / "store"), spec, tmp_path / "scratch", shards=40)
    begun, go_on = tmp_path / "begun", tmp_path / "go-on"
    begun.mkdir()
    code = (
        "import sys, time, uuid; from concurrent.futures import ThreadPoolExecutor; from pathlib import Path\n"
        "from encode_pipeline.__main__ import VERBS, main; from encode_pipeline.latents.storage import Storage\n"
        "plain = Storage.sha256\n"
        "def slow(self, path):\n"
        f"    Path({str(begun)!r}, uuid.uuid4().hex).touch()\n"
        f"    while not Path({str(go_on)!r}).exists(): time.sleep(0.01)\n"
        "    return plain(self, path)\n"
        "Storage.sha256 = slow\n"
        "plain_end = ThreadPoolExecutor.shutdown\n"
        "def end(self, **how):\n"
        f"    Path({str(go_on)!r}).touch()\n"
        "    plain_end(self, **how)\n"
        "ThreadPoolExecutor.shutdown = end\n"
        "sys.exit(main('encode_pipeline', VERBS, sys.argv[1:]))"
    )
    line = [sys.executable, "-c", code, "verify", str(tmp_path / "store")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(line, stderr=subprocess.PIPE, env=environment, cwd=ROOT, preexec_fn=hear_interrupts)
    try:
        until = time.monotonic() + PATIENCE
        while len(list(begun.iterdir())) < READERS:
            assert process.poll() is None and time.monotonic() < until, "nothing was read"
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130 and said.decode().splitlines()[-1].startswith("interrupted; ")
    assert len(list(begun.iterdir())) == READERS

"""Where tars come from: found by every kind of address, listed cheaply, read once, refused if they changed."""

from __future__ import annotations

import hashlib
import json
import os
import tracemalloc
from pathlib import Path

import pytest

from encode_pipeline.config import EncodeConfig
from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.commit import ShardCommit, SourceShard
from encode_pipeline.latents.reader import LatentShard
from encode_pipeline.latents.store import Store
from encode_pipeline.places import WORTH_A_LISTING
from encode_pipeline.read import read_samples
from encode_pipeline.records import Sample
from encode_pipeline.run import run
from encode_pipeline.sources import SourceChanged, SourceUnreadable, find_sources, open_source
from tests.conftest import Configure
from tests.tars import END, tar_of

TAR = tar_of([(f"{number}.{part}", b"x" * 900) for number in range(9) for part in ("jpg", "txt")])


def fill(folder: Path, count: int) -> Path:
    """A folder as img2dataset writes it: a tar, a table and statistics for each shard."""
    folder.mkdir(parents=True)
    for number in range(count):
        for ending in (".tar", ".parquet", "_stats.json"):
            (folder / f"{number:05d}{ending}").write_bytes(END)
    return folder


def names(*patterns: str, limit: int | None = None) -> list[str]:
    return [source.uri.rpartition("/")[2].removesuffix(".tar") for source in find_sources(patterns, limit)]


def read_through(source: SourceShard) -> tuple[int, str]:
    """How many samples a source gives, and the hash of it."""
    with open_source(source) as tar:
        count = sum(isinstance(item, Sample) for item in read_samples(tar, source.uri, source.size))
        return count, tar.sha256()


# --- local addresses ----------------------------------------------------------------------------------


def test_every_kind_of_local_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(tmp_path / "d", 4)
    (folder / "._00000.tar").write_bytes(b"")  # left by a Mac
    (folder / "deeper.tar").mkdir()
    monkeypatch.chdir(tmp_path)
    every = ["00000", "00001", "00002", "00003"]
    assert names(str(folder)) == names("d") == names(f"file://{folder}") == names("d/0*.tar") == every
    assert names("d/{00002..00000}.tar") == ["00002", "00001", "00000"]
    assert names("d/0000[12].tar", "d/00000.tar") == ["00001", "00002", "00000"]
    assert names("d/00003.tar", "./d/../d/00003.tar", "d") == ["00003", "00000", "00001", "00002"]
    assert names("**/00001.tar") == ["00001"]
    assert names("d", limit=2) == every[:2] and names("d/{00000..00999}.tar", limit=3) == every[:3]
    assert [source.size for source in find_sources(["d"])] == [len(END)] * 4


def test_list_files(tmp_path: Path) -> None:
    folder = fill(tmp_path / "d", 6)
    listed = tmp_path / "shards.list"
    listed.write_text(f"# first\n\n  {folder}/00005.tar  \nd/{{00000..00001}}.tar\r\nd/*3.tar\n{folder}/00005.tar\n")
    assert names(str(listed)) == ["00005", "00000", "00001", "00003"]
    assert names(f"a={listed}", limit=2) == ["00005", "00000"]
    (tmp_path / "blank.txt").write_text("# nothing\n")
    (tmp_path / "picture.txt").write_bytes(b"\xff\xd8")
    (tmp_path / "pipes.txt").write_text("pipe:cat /etc/passwd\n")
    for name, says in {
        "blank": "no tar files found there",
        "picture": "not UTF-8 text",
        "none": "no such list file",
        "pipes": "not a kind of address that is read here",
    }.items():
        with pytest.raises(RequestError, match=says):
            find_sources([str(tmp_path / f"{name}.txt")])


@pytest.mark.parametrize("count", [5, WORTH_A_LISTING + 5])
def test_missing_tars_are_counted_and_named_in_one_line(tmp_path: Path, count: int) -> None:
    folder = fill(tmp_path / "d", count)
    for number in (1, 2, 3, 4):
        (folder / f"{number:05d}.tar").unlink()
    pattern = f"{folder}/{{00000..{count - 1:05d}}}.tar"
    with pytest.raises(RequestError) as error:
        find_sources([pattern])
    first = ", ".join(f"{folder}/{number:05d}.tar" for number in (1, 2, 3))
    assert str(error.value) == f"{pattern}: 4 of {count} tars are not there: {first}, …"
    with pytest.raises(RequestError, match=r"gone/0.tar: no such tar or folder$"):
        find_sources([f"{folder}/gone/0.tar"])


def test_a_pipe_is_no_tar(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "0.tar")
    with pytest.raises(RequestError, match=r"0.tar: neither a file nor a folder"):
        find_sources([str(tmp_path)])


@pytest.mark.parametrize("how", ["{d}", "{d}/*.tar", "{d}/{{00000..19999}}.tar", "{d}.txt"])
def test_many_tars_take_little_memory(tmp_path_factory: pytest.TempPathFactory, how: str) -> None:
    folder = tmp_path_factory.getbasetemp() / "many"
    if not folder.exists():
        folder.mkdir()
        for number in range(20_000):
            (folder / f"{number:05d}.tar").touch()
        folder.with_suffix(".txt").write_text("".join(f"{folder}/{number:05d}.tar\n" for number in range(20_000)))
    tracemalloc.start()
    sources = find_sources([how.format(d=folder)])
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(sources) == 20_000
    assert kept < 400 * 20_000 and peak < 1200 * 20_000  # at 250,000: 100 MB and 300 MB


# --- collections ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"laion": "{d}/one", "coyo": ["{d}/two/00000.tar", "{d}/two/00001.tar"]},
        ["laion={d}/one", "coyo={d}/two"],
        [{"laion": "{d}/one"}, "coyo={d}/two"],
    ],
)
def test_sources_with_names(tmp_path: Path, small_vae: Path, given: object) -> None:
    fill(tmp_path / "one", 2), fill(tmp_path / "two", 2)
    given = json.loads(json.dumps(given).replace("{d}", str(tmp_path)))
    config = EncodeConfig(source=given, store="s", vae=str(small_vae))  # type: ignore[arg-type]
    sources = find_sources(config.source)
    assert [source.collection for source in sources] == ["laion", "laion", "coyo", "coyo"]
    plain = find_sources([str(tmp_path / "one")])
    assert [source.name for source in plain] == [source.name for source in sources[:2]]
    assert EncodeConfig(**config.model_dump()) == config


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"la ion": "x"}, "la ion: the name of a collection is made of letters, digits, - and _"),
        ({"laion": None}, "laion: names no address"),
        ({"laion": {"deep": "x"}}, "laion: names no address"),
        ({"laion": []}, "names nothing to encode"),
        ("[a=/x/{0..3}.tar, b=/y]", "put each address in it that holds braces into quotes"),
    ],
)
def test_sources_with_wrong_names(given: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        EncodeConfig(source=given, store="s", vae="v")  # type: ignore[arg-type]


def test_a_tar_in_two_collections(tmp_path: Path) -> None:
    folder = fill(tmp_path / "d", 1)
    for one, other, says in (("laion=", "coyo=", "laion and coyo"), ("", "coyo=", "none and coyo")):
        with pytest.raises(RequestError, match=rf"00000.tar: named by two collections, {says}"):
            find_sources([f"{one}{folder}", f"{other}{folder}/*.tar"])
    assert names(f"laion={folder}", f"laion={folder}/00000.tar") == ["00000"]
    with pytest.raises(RequestError, match="laion=: names no address"):
        find_sources(["laion="])


def test_collections_are_kept_with_every_sample_and_in_plans(configure: Configure, world: Path) -> None:
    tars = sorted((world / "train").glob("*.tar"))
    config = configure(source=[f"laion={tars[0]}", str(tars[1])], views=1)
    assert run(config)["ok"]
    version = Store(config.store).version()
    assert sorted(source.collection for source in version.planned().values()) == ["", "laion"]
    for commit in version.commits():
        expected = {str(tars[0]): "laion", str(tars[1]): None}[commit.source.uri]
        (payload,) = commit.views
        path = version.storage.local_path(payload.path)
        assert path is not None and commit.source.collection == (expected or "")
        with LatentShard(path, version.spec) as shard:
            assert {shard.metadata(index).get("collection") for index in range(len(shard))} == {expected}


def test_commits_say_the_collection_only_where_there_is_one() -> None:
    for collection in ("", "coyo"):
        source = SourceShard("/a.tar", 5, collection=collection)
        commit = ShardCommit(
            fingerprint="f", shard=source.name, attempt="a", source=source, source_sha256="0", read=0, encoded=0,
            rejected={}, payloads=(), made_by={},
        )  # fmt: skip
        written = commit.to_json()
        assert (b"collection" in written) == bool(collection)
        assert ShardCommit.from_json(written, "here") == commit


# --- reading --------------------------------------------------------------------------------------------


def test_a_source_is_hashed_as_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(TAR)
    (source,) = find_sources([str(tmp_path)])
    assert read_through(source) == (9, hashlib.sha256(TAR).hexdigest())
    with open_source(source) as tar:
        tar.read(1000)
        with pytest.raises(ValueError, match="0.tar: read to byte 1000 only"):
            tar.sha256()


def test_a_source_that_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    path.write_bytes(TAR)
    (source,) = find_sources([str(path)])
    path.write_bytes(TAR + bytes(512))
    with pytest.raises(SourceChanged, match=rf"0.tar: {len(TAR) + 512} bytes now, {len(TAR)} when the run was planned"):
        read_through(source)
    path.write_bytes(TAR)
    with open_source(source) as tar, path.open("ab") as file:
        file.write(b"more")
        file.flush()
        with pytest.raises(SourceChanged, match=f"0.tar: goes on after the {len(TAR)} bytes"):
            list(read_samples(tar, source.uri, source.size))
    path.write_bytes(TAR)
    with open_source(source) as tar:
        os.truncate(path, 5000)
        with pytest.raises(OSError, match=f"0.tar: only 5000 bytes arrived of {len(TAR)}"):
            list(read_samples(tar, source.uri, source.size))
    path.unlink()
    with pytest.raises(SourceUnreadable):
        read_through(source)

"""Picture sets: every layout gives the same thing, and whatever would make a set smaller in silence is an error."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from encode_pipeline.latents.command import CheckFailed, RequestError
from eval import picture_set
from eval.pictures import Picture, open_pictures
from tests.conftest import Bucket
from tests.picture_sets import (
    CLASSES,
    Members,
    all_of,
    captioned,
    class_list,
    fails,
    named,
    numbered,
    picture,
    wds,
    write,
)
from tests.tars import tar_of

# --- CLIP_benchmark's layout ------------------------------------------------------------------------


def test_a_classification_set_of_clip_benchmark(tmp_path: Path) -> None:
    root = wds(tmp_path / "set", numbered(2, "s0", 0) + numbered(0, "s1", 1), numbered(1, "s2", 2))
    pictures = open_pictures(str(root))
    assert (pictures.layout, pictures.names, pictures.templates) == ("wds", [*CLASSES], ["a photo of a {c}.", "a {c}"])
    assert len(pictures) == 3 and [part.size for part in pictures.parts] == [2, 1]
    found = all_of(pictures)
    assert found == [Picture(f"s{n}", picture(n), label, ()) for n, label in enumerate((2, 0, 1))]
    pictures.require_labels()
    with pytest.raises(RequestError, match=r"/test/0\.tar: s0: no caption: neither a \.txt nor caption in a \.json$"):
        pictures.require_captions()
    assert all_of(open_pictures(str(root / "test"))) == found, "the split may be named too"


def test_a_retrieval_set_of_clip_benchmark(tmp_path: Path) -> None:
    root = wds(tmp_path, captioned("a cat\n a small cat \n\n", "s0", 0) + captioned("a dog", "s1", 1), classes=())
    pictures = open_pictures(str(root))
    assert [picture.captions for picture in all_of(pictures)] == [("a cat", "a small cat"), ("a dog",)]
    assert [picture.label for picture in all_of(pictures)] == [None, None]
    pictures.require_captions()
    with pytest.raises(RequestError, match=r"0\.tar: s0: no label: neither a \.cls nor class_name in a \.json$"):
        pictures.require_labels()


def test_one_picture_without_a_label_is_not_passed_over(tmp_path: Path) -> None:
    root = wds(tmp_path, [*numbered(0, "s0"), ("s1.png", picture(1))])
    with pytest.raises(RequestError, match=r"0\.tar: s1: no label"):
        open_pictures(str(root)).require_labels()


def test_large_tars_are_several_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = [member for number in range(7) for member in numbered(number % 3, f"s{number}", number)]
    root = wds(tmp_path, members, numbered(0, "s7", 7))
    whole = all_of(open_pictures(str(root)))
    monkeypatch.setattr(picture_set, "MOST_IN_A_PART", 3)
    monkeypatch.setattr("eval.picture_tars.MOST_IN_A_PART", 3)
    pictures = open_pictures(str(root))
    assert [part.size for part in pictures.parts] == [3, 3, 1, 1]
    assert len({part.name for part in pictures.parts}) == 4
    assert all_of(pictures) == whole
    assert list(pictures.read(pictures.parts[1])) == whole[3:6]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (numbered("two", "s9"), "s9: its .cls is not the number of a class: 'two'"),
        (numbered("-1", "s9"), "s9: its .cls is not the number of a class: '-1'"),
        ([("s9.cls", b"1")], "s9: no picture; its parts are cls"),
        ([*numbered(1, "s9"), ("s9.jpg", b"x")], "s9: two pictures, png and jpg"),
        ([*numbered(1, "s9"), ("s9.cls", b"2")], "s9: two members cls"),
        (numbered(1, "s9") + numbered(1, "b") + numbered(1, "s9"), "s9: comes twice, with others between"),
        ([*numbered(1, "s9"), ("s9.txt", b"\xff")], "s9: its .txt is not UTF-8"),
    ],
)
def test_a_bad_sample_is_named(tmp_path: Path, members: Members, message: str) -> None:
    root = wds(tmp_path, numbered(0, "a"), members)
    fails(root, f"{root}/test/1.tar: {message}", CheckFailed)


def test_a_number_beyond_the_classes_is_refused(tmp_path: Path) -> None:
    root = wds(tmp_path, numbered(3, "s0"))
    fails(root, f"{root}/test/0.tar: s0: class 3 is not one of the 3 in {root}/classnames.txt")
    (root / "classnames.txt").unlink()
    fails(root, f"{root}/test/0.tar: s0: its class is a number, and no list has its name; say classes=DIR")
    other = write(tmp_path / "other", class_list((*CLASSES, "fish")))
    assert all_of(open_pictures(str(root), other))[0].label == 3


def test_a_damaged_tar_is_named(tmp_path: Path) -> None:
    root = wds(tmp_path, numbered(0, "s0"), numbered(1, "s1"))
    tar = root / "test" / "1.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:2000])
    fails(root, f"{tar}: cut short", CheckFailed)
    tar.write_bytes(whole[: len(whole) - 10240])
    with pytest.raises(CheckFailed, match=r"/1\.tar: .*(cut short|empty file)"):
        open_pictures(str(root))
    tar.write_bytes(b"\x1f\x8b" + whole)
    fails(root, f"{tar}: not a tar: looks like gzip", CheckFailed)


def test_tars_are_as_many_as_the_set_says(tmp_path: Path) -> None:
    root = wds(tmp_path, numbered(0, "s0"), numbered(1, "s1"))
    (root / "test" / "nshards.txt").write_text("3\n")
    fails(root, f"{root}/test/2.tar: no such tar, and {root}/test/nshards.txt says 3")
    (root / "test" / "nshards.txt").write_text("1\n")
    fails(root, f"{root}/test/1.tar: one tar too many: {root}/test/nshards.txt says 1")
    (root / "test" / "nshards.txt").write_text("some\n")
    fails(root, f"{root}/test/nshards.txt: not a number")
    (root / "test" / "nshards.txt").write_text("2\n")
    (root / "dataset_type.txt").write_text("multilabel\n")
    fails(root, f"{root}/dataset_type.txt: multilabel: pictures of several classes each are not evaluated here")


def test_empty_sets_are_refused(tmp_path: Path) -> None:
    root = wds(tmp_path / "wds", [])
    fails(root, f"{root}: no picture in 1 tars")
    write(tmp_path / "none", {"test/nshards.txt": "0"})
    fails(tmp_path / "none", f"{tmp_path}/none: no picture in 0 tars")


def test_a_set_in_a_bucket_is_the_same_set(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = [member for number in range(4) for member in numbered(number % 3, f"s{number}", number)]
    root = wds(tmp_path, members, numbered(1, "s4", 4))
    for path in root.rglob("*.*"):
        bucket.client.upload_file(str(path), bucket.name, f"cars/{path.relative_to(root)}")
    monkeypatch.setattr(picture_set, "MOST_IN_A_PART", 3)
    monkeypatch.setattr("eval.picture_tars.MOST_IN_A_PART", 3)
    local, remote = open_pictures(str(root)), open_pictures(f"{bucket.url}/cars")
    assert all_of(remote) == all_of(local)
    assert (remote.identity, remote.names, remote.parts) == (local.identity, local.names, local.parts)
    bucket.client.delete_object(Bucket=bucket.name, Key="cars/test/1.tar")
    fails(f"{bucket.url}/cars", f"{bucket.url}/cars/test/1.tar: no such tar")


@pytest.fixture
def file_server(tmp_path: Path) -> Iterator[str]:
    """The test's folder on a web server that gives whole files only, and lists nothing of use."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_set_on_a_web_server_is_the_same_set(
    file_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a server cannot jump to the middle of a tar, where a part may begin."""
    members = [member for number in range(5) for member in numbered(number % 3, f"s{number}", number)]
    root = wds(tmp_path / "cars", members, numbered(1, "s5", 5))
    monkeypatch.setattr(picture_set, "MOST_IN_A_PART", 2)
    monkeypatch.setattr("eval.picture_tars.MOST_IN_A_PART", 2)
    local, remote = open_pictures(str(root)), open_pictures(f"{file_server}/cars")
    assert [part.size for part in remote.parts] == [2, 2, 1, 1] and remote.identity == local.identity
    assert all_of(remote) == all_of(local)
    (root / "test" / "nshards.txt").write_text("3")
    fails(f"{file_server}/cars", f"{file_server}/cars/test/2.tar: no such tar, and {file_server}/cars/test/nshards.txt")
    fails(f"{file_server}/boats", f"{file_server}/boats: no picture set there; looked for")
    tar = open_pictures(f"{file_server}/cars/test/1.tar", root)
    assert (tar.layout, len(tar)) == ("tars", 1)


# --- tars whose samples say their class --------------------------------------------------------------


def test_the_demos_held_out_pictures(world: Path) -> None:
    pictures = open_pictures(str(world / "test"))
    assert (pictures.layout, len(pictures), len(pictures.names), len(pictures.templates)) == ("tars", 48, 48, 8)
    found = all_of(pictures)
    assert sorted(picture.label for picture in found if picture.label is not None) == [*range(48)]
    assert all(len(picture.captions) == 1 and picture.image[:2] == b"\xff\xd8" for picture in found)
    pictures.require_labels()
    pictures.require_captions()


def test_without_a_list_the_labels_are_the_classes(tmp_path: Path) -> None:
    tar = tmp_path / "some.tar"
    tar.write_bytes(tar_of(named("cat", "a") + named("bird", "b") + named("cat", "c")))
    pictures = open_pictures(str(tar))
    assert pictures.names == ["bird", "cat"] and [picture.label for picture in all_of(pictures)] == [1, 0, 1]
    assert pictures.templates[0] == "itap of a {c}." and len(pictures.templates) == 7


def test_a_label_outside_the_class_list_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"0.tar": tar_of(named("cat", "a") + named("cow", "b")), **class_list()})
    fails(tmp_path, f"{tmp_path}/0.tar: b: class_name 'cow' is not in {tmp_path}/classnames.txt")
    write(tmp_path, class_list(("cat", "cow", "cow")))
    fails(tmp_path, f"{tmp_path}/0.tar: b: class_name 'cow' names two classes of {tmp_path}/classnames.txt")
    other = write(tmp_path / "other", class_list(("cow", "cat")))
    assert [picture.label for picture in all_of(open_pictures(str(tmp_path), other))] == [1, 0]


# --- all of them ------------------------------------------------------------------------------------


def test_no_known_layout(tmp_path: Path, world: Path) -> None:
    looked = "looked for test/nshards.txt (a data set of CLIP_benchmark), tars whose samples have class_name"
    fails(world, f"{world}: pictures in no known layout; {looked}")
    fails(tmp_path / "nowhere", f"{tmp_path}/nowhere: no picture set there; {looked}")
    write(tmp_path, {"readme.txt": "x", "x.tar": tar_of(named("cat", "a")), "cat/a.png": picture(0)})
    fails(tmp_path / "readme.txt", f"{tmp_path}/readme.txt: no picture set there; {looked}")
    fails(tmp_path, f"{tmp_path}: both tars and class folders; name one of them")
    fails(tmp_path / "y.tar", f"{tmp_path}/y.tar: no such tar or folder")


def test_a_set_is_known_by_what_it_holds(tmp_path: Path) -> None:
    root = write(tmp_path / "a", {"cat/a.png": picture(0), "dog/b.png": picture(1)})
    moved = Path(shutil.copytree(root, tmp_path / "b"))
    before = open_pictures(str(root)).identity
    assert open_pictures(str(moved)).identity == before
    (moved / "cat" / "a.png").rename(moved / "cat" / "c.png")
    renamed = open_pictures(str(moved)).identity
    write(moved, {"dog/d.png": picture(2)})
    assert len({before, renamed, open_pictures(str(moved)).identity}) == 3
    plain = write(tmp_path / "plain", {"cat/a.bmp": picture(0, format="BMP")})
    before = open_pictures(str(plain)).identity
    write(plain, {"cat/a.bmp": picture(1, format="BMP")})  # as many bytes
    assert open_pictures(str(plain)).identity != before
    tars = wds(tmp_path / "tars", numbered(0, "s0"))
    before = open_pictures(str(tars)).identity
    (tars / "test" / "0.tar").write_bytes(tar_of(numbered(1, "s0")))
    assert open_pictures(str(tars)).identity != before

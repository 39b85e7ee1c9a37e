"""docs/scale.md says what its arithmetic says, and the arithmetic asks for as much as a server counts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import fsspec
import pytest

from benchmarks import requests, scale
from benchmarks.documents import with_tables
from benchmarks.object_store import ObjectStore, object_store
from benchmarks.pictures import PictureSet, write_tars
from benchmarks.reader import NoTokens
from benchmarks.scale_plan import DTYPES, Plan, ScaleConfig
from demo.report_machine import ROOT
from encode_pipeline.config import EncodeConfig
from encode_pipeline.estimate import PlanRequest, estimate
from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.commit import SourceShard
from encode_pipeline.latents.storage import Storage
from encode_pipeline.run import run
from encode_pipeline.sources import open_source
from tests.conftest import SIDE, Configure, encode_and_seal
from train.config import TrainConfig
from train.data import open_data

DOC = ROOT / "docs" / "scale.md"


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with object_store() as store:
        yield store


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan(ScaleConfig())


def in_kinds(counted: Counter[str]) -> Counter[str]:
    """As they are billed: an upload in parts is begun, ended and sent by requests that cost what a PUT does."""
    kinds: Counter[str] = Counter()
    for kind, number in counted.items():
        kinds["PUT" if kind.startswith(("PUT", "POST")) else kind] += number
    return kinds


def test_the_document_holds_the_tables_of_today(plan: Plan) -> None:
    text = DOC.read_text(encoding="utf-8")
    assert with_tables(text, scale.tables(plan)) == text, "run: python -m benchmarks scale write=docs/scale.md"


def test_a_document_without_a_place_for_a_table_is_refused(plan: Plan) -> None:
    with pytest.raises(RequestError, match="places for"):
        with_tables("<!-- table: whole -->\n<!-- end -->", scale.tables(plan))


def test_a_shard_asks_a_server_for_what_is_reckoned(server: ObjectStore, tmp_path: Path) -> None:
    """Of runs over one shard and over three: what both have in common is the run's own."""
    bucket, fs = server.bucket(), fsspec.filesystem("s3")
    counted = []
    for number in (1, 3):
        for tar in write_tars(tmp_path / str(number), PictureSet(number, 2, 96)):
            fs.put_file(str(tar), f"{bucket}/{number}/{tar.name}")
        config = EncodeConfig(
            vae="pixels",
            posterior="mean",
            source=(f"{bucket}/{number}",),
            store=f"{bucket}/store{number}",
            views=4,
            image_size=SIDE,
            threads=1,
        )
        counted.append(in_kinds(server.asked_by(lambda config=config: run(config))))
    one, three = counted
    shard = requests.requests_of_a_shard(source_bytes=10_000, tar_bytes=20_000, views=4)
    assert three - one == Counter({kind: 2 * number for kind, number in shard.items()})


@pytest.mark.parametrize("mebibytes", [1, 18, 99, 101])
def test_a_large_tar_goes_up_and_comes_back_in_as_many_requests(
    server: ObjectStore, tmp_path: Path, mebibytes: int
) -> None:
    file = tmp_path / "view0.tar"
    file.write_bytes(bytes(mebibytes << 20))
    storage, sha256 = Storage(server.bucket()), hashlib.sha256(file.read_bytes()).hexdigest()

    assert in_kinds(server.asked_by(lambda: storage.publish(file, "view0.tar", sha256))) == requests.uploaded(
        mebibytes << 20
    )


def test_a_large_source_tar_comes_in_as_many_requests(server: ObjectStore, tmp_path: Path) -> None:
    size = 40 << 20
    address = f"{server.bucket()}/source.tar"
    fsspec.filesystem("s3").pipe_file(address, bytes(size))
    source = SourceShard(address, size)

    def read() -> None:
        with open_source(source) as tar:
            tar.drain()

    assert in_kinds(server.asked_by(read)) == requests.read(size) + Counter(HEAD=1)


def test_every_machine_that_trains_copies_every_shard(
    server: ObjectStore, configure: Configure, tmp_path: Path
) -> None:
    """Two machines with half of each batch: what docs/scale.md says breaks first."""
    bucket = server.bucket()
    version = encode_and_seal(configure(store=f"{bucket}/store", views=1))
    tars = version.manifest().column("size").to_pylist()
    assert len(tars) == 3
    for number, rows in enumerate((range(8), range(8, 16))):
        cache = tmp_path / f"machine{number}"
        values = {"model": "latent-vit-demo", "data": f"{bucket}/store", "out": tmp_path, "cache": cache}
        data = open_data(TrainConfig(**values, batch_size=16, steps=3, workers=0), NoTokens())
        assert sum(len(batch.latents_bchw) for batch in data.batches(0, 3, rows)) == 24
        assert sorted(path.stat().st_size for path in cache.rglob("*.tar")) == sorted(tars)


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_agrees_with_the_estimate_of_a_plan(plan: Plan, dtype: Literal["float16", "int8"]) -> None:
    images, price, keeping = plan.config.images, plan.config.gpu_hour_price, plan.config.terabyte_month_price
    other = estimate(
        PlanRequest(
            estimate=True, images=images, gpu_hour_price=price, terabyte_month_price=keeping, latent_dtype=dtype
        )
    )
    assert plan.gpu_hours == pytest.approx(other["gpu_hours"], rel=1e-3)
    assert plan.store_bytes(dtype) == pytest.approx(other["store_bytes"], rel=3e-3)  # but for the padding in tars


def test_a_latent_in_int8_is_half_of_one_in_float16(plan: Plan) -> None:
    """But for headers: 16,384 bytes less, and 32 of scales and a longer header more, in blocks of 512."""
    assert plan.sample_bytes("float16") - plan.sample_bytes("int8") == 16384


def test_requests_are_reckoned_by_the_size_of_tars() -> None:
    small, large = (requests.uploaded(size << 20) for size in (99, 360))
    assert small["PUT"] == 1 and large["PUT"] == 8 + 2 and large["GET"] == 22


def test_twice_the_training_gpus_copy_four_times_as_much(plan: Plan) -> None:
    twice = Plan(plan.config.model_copy(update={"training_gpus": 256}))
    model = "latent-vit-b-8"
    assert twice.copied_bytes(model, "int8") == pytest.approx(4 * plan.copied_bytes(model, "int8"))
    enough = plan.trains_from(model, "int8", scale.S3_READS)
    there = Plan(plan.config.model_copy(update={"training_gpus": round(enough)}))
    assert there.copying_gets(model, "int8") == pytest.approx(scale.S3_READS, rel=0.02)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"format": 2, "machine": {}, "benchmarks": {}}', "has no benchmarks / gpu"),
        ('{"format": 2, "machine": {}, "benchmarks": {"gpu": 3}}', "has no benchmarks / gpu"),
        ("{}", "not a record"),
        ("{", "not JSON"),
    ],
)
def test_a_record_without_a_number_is_named(tmp_path: Path, content: str, said: str) -> None:
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        (tmp_path / path.name).write_text(content)
    with pytest.raises(RequestError, match=f"gpu-h200.json: {said}"):
        Plan(ScaleConfig(results=tmp_path))

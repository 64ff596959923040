"""Commands and records with a shard set at a URL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import fsspec
import pytest
from click.testing import CliRunner
from s3_server import NEEDS_S3
from tiny_runs import make_run, make_shards

from mstl.cli.inspect import command as inspect
from mstl.cli.store_options import cache_options
from mstl.cli.training_options import as_arguments, training_options
from mstl.cli.verify import command as verify
from mstl.evaluation.evaluate import evaluate_run
from mstl.job import Request, plan_job, record
from mstl.runs import open_run, write_record
from shards import cache_room
from shards.errors import MstlError
from shards.remote import upload
from shards.schema import Manifest

URL = "memory://somewhere/set"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("sets") / "set"
    return folder, make_shards(folder)


@pytest.fixture(autouse=True)
def _place(original: tuple[Path, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The set at URL, an empty cache, and a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MSTL_CACHE", str(tmp_path / "cache"))
    upload(original[0], URL)
    yield
    cache_room._held.clear()
    fsspec.filesystem("memory").store.clear()


REQUEST = Request(stage="finetune", model="resnet14-attn0", init_from="none", shards=URL, out=Path("runs/one"))


def brought(cache: Path) -> list[str]:
    return sorted(f"{path.parent.name}/{path.name}" for path in cache.rglob("*.*") if path.suffix in (".tar", ".idx"))


def test_a_job_brings_the_splits_it_trains_on_and_records_the_url(original: tuple[Path, Manifest]) -> None:
    job = plan_job(REQUEST)
    assert brought(Path("cache")) == ["train/000000.idx", "train/000000.tar", "val/000000.idx", "val/000000.tar"]
    assert (job.url, job.tars, job.origin, job.manifest) == (URL, None, URL, original[1])
    body = record(job, world_size=1, device="CPU", carry=None)
    assert body["shards"]["path"] == URL
    write_record(job.out, {**body, "status": "interrupted"})
    assert open_run(job.out).shards == URL
    # The same set from its folder, or by way of another cache, is the same job.
    for same in (replace(REQUEST, shards=original[0]), replace(REQUEST, cache=Path("other"))):
        assert plan_job(same).previous is not None
    assert brought(Path("other")) == brought(Path("cache"))


def test_a_finished_job_and_a_refused_one_bring_no_tars() -> None:
    other = replace(REQUEST, cache=Path("empty"))
    job = plan_job(REQUEST)
    write_record(job.out, {**record(job, world_size=1, device="CPU", carry=None), "status": "finished"})
    assert plan_job(other).finished
    with pytest.raises(MstlError, match="it holds another run"):
        plan_job(replace(other, seed=9))
    assert brought(Path("empty")) == []


def test_secrets_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Guarded(fsspec.get_filesystem_class("memory")):  # type: ignore[misc]
        protocol = "guarded"

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return "/somewhere/set" + path.partition("host/set")[2] if "host/set" in path else path

    fsspec.register_implementation("guarded", Guarded, clobber=True)
    job = plan_job(replace(REQUEST, shards="guarded://me:secret@host/set"))
    text = json.dumps(record(job, world_size=1, device="CPU", carry=None))
    assert "guarded://host/set" in text and "secret" not in text


def test_a_limit_reaches_the_cache() -> None:
    with pytest.raises(MstlError, match=r"the limit is .*\(1,000 bytes\)"):
        plan_job(replace(REQUEST, cache_limit=1000))


def test_a_run_is_evaluated_from_the_url_of_its_record(
    original: tuple[Path, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, manifest = original
    local = make_run(tmp_path / "local", folder, manifest)
    remote = make_run(tmp_path / "remote", Path("x"), manifest)
    body = json.loads((remote / "run.json").read_text())
    body["shards"]["path"] = URL
    write_record(remote, body)
    found = evaluate_run(remote, split="test", batch=4)
    same = evaluate_run(local, split="test", batch=4)
    assert found["metrics"] == same["metrics"] and found["shards"]["path"] == URL
    predictions = [(run / "evaluation/test/predictions.csv").read_bytes() for run in (local, remote)]
    assert predictions[0] == predictions[1] and len(predictions[0]) > 100
    wanted = [f"{split}/000000.{suffix}" for split in ("test", "val") for suffix in ("idx", "tar")]
    assert brought(Path("cache")) == wanted  # the operating point is chosen on val
    # The set at the URL is another one by now.
    make_shards(tmp_path / "changed", seed=5)
    upload(tmp_path / "changed", URL, force=True)
    with pytest.raises(MstlError, match=f"shard set {URL}: it has changed since run"):
        evaluate_run(remote, split="test")


def test_verify_reads_a_url() -> None:
    result = CliRunner().invoke(verify, [URL])
    assert (result.exit_code, result.stdout) == (0, "3 shards, 30 samples, all as written\n")
    fsspec.filesystem("memory").rm_file("/somewhere/set/val/000000.tar")
    result = CliRunner().invoke(verify, [URL])
    assert result.stdout.splitlines() == ["val/000000.tar: it is missing"]
    assert isinstance(result.exception, MstlError) and result.exception.what == f"shard set {URL}"
    assert not Path("cache").exists()


def test_inspect_says_what_it_will_fetch(original: tuple[Path, Manifest]) -> None:
    total = sum(shard.bytes for shards in original[1].splits.values() for shard in shards)
    val = sum(shard.bytes for shard in original[1].shards("val"))
    result = CliRunner().invoke(inspect, [URL, "--split", "val"])
    assert result.exit_code == 0, result.output
    assert f"({val:,} bytes) of tars into" in result.stderr and "bytes) of tars" not in result.stdout
    assert f"({total - val:,} bytes) of tars" in CliRunner().invoke(inspect, [URL]).stderr
    assert "Fetching" not in CliRunner().invoke(inspect, [URL]).stderr
    assert "Fetching" not in CliRunner().invoke(inspect, [str(original[0])]).stderr


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("1000", 1000), ("200GB", 200 * 10**9), ("1.5 TiB", 3 * 2**39), ("5m", 5 * 10**6), ("64KiB", 2**16), ("0", 0)],
)
def test_sizes(text: str, size_bytes: int) -> None:
    @click.command()
    @cache_options
    def show(cache: Path | None, cache_limit: int | None) -> None:
        click.echo(f"{cache!r} {cache_limit}")

    assert CliRunner().invoke(show, ["--cache-limit", text]).output == f"None {size_bytes}\n"
    for wrong in ("many", "5 XB", "-3", "5iB", "1..2GB"):
        result = CliRunner().invoke(show, ["--cache-limit", wrong])
        assert result.exit_code == 2 and "is no size" in result.output, wrong


def test_the_ranks_get_the_url_and_the_cache_as_they_were_given() -> None:
    given: dict[str, object] = {}

    @click.command()
    @training_options
    def parse(**options: object) -> None:
        given.update(options)

    words = ["--stage", "finetune", "--shards", "s3://b/set/", "--cache", "here", "--cache-limit", "2GB"]
    parse.main(words, standalone_mode=False)
    assert (given["shards"], given["cache"], given["cache_limit"]) == ("s3://b/set", Path("here"), 2 * 10**9)
    first = dict(given)
    parse.main(as_arguments(first), standalone_mode=False)
    assert given == first
    assert "s3://b/set" in as_arguments(first)


@NEEDS_S3
def test_s3_is_read_directly_unless_a_cache_is_named(
    original: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs
    from s3_server import s3_server

    with s3_server() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("bucket")
        upload(original[0], "s3://bucket/set")
        request = replace(REQUEST, shards="s3://bucket/set")
        assert plan_job(request).tars == "s3://bucket/set"
        assert brought(Path("cache")) == ["train/000000.idx", "val/000000.idx"]
        assert plan_job(replace(request, cache=Path("named"))).tars is None
        assert "train/000000.tar" in brought(Path("named"))
        s3fs.S3FileSystem().pipe_file("bucket/set/train/000000.tar", b"other")
        with pytest.raises(MstlError, match=r"s3://bucket/set/train/000000\.tar: it has 5 bytes, the manifest says"):
            plan_job(request)
    s3fs.S3FileSystem.clear_instance_cache()

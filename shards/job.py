"""Writing one shard: read, check and store each image, then a record that lets a repeated build skip the shard."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from shards.check import Checked, Refused, read_and_check
from shards.encode import stored_image
from shards.errors import MstlError
from shards.files import aside_name, sha256_file, write_atomic
from shards.index import format_index
from shards.parallel import count
from shards.schema import Shard
from shards.sources.listing import Item
from shards.tally import Counts
from shards.tar import SampleTar

RECORDS_NAME = ".records"
CHECKSUM_NAME = "~crc32"  # sorts behind every name
_COMPACT = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
_COUNT_EVERY = 16  # images between two looks at the shared counters


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardJob:
    """Everything that decides the bytes of one shard; picklable, so any process can write it.

    entries: key in the tar and item, in the order of the shard. first_id: sample id of the first one that is stored.
    classes: the names of the labels among them.
    decode: check images by decoding them in full, else by their headers alone. allowed: images of the whole build that
    may be refused. write: whether a shard that is missing or damaged is written, or only told.
    """

    folder: str
    split: str
    number: int
    first_id: int
    entries: tuple[tuple[str, Item], ...]
    source: str
    modality: str
    classes: Mapping[int, str]
    resize: int | None
    quality: int
    decode: bool
    allowed: int
    write: bool

    @property
    def name(self) -> str:
        """Split and number, such as train/000007."""
        return f"{self.split}/{self.number:06d}"

    @property
    def decodes(self) -> bool:
        """Whether images are decoded in full before they are stored; what may be resized must not fail there."""
        return self.decode or self.resize is not None

    def digest(self) -> str:
        """SHA-256 of everything that decides the bytes of the shard, but for the content of the images."""
        content = [
            self.split, self.number, self.first_id, self.source, self.modality, sorted(self.classes.items()),
            self.resize, self.quality, self.decode,
            [(key, item.label, item.patient, item.origin, item.blob.size) for key, item in self.entries],
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What became of a job.

    shard: None when every image was refused. refused: key, origin and reason. samples: label and SHA-256 of the source
    image, sample by sample. stamps: of every image of the job when it was read, refused ones included.
    deep: images of 16 bits.
    """

    shard: Shard | None
    refused: tuple[dict[str, str], ...]
    samples: tuple[tuple[int, str], ...]
    stamps: tuple[int, ...]
    deep: int


def write_shard(job: ShardJob) -> Written | None:
    """Write the shard, or recognise it as written before; tar and index appear under their names only when whole.

    None when it is not there and is not to be written. Raises MstlError when more images are refused than the whole
    build may lose, and when the disk refuses.
    """
    folder = Path(job.folder)
    record = folder / RECORDS_NAME / f"{job.split}-{job.number:06d}.json"
    try:
        finished = _read_record(record, job)
        if finished is not None:
            count(Counts(skipped=len(job.entries)))
        elif job.write:
            finished = _write(folder, job)
            shard = None if finished.shard is None else asdict(finished.shard)
            about = {field.name: getattr(finished, field.name) for field in fields(finished)}  # asdict copies it all
            write_atomic(record, json.dumps({"digest": job.digest(), **about, "shard": shard}).encode())
    except OSError as error:
        raise MstlError(
            f"shard {job.name} in {folder}",
            why=f"it cannot be written ({error})",
            remedy="Make room or mend the disk and run the same command again; finished shards are kept",
        ) from error
    return finished


def _read_record(record: Path, job: ShardJob) -> Written | None:
    """What a record tells, when it is of this job, its files are still those written, and the images are still so."""
    if not record.exists():
        return None
    try:
        body = json.loads(record.read_bytes())
        if body["digest"] != job.digest():
            return None
        shard = None if body["shard"] is None else Shard(**body["shard"])
        samples = tuple((int(label), str(sha256)) for label, sha256 in body["samples"])
        written = Written(
            shard=shard, refused=tuple(body["refused"]), samples=samples, stamps=tuple(map(int, body["stamps"])),
            deep=int(body["deep"]),
        )  # fmt: skip
        files = () if shard is None else ((shard.path, shard.sha256), (shard.index, shard.index_sha256))
        for path, sha256 in files:
            place = Path(job.folder) / path
            if not place.is_file() or sha256_file(place) != sha256:
                return None
        return written if _images_stand(job, written) else None
    except (ValueError, TypeError, KeyError):  # damaged: the shard is written again
        return None


def _images_stand(job: ShardJob, written: Written) -> bool:
    """Whether the images are still those a record was made of.

    One that was written again since is compared by its digest; one that was refused may have been mended.
    """
    refused = {line["key"] for line in written.refused}
    digests = iter(written.samples)
    for (key, item), stamp in zip(job.entries, written.stamps, strict=True):
        sha256 = None if key in refused else next(digests)[1]
        if sha256 is not None and _stamp(item) == stamp:
            continue
        _, found = read_and_check(item.blob, decode=job.decodes)
        if (None if isinstance(found, Refused) else found.sha256) != sha256:
            return False
    return True


def _stamp(item: Item) -> int:
    try:
        return item.blob.stamp()
    except OSError:  # reading it will tell
        return 0


def _write(folder: Path, job: ShardJob) -> Written:
    path, index_path = f"{job.name}.tar", f"{job.name}.idx"
    aside = aside_name(folder / path)
    refused: list[dict[str, str]] = []
    samples: list[tuple[int, str]] = []
    stamps = tuple(_stamp(item) for _, item in job.entries)  # before reading: a later change is then noticed
    try:
        with aside.open("wb") as file:
            tar = SampleTar(file)
            deep = _fill(tar, job, samples, refused)
            tar.close()
            file.flush()
            os.fsync(file.fileno())
        if not samples:
            return Written(shard=None, refused=tuple(refused), samples=(), stamps=stamps, deep=0)
        index = format_index(tar.index).encode()
        write_atomic(folder / index_path, index)
        aside.replace(folder / path)
    finally:
        aside.unlink(missing_ok=True)
    shard = Shard(
        path=path,
        index=index_path,
        samples=len(samples),
        first_id=job.first_id,
        bytes=tar.size_bytes,
        sha256=tar.sha256,
        index_sha256=hashlib.sha256(index).hexdigest(),
    )
    return Written(shard=shard, refused=tuple(refused), samples=tuple(samples), stamps=stamps, deep=deep)


def _fill(tar: SampleTar, job: ShardJob, samples: list[tuple[int, str]], refused: list[dict[str, str]]) -> int:
    """Write the samples, note them and the refused ones; returns how many are of 16 bits."""
    images = size_bytes = told = deep = 0
    for key, item in job.entries:
        data, found = read_and_check(item.blob, decode=job.decodes)
        if isinstance(found, Refused):
            refused.append({"key": key, "origin": item.origin, "reason": found.reason})
            if len(refused) > job.allowed:
                raise too_many(refused, job.allowed)
        else:
            tar.add(key, _components(job, key, item, data, found, sample_id=job.first_id + len(samples)))
            samples.append((item.label, found.sha256))
            deep += found.mode.startswith("I;16")
        images, size_bytes = images + 1, size_bytes + len(data)
        if images == _COUNT_EVERY:
            count(Counts(images, size_bytes, len(refused) - told))
            images, size_bytes, told = 0, 0, len(refused)
    count(Counts(images, size_bytes, len(refused) - told))
    return deep


def too_many(refused: list[dict[str, str]], allowed: int) -> MstlError:
    """The error that ends a build which loses too many images."""
    reasons = "; ".join(f"{line['origin']}: {line['reason']}" for line in refused[:3])
    return MstlError(
        "too many images cannot be used",
        why=f"at least {len(refused)} were refused, {allowed} are allowed; {reasons}",
        remedy="Mend or remove them, or allow more with --max-bad; finished shards are kept",
    )


def _components(
    job: ShardJob, key: str, item: Item, data: bytes, found: Checked, *, sample_id: int
) -> dict[str, bytes]:
    """Extension → bytes of one sample. `i64` is little-endian int64 [sample_id, label], which DALI reads as numbers."""
    ext, image = stored_image(data, found, resize=job.resize, quality=job.quality, lossy=job.modality == "natural")
    about = {
        "class_name": job.classes[item.label],
        "format": found.format,
        "height": found.height,
        "key": key,
        "label": item.label,
        "modality": job.modality,
        "mode": found.mode,
        "origin": item.origin,
        "patient": item.patient,
        "sha256": found.sha256,
        "source": job.source,
        "split": job.split,
        "stored_sha256": found.sha256 if image is data else hashlib.sha256(image).hexdigest(),
        "width": found.width,
    }
    return {
        ext: image,
        "cls": str(item.label).encode(),
        "json": with_checksum(about),
        "i64": struct.pack("<2q", sample_id, item.label),
    }


def with_checksum(about: dict[str, Any]) -> bytes:
    """The JSON of a sample, ending in a CRC-32 of what comes before: it tells `mstl verify` whose text is damaged."""
    text = _COMPACT.encode(about)[:-1].encode()
    return text + f',"{CHECKSUM_NAME}":{zlib.crc32(text)}}}'.encode()

"""Writing one shard: a tar and its index, finished by a record that lets a repeated build skip it."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import asdict, dataclass
from pathlib import Path

from shards.check import Checked
from shards.encode import stored_image
from shards.errors import MstlError
from shards.files import sha256_file, write_atomic
from shards.index import format_index
from shards.schema import Shard
from shards.sources.listing import Item
from shards.tar import SampleTar

RECORDS_NAME = ".records"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A sample to write: where it comes from, its key in the tar, and what checking it found."""

    item: Item
    key: str
    checked: Checked


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardJob:
    """Everything that decides the bytes of one shard; picklable, so any process can write it."""

    folder: str
    split: str
    number: int
    first_id: int
    entries: tuple[Entry, ...]
    source: str
    modality: str
    classes: tuple[str, ...]
    resize: int | None
    quality: int

    def digest(self) -> str:
        """SHA-256 of everything that decides the bytes of the shard."""
        content = [
            self.split, self.number, self.first_id, self.source, self.modality, self.classes, self.resize, self.quality,
            [
                (entry.key, entry.item.label, entry.item.patient, entry.item.origin, asdict(entry.checked))
                for entry in self.entries
            ],
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def write_shard(job: ShardJob) -> Shard:
    """Write the shard, or recognise it as written before; tar and index appear under their names only when whole.

    Raises MstlError when an image is no longer what was checked, and when the disk refuses.
    """
    folder = Path(job.folder)
    record = folder / RECORDS_NAME / f"{job.split}-{job.number:06d}.json"
    try:
        finished = _read_record(record, job)
        if finished is None:
            finished = _write(folder, job)
            write_atomic(record, json.dumps({"digest": job.digest(), "shard": asdict(finished)}).encode())
    except OSError as error:
        raise MstlError(
            f"shard {job.split}/{job.number:06d} in {folder}",
            why=f"it cannot be written ({error})",
            remedy="Make room or mend the disk and run the same command again; finished shards are kept",
        ) from error
    return finished


def _read_record(record: Path, job: ShardJob) -> Shard | None:
    """The shard a record tells of, when it is of this job and its files are still those written; else None."""
    if not record.exists():
        return None
    try:
        body = json.loads(record.read_bytes())
        shard = Shard(**{**body["shard"], "class_counts": tuple(body["shard"]["class_counts"])})
        of_this_job = body["digest"] == job.digest()
    except (ValueError, TypeError, KeyError):  # damaged: the shard is written again
        return None
    files = ((shard.path, shard.sha256), (shard.index, shard.index_sha256))
    whole = of_this_job and all(
        (Path(job.folder) / path).is_file() and sha256_file(Path(job.folder) / path) == sha256 for path, sha256 in files
    )
    return shard if whole else None


def _write(folder: Path, job: ShardJob) -> Shard:
    path, index_path = f"{job.split}/{job.number:06d}.tar", f"{job.split}/{job.number:06d}.idx"
    aside = folder / f"{path}.{os.getpid()}.tmp"
    counts = [0] * len(job.classes)
    with aside.open("wb") as file:
        tar = SampleTar(file)
        for sample_id, entry in enumerate(job.entries, start=job.first_id):
            tar.add(entry.key, _components(job, entry, sample_id))
            counts[entry.item.label] += 1
        tar.close()
        file.flush()
        os.fsync(file.fileno())
    index = format_index(tar.index).encode()
    write_atomic(folder / index_path, index)
    aside.replace(folder / path)
    return Shard(
        path=path,
        index=index_path,
        samples=len(job.entries),
        first_id=job.first_id,
        bytes=tar.size_bytes,
        sha256=tar.sha256,
        index_sha256=hashlib.sha256(index).hexdigest(),
        class_counts=tuple(counts),
    )


def _components(job: ShardJob, entry: Entry, sample_id: int) -> dict[str, bytes]:
    """Extension → bytes of one sample. `i64` is little-endian int64 [sample_id, label], which DALI reads as numbers."""
    item, checked = entry.item, entry.checked
    ext, image = stored_image(
        _read_checked(entry), checked, resize=job.resize, quality=job.quality, lossy=job.modality == "natural"
    )
    about = {
        "class_name": job.classes[item.label],
        "height": checked.height,
        "key": entry.key,
        "label": item.label,
        "modality": job.modality,
        "origin": item.origin,
        "patient": item.patient,
        "sha256": checked.sha256,
        "source": job.source,
        "split": job.split,
        "width": checked.width,
    }
    return {
        ext: image,
        "cls": str(item.label).encode(),
        "json": json.dumps(about, sort_keys=True, separators=(",", ":")).encode(),
        "i64": struct.pack("<2q", sample_id, item.label),
    }


def _read_checked(entry: Entry) -> bytes:
    blob = entry.item.blob
    why = "it is not the image that was checked"
    try:
        data = blob.read()
    except OSError as error:
        data, why = b"", str(error)
    if hashlib.sha256(data).hexdigest() != entry.checked.sha256:
        raise MstlError(
            f"image {blob.name}",
            why=f"it changed while the shards were written: {why}",
            remedy="Let the source rest and run the same command again with --force, which starts anew",
        )
    return data

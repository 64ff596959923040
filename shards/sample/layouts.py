"""Writes drawn images in the layouts in which ImageNet, COVIDx and COVID19-CT are downloaded."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from shards.sample import ct, cxr, natural
from shards.sample.paint import encode, stream

Advance = Callable[[], None]

_CT_COLUMNS = (
    "File name", "Patient ID", "Age", "Gender", "Location", "Medical history", "Time", "Severity", "Other diseases",
    "DOI", "Captions", "", "",
)  # fmt: skip
_CT_SPLITS = ("train", "val", "test")
_PATIENTS_OF_EIGHT = (0, 1, 2, 2, 3, 4, 4, 4)


def _patients(images: int) -> Iterator[tuple[int, int]]:
    """(patient, number within the patient) of every image: of eight images some patients own one, some two or three."""
    for index in range(images):
        block, place = divmod(index, 8)
        within = _PATIENTS_OF_EIGHT[place]
        yield 5 * block + within, place - _PATIENTS_OF_EIGHT.index(within)


def write_imagenet(folder: Path, seed: int, classes: int, counts: tuple[int, int], advance: Advance) -> None:
    """ILSVRC2012: a tar of class tars for training, and `val/<wnid>/` folders; counts are images per class."""
    train, val = counts
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w", format=tarfile.USTAR_FORMAT) as outer:
        for label, (wnid, _) in enumerate(natural.CLASSES[:classes]):
            class_tar = io.BytesIO()
            with tarfile.open(fileobj=class_tar, mode="w", format=tarfile.USTAR_FORMAT) as inner:
                for index in range(train):
                    jpeg = encode(natural.draw(seed, label, (0, index)), "JPEG")
                    _add_to_tar(inner, f"{wnid}_{index + 1}.JPEG", jpeg)
                    advance()
            _add_to_tar(outer, f"{wnid}.tar", class_tar.getvalue())
    for label, (wnid, _) in enumerate(natural.CLASSES[:classes]):
        class_folder = folder / "val" / wnid
        class_folder.mkdir(parents=True)
        for index in range(val):
            number = index * len(natural.CLASSES) + label + 1
            jpeg = encode(natural.draw(seed, label, (1, index)), "JPEG")
            (class_folder / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(jpeg)
            advance()


def write_covidx(folder: Path, seed: int, counts: tuple[int, int], advance: Advance) -> None:
    """COVIDx: `data/{train,test}/` and lists of `patient file class source`; counts are images per class."""
    for split, (name, images) in enumerate(zip(("train", "test"), counts, strict=True)):
        (folder / "data" / name).mkdir(parents=True)
        lines = []
        for label, class_name in enumerate(cxr.CLASSES):
            for patient, number in _patients(images):
                drawn = cxr.draw(seed, label, (split, label, patient), number)
                patient_id = f"{1 + split}{1 + label}{patient:04d}"
                suffix = "png" if drawn.form == "PNG" else "jpg"
                file_name = f"{class_name.lower()}-{patient_id}-{number}.{suffix}"
                (folder / "data" / name / file_name).write_bytes(encode(drawn.image, drawn.form, drawn.quality))
                lines.append(f"{patient_id} {file_name} {class_name} sample\n")
                advance()
        (folder / f"{name}_COVIDx.txt").write_text("".join(lines))


def write_covid19_ct(folder: Path, seed: int, counts: tuple[int, int, int], advance: Advance) -> None:
    """UCSD COVID-CT: zips, split lists and patient tables; counts are images per class; true boxes in lung_boxes.json.

    A box is (x0, y0, x1, y1) in pixels of the file, x1 and y1 exclusive: the lungs as drawn, diseased parts included.
    """
    boxes: dict[str, tuple[int, int, int, int]] = {}
    (folder / "Images-processed").mkdir(parents=True)
    (folder / "Info").mkdir()
    for label, class_name in enumerate(ct.CLASSES):
        lists = folder / "Data-split" / class_name
        lists.mkdir(parents=True)
        rows: list[tuple[str, str, int]] = []
        with zipfile.ZipFile(folder / "Images-processed" / f"CT_{class_name}.zip", "w") as archive:
            for split, (split_name, images) in enumerate(zip(_CT_SPLITS, counts, strict=True)):
                names = []
                for patient, number in _patients(images):
                    drawn = ct.draw(seed, label, (split, label, patient), number)
                    suffix = "png" if drawn.form == "PNG" else "jpg"
                    serial = 1000 * split + patient + 1
                    stem = f"2020.03.{serial:08d}-p{7 + patient % 20}-{serial}" if label else str(serial)
                    names.append(f"{stem}%{number}.{suffix}")
                    data = encode(drawn.image, drawn.form, drawn.quality)
                    _add_to_zip(archive, f"CT_{class_name}/{names[-1]}", data)
                    boxes[names[-1]] = drawn.lung_box
                    rows.append((names[-1], f"Patient {serial}" if label else f"crawled_patient_{serial}", split))
                    advance()
                (lists / f"{split_name}CT_{class_name}.txt").write_text("".join(f"{name}\n" for name in names))
        _write_table(folder / "Info" / f"{class_name}-CT-MetaInfo.csv", seed, label, rows)
    (folder / "lung_boxes.json").write_text(json.dumps(boxes, indent=0, sort_keys=True) + "\n")


def _write_table(path: Path, seed: int, label: int, rows: Sequence[tuple[str, str, int]]) -> None:
    """The patient table of a class: the real columns of each, other facts about invented patients."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        if not label:
            table.writerow(["", "image name", "patient id"])
            table.writerows([number, name, patient] for number, (name, patient, _) in enumerate(rows))
            return
        table.writerow(_CT_COLUMNS)
        for name, patient, split in rows:
            rng = stream(seed, 4, split, int(patient.split()[-1]))
            facts = [int(rng.integers(24, 86)), str(rng.choice(["M", "F"])), "synthetic", "", "", "", "", ""]
            table.writerow([name, patient, *facts, "Synthetic axial CT slice with ground-glass opacities", "", ""])


def _add_to_tar(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a member without a time or an owner, so that equal data are equal archives."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def _add_to_zip(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    """Add a member with a fixed time and owner, stored as it is, so that equal data are equal archives."""
    member = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    member.create_system = 3
    member.external_attr = 0o644 << 16
    archive.writestr(member, data)

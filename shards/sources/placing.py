"""Label, patient and split of scans that lie anywhere below a root: from a table, or from the folders they lie in."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from shards.errors import MstlError
from shards.schema import SPLITS
from shards.sources.labels import Labels, Row, read_labels
from shards.sources.listing import first_few

UNLABELLED = "unlabelled"
PLACES_LAYOUT = "<class>/… or train/<class>/…, val/<class>/…, test/<class>/…, or --labels, or any place without classes"


@dataclass(frozen=True, slots=True)
class Places:
    """Where scans belong. rows: origin of a scan → its row; a scan that has none is left out."""

    classes: tuple[str, ...]
    rows: Mapping[str, Row]
    carve_val: bool
    notes: tuple[str, ...]


def visible_files(root: Path) -> tuple[list[tuple[str, Path]], list[str]]:
    """(relative path with /, path) of every file below a root, sorted, and notes; hidden ones are skipped.

    Links are followed, but no folder is listed twice: notes name the links that lead to one that is listed already.
    Raises OSError for a folder that cannot be read.
    """
    seen: dict[tuple[int, int], str] = {}
    found: list[Path] = []
    again: list[str] = []
    for folder, names, files in os.walk(root, followlinks=True, onerror=_raise):
        stat, name = Path(folder).stat(), Path(folder).relative_to(root).as_posix()
        first = seen.setdefault((stat.st_dev, stat.st_ino), name)
        if first != name:  # a link back to where we came from, or a second way in
            again.append(f"{name} (it is {'the root' if first == '.' else first})")
            names.clear()
            continue
        names[:] = sorted(name for name in names if not name.startswith("."))
        found += [Path(folder) / name for name in files if not name.startswith(".")]
    notes = (
        [f"{len(again)} links to folders that are listed already were left out: {first_few(again)}"] if again else []
    )
    return [(path.relative_to(root).as_posix(), path) for path in sorted(found)], notes


def _raise(error: OSError) -> None:
    raise error  # os.walk would leave the folder out in silence


def place(root: Path, origins: Sequence[str], table: Path | None, files: Collection[str]) -> Places:
    """Give every usable scan its class and split. files: the origins of all files there, usable or not.

    With a table, by the line of its file or of the nearest folder around it. Else by folders: train, val and test at
    the top if there is a train, and below them (or at the top) one folder per class; where files lie outside such
    folders, all are of one class, "unlabelled". Raises MstlError for lines of the table that match no file and for
    classes of val or test that train has not.
    """
    return _by_table(root, origins, read_labels(table), files) if table else _by_folders(root, origins)


def left_out_notes(reasons: Iterable[tuple[str, str]]) -> list[str]:
    """One note for every reason why files are left out, from pairs of origin and reason ("are ...")."""
    origins: dict[str, list[str]] = defaultdict(list)
    for origin, reason in reasons:
        origins[reason].append(origin)
    return [
        f"{len(names)} files {reason} and were left out: {first_few(names)}"
        for reason, names in sorted(origins.items())
    ]


def refuse_empty(source: str, root: Path, count: int, notes: Sequence[str], layout: str) -> None:
    """Raise MstlError with the notes when nothing usable is left."""
    if not count:
        raise MstlError(
            f"source {source} in {root}",
            why="it has nothing that can be used" + "".join(f"; {note}" for note in notes),
            remedy=f"Expected there: {layout}",
        )


def refuse_missing(labels: Labels, root: Path, missing: Sequence[str], what: str) -> None:
    """Raise MstlError when lines of a table match nothing."""
    if missing:
        raise MstlError(
            f"--labels {labels.path}",
            why=f"{len(missing)} of {len(labels.rows)} paths are no {what} in {root}: {first_few(missing)}",
            remedy="Paths are relative to --root; correct them, or delete the lines",
        )


def unlisted_note(count: int, what: str) -> list[str]:
    """What to say of files that stand in no line of the table."""
    return [f"{count} {what} stand in no line of --labels and were left out"] if count else []


def _by_table(root: Path, origins: Sequence[str], labels: Labels, files: Collection[str]) -> Places:
    there = {path for origin in files for path in (origin, *map(str, PurePosixPath(origin).parents))}
    refuse_missing(labels, root, [path for path in labels.rows if path not in there], "files or folders of files")
    found = {origin: labels.find(origin) for origin in origins}
    rows = {origin: labels.rows[path] for origin, path in found.items() if path is not None}
    notes = unlisted_note(len(origins) - len(rows), "usable files")
    used = set(found.values())
    idle = [path for path in labels.rows if path not in used]
    if idle:
        notes.append(f"{len(idle)} lines of --labels hold for no file that can be used: {first_few(idle)}")
    return Places(labels.classes, rows, labels.carve_val, tuple(notes))


def rows_by_class(root: Path, found: Mapping[str, tuple[str, str]]) -> tuple[tuple[str, ...], dict[str, Row]]:
    """Classes and rows of images from what is found of each: split and class name. The classes are those of train.

    Raises MstlError for classes of val or test that train has not.
    """
    classes = tuple(sorted({name for split, name in found.values() if split == "train"}))
    label_of = {name: label for label, name in enumerate(classes)}
    split_of_unknown = {name: split for split, name in found.values() if name not in label_of}
    if split_of_unknown:
        unknown = sorted(split_of_unknown)
        raise MstlError(
            f"{split_of_unknown[unknown[0]]} classes in {root}",
            why=f"train does not have {first_few(unknown)}, or nothing in them",
            remedy="Name the folders of val and test like those of train",
        )
    return classes, {origin: Row(label_of[name], None, split) for origin, (split, name) in found.items()}


def _by_folders(root: Path, origins: Sequence[str]) -> Places:
    parts = {origin: PurePosixPath(origin).parts for origin in origins}
    with_splits = any(len(part) > 1 and part[0] == "train" for part in parts.values())
    depth = 1 if with_splits else 0
    beside = [origin for origin, part in parts.items() if with_splits and part[0] not in SPLITS]
    inside = {origin: part for origin, part in parts.items() if not with_splits or part[0] in SPLITS}
    notes = [f"{len(beside)} files beside train, val and test were left out: {first_few(beside)}"] if beside else []
    in_classes = all(len(part) > depth + 1 for part in inside.values())
    classes, rows = rows_by_class(
        root,
        {
            origin: (part[0] if with_splits else "train", part[depth] if in_classes else UNLABELLED)
            for origin, part in inside.items()
        },
    )
    if classes == (UNLABELLED,):
        notes.append(f'files lie outside class folders, so all are of one class, "{UNLABELLED}"')
    elif classes:
        notes.append(
            f"the {len(classes)} folders {first_few(classes)} were taken for classes; if they are something else, "
            "such as patients, give --labels"
        )
    return Places(classes, rows, all(row.split != "val" for row in rows.values()), tuple(notes))

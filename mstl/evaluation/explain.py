"""Explain runs on a split or on image files: the grid of heatmaps and, with lung masks, what the maps are worth."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mstl.evaluation.explain_answers import Answer, answers
from mstl.evaluation.explain_curves import STEPS
from mstl.evaluation.explain_files import MASK_ENDING, find_masks
from mstl.evaluation.explain_grid import HeatColumn, Shown, heatmap_grid, plain_images
from mstl.evaluation.explain_maps import has_attention
from mstl.evaluation.explain_measure import (
    CAM,
    CHANCE,
    Measured,
    chance_map,
    curves_figure,
    measure,
    measured_csv,
    summarise,
)
from mstl.evaluation.explain_subjects import Question, open_question
from mstl.evaluation.lung_focus import INSIDE
from mstl.evaluation.masks import load_masks
from mstl.evaluation.subject import Subject
from mstl.runs import now, software
from mstl.study.checks import check_output
from shards.cache import CacheOptions
from shards.errors import MstlError
from shards.files import sha256_file, write_atomic
from shards.progress import QUIET, Progress

MOST_IMAGES = 200  # a taller grid passes the 65,536 pixels that matplotlib draws
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Explained:
    """What was done: images shown in the grid, images measured, the summary of that, files written, what to tell."""

    shown: int
    measured: int
    summary: tuple[dict[str, Any], ...]
    files: tuple[Path, ...]
    notes: tuple[str, ...]


def explain_run(
    run: Path,
    *,
    split: str,
    count: int,
    out: Path,
    shards: str | Path | None = None,
    beside: Sequence[Path] = (),
    images: Sequence[Path] = (),
    masks: Path | None = None,
    class_name: str | None = None,
    cache: CacheOptions = CacheOptions(),  # noqa: B008 - frozen
    progress: Progress = QUIET,
) -> Explained:
    """Write the heatmap grid of the first `count` images as PNG and, with masks, what was measured of all beside it.

    Images are those of a split, or the files and folders that `images` names. Of a split, with two classes, they are
    the positives alone, with `class_name` those of that class; with more classes each is explained for its own, files
    for the class predicted. The order is that of the shard set, which was shuffled when written: nothing is
    hand-picked. beside: further runs, shown the same images in further columns. masks: a folder of lung masks
    (`find_masks`); images without one are then left out, and for OUT.png there are OUT.csv (an image and map a line),
    OUT.json (means and intervals) and OUT-curves.png too.
    Raises MstlError as `open_question`, `find_masks` and `load_masks` do, when there is no image to explain, and for
    more images than a picture can hold.
    """
    masked = None if masks is None else find_masks(masks)
    files = _output_files(out, measured=masked is not None)
    names = _run_names([run, *beside])
    with ExitStack() as stack:
        question = open_question(
            [run, *beside], split=split, shards=shards, images=images, class_name=class_name, out=out, cache=cache,
            progress=progress, stack=stack,
        )  # fmt: skip
        notes = _notes(question)
        about = question.read_about() if masked is not None or question.files is not None else {}
        lungs: dict[str, Tensor] | None = None
        if masked is not None:
            sizes = {one.name: one.size for one in about.values() if question.wants(one.label)}
            lungs = load_masks(masked, sizes, question.subjects[0].record.evaluation_inputs, progress=progress)
            if not lungs:
                raise _nothing_masked(masks, masked, sizes)
            notes += _mask_notes(sizes, masked, lungs)
        count = _shown_count(question, count, question.images if lungs is None else len(lungs))
        show = question.spread(count, lungs)
        shown: list[Answer] = []
        rows: list[Measured] = []
        summary: list[dict[str, Any]] = []
        wanted = count if lungs is None else len(lungs)
        progress.start(wanted, "explain")
        for answer in answers(question, about, show if lungs is None else lungs, limit=wanted):
            if len(shown) < count and (show is None or answer.name in show):
                shown.append(answer)
            if lungs is not None:
                rows += _measured(question, answer, lungs[answer.name], names)
            progress.advance()
        if show is not None:
            shown.sort(key=lambda answer: show.index(answer.name))
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, _grid(question, shown, lungs, names))
        if lungs is not None:
            summary = _write_measured(question, rows, files, names, notes)
    return Explained(
        shown=len(shown), measured=len(lungs or ()), summary=tuple(summary), files=files, notes=tuple(notes)
    )


def _shown_count(question: Question, count: int, total: int) -> int:
    """How many rows the grid has; raises MstlError where there is nothing to show, or too much."""
    if not total:
        raise MstlError(
            f"{question.where} of {question.subjects[0].origin}",
            why="it has no positive image" if question.explained is not None else "it has no image",
            remedy="Name another with --split, or another class with --class",
        )
    if min(count, total) > MOST_IMAGES:
        raise MstlError(
            f"--count {min(count, total)}",
            why="one picture cannot hold so many images",
            remedy=f"Name {MOST_IMAGES} at most",
        )
    return min(count, total)


def _output_files(out: Path, *, measured: bool) -> tuple[Path, ...]:
    """The grid and, where there is something to measure, curves, table and summary beside it; all can be written."""
    files = [out]
    if measured:
        files += [out.with_name(f"{out.stem}-curves.png"), out.with_suffix(".csv"), out.with_suffix(".json")]
    for file in files:
        check_output(file)
    return tuple(files)


def _measured(question: Question, answer: Answer, mask: Tensor, names: Sequence[str]) -> Iterator[Measured]:
    """Every map of one image against its mask, and one of noise."""
    classes = question.subjects[0].manifest.classes
    for run, subject, maps, found in zip(names, question.subjects, answer.maps, answer.probabilities, strict=True):
        for kind, heat in {**maps, CHANCE: chance_map(maps[CAM], name=answer.name)}.items():
            focus, deletion, insertion = measure(
                subject.classifier, answer.x, heat, mask, answer.explained, name=answer.name
            )
            yield Measured(
                image=answer.name,
                patient=answer.patient,
                label=None if answer.label is None else classes[answer.label],
                run=run,
                map=kind,
                explained=classes[answer.explained],
                probability=float(found[answer.explained]),
                focus=focus,
                deletion=deletion,
                insertion=insertion,
            )


def _grid(question: Question, shown: Sequence[Answer], lungs: dict[str, Tensor] | None, names: Sequence[str]) -> bytes:
    """The picture of all images shown; several runs are called A, B, … in it."""
    classes = question.subjects[0].manifest.classes
    letters = [""] if len(names) == 1 else [f"{chr(ord('A') + i)}" for i in range(len(names))]
    rows = []
    for answer, image in zip(shown, plain_images(torch.stack([answer.x for answer in shown])), strict=True):
        said = [
            f"{letter} = {float(found[answer.explained]):.2f}".strip()
            for letter, found in zip(letters, answer.probabilities, strict=True)
        ]
        name = "\n".join([_short(answer.name, 14), f"P({_short(classes[answer.explained], 12)})", *said])
        mask = None if lungs is None else lungs[answer.name].numpy() >= INSIDE
        rows.append(Shown(name=name, image=image, mask=mask))
    columns = [
        HeatColumn(name=f"{letter}: {kind}" if letter else kind, maps=torch.stack([a.maps[i][kind] for a in shown]))
        for i, letter in enumerate(letters)
        for kind in shown[0].maps[i]
    ]
    who = [
        f"{letter}: {name}, {_model(subject)}" if letter else f"{_model(subject)}, {subject.record.stage}"
        for letter, name, subject in zip(letters, names, question.subjects, strict=True)
    ]
    what = "each image's class" if question.explained is None else classes[question.explained]
    return heatmap_grid(rows, columns, title=f"{'; '.join(who)}: what speaks for {what} ({question.where})")


def _write_measured(
    question: Question, rows: Sequence[Measured], files: Sequence[Path], names: Sequence[str], notes: Sequence[str]
) -> list[dict[str, Any]]:
    """Write the curves, the table and, last, the summary, which is returned."""
    _, curves, table, file = files
    summary, how = summarise(rows)
    classes = question.subjects[0].manifest.classes
    images = len({row.image for row in rows})
    write_atomic(curves, curves_figure(rows, title=f"{question.where}, n = {images}"))
    write_atomic(table, measured_csv(rows).encode())
    body = {
        "schema": SCHEMA_VERSION,
        "images": question.where,
        "n": images,
        "classes": list(classes),
        "explained": None if question.explained is None else classes[question.explained],
        "runs": [
            {
                "name": name,
                "path": str(subject.record.path),
                "model": subject.record.model,
                "stage": subject.record.title,
                "weights_sha256": sha256_file(subject.record.weights),
            }
            for name, subject in zip(names, question.subjects, strict=True)
        ],
        "image_size": question.subjects[0].record.image_size,
        "curve_steps": STEPS,
        "intervals": how,
        "summary": summary,
        "notes": list(notes),
        "date": now(),
        "software": software(),
    }
    write_atomic(file, (json.dumps(body, indent=1, allow_nan=False) + "\n").encode())
    return summary


def _notes(question: Question) -> list[str]:
    notes = [
        f"{subject.record.path}: {_model(subject)} has no attention after res5, so there is Grad-CAM alone"
        for subject in question.subjects
        if not has_attention(subject.classifier)
    ]
    refused = () if question.files is None else question.files.refused
    return notes + [f"{name} was left out: {reason}" for name, reason in refused]


def _mask_notes(sizes: dict[str, tuple[int, int]], masks: dict[str, Path], lungs: dict[str, Tensor]) -> list[str]:
    """What the user should hear of images and masks that did not find each other, and of empty masks."""
    bare, spare = sorted(sizes.keys() - masks.keys()), sorted(masks.keys() - sizes.keys())
    empty = sorted(name for name, mask in lungs.items() if not mask.any())
    notes = []
    for found, what in ((bare, "images have no mask"), (spare, "masks are of no image"), (empty, "masks are empty")):
        if found:
            notes.append(f"{len(found)} {what}: {', '.join(found[:3])}{', …' if len(found) > 3 else ''}")
    return notes


def _nothing_masked(folder: Path | None, masks: dict[str, Path], sizes: dict[str, tuple[int, int]]) -> MstlError:
    images = f"the images are called {', '.join(sorted(sizes)[:2])}, …" if sizes else "there are no images"
    return MstlError(
        f"--masks {folder}",
        why=f"none of its {len(masks)} masks is of an image: they are for {', '.join(sorted(masks)[:2])}, …; {images}",
        remedy=f"Call the mask of image NAME NAME{MASK_ENDING}.png",
    )


def _run_names(runs: Sequence[Path]) -> list[str]:
    """The last part of the runs' paths, or the whole where two share it; raises MstlError for one named twice."""
    if len({run.resolve() for run in runs}) < len(runs):
        raise MstlError("runs", why="a run is named twice", remedy="Name each once")
    last = [run.resolve().name for run in runs]
    return last if len(set(last)) == len(last) else [str(run) for run in runs]


def _model(subject: Subject) -> str:
    return subject.record.model.removesuffix("-attn0")


def _short(name: str, longest: int) -> str:
    return name if len(name) <= longest else name[: longest - 1] + "…"

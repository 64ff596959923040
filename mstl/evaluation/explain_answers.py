"""What runs say of each image that they are asked about: probabilities and maps, image by image."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from mstl.evaluation.explain_maps import attention_map, grad_cam, has_attention
from mstl.evaluation.explain_measure import ATTENTION, CAM
from mstl.evaluation.explain_subjects import About, Question
from mstl.evaluation.predictions import check_numbers
from mstl.models.classifier import Classifier

BATCH = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One image as all runs saw it: x [3, H, W]; by run, the class probabilities [C] and its maps [h, w] by name."""

    name: str
    patient: str | None
    x: Tensor
    label: int | None
    explained: int
    probabilities: tuple[Tensor, ...]
    maps: tuple[dict[str, Tensor], ...]


def answers(
    question: Question, about: Mapping[int, About], among: Collection[str] | None, *, limit: int
) -> Iterator[Answer]:
    """The first `limit` images of the question, in order; among: names of those wanted, None for all."""
    first, done = question.subjects[0], 0
    with closing(first.loader(min(BATCH, first.manifest.samples(first.split)))) as loader:
        for batch in loader:
            ids = batch.sample_ids.tolist()
            labels = batch.labels.tolist() if question.labelled else [None] * len(ids)
            names = [about[i].name if about else f"sample {i}" for i in ids]
            patients = [about[i].patient if about else None for i in ids]
            wanted = [
                place
                for place, (name, label) in enumerate(zip(names, labels, strict=True))
                if question.wants(label) and (among is None or name in among)
            ][: limit - done]
            if wanted:
                x = batch.views["x"][wanted].contiguous()
                yield from _ask(
                    question, x, [names[i] for i in wanted], [labels[i] for i in wanted], [patients[i] for i in wanted]
                )
                done += len(wanted)
            if done == limit:
                return


def _ask(
    question: Question, x: Tensor, names: Sequence[str], labels: Sequence[int | None], patients: Sequence[str | None]
) -> Iterator[Answer]:
    """What all runs say of some images."""
    x = x.to(question.subjects[0].device)
    with torch.inference_mode():
        probabilities = [subject.classifier(x).float().softmax(1).cpu() for subject in question.subjects]
    for subject, found in zip(question.subjects, probabilities, strict=True):
        check_numbers(found.numpy(), f"run {subject.record.path}")
    predicted = probabilities[0].argmax(1).tolist()
    classes = [
        question.explained if question.explained is not None else guess if label is None else label
        for label, guess in zip(labels, predicted, strict=True)
    ]
    maps = [_maps(subject.classifier, x, torch.tensor(classes)) for subject in question.subjects]
    for i, (name, label, patient) in enumerate(zip(names, labels, patients, strict=True)):
        yield Answer(
            name=name,
            patient=patient,
            x=x[i],
            label=label,
            explained=classes[i],
            probabilities=tuple(found[i] for found in probabilities),
            maps=tuple({kind: heats[i] for kind, heats in found.items()} for found in maps),
        )


def _maps(classifier: Classifier, x: Tensor, classes: Tensor) -> dict[str, Tensor]:
    """Every map that the network has, [B, h, w]."""
    maps = {CAM: grad_cam(classifier, x, classes)}
    if has_attention(classifier):
        maps[ATTENTION] = attention_map(classifier, x)
    return maps

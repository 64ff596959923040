"""What a run says of image files: read as its evaluation read its shards, judged at its operating point."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from mstl.evaluation.calibration import calibrated
from mstl.evaluation.explain_files import SPLIT, write_set
from mstl.evaluation.predictions import check_numbers
from mstl.runs import now, software
from mstl.study.checks import check_output
from mstl.use.heatmaps import Maps, draw_maps, heatmap_files, picture
from mstl.use.images import Bad, Sound, find, look
from mstl.use.network import NOT_A_DEVICE, Network, open_network
from pipelines.loader import Loader
from shards.errors import MstlError
from shards.files import sha256_file, write_atomic
from shards.progress import QUIET, Progress
from shards.read import read_records
from shards.schema import Manifest
from shards.writer import WriteOptions

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What the run says of one image: class probabilities as the network gives them and, with a temperature,
    calibrated; the class that follows at the operating point (`says`); its heatmap where one was asked for.
    """

    image: Sound
    probabilities: tuple[float, ...]
    calibrated: tuple[float, ...] | None
    says: int
    heatmap: Path | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Predicted:
    """All answers in the order asked, the images that cannot be used with the reason, and what the user should hear."""

    network: Network
    answers: tuple[Answer, ...]
    bad: tuple[Bad, ...]
    notes: tuple[str, ...]

    def body(self) -> dict[str, Any]:
        """What the JSON file holds."""
        network, record = self.network, self.network.record
        chosen = network.operating
        return {
            "schema": SCHEMA_VERSION,
            "notice": NOT_A_DEVICE,
            "run": {
                "path": str(record.path.resolve()),
                "stage": record.title,
                "model": record.model,
                "weights_sha256": network.weights_sha256,
                "shards_digest": record.shards_digest,
                "classes": record.classes,
            },
            "positive": None if network.positive is None else record.classes[network.positive],
            "operating": {
                "threshold": network.threshold,
                "text": network.operating_text,
                "temperature": network.temperature,
                "chosen": None if chosen is None else chosen.model_dump(),
            },
            "inputs": network.inputs.to_dict(),
            "images": [_image_body(answer, network) for answer in self.answers],
            "refused": [{"image": name, "reason": reason} for name, reason in self.bad],
            "notes": list(self.notes),
            "device": str(network.device),
            "date": now(),
            "software": software(),
        }


def predict_files(
    run: Path,
    paths: Sequence[Path],
    *,
    heatmaps: Path | None = None,
    out: Path | None = None,
    window: str | None = None,
    batch: int = 16,
    progress: Progress = QUIET,
) -> Predicted:
    """Ask a run about image files, folders of them and patterns; what cannot be used is named and left out.

    The images go through the graph that evaluates shards, built as the run's own set was (--resize, window), so an
    image of that set gets the probability it has in predictions.csv. heatmaps: folder for a PNG per image. out: JSON of
    everything. window: of DICOM values, see `find`. Raises MstlError as `open_network` and `find` do, and when a file
    to write cannot be, or is one of the images.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = open_network(run, device=device)
    for target in (out, None if heatmaps is None else heatmaps / "any.png"):
        if target is not None:
            check_output(target)
    found, bad = find(paths, network, window=window)
    sound, refused = look(found, network, progress)
    files = heatmap_files(heatmaps, sound)
    _refuse_overwriting([out, *files], sound)
    answers: dict[int, Answer] = {}
    if sound:
        progress.start(len(sound), "predict")
        with TemporaryDirectory(prefix="mstl-predict-") as folder:
            write_set(
                [one.named.blob for one in sound],
                Path(folder),
                classes=tuple(network.record.classes),
                modality=network.modality or "natural",
                options=_as_trained(network.trained),
            )
            for place, probabilities, maps in _asked(network, Path(folder), batch, maps=heatmaps is not None):
                answers[place] = _answer(network, sound[place], probabilities, maps, files[place])
                progress.advance()
    predicted = Predicted(
        network=network,
        answers=tuple(answers[place] for place in sorted(answers)),
        bad=(*bad, *refused),
        notes=tuple(_notes(network, sound)),
    )
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, (json.dumps(predicted.body(), indent=1, ensure_ascii=False) + "\n").encode())
    return predicted


def _as_trained(trained: Manifest | None) -> WriteOptions:
    """How to build the set of a few images: as the run's own was, for its pixels are what the network knows."""
    if trained is None:
        return WriteOptions(decode=False)
    options = trained.options
    return WriteOptions(decode=False, resize=options.get("resize"), quality=int(options.get("quality") or 90))


def _asked(
    network: Network, folder: Path, batch: int, *, maps: bool
) -> Iterator[tuple[int, tuple[float, ...], Maps | None]]:
    """Place among the images, class probabilities and maps of each, in the order of the temporary set."""
    places = {record.sample_id: int(record.key) for record in read_records(folder, SPLIT)}
    loader = Loader(
        network.inputs,
        folder,
        SPLIT,
        rank=0,
        world=1,
        batch=min(batch, len(places)),
        epochs=1,
        device="gpu" if network.device.type == "cuda" else "cpu",
        seed=0,
        shuffle=False,
        remainder="pad",
    )
    with closing(loader):
        for found in loader:
            x = found.views["x"].to(network.device)
            with torch.inference_mode():
                probabilities = network.classifier(x).float().softmax(1).cpu()
            check_numbers(probabilities.numpy(), f"run {network.record.path}")
            heats, explained = draw_maps(network, x, probabilities) if maps else ({}, [])
            for row, sample_id in enumerate(found.sample_ids.tolist()):
                if (place := places.pop(sample_id, None)) is None:
                    continue  # repeated to fill the last batch
                shown = Maps(x[row], explained[row], {k: v[row] for k, v in heats.items()}) if maps else None
                yield place, tuple(probabilities[row].tolist()), shown


def _answer(
    network: Network, image: Sound, probabilities: tuple[float, ...], maps: Maps | None, file: Path | None
) -> Answer:
    softer = None
    if network.temperature is not None:
        softer = tuple(calibrated(np.array([probabilities]), network.temperature)[0].tolist())
    positive, threshold = network.positive, network.threshold
    if positive is None or threshold is None:
        says = int(np.argmax(probabilities))
    else:
        says = positive if probabilities[positive] >= threshold else 1 - positive
    if maps is not None and file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, picture(network, image, probabilities, maps))
    return Answer(image=image, probabilities=probabilities, calibrated=softer, says=says, heatmap=file)


def _refuse_overwriting(targets: Sequence[Path | None], images: Sequence[Sound]) -> None:
    sources = {image.named.path.resolve() for image in images}
    for target in targets:
        if target is not None and target.resolve() in sources:
            raise MstlError(str(target), why="it is one of the images to look at", remedy="Name another place")


def _notes(network: Network, sound: Sequence[Sound]) -> Iterator[str]:
    if network.trained is None:
        yield (
            f"The run's own shard set is not at hand ({network.why}); images are taken whole, as a set built without "
            "--resize holds them"
        )
    if network.inputs != network.record.evaluation_inputs:
        yield "The run was evaluated with random augmentation, as the paper prints; here nothing is drawn at random"
    for window in dict.fromkeys(image.named.window for image in sound if image.named.window):
        count = sum(image.named.window == window for image in sound)
        yield f"DICOM: {count} {'image' if count == 1 else 'images'} shown through {window}"


def _image_body(answer: Answer, network: Network) -> dict[str, Any]:
    classes, positive = network.record.classes, network.positive
    softer = answer.calibrated
    return {
        "image": answer.image.named.name,
        "sha256": sha256_file(answer.image.named.path),
        "width": answer.image.width,
        "height": answer.image.height,
        "window": answer.image.named.window,
        "says": classes[answer.says],
        "probability": None if positive is None else answer.probabilities[positive],
        "calibrated": None if positive is None or softer is None else softer[positive],
        "probabilities": dict(zip(classes, answer.probabilities, strict=True)),
        "calibrated_probabilities": None if softer is None else dict(zip(classes, softer, strict=True)),
        "heatmap": None if answer.heatmap is None else str(answer.heatmap),
        "cautions": list(answer.image.cautions),
    }

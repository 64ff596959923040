"""What the loader benchmark measures: cases, the sides of each, and where their images come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import loader_peers, loader_views
from benchmarks.loader_data import Crop, Job, boxes_file, draw_images, export_images, link_images, lung_boxes, write_set
from benchmarks.loader_peers import ON_ORIGINALS, Side

if TYPE_CHECKING:
    from shards.progress import Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What is measured: a crop on the original files, or on files made smaller once."""

    crop: Crop
    resize: int | None = None
    task: str

    @property
    def sides(self) -> Mapping[str, Side]:
        """Every side that can take part."""
        if self.crop == "views":
            return loader_views.SIDES
        return {name: side for name, side in loader_peers.SIDES.items() if self.resize or name != ON_ORIGINALS}


_AREA, _SQUARE = "RandomResizedCrop (area .08 to 1), flip", "whole image to a square, random square of it, flip"
CASES: Mapping[str, Case] = {
    "area": Case(crop="area", task=f"Original files: {_AREA}"),
    "area-256": Case(crop="area", resize=256, task=f"Shorter side stored at 256 px: {_AREA}"),
    "square": Case(crop="square", task=f"Original files: {_SQUARE}"),
    "square-256": Case(crop="square", resize=256, task=f"Shorter side stored at 256 px: {_SQUARE}"),
    "views": Case(crop="views", task="CT slices: two views and five regions of each"),
}
ALL_SIDES = tuple(dict.fromkeys(side for case in CASES.values() for side in case.sides))


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources:
    """Where images come from, and how many: class folders or drawn ones, a covid19-ct folder or drawn slices."""

    raw: Path | None
    ct: Path | None
    images: int

    def prepare(self, case: Case, sides: Sequence[str], job: Job, root: Path, progress: Progress) -> dict[str, Any]:
        """Write all that the sides of a case read, and describe it."""
        about = self._slices(job, root, progress) if case.crop == "views" else self._photographs(case, job, progress)
        if case.resize or case.crop == "views":
            export_images(job.shards, job.images)
        if case.crop == "views" and len(sides) > 1:
            _save_boxes(job)
        if "litdata" in sides:
            loader_peers.write_litdata(job)
        return about

    def _photographs(self, case: Case, job: Job, progress: Progress) -> dict[str, Any]:
        if not job.originals.exists():
            if self.raw is None:
                draw_images(self.images, job.originals, progress)
            else:
                link_images(self.raw, self.images, job.originals)
        about = write_set(job.originals, job.shards, job.threads, progress, resize=case.resize)
        return {"kind": "generated" if self.raw is None else "files", **about}

    def _slices(self, job: Job, root: Path, progress: Progress) -> dict[str, Any]:
        from shards.sample import SampleSize, write_samples

        raw = self.ct
        if raw is None:
            size = SampleSize(imagenet_classes=1, imagenet_train=1, imagenet_val=1, covidx_train=1, covidx_test=1,
                              ct_train=-(-self.images // 2), ct_val=1, ct_test=1)  # fmt: skip
            write_samples(root / "sample", size=size)
            raw = root / "sample" / "covid19-ct"
        about = write_set(raw, job.shards, job.threads, progress, source="covid19-ct")
        return {"kind": "generated" if self.ct is None else "files", **about}


def _save_boxes(job: Job) -> None:
    import numpy as np

    np.save(boxes_file(job), lung_boxes(job))

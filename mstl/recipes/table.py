"""A recipe as a table: what is printed, what we made of it, what will be used, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mstl.inputs import for_set, train_inputs, val_inputs
from mstl.recipes.build import Settled, fields_of, flatten
from mstl.recipes.printed import PRINTED
from mstl.recipes.sources import INPUTS, MODALITY, described
from mstl.recipes.values import RESOLVED
from pipelines.recipe import Inputs


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One field. printed: without meaning unless is_printed. why: of each departure, the user's from ours and ours from
    print. source: of the printed value, else of ours."""

    field: str
    meaning: str
    is_printed: bool
    printed: Any
    resolved: Any
    used: Any
    why: str
    source: str

    @property
    def changed(self) -> bool:
        """Whether something else than our resolution is used."""
        return bool(self.used != self.resolved)


@dataclass(frozen=True, kw_only=True, slots=True)
class InputRow:
    """A field of `pipelines.recipe.Inputs`; None where it does not apply."""

    field: str
    train: Any
    val: Any
    source: str


def recipe_rows(settled: Settled) -> list[Row]:
    """Every field that the recipe has a use for, in the order of its sections."""
    name = settled.name
    used, resolved, words = flatten(settled.recipe), flatten(RESOLVED[name]), described(name)
    departures = {item.field: item for item in PRINTED[name]}
    rows = []
    falls = ("optim.milestones", "optim.gamma")  # of the step schedule alone
    for field in fields_of(name):
        if field in falls and used["optim.schedule"] == "cosine":
            continue
        meaning, source = words[field]
        departure = departures.get(field)
        reasons = [settled.reasons.get(field, ""), departure.why if departure else ""]
        rows.append(
            Row(
                field=field,
                meaning=meaning,
                is_printed=departure is not None or not source.startswith("ours"),
                printed=departure.value if departure is not None else resolved[field],
                resolved=resolved[field],
                used=used[field],
                why="; ".join(reason for reason in reasons if reason),
                source=source,
            )
        )
    return rows


def input_rows(settled: Settled) -> list[InputRow]:
    """What the network sees of the stage's own data, as far as it applies to either of training and validation."""
    stage, ssl = settled.stage, settled.ssl
    data, modality = settled.recipe.data, MODALITY[stage]
    train = _applying(for_set(train_inputs(stage, ssl, settled.recipe), data, modality=modality, deep=False))
    val = _applying(for_set(val_inputs(stage, ssl, settled.recipe), data, modality=modality, deep=False))
    sources = INPUTS[settled.name]
    return [
        InputRow(
            field=field, train=train.get(field), val=val.get(field), source=sources.get(field) or INPUTS[""][field]
        )
        for field in (*train, *(field for field in val if field not in train))
    ]


def _applying(inputs: Inputs) -> dict[str, Any]:
    """The fields of inputs that change anything."""
    parts = {
        "views": True,
        "channels": True,
        "resize": inputs.crop != "area",
        "crop": True,
        "area_min": inputs.crop == "area",
        "image_size": True,
        "flip": inputs.flip,
        "region_flip": inputs.has_regions,
        "grayscale": inputs.grayscale and not inputs.is_grey,
        "jitter": inputs.jitter,
        "brightness": inputs.jitter,
        "contrast": inputs.jitter,
        "saturation": inputs.jitter and not inputs.is_grey,
        "hue": inputs.jitter and not inputs.is_grey,
        "blur": inputs.blur,
        "blur_sigma_min": inputs.blur,
        "blur_sigma_max": inputs.blur,
        "blur_window": inputs.blur and inputs.blur_window,
        "geometry": inputs.geometry,
        "translation": inputs.geometry,
        "rotation": inputs.geometry,
        "intensity": inputs.geometry,
        "mean": True,
    }
    return {field: getattr(inputs, field) for field, applies in parts.items() if applies}

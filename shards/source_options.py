"""What a user may tell a source reader beyond the place of the data."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from shards.errors import MstlError

Modality = Literal["natural", "cxr", "ct"]
MODALITIES: tuple[str, ...] = get_args(Modality)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceOptions:
    """Options of source readers; each reader takes those it knows and refuses the others (`refuse_others`).

    labels: a table path,label[,patient,split]. modality: of sources that may hold any, "natural", "cxr" or "ct".
    window: "lung", "mediastinum" or "CENTER,WIDTH" in Hounsfield units. bits: of a written slice, 8 or 16.
    """

    labels: Path | None = None
    modality: Modality | None = None
    window: str | None = None
    bits: int | None = None

    def refuse_others(self, source: str, *known: str) -> None:
        """Raise MstlError for an option that is given and is not among those a source knows."""
        for field in fields(self):
            if field.name not in known and getattr(self, field.name) is not None:
                raise MstlError(
                    f"--{field.name}",
                    why=f"source {source} has no use for it",
                    remedy=f"Leave it out{'' if not known else f'; {source} takes --' + ', --'.join(known)}",
                )


NO_OPTIONS = SourceOptions()

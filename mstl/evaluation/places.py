"""Where an evaluation lies in the folder of its run."""

from __future__ import annotations

import re
from pathlib import Path


def evaluation_folder(run: Path, split: str, *, source: str, digest: str, own: bool) -> Path:
    """RUN/evaluation/SPLIT for the shard set that the run was trained with (`own`), or a folder for the other one.

    Another set's is called by its source and digest, so that no set's results pass for, or replace, another's.
    """
    name = split if own else f"{split}-on-{re.sub(r'[^A-Za-z0-9._-]+', '-', source)}-{digest[:8]}"
    return run / "evaluation" / name

"""From values to the report's HTML: the template, its number formats and its embedded pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from mstl.study.estimates import Estimate
from mstl.study.figures import DOTS_PER_INCH
from shards.errors import MstlError

_CSS_PIXELS_PER_INCH = 96
_WIDEST = 1060  # what the page holds

STAGE_NAMES = {
    "stl_n": ("STL-N", "supervised, natural images"),
    "stl_m": ("STL-M", "supervised, chest X-ray"),
    "sstl_m": ("SSTL-M", "self-supervised, CT"),
    "finetune": ("Fine-tuning", "supervised, CT"),
    "linear_probe": ("Linear probe", "supervised, CT"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A figure of a page: PNG bytes, the caption under it, what it shows in words, its width in CSS pixels."""

    png: bytes
    caption: str
    alt: str
    width: int

    @property
    def source(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


def render(template: str, **values: Any) -> str:
    """The text of a page from its template; a value that it asks for and does not get is an error."""
    return _environment().get_template(template).render(**values)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mstl.study", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=_percent,
        points=_points,
        number=_number,
        duration=_duration,
        stage=_stage,
        breakable=_breakable,
        leakage=_leakage,
        value=_value,
        mean=_mean,
        span=_span,
        printed=_printed,
    )
    return environment


def natural_width(png: bytes) -> int:
    """The width in CSS pixels at which a PNG of our figures has its letters at their nominal size, or the page's."""
    pixels = int.from_bytes(png[16:20], "big")  # of the header
    return min(_WIDEST, round(pixels * _CSS_PIXELS_PER_INCH / DOTS_PER_INCH))


def read_png(path: Path) -> bytes:
    """The bytes of a PNG file; raises MstlError when it is missing or something else."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MstlError(f"image {path}", why=f"it cannot be read ({error.strerror})", remedy="Name a PNG") from error
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise MstlError(f"image {path}", why="it is no PNG", remedy="Name a PNG, as mstl explain writes them")
    return data


def _figure(value: float, unit: str) -> str:
    """A figure in its unit, with as many digits as the paper prints; fractions are shown of 100."""
    if unit == "bits":
        return _minus(f"{value:.3f}")
    return _minus(f"{100 * value:+.1f}" if unit == "points" else f"{100 * value:.1f}")


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _mean(estimate: Estimate, unit: str) -> str:
    """Mean ± standard deviation over seeds, without the latter for one seed."""
    spread = "" if estimate.sd is None else f" ± {_figure(estimate.sd, unit).removeprefix('+')}"
    return _figure(estimate.mean, unit) + spread


def _span(span: tuple[float, float], unit: str) -> str:
    return f"[{_figure(span[0], unit)}, {_figure(span[1], unit)}]"


def _printed(value: float, unit: str) -> str:
    """A figure of the paper, as it prints it."""
    return _minus(f"{value:.3f}" if unit == "bits" else f"{value:+.1f}" if unit == "points" else f"{value:.1f}")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _points(value: float | None) -> str:
    return "" if value is None else _figure(value, "points")


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    return f"{hours} h {minutes % 60:02d} min" if hours else f"{minutes} min {int(seconds % 60):02d} s"


def _stage(name: str) -> tuple[str, str]:
    return STAGE_NAMES.get(name, (name, ""))


def _breakable(name: str) -> Markup:
    """A run's name that may go on in the next line behind an underscore or slash."""
    return Markup(str(escape(name)).replace("_", "_<wbr>").replace("/", "/<wbr>"))


def _leakage(known: Mapping[str, Any] | None) -> list[str]:
    """What a run recorded of leakage, a line each; the first says how far its data had been checked."""
    if known is None:
        return ["not recorded"]
    waived = {entry["name"] for entry in known["waived"]}
    lines = [f"waived: {v['name']} ({v['text']})" for v in known["verdicts"] if v["name"] in waived]
    lines += [f"{v['name']}: {v['text']}" for v in known["verdicts"] if v["unknown"] and v["name"] not in waived]
    lines += [f"its test images were seen without labels by {run}" for run in known.get("transductive", ())]
    return [known["state"], *lines, *(f"not compared: {what}" for what in known["missing"])]


def _value(value: Any) -> str:
    if value is None:
        return ""
    return "(none)" if value in ([], "") else ", ".join(map(str, value)) if isinstance(value, list) else str(value)

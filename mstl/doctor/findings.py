"""What a check found: how it stands, in words, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "fail"]
HERE = "this machine"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line of the doctor's report; `remedy` is empty where the state is ok."""

    name: str
    state: State
    found: str
    remedy: str = ""
    where: str = HERE

    def __post_init__(self) -> None:
        assert bool(self.remedy) == (self.state != "ok"), self


def failed(findings: Iterable[Finding]) -> int:
    """How many checks failed; warnings do not count."""
    return sum(finding.state == "fail" for finding in findings)


def ok(name: str, found: str, *, where: str = HERE) -> Finding:
    return Finding(name=name, state="ok", found=found, where=where)


def warn(name: str, found: str, remedy: str, *, where: str = HERE) -> Finding:
    return Finding(name=name, state="warn", found=found, remedy=remedy, where=where)


def fail(name: str, found: str, remedy: str, *, where: str = HERE) -> Finding:
    return Finding(name=name, state="fail", found=found, remedy=remedy, where=where)

"""The leakage gate: a job whose data are known to leak is refused unless it is waived by name, and that is recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from mstl.runs import RunRecord, open_run
from shards.errors import MstlError
from shards.schema import ALL, SPLITS, Manifest
from shards.verdicts import CHECKS, Verdict, read_verdicts

LONGEST_LINEAGE = 20

Entry = dict[str, Any]
Identity = tuple[str, ...]  # of a verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """What is known of leakage at the start of a job. record: for run.json. notes: what the user should hear."""

    record: Entry
    notes: tuple[str, ...]


UNLOOKED = Gate(record={}, notes=())


def check_leakage(
    *,
    shards: Path,
    called: str,
    manifest: Manifest,
    lineage: Sequence[Entry],
    waive: Sequence[str],
    previous: Mapping[str, Any] | None,
) -> Gate:
    """Hold a job against the verdicts beside its shard set (`called` so in messages).

    Two kinds of finding matter: what the set's own splits share, and what its val and test splits share with the train
    split of a set that its first weights were trained on (`lineage`). previous: what run.json says of an earlier
    start; its waivers still count. Raises MstlError for a finding that nobody waived and for a waiver without one.
    """
    digest = manifest.digest()
    known = read_verdicts(shards, digest)
    behind = {entry["digest"] for entry in lineage}
    verdicts = [verdict for verdict in known if _matters(verdict, digest, behind)]
    found = [verdict for verdict in verdicts if verdict.outcome == "found"]
    before = {tuple(entry["about"]): str(entry["name"]) for entry in (previous or {}).get("waived", ())}
    names = _names(found, before)
    _refuse_unknown(waive, found, names)
    waived = [verdict for verdict in found if names[verdict.identity] in waive or verdict.identity in before]
    open_findings = [verdict for verdict in found if verdict not in waived]
    if open_findings:
        raise _refusal(called, open_findings, names)
    missing = _unchecked(called, manifest, digest, lineage, verdicts)
    # Not found by comparing: a run without labels that was told to learn from all images (data.images).
    seen = [str(entry["run"]) for entry in lineage if entry.get("images") == ALL and entry["digest"] == digest]
    if not _judged(manifest):
        state = "nothing to compare"
    else:
        state = "checked" if not missing else "partly checked" if verdicts else "never checked"
    return Gate(
        record={
            "state": state,
            "missing": [entry["what"] for entry in missing],
            "verdicts": [{"name": names.get(v.identity, v.name), "text": v.text(), **asdict(v)} for v in verdicts],
            "waived": [{"name": names[v.identity], "about": list(v.identity)} for v in waived],
            "lineage": list(lineage),
            "transductive": seen,
        },
        notes=(
            *_notes(called, state, missing, verdicts, [names[v.identity] for v in waived]),
            *(f"leakage: {run} has seen this set's val and test images, without their labels" for run in seen),
        ),
    )


def finding_names(shards: Path, digest: str, lineage: Sequence[Entry]) -> list[str]:
    """The findings that a job on this shard set would be refused for, by the names they are waived as."""
    behind = {entry["digest"] for entry in lineage}
    found = [v for v in read_verdicts(shards, digest) if v.outcome == "found" and _matters(v, digest, behind)]
    return list(_names(found, {}).values())


def trace_lineage(weights: Path, run: Path | None) -> list[Entry]:
    """The shard sets behind first weights, nearest first: {"run", "stage", "source", "shards", "digest", "images"}.

    An entry with digest None ends the list where it cannot be followed: weights from elsewhere, a run that is gone.
    """
    entries: list[Entry] = []
    while run is not None and len(entries) < LONGEST_LINEAGE:
        try:
            body = open_run(run).body
        except MstlError:
            return [*entries, _unknown(run)]
        held = body["shards"]
        entries.append({"run": str(run), "stage": body["stage"], "source": held["source"], "shards": held["path"],
                        "digest": held["digest"], "images": body["recipe"]["data"].get("images", "train")})  # fmt: skip
        recorded = body.get("leakage", {}).get("lineage")
        if recorded is not None:  # written when its own parents were still there
            return [*entries, *recorded]
        parent = body["parent"]
        if parent is None:
            return entries
        weights = Path(parent["weights"])
        run = Path(parent["path"]) if parent["path"] != parent["weights"] else None
    return [*entries, _unknown(weights)]


def recorded_lineage(previous: RunRecord | None) -> list[Entry] | None:
    """The lineage that an earlier start of the job recorded; None when there was none or it is older than the gate."""
    lineage: list[Entry] | None = None if previous is None else previous.body.get("leakage", {}).get("lineage")
    return lineage


def _unknown(path: Path) -> Entry:
    return {"run": str(path), "stage": None, "source": None, "shards": None, "digest": None}


def _matters(verdict: Verdict, digest: str, behind: set[str]) -> bool:
    if verdict.a.digest == verdict.b.digest:
        return True
    return verdict.b.digest == digest and verdict.a.digest in behind


def _names(found: Sequence[Verdict], before: Mapping[Identity, str]) -> dict[Identity, str]:
    """What each finding is waived as: its own name, with a part of the digest where another finding has that name.

    Names come from folders: two sets may share one. A name that was waived before keeps its meaning.
    """
    called = {verdict.identity: verdict.name for verdict in found}
    count = Counter([*called.values(), *(name for identity, name in before.items() if identity not in called)])
    return {v.identity: v.name if count[v.name] == 1 else f"{v.name}@{v.a.digest[:8]}" for v in found}


def _refuse_unknown(waive: Sequence[str], found: Sequence[Verdict], names: Mapping[Identity, str]) -> None:
    for name in waive:
        if name in names.values():
            continue
        alike = [names[verdict.identity] for verdict in found if verdict.name == name]
        if alike:
            why = f"the name is not enough to tell findings apart; there are {', '.join(alike)}"
        else:
            there = f"there are {', '.join(names.values())}" if names else "none"
            why = f"there is no such finding for this job; {there}"
        raise MstlError(
            f"--waive-leakage {name}",
            why=why,
            remedy="Name one of those, if that is what is meant" if names else "Leave it out",
        )


def _refusal(called: str, found: Sequence[Verdict], names: Mapping[Identity, str]) -> MstlError:
    listed = "; ".join(f"{names[v.identity]} ({v.text()})" for v in found)
    return MstlError(
        f"shard set {called}",
        why=f"mstl leakage found what must not be shared: {listed}",
        remedy="Convert it again without those images (mstl leakage lists them), or train all the same, which the run "
        "records: " + " ".join(f"--waive-leakage {names[v.identity]}" for v in found),
    )


def _judged(manifest: Manifest) -> list[str]:
    """The splits that a network is measured on."""
    return [split for split in SPLITS if split != "train" and manifest.splits.get(split)]


def _unchecked(
    called: str, manifest: Manifest, digest: str, lineage: Sequence[Entry], verdicts: Sequence[Verdict]
) -> list[Entry]:
    """What no verdict speaks of: {"what": in words, "shards": the set to compare, None where that cannot be done}."""
    done = {verdict.identity for verdict in verdicts}
    judged = _judged(manifest)
    if not judged:
        return []
    missing: list[Entry] = []
    within = combinations([split for split in SPLITS if manifest.splits.get(split)], 2)
    if any((check, digest, a, digest, b) not in done for a, b in within for check in CHECKS):
        missing.append({"what": "its own splits", "shards": called})
    for entry in lineage:
        other = entry["digest"]
        if other is None:
            missing.append({"what": f"what {entry['run']} was trained on", "shards": None})
        elif other != digest and any(
            (check, other, "train", digest, split) not in done for split in judged for check in CHECKS
        ):
            what, where = f"{entry['source']} of {entry['stage']}", entry["shards"]
            if where in (called, str(Path(called).resolve())):
                what, where = f"{what} (this set before it was built anew)", None
            missing.append({"what": what, "shards": where})
        if other not in (None, digest) and entry.get("images") == ALL:
            missing.append({"what": f"val and test images of {entry['source']}, of {entry['stage']}", "shards": None})
    return missing


def _notes(
    called: str, state: str, missing: Sequence[Entry], verdicts: Sequence[Verdict], waived: Sequence[str]
) -> Iterable[str]:
    if missing:
        others = [entry["shards"] for entry in missing if entry["shards"]]
        what = ", ".join(dict.fromkeys(entry["what"] for entry in missing))
        how = f"; check with: mstl leakage {' '.join(dict.fromkeys([called, *others]))}" if others else ""
        yield f"leakage: {state}; not compared: {what}{how}"
    unknown = [verdict.name for verdict in verdicts if verdict.unknown]
    if unknown:
        yield f"leakage: not known in full for {', '.join(unknown)}"
    if waived:
        yield f"leakage: waived {', '.join(waived)}"

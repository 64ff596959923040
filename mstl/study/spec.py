"""A study file: which nodes there are, on which data, from which other nodes; read and checked as far as it reaches."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails

from mstl.recipes import Flavour, Recipe, Ssl
from shards.errors import MstlError
from shards.schema import MAX_SEED

StageName = Literal["stl_n", "stl_m", "sstl_m", "finetune"]
Split = Literal["train", "val", "test"]
Kind = Literal["train", "leep"]
# Names become folders, and ids are matched by shell patterns.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$", max_length=100)]
Text = Annotated[str, StringConstraints(min_length=1)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED, strict=True)]
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1)]
Networks = Annotated[tuple[str, ...], Field(min_length=1)]

_SECTIONS = tuple(Recipe.model_fields)
_STAGES = get_args(StageName)


class Part(BaseModel):
    """A part of a study file: frozen, and a misspelt key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class NodeSpec(Part):
    """A `[[node]]`: one training or LEEP measurement for each of its networks and seeds.

    `from` names the node whose weights it starts from (kind leep: the source it measures), with the same network and
    the same seed, or the only seed of that node. Without `from` and `init` it starts from random weights (kind leep:
    it measures an untrained network). column: which column of the paper's tables the result stands in. explain: how
    many images get heatmaps, on the first split of `evaluate`. split: what a leep node measures on.
    """

    name: Name
    kind: Kind = "train"
    stage: StageName | None = None
    data: str
    source: str | None = Field(None, alias="from")
    init: Text | None = None
    ssl: Ssl | None = None
    column: Name | None = None
    networks: Networks | None = None
    seeds: Seeds | None = None
    overrides: dict[str, Any] = Field(default_factory=dict, alias="set")
    evaluate: tuple[Split, ...] | None = None
    explain: int = Field(0, ge=0)
    split: Split = "train"


class Study(Part):
    """A study file. evaluate: the splits that fine-tuned networks are measured on where a node names none."""

    name: Name
    title: str = ""
    seeds: Seeds = (0,)
    networks: Networks
    data: dict[Name, Text] = Field(min_length=1)
    substitutions: dict[str, Text] = Field(default_factory=dict)
    evaluate: tuple[Split, ...] = ()
    flavour: Flavour = "resolved"
    waive_leakage: tuple[Text, ...] = ()
    overrides: dict[str, Any] = Field(default_factory=dict, alias="set")
    node: tuple[NodeSpec, ...] = Field(min_length=1)

    def seeds_of(self, node: NodeSpec) -> tuple[int, ...]:
        """The seeds of a node: its own, else the study's."""
        return self.seeds if node.seeds is None else node.seeds

    def networks_of(self, node: NodeSpec) -> tuple[str, ...]:
        """The networks of a node, as written: its own, else the study's."""
        return self.networks if node.networks is None else node.networks

    def evaluated(self, node: NodeSpec) -> tuple[Split, ...]:
        """The splits a node is measured on."""
        if node.evaluate is not None:
            return node.evaluate
        return self.evaluate if node.stage == "finetune" else ()

    def recipe_fields(self, node: NodeSpec) -> dict[str, Any]:
        """The recipe fields that the study sets for a node: for all, for its stage, its own; the later ones win."""
        everywhere = {key: value for key, value in self.overrides.items() if key not in _STAGES}
        of_stage = self.overrides.get(node.stage or "", {})
        return {**flat(everywhere), **flat(of_stage), **flat(node.overrides)}


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyFile:
    """A study with the text it was read from."""

    path: Path
    text: bytes
    study: Study


def read_study(path: Path, data: Mapping[str, str] | None = None) -> StudyFile:
    """Read a study file; `data` replaces places of its shard sets. Raises MstlError naming all that is wrong in it."""
    try:
        text = path.read_bytes()
        tree = tomllib.loads(text.decode())
    except OSError as error:
        raise MstlError(
            f"study {path}", why=f"it cannot be read ({error.strerror})", remedy="Name a TOML file"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MstlError(f"study {path}", why=f"it is no TOML ({error})", remedy="Mend it there") from error
    try:
        study = Study.model_validate(tree)
    except ValidationError as error:
        raise refusal(path, [_told(detail, tree) for detail in error.errors()]) from error
    unknown = [f"--data {name}: the study has no such data; it has {', '.join(study.data)}"
               for name in data or {} if name not in study.data]  # fmt: skip
    problems = [*unknown, *_set_problems(study)]
    if problems:
        raise refusal(path, problems)
    return StudyFile(path=path, text=text, study=study.model_copy(update={"data": {**study.data, **(data or {})}}))


def refusal(path: Path, problems: Sequence[str]) -> MstlError:
    """All problems of a study in one error."""
    found = list(dict.fromkeys(problems))
    if len(found) == 1:
        return MstlError(
            f"study {path}", why=found[0].rstrip("."), remedy="Mend that; mstl run --dry-run checks it again"
        )
    listed = "".join(f"\n  - {problem}" for problem in found)
    remedy = f"Mend them; mstl run --dry-run checks them again:{listed}"
    return MstlError(f"study {path}", why=f"{len(found)} things are wrong", remedy=remedy)


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Recipe fields by name, from `"optim.lr" = 1` and `optim.lr = 1` alike (TOML reads the latter as a table)."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= (
            {f"{key}.{name}": one for name, one in flat(value).items()} if isinstance(value, dict) else {key: value}
        )
    return found


def as_words(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Recipe fields as `--set` takes them; raises ValueError for a value that no recipe holds (a date)."""
    words = []
    for field, value in fields.items():
        try:
            words.append(f"{field}={json.dumps(value)}")  # numbers, strings and lists are the same in TOML
        except TypeError as error:
            raise ValueError(f"set: {field} cannot be {value}") from error
    return tuple(words)


def _set_problems(study: Study) -> Iterator[str]:
    for key, value in study.overrides.items():
        section = key.partition(".")[0]
        if section not in (*_SECTIONS, *_STAGES):
            yield f"[set]: {key!r} is neither a stage nor a section of a recipe{_hint(key, (*_STAGES, *_SECTIONS))}"
        elif key in _STAGES and not isinstance(value, dict):
            yield f"[set]: {key} names a stage, and holds {value!r} in place of recipe fields"


def _told(detail: ErrorDetails, tree: Mapping[str, Any]) -> str:
    """One of pydantic's findings in the file's own words."""
    where, last = _where(detail["loc"], tree), str(detail["loc"][-1])
    if detail["type"] == "extra_forbidden":
        model = NodeSpec if detail["loc"][0] == "node" else Study
        known = [field.alias or name for name, field in model.model_fields.items()]
        return f"{where}: there is no such key{_hint(last, known) or '; there are ' + ', '.join(known)}"
    if detail["type"] == "missing":
        return f"{where} is missing"
    if detail["type"] == "too_short":
        return f"{where} is empty"
    return f"{where}: {detail['msg'][:1].lower()}{detail['msg'][1:]} (it is {detail.get('input')!r})"


def _where(loc: Sequence[str | int], tree: Mapping[str, Any]) -> str:
    """For example: node 'finetune', seeds.1"""
    if loc[0] != "node" or len(loc) < 2:
        return ".".join(str(part) for part in loc)
    number = int(loc[1])
    name = tree["node"][number].get("name") if isinstance(tree["node"][number], dict) else None
    rest = ".".join(str(part) for part in loc[2:])
    called = f"node {name!r}" if isinstance(name, str) else f"node number {number + 1}"
    return f"{called}, {rest}" if rest else called


def _hint(word: str, known: Sequence[str]) -> str:
    meant = get_close_matches(word, known, n=1)
    return f"; {meant[0]!r} is meant, perhaps" if meant else ""

"""The manifest: what a build writes is read back equal, and anything else is refused in one line."""

import json
from dataclasses import replace

import pytest

from shards.errors import MstlError
from shards.schema import MANIFEST_NAME, Manifest, Shard, load_manifest, sealed

SHARD = Shard(path="train/000000.tar", index="train/000000.idx", samples=5, first_id=0, bytes=1024, sha256="a" * 64,
              index_sha256="b" * 64)  # fmt: skip
MANIFEST = Manifest(source="toy", modality="ct", classes=("no", "yes"), splits={"train": (SHARD,)},
                    options={"resize": None}, seed=0, tool_version="1", refused=0, duplicates=0,
                    class_counts={"train": (2, 3)}, titles={"yes": "COVID-19"})  # fmt: skip


def test_what_is_saved_is_read(tmp_path):
    MANIFEST.save(tmp_path)
    assert load_manifest(tmp_path) == MANIFEST


def test_all_is_every_split_in_order():
    test = replace(SHARD, path="test/000000.tar", index="test/000000.idx", samples=2, first_id=5)
    manifest = replace(MANIFEST, splits={"test": (test,), "train": (SHARD,)},
                       class_counts={"test": (2, 0), "train": (2, 3)})  # fmt: skip
    assert manifest.shards("all") == (SHARD, test)
    assert manifest.samples("all") == 7
    assert manifest.counts("all") == (4, 3) and manifest.counts("test") == (2, 0)


def changed(tmp_path, *places, value):
    body = json.loads(MANIFEST.to_json())
    at = body
    for place in places[:-1]:
        at = at[place]
    at[places[-1]] = value
    (tmp_path / MANIFEST_NAME).write_text(sealed(json.dumps(body, indent=1)))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("classes", "no"), ("classes", [1, 2]), ("classes", []), ("source", None), ("modality", 3),
        ("tool_version", []), ("seed", "0"), ("seed", -1), ("refused", 1.5), ("options", []), ("options", None),
        ("splits", []), ("splits", {"dev": []}), ("splits", {"train": {}}), ("splits", {"train": [[]]}), ("extra", 1),
        ("duplicates", None), ("class_counts", [5]), ("class_counts", {"train": [5]}),
        ("class_counts", {"val": [2, 3]}), ("class_counts", {"train": [-1, 6]}), ("class_counts", {"train": "23"}),
        ("class_counts", {"train": [2, 2]}),
        ("quarantine_sha256", "x"), ("titles", ["x"]), ("titles", {"maybe": "x"}), ("titles", {"no": 1}),
    ],
)  # fmt: skip
def test_wrong_values_are_refused(tmp_path, name, value):
    with pytest.raises(MstlError, match="cannot be read") as error:
        load_manifest(changed(tmp_path, name, value=value))
    assert name in error.value.why or name == "splits"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("path", "../outside.tar"), ("path", "/etc/passwd"), ("path", ""), ("path", 1), ("index", "a/../../b"),
        ("index", "nul\0"), ("samples", True), ("samples", 4), ("samples", "5"), ("first_id", -1), ("bytes", None),
        ("sha256", "abc"), ("index_sha256", 5), ("extra", 1),
    ],
)  # fmt: skip
def test_wrong_values_of_a_shard_are_refused(tmp_path, name, value):
    with pytest.raises(MstlError, match="cannot be read"):
        load_manifest(changed(tmp_path, "splits", "train", 0, name, value=value))


def test_a_change_by_hand_is_noticed(tmp_path):
    MANIFEST.save(tmp_path)
    path = tmp_path / MANIFEST_NAME
    whole = path.read_text()
    for before, after in (('"no"', '"on"'), ('"samples": 5', '"samples": 6'), ("COVID-19", "COVID-20"), ("ct", "cx")):
        assert before in whole
        path.write_text(whole.replace(before, after))
        with pytest.raises(MstlError, match="it was changed since it was written"):
            load_manifest(tmp_path)
    path.write_text(whole)
    assert load_manifest(tmp_path) == MANIFEST


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 1}', "\xff", "[" * 100_000])
def test_what_is_no_manifest_is_refused(tmp_path, text):
    (tmp_path / MANIFEST_NAME).write_bytes(text.encode("latin-1"))
    with pytest.raises(MstlError):
        load_manifest(tmp_path)

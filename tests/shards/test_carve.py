"""Carving validation parts patient by patient, and keys that are plain and unique."""

import re
from collections import Counter
from dataclasses import replace

from raw_data import listing_of

from shards.keys import unique_keys
from shards.sources import Blob, Item, carve_validation


def patients_listing(tmp_path, count=120):
    images = {f"train/{p % 2}/i{p}_{n}@p{p}.png": b"x" for p in range(count) for n in range(1 + p % 3)}
    return listing_of(tmp_path, images, carve_val=True)


def test_carving_keeps_patients_whole_and_takes_the_fraction_of_each_class(tmp_path):
    listing = patients_listing(tmp_path)
    carved = carve_validation(listing, fraction=0.25, seed=1)
    splits = {}
    for item in carved.items:
        splits.setdefault(item.patient, set()).add(item.split)
    assert all(len(seen) == 1 for seen in splits.values())
    val = {patient for patient, seen in splits.items() if seen == {"val"}}
    assert Counter(int(patient[1:]) % 2 for patient in val) == {0: 15, 1: 15}
    assert [(i.key, i.label) for i in carved.items] == [(i.key, i.label) for i in listing.items]


def test_carving_follows_seed_and_patients_alone(tmp_path):
    listing = patients_listing(tmp_path)

    def chosen(listing, seed):
        return {i.key for i in carve_validation(listing, fraction=0.2, seed=seed).items if i.split == "val"}

    assert chosen(listing, 1) == chosen(replace(listing, items=listing.items[::-1]), 1)
    assert chosen(listing, 1) != chosen(listing, 2)


def test_carving_small_groups_and_mixed_patients(tmp_path):
    images = {"train/0/a@p.png": b"x", "train/1/b@p.png": b"x", "train/0/c@q.png": b"x", "test/0/t@q.png": b"x"}
    images |= {f"train/1/u{i}.png": b"x" for i in range(3)}  # no patient: each image for itself
    carved = carve_validation(listing_of(tmp_path, images, carve_val=True), fraction=0.1, seed=0)
    splits = {item.key: item.split for item in carved.items}
    assert [splits[key] for key in ("a", "b", "c", "t")] == ["train", "train", "train", "test"]
    assert Counter(splits[f"u{i}"] for i in range(3)) == {"train": 2, "val": 1}


def test_carving_leaves_alone_what_it_should(tmp_path):
    listing = patients_listing(tmp_path, 6)
    assert carve_validation(listing, fraction=0.0, seed=0) is listing
    own = replace(listing, carve_val=False)
    assert carve_validation(own, fraction=0.5, seed=0) is own


def test_keys_are_plain_short_unique_and_independent_of_order():
    names = ["a.b c/ü", "a_b_c_", "A_B_C_", "x" * 200, "x" * 200 + "y", "", "Fine-1", "52%1.0", ".", "Case", "case"]
    items = [
        Item(key=name, split="train", label=0, patient=None, blob=Blob("f", 1), origin=f"{i}.png")
        for i, name in enumerate(names)
    ]
    keys = unique_keys(items)
    assert len({key.lower() for key in keys}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,80}", key) for key in keys)
    assert keys[6] == "Fine-1" and keys[7] == "52_1_0"
    assert unique_keys(items[::-1]) == keys[::-1]

"""Sample keys: short, plain names that are unique within a shard set."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable

from shards.sources.listing import Item

KEY_LENGTH = 80
_HASH_DIGITS = 20  # 80 bits: no two of a billion images meet


def unique_keys(items: Iterable[Item]) -> list[str]:
    """One key per item, in their order: letters, digits, `_` and `-` only, at most 80 characters, no two equal.

    WebDataset cuts the extension off at the first dot, DALI's index separates by spaces, and a USTAR header holds
    100 bytes of name. A key that was cut, or that another item has too, ends in a hash of the item's origin, so keys
    do not depend on the order of the items.
    """
    items = list(items)
    plain = [re.sub(r"[^A-Za-z0-9_-]+", "_", item.key) or "image" for item in items]
    counts = Counter(key.lower() for key in plain)  # lower: the tars may be unpacked where case does not count
    return [
        key if counts[key.lower()] == 1 and len(key) <= KEY_LENGTH else _with_hash(key, item.origin)
        for key, item in zip(plain, items, strict=True)
    ]


def _with_hash(key: str, origin: str) -> str:
    digest = hashlib.sha256(os.fsencode(origin)).hexdigest()
    return f"{key[: KEY_LENGTH - _HASH_DIGITS - 1]}-{digest[:_HASH_DIGITS]}"

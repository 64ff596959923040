"""The fingerprint that ranks compare, and the routes of an exchange: against integer arithmetic and sorting by hand."""

import pytest
import torch
from torch import Tensor

from mstl import distributed
from mstl.distributed import check_equal_on_ranks, exchange, fingerprint, routes


def slow_fingerprint(tensor: Tensor) -> int:
    """The same sum with Python's integers, as a signed 64-bit number."""
    total = 0
    numbers = tensor.flatten().view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize])
    for index, bits in enumerate(numbers.tolist(), start=1):
        place = index * -7046029254386353131 % 2**64
        place -= 2**64 if place >= 2**63 else 0
        total += bits * ((place ^ (place >> 29)) | 1)
    total %= 2**64
    return total - 2**64 if total >= 2**63 else total


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64, torch.int64, torch.bool])
def test_fingerprint_is_the_sum_it_says(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    tensor = (torch.randn(5, 7) * 3).to(dtype)
    expected = slow_fingerprint(tensor)
    assert fingerprint(tensor).item() == expected
    monkeypatch.setattr(distributed, "_CHUNK", 8)  # worked through in parts
    assert fingerprint(tensor).item() == expected


def test_fingerprint_notices_every_changed_bit_the_order_and_the_sign_of_zero() -> None:
    torch.manual_seed(0)
    tensor = torch.randn(6, 4)
    seen = {fingerprint(tensor).item()}
    bits = tensor.view(torch.int32)
    for index in range(tensor.numel()):
        for bit in range(32):
            changed = bits.clone()
            changed.view(-1)[index] ^= -(2**31) if bit == 31 else 2**bit
            seen.add(fingerprint(changed.view(torch.float32)).item())
    assert len(seen) == 1 + 24 * 32
    for row in range(5):
        swapped = tensor.clone()
        swapped[[row, row + 1]] = tensor[[row + 1, row]]
        assert fingerprint(swapped) != fingerprint(tensor)
    assert fingerprint(torch.tensor([0.0])) != fingerprint(torch.tensor([-0.0]))
    assert fingerprint(tensor.T) != fingerprint(tensor)
    assert fingerprint(tensor.T.contiguous()) == fingerprint(tensor.T)
    assert fingerprint(torch.tensor(3)).shape == ()


def test_alone_there_is_nothing_to_compare() -> None:
    check_equal_on_ranks("queue of keys", [torch.tensor(float("nan"))])


@pytest.mark.parametrize(("ranks", "rows"), [(2, 1), (2, 4), (3, 5), (5, 3), (8, 32)])
def test_routes_bring_every_rank_its_part_of_the_order_and_nothing_else(ranks: int, rows: int) -> None:
    """Mail sorted by hand between as many ranks as there are routes."""
    torch.manual_seed(rows)
    for order in (torch.randperm(ranks * rows), torch.arange(ranks * rows), torch.arange(ranks * rows).flip(0)):
        found = [routes(order, ranks, rank) for rank in range(ranks)]
        everything = torch.arange(ranks * rows).view(ranks, rows)
        mail = [everything[rank][route.rows].split(route.given) for rank, route in enumerate(found)]
        for taker, route in enumerate(found):
            parcels = [mail[giver][taker] for giver in range(ranks)]
            assert [len(parcel) for parcel in parcels] == route.taken
            assert torch.equal(torch.cat(parcels)[route.places], order[taker * rows : (taker + 1) * rows])


def test_alone_an_exchange_is_the_order() -> None:
    tensor = torch.randn(4, 3, requires_grad=True)
    found = exchange(tensor, torch.tensor([2, 0, 3, 1]))
    assert torch.equal(found, tensor[[2, 0, 3, 1]])
    assert not found.requires_grad

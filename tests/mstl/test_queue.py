"""The queue of keys: order, wrap-around and its start."""

import pytest
import torch

from mstl.ssl.queue import KeyQueue


@pytest.mark.parametrize("counts", [[4, 4, 4], [7, 1, 2], [3, 19, 2], [7], [14, 5]])
def test_queue_keeps_the_last_keys_in_order(counts: list[int]) -> None:
    queue = KeyQueue(7, 3, seed=0)
    initial = [(key, -1) for key in queue.keys.tolist()]
    pushed: list[tuple[list[float], int]] = []
    for count in counts:
        keys = torch.randn(count, 3)
        ids = torch.arange(len(pushed), len(pushed) + count)
        queue.push(keys, ids)
        pushed += list(zip(keys.tolist(), ids.tolist(), strict=True))
        oldest_first = [(int(queue.cursor) + i) % 7 for i in range(7)]
        held = [(queue.keys[i].tolist(), int(queue.sample_ids[i])) for i in oldest_first]
        assert held == (initial + pushed)[-7:]


def test_queue_starts_with_unit_vectors_of_its_own_seed() -> None:
    torch.manual_seed(1)
    one = KeyQueue(50, 8, seed=4)
    torch.manual_seed(2)
    assert torch.equal(one.keys, KeyQueue(50, 8, seed=4).keys)
    assert not torch.equal(one.keys, KeyQueue(50, 8, seed=5).keys)
    torch.testing.assert_close(one.keys.norm(dim=1), torch.ones(50))
    assert set(one.sample_ids.tolist()) == {-1}
    assert set(one.state_dict()) == {"keys", "sample_ids", "cursor"}

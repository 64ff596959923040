"""NT-Xent and SimCLR on one rank: slow loop, closed forms, numerical gradients, precision."""

import math

import pytest
import torch
import torch.nn.functional as F
from moco_cases import freeze_norms, make_batch, make_simclr
from torch import Tensor

from mstl.losses import nt_xent_logits, nt_xent_loss
from pipelines.batch import Batch


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def slow_nt_xent(first: Tensor, second: Tensor, ids: list[int], temperature: float) -> float:
    """SimCLR's equation 1, both orders of each pair, views of the same image left out of the sums."""
    views = [*first, *second]
    images = len(first)
    total = 0.0
    for i, view in enumerate(views):
        other = (i + images) % (2 * images)
        positive = math.exp(float(view @ views[other]) / temperature)
        others = [
            math.exp(float(view @ views[j]) / temperature)
            for j in range(2 * images)
            if ids[i % images] != ids[j % images]
        ]
        total -= math.log(positive / (positive + sum(others)))
    return total / (2 * images)


@pytest.mark.parametrize("ids", [[3, 1, 4, 15, 9], [3, 1, 3, 15, 9]])
def test_nt_xent_equals_the_slow_loop(ids: list[int]) -> None:
    torch.manual_seed(0)
    first, second = unit(5, 8), unit(5, 8)
    found = nt_xent_loss(first, second, torch.tensor(ids), 0.1).item()
    assert found == pytest.approx(slow_nt_xent(first, second, ids, 0.1), rel=1e-12)


def test_nt_xent_closed_forms() -> None:
    ids = torch.arange(6)
    same = torch.zeros(6, 4)
    same[:, 0] = 1.0
    assert nt_xent_loss(same, same, ids, 0.1).item() == pytest.approx(math.log(2 * 6 - 1), rel=1e-6)
    apart = torch.eye(6)
    expected = math.log(1 + (2 * 6 - 2) * math.exp(-1 / 0.5))
    assert nt_xent_loss(apart, apart, ids, 0.5).item() == pytest.approx(expected, rel=1e-6)
    assert nt_xent_loss(apart, apart, torch.zeros(6, dtype=torch.long), 0.5).item() == 0.0  # nothing to tell apart


def test_each_view_is_compared_with_all_but_itself() -> None:
    torch.manual_seed(0)
    first, second = unit(3, 4), unit(3, 4)
    logits, positives = nt_xent_logits(first, second, torch.tensor([5, 6, 7]), 0.2)
    everyone = torch.cat((first, second))
    expected = everyone @ everyone.T / 0.2
    assert torch.equal(torch.isinf(logits), torch.eye(6, dtype=torch.bool))
    torch.testing.assert_close(logits[~torch.eye(6, dtype=torch.bool)], expected[~torch.eye(6, dtype=torch.bool)])
    assert positives.tolist() == [3, 4, 5, 0, 1, 2]


def test_nt_xent_gradients_in_float64() -> None:
    torch.manual_seed(0)
    first, second = unit(3, 5).requires_grad_(), unit(3, 5).requires_grad_()
    ids = torch.tensor([0, 1, 1])
    assert torch.autograd.gradcheck(lambda a, b: nt_xent_loss(a, b, ids, 0.3), (first, second))
    assert nt_xent_loss(first, second, ids, 0.3).dtype == torch.float64


def test_the_module_is_the_loss_of_its_normalised_projections() -> None:
    model = freeze_norms(make_simclr())
    batch = make_batch([4, 5, 6, 7], seed=1)
    scalars = model(batch)
    views = [F.normalize(model.projection(model.backbone(batch.views[name])), dim=1) for name in ("q", "k")]
    expected = slow_nt_xent(*(view.detach() for view in views), batch.sample_ids.tolist(), 0.2)
    assert scalars["loss"].item() == pytest.approx(expected, rel=1e-4)
    similar = torch.cat(views) @ torch.cat(views).T
    similar.fill_diagonal_(-2)
    right = similar.argmax(1) == torch.tensor([4, 5, 6, 7, 0, 1, 2, 3])
    assert scalars["contrast_accuracy"].item() == pytest.approx(right.float().mean().item())
    assert not scalars["contrast_accuracy"].requires_grad


def test_both_views_share_the_statistics_of_one_forward() -> None:
    model = make_simclr()
    model(make_batch([0, 1, 2], seed=0))
    assert int(model.backbone.bn1.num_batches_tracked) == 1


def test_every_weight_but_the_last_shift_learns() -> None:
    model = make_simclr()
    model(make_batch([0, 1, 2, 3], seed=0))["loss"].backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == ["projection.4.bias"]  # the one shift that SimCLR's head does without
    assert not model.get_parameter("projection.4.bias").requires_grad
    assert not model.get_parameter("projection.4.bias").any()
    assert {name.partition(".")[0] for name, _ in model.named_parameters()} == {"backbone", "projection"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_and_projections_stay_in_float32_under_autocast(dtype: torch.dtype) -> None:
    model = make_simclr()
    batch = make_batch([0, 1, 2, 3], seed=0)
    seen: list[torch.dtype] = []
    model.backbone.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    model.projection.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    with torch.autocast("cpu", dtype=dtype):
        scalars = model(batch)
    assert seen == [dtype, torch.float32]
    assert scalars["loss"].dtype == torch.float32
    scalars["loss"].backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.requires_grad)
    logits, _ = nt_xent_logits(unit(4, 8).to(dtype), unit(4, 8).to(dtype), torch.arange(4), 0.1)
    assert logits.dtype == torch.float32


def test_it_learns_to_tell_smooth_images_apart() -> None:
    """Two noisy crops of each of 32 patterns, 40 updates of SGD: from chance to most of them, in training and after."""
    generator = torch.Generator().manual_seed(0)
    patterns = F.interpolate(torch.randn(32, 3, 6, 6, generator=generator), 40, mode="bicubic")
    model = make_simclr()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.03, momentum=0.9)

    def crop() -> Tensor:
        top, left = torch.randint(0, 9, (2,), generator=generator).tolist()
        cut = patterns[:, :, top : top + 32, left : left + 32]
        return cut + 0.3 * torch.randn(cut.shape, generator=generator)

    def scalars() -> dict[str, Tensor]:
        ids = torch.arange(32)
        found: dict[str, Tensor] = model(Batch(views={"q": crop(), "k": crop()}, labels=ids, sample_ids=ids))
        return found

    accuracies = []
    for _ in range(40):
        optimizer.zero_grad()
        found = scalars()
        found["loss"].backward()
        optimizer.step()
        accuracies.append(found["contrast_accuracy"].item())
    model.eval()
    assert accuracies[0] < 0.6 < 0.85 < sum(accuracies[-5:]) / 5
    assert scalars()["contrast_accuracy"] > 0.6

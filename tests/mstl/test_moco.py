"""Momentum contrast on one rank: losses, key encoder, queue, precision."""

import copy
import math
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from moco_cases import double_batch, freeze_norms, make_batch, make_model, part_of, train_step
from torch import Tensor, nn

from mstl.losses import contrastive_loss
from mstl.models.attention import AttentionBlock
from mstl.ssl.moco import REGIONS, MomentumContrast
from pipelines.batch import Batch


def slow_losses(model: MomentumContrast, batch: Batch) -> tuple[float, float, float, float]:
    """Contrastive loss, summed region loss, and both accuracies, from the equations, with batch norms frozen."""
    with torch.no_grad():
        query = F.normalize(model.projection(model.backbone(batch.views["q"])), dim=1)
        key = F.normalize(model.key_projection(model.key_backbone(batch.views["k"])), dim=1)
        contrastive, nearest, region, right = 0.0, 0, 0.0, 0
        for b in range(len(batch)):
            positive = float(query[b] @ key[b])
            negatives = [
                float(query[b] @ model.queue.keys[i])
                for i in range(len(model.queue.keys))
                if model.queue.sample_ids[i] != batch.sample_ids[b]
            ]
            exponentials = [math.exp(s / model.temperature) for s in (positive, *negatives)]
            contrastive -= math.log(exponentials[0] / sum(exponentials)) / len(batch)
            nearest += positive > max(negatives)
            for i, name in enumerate(("ru", "rm", "rl", "lu", "ll")):
                assert model.region_head is not None
                logits = model.region_head(model.backbone(batch.views[name][b : b + 1]))[0]
                region -= float(logits.log_softmax(0)[i])
                right += int(logits.argmax()) == i
    return contrastive, region, nearest / len(batch), right / (5 * len(batch))


@pytest.mark.parametrize("mode", ["normalised", "literal"])
def test_losses_equal_the_equations_with_same_images_left_out(mode: Literal["normalised", "literal"]) -> None:
    model = freeze_norms(make_model(region_mode=mode))
    train_step(model, make_batch([10, 11, 12, 13], seed=0))  # the queue now holds 10 to 13 and two random keys
    batch = make_batch([12, 20, 10], seed=1)
    scalars = model(batch)
    contrastive, region, nearest, right = slow_losses(model, batch)
    region = region / 3 if mode == "normalised" else region
    assert scalars["contrastive"].item() == pytest.approx(contrastive, rel=1e-4)
    assert scalars["region"].item() == pytest.approx(region, rel=1e-4)
    assert scalars["loss"].item() == pytest.approx(0.7 * contrastive + 0.3 * region, rel=1e-4)
    assert scalars["contrast_accuracy"].item() == pytest.approx(nearest)
    assert scalars["region_accuracy"].item() == pytest.approx(right)
    mask = model.queue.negatives_mask(batch.sample_ids)
    assert mask.sum(dim=1).tolist() == [5, 6, 5]


def test_region_branch_off_is_plain_contrast() -> None:
    model = make_model(region_mode="off")
    assert not any("region" in name for name, _ in model.named_parameters())
    scalars = model(make_batch([0, 1, 2], seed=0))
    assert scalars.keys() == {"loss", "contrastive", "contrast_accuracy"}
    assert scalars["loss"].item() == pytest.approx(0.7 * scalars["contrastive"].item())


def test_every_trainable_parameter_learns_and_no_key_parameter_does() -> None:
    model = make_model("resnet14-attn5")
    for block in model.modules():
        if isinstance(block, AttentionBlock):
            nn.init.ones_(block.norm.weight)
    model(make_batch([0, 1, 2, 3], seed=0))["loss"].backward()
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.partition(".")[0] for name in trainable} == {"backbone", "projection", "region_head"}
    silent = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert silent == []
    keys = {name: p for name, p in model.named_parameters() if name.startswith("key_")}
    assert len(keys) == len(list(model.backbone.parameters())) + 2
    assert [name for name, p in keys.items() if p.requires_grad or p.grad is not None] == []


def test_momentum_moves_the_whole_key_encoder_and_only_in_training() -> None:
    model = make_model(momentum=0.9)
    pairs = [
        (model.key_backbone.get_parameter(name), query, name) for name, query in model.backbone.named_parameters()
    ] + [(model.key_projection.get_parameter(name), query, name) for name, query in model.projection.named_parameters()]
    assert all(torch.equal(key, query) for key, query, _ in pairs)
    with torch.no_grad():
        for _, query, _ in pairs:
            query += torch.randn_like(query)
    before = [key.clone() for key, _, _ in pairs]
    model.eval()
    model(make_batch([0, 1], seed=0))
    assert all(torch.equal(key, old) for (key, _, _), old in zip(pairs, before, strict=True))
    model.train()
    model(make_batch([0, 1], seed=0))
    for (key, query, name), old in zip(pairs, before, strict=True):
        expected = 0.9 * old + (1 - 0.9) * query
        torch.testing.assert_close(key, expected, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_keys_come_from_the_updated_key_encoder() -> None:
    model = freeze_norms(make_model(momentum=0.0))
    with torch.no_grad():
        for parameter in (*model.backbone.parameters(), *model.projection.parameters()):
            parameter += 0.05 * torch.randn_like(parameter)
    batch = make_batch([5, 6, 7], seed=2)
    model(batch)
    model.after_step()
    expected = F.normalize(model.projection(model.backbone(batch.views["k"])), dim=1)
    torch.testing.assert_close(model.queue.keys[:3], expected, rtol=1e-5, atol=1e-6)
    assert model.queue.sample_ids.tolist() == [5, 6, 7, -1, -1, -1]


def test_key_batchnorms_learn_their_own_statistics() -> None:
    model = make_model()
    model(make_batch([0, 1, 2, 3], seed=0))
    query, key = model.backbone.bn1, model.key_backbone.bn1
    assert int(key.num_batches_tracked) == 1
    assert int(query.num_batches_tracked) == 2  # the query, then the five regions together
    assert not torch.equal(query.running_mean, key.running_mean)


def test_a_dropped_step_leaves_the_queue() -> None:
    model = make_model()
    before = copy.deepcopy(model.queue.state_dict())
    model(make_batch([0, 1], seed=0))
    with pytest.raises(AssertionError, match="after_step"):
        model(make_batch([0, 1], seed=0))
    model.skip_step()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.queue.state_dict().items())
    model(make_batch([2, 3], seed=0))
    model.after_step()
    assert model.queue.sample_ids.tolist() == [2, 3, -1, -1, -1, -1]
    with pytest.raises(AssertionError, match="no training forward"):
        model.after_step()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_and_keys_stay_in_float32_under_autocast(dtype: torch.dtype) -> None:
    model = freeze_norms(make_model())
    assert model.region_head is not None
    nn.init.normal_(model.region_head.weight)  # small logits' rounding would cancel over the five classes
    batch = make_batch([0, 1, 2], seed=0)
    crops = torch.cat([batch.views[name] for name in REGIONS])
    with torch.autocast("cpu", dtype=dtype):
        scalars = model(batch)
        features = [model.backbone(images).float() for images in (batch.views["q"], batch.views["k"], crops)]
    assert {name: s.dtype for name, s in scalars.items()} == dict.fromkeys(scalars, torch.float32)
    # The backbone works in half precision; from its features on everything is float32.
    query, key = (F.normalize(model.projection(f), dim=1) for f in features[:2])
    assert scalars["contrastive"].item() == pytest.approx(contrastive_loss(query, key, model.queue.keys, 0.2).item())
    by_region = model.region_head(features[2]).log_softmax(dim=1)
    expected = -by_region[torch.arange(15), torch.arange(5).repeat_interleave(3)].sum() / 3
    assert scalars["region"].item() == pytest.approx(expected.item(), rel=1e-6)
    model.after_step()
    torch.testing.assert_close(model.queue.keys.norm(dim=1), torch.ones(6), rtol=0, atol=1e-6)


def test_the_wider_head_is_two_layers_and_its_key_follows() -> None:
    model = make_model(head="mlp", region_mode="off", momentum=0.5)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.projection.named_parameters()}
    assert shapes == {"0.weight": (24, 24), "0.bias": (24,), "2.weight": (16, 24), "2.bias": (16,)}
    train_step(model, make_batch([0, 1, 2, 3], seed=0))
    before = model.key_projection.get_parameter("0.weight").clone()
    query = model.projection.get_parameter("0.weight").clone()
    assert not torch.equal(before, query)
    model(make_batch([4, 5, 6, 7], seed=1))
    torch.testing.assert_close(model.key_projection.get_parameter("0.weight"), (before + query) / 2)


def test_parts_of_the_batch_are_normalised_apart_and_keys_shuffled_over_them() -> None:
    """Against forwards of each part alone, through torch's own norms."""
    model, plain = make_model(bn_group=2).double(), make_model().double()
    batch = double_batch(make_batch([0, 1, 2, 3, 4], seed=5))
    scalars = model(batch)

    def alone(images: Tensor) -> Tensor:
        return plain.backbone(images).detach()

    parts = (slice(0, 3), slice(3, 5))
    query = F.normalize(plain.projection(torch.cat([alone(batch.views["q"][part]) for part in parts])), dim=1)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(0))
    assert order.tolist() != list(range(5))
    shuffled = batch.views["k"][order]
    keys = torch.cat([alone(shuffled[part]) for part in parts])[order.argsort()]
    key = F.normalize(plain.projection(keys), dim=1)
    expected = contrastive_loss(query, key, plain.queue.keys, 0.2)
    assert scalars["contrastive"].item() == pytest.approx(expected.item(), rel=1e-9)
    losses = [plain._region(plain.region_head, {name: v[part] for name, v in batch.views.items()})[0] for part in parts]
    assert scalars["region"].item() == pytest.approx((3 * losses[0].item() + 2 * losses[1].item()) / 5, rel=1e-9)
    model.after_step()
    torch.testing.assert_close(model.queue.keys[:5], key.detach(), rtol=1e-9, atol=1e-12)


def test_a_batch_of_one_part_is_not_shuffled() -> None:
    grouped, plain = make_model(bn_group=4), make_model()
    for seed in range(2):
        for model in (grouped, plain):
            train_step(model, make_batch([0, 1, 2, 3], seed=seed))
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in grouped.state_dict().items())


def test_evaluation_does_not_depend_on_the_batch_or_its_parts() -> None:
    model = make_model(bn_group=2).eval()
    batch = make_batch([0, 1, 2, 3, 4, 5], seed=0)
    before = copy.deepcopy(model.state_dict())
    with torch.inference_mode():
        whole = model(batch)
        halves = [model(part_of(batch, start, start + 3)) for start in (0, 3)]
        again = model(batch)
    for name, value in whole.items():
        assert torch.equal(value, again[name])
        mean = (halves[0][name] + halves[1][name]) / 2
        torch.testing.assert_close(mean, value, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_saved_state_continues_exactly() -> None:
    one = make_model()
    train_step(one, make_batch([0, 1, 2, 3], seed=0))
    two = make_model(seed=9)
    two.load_state_dict(one.state_dict(), strict=True)
    for model in (one, two):
        train_step(model, make_batch([4, 5, 6, 7], seed=1))
    assert int(two.step) == 2
    assert all(torch.equal(two.state_dict()[name], tensor) for name, tensor in one.state_dict().items())

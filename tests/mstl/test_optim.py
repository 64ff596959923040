"""The optimizers: LARS against a slow loop over layers, what is left alone, and states that are saved."""

import io
import math

import pytest
import torch
from moco_cases import make_batch, make_model
from torch import Tensor, nn

from mstl.optim import Lars, build_optimizer
from mstl.recipes import Optim

ETA = 0.001  # SimCLR's


def settings(**fields: object) -> Optim:
    return Optim.model_validate({"epochs": 1, "lr": 0.3, "momentum": 0.9, "weight_decay": 0.05, **fields})


class Net(nn.Module):
    """A convolution, a norm, a linear layer and a weight that is zero at first; float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, dtype=torch.float64)
        self.norm = nn.BatchNorm2d(4, dtype=torch.float64)
        self.fc = nn.Linear(4, 2, dtype=torch.float64)
        self.zero = nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))
        self.frozen = nn.Parameter(torch.ones(2, 2, dtype=torch.float64), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.norm(self.conv(x)).mean((2, 3)).square()) @ (self.zero + torch.eye(2))
        return out.square().sum()


def gradients(net: Net, seed: int) -> None:
    net.zero_grad()
    generator = torch.Generator().manual_seed(seed)
    net(torch.randn(5, 3, 6, 6, generator=generator, dtype=torch.float64)).backward()


def slow_lars(net: Net, velocity: dict[str, list[float]], lr: float, decay: float, momentum: float) -> None:
    """You et al.'s rule, number by number."""
    for name, parameter in net.named_parameters():
        if parameter.grad is None:
            continue
        weights = parameter.detach().flatten().tolist()
        update = parameter.grad.flatten().tolist()
        trust = 1.0
        if not (name.endswith("bias") or name.startswith("norm")):
            update = [g + decay * w for g, w in zip(update, weights, strict=True)]
            weight_norm = math.sqrt(sum(w * w for w in weights))
            update_norm = math.sqrt(sum(g * g for g in update))
            if weight_norm > 0 and update_norm > 0:
                trust = ETA * weight_norm / update_norm
        old = velocity.get(name, [0.0] * len(weights))
        velocity[name] = [momentum * v + lr * trust * g for v, g in zip(old, update, strict=True)]
        moved = [w - v for w, v in zip(weights, velocity[name], strict=True)]
        with torch.no_grad():
            parameter.copy_(torch.tensor(moved, dtype=parameter.dtype).view_as(parameter))


def test_lars_is_the_published_rule_at_changing_rates() -> None:
    ours, slow = Net(), Net()
    optimizer = build_optimizer(ours.named_parameters(), settings(algorithm="lars"))
    velocity: dict[str, list[float]] = {}
    for seed, rate in enumerate((0.3, 0.3, 0.05, 0.01)):
        gradients(ours, seed)
        gradients(slow, seed)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        slow_lars(slow, velocity, rate, decay=0.05, momentum=0.9)
    for (name, one), two in zip(ours.named_parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-14, msg=lambda m, n=name: f"{n}: {m}")
    assert torch.equal(ours.frozen, torch.ones(2, 2, dtype=torch.float64))
    assert ours.zero.any()


def test_lars_moves_a_layer_by_its_own_size_whatever_its_gradient() -> None:
    weight = nn.Parameter(torch.full((2, 3), 2.0, dtype=torch.float64))
    optimizer = Lars([weight], lr=0.5, momentum=0.0, weight_decay=0.0)
    for scale in (1e-6, 1e6):
        before = weight.detach().clone()
        weight.grad = torch.full((2, 3), scale, dtype=torch.float64)
        optimizer.step()
        assert (weight - before).norm().item() == pytest.approx(0.5 * ETA * before.norm().item(), rel=1e-5)


def test_lars_leaves_out_what_has_no_gradient() -> None:
    with_gradient, without = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = Lars([with_gradient, without], lr=0.5, momentum=0.9, weight_decay=1.0)
    with_gradient.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(without, torch.ones(2, 2))
    assert not torch.equal(with_gradient, torch.ones(2, 2))
    Lars([nn.Parameter(torch.ones(2))], lr=0.5, momentum=0.9, weight_decay=1.0).step()  # one group alone


def test_sgd_is_torchs_on_all_trained_weights() -> None:
    ours, plain = Net(), Net()
    optimizer = build_optimizer(ours.named_parameters(), settings())
    trained = [parameter for parameter in plain.parameters() if parameter.requires_grad]
    reference = torch.optim.SGD(trained, lr=0.3, momentum=0.9, weight_decay=0.05, foreach=False)
    for seed in range(3):
        gradients(ours, seed)
        gradients(plain, seed)
        optimizer.step()
        reference.step()
    for one, two in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("algorithm", ["sgd", "lars"])
def test_a_saved_state_continues_bitwise(algorithm: str) -> None:
    whole, broken = Net(), Net()
    optim = settings(algorithm=algorithm)
    optimizer = build_optimizer(whole.named_parameters(), optim)
    first = build_optimizer(broken.named_parameters(), optim)
    for seed in range(2):
        for net, own in ((whole, optimizer), (broken, first)):
            gradients(net, seed)
            own.step()
    file = io.BytesIO()
    torch.save({"optimizer": first.state_dict(), "net": broken.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = Net()
    resumed.load_state_dict(saved["net"])
    second = build_optimizer(resumed.named_parameters(), optim)
    second.load_state_dict(saved["optimizer"])
    for net, own in ((whole, optimizer), (resumed, second)):
        gradients(net, 9)
        own.step()
    assert all(torch.equal(one, two) for one, two in zip(whole.parameters(), resumed.parameters(), strict=True))


@pytest.mark.parametrize("algorithm", ["sgd", "lars"])
def test_no_optimizer_holds_a_key_parameter(algorithm: str) -> None:
    model = make_model("resnet14-attn1")
    model(make_batch([0, 1, 2, 3], seed=0))["loss"].backward()
    optimizer = build_optimizer(model.named_parameters(), settings(algorithm=algorithm))
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in held}
    assert {name.partition(".")[0] for name in names} == {"backbone", "projection", "region_head"}
    assert names == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {id(parameter) for name, parameter in model.named_parameters() if name.startswith("key_")}.isdisjoint(held)

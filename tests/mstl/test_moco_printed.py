"""Eq. 2 as it is printed: the temperature divides the positive alone."""

import pytest
import torch
from moco_cases import TinyBackbone, make_batch, make_model

from mstl.recipes import build_recipe
from mstl.ssl.build import build_method


def test_the_negatives_are_left_undivided() -> None:
    batch = make_batch([100, 101, 102, 103], seed=5)
    plain, printed = make_model().eval(), make_model(temperature_on="positive").eval()
    with torch.no_grad():
        found, usual = printed(batch), plain(batch)
    with torch.no_grad():
        query = torch.nn.functional.normalize(plain.projection(plain.backbone(batch.views["q"])))
        key = torch.nn.functional.normalize(plain.key_projection(plain.key_backbone(batch.views["k"])))
    losses = []
    for q, k in zip(query, key, strict=True):
        positive = torch.exp(q @ k / 0.2)
        negatives = sum(torch.exp(q @ other) for other in plain.queue.keys)
        losses.append(-torch.log(positive / (positive + negatives)))
    assert float(found["contrastive"]) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)
    assert float(found["contrastive"]) != pytest.approx(float(usual["contrastive"]), rel=1e-2)
    assert found["contrast_accuracy"] == usual["contrast_accuracy"]  # who is nearest does not depend on it


def test_the_printed_recipe_asks_for_it() -> None:
    recipe = build_recipe("sstl_m", flavour="printed")
    assert build_method(TinyBackbone(), recipe, seed=0).temperature_on == "positive"

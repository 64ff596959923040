"""Grad-CAM and attention maps against closed forms and slow references, and the grid that shows them."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from tiny_runs import make_run, make_shards, tiny_classifier
from torch import Tensor

from mstl.cli.explain import command
from mstl.evaluation.explain import (
    attention_map,
    explain_run,
    grad_cam,
    heat_images,
    heatmap_grid,
    min_max,
    plain_images,
)
from mstl.models.classifier import Classifier
from pipelines.recipe import IMAGENET_MEAN, IMAGENET_STD
from shards.errors import MstlError


@pytest.fixture(scope="module")
def attentive() -> Classifier:
    return tiny_classifier("resnet14-attn5", 3)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))


def test_grad_cam_of_a_linear_head_has_a_closed_form(attentive: Classifier, images: Tensor) -> None:
    """z_c = w_c · mean(F) + b, so that α = w_c / (h·w)."""
    with torch.no_grad():
        features = attentive.backbone.feature_maps(images)["res5"]
        h, w = features.shape[2:]
        seen = []
        for c in range(3):
            expected = (attentive.fc.weight[c][None, :, None, None] / (h * w) * features).sum(1).relu()
            found = grad_cam(attentive, images, c)
            assert found.shape == (2, 2, 3)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
            seen.append(expected)
    assert any(maps.amax() > 0 for maps in seen)


def test_grad_cam_equals_autograd_through_the_whole_network(attentive: Classifier, images: Tensor) -> None:
    seen: list[Tensor] = []
    hook = attentive.backbone.attention["res5"].register_forward_hook(
        lambda module, arguments, output: (output.retain_grad(), seen.append(output))[1]
    )
    logits = attentive(images)
    hook.remove()
    logits[:, 2].sum().backward()
    (features,) = seen
    assert features.grad is not None
    slow = torch.zeros(2, *features.shape[2:])
    for image in range(2):
        for k in range(features.shape[1]):
            slow[image] += features.grad[image, k].mean() * features[image, k].detach()
    attentive.zero_grad()
    torch.testing.assert_close(grad_cam(attentive, images, 2), slow.relu(), rtol=1e-3, atol=1e-7)


def test_grad_cam_leaves_no_gradients_and_works_without_grad(attentive: Classifier, images: Tensor) -> None:
    attentive.zero_grad(set_to_none=True)
    with torch.no_grad():
        quiet = grad_cam(attentive, images, 0)
    torch.testing.assert_close(quiet, grad_cam(attentive, images, 0))
    assert all(parameter.grad is None for parameter in attentive.parameters())
    assert not quiet.requires_grad


def test_the_attention_map_is_the_mean_over_queries_of_the_last_block(attentive: Classifier, images: Tensor) -> None:
    with torch.no_grad():
        x = attentive.backbone.layer4(attentive.backbone.feature_maps(images)["res4"])
        weights = attentive.backbone.attention["res5"][-1].attention.weights(x)
    positions = x.shape[2] * x.shape[3]
    assert weights.shape == (2, positions, positions)
    torch.testing.assert_close(weights.mean(1), torch.full((2, positions), 1 / positions))  # over keys: says nothing
    slow = torch.stack([weights[:, :, query] for query in range(positions)]).sum(0) / positions
    found = attention_map(attentive, images)
    assert found.shape == (2, 2, 3)
    torch.testing.assert_close(found.flatten(1), slow)
    torch.testing.assert_close(found.sum((1, 2)), torch.ones(2))
    assert (found.amax((1, 2)) - found.amin((1, 2)) > 1e-6).all()


@pytest.mark.parametrize("name", ["resnet14", "resnet14-attn1"])
def test_a_network_that_ends_without_attention_has_no_map(name: str, images: Tensor) -> None:
    with pytest.raises(MstlError, match="no attention block after res5"):
        attention_map(tiny_classifier(name, 3), images)


def test_a_network_in_training_mode_is_a_programmers_error(images: Tensor) -> None:
    classifier = deepcopy(tiny_classifier("resnet14-attn5", 3)).train()
    for explain in (lambda: grad_cam(classifier, images, 0), lambda: attention_map(classifier, images)):
        with pytest.raises(AssertionError, match="evaluation mode"):
            explain()


def test_min_max_scales_each_map_alone_and_survives_a_flat_one() -> None:
    maps = torch.tensor([[[1.0, 3.0], [2.0, 5.0]], [[-10.0, 0.0], [10.0, 5.0]], [[7.0, 7.0], [7.0, 7.0]]])
    expected = torch.tensor([[[0, 0.5], [0.25, 1]], [[0, 0.5], [1, 0.75]], [[0, 0], [0, 0]]])
    torch.testing.assert_close(min_max(maps), expected)


def test_heat_is_blue_when_low_and_red_when_high() -> None:
    heat = heat_images(torch.tensor([[[0.0, 1.0], [0.0, 1.0]]]), (8, 20))
    assert heat.shape == (1, 8, 20, 3)
    low, high = heat[0, 4, 0], heat[0, 4, -1]
    assert low[2] > low[0] and high[0] > high[2]
    np.testing.assert_allclose(heat[0, 0], heat[0, -1])


def test_plain_images_undo_the_normalisation() -> None:
    pixels = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    np.testing.assert_allclose(plain_images((pixels - mean) / std), pixels.permute(0, 2, 3, 1).numpy(), atol=1e-6)


def test_the_grid_has_five_columns_with_attention_and_three_without(images: Tensor) -> None:
    import io

    sizes = {}
    for name in ("resnet14", "resnet14-attn5"):
        png = heatmap_grid(tiny_classifier(name, 3), images, [0, 1], names=["a", "b"], title="t")
        sizes[name] = Image.open(io.BytesIO(png)).size
    assert sizes["resnet14-attn5"][0] - sizes["resnet14"][0] == pytest.approx(2 * 1.75 * 160, abs=2)
    assert sizes["resnet14-attn5"][1] == sizes["resnet14"][1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explain")
    return make_run(folder / "run", folder / "shards", make_shards(folder / "shards", per_class=3))


def test_explaining_a_run_shows_the_first_positives(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def spy(classifier: Classifier, x: Tensor, classes: list[int], *, names: list[str], title: str) -> bytes:
        calls.append((tuple(x.shape), classes, names))
        return heatmap_grid(classifier, x, classes, names=names, title=title)

    monkeypatch.setattr("mstl.evaluation.explain.heatmap_grid", spy)
    assert explain_run(run, split="test", count=2, out=tmp_path / "new" / "grid.png") == 2
    assert explain_run(run, split="test", count=50, out=tmp_path / "all.png") == 3
    assert [classes for _, classes, _ in calls] == [[1, 1], [1, 1, 1]]
    assert calls[0][0] == (2, 3, 48, 48)
    ids = [int(name.split()[1]) for name in calls[1][2]]
    assert ids == sorted(ids) and [int(name.split()[1]) for name in calls[0][2]] == ids[:2]
    assert Image.open(tmp_path / "all.png").height > Image.open(tmp_path / "new" / "grid.png").height


class Counts:
    """Progress that remembers what was announced and what was done."""

    def __init__(self) -> None:
        self.seen: dict[str, list[int]] = {}

    def start(self, total: int, what: str) -> None:
        self.seen[what] = [total, 0]
        self.now = what

    def advance(self, n: int = 1) -> None:
        self.seen[self.now][1] += n


@pytest.mark.parametrize(("count", "shown"), [(1000, 3), (2, 2)])
def test_progress_announces_as_many_as_there_are(run: Path, tmp_path: Path, count: int, shown: int) -> None:
    progress = Counts()
    assert explain_run(run, split="test", count=count, out=tmp_path / "grid.png", progress=progress) == shown
    assert progress.seen["explain"] == [shown, shown]


def test_with_more_classes_every_image_counts_once(tmp_path: Path) -> None:
    manifest = make_shards(tmp_path / "shards", classes=("a", "b", "c"), per_class=6)  # 18: the last batch is padded
    run = make_run(tmp_path / "run", tmp_path / "shards", manifest, stage="stl_m")
    progress = Counts()
    assert explain_run(run, split="test", count=50, out=tmp_path / "grid.png", progress=progress) == 18
    assert progress.seen["explain"] == [18, 18]


def test_more_images_than_a_picture_holds_are_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mstl.evaluation.explain.MOST_IMAGES", 2)
    assert explain_run(run, split="test", count=2, out=tmp_path / "grid.png") == 2
    with pytest.raises(MstlError, match=r"--count 3: .*Name 2 at most"):
        explain_run(run, split="test", count=3, out=tmp_path / "other.png")
    assert not (tmp_path / "other.png").exists()


def test_a_split_without_positives_is_refused(tmp_path: Path) -> None:
    manifest = make_shards(tmp_path / "shards", per_class=2, without=("test", 1))
    run = make_run(tmp_path / "run", tmp_path / "shards", manifest)
    with pytest.raises(MstlError, match="no positive image"):
        explain_run(run, split="test", count=2, out=tmp_path / "grid.png")
    assert not (tmp_path / "grid.png").exists()


def test_the_command_writes_to_the_runs_evaluation_folder(run: Path) -> None:
    result = CliRunner().invoke(command, [str(run), "--split", "val", "--count", "1"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    target = run / "evaluation" / "val" / "heatmaps.png"
    assert f"Wrote {target} (1 images)" in result.output
    assert Image.open(target).format == "PNG"

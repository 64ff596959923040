"""Grad-CAM and attention maps against closed forms and slow references, the grid that shows them, and whole runs."""

from __future__ import annotations

import csv
import io
import json
import shutil
from contextlib import closing
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from tiny_runs import SIDE, make_run, make_shards, tiny_classifier
from torch import Tensor

from mstl.cli.explain import command
from mstl.evaluation.explain import explain_run
from mstl.evaluation.explain_grid import HEAT_SHARE, OUTLINE, HeatColumn, Shown, heat_images, heatmap_grid, plain_images
from mstl.evaluation.explain_maps import attention_map, enlarged, grad_cam, min_max
from mstl.evaluation.predictions import predict
from mstl.models.classifier import Classifier
from mstl.runs import load_classifier, open_run
from pipelines.loader import Loader
from pipelines.recipe import IMAGENET_MEAN, IMAGENET_STD
from shards.errors import MstlError
from shards.read import read_records


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


def test_grad_cam_takes_a_class_for_each_image(attentive: Classifier, images: Tensor) -> None:
    both = grad_cam(attentive, images, torch.tensor([2, 0]))
    torch.testing.assert_close(both[0], grad_cam(attentive, images[:1], 2)[0])
    torch.testing.assert_close(both[1], grad_cam(attentive, images[1:], 0)[0])
    assert not torch.equal(both[0], grad_cam(attentive, images[:1], 0)[0])


def test_the_grid_holds_original_heat_and_overlay_of_every_map(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, object]] = []

    def spy(rows: object, **words: object) -> bytes:
        calls.append({"rows": rows, **words})
        return b""

    monkeypatch.setattr("mstl.evaluation.explain_grid.image_grid", spy)
    random = np.random.default_rng(0)
    pictures = random.random((2, 8, 8, 3), dtype=np.float32)
    mask = np.zeros((8, 8), bool)
    mask[2:6, 3:7] = True
    maps = {"CAM": torch.stack([torch.zeros(2, 2), torch.eye(2)]), "attention": torch.rand(2, 2, 2)}
    heatmap_grid(
        [Shown(name="a", image=pictures[0]), Shown(name="b", image=pictures[1], mask=mask)],
        [HeatColumn(name=name, maps=heats) for name, heats in maps.items()],
        title="t",
    )
    (call,) = calls
    assert call["columns"] == ["original", "CAM", "CAM overlay", "attention", "attention overlay"]
    assert call["names"] == ["a\nCAM empty", "b"]
    rows = call["rows"]
    assert isinstance(rows, list)
    heat = heat_images(maps["attention"], (8, 8))
    np.testing.assert_allclose(rows[0][0], pictures[0])
    np.testing.assert_allclose(rows[0][3], heat[0])
    np.testing.assert_allclose(rows[0][4], (1 - HEAT_SHARE) * pictures[0] + HEAT_SHARE * heat[0])
    border = mask.copy()
    border[3:5, 4:6] = False
    np.testing.assert_allclose(rows[1][3][border], np.tile(OUTLINE, (border.sum(), 1)))
    np.testing.assert_allclose(rows[1][3][~border], heat[1][~border])


def test_the_grid_is_a_picture() -> None:
    row = Shown(name="a", image=np.zeros((8, 8, 3), np.float32))
    sizes = [
        Image.open(
            io.BytesIO(heatmap_grid([row], [HeatColumn(name="CAM", maps=torch.rand(1, 2, 2))] * n, title="t"))
        ).size
        for n in (1, 2)
    ]
    assert sizes[1][0] - sizes[0][0] == pytest.approx(2 * 1.75 * 160, abs=2)
    assert sizes[1][1] == sizes[0][1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shards (and the files they are of, in shards-raw) and the runs `run` and, without attention, `plain`."""
    folder = tmp_path_factory.mktemp("explain")
    manifest = make_shards(folder / "shards", per_class=3)
    make_run(folder / "run", folder / "shards", manifest)
    make_run(folder / "plain", folder / "shards", manifest, model="resnet14")
    return folder


@pytest.fixture
def run(folder: Path) -> Path:
    return folder / "run"


@pytest.fixture
def grids(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Shown], list[HeatColumn], str]]:
    """What every grid was made of; none is drawn, which takes long."""
    calls: list[tuple[list[Shown], list[HeatColumn], str]] = []

    def spy(rows: list[Shown], columns: list[HeatColumn], *, title: str) -> bytes:
        calls.append((rows, columns, title))
        return b"a picture"

    monkeypatch.setattr("mstl.evaluation.explain.heatmap_grid", spy)
    return calls


Grids = list[tuple[list[Shown], list[HeatColumn], str]]


def test_explaining_a_run_shows_the_first_positives(run: Path, tmp_path: Path, grids: Grids) -> None:
    done = explain_run(run, split="test", count=2, out=tmp_path / "new" / "grid.png")
    assert (done.shown, done.measured, done.files) == (2, 0, (tmp_path / "new" / "grid.png",))
    assert explain_run(run, split="test", count=50, out=tmp_path / "all.png").shown == 3
    (first, columns, title), (every, _, _) = grids
    assert [row.name for row in first] == [row.name for row in every[:2]]
    ids = [int(row.name.split()[1]) for row in every]
    record = open_run(run)
    positives = [r.sample_id for r in read_records(Path(record.shards), "test") if r.label == 1]
    assert ids == sorted(positives)
    assert [column.name for column in columns] == ["CAM", "attention"]
    assert title == "resnet14-attn5, finetune: what speaks for COVID (test split)"
    with closing(_loader(run, "test")) as loader:
        x = {int(i): image for batch in loader for i, image in zip(batch.sample_ids, batch.views["x"], strict=True)}
    classifier = load_classifier(record)
    for place, i in enumerate(ids[:2]):
        torch.testing.assert_close(columns[0].maps[place], grad_cam(classifier, x[i][None], 1)[0], rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(columns[1].maps[place], attention_map(classifier, x[i][None])[0])
        with torch.no_grad():
            chance = classifier(x[i][None]).softmax(1)[0, 1]
        assert first[place].name.endswith(f"P(COVID)\n= {float(chance):.2f}")
    assert (tmp_path / "new" / "grid.png").read_bytes() == b"a picture"


def _loader(run: Path, split: str) -> Loader:
    record = open_run(run)
    return Loader(
        record.evaluation_inputs, Path(record.shards), split, rank=0, world=1, batch=2, epochs=1, device="cpu", seed=0,
        shuffle=False, remainder="pad",
    )  # fmt: skip


class Counts:
    """Progress that remembers what was announced and what was done."""

    def __init__(self) -> None:
        self.seen: dict[str, list[int]] = {}

    def start(self, total: int, what: str) -> None:
        self.seen[what] = [total, 0]
        self.now = what

    def advance(self, n: int = 1, *, size_bytes: int = 0, refused: int = 0) -> None:
        self.seen[self.now][1] += n

    def skip(self, n: int) -> None:
        self.seen[self.now][1] += n


@pytest.mark.parametrize(("count", "shown"), [(1000, 3), (2, 2)])
@pytest.mark.usefixtures("grids")
def test_progress_announces_as_many_as_there_are(run: Path, tmp_path: Path, count: int, shown: int) -> None:
    progress = Counts()
    assert explain_run(run, split="test", count=count, out=tmp_path / "grid.png", progress=progress).shown == shown
    assert progress.seen["explain"] == [shown, shown]


def test_with_more_classes_every_image_counts_once(tmp_path: Path, grids: Grids) -> None:
    manifest = make_shards(tmp_path / "shards", classes=("a", "b", "c"), per_class=6)  # 18: the last batch is padded
    run = make_run(tmp_path / "run", tmp_path / "shards", manifest, stage="stl_m")
    progress = Counts()
    assert explain_run(run, split="test", count=50, out=tmp_path / "grid.png", progress=progress).shown == 18
    assert progress.seen["explain"] == [18, 18]
    labels = [r.class_name for r in read_records(tmp_path / "shards", "test")]
    assert [row.name.split("P(")[1][0] for row in grids[0][0]] == labels
    assert explain_run(run, split="test", count=50, out=tmp_path / "grid.png", class_name="b").shown == 6


def test_another_class_may_be_explained(run: Path, tmp_path: Path, grids: Grids) -> None:
    assert explain_run(run, split="test", count=9, out=tmp_path / "g.png", class_name="NonCOVID").shown == 3
    assert all("P(NonCOVID)" in row.name for row in grids[0][0])
    with pytest.raises(MstlError, match=r"no such class\. Name one of NonCOVID, COVID"):
        explain_run(run, split="test", count=9, out=tmp_path / "g.png", class_name="flu")


def test_more_images_than_a_picture_holds_are_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mstl.evaluation.explain.MOST_IMAGES", 2)
    assert explain_run(run, split="test", count=2, out=tmp_path / "grid.png").shown == 2
    with pytest.raises(MstlError, match=r"--count 3: .*Name 2 at most"):
        explain_run(run, split="test", count=3, out=tmp_path / "other.png")
    assert not (tmp_path / "other.png").exists()


def test_a_split_without_positives_is_refused(tmp_path: Path) -> None:
    manifest = make_shards(tmp_path / "shards", per_class=2, without=("test", 1))
    run = make_run(tmp_path / "run", tmp_path / "shards", manifest)
    with pytest.raises(MstlError, match="no positive image"):
        explain_run(run, split="test", count=2, out=tmp_path / "grid.png")
    assert not (tmp_path / "grid.png").exists()


def test_runs_stand_side_by_side_as_in_figure_4(folder: Path, run: Path, tmp_path: Path, grids: Grids) -> None:
    done = explain_run(folder / "plain", beside=[run], split="test", count=2, out=tmp_path / "grid.png")
    ((rows, columns, title),) = grids
    assert [column.name for column in columns] == ["A: CAM", "B: CAM", "B: attention"]
    assert title.startswith("A: plain, resnet14; B: run, resnet14-attn5: what speaks for COVID")
    assert "\nA = " in rows[0].name and "\nB = " in rows[0].name
    assert not torch.equal(columns[0].maps, columns[1].maps)
    (note,) = done.notes
    assert "plain: resnet14 has no attention after res5, so there is Grad-CAM alone" in note


def test_runs_that_see_images_otherwise_are_not_compared(folder: Path, run: Path, tmp_path: Path) -> None:
    other = make_run(
        tmp_path / "larger", folder / "shards", make_shards(tmp_path / "s", per_class=1),
        overrides=("data.image_size=64",),
    )  # fmt: skip
    with pytest.raises(MstlError, match="sees images otherwise"):
        explain_run(run, beside=[other], split="test", count=1, out=tmp_path / "g.png", shards=folder / "shards")
    with pytest.raises(MstlError, match="a run is named twice"):
        explain_run(run, beside=[run], split="test", count=1, out=tmp_path / "g.png")


@pytest.fixture(scope="module")
def masks(folder: Path) -> Path:
    """A mask for every test image but one (NonCOVID's last): its left half is lung."""
    place = folder / "masks"
    place.mkdir()
    for file in sorted((folder / "shards-raw").glob("test-*.png")):
        if file.stem != "test-0-2":
            half = np.zeros((SIDE, SIDE), np.uint8)
            half[:, : SIDE // 2] = 1
            Image.fromarray(half).save(place / f"{file.stem}_mask.png")
    return place


@pytest.fixture
def short_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves of few points, which are those of many: each costs a run of the network."""
    for module in ("explain_curves", "explain_measure"):
        monkeypatch.setattr(f"mstl.evaluation.{module}.STEPS", 3)


def read_table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


@pytest.mark.usefixtures("short_curves")
def test_masks_measure_every_map_of_every_image(run: Path, masks: Path, tmp_path: Path, grids: Grids) -> None:
    progress = Counts()
    done = explain_run(
        run, split="test", count=1, out=tmp_path / "g.png", masks=masks, class_name="NonCOVID", progress=progress
    )
    assert (done.shown, done.measured) == (1, 2) and progress.seen["explain"] == [2, 2]
    assert [file.name for file in done.files] == ["g.png", "g-curves.png", "g.csv", "g.json"]
    assert Image.open(tmp_path / "g-curves.png").format == "PNG"
    assert done.notes == ("1 images have no mask: test-0-2", "3 masks are of no image: test-1-0, test-1-1, test-1-2")
    table = read_table(tmp_path / "g.csv")
    assert [(row["image"], row["map"]) for row in sorted(table, key=lambda row: (row["image"], row["map"]))] == [
        (image, kind) for image in ("test-0-0", "test-0-1") for kind in ("CAM", "attention", "chance")
    ]
    record = open_run(run)
    ids = {r.sample_id: r.key for r in read_records(Path(record.shards), "test")}
    classifier = load_classifier(record)
    with closing(_loader(run, "test")) as loader:
        said = {ids[i]: p for i, p in _probabilities(classifier, loader).items()}
    with closing(_loader(run, "test")) as loader:
        x = {ids[int(i)]: v for batch in loader for i, v in zip(batch.sample_ids, batch.views["x"], strict=True)}
    for row in table:
        assert (row["run"], row["label"], row["explained"]) == ("run", "NonCOVID", "NonCOVID")
        assert float(row["probability"]) == pytest.approx(1 - said[row["image"]], rel=1e-5)
        assert float(row["lung_area"]) == pytest.approx(0.5, abs=0.02)
        if row["map"] == "chance":
            continue
        image = x[row["image"]][None]
        heat = grad_cam(classifier, image, 0) if row["map"] == "CAM" else attention_map(classifier, image)
        large = enlarged(heat, (SIDE, SIDE))[0]
        assert float(row["lung_mass"]) == pytest.approx(float(large[:, : SIDE // 2].sum() / large.sum()), abs=0.03)
        assert float(row["lift"]) == pytest.approx(float(row["lung_mass"]) / float(row["lung_area"]))
        assert row["pointing_hit"] == ("1.0" if int(heat[0].argmax()) % 2 == 0 else "0.0")
        assert 0 < float(row["deletion_auc"]) < 1 and 0 < float(row["insertion_auc"]) < 1
    body = json.loads((tmp_path / "g.json").read_text())
    assert body["summary"] == list(done.summary) and body["notes"] == list(done.notes)
    cam = next(row for row in body["summary"] if row["map"] == "CAM")
    mean = np.mean([float(row["lung_mass"]) for row in table if row["map"] == "CAM"])
    assert cam["lung_mass"]["mean"] == pytest.approx(mean) and cam["lung_mass"]["n"] == body["n"] == 2
    ((rows, _, _),) = grids
    assert rows[0].mask is not None and rows[0].mask[:, :20].all() and not rows[0].mask[:, 28:].any()


def _probabilities(classifier: Classifier, loader: Loader) -> dict[int, float]:
    found = predict(classifier, loader, "cpu")
    return dict(zip(found.sample_ids.tolist(), found.probabilities[:, 1].tolist(), strict=True))


@pytest.mark.usefixtures("short_curves")
def test_files_are_seen_as_the_same_images_of_a_set_are(
    folder: Path, run: Path, masks: Path, tmp_path: Path, grids: Grids
) -> None:
    """The same two images, once out of the set and once as files: the same table, to the last digit."""
    files = tmp_path / "files"
    files.mkdir()
    for name in ("test-0-0", "test-0-1"):
        shutil.copy(folder / "shards-raw" / f"{name}.png", files)
        shutil.copy(masks / f"{name}_mask.png", files)
    explain_run(run, split="test", count=2, out=tmp_path / "set.png", masks=masks, class_name="NonCOVID")
    done = explain_run(
        run, split="test", count=2, out=tmp_path / "files.png", masks=files, images=[files], class_name="NonCOVID"
    )
    assert done.notes == ()
    expected = sorted(read_table(tmp_path / "set.csv"), key=lambda row: (row["image"], row["map"]))
    found = sorted(read_table(tmp_path / "files.csv"), key=lambda row: (row["image"], row["map"]))
    assert len(found) == 6
    for one, other in zip(found, expected, strict=True):
        assert one == {**other, "label": "", "patient": ""}
    (of_set, _, _), (of_files, _, _) = grids
    by_name = {row.name: row for row in of_set}
    for row in of_files:
        np.testing.assert_array_equal(row.image, by_name[row.name].image)


def test_files_are_shown_in_order_and_spread_evenly(folder: Path, run: Path, tmp_path: Path, grids: Grids) -> None:
    files = tmp_path / "files"
    files.mkdir()
    source = sorted((folder / "shards-raw").glob("train-*.png"))[0]
    for number in range(7):
        shutil.copy(source, files / f"z{number}.png")
    (files / "broken.png").write_bytes(b"no image")
    done = explain_run(run, split="test", count=3, out=tmp_path / "g.png", images=[files])
    assert done.shown == 3
    assert [row.name.split("\n")[0] for row in grids[0][0]] == ["z0", "z3", "z6"]
    (note,) = done.notes
    assert note.startswith("broken was left out: it is none of")
    assert explain_run(run, split="test", count=1, out=tmp_path / "g.png", images=[source]).shown == 1


def test_files_of_a_run_of_many_classes_are_explained_for_the_predicted_one(tmp_path: Path, grids: Grids) -> None:
    manifest = make_shards(tmp_path / "shards", classes=("a", "b", "c"), per_class=2)
    run = make_run(tmp_path / "run", tmp_path / "shards", manifest, stage="stl_m")
    explain_run(run, split="test", count=9, out=tmp_path / "g.png", images=[tmp_path / "shards-raw"])
    for row in grids[0][0]:
        assert float(row.name.split("= ")[1][:4]) >= 0.33


def test_masks_of_other_images_are_refused(run: Path, tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "other_mask.png")
    with pytest.raises(MstlError, match=r"none of its 1 masks is of an image: they are for other, …; the images are"):
        explain_run(run, split="test", count=1, out=tmp_path / "g.png", masks=tmp_path)
    assert not (tmp_path / "g.png").exists()


def test_the_command_writes_to_the_runs_evaluation_folder(run: Path) -> None:
    result = CliRunner().invoke(command, [str(run), "--split", "val", "--count", "1"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    target = run / "evaluation" / "val" / "heatmaps.png"
    assert f"Wrote {target} (1 images)" in result.output
    assert Image.open(target).format == "PNG"


@pytest.mark.usefixtures("short_curves")
def test_the_command_tells_what_was_measured(run: Path, masks: Path, tmp_path: Path) -> None:
    words = [str(run), "--masks", str(masks), "--out", str(tmp_path / "g.png")]
    result = CliRunner().invoke(command, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "g.json").read_text())["summary"]
    for row in summary:
        if row["lung_mass"]["n"]:  # this network's CAM is empty on positives
            assert f"{row['lung_mass']['mean']:.3f}" in result.output
    assert {row["map"]: row["lung_mass"]["n"] for row in summary} == {
        "CAM": 0,
        "attention": 3,
        "chance": 3,
        "attention − CAM": 0,
    }
    assert f"Wrote {tmp_path / 'g.csv'} (3 images measured)" in result.output


@pytest.mark.parametrize(
    "words", [["--images", "x"], ["other"], ["--shards", "y"], ["--images", "x", "--shards", "y", "--out", "z"]]
)
def test_the_command_asks_for_a_place_where_a_runs_own_would_mislead(words: list[str], run: Path) -> None:
    result = CliRunner().invoke(command, [str(run), *words])
    assert result.exit_code == 2

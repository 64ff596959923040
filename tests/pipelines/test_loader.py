"""The Loader against the plan and Pillow, exact resume, and what it refuses."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_shards import Picture, decode_with_pillow, encode, noise

from pipelines import loader as loader_module
from pipelines import windows
from pipelines.batch import Batch
from pipelines.inputs import build_pipeline
from pipelines.loader import Loader
from pipelines.recipe import RECIPES, Inputs, evaluation, multi_view_ct, supervised_cxr, supervised_natural
from shards.errors import MstlError
from shards.plan import Plan

RAW = Inputs(name="raw", image_size=32, resize=32, crop="centre", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def load(shards: Path, inputs: Inputs = RAW, **changes: Any) -> Loader:
    settings = {
        "rank": 0, "world": 1, "batch": 8, "epochs": 4, "device": "cpu", "seed": 3, "shuffle": True, "remainder": "keep"
    }  # fmt: skip
    return Loader(inputs, shards, "train", **{**settings, **changes})


def run(loader: Loader) -> Iterator[Batch]:
    """All batches left."""
    for _ in range(loader.epoch, loader.plan.epochs):
        yield from loader


def assert_equal(one: Batch, other: Batch) -> None:
    assert one.sample_ids.tolist() == other.sample_ids.tolist()
    assert one.labels.tolist() == other.labels.tolist()
    assert one.views.keys() == other.views.keys()
    for name, view in one.views.items():
        assert torch.equal(view, other.views[name]), name
    if one.boxes is not None:
        assert torch.equal(one.boxes, other.boxes)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("remainder", ["keep", "drop", "pad"])
def test_order_is_the_plans_on_every_rank_over_epochs(noise_shards: Path, shuffle: bool, remainder: str) -> None:
    options = {"world": 2, "batch": 6, "epochs": 3, "seed": 3, "shuffle": shuffle, "remainder": remainder}
    plan = Plan(samples=23, **options)
    for rank in (0, 1):
        loader = load(noise_shards, rank=rank, **options)
        assert len(loader) == plan.steps_per_epoch
        for epoch in range(3):
            batches = list(loader)
            assert [b.sample_ids.tolist() for b in batches] == [p.tolist() for p in plan.rank_batches(rank, epoch)]
            assert all(b.labels.tolist() == [i % 3 for i in b.sample_ids.tolist()] for b in batches)
            assert (loader.epoch, loader.step) == (epoch + 1, 0)


def test_views_are_the_images_of_their_ids_and_stay_valid(make_shards: Callable[..., Path]) -> None:
    """Every pixel is Pillow's; batches held while others are made do not change."""
    random = np.random.default_rng(2)
    pictures = [encode(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(20)]
    held = list(run(load(make_shards(pictures, per_shard=7), batch=3)))
    assert len(held) == 7 * 4
    for batch in held:
        view = batch.views["x"]
        assert view.shape == (len(batch), 3, 32, 32) and view.dtype == torch.float32
        assert view.is_contiguous(memory_format=torch.channels_last)
        assert batch.labels.dtype == batch.sample_ids.dtype == torch.int64
        assert batch.boxes is None
        for pixels, sample_id in zip(view, batch.sample_ids.tolist(), strict=True):
            seen = torch.round(pixels * 255).permute(1, 2, 0).numpy()
            assert np.array_equal(seen, decode_with_pillow(pictures[sample_id]))


def stored(mode: str, extension: str) -> Picture:
    """A 32×32 image stored in a Pillow mode."""
    random = np.random.default_rng(5)
    smooth = np.asarray(Image.fromarray(random.integers(0, 256, (6, 6, 4), dtype=np.uint8)).resize((32, 32)))
    buffer = io.BytesIO()
    image = Image.fromarray(smooth[..., :3] if mode != "RGBA" else smooth)
    image = image.convert("L").convert("LA") if mode == "LA" else image.convert(mode)
    image.save(buffer, "JPEG" if extension == "jpg" else "PNG", **({"quality": 90} if extension == "jpg" else {}))
    return Picture(buffer.getvalue(), extension)


def test_all_stored_modes_decode_as_pillow_does(make_shards: Callable[..., Path]) -> None:
    kinds = [("RGB", "png"), ("RGBA", "png"), ("L", "png"), ("LA", "png"), ("P", "png"), ("1", "png"),
             ("RGB", "jpg"), ("L", "jpg"), ("CMYK", "jpg")]  # fmt: skip
    pictures = [stored(*kind) for kind in kinds]
    (batch,) = load(make_shards(pictures), batch=len(kinds), epochs=1, shuffle=False)
    for kind, picture, pixels in zip(kinds, pictures, batch.views["x"], strict=True):
        seen = torch.round(pixels * 255).permute(1, 2, 0).numpy()
        assert np.array_equal(seen, decode_with_pillow(picture)), kind


@pytest.mark.parametrize("name", RECIPES)
def test_grey_images_have_three_equal_channels_in_every_recipe(name: str, make_shards: Callable[..., Path]) -> None:
    inputs = replace(RECIPES[name](32), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    random = np.random.default_rng(4)
    shards = make_shards([encode(random.integers(0, 256, (40, 50), dtype=np.uint8)) for _ in range(12)])
    loader = load(shards, inputs, batch=12, epochs=2)
    for batch in run(loader):
        assert tuple(batch.views) == inputs.view_names
        for view in batch.views.values():
            assert view.shape == (12, 3, 32, 32)
            assert torch.equal(view[:, 0], view[:, 1]) and torch.equal(view[:, 0], view[:, 2])
            assert view.std() > 0.1
    assert loader.wait_seconds > 0


def test_normalised_with_imagenet_numbers(make_shards: Callable[..., Path]) -> None:
    shards = make_shards([encode(np.full((40, 40, 3), (10, 100, 200), np.uint8))])
    (batch,) = load(shards, evaluation(32), batch=1, epochs=1)
    expected = (np.array([10, 100, 200]) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.allclose(batch.views["x"][0, :, 5, 7], expected, atol=1e-5)


def test_views_and_regions_have_their_own_randomness(make_shards: Callable[..., Path]) -> None:
    """Jitter factors of all seven views of a flat grey image are unrelated, and rank by rank as well."""
    shards = make_shards([encode(np.full((40, 40, 3), 128, np.uint8))] * 64)
    inputs = replace(multi_view_ct(32), jitter=1.0, contrast=0.0, mean=(0, 0, 0), std=(1, 1, 1))
    columns = []
    for rank in (0, 1):
        batches = list(run(load(shards, inputs, rank=rank, world=2, batch=64, epochs=4, shuffle=False)))
        assert all(batch.boxes.tolist() == [[0, 0, 1, 1]] * 32 for batch in batches)
        for name in inputs.view_names:
            columns.append(np.concatenate([b.views[name][:, 0, 16, 16].numpy() for b in batches]))
    related = np.corrcoef(columns) - np.eye(14)
    assert np.abs(related).max() < 0.35
    assert np.std(columns, axis=1).min() > 0.08


def state_after(loader: Loader, batches: int) -> tuple[dict[str, Any], Iterator[Batch]]:
    stream = run(loader)
    for _ in range(batches):
        next(stream)
    return json.loads(json.dumps(loader.state_dict())), stream


@pytest.mark.parametrize(
    ("name", "rank", "taken"),
    [
        *(("supervised_cxr", rank, taken) for rank in (0, 1) for taken in (0, 1, 2, 3, 4, 5, 7, 9)),
        ("multi_view_ct", 1, 4),
        ("two_view", 0, 2),
    ],
)
def test_resume_is_bit_exact(
    noise_shards: Path, monkeypatch: pytest.MonkeyPatch, name: str, rank: int, taken: int
) -> None:
    """After any number of batches, in a window's middle, at an epoch's end and over a window's end."""
    monkeypatch.setattr(windows, "WINDOW_PAIRS", 30)  # windows of 7 steps of 4, an epoch having 3
    options = {"inputs": RECIPES[name](24), "rank": rank, "world": 2, "batch": 8, "epochs": 5}
    state, rest = state_after(load(noise_shards, **options), taken)
    again = load(noise_shards, **options, threads=1)
    again.load_state_dict(state)
    resumed = list(run(again))
    expected = list(rest)
    assert len(resumed) == len(expected) == 15 - taken
    for one, other in zip(resumed, expected, strict=True):
        assert_equal(one, other)


def test_state_of_a_resumed_loader_is_the_state_it_was_given(noise_shards: Path) -> None:
    state, _ = state_after(load(noise_shards, supervised_cxr(32)), 2)
    again = load(noise_shards, supervised_cxr(32))
    again.load_state_dict(state)
    assert again.state_dict() == state
    next(iter(again))
    assert again.state_dict() != state


def test_an_epoch_read_to_its_last_batch_resumes_at_its_end(noise_shards: Path) -> None:
    loader = load(noise_shards)
    stream = iter(loader)
    for _ in range(len(loader)):
        next(stream)
    again = load(noise_shards)
    again.load_state_dict(loader.state_dict())
    assert (again.epoch, again.step) == (0, len(again))
    assert list(again) == []
    assert (again.epoch, len(list(again))) == (1, len(again))


def test_training_can_be_prolonged(noise_shards: Path) -> None:
    state, rest = state_after(load(noise_shards, supervised_natural(24), epochs=2), 4)
    longer = load(noise_shards, supervised_natural(24), epochs=5)
    longer.load_state_dict(state)
    resumed = list(run(longer))
    assert len(resumed) == 11
    for one, other in zip(resumed, rest, strict=False):
        assert_equal(one, other)


def test_augmentation_differs_by_epoch_window_and_seed(noise_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def first_batches(**changes: Any) -> list[torch.Tensor]:
        loader = load(noise_shards, supervised_cxr(24), shuffle=False, **changes)
        return [next(iter(list(loader))).views["x"] for _ in range(3)]

    one_window = first_batches()
    monkeypatch.setattr(windows, "WINDOW_PAIRS", 1)
    for views in (one_window, first_batches(), [one_window[0], first_batches(seed=4)[0]]):
        assert all(not torch.equal(a, b) for i, a in enumerate(views) for b in views[:i])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 4}, "seed (then 3, now 4)"),
        ({"batch": 4}, "batch size (then 8, now 4)"),
        ({"world": 2}, "world size (then 1, now 2)"),
        ({"shuffle": False}, "shuffle (then true, now false)"),
        ({"remainder": "drop"}, 'remainder (then "keep", now "drop")'),
        ({"inputs": replace(RAW, flip=0.5)}, "inputs.flip (then 0.0, now 0.5)"),
    ],
)
def test_a_state_of_other_batches_is_refused(noise_shards: Path, changes: dict[str, Any], named: str) -> None:
    state, _ = state_after(load(noise_shards), 2)
    other = load(noise_shards, **changes)
    next(iter(other))
    with pytest.raises(MstlError) as error:
        other.load_state_dict(state)
    assert named in str(error.value)
    assert (other.epoch, other.step) == (0, 1)
    assert len(list(other)) == len(other) - 1, "a refused state changes nothing"


def test_a_state_of_another_shard_set_or_version_is_refused(
    noise_shards: Path, make_shards: Callable[..., Path]
) -> None:
    state, _ = state_after(load(noise_shards), 2)
    with pytest.raises(MstlError, match="shard set"):
        load(make_shards(noise(23), per_shard=6)).load_state_dict(state)
    with pytest.raises(MstlError, match="version 0"):
        load(noise_shards).load_state_dict({**state, "version": 0})


def test_damaged_shards_are_refused_by_name(make_shards: Callable[..., Path]) -> None:
    for name, change in (
        ("000001.idx", lambda data: data.replace(b"png", b"jpg")),
        ("000001.idx", lambda data: data[:-20]),
        ("000001.tar", lambda data: data[:-512]),
    ):
        shards = make_shards(noise(6), per_shard=3)
        damaged = shards / "train" / name
        damaged.write_bytes(change(damaged.read_bytes()))
        with pytest.raises(MstlError, match=name):
            load(shards, batch=2)
        damaged.unlink()
        with pytest.raises(MstlError, match=r"000001.*cannot be read"):
            load(shards, batch=2)


def test_tars_with_other_samples_than_the_manifest_says_are_refused(make_shards: Callable[..., Path]) -> None:
    """Two shards swapped: sizes and indexes fit, only the ids inside tell."""
    pictures = [encode(np.full((32, 32, 3), value, np.uint8)) for value in range(6)]
    shards = make_shards([*pictures[:3], *pictures[:3]], per_shard=3)
    first, second = (shards / "train" / f"00000{i}.tar" for i in (0, 1))
    kept = first.read_bytes()
    assert len(kept) == len(second.read_bytes())
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)
    with pytest.raises(MstlError, match="other samples"):
        list(load(shards, batch=2))


@pytest.mark.parametrize("broken", ["jpeg", "html", "empty", "png"])
def test_an_unreadable_image_is_named(make_shards: Callable[..., Path], broken: str) -> None:
    pictures = noise(12)
    jpeg = encode(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8), "jpg")
    pictures[7] = {
        "jpeg": Picture(jpeg.data[:400], "jpg"),
        "html": Picture(b"<html>not found</html>", "jpg"),
        "empty": Picture(b"", "png"),
        "png": Picture(pictures[7].data[:200], "png"),
    }[broken]
    loader = load(make_shards(pictures, per_shard=5), batch=3, shuffle=False)
    stream = iter(loader)
    assert [next(stream).sample_ids.tolist() for _ in range(2)] == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(MstlError) as error:
        next(stream)
    assert error.value.what.startswith("sample 7 in ")
    assert error.value.what.endswith("000001.tar")
    assert "cannot be read (" in error.value.why
    with pytest.raises(RuntimeError, match="load a state first"):
        loader.state_dict()


def test_a_fault_of_the_graph_is_not_blamed_on_the_data(noise_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken_graph(*args: Any, **kwargs: Any) -> Any:
        from nvidia.dali import fn, pipeline_def

        @pipeline_def(batch_size=8, num_threads=1, device_id=None)
        def graph() -> Any:
            return fn.random.uniform(range=(1.0, 0.0))

        return graph()

    monkeypatch.setattr(loader_module, "build_pipeline", broken_graph)
    with pytest.raises(RuntimeError, match="Invalid range"):
        next(iter(load(noise_shards)))


def test_what_cannot_be_is_said(noise_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(MstlError, match="multiple of 3"):
        load(noise_shards, world=3, batch=8)
    with pytest.raises(MstlError, match="only train"):
        Loader(
            RAW, noise_shards, "val", rank=0, world=1, batch=2, epochs=1, device="cpu", seed=0,
            shuffle=False, remainder="pad",
        )  # fmt: skip
    with pytest.raises(MstlError, match=r"dataset\.json"):
        load(tmp_path)
    loader = load(noise_shards, epochs=1)
    assert len(list(loader)) == 3
    with pytest.raises(IndexError, match="all 1 epochs"):
        list(loader)


def build_recorded(monkeypatch: pytest.MonkeyPatch, fail_at: int | None = None) -> list[str]:
    """The thread that made each pipeline, in order; making the one numbered `fail_at` fails."""
    made: list[str] = []

    def build(*args: Any, **kwargs: Any) -> Any:
        made.append(threading.current_thread().name)
        if len(made) - 1 == fail_at:
            raise MstlError("pipeline", why="told so", remedy="none")
        return build_pipeline(*args, **kwargs)

    monkeypatch.setattr(loader_module, "build_pipeline", build)
    return made


def test_the_next_window_is_built_ahead_and_once(noise_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 3, 3, 3 and 3 steps; the second half of one begins the next, the last has none."""
    monkeypatch.setattr(windows, "WINDOW_PAIRS", 24)
    made = build_recorded(monkeypatch)
    loader = load(noise_shards)
    main = threading.current_thread().name
    stream = run(loader)
    next(stream)
    assert made == [main]
    assert len(list(stream)) == 11
    assert made[0] == main and len(made) == 4
    assert all(name.startswith("next-window") for name in made[1:])


def test_a_window_that_cannot_be_built_ends_it_when_it_is_reached(
    noise_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "WINDOW_PAIRS", 24)
    build_recorded(monkeypatch, fail_at=1)
    loader = load(noise_shards)
    seen = []
    with pytest.raises(MstlError, match="told so"):
        for batch in run(loader):
            seen.append(batch)
    assert len(seen) == 3
    assert len(list(run(loader))) == 9, "it may be tried again"


def test_closing_leaves_nothing_under_way(noise_shards: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(windows, "WINDOW_PAIRS", 24)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    loader, same = load(noise_shards, supervised_cxr(24)), load(noise_shards, supervised_cxr(24))
    state, _ = state_after(loader, 2)  # in the second half of a window
    loader.close()
    assert list(tmp_path.iterdir()) == []
    loader.load_state_dict(state)
    _, expected = state_after(same, 2)
    for one, other in zip(run(loader), expected, strict=True):
        assert_equal(one, other)


def test_closing_between_epochs_keeps_the_order(noise_shards: Path) -> None:
    loader, other = load(noise_shards), load(noise_shards)
    for _ in range(2):
        assert [b.sample_ids.tolist() for b in loader] == [b.sample_ids.tolist() for b in other]
        loader.close()


def test_no_file_is_left_behind(noise_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for batch in load(noise_shards):
        assert len(batch) > 0
        assert list(tmp_path.iterdir()) == []


def test_a_shard_that_vanishes_after_opening_is_named(make_shards: Callable[..., Path]) -> None:
    folder = make_shards(noise(8), per_shard=4)
    loader = load(folder)
    victim = folder / loader.manifest.shards("train")[1].path
    victim.unlink()
    with pytest.raises(MstlError, match="it is gone since this job began") as caught:
        next(iter(loader))
    assert str(victim) in caught.value.what

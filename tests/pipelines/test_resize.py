"""Resizing against Pillow; torch's node of the CPU's graph against DALI's, which the GPU's graph has in its place."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from nvidia.dali import fn, types
from PIL import Image
from run_graph import run_graph

from pipelines import resize

SHAPES = [(61, 90), (200, 153), (32, 32), (20, 17), (333, 40), (1, 1), (3, 130)]


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """A smooth image with noise on it."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [128 + 90 * np.sin(x / (3 + c) + y / (7 - c)) for c in range(channels)]
    return np.clip(np.stack(waves, -1) + random.normal(0, 12, (height, width, channels)), 0, 255).astype(np.uint8)


def by_dali(image: object, side: int) -> object:
    """`resize.square` as the GPU's graph has it, on the CPU."""
    return fn.resize(image, size=[side, side], interp_type=types.INTERP_LINEAR, antialias=True)


def test_the_gpus_node_is_the_one_compared_with_here() -> None:
    on_gpu = mock.Mock(device="gpu")
    with mock.patch.object(resize.fn, "resize") as asked:
        resize.square(on_gpu, 48, bits=8)
    asked.assert_called_once_with(on_gpu, size=[48, 48], interp_type=types.INTERP_LINEAR, antialias=True)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_square_is_pillows_bilinear(shape: tuple[int, int], channels: int) -> None:
    image = picture(*shape, channels)
    ((out,),) = run_graph(lambda x: resize.square(x, 50, bits=8), [image])
    shown = Image.fromarray(image if channels == 3 else image[..., 0])
    expected = np.asarray(shown.resize((50, 50), Image.Resampling.BILINEAR)).reshape(50, 50, channels)
    assert out.shape == (50, 50, channels) and out.dtype == np.uint8
    assert np.abs(out.astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [32, 47, 224])
def test_the_nodes_of_cpu_and_gpu_give_the_same_pixels(channels: int, side: int) -> None:
    """A batch of all shapes, so that the threads share it; each image comes back in its own place."""
    images = [picture(*shape, channels, seed) for seed, shape in enumerate(SHAPES)]
    ours, dalis = run_graph(lambda x: (resize.square(x, side, bits=8), by_dali(x, side)), images)
    for one, other, shape in zip(ours, dalis, SHAPES, strict=True):
        difference = np.abs(one.astype(float) - other.astype(float))
        reach = max(2, -(-side // min(shape)))  # of the border, where DALI repeats the last pixel and torch does not
        assert one.shape == other.shape == (side, side, channels) and one.dtype == other.dtype == np.uint8
        assert difference.mean() <= 1, shape
        assert difference[reach:-reach, reach:-reach].max(initial=0) <= 1, shape


@pytest.mark.parametrize("side", [32, 47, 50])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_channel_is_bit_by_bit_as_three(shape: tuple[int, int], side: int) -> None:
    grey = picture(*shape, 1)
    (one,), (three,) = run_graph(
        lambda x, y: (resize.square(x, side, bits=8), resize.square(y, side, bits=8)), [grey], [grey.repeat(3, 2)]
    )
    assert np.array_equal(one.repeat(3, 2), three)


@pytest.mark.parametrize("channels", [1, 3])
def test_geometry_is_exact(channels: int) -> None:
    """A ramp stays a ramp: a shift by half a pixel would show as half of its slope."""
    y, x = np.mgrid[:180, :240]
    for ramp, axis, size in ((x, 1, 240), (y, 0, 180)):
        image = np.repeat(ramp[..., None], channels, 2).astype(np.uint8)
        ((out,),) = run_graph(lambda i: resize.square(i, 60, bits=8), [image])
        places = (np.arange(60) + 0.5) * size / 60 - 0.5
        expected = np.broadcast_to(places[:, None] if axis == 0 else places, (60, 60))[..., None]
        assert np.abs(out[2:-2, 2:-2] - expected[2:-2, 2:-2]).max() <= 1


def corner(y: float, x: float) -> object:
    return types.Constant(np.array([y, x], np.float32), device="cpu")


def scalar(value: float) -> list[np.ndarray]:
    return [np.float32(value)]


@pytest.mark.parametrize("shape", [(61, 90), (200, 153), (20, 17)])
@pytest.mark.parametrize(("x", "y"), [(0.0, 1.0), (0.5, 0.5), (1.0, 3 / 8)])
def test_parts_are_crops_of_the_whole(shape: tuple[int, int], x: float, y: float) -> None:
    """Both forms of part_of_square, and part_of_window of the whole image and of a window."""

    def graph(image: object, x: object, y: object) -> object:
        def crop(whole: object) -> object:
            return fn.crop(whole, crop=(32, 32), crop_pos_x=x, crop_pos_y=y)

        everything = corner(0, 0), corner(1, 1)
        start, end = corner(0.2, 0.1), corner(0.7, 0.9)
        return (
            crop(by_dali(image, 40)),
            resize.part_of_square(image, 40, 32, bits=8, x=x, y=y),
            resize.part_of_window(image, *everything, 40, 32, x=x, y=y),
            crop(resize.window(image, start, end, 40)),
            resize.part_of_window(image, start, end, 40, 32, x=x, y=y),
        )

    (whole,), (on_cpu,), (on_gpu,), (window,), (of_window,) = run_graph(graph, [picture(*shape)], scalar(x), scalar(y))
    assert on_cpu.shape == on_gpu.shape == of_window.shape == (32, 32, 3)
    inner = np.s_[3:-3, 3:-3]
    assert np.abs(whole[inner].astype(int) - on_cpu[inner]).max() <= 1
    assert np.abs(whole.astype(int) - on_gpu).max() <= 1
    assert np.abs(window.astype(int) - of_window).max() <= 1


def test_threads_end_with_the_graph() -> None:
    of_others = threading.enumerate()
    for _ in range(3):
        run_graph(lambda x: resize.square(x, 32, bits=8), [picture(40, 50)] * 8)
    gc.collect()
    for thread in threading.enumerate():
        if thread.name.startswith("resize") and thread not in of_others:
            thread.join(timeout=120)
            assert not thread.is_alive()


TEAMS = """
import os
from concurrent.futures import ThreadPoolExecutor
import torch
from pipelines.resize import resized_crop
torch.set_num_threads(4)
corner = torch.tensor([0.1, 0.1])
images = [torch.ones((901, 1203, channels), dtype=torch.uint8) for channels in (1, 3)]
with ThreadPoolExecutor(1) as pool:
    pool.submit(int).result()
    before = len(os.listdir("/proc/self/task"))
    for image in images:
        pool.submit(resized_crop, 255, 223, image, corner).result()
    print(len(os.listdir("/proc/self/task")) - before)
"""


def run_program(program: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "4"}
    return subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=environment, capture_output=True, text=True, timeout=600
    )


def test_torch_starts_no_threads_of_its_own_for_it() -> None:
    """Or each of the graph's threads would have a team as large as the machine."""
    done = run_program(TEAMS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0"


LEAVE = """
import sys
import numpy as np
from nvidia.dali import fn, pipeline_def
from pipelines import resize
images = [np.zeros((1200, 1500, 3), np.uint8)] * 16

@pipeline_def(batch_size=16, num_threads=2, device_id=None)
def graph():
    return resize.square(fn.external_source(source=lambda: images, layout="HWC", batch=True), 224, bits=8)

pipeline = graph()
pipeline.run()
{end}
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("", 0),
        pytest.param("sys.exit(5)", 5, marks=pytest.mark.slow),
        pytest.param("raise ValueError('told')", 1, marks=pytest.mark.slow),
    ],
)
def test_a_program_may_end_while_images_are_resized_ahead(end: str, code: int) -> None:
    """The next batches are under way when the interpreter closes down."""
    done = run_program(LEAVE.format(end=end))
    assert done.returncode == code, done.stderr
    assert ("told" in done.stderr) == (code == 1)

"""Arithmetic of a training step on many GPUs: computing, all-reducing gradients, exchanging images, gathering keys.

Every number that is not computed here is an Input with its source; nothing in this file measures anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Origin = Literal["reported", "derived", "assumed", "measured"]
GPUS_PER_NODE = 8
BACKWARD_SHARE = 2 / 3  # of the computing time: backward costs twice forward
BUCKET_BYTES = 25 * 2**20  # gradients are reduced in pieces of this size; what the last one takes, nothing hides
PIXEL_BYTES = 4  # images are exchanged as float32
EMBEDDING_BYTES = 128 * 4 + 8  # a key and its sample id


@dataclass(frozen=True, slots=True)
class Input:
    """A number the predictions rest on."""

    name: str
    value: float
    unit: str
    origin: Origin
    source: str


# MLPerf Training 4.0, ResNet-50: a step of b images takes a fixed time and a time an image. 8 and 64 H100 give both
# (7,162 images/s a GPU at 400 a GPU, 69 % of that at 50); 2,528 and 3,584 GPUs at 16 a GPU test it.
H100_IMAGES = (7162.0, 400, 0.69, 50)
H100_THIRD = {2528: (16, 2724.0), 3584: (16, 2819.0)}
FIXED_SOURCE = (
    "MLPerf 4.0 H100 logs: 7,162 images/s a GPU at batch 400 on 8, 69 % of that at batch 50 on 64; includes what "
    "those runs' own communication took"
)
RESNET50 = Input("ResNet-50 on one of 8 H200, batch 400", 7950, "images/s", "reported",
                 "MLPerf Training 4.0, h200_ngc24.04_mxnet: a tuned program, not ours")  # fmt: skip
# Further time an image takes, by roofline (bytes with fused kernels for the depth, eager kernels for attention).
EXTRA_SECONDS = {
    "resnet50-attn0": Input("more an image than resnet50", 0.0, "s", "derived", "the same network"),
    "resnet50-attn1": Input("more an image than resnet50", 20.1e-6, "s", "derived", "roofline: one block at res3"),
    "resnet50-attn5": Input("more an image than resnet50", 59.5e-6, "s", "derived",
                            "roofline: 2 blocks at res3 (20.1 µs), 2 at res4 (7.2), 1 at res5 (4.9)"),
    "resnet101-attn5": Input("more an image than resnet50", 125.8e-6 * (455 / 308 - 1) + 59.5e-6, "s", "derived",
                             "roofline: 455 MB an image against 308, and the blocks of resnet50-attn5"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Link:
    """What joins GPUs: bytes a second that a whole node (or, inside one, a GPU) sends, and the time of a message."""

    name: str
    node_bytes: Input
    nics: int  # that share it
    latency: Input


EFFICIENCY = Input("share of the line rate that collectives reach", 0.8, "", "assumed", "usual for large messages")
NVLINK = Link(
    "NVLink", Input("NVLink of a GPU", 448e9, "B/s", "derived", "8 GPUs reduce 102 MB in 0.40 ms"), 1,
    Input("latency inside a node", 5e-6, "s", "assumed", "NCCL over NVLink, a few microseconds a hop"),
)  # fmt: skip
NETWORKS = (
    Link("8 x 400 Gb/s InfiniBand", Input("8 x 400 Gb/s InfiniBand, a node", 8 * 50e9, "B/s", "assumed", "line rate"),
         8, Input("latency of InfiniBand", 10e-6, "s", "assumed", "NCCL, a hop between nodes")),
    Link("1 x 100 Gb/s Ethernet", Input("1 x 100 Gb/s Ethernet, a node", 12.5e9, "B/s", "assumed", "line rate"),
         1, Input("latency of 100 Gb/s Ethernet", 30e-6, "s", "assumed", "TCP, a hop between nodes")),
    Link("1 x 10 Gb/s Ethernet", Input("1 x 10 Gb/s Ethernet, a node", 1.25e9, "B/s", "assumed", "line rate"),
         1, Input("latency of 10 Gb/s Ethernet", 50e-6, "s", "assumed", "TCP, a hop between nodes")),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Work:
    """A stage's step on one rank.

    gradient_bytes: what is reduced. passes: forward and backward of how many images for each of the batch; forwards:
    images that are only encoded (the key). starts: how often the network is run forward and backward for them, which
    costs the fixed part each time. exchanged: bytes of an image where most images go to another rank in forward.
    """

    name: str
    model: str
    gradient_bytes: int
    passes: float
    forwards: float
    starts: float
    exchanged: int


def fixed_and_per_image() -> tuple[float, float]:
    """Seconds of a step of resnet50 on an H200 that do not depend on the batch, and seconds an image.

    The fixed part from the H100 runs; both GPUs' batches take the same launches.
    """
    rate, large, share, small = H100_IMAGES
    long, short = large / rate, small / (rate * share)
    per_image = (long - short) / (large - small)
    fixed = long - large * per_image
    return fixed, (large / RESNET50.value - fixed) / large


def h100_step(batch: int) -> float:
    """Seconds of a step on an H100 by the same two points; for comparison with the third."""
    rate, large, share, small = H100_IMAGES
    per_image = (large / rate - small / (rate * share)) / (large - small)
    return large / rate - large * per_image + batch * per_image


def compute_seconds(work: Work, batch: int) -> float:
    """A step of one GPU that talks to nobody."""
    fixed, per_image = fixed_and_per_image()
    per_image += EXTRA_SECONDS[work.model].value
    return fixed * work.starts + batch * per_image * (work.passes + work.forwards * (1 - BACKWARD_SHARE))


def all_reduce_seconds(size: float, gpus: int, network: Link, algorithm: Literal["ring", "hierarchical"]) -> float:
    """Sum `size` bytes over all GPUs; ring: one over all of them; hierarchical: in each node, then between nodes.

    A ring passes each node through one of its cards; the hierarchy gives every GPU a share of the gradient to reduce
    with its peers of the other nodes, so all cards work. Both send 2 (n - 1) / n of their size.
    """
    if gpus == 1:
        return 0.0
    local, nodes, inside, between = _paths(gpus, network)
    if nodes == 1:
        return 2 * (local - 1) / local * size / inside + 2 * (local - 1) * NVLINK.latency.value
    if algorithm == "ring":
        slowest = min(inside, between / network.nics)
        # Every piece goes round the ring twice, less one hop of each round.
        round_trip = nodes * network.latency.value + (gpus - nodes) * NVLINK.latency.value
        return 2 * (gpus - 1) / gpus * (size / slowest + round_trip)
    within = 2 * (local - 1) / local * size / inside + 2 * (local - 1) * NVLINK.latency.value
    # Across nodes a tree where that has fewer hops than a ring, as NCCL chooses.
    hops = min(2 * (nodes - 1), 2 * math.ceil(math.log2(nodes)))
    return within + 2 * (nodes - 1) / nodes * size / between + hops * network.latency.value


def gather_seconds(size: float, gpus: int, network: Link) -> float:
    """Every rank holds `size` bytes, and all come to know all of it."""
    if gpus == 1:
        return 0.0
    local, nodes, inside, between = _paths(gpus, network)
    # A node takes in what the others hold, once, and hands it round; every GPU takes in what all hold.
    apart = (nodes - 1) * local * size / between if nodes > 1 else 0.0
    hops = (local - 1) * NVLINK.latency.value + min(nodes - 1, math.ceil(math.log2(nodes))) * network.latency.value
    return max(apart, (gpus - 1) * size / inside) + hops


def exchange_seconds(size: float, gpus: int, network: Link) -> float:
    """Every rank holds `size` bytes, and sends every other its part of them."""
    if gpus == 1:
        return 0.0
    local, nodes, inside, between = _paths(gpus, network)
    apart = local * size * (nodes - 1) / nodes / between if nodes > 1 else 0.0
    return max(apart, (local - 1) / local * size / inside) + math.ceil(math.log2(gpus)) * network.latency.value


def _paths(gpus: int, network: Link) -> tuple[int, int, float, float]:
    """GPUs of a node, nodes, and bytes a second within and between these."""
    local, nodes = min(gpus, GPUS_PER_NODE), max(1, gpus // GPUS_PER_NODE)
    return local, nodes, NVLINK.node_bytes.value * EFFICIENCY.value, network.node_bytes.value * EFFICIENCY.value


@dataclass(frozen=True, slots=True)
class Prediction:
    """A step of `gpus` GPUs, in seconds; `efficiency` is the rate a GPU against that of one alone."""

    gpus: int
    step: float
    compute: float
    reduce: float
    exposed: float
    exchange: float
    images_per_second: float
    efficiency: float


def predict(
    work: Work, batch: int, gpus: int, network: Link, *, algorithm: Literal["ring", "hierarchical"], overlap: bool,
) -> Prediction:  # fmt: skip
    """A step of `batch` images a GPU.

    Without overlap the gradients are reduced behind backward. With it they are reduced while backward goes on, but for
    the last bucket. Images and keys are exchanged in forward and waited for.
    """
    compute = compute_seconds(work, batch)
    reduce = all_reduce_seconds(work.gradient_bytes, gpus, network, algorithm)
    exposed = reduce
    if overlap:
        last = reduce / math.ceil(work.gradient_bytes / BUCKET_BYTES)
        exposed = max(last, reduce - BACKWARD_SHARE * compute)
    exchange = 0.0
    if work.exchanged:
        exchange = exchange_seconds(batch * work.exchanged, gpus, network)
        exchange += gather_seconds(batch * EMBEDDING_BYTES, gpus, network)
    step = compute + exposed + exchange
    return Prediction(
        gpus=gpus, step=step, compute=compute, reduce=reduce, exposed=exposed, exchange=exchange,
        images_per_second=gpus * batch / step, efficiency=compute / step,
    )  # fmt: skip


def inputs(works: Sequence[Work]) -> list[Input]:
    """Everything the predictions rest on, with the works' own numbers."""
    fixed, per_image = fixed_and_per_image()
    counted = "counted from the network"
    return [
        RESNET50,
        Input("fixed part of a step", fixed, "s", "derived", FIXED_SOURCE),
        Input("resnet50 on an H200, an image", per_image, "s", "derived", "the two above"),
        *(Input(f"{model}: {extra.name}", extra.value, "s", extra.origin, extra.source)
          for model, extra in EXTRA_SECONDS.items()),
        *(Input(f"{work.name}, {work.model}: gradients", work.gradient_bytes, "B", "measured", counted)
          for work in works),
        EFFICIENCY, NVLINK.node_bytes, NVLINK.latency,
        *(number for link in NETWORKS for number in (link.node_bytes, link.latency)),
        Input("GPUs a node", GPUS_PER_NODE, "", "assumed", "HGX"),
        Input("share of computing that is backward", BACKWARD_SHARE, "", "assumed", "twice forward"),
        Input("gradient bucket", BUCKET_BYTES, "B", "assumed", "torch's default"),
    ]  # fmt: skip

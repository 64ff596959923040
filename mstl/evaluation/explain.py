"""Where a classifier looks: Grad-CAM and the attention map of its last ATTN block (paper section 6.8, figure 4)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mstl.evaluation.evaluate import positive_class
from mstl.evaluation.subject import open_subject
from mstl.models.attention import AttentionBlock
from mstl.models.classifier import Classifier
from mstl.study.figures import image_grid
from pipelines.recipe import IMAGENET_MEAN, IMAGENET_STD
from shards.cache import CacheOptions
from shards.errors import MstlError
from shards.files import write_atomic
from shards.progress import QUIET, Progress

HEAT = colormaps["RdYlBu_r"]  # blue low, red high as in figure 4, and told apart with any colour vision
HEAT_SHARE = 0.45  # of the overlay, ours
MOST_IMAGES = 200  # a taller grid passes the 65,536 pixels that matplotlib draws


def grad_cam(classifier: Classifier, x: Tensor, class_index: int) -> Tensor:
    """ReLU(Σ_k α_k F_k) with α_k the spatial mean of ∂z_c/∂F_k (Grad-CAM at the last map before pooling, figure 4).

    x [B, 3, H, W] normalised → [B, h, w] of the res5 map, not scaled; z_c is the logit of `class_index`. The
    classifier must be in evaluation mode, and its parameters' gradients stay as they are.
    """
    assert not classifier.training, "Grad-CAM needs the classifier in evaluation mode"
    with torch.no_grad():
        features = classifier.backbone.feature_maps(x)["res5"]
    with torch.enable_grad():
        features = features.detach().requires_grad_()
        logits = classifier.fc(classifier.dropout(features.mean((2, 3))))
        (slopes,) = torch.autograd.grad(logits[:, class_index].sum(), features)
    weights = slopes.mean((2, 3), keepdim=True)
    return (weights * features.detach()).sum(1).relu()


def attention_map(classifier: Classifier, x: Tensor) -> Tensor:
    """How much each position is attended to: the mean of the attention A over its queries (figure 4).

    x [B, 3, H, W] → [B, h, w] of the last ATTN block of res5; each map sums to 1. Raises MstlError for a network
    without attention there.
    """
    assert not classifier.training, "an attention map needs the classifier in evaluation mode"
    if not has_attention(classifier):
        raise MstlError(
            "attention map", why="the network has no attention block after res5", remedy="Use a network named …-attn5"
        )
    blocks = classifier.backbone.attention["res5"]
    assert isinstance(blocks, nn.Sequential)
    block = blocks[-1]
    assert isinstance(block, AttentionBlock)
    inputs: list[Tensor] = []
    hook = block.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    try:
        with torch.no_grad():
            classifier.backbone(x)
            keys_queries: Tensor = block.attention.weights(inputs[0])
    finally:
        hook.remove()
    return keys_queries.mean(2).reshape(len(x), *inputs[0].shape[2:])


def has_attention(classifier: Classifier) -> bool:
    """Whether `attention_map` can be drawn."""
    return "res5" in classifier.backbone.attention


def min_max(maps: Tensor) -> Tensor:
    """Each of the [B, h, w] maps scaled to 0..1; one without any contrast becomes 0."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low).where(high > low, torch.ones_like(high))


def heat_images(maps: Tensor, size: tuple[int, int]) -> NDArray[np.float32]:
    """[B, h, w] maps → [B, H, W, 3] colours: min–max, bilinear to `size` (H, W), blue low and red high."""
    large = interpolate(min_max(maps.float())[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    return np.asarray(HEAT(large.cpu().numpy()), dtype=np.float32)[..., :3]


def plain_images(x: Tensor) -> NDArray[np.float32]:
    """Normalised [B, 3, H, W] → [B, H, W, 3] in 0..1."""
    mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (x * std + mean).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()


def heatmap_grid(classifier: Classifier, x: Tensor, class_indices: list[int], *, names: list[str], title: str) -> bytes:
    """Figure 4 for the images x [B, 3, H, W] as PNG: original, CAM, its overlay, attention, its overlay.

    Row i explains class `class_indices[i]` and is called `names[i]`. A network without attention has three columns.
    """
    size = (int(x.shape[2]), int(x.shape[3]))
    originals = plain_images(x)
    cams = torch.cat([grad_cam(classifier, x[i : i + 1], c) for i, c in enumerate(class_indices)])
    heats = [heat_images(cams, size)]
    columns = ["original", "CAM", "CAM overlay"]
    if has_attention(classifier):
        heats.append(heat_images(attention_map(classifier, x), size))
        columns += ["attention", "attention overlay"]
    # A class that nothing speaks for has an empty map: say so, since it looks as if it had failed.
    names = [name if cam.amax() > 0 else f"{name}\n(CAM is empty)" for name, cam in zip(names, cams, strict=True)]
    rows = []
    for index, original in enumerate(originals):
        row = [original]
        for heat in heats:
            row += [heat[index], (1 - HEAT_SHARE) * original + HEAT_SHARE * heat[index]]
        rows.append(row)
    return image_grid(rows, columns=columns, names=names, title=title)


def explain_run(
    run: Path,
    *,
    split: str,
    count: int,
    out: Path,
    shards: str | Path | None = None,
    cache: CacheOptions = CacheOptions(),  # noqa: B008 - frozen
    progress: Progress = QUIET,
) -> int:
    """Write the heatmap grid of the first `count` positives of a split as PNG; returns how many there were.

    The order is that of the shard set, which was shuffled when written: nothing is hand-picked. With more than two
    classes the first images of any class are explained for their own class. Raises MstlError as `open_subject` does,
    when the split has no positive, and for more images than a picture can hold.
    """
    subject = open_subject(run, split=split, shards=shards, out=out, cache=cache, progress=progress)
    manifest, classifier = subject.manifest, subject.classifier
    positive = positive_class(manifest.classes)
    there = manifest.samples(split) if positive is None else manifest.class_counts[split][positive]
    count = min(count, there)
    if count > MOST_IMAGES:
        raise MstlError(
            f"--count {count}", why="one picture cannot hold so many images", remedy=f"Name {MOST_IMAGES} at most"
        )
    images: list[Tensor] = []
    rows: list[tuple[int, int]] = []  # sample id, class
    loader = subject.loader(min(16, manifest.samples(split)))
    progress.start(count, "explain")
    try:
        for batch in loader:
            wanted = [i for i, label in enumerate(batch.labels.tolist()) if positive is None or label == positive]
            for i in wanted[: count - len(rows)]:
                images.append(batch.views["x"][i].to(subject.device))
                rows.append((int(batch.sample_ids[i]), int(batch.labels[i])))
                progress.advance()
            if len(rows) == count:
                break
    finally:
        loader.close()
    if not rows:
        raise MstlError(
            f"split {split!r} of {subject.folder}", why="it has no positive image", remedy="Name another with --split"
        )
    x = torch.stack(images).contiguous()
    with torch.inference_mode():
        probabilities = classifier(x).float().softmax(1).cpu()
    labels = [label for _, label in rows]
    names = [
        f"sample {sample}\nP({_short(manifest.classes[label])})\n= {probabilities[i, label]:.2f}"
        for i, (sample, label) in enumerate(rows)
    ]
    title = f"{subject.record.model}, {subject.record.stage}: what speaks for each image's class ({split} split)"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, heatmap_grid(classifier, x, labels, names=names, title=title))
    return len(rows)


def _short(name: str) -> str:
    return name if len(name) <= 12 else name[:11] + "…"

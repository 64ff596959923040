"""The losses of self-supervised training (paper eqs. 2, 5, 6; NT-Xent), in float32 or wider even under autocast."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from mstl.distributed import gather_cat, gather_with_gradient, rank
from mstl.precision import no_autocast, widen

RegionMode = Literal["normalised", "literal"]


def contrastive_logits(
    query: Tensor, key: Tensor, queue: Tensor, temperature: float, *, negatives_mask: Tensor | None = None
) -> Tensor:
    """Similarities over temperature, [B, 1 + K]: column 0 the positive, then the negatives.

    query [B, d] and its positive key [B, d], queue [K, d], all of unit length. negatives_mask [B, K] bool: True
    where the queued key is a negative of the query; the others become -inf and drop out of eq. 2's sum.
    """
    with no_autocast(query):
        query, key, queue = widen(query), widen(key), widen(queue)
        positive = (query * key).sum(dim=1, keepdim=True)
        negatives = query @ queue.T
        if negatives_mask is not None:
            negatives = negatives.masked_fill(~negatives_mask, -torch.inf)
        return torch.cat((positive, negatives), dim=1) / temperature


def positive_first_loss(logits: Tensor) -> Tensor:
    """Mean over rows of -log softmax at column 0, the positive."""
    return F.cross_entropy(widen(logits), torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def contrastive_loss(
    query: Tensor, key: Tensor, queue: Tensor, temperature: float, *, negatives_mask: Tensor | None = None
) -> Tensor:
    """L_cons, eq. 2, mean over the batch; arguments as `contrastive_logits`.

    Every term is divided by the temperature: the printed equation lacks it in the negatives' terms.
    """
    return positive_first_loss(contrastive_logits(query, key, queue, temperature, negatives_mask=negatives_mask))


def region_loss(logits: Tensor, mode: RegionMode = "normalised") -> Tensor:
    """Loss of telling the five regions apart: logits [B, 5 regions, 5 classes], region i being class i.

    L_ra of an image is the sum of its regions' cross-entropies (eq. 5). `normalised` (ours): its mean over the
    batch. `literal`: its sum, which is what eq. 6's term over the image and all other images of the batch comes to.
    """
    assert mode in get_args(RegionMode), mode
    batch, regions, _ = logits.shape
    targets = torch.arange(regions, device=logits.device).repeat(batch)
    total = F.cross_entropy(widen(logits).flatten(0, 1), targets, reduction="sum")
    return total / batch if mode == "normalised" else total


def nt_xent_logits(first: Tensor, second: Tensor, sample_ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Similarities over temperature of this rank's 2B views to all 2N of all ranks, and each one's positive.

    first, second [B, d]: two views of each image, of unit length, B equal on all ranks. sample_ids [B]. Returns
    logits [2B, 2N] and the column of each row's other view, [2B]: rows are first, then second; columns are the ranks
    in order, of each first, then second. A view is no negative of itself, nor of an image that stands in the batch
    twice (evaluation fills up its last batch by repeats): those are -inf.
    """
    with no_autocast(first):
        own = widen(torch.cat((first, second)))
        logits = own @ gather_with_gradient(own).T / temperature
    images = len(first)
    ids = gather_cat(sample_ids.repeat(2))
    rows = torch.arange(2 * images, device=own.device)
    positives = (rows + images) % (2 * images) + rank() * 2 * images
    same = sample_ids.repeat(2)[:, None] == ids[None, :]
    same[rows, positives] = False
    return logits.masked_fill(same, -torch.inf), positives


def nt_xent_loss(first: Tensor, second: Tensor, sample_ids: Tensor, temperature: float) -> Tensor:
    """NT-Xent (SimCLR, eq. 1), mean over this rank's 2B views against all views of all ranks.

    Arguments as `nt_xent_logits`. The mean of it over the ranks is the loss of one process with the whole batch, and
    so is, averaged over the ranks as the engine does, its gradient: a rank's embeddings get the gradient of all ranks'
    losses.
    """
    return F.cross_entropy(*nt_xent_logits(first, second, sample_ids, temperature))

"""Where the printed numbers differ from ours and why, and the sources that hold for one recipe alone."""

from __future__ import annotations

from typing import Any, NamedTuple


class Printed(NamedTuple):
    """A field whose printed value differs from our resolution, and why we departed from it."""

    field: str
    value: Any
    why: str


_LOST_ZERO = "all else is MoCo v1's published recipe (batch 256, 200 epochs, 0.03): a zero was lost in print"
_COLOUR = "CT has no colour: jitter of hue and saturation, and grayscale, only touch what was drawn on it"
_SMALL_QUEUE = Printed("loss.queue_size", 65536, "the set has 425 images: a longer queue would hold each many times")

PRINTED: dict[str, tuple[Printed, ...]] = {
    "stl_n": (
        Printed("model.dropout", 0.8, "read as a keep rate of 0.8: dropping 80 % does not fit 78 % top-1 accuracy"),
    ),
    "stl_m": (),
    "sstl_m": (
        Printed("data.region_flip", True, "a flipped region no longer tells left from right, which is its label"),
        Printed("data.channels", "rgb", _COLOUR),
        Printed("optim.lr", 0.3, _LOST_ZERO),
        Printed("loss.temperature_on", "positive", "eq. 2 is MoCo's loss, which divides every term"),
        Printed("loss.region", "literal", "eq. 6 sums over the batch, which multiplies the region loss by its size"),
    ),
    "sstl_m-moco": (_SMALL_QUEUE,),
    "sstl_m-moco_v2": (_SMALL_QUEUE,),
    "sstl_m-simclr": (
        Printed("data.batch_size", 4096, "the set has 425 images"),
        Printed("optim.epochs", 100, "as many as the methods it is compared with"),
        Printed("optim.lr", 4.8, "SimCLR's rule, 0.3 x batch / 256, at our batch"),
    ),
    "finetune": (
        Printed("data.channels", "rgb", _COLOUR),
        Printed("data.evaluation", "as_printed", "what is measured should not depend on chance"),
        Printed("optim.lr", 0.3, _LOST_ZERO),
    ),
}

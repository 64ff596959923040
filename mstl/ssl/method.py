"""What every self-supervised method is to the stage that trains it."""

from torch import Tensor, nn

from mstl.models.resnet import ResNet
from pipelines.batch import Batch


class Method(nn.Module):
    """A module trained without labels; `backbone` is what the next stage starts from.

    A method that remembers batches (a queue, prototypes) overrides the three hooks; by itself none does anything.
    """

    def __init__(self, backbone: ResNet) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars of one batch: `loss`, which is trained on, and what is worth watching."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Called once after every update of the parameters."""

    def skip_step(self) -> None:
        """Called instead where the update was given up, on all ranks alike."""

    def check_ranks(self) -> None:
        """Raise MstlError when what all ranks must share beside the weights differs; all ranks call it."""

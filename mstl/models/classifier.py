"""A backbone with a linear classifier on its features."""

from torch import Tensor, nn

from mstl.models.resnet import ResNet


class Classifier(nn.Module):
    """Image [B, 3, H, W] → logits [B, classes]; dropout stands between pooling and `fc`.

    `dropout` is the probability of dropping a feature: the paper's "keep rate 0.5" is 0.5, its "rate of 0.8" is
    read as a keep rate too, hence 0.2 (ours).
    """

    def __init__(self, backbone: ResNet, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(backbone.out_features, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.dropout(self.backbone(x)))
        return logits

"""Bottleneck residual networks (v1.5), weight for weight torchvision's without `fc`, with attention at stage ends."""

from collections.abc import Iterator, Mapping
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from mstl.models.attention import AttentionBlock, AttentionOptions, SelfAttention2d

STAGES = ("res2", "res3", "res4", "res5")  # the paper's names of layer1 to layer4
EXPANSION = 4
STAGE_CHANNELS = (64, 256, 512, 1024, 2048)  # of the stem, then after each stage


class Bottleneck(nn.Module):
    """1x1 → 3x3 → 1x1 with a shortcut; the stride sits in the 3x3 (v1.5)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        width = channels_out // EXPANSION
        self.conv1 = nn.Conv2d(channels_in, width, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels_out, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        return F.relu(self.bn3(self.conv3(out)) + shortcut, inplace=True)


class ResNet(nn.Module):
    """Image [B, 3, H, W] → features [B, 2048] after global average pooling.

    blocks: bottlenecks of res2 to res5. attention: stage name → how many attention blocks follow the stage's last
    bottleneck (paper §1.2's "at the end of the corresponding residual blocks"; back to back is ours). They live in
    `attention`, a ModuleDict of stage name → Sequential, so every other weight keeps torchvision's name.
    options: of all those blocks.
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        attention: Mapping[str, int],
        options: AttentionOptions | None = None,
    ) -> None:
        super().__init__()
        unknown = set(attention) - set(STAGES)
        assert not unknown, f"attention in unknown stages {sorted(unknown)}; stages are {STAGES}"
        self.out_features = STAGE_CHANNELS[-1]
        self.conv1 = nn.Conv2d(3, STAGE_CHANNELS[0], kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(STAGE_CHANNELS[0])
        widths = tuple(pairwise(STAGE_CHANNELS))
        self.layer1 = _stage(*widths[0], blocks[0], stride=1)
        self.layer2 = _stage(*widths[1], blocks[1], stride=2)
        self.layer3 = _stage(*widths[2], blocks[2], stride=2)
        self.layer4 = _stage(*widths[3], blocks[3], stride=2)
        _init_convolutions(self)
        # Built last: one seed gives the same trunk with attention and without, and attention keeps its own init.
        self.attention = nn.ModuleDict(
            {
                stage: nn.Sequential(*(AttentionBlock(channels, options) for _ in range(attention[stage])))
                for stage, channels in zip(STAGES, STAGE_CHANNELS[1:], strict=True)
                if attention.get(stage, 0) > 0
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self.feature_maps(x)["res5"], 1).flatten(1)

    def feature_maps(self, x: Tensor) -> dict[str, Tensor]:
        """The outputs of res2 to res5, attention included: at 224 pixels 56², 28², 14² and 7² positions."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x)), inplace=True), kernel_size=3, stride=2, padding=1)
        maps: dict[str, Tensor] = {}
        for stage, layer in zip(STAGES, (self.layer1, self.layer2, self.layer3, self.layer4), strict=True):
            x = layer(x)
            if stage in self.attention:
                x = self.attention[stage](x)
            maps[stage] = x
        return maps

    def attention_layers(self) -> Iterator[tuple[str, SelfAttention2d]]:
        """Its attention layers by name: `res3.0` is the first behind res3."""
        for stage, blocks in self.attention.items():
            assert isinstance(blocks, nn.Sequential)
            for index, block in enumerate(blocks):
                assert isinstance(block, AttentionBlock)
                yield f"{stage}.{index}", block.attention


def _stage(channels_in: int, channels_out: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = Bottleneck(channels_in, channels_out, stride)
    return nn.Sequential(first, *(Bottleneck(channels_out, channels_out, 1) for _ in range(blocks - 1)))


def _init_convolutions(network: nn.Module) -> None:
    """He initialisation by fan-out, as torchvision's; norms start at scale 1, shift 0 by themselves."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

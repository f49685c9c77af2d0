"""EDSR: residual blocks without batch normalization (Lim et al., CVPR Workshops 2017, section 3).

Parameter names follow the BasicSR checkpoints (`conv_first`, `body.N.conv1`, `upsample.0`, ...), so those weights
load as they are.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idc_hub.errors import NetworkError

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K; every published checkpoint uses it
PIXEL_RANGE = 255.0  # the published weights were trained on [0, 255], which matters most for the biases


class ResidualBlock(nn.Module):
    """Conv, ReLU, conv, scaled by `residual_scale` and added to the input (Lim et al., figure 2c)."""

    def __init__(self, channels: int, residual_scale: float) -> None:
        super().__init__()
        self.residual_scale = residual_scale
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, c, h, w]` to the same shape."""
        return x + self.conv2(torch.relu(self.conv1(x))) * self.residual_scale


class EDSR(nn.Module):
    """EDSR: RGB float `[B, 3, h, w]` in [0, 1] to `[B, 3, scale*h, scale*w]`, not clamped.

    As published, "pixelshuffle" adds no bicubic copy of the input to the output, so the features carry color too.

    Args:
        channels: Channels of every feature map.
        blocks: Number of residual blocks.
        residual_scale: Factor on each block's residual; 0.1 keeps the 256-channel network stable.
        upsampler: "pixelshuffle", as published; or "pixelshuffledirect" (SwinIR's term), one convolution and one
            pixel shuffle on top of bicubic upsampling. The latter is fast, since all convolutions run at LR size,
            and it learns something useful within 2,000 steps.
        scale: 2, 3, or 4.

    Raises:
        NetworkError: The scale or the upsampler is unsupported.

    Attributes:
        name: What `create` and `load` call this network.
        feature_channels: Channels of every feature map.
        arguments: The constructor's arguments except the scale, as stored in `config.json`.
    """

    name = "edsr"
    mean: Tensor

    def __init__(
        self,
        *,
        channels: int,
        blocks: int,
        residual_scale: float = 1.0,
        upsampler: str = "pixelshuffle",
        scale: int = 4,
    ) -> None:
        if scale not in (2, 3, 4):
            raise NetworkError(f"EDSR supports scales 2, 3, and 4, not {scale}.")
        if upsampler not in ("pixelshuffle", "pixelshuffledirect"):
            raise NetworkError(
                f"EDSR has no upsampler {upsampler!r}.", hint='Use "pixelshuffle" or "pixelshuffledirect".'
            )
        super().__init__()
        self.scale = scale
        self.feature_channels = channels
        self.direct = upsampler == "pixelshuffledirect"
        self.arguments: dict[str, Any] = {"channels": channels, "blocks": blocks, "residual_scale": residual_scale}
        if self.direct:
            self.arguments["upsampler"] = upsampler

        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(3, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(3, channels, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(channels, residual_scale) for _ in range(blocks)))
        self.conv_after_body = nn.Conv2d(channels, channels, 3, padding=1)
        if self.direct:
            self.upsample = nn.Sequential(nn.Conv2d(channels, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))
            return
        steps: list[nn.Module] = []
        for factor in (2, 2) if scale == 4 else (scale,):
            steps += [nn.Conv2d(channels, channels * factor**2, 3, padding=1), nn.PixelShuffle(factor)]
        self.upsample = nn.Sequential(*steps)
        self.conv_last = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, lr: Tensor) -> Tensor:
        """Upscale RGB float `[B, 3, h, w]` in [0, 1] to `[B, 3, scale*h, scale*w]`, not clamped."""
        x = self.upsample(self.features(lr, "body"))
        if self.direct:
            return x / PIXEL_RANGE + F.interpolate(lr, scale_factor=self.scale, mode="bicubic")
        return self.conv_last(x) / PIXEL_RANGE + self.mean

    def features(self, lr: Tensor, layer: int | str = "last") -> Tensor:
        """The feature map after a layer.

        Args:
            lr: Float `[B, 3, h, w]` in [0, 1].
            layer: A residual block's number, counting from 1; "first" or "last" for the first or last block; or
                "body" for the upsampler's input, which is the last block after `conv_after_body`, plus the output
                of `conv_first`.

        Returns:
            Float `[B, feature_channels, h, w]`.

        Raises:
            NetworkError: There is no such layer.
        """
        count = layer_count(self.name, layer, len(self.body), ("body",))
        first = self.conv_first((lr - self.mean) * PIXEL_RANGE)
        x = self.body[:count](first)
        return self.conv_after_body(x) + first if layer == "body" else x


def layer_count(network: str, layer: int | str, last: int, names: Sequence[str]) -> int:
    """How many layers to run for the feature map `layer`.

    Args:
        network: Network name, for the error message.
        layer: The requested layer.
        last: Number of layers.
        names: Layer names besides "first" and "last", each of which needs all layers.

    Raises:
        NetworkError: There is no such layer.
    """
    counts: dict[int | str, int] = {n: n for n in range(1, last + 1)}
    counts |= {"first": 1, "last": last, **dict.fromkeys(names, last)}
    if isinstance(layer, bool) or layer not in counts:
        told = ", ".join(f'"{name}"' for name in ("first", "last", *names[:-1]))
        raise NetworkError(
            f"{network} has no layer {layer!r}.", hint=f'Its layers are 1 to {last}, {told}, and "{names[-1]}".'
        )
    return counts[layer]

"""SwinIR: attention in shifted windows between convolutions (Liang et al., ICCV Workshops 2021, section 3).

The parameters carry the names of the published checkpoints (`layers.N.residual_group.blocks.M.attn.qkv`, ...).
Those files also hold two constants for each block, which follow from the window and from the size of the
authors' training images: `relative_position_index` and `attn_mask`. Here they are computed, not stored, and
`load_state_dict` leaves them out of what it is given, so a published state dict loads strictly as it is. The
published `.pth` files wrap it: it is `torch.load(path, weights_only=True)["params"]`.

The published code also skips blocks at random while it trains ("no impact on SR results", it says). This one
does not: it computes the same in training and in evaluation mode.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from idc_hub.errors import NetworkError
from idc_hub.networks.edsr import RGB_MEAN, layer_count

MLP_RATIO = 2  # hidden channels of the MLP over its input channels
UPSAMPLER_CHANNELS = 64  # of "pixelshuffle", whatever `dim` is
COMPUTED = ("relative_position_index", "attn_mask")  # ends of the keys that published files hold in addition


@lru_cache(maxsize=4)
def shift_mask(height: int, width: int, window: int, device: torch.device) -> Tensor:
    """What keeps pixels apart that only the cyclic shift brought into one window (Swin, section 3.2).

    After a shift by half a window the last window of a row or column holds pixels of both ends of the image.

    Args:
        height: Of the feature map, a multiple of `window`.
        width: The same.
        window: Side of a window in pixels.
        device: Where the mask lies.

    Returns:
        Float32 `[windows, window**2, window**2]`, to be added to the attention's logits: 0 for two pixels from
        the same end of the image, else -100, the published value.
    """
    rows, columns = (
        (torch.arange(size, device=device) >= size - window).long()
        + (torch.arange(size, device=device) >= size - window // 2)
        for size in (height, width)
    )
    region = rows[:, None] * 3 + columns
    region = region.unflatten(1, (-1, window)).unflatten(0, (-1, window)).transpose(1, 2).reshape(-1, window**2)
    return (region[:, :, None] != region[:, None, :]) * -100.0


class WindowAttention(nn.Module):
    """Multi-head self-attention inside each window, with a learned bias for each offset between two pixels.

    Args:
        dim: Channels.
        heads: Attention heads; divides `dim`.
        window: Side of a window in pixels.
    """

    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

        pixels = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        offset = pixels[:, None] - pixels + window - 1  # down and right, both 0 to 2 * window - 2
        index = offset[..., 0] * (2 * window - 1) + offset[..., 1]
        self.register_buffer("relative_position_index", index, persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend within the windows of `x`.

        Args:
            x: `[B, h, w, dim]`; h and w are multiples of the window.
            mask: `[windows, window**2, window**2]`, added to the logits of every head.

        Returns:
            `[B, h, w, dim]`.
        """
        batch, height, width, dim = x.shape
        rows, columns, pixels = height // self.window, width // self.window, self.window**2
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        if mask is not None:  # one bias for each window and head, and still one for all images
            bias = (bias + mask[:, None].to(bias.dtype)).flatten(0, 1)

        qkv = self.qkv(x).view(batch, rows, self.window, columns, self.window, 3, self.heads, dim // self.heads)
        qkv = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7)  # 3, batch, rows, columns, heads, then pixels and their channels
        q, k, v = qkv.reshape(3, -1, len(bias), pixels, dim // self.heads)
        x = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        x = x.view(batch, rows, columns, self.heads, self.window, self.window, dim // self.heads)
        return self.proj(x.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height, width, dim))


class SwinBlock(nn.Module):
    """Attention, then an MLP, each on a normalized copy and added to its input (Liang et al., section 3.2).

    Args:
        dim: Channels.
        heads: Attention heads.
        window: Side of a window in pixels.
        shift: Pixels by which the windows lie further down and to the right, 0 or half a window.
    """

    def __init__(self, dim: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.shift = shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim)
        hidden = MLP_RATIO * dim
        steps = OrderedDict(fc1=nn.Linear(dim, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, dim))
        self.mlp = nn.Sequential(steps)

    def forward(self, x: Tensor) -> Tensor:
        """`x` and the result are `[B, h, w, dim]`."""
        normal = self.norm1(x)
        if self.shift:
            mask = shift_mask(x.shape[1], x.shape[2], self.attn.window, x.device)
            shifted = torch.roll(normal, (-self.shift, -self.shift), (1, 2))
            x = x + torch.roll(self.attn(shifted, mask), (self.shift, self.shift), (1, 2))
        else:
            x = x + self.attn(normal)
        return x + self.mlp(self.norm2(x))


class ResidualSwinBlock(nn.Module):
    """Swin blocks, windows shifted in every second one, then a convolution, plus the input (RSTB, section 3.2).

    Args:
        depth: Swin blocks.
        dim: Channels.
        heads: Attention heads.
        window: Side of a window in pixels.
    """

    def __init__(self, depth: int, dim: int, heads: int, window: int) -> None:
        super().__init__()
        blocks = [SwinBlock(dim, heads, window, shift=n % 2 * (window // 2)) for n in range(depth)]
        self.residual_group = nn.Sequential(OrderedDict(blocks=nn.Sequential(*blocks)))
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`x` and the result are `[B, h, w, dim]`."""
        return x + self.conv(self.residual_group(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SwinIR(nn.Module):
    """SwinIR: RGB float `[B, 3, h, w]` in [0, 1] to `[B, 3, scale*h, scale*w]`, not clamped.

    Images are mirrored at the bottom and at the right up to a multiple of the window, as in the published code,
    and cropped again. No bicubic copy of the input is added to the output, so the features carry the colors too.

    Args:
        depths: Swin blocks of each layer; one layer is one RSTB.
        dim: Channels of every feature map.
        heads: Attention heads; divides `dim`.
        window: Side of a window in LR pixels.
        upsampler: "pixelshuffle" (classical: 64 channels, x2 at a time) or "pixelshuffledirect" (light: one step).
        scale: 2, 3 or 4.

    Attributes:
        name: What `create` and `load` call this network.
        layers: The layers that `features` counts.
        feature_channels: Channels of every feature map.
        arguments: The constructor's arguments without the scale, as stored in `config.json`.
    """

    name = "swinir"
    mean: Tensor

    def __init__(
        self, *, depths: Sequence[int], dim: int, heads: int, window: int, upsampler: str, scale: int = 4
    ) -> None:
        if scale not in (2, 3, 4):
            raise NetworkError(f"SwinIR exists for the scales 2, 3 and 4, not for {scale}.")
        if upsampler not in ("pixelshuffle", "pixelshuffledirect"):
            raise NetworkError(
                f"SwinIR has no upsampler {upsampler!r}.", hint='It has "pixelshuffle" and "pixelshuffledirect".'
            )
        if heads < 1 or dim % heads:
            raise NetworkError(f"{heads} attention heads cannot share {dim} channels: {dim} is no multiple of {heads}.")
        super().__init__()
        self.scale = scale
        self.window = window
        self.feature_channels = dim
        self.arguments = {"depths": list(depths), "dim": dim, "heads": heads, "window": window, "upsampler": upsampler}

        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(3, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(3, dim, 3, padding=1)
        self.patch_embed = nn.Sequential(OrderedDict(norm=nn.LayerNorm(dim)))
        self.layers = nn.Sequential(*(ResidualSwinBlock(depth, dim, heads, window) for depth in depths))
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = nn.Conv2d(dim, dim, 3, padding=1)
        parts = make_upsampler(dim, scale, direct=upsampler == "pixelshuffledirect")
        self.conv_before_upsample, self.upsample, self.conv_last = parts
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, lr: Tensor) -> Tensor:
        height, width = (self.scale * size for size in lr.shape[2:])
        x = self.conv_before_upsample(self._padded_features(lr, "body"))
        x = self.conv_last(self.upsample(x)) + self.mean
        return x[:, :, :height, :width]

    def features(self, lr: Tensor, layer: int | str = "last") -> Tensor:
        """The feature map after one layer.

        Args:
            lr: Float `[B, 3, h, w]` in [0, 1].
            layer: 1 to the number of layers, the output of that RSTB; "first", the first; "last", the last;
                "norm", the last through the final LayerNorm; or "body", what enters the upsampler: "norm"
                through `conv_after_body`, plus the output of `conv_first`.

        Returns:
            Float `[B, feature_channels, h, w]`.

        Raises:
            NetworkError: There is no such layer, or the image is too small to be mirrored up to a window.
        """
        return self._padded_features(lr, layer)[:, :, : lr.shape[2], : lr.shape[3]]

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Like torch's, but a state dict may hold the constants of the published files; they are not read."""
        parameters = {key: value for key, value in state_dict.items() if not key.endswith(COMPUTED)}
        return super().load_state_dict(parameters, strict=strict, assign=assign)

    def _padded_features(self, lr: Tensor, layer: int | str) -> Tensor:
        """`features`, with the rows and columns that fill the last windows."""
        count = layer_count(self.name, layer, len(self.layers), ("norm", "body"))
        first = self.conv_first(self._padded(lr) - self.mean)
        x = self.layers[:count](self.patch_embed(first.permute(0, 2, 3, 1)))
        if layer in ("norm", "body"):
            x = self.norm(x)
        x = x.permute(0, 3, 1, 2)
        return self.conv_after_body(x) + first if layer == "body" else x

    def _padded(self, lr: Tensor) -> Tensor:
        height, width = lr.shape[2:]
        bottom, right = -height % self.window, -width % self.window
        if bottom >= height or right >= width:
            raise NetworkError(
                f"An image of {width}x{height} pixels is too small for {self.name}.",
                hint=f"Its sides must be longer than half a window, which is {self.window // 2} pixels.",
            )
        return functional.pad(lr, (0, right, 0, bottom), mode="reflect") if bottom or right else lr


def make_upsampler(dim: int, scale: int, *, direct: bool) -> tuple[nn.Sequential, nn.Sequential, nn.Module]:
    """What follows the body: `conv_before_upsample`, `upsample` and `conv_last` of the published code.

    Args:
        dim: Channels of the body.
        scale: 2, 3 or 4.
        direct: One convolution and one pixel shuffle, as in the light networks; else 64 channels, x2 at a time.
    """
    if direct:
        channels, out, factors = dim, 3, [scale]
        before = nn.Sequential()
    else:
        channels = out = UPSAMPLER_CHANNELS
        factors = [2, 2] if scale == 4 else [scale]
        before = nn.Sequential(nn.Conv2d(dim, channels, 3, padding=1), nn.LeakyReLU())
    steps: list[nn.Module] = []
    for factor in factors:
        steps += [nn.Conv2d(channels, out * factor**2, 3, padding=1), nn.PixelShuffle(factor)]
    return before, nn.Sequential(*steps), nn.Identity() if direct else nn.Conv2d(out, 3, 3, padding=1)

"""The skeleton that SwinIR and MambaIRv2 share: window attention, groups of residual blocks, and an upsampler.

Module and parameter names follow the published checkpoints, so their state dicts load without renaming. Inside,
feature maps are channels-last, `[B, h, w, dim]`.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from idc_hub.errors import NetworkError
from idc_hub.networks.edsr import RGB_MEAN, layer_count

HEAD_MULTIPLE = 8  # channels of an attention head are padded to a multiple of this
UPSAMPLER_CHANNELS = 64  # of the x2-at-a-time upsampler, whatever `dim` is


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with a learned bias per relative position (Swin, section 3.2).

    Args:
        dim: Channels.
        heads: Attention heads; must divide `dim`.
        window: Window side in pixels.
        shift: How far the windows are shifted down and right, in pixels: 0 or half a window.
        project: Project the input to queries, keys, and values. If false, the caller has already done so.
    """

    def __init__(self, dim: int, heads: int, window: int, shift: int, *, project: bool) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.shift = shift
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = nn.Linear(dim, 3 * dim) if project else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        """Attend within each window.

        Args:
            x: `[B, h, w, dim]`, or `[B, h, w, 3 * dim]` if already projected; h and w are multiples of the window.
            index: From `relative_position_index`.

        Returns:
            `[B, h, w, dim]`.
        """
        qkv = self.qkv(x)
        bias = self.relative_position_bias_table[index].permute(2, 0, 1)
        if not self.shift:
            return self.proj(self._attend(qkv, bias))
        # Rolling brings opposite edges of the image together in the last row and column of windows. Only those
        # windows need a mask, and there are just four different ones, so memory doesn't grow with the image.
        qkv = torch.roll(qkv, (-self.shift, -self.shift), (1, 2))
        height, width = (size - self.window for size in qkv.shape[1:3])
        bands = []
        # A single row or column of windows leaves the other part empty.
        for bottom, rows in enumerate(qkv.split([height, self.window], dim=1)):
            parts = enumerate(rows.split([width, self.window], dim=2))
            band = [self._attend(part, bias + self._mask(bottom, right, bias)) for right, part in parts if part.numel()]
            bands += [torch.cat(band, dim=2)] if band else []
        return torch.roll(self.proj(torch.cat(bands, dim=1)), (self.shift, self.shift), (1, 2))

    def _attend(self, qkv: Tensor, bias: Tensor) -> Tensor:
        """Attention output `[B, h, w, dim]`, with `bias` `[heads, window**2, window**2]` added to the logits."""
        batch, height, width, channels = qkv.shape
        rows, columns, head = height // self.window, width // self.window, channels // (3 * self.heads)
        x = qkv.reshape(batch, rows, self.window, columns, self.window, 3, self.heads, head)
        x = x.permute(5, 0, 1, 3, 6, 2, 4, 7)  # 3, batch, rows, columns, heads, then pixels and their channels
        # Zeros change neither the products nor the output; on a CPU, calls with 10 channels take half as long again.
        x = functional.pad(x, (0, -head % HEAD_MULTIPLE))
        q, k, v = x.reshape(3, batch * rows * columns, self.heads, self.window**2, -1)
        x = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias[None].to(q.dtype), scale=head**-0.5)
        x = x[..., :head].reshape(batch, rows, columns, self.heads, self.window, self.window, head)
        return x.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height, width, channels // 3)

    def _mask(self, bottom: int, right: int, like: Tensor) -> Tensor:
        """-100 (the published value) between pixels of a rolled window that come from opposite edges of the image.

        `bottom` is 1 for the last row of windows, whose lower half comes from the top of the image; `right` is 1
        for the last column. The mask is `[window**2, window**2]`, with the dtype and device of `like`.
        """
        half = torch.arange(self.window, device=like.device) >= self.window - self.shift
        side = (2 * bottom * half[:, None] + right * half).flatten()
        return -100 * (side[:, None] != side).to(like.dtype)


class ResidualGroup(nn.Module):
    """Blocks and a convolution, added to their input: SwinIR's RSTB, MambaIRv2's ASSG.

    Args:
        name: What the published checkpoints call the blocks.
        blocks: Map `[B, h, w, dim]` to the same shape.
        dim: Channels.
    """

    def __init__(self, name: str, blocks: Iterable[nn.Module], dim: int) -> None:
        super().__init__()
        self.residual_group = nn.ModuleDict({name: nn.ModuleList(blocks)})
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor, *constants: Tensor) -> Tensor:
        """Map `[B, h, w, dim]` to the same shape; each block also gets the `constants`."""
        deep = x
        for blocks in self.residual_group.children():
            for block in blocks.children():
                deep = block(deep, *constants)
        return x + convolve(self.conv, deep)


class WindowedNetwork(nn.Module, ABC):
    """A super-resolution network whose body works on windows. RGB float `[B, 3, h, w]` in [0, 1], not clamped.

    The input is mirrored at the bottom and right up to a multiple of the window, and the output is cropped. No
    bicubic copy of the input is added to the output, so the features carry color too.

    Args:
        block: Makes one block, given the shift of its windows.
        blocks: What the published checkpoints call the blocks.
        depths: Blocks per group; windows are shifted in every second block.
        dim: Channels of every feature map.
        heads: Attention heads; must divide `dim`.
        window: Window side in LR pixels.
        scale: 2, 3, or 4.
        direct: Upsample in one step, as the light networks do.

    Raises:
        NetworkError: The scale is unsupported, or `heads` doesn't divide `dim`.

    Attributes:
        name: What `create` and `load` call this network.
        layers: The groups, which `features` counts.
        feature_channels: Channels of every feature map.
        arguments: The constructor's arguments except the scale, as stored in `config.json`.
    """

    name: str
    repeats_edge: bool  # whether the mirror image starts with the outermost pixels or with the ones next to them
    arguments: dict[str, Any]
    mean: Tensor

    def __init__(
        self,
        block: Callable[[int], nn.Module],
        blocks: str,
        *,
        depths: Sequence[int],
        dim: int,
        heads: int,
        window: int,
        scale: int,
        direct: bool,
    ) -> None:
        if scale not in (2, 3, 4):
            raise NetworkError(f"{type(self).__name__} supports scales 2, 3, and 4, not {scale}.")
        if heads < 1 or dim % heads:
            raise NetworkError(f"{heads} attention heads can't split {dim} channels evenly.")
        super().__init__()
        self.scale = scale
        self.window = window
        self.feature_channels = dim

        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(3, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(3, dim, 3, padding=1)
        self.patch_embed = nn.Sequential(OrderedDict(norm=nn.LayerNorm(dim)))
        shifts = (0, window // 2)
        self.layers = nn.ModuleList(
            ResidualGroup(blocks, [block(shifts[n % 2]) for n in range(depth)], dim) for depth in depths
        )
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv_before_upsample, self.upsample, self.conv_last = make_upsampler(dim, scale, direct=direct)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    @abstractmethod
    def constants(self) -> tuple[Tensor, ...]:
        """What every block takes besides the feature map."""

    def forward(self, lr: Tensor) -> Tensor:
        """Upscale RGB float `[B, 3, h, w]` in [0, 1] to `[B, 3, scale*h, scale*w]`, not clamped."""
        height, width = (self.scale * size for size in lr.shape[2:])
        x = self.conv_before_upsample(self._padded_features(lr, "body"))
        x = self.conv_last(self.upsample(x)) + self.mean
        return x[:, :, :height, :width]

    def features(self, lr: Tensor, layer: int | str = "last") -> Tensor:
        """The feature map after a layer.

        Args:
            lr: Float `[B, 3, h, w]` in [0, 1].
            layer: A group's number, counting from 1; "first" or "last" for the first or last group; "norm" for the
                last group after the final LayerNorm; or "body" for the upsampler's input, which is "norm" after
                `conv_after_body`, plus the output of `conv_first`.

        Returns:
            Float `[B, feature_channels, h, w]`.

        Raises:
            NetworkError: There is no such layer.
        """
        return self._padded_features(lr, layer)[:, :, : lr.shape[2], : lr.shape[3]]

    def _padded_features(self, lr: Tensor, layer: int | str) -> Tensor:
        """Like `features`, but with the rows and columns that fill up the last windows."""
        count = layer_count(self.name, layer, len(self.layers), ("norm", "body"))
        first = self.conv_first(mirror(lr, self.window, repeat_edge=self.repeats_edge) - self.mean)
        x = self.patch_embed(first.permute(0, 2, 3, 1))
        constants = self.constants()
        for group in self.layers[:count]:
            x = group(x, *constants)
        if layer in ("norm", "body"):
            x = self.norm(x)
        x = x.permute(0, 3, 1, 2)
        return self.conv_after_body(x) + first if layer == "body" else x


def convolve(convolution: nn.Module, x: Tensor) -> Tensor:
    """Apply a convolution to channels-last `[B, h, w, c]`."""
    return convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def relative_position_index(window: int) -> Tensor:
    """The row of the bias table for each pair of pixels in a window, int64 `[window**2, window**2]`."""
    side = torch.arange(window, device="cpu")  # on the meta device, its first call takes seconds
    pixels = torch.cartesian_prod(side, side)
    offset = pixels[:, None] - pixels + window - 1  # down and right, both 0 to 2 * window - 2
    return offset[..., 0] * (2 * window - 1) + offset[..., 1]


def mirror(x: Tensor, multiple: int, *, repeat_edge: bool) -> Tensor:
    """Extend `[B, c, h, w]` at the bottom and right with its mirror image until h and w are multiples of `multiple`.

    Args:
        x: At least one pixel; mirrored back and forth if it is smaller than its extension.
        multiple: In pixels.
        repeat_edge: 0 1 2 continues with 2 1 0 (NumPy's "symmetric") instead of 1 0 1 ("reflect").
    """
    for axis in (2, 3):
        side = x.shape[axis]
        if side % multiple:
            period = 2 * (side - 1 + repeat_edge)  # 0 1 2 2 1 0, or 0 1 2 1
            index = torch.arange(side + -side % multiple, device=x.device) % max(1, period)
            x = x.index_select(axis, torch.minimum(index, period - repeat_edge - index))
    return x


def make_upsampler(dim: int, scale: int, *, direct: bool) -> tuple[nn.Sequential, nn.Sequential, nn.Module]:
    """The modules after the body: `conv_before_upsample`, `upsample`, and `conv_last` of the published code.

    Args:
        dim: Channels of the body.
        scale: 2, 3, or 4.
        direct: One convolution and one pixel shuffle, as in the light networks, instead of 64 channels, x2 at a time.
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

"""SwinIR: attention in shifted windows between convolutions (Liang et al., ICCV Workshops 2021, section 3).

The parameters carry the names of the published checkpoints (`layers.N.residual_group.blocks.M.attn.qkv`, ...).
Those files also hold two constants for each block, which follow from the window and from the size of the
authors' training images: `relative_position_index` and `attn_mask`. Here they are computed, not stored, and
`load_state_dict` leaves them out of what it is given, so a published state dict loads strictly as it is. The
published `.pth` files wrap it: it is `torch.load(path, weights_only=True)["params"]`.

The published code also skips blocks at random in training ("no impact on SR results", it says). Here it does
not: training and evaluation mode compute the same.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from idc_hub.errors import NetworkError

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K; part of every published checkpoint
MLP_RATIO = 2  # hidden channels of the MLP over its input channels
UPSAMPLER_CHANNELS = 64  # of the classical network, whatever its `dim`
COMPUTED = ("relative_position_index", "attn_mask")
"""Last part of the keys that published checkpoints hold and `SwinIR` computes."""


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
        the same end of the image, else -100 (the published value; infinity would change no digit).
    """
    with torch.inference_mode(False):  # a cached tensor must serve training too
        rows, columns = (
            (torch.arange(size, device=device) >= size - window).long()
            + (torch.arange(size, device=device) >= size - window // 2)
            for size in (height, width)
        )
        region = rows[:, None] * 3 + columns
        region = region.unflatten(1, (-1, window)).unflatten(0, (-1, window)).transpose(1, 2).reshape(-1, window**2)
        return (region[:, :, None] != region[:, None, :]) * -100.0


class WindowAttention(nn.Module):
    """Multi-head self-attention inside each window, with a learnt bias for each offset of two pixels.

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
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

        pixels = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        offset = pixels[:, None] - pixels + window - 1  # 0 to 2*window-2, vertical and horizontal
        index = offset[..., 0] * (2 * window - 1) + offset[..., 1]
        self.register_buffer("relative_position_index", index, persistent=False)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend within the windows of `x`.

        Args:
            x: `[B, h, w, dim]`; h and w are multiples of the window.
            mask: `[windows, window**2, window**2]`, added to the logits; None for no mask.

        Returns:
            `[B, h, w, dim]`.
        """
        batch, height, width, dim = x.shape
        grid = (batch, height // self.window, self.window, width // self.window, self.window)
        split = self.qkv(x).view(*grid, 3, self.heads, dim // self.heads)
        # [3, batch, windows * heads, pixels, channels of a head]: four dimensions each for q, k and v, with the
        # batch alone in the first, so that one bias with the mask in it serves the whole batch.
        q, k, v = split.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(3, batch, -1, self.window**2, dim // self.heads)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=self._bias(q, mask))
        out = out.view(batch, grid[1], grid[3], self.heads, self.window, self.window, -1)
        return self.proj(out.permute(0, 1, 4, 2, 5, 3, 6).reshape(x.shape))

    def _bias(self, q: Tensor, mask: Tensor | None) -> Tensor:
        """What is added to the logits: `[1, windows * heads, window**2, window**2]`."""
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        windows = q.shape[1] // self.heads
        if mask is None:
            return bias.expand(windows, *bias.shape).reshape(1, -1, *bias.shape[1:])
        return (bias + mask[:, None].to(bias.dtype)).flatten(0, 1)[None]


class SwinBlock(nn.Module):
    """Attention, then an MLP, each on a normalised copy and added to its input (Liang et al., equations 7 and 8).

    Args:
        dim: Channels.
        heads: Attention heads.
        window: Side of a window in pixels.
        shift: Pixels by which the windows are moved down and to the right.
    """

    def __init__(self, dim: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.shift = shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim)
        hidden = MLP_RATIO * dim
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Linear(dim, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, dim)),
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`x` is `[B, h, w, dim]`, `mask` the `shift_mask` of its size."""
        attended = self.norm1(x)
        if self.shift:
            attended = torch.roll(attended, (-self.shift, -self.shift), (1, 2))
            attended = torch.roll(self.attn(attended, mask), (self.shift, self.shift), (1, 2))
        else:
            attended = self.attn(attended, None)
        x = x + attended
        return x + self.mlp(self.norm2(x))

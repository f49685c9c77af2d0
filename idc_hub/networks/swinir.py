"""SwinIR: shifted-window attention between convolutions (Liang et al., ICCV Workshops 2021, section 3).

Published `.pth` files wrap the state dict: `torch.load(path, weights_only=True)["params"]`. They also store two
constants per block, `relative_position_index` and `attn_mask`, which follow from the window and the authors'
training image size. We compute them instead, and `load_state_dict` ignores the stored ones.

The published code also drops random blocks while training ("no impact on SR results", it says). We don't, so
training and evaluation mode compute the same.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from idc_hub.errors import NetworkError
from idc_hub.networks.windowed import WindowAttention, WindowedNetwork, relative_position_index

MLP_RATIO = 2  # hidden channels of the MLP, as a multiple of its input channels
COMPUTED = ("relative_position_index", "attn_mask")  # key endings of the constants in published files


class SwinBlock(nn.Module):
    """Attention, then an MLP, each normalizing its input and adding to it (Liang et al., section 3.2).

    Args:
        dim: Channels.
        heads: Attention heads.
        window: Window side in pixels.
        shift: How far the windows are shifted down and right, in pixels: 0 or half a window.
    """

    def __init__(self, dim: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window, shift, project=True)
        self.norm2 = nn.LayerNorm(dim)
        hidden = MLP_RATIO * dim
        steps = OrderedDict(fc1=nn.Linear(dim, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, dim))
        self.mlp = nn.Sequential(steps)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        """Map `[B, h, w, dim]` to the same shape; `index` is what `WindowAttention` takes."""
        x = x + self.attn(self.norm1(x), index)
        return x + self.mlp(self.norm2(x))


class SwinIR(WindowedNetwork):
    """SwinIR: RGB float `[B, 3, h, w]` in [0, 1] to `[B, 3, scale*h, scale*w]`, not clamped.

    See `WindowedNetwork` for padding and attributes.

    Args:
        depths: Swin blocks per layer; one layer is one RSTB.
        dim: Channels of every feature map.
        heads: Attention heads; must divide `dim`.
        window: Window side in LR pixels.
        upsampler: "pixelshuffle" (classical: 64 channels, x2 at a time) or "pixelshuffledirect" (light: one step).
        scale: 2, 3, or 4.
    """

    name = "swinir"
    repeats_edge = False
    relative_position_index: Tensor

    def __init__(
        self, *, depths: Sequence[int], dim: int, heads: int, window: int, upsampler: str, scale: int = 4
    ) -> None:
        if upsampler not in ("pixelshuffle", "pixelshuffledirect"):
            raise NetworkError(
                f"SwinIR has no upsampler {upsampler!r}.", hint='Use "pixelshuffle" or "pixelshuffledirect".'
            )
        super().__init__(
            lambda shift: SwinBlock(dim, heads, window, shift),
            "blocks",
            depths=depths,
            dim=dim,
            heads=heads,
            window=window,
            scale=scale,
            direct=upsampler == "pixelshuffledirect",
        )
        self.arguments = {"depths": list(depths), "dim": dim, "heads": heads, "window": window, "upsampler": upsampler}
        self.register_buffer("relative_position_index", relative_position_index(window), persistent=False)

    def constants(self) -> tuple[Tensor, ...]:
        """The index of relative positions in a window."""
        return (self.relative_position_index,)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Like torch's, but ignores the constants in published files."""
        parameters = {key: value for key, value in state_dict.items() if not key.endswith(COMPUTED)}
        return super().load_state_dict(parameters, strict=strict, assign=assign)

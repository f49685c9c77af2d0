"""MambaIRv2: window attention and attentive state-space scans (Guo et al., CVPR 2025, arXiv 2411.15269).

Module and parameter names follow the published checkpoints (github.com/csguoh/MambaIR), even where a plainer name
would do, so those weights load as they are.

The published code picks each pixel's prompt with Gumbel noise, in inference as in training, so its results change
with the random seed. We draw noise in training mode only. Evaluation mode uses constant noise, one tile the size of
a window, so the same input always gives the same output. Without any noise, pixels would be sorted in a way the
published weights never saw in training: on Set5 x4, the light weights reach 32.51 dB without noise, 32.54 dB with
the tile, and 32.54 to 32.55 dB with fresh noise (four seeds).
"""

import math
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from idc_hub.networks.selective_scan import selective_scan
from idc_hub.networks.windowed import WindowAttention, WindowedNetwork, convolve, relative_position_index

KERNEL_SIZE = 5  # of the depthwise convolutions in the feed-forward networks


def reorder(x: Tensor, order: Tensor) -> Tensor:
    """Reorder the tokens of `[B, L, c]` by int64 `[B, L]`."""
    return x.gather(1, order[..., None].expand_as(x))


class SelectiveScan(nn.Module):
    """A scan whose decay, input, and output depend on the tokens; the output also depends on a prompt.

    Args:
        dim: Channels.
        d_state: Hidden states per channel.
    """

    def __init__(self, dim: int, d_state: int) -> None:
        super().__init__()
        self.d_state = d_state
        rank = math.ceil(dim / 16)
        # Mamba's initialization: step sizes from 0.001 to 0.1, log-uniform.
        step = torch.exp(torch.empty(1, dim).uniform_(math.log(0.001), math.log(0.1)))
        self.dt_projs_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # its softplus is the step
        self.dt_projs_weight = nn.Parameter(torch.empty(1, dim, rank).uniform_(-(rank**-0.5), rank**-0.5))
        self.x_proj_weight = nn.Parameter(torch.empty(1, rank + 2 * d_state, dim).uniform_(-(dim**-0.5), dim**-0.5))
        self.A_logs = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(dim, 1))
        self.Ds = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, prompt: Tensor) -> Tensor:
        """Scan `[B, L, dim]`; `prompt`, `[B, L, d_state]`, is added to what the tokens read from the states."""
        rank = self.dt_projs_weight.shape[2]
        step, B, C = functional.linear(x, self.x_proj_weight[0]).split([rank, self.d_state, self.d_state], dim=2)
        delta = functional.softplus(functional.linear(step, self.dt_projs_weight[0]) + self.dt_projs_bias[0])
        return selective_scan(x, delta, -torch.exp(self.A_logs), B, C + prompt) + self.Ds * x


class AttentiveStateSpace(nn.Module):
    """Route each pixel to a prompt and scan the pixels sorted by prompt (the paper's ASSM).

    Pixels with the same prompt keep their image order, which the published sort leaves undefined. As in the
    published code, prompts aren't sorted along with the pixels: step n of the scan reads with the prompt of the
    image's n-th pixel. The published weights were trained that way.

    Args:
        dim: Channels.
        hidden: Inner channels.
        d_state: Hidden states per channel.
        inner_rank: Rank of the prompt table.
        num_tokens: Number of prompts.
    """

    def __init__(self, dim: int, hidden: int, d_state: int, inner_rank: int, num_tokens: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.in_proj = nn.Sequential(nn.Conv2d(dim, hidden, 1))
        self.CPE = nn.Sequential(nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden))
        self.selectiveScan = SelectiveScan(hidden, d_state)
        self.out_norm = nn.LayerNorm(hidden)
        self.out_proj = nn.Linear(hidden, dim)
        self.embeddingB = nn.Embedding(num_tokens, inner_rank)
        nn.init.uniform_(self.embeddingB.weight, -1 / num_tokens, 1 / num_tokens)
        narrow = dim // 3
        self.route = nn.Sequential(nn.Linear(dim, narrow), nn.GELU(), nn.Linear(narrow, num_tokens), nn.LogSoftmax(-1))

    def forward(self, x: Tensor, table: Tensor, noise: Tensor) -> Tensor:
        """Scan `x`.

        Args:
            x: `[B, h, w, dim]`.
            table: The second factor of the prompt table, `[inner_rank, d_state]`.
            noise: Added to the prompt scores in evaluation mode, `[window, window, num_tokens]`.

        Returns:
            `[B, h, w, dim]`.
        """
        choice = self._choose(self.route(x), noise).flatten(1, 2)
        order = choice.argmax(2).argsort(dim=1, stable=True)
        inside = convolve(self.in_proj, x)
        inside = inside * torch.sigmoid(convolve(self.CPE, inside))
        prompt = choice @ (self.embeddingB.weight @ table)
        scanned = self.selectiveScan(reorder(inside.flatten(1, 2), order), prompt)
        return reorder(self.out_proj(self.out_norm(scanned)), order.argsort(dim=1)).view(x.shape)

    def _choose(self, scores: Tensor, noise: Tensor) -> Tensor:
        """One-hot `[B, h, w, num_tokens]`; its gradient is that of the noisy scores' softmax (straight-through)."""
        if self.training:
            return functional.gumbel_softmax(scores, hard=True)
        height, width = scores.shape[1:3]
        noisy = scores + noise.repeat(height // len(noise), width // len(noise), 1)
        soft = noisy.softmax(-1)
        return functional.one_hot(noisy.argmax(-1), self.num_tokens).to(soft.dtype) + (soft - soft.detach())


class Gate(nn.Module):
    """One half of the channels, gated by a depthwise convolution of the other half.

    Args:
        dim: Channels per half.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.conv = nn.Conv2d(dim, dim, KERNEL_SIZE, padding=KERNEL_SIZE // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, h, w, 2 * dim]` to `[B, h, w, dim]`."""
        value, gate = x.chunk(2, dim=-1)
        return value * convolve(self.conv, self.norm(gate))


class GatedMLP(nn.Module):
    """The light network's feed-forward network.

    Args:
        dim: Channels.
        hidden: Inner channels; must be even.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.sg = Gate(hidden // 2)
        self.fc2 = nn.Linear(hidden // 2, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, h, w, dim]` to the same shape."""
        return self.fc2(self.sg(functional.gelu(self.fc1(x))))


class ConvFFN(nn.Module):
    """The base network's feed-forward network.

    Args:
        dim: Channels.
        hidden: Inner channels.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        convolution = nn.Conv2d(hidden, hidden, KERNEL_SIZE, padding=KERNEL_SIZE // 2, groups=hidden)
        self.dwconv = nn.Sequential(OrderedDict(depthwise_conv=nn.Sequential(convolution, nn.GELU())))
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, h, w, dim]` to the same shape."""
        x = functional.gelu(self.fc1(x))
        return self.fc2(x + convolve(self.dwconv, x))


class AttentiveLayer(nn.Module):
    """Window attention, then the attentive state space, each followed by a feed-forward network.

    Args:
        dim: Channels.
        heads: Attention heads.
        window: Window side in pixels.
        shift: How far the windows are shifted down and right, in pixels: 0 or half a window.
        hidden: Inner channels of the state space and the feed-forward networks.
        light: Use gated feed-forward networks.
        **prompts: The state space's `d_state`, `inner_rank`, and `num_tokens`.
    """

    def __init__(self, dim: int, heads: int, window: int, shift: int, hidden: int, light: bool, **prompts: int) -> None:
        super().__init__()
        feed_forward = GatedMLP if light else ConvFFN
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(dim) for _ in range(4))
        self.scale1, self.scale2 = (nn.Parameter(torch.full((dim,), 1e-4)) for _ in range(2))
        self.wqkv = nn.Linear(dim, 3 * dim)
        self.win_mhsa = WindowAttention(dim, heads, window, shift, project=False)
        self.assm = AttentiveStateSpace(dim, hidden, **prompts)
        self.convffn1, self.convffn2 = (feed_forward(dim, hidden) for _ in range(2))
        self.embeddingA = nn.Embedding(prompts["inner_rank"], prompts["d_state"])
        nn.init.uniform_(self.embeddingA.weight, -1 / prompts["inner_rank"], 1 / prompts["inner_rank"])

    def forward(self, x: Tensor, index: Tensor, noise: Tensor) -> Tensor:
        """Map `[B, h, w, dim]` to the same shape; `index` goes to the attention, `noise` to the state space."""
        attended = x + self.win_mhsa(self.wqkv(self.norm1(x)), index)
        x = x * self.scale1 + attended + self.convffn1(self.norm2(attended))
        scanned = x + self.assm(self.norm3(x), self.embeddingA.weight, noise)
        return x * self.scale2 + scanned + self.convffn2(self.norm4(scanned))


class MambaIRv2(WindowedNetwork):
    """MambaIRv2: RGB float `[B, 3, h, w]` in [0, 1] to `[B, 3, scale*h, scale*w]`, not clamped.

    See `WindowedNetwork` for padding and attributes.

    Args:
        dim: Channels of every feature map.
        depths: Attentive layers per group (ASSG).
        heads: Attention heads; must divide `dim`.
        d_state: Hidden states per channel of the scan.
        inner_rank: Rank of the prompt table.
        num_tokens: Number of prompts.
        mlp_ratio: Inner channels of the scan and the feed-forward networks, as a multiple of `dim`.
        light: Build the published light network: gated feed-forward networks, one-step upsampling.
        window: Window side in LR pixels.
        scale: 2, 3, or 4.
    """

    name = "mambairv2"
    repeats_edge = True
    noise: Tensor
    relative_position_index_SA: Tensor

    def __init__(
        self,
        *,
        dim: int,
        depths: Sequence[int],
        heads: int,
        d_state: int,
        inner_rank: int,
        num_tokens: int,
        mlp_ratio: int,
        light: bool,
        window: int = 16,
        scale: int = 4,
    ) -> None:
        prompts = {"d_state": d_state, "inner_rank": inner_rank, "num_tokens": num_tokens}
        super().__init__(
            lambda shift: AttentiveLayer(dim, heads, window, shift, dim * mlp_ratio, light, **prompts),
            "layers",
            depths=depths,
            dim=dim,
            heads=heads,
            window=window,
            scale=scale,
            direct=light,
        )
        self.arguments = {"dim": dim, "depths": list(depths), "heads": heads, **prompts}
        self.arguments |= {"mlp_ratio": mlp_ratio, "light": light, "window": window}
        self.register_buffer("relative_position_index_SA", relative_position_index(window))
        # RandomState, because NumPy guarantees its stream never changes; torch makes no such promise.
        noise = np.random.RandomState(0).gumbel(size=(window, window, num_tokens))
        self.register_buffer("noise", torch.tensor(noise, dtype=torch.float32), persistent=False)

    def constants(self) -> tuple[Tensor, ...]:
        """The index of relative positions in a window, and the noise of the prompt scores."""
        return self.relative_position_index_SA, self.noise

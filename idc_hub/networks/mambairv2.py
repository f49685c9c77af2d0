"""MambaIRv2: window attention and one attentive state space scan (Guo et al., CVPR 2025, arXiv 2411.15269).

Modules and parameters carry the names of the published checkpoints (github.com/csguoh/MambaIR), also where a
plainer name would do, so that those weights load as they are. Inside, pixels are `[B, h, w, dim]`.

The published code draws the prompt of every pixel with Gumbel noise, when it infers as when it trains, so its
results change with the random seed. Here that is so in training mode alone. In evaluation mode the noise is a
constant, a tile of the size of a window, so one input has one output. No noise at all would be simpler, but it
brings the pixels into an order that the published weights never saw in training: on Set5 x4 the light ones give
32.51 dB without noise, 32.54 dB with the tile, and 32.54 to 32.55 dB with fresh noise of four seeds.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from idc_hub.errors import NetworkError
from idc_hub.networks.edsr import RGB_MEAN, layer_count
from idc_hub.networks.selective_scan import selective_scan
from idc_hub.networks.swinir import make_upsampler

KERNEL_SIZE = 5  # of the depthwise convolutions in the feed-forward parts


def convolve(convolution: nn.Module, x: Tensor) -> Tensor:
    """A convolution, which wants channels first, of `[B, h, w, c]`."""
    return convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def reorder(x: Tensor, order: Tensor) -> Tensor:
    """`[B, L, c]` with the tokens in another order: int64 `[B, L]`."""
    return x.gather(1, order[..., None].expand_as(x))


class WindowAttention(nn.Module):
    """Multi-head self-attention inside each window, with a learned bias for each offset between two pixels.

    Args:
        dim: Channels.
        heads: Attention heads; divides `dim`.
        window: Side of a window in pixels.
        shift: Pixels by which the windows lie further down and to the right, 0 or half a window.
    """

    def __init__(self, dim: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.shift = shift
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.proj = nn.Linear(dim, dim)

    def forward(self, qkv: Tensor, position_index: Tensor) -> Tensor:
        """Attend within the windows.

        Args:
            qkv: Queries, keys and values, `[B, h, w, 3 * dim]`; h and w are multiples of the window.
            position_index: For each two pixels of a window their row in the table, `[window**2, window**2]`.

        Returns:
            `[B, h, w, dim]`.
        """
        bias = self.relative_position_bias_table[position_index].permute(2, 0, 1)
        if not self.shift:
            return self.proj(self._attend(qkv, bias))
        # The roll brings both ends of the image together in the last row and the last column of windows. Only
        # these need a mask, and one for each of the four corners of the image does: none grows with the image.
        qkv = torch.roll(qkv, (-self.shift, -self.shift), (1, 2))
        ends = list(enumerate((slice(None, -self.window), slice(-self.window, None))))
        bands = []
        for bottom, rows in ends:
            masked = [bias + self._mask(bottom, right, bias) for right in (0, 1)]
            parts = [self._attend(qkv[:, rows, columns], masked[right]) for right, columns in ends]
            bands.append(torch.cat(parts, dim=2))
        return torch.roll(self.proj(torch.cat(bands, dim=1)), (self.shift, self.shift), (1, 2))

    def _attend(self, qkv: Tensor, bias: Tensor) -> Tensor:
        """`[B, h, w, dim]` of some windows, with `bias` `[heads, window**2, window**2]` added to the logits."""
        batch, height, width, channels = qkv.shape
        rows, columns, head = height // self.window, width // self.window, channels // (3 * self.heads)
        x = qkv.reshape(batch, rows, self.window, columns, self.window, 3, self.heads, head)
        x = x.permute(5, 0, 1, 3, 6, 2, 4, 7)  # 3, batch, rows, columns, heads, then pixels and their channels
        q, k, v = x.reshape(3, batch * rows * columns, self.heads, self.window**2, head)
        x = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias[None].to(q.dtype))
        x = x.reshape(batch, rows, columns, self.heads, self.window, self.window, head)
        return x.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height, width, channels // 3)

    def _mask(self, bottom: int, right: int, like: Tensor) -> Tensor:
        """-100, the published value, between two pixels of a rolled window that are no neighbors in the image.

        `bottom` is 1 for the last row of windows, whose lower half comes from the top of the image, `right` for the
        last column, else 0. The mask is `[window**2, window**2]`, of the dtype and on the device of `like`.
        """
        half = torch.arange(self.window, device=like.device) >= self.window - self.shift
        side = (2 * bottom * half[:, None] + right * half).flatten()
        return -100 * (side[:, None] != side).to(like.dtype)


class SelectiveScan(nn.Module):
    """The scan of a sequence whose decay, input and output follow from the tokens, and the output from a prompt too.

    Args:
        dim: Channels.
        d_state: Hidden states of each channel.
    """

    def __init__(self, dim: int, d_state: int) -> None:
        super().__init__()
        self.d_state = d_state
        rank = math.ceil(dim / 16)
        # Mamba's initialization: step sizes from 0.001 to 0.1, spread evenly over their logarithms.
        step = torch.exp(torch.empty(1, dim).uniform_(math.log(0.001), math.log(0.1)))
        self.dt_projs_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # softplus of it is the step
        self.dt_projs_weight = nn.Parameter(torch.empty(1, dim, rank).uniform_(-(rank**-0.5), rank**-0.5))
        self.x_proj_weight = nn.Parameter(torch.empty(1, rank + 2 * d_state, dim).uniform_(-(dim**-0.5), dim**-0.5))
        self.A_logs = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(dim, 1))
        self.Ds = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, prompt: Tensor) -> Tensor:
        """Scan `[B, L, dim]`; `prompt` `[B, L, d_state]` is added to what the tokens read from the states."""
        rank = self.dt_projs_weight.shape[2]
        step, B, C = functional.linear(x, self.x_proj_weight[0]).split([rank, self.d_state, self.d_state], dim=2)
        delta = functional.softplus(functional.linear(step, self.dt_projs_weight[0]) + self.dt_projs_bias[0])
        return selective_scan(x, delta, -torch.exp(self.A_logs), B, C + prompt) + self.Ds * x


class AttentiveStateSpace(nn.Module):
    """Route every pixel to a prompt, and scan the pixels prompt by prompt (ASSM of Guo et al.).

    Pixels of one prompt keep the order of the image, which the published sort leaves open. As in the published
    code, whose weights know nothing else, the prompts do not move with the sorted pixels: the n-th step of the
    scan reads with the prompt of the n-th pixel of the image.

    Args:
        dim: Channels.
        hidden: Channels inside.
        d_state: Hidden states of each channel.
        inner_rank: Rank of the table of prompts.
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
            table: The other factor of the prompts, `[inner_rank, d_state]`.
            noise: What evaluation mode adds to the scores of the prompts, `[window, window, num_tokens]`.

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
        """One-hot `[B, h, w, num_tokens]`, with the gradient of the softmax of the noisy scores (straight-through)."""
        if self.training:
            return functional.gumbel_softmax(scores, hard=True)
        height, width = scores.shape[1:3]
        noisy = scores + noise.repeat(height // len(noise), width // len(noise), 1)
        soft = noisy.softmax(-1)
        return functional.one_hot(noisy.argmax(-1), self.num_tokens).to(soft.dtype) + (soft - soft.detach())


class Gate(nn.Module):
    """Half of the channels, times a depthwise convolution of the other half.

    Args:
        dim: Channels of one half.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.conv = nn.Conv2d(dim, dim, KERNEL_SIZE, padding=KERNEL_SIZE // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return value * convolve(self.conv, self.norm(gate))


class GatedMLP(nn.Module):
    """The feed-forward part of the light network.

    Args:
        dim: Channels.
        hidden: Channels inside, an even number.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.sg = Gate(hidden // 2)
        self.fc2 = nn.Linear(hidden // 2, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.sg(functional.gelu(self.fc1(x))))


class ConvFFN(nn.Module):
    """The feed-forward part of the base network.

    Args:
        dim: Channels.
        hidden: Channels inside.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        convolution = nn.Conv2d(hidden, hidden, KERNEL_SIZE, padding=KERNEL_SIZE // 2, groups=hidden)
        self.dwconv = nn.Sequential(OrderedDict(depthwise_conv=nn.Sequential(convolution, nn.GELU())))
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.fc1(x))
        return self.fc2(x + convolve(self.dwconv, x))


class AttentiveLayer(nn.Module):
    """Window attention, then the attentive state space, each followed by a feed-forward part.

    Args:
        dim: Channels.
        heads: Attention heads.
        window: Side of a window in pixels.
        shift: 0 or half a window.
        hidden: Channels inside the state space and the feed-forward parts.
        light: Whether the feed-forward parts are gated.
        **prompts: `d_state`, `inner_rank` and `num_tokens` of the state space.
    """

    def __init__(self, dim: int, heads: int, window: int, shift: int, hidden: int, light: bool, **prompts: int) -> None:
        super().__init__()
        feed_forward = GatedMLP if light else ConvFFN
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(dim) for _ in range(4))
        self.scale1, self.scale2 = (nn.Parameter(torch.full((dim,), 1e-4)) for _ in range(2))
        self.wqkv = nn.Linear(dim, 3 * dim)
        self.win_mhsa = WindowAttention(dim, heads, window, shift)
        self.assm = AttentiveStateSpace(dim, hidden, **prompts)
        self.convffn1, self.convffn2 = (feed_forward(dim, hidden) for _ in range(2))
        self.embeddingA = nn.Embedding(prompts["inner_rank"], prompts["d_state"])
        nn.init.uniform_(self.embeddingA.weight, -1 / prompts["inner_rank"], 1 / prompts["inner_rank"])

    def forward(self, x: Tensor, position_index: Tensor, noise: Tensor) -> Tensor:
        """`x` and the result are `[B, h, w, dim]`; the others are what the two parts take."""
        attended = x + self.win_mhsa(self.wqkv(self.norm1(x)), position_index)
        x = x * self.scale1 + attended + self.convffn1(self.norm2(attended))
        scanned = x + self.assm(self.norm3(x), self.embeddingA.weight, noise)
        return x * self.scale2 + scanned + self.convffn2(self.norm4(scanned))


class AttentiveGroup(nn.Module):
    """Attentive layers, windows shifted in every second one, then a convolution, plus the input (ASSG).

    Args:
        depth: Layers.
        dim: Channels.
        window: Side of a window in pixels.
        **arguments: The other arguments of each layer.
    """

    def __init__(self, depth: int, dim: int, window: int, **arguments: Any) -> None:
        super().__init__()
        layers = [AttentiveLayer(dim, window=window, shift=n % 2 * (window // 2), **arguments) for n in range(depth)]
        self.residual_group = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor, position_index: Tensor, noise: Tensor) -> Tensor:
        """`x` and the result are `[B, h, w, dim]`; the others are what the layers take."""
        deep = x
        for layer in self.residual_group["layers"].children():
            deep = layer(deep, position_index, noise)
        return x + convolve(self.conv, deep)


class MambaIRv2(nn.Module):
    """MambaIRv2: RGB float `[B, 3, h, w]` in [0, 1] to `[B, 3, scale*h, scale*w]`, not clamped.

    Images are mirrored at the bottom and at the right up to a multiple of the window, as in the published code
    (the mirror repeats the outermost pixel), and cropped again. No bicubic copy of the input is added to the
    output, so the features carry the colors too.

    Args:
        dim: Channels of every feature map.
        depths: Attentive layers of each layer; one layer is one group (ASSG).
        heads: Attention heads; divides `dim`.
        d_state: Hidden states of each channel in the scan.
        inner_rank: Rank of the table of prompts.
        num_tokens: Number of prompts.
        mlp_ratio: Channels inside the scan and the feed-forward parts, as a multiple of `dim`.
        light: The published light network: gated feed-forward parts, upsampling in one step.
        window: Side of a window in LR pixels.
        scale: 2, 3 or 4.

    Attributes:
        name: What `create` and `load` call this network.
        layers: The layers that `features` counts.
        feature_channels: Channels of every feature map.
        arguments: The constructor's arguments without the scale, as stored in `config.json`.
    """

    name = "mambairv2"
    mean: Tensor
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
        if scale not in (2, 3, 4):
            raise NetworkError(f"MambaIRv2 exists for the scales 2, 3 and 4, not for {scale}.")
        if heads < 1 or dim % heads:
            raise NetworkError(f"{heads} attention heads cannot share {dim} channels: {dim} is no multiple of {heads}.")
        super().__init__()
        self.scale = scale
        self.window = window
        self.feature_channels = dim
        prompts = {"d_state": d_state, "inner_rank": inner_rank, "num_tokens": num_tokens}
        self.arguments = {"dim": dim, "depths": list(depths), "heads": heads, **prompts}
        self.arguments |= {"mlp_ratio": mlp_ratio, "light": light, "window": window}

        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("relative_position_index_SA", relative_position_index(window))
        # RandomState, because NumPy promises that its numbers will never change; torch promises nothing.
        noise = np.random.RandomState(0).gumbel(size=(window, window, num_tokens))
        self.register_buffer("noise", torch.tensor(noise, dtype=torch.float32), persistent=False)
        self.conv_first = nn.Conv2d(3, dim, 3, padding=1)
        self.patch_embed = nn.Sequential(OrderedDict(norm=nn.LayerNorm(dim)))
        inside = {"heads": heads, "hidden": dim * mlp_ratio, "light": light, **prompts}
        self.layers = nn.ModuleList(AttentiveGroup(depth, dim, window, **inside) for depth in depths)
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = nn.Conv2d(dim, dim, 3, padding=1)
        parts = make_upsampler(dim, scale, direct=light)
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
            layer: 1 to the number of layers, the output of that group; "first", the first; "last", the last;
                "norm", the last through the final LayerNorm; or "body", what enters the upsampler: "norm"
                through `conv_after_body`, plus the output of `conv_first`.

        Returns:
            Float `[B, feature_channels, h, w]`.

        Raises:
            NetworkError: There is no such layer.
        """
        return self._padded_features(lr, layer)[:, :, : lr.shape[2], : lr.shape[3]]

    def _padded_features(self, lr: Tensor, layer: int | str) -> Tensor:
        """`features`, with the rows and columns that fill the last windows."""
        count = layer_count(self.name, layer, len(self.layers), ("norm", "body"))
        first = self.conv_first(mirrored(lr, self.window) - self.mean)
        x = self.patch_embed(first.permute(0, 2, 3, 1))
        for group in self.layers[:count]:
            x = group(x, self.relative_position_index_SA, self.noise)
        if layer in ("norm", "body"):
            x = self.norm(x)
        x = x.permute(0, 3, 1, 2)
        return self.conv_after_body(x) + first if layer == "body" else x


def relative_position_index(window: int) -> Tensor:
    """For each two pixels of a window the row of the table with their bias, int64 `[window**2, window**2]`."""
    pixels = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    offset = pixels[:, None] - pixels + window - 1  # down and right, both 0 to 2 * window - 2
    return offset[..., 0] * (2 * window - 1) + offset[..., 1]


def mirrored(x: Tensor, multiple: int) -> Tensor:
    """`[B, c, h, w]`, continued at the bottom and right by its mirror image to sides that are multiples."""
    for axis in (2, 3):
        side = x.shape[axis]
        index = torch.arange(math.ceil(side / multiple) * multiple, device=x.device) % (2 * side)
        x = x.index_select(axis, torch.minimum(index, 2 * side - 1 - index))
    return x

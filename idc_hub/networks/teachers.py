"""Teachers make the HR side: uint8 LR patches in, uint8 HR patches out.

`load_teacher` turns a name, a folder or a Hub id into a `Teacher`; a new kind of teacher is one more branch
there and one function from patches to patches.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from idc_hub.errors import NetworkError
from idc_hub.images.resize import imresize
from idc_hub.networks.registry import load, locate, read_config, weights_sha256

MARGIN = 8
"""LR pixels mirrored around a patch before a network sees it, and cut off again.

Networks pad with zeros, which no photograph has around it: without the margin HR patches get a frame, 17 grey
levels deep on a flat colour (edsr-small, x4). The mirror repeats the outermost pixel, as MATLAB's `imresize`
does. On 60 patches of photographs the outer 8 HR pixels are then as good as without a margin (24.72 against
24.73 dB); torch's own `reflect`, whose mirror lies on the outermost pixel, makes them 0.6 dB worse.
"""


@dataclass(frozen=True)
class Teacher:
    """What makes HR from LR: call it with uint8 `[B, 3, h, w]`, get uint8 `[B, 3, scale*h, scale*w]`.

    Attributes:
        name: What the HR version is called unless the recipe says otherwise.
        kind: "bicubic" or "network".
        scale: How much larger HR is.
        weights_sha256: Digest of the weights' file; None for bicubic.
        licence: Licence of the weights as their `config.json` states it; None where it says nothing.
        upscale: The function behind the call.
    """

    name: str
    kind: str
    scale: int
    weights_sha256: str | None
    licence: str | None
    upscale: Callable[[Tensor], Tensor]

    def __call__(self, lr: Tensor) -> Tensor:
        """HR patches, on the CPU.

        Raises:
            NetworkError: `lr` is not uint8 `[B, 3, h, w]`.
        """
        if lr.dtype != torch.uint8 or lr.ndim != 4 or lr.shape[1] != 3:
            raise NetworkError(
                f"A teacher takes uint8 patches [B, 3, h, w], not {lr.dtype} {list(lr.shape)}.",
                hint="Round the patches to uint8 first: HR must belong to what a consumer reads.",
            )
        return self.upscale(lr)

    def describe(self) -> dict[str, Any]:
        """The facts for `idc.json`."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "upscale"}


def load_teacher(spec: str | Path, *, scale: int, device: str | torch.device = "cpu") -> Teacher:
    """The teacher that `spec` names.

    Args:
        spec: "bicubic", or anything that `idc_hub.networks.load` takes: a bundled name, a folder, a Hub id.
        scale: The scale of the LR patches' recipe.
        device: Where a network runs.

    Raises:
        NetworkError: There is no such teacher, or it is made for another scale.
        HubError: The Hub did not answer.
    """
    if spec == "bicubic":
        return Teacher("bicubic", "bicubic", scale, None, None, partial(_upscale_bicubic, scale=scale))
    folder = locate(spec, scale=scale)
    network = load(folder, scale=scale).to(device)
    return Teacher(
        name=network.name,
        kind="network",
        scale=scale,
        weights_sha256=weights_sha256(folder),
        licence=read_config(folder).get("licence"),
        upscale=partial(upscale, network, margin=MARGIN),
    )


def upscale(network: nn.Module, lr: Tensor, *, margin: int = 0) -> Tensor:
    """uint8 in, uint8 out through a network, in float32.

    Args:
        network: Maps float `[B, 3, h, w]` in [0, 1] to `[B, 3, scale*h, scale*w]`.
        lr: uint8 `[B, 3, h, w]`.
        margin: LR pixels to mirror on each side and cut off again. 0 is what the literature evaluates with.

    Returns:
        uint8 `[B, 3, scale*h, scale*w]` on the CPU: clamped, halves rounded up.
    """
    device = next(network.parameters()).device
    x = lr.to(device).float() / 255
    margin = min(margin, *lr.shape[2:])  # a mirror shows no more pixels than there are
    for axis in (2, 3):
        before = x.narrow(axis, 0, margin).flip(axis)
        after = x.narrow(axis, x.shape[axis] - margin, margin).flip(axis)
        x = torch.cat([before, x, after], axis)
    # cuDNN would otherwise compute float32 convolutions with TF32's 10 bits.
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        hr = network(x)
    edge = margin * (hr.shape[2] // x.shape[2])
    hr = hr[:, :, edge : hr.shape[2] - edge, edge : hr.shape[3] - edge]
    return (hr.clamp(0, 1) * 255 + 0.5).floor().byte().cpu()


def _upscale_bicubic(lr: Tensor, *, scale: int) -> Tensor:
    images = [imresize(image, scale) for image in lr.permute(0, 2, 3, 1).cpu().numpy()]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()

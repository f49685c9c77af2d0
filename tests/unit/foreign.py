"""What the tests of foreign teachers share: patches, a network that is known exactly, what a teacher does around it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Repeat(nn.Module):
    """Repeats every pixel and multiplies it by a weight."""

    def __init__(self, scale: int, weight: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, lr: Tensor) -> Tensor:
        return lr.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3) * self.weight


def noise(count: int = 3, height: int = 8, width: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def mirrored(lr: Tensor, below: int = 8, right: int = 8) -> Tensor:
    """What a network is shown: mirrors around the patches, in [0, 1]."""
    padded = np.pad(lr.numpy(), ((0, 0), (0, 0), (8, below), (8, right)), mode="symmetric")
    return torch.from_numpy(padded).float() / 255


def as_levels(hr: Tensor, height: int, width: int) -> Tensor:
    """What a teacher for x2 rounds, of a network's answer to `mirrored` patches: HR of height x width in [0, 255]."""
    return hr[:, :, 16 : 16 + height, 16 : 16 + width].clamp(0, 1) * 255


class Explosive:
    """Writes a file as soon as it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "executed")

"""IMDN (Hui et al., ACM Multimedia 2019) in the form of the NTIRE 2022 baseline, x4: a published network as a teacher.

    IMDN_WEIGHTS=imdn_x4.safetensors PYTHONPATH=benchmarks idc regenerate RUN --teacher imdn:build --name imdn

32.25 dB on Set5 (Y), and about ten times as fast on a CPU as MambaIRv2-light, which is why `ladder.yaml` takes it.
Its weights do not come with idc-hub; without them, name another teacher.
"""

import os

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


class Distillation(nn.Module):
    """Four convolutions; each but the last keeps 16 channels and hands the other 48 on."""

    def __init__(self) -> None:
        super().__init__()
        for number, channels in ((1, 64), (2, 48), (3, 48)):
            steps = nn.Sequential(nn.Conv2d(channels, 64, 3, padding=1), nn.LeakyReLU(0.05))
            self.add_module(f"conv{number}", steps)
        self.conv4 = nn.Conv2d(48, 16, 3, padding=1)
        self.conv1x1 = nn.Conv2d(64, 64, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept, rest = [], x
        for step in (self.conv1, self.conv2, self.conv3):
            part, rest = step(rest).split((16, 48), 1)
            kept.append(part)
        kept.append(self.conv4(rest))
        return x + self.conv1x1(torch.cat(kept, 1))


class Skip(nn.Module):
    """Adds its input to what the modules make of it."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.sub = nn.Sequential(*modules)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.sub(x)


class IMDN(nn.Module):
    """Eight blocks of 64 channels; RGB float `[B, 3, h, w]` in [0, 1] to `[B, 3, 4h, 4w]`."""

    def __init__(self) -> None:
        super().__init__()

        def convolution(channels: int, filters: int) -> nn.Module:
            return nn.Conv2d(channels, filters, 3, padding=1)

        blocks = [Distillation() for _ in range(8)]
        self.model = nn.Sequential(
            convolution(3, 64), Skip(*blocks, convolution(64, 64)), convolution(64, 48), nn.PixelShuffle(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def build(*, scale: int) -> nn.Module:
    """The network with the weights of `$IMDN_WEIGHTS`, a .safetensors file; there is only x4."""
    if scale != 4:
        raise ValueError("IMDN is here for x4 only")
    network = IMDN()
    network.load_state_dict(load_file(os.environ["IMDN_WEIGHTS"]))
    return network

"""What Adam works on instead of pixels (`optimizer.parametrization`): the spectrum of the patches, or its phases.

A patch is `mean + color @ irfft2(spectrum)` in three decorrelated colors, as in feature visualization:

- `fourier` learns the spectrum, divided by 1/f, the spectrum of natural images: a step of Adam changes coarse
  structures more than fine ones, where on pixels it would add as much noise as anything else. The map is linear and
  invertible, so every start can be written in it, and patches are clamped to [0, 1] after each step as pixels are.
- `maco` (Fel et al., arXiv 2306.06805) fixes the magnitudes to those of the photograph and learns the phases alone:
  the patches cannot have an unnatural spectrum. Pixels beyond [0, 1] are clipped, and have no gradient there.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

_LEAST_VARIANCE = 1e-6
"""Of a color component, in pixel values of [0, 1]: the colors of a gray photograph can be decorrelated, too."""

_LEAST_MAGNITUDE = 1e-6
_LARGEST_COSINE = 0.99


@dataclass(frozen=True)
class Spectrum:
    """Colors and spectrum of a photograph, which make square patches from parameters.

    `fourier` has parameters `[n, 3, h, h // 2 + 1, 2]`, real and imaginary parts; `maco` has phases
    `[n, 3, h, h // 2 + 1]` in radians.

    Attributes:
        mean: float32 `[3, 1, 1]`, the mean color.
        color: float32 `[3, 3]`; the columns are the principal components of the colors, with their deviations
            relative to the root mean square of all three.
        scale: float32, what the parameters are multiplied by: `[h, h // 2 + 1]` for `fourier`, with a mean square of
            1 over the whole spectrum, and the magnitudes `[3, h, h // 2 + 1]` for `maco`.
    """

    mean: Tensor
    color: Tensor
    scale: Tensor

    @classmethod
    def of(cls, lr: Tensor, parametrization: str) -> Spectrum | None:
        """The spectrum of a photograph's real patches, uint8 `[N, 3, h, h]`; None for `pixels`."""
        if parametrization == "pixels":
            return None
        pixels = lr.cpu().double() / 255
        mean = pixels.mean((0, 2, 3)).view(3, 1, 1)
        values, vectors = torch.linalg.eigh(torch.cov(pixels.transpose(0, 1).flatten(1)))
        # The sign of an eigenvector is arbitrary.
        vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
        deviations = values.clamp(min=_LEAST_VARIANCE).sqrt()
        color = vectors * deviations / deviations.square().mean().sqrt()
        if parametrization == "fourier":
            scale = _one_over_f(lr.shape[-1])
        else:
            scale = torch.fft.rfft2(_decorrelated(pixels - mean, color), norm="ortho").abs().square().mean(0).sqrt()
        return cls(*(tensor.float().contiguous().to(lr.device) for tensor in (mean, color, scale)))

    @property
    def fixed(self) -> bool:
        """Whether the magnitudes are fixed (`maco`)."""
        return self.scale.ndim == 3

    def to_patches(self, parameters: Tensor) -> Tensor:
        """Patches `[n, 3, h, h]` from parameters; differentiable. In [0, 1], for `fourier` once `clamp` was called."""
        if self.fixed:
            spectrum = torch.complex(self.scale * parameters.cos(), self.scale * parameters.sin())
            return self._from_spectrum(spectrum).clamp(0, 1)
        return self._from_spectrum(torch.view_as_complex(parameters) * self.scale)

    def to_parameters(self, patches: Tensor) -> Tensor:
        """The parameters of patches `[n, 3, h, h]`; for `maco`, which forgets their magnitudes, those of their phases.

        The spectrum of an image is real at four frequencies, one of which is its mean color. There the phase scales the
        magnitude by its cosine, so that the patch keeps what it has, up to the photograph's magnitude.
        """
        spectrum = torch.fft.rfft2(_decorrelated(patches - self.mean, self.color), norm="ortho")
        if not self.fixed:
            return torch.view_as_real(spectrum / self.scale).contiguous()
        cosines = spectrum.real / self.scale.clamp(min=_LEAST_MAGNITUDE)
        phases = spectrum.angle()
        # At a cosine of 1 the slope is 0, and Adam would never leave it.
        kept = cosines.clamp(-_LARGEST_COSINE, _LARGEST_COSINE).acos()
        ends = {0, patches.shape[-1] // 2} if patches.shape[-1] % 2 == 0 else {0}
        for row, column in product(ends, ends):
            phases[..., row, column] = kept[..., row, column]
        return phases

    def clamp(self, parameters: Tensor) -> None:
        """Clamp the patches to [0, 1], in place; those of `maco` are always clipped."""
        if not self.fixed:
            parameters.copy_(self.to_parameters(self.to_patches(parameters).clamp(0, 1)))

    def shaped(self, noise: Tensor) -> Tensor:
        """Patches with this spectrum and these colors from white noise `[n, 3, h, h]`.

        Those of `fourier` have the deviation of the noise, those of `maco` that of the photograph.
        """
        spectrum = torch.fft.rfft2(noise.to(self.scale.device), norm="ortho")
        return self._from_spectrum((spectrum.sgn() if self.fixed else spectrum) * self.scale)

    def _from_spectrum(self, spectrum: Tensor) -> Tensor:
        side = spectrum.shape[-2]
        channels = torch.fft.irfft2(spectrum, s=(side, side), norm="ortho")
        return self.mean + torch.einsum("rc,nchw->nrhw", self.color, channels)


def _decorrelated(centered: Tensor, color: Tensor) -> Tensor:
    """Centered patches in the components of `color`, whose columns are orthogonal."""
    return torch.einsum("rc,nrhw->nchw", color / color.square().sum(0), centered)


def _one_over_f(side: int) -> Tensor:
    """1/f for the half spectrum of `rfft2`, as much at 0 as at the lowest frequency; mean square 1 over the whole."""
    rows, half = torch.fft.fftfreq(side, dtype=torch.float64), torch.fft.rfftfreq(side, dtype=torch.float64)

    def falling(columns: Tensor) -> Tensor:
        return 1 / torch.hypot(rows[:, None], columns).clamp(min=1 / side)

    return falling(half) / falling(rows).square().mean().sqrt()

"""Patches from spectra, against NumPy's full Fourier transform and what is known of natural images."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from idc_hub.condensation.condense import condense_instance, initial_state
from idc_hub.condensation.parametrization import Spectrum
from idc_hub.condensation.real_side import RealSide
from idc_hub.condensation.state import State
from tests.unit.test_condense import SIZE, SmallNetwork, photograph, recipe

KINDS = ["fourier", "maco"]


def spectrum(kind: str, lr: Tensor | None = None) -> Spectrum:
    found = Spectrum.of(photograph() if lr is None else lr, kind)
    assert found is not None
    return found


def start(kind: str, initial: str = "noise", **changes: Any) -> State:
    spec = recipe(optimizer__parametrization=kind, optimizer__initial=initial, **changes)
    real = RealSide(photograph(), SmallNetwork(), spec, "photo")
    return initial_state(real, real.grid)


def decorrelated(patches: Tensor, of: Spectrum) -> np.ndarray:
    centered = (patches.double() - of.mean).numpy()
    return np.einsum("cr,nrhw->nchw", np.linalg.inv(of.color.double().numpy()), centered)


def test_pixels_have_no_spectrum() -> None:
    assert Spectrum.of(photograph(), "pixels") is None
    state = State.start(torch.rand(1, 3, 4, 4), 4)
    assert state.patches is state.parameters


def test_colors_are_those_of_the_photograph_and_decorrelated() -> None:
    found = spectrum("fourier")
    pixels = photograph().transpose(0, 1).flatten(1).double().numpy() / 255
    assert np.allclose(found.mean.flatten(), pixels.mean(1), atol=1e-6)
    covariance = np.cov(pixels)
    color = found.color.double().numpy()
    assert np.allclose(color @ color.T * np.trace(covariance) / 3, covariance, atol=1e-6)
    products = color.T @ color
    assert np.allclose(products, np.diag(np.diag(products)), atol=1e-6)


@pytest.mark.parametrize("side", [16, 15])
def test_patches_are_the_inverse_transform_of_their_spectrum(side: int) -> None:
    """The whole spectrum by hand: the missing half mirrored and conjugated, 1/f from the frequencies' lengths."""
    found = spectrum("fourier", photograph()[..., :side, :side])
    patches = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    parameters = found.to_parameters(patches)
    frequencies = np.fft.fftfreq(side)
    scale = 1 / np.maximum(np.hypot(frequencies[:, None], frequencies), 1 / side)
    scale /= np.sqrt(np.square(scale).mean())
    full = np.fft.fft2(decorrelated(patches, found), norm="ortho") / scale
    half = torch.view_as_complex(parameters).numpy()
    assert np.allclose(half, full[..., : side // 2 + 1], atol=1e-4)
    assert torch.allclose(found.to_patches(parameters), patches, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_slopes_of_patches_are_right(kind: str) -> None:
    single = spectrum(kind, photograph()[..., :6, :6])
    found = Spectrum(single.mean.double(), single.color.double(), single.scale.double())
    patches = 0.5 + 0.1 * torch.randn(1, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    parameters = found.to_parameters(patches).requires_grad_()
    # For `maco` only where nothing is clipped, beyond which there is no slope.
    inside = Spectrum(torch.full_like(found.mean, 0.5), found.color, found.scale * (0.1 if found.fixed else 1))
    assert torch.autograd.gradcheck(inside.to_patches, parameters)


def test_initial_noise_of_fourier_falls_as_one_over_f_in_the_colors_of_the_photograph() -> None:
    lr = torch.nn.functional.interpolate(photograph().float(), size=64).byte()
    found = spectrum("fourier", lr)
    noise = 0.25 * torch.randn(200, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    patches = found.shaped(noise)
    power = np.square(np.abs(np.fft.fft2(decorrelated(patches, found), norm="ortho"))).mean((0, 1))
    length = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64))
    slope, _ = np.polyfit(np.log(length[length > 0]), np.log(power[length > 0]), 1)
    assert slope == pytest.approx(-2, abs=0.02)  # of the power; a random image has 0
    colors = torch.corrcoef(patches.transpose(0, 1).flatten(1))
    assert torch.allclose(colors, torch.corrcoef(lr.transpose(0, 1).flatten(1).float()), atol=0.1)
    assert float(patches.var((0, 2, 3)).mean().sqrt()) == pytest.approx(0.25, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("initial", ["noise", "real"])
def test_the_first_state_has_the_initial_patches(kind: str, initial: str) -> None:
    state = start(kind, initial)
    again = State.from_tensors(state.to_tensors())
    assert torch.equal(again.patches, state.patches)
    assert float(state.patches.min()) >= -1e-5
    assert float(state.patches.max()) <= 1 + 1e-5
    if initial == "real" and kind == "fourier":
        nearest = torch.cdist(state.patches.flatten(1), photograph().flatten(1).float() / 255).min(1).values
        assert float(nearest.max()) < 1e-4
    if initial == "noise":
        assert float(state.patches.std()) > 0.1


def test_maco_keeps_the_magnitudes_of_the_photograph_whatever_adam_does() -> None:
    lr = photograph() // 8 + 100  # so little contrast that nothing is clipped
    spec = recipe(optimizer__parametrization="maco", optimizer__learning_rate=0.1)
    saved: list[State] = []
    condense_instance(lr, 2, SmallNetwork(), spec, "photo", checkpoint=saved.append)
    real = RealSide(lr, SmallNetwork(), spec, "photo")
    first = initial_state(real, replace(real.grid, patches=2))
    found = saved[-1].spectrum
    assert found is not None
    expected = np.sqrt(np.square(np.abs(np.fft.fft2(decorrelated(lr / 255, found), norm="ortho"))).mean(0))
    magnitudes = np.abs(np.fft.fft2(decorrelated(saved[-1].patches.detach(), found), norm="ortho"))
    ends = np.zeros((SIZE, SIZE), dtype=bool)
    ends[:: SIZE // 2, :: SIZE // 2] = True  # where the spectrum of an image is real
    assert np.allclose(magnitudes[..., ~ends], expected[..., ~ends], rtol=0.01, atol=1e-4)
    assert (magnitudes[..., ends] <= expected[..., ends] * 1.001 + 1e-4).all()
    phases = [found.to_parameters(state.patches.detach()) for state in (saved[-1], first)]
    assert float((phases[0] - phases[1]).abs().median()) > 0.1


def test_maco_keeps_the_mean_color_of_a_patch_and_can_change_it() -> None:
    found = spectrum("maco")
    patches = photograph()[:4].float() / 255
    parameters = found.to_parameters(patches).requires_grad_()
    spectra = [torch.fft.rfft2(torch.from_numpy(decorrelated(some.detach(), found))) for some in (patches, patches)]
    unclipped = found._from_spectrum(torch.polar(found.scale.expand_as(parameters), parameters))
    made = torch.fft.rfft2(torch.from_numpy(decorrelated(unclipped.detach(), found)))
    limit = 0.99 * found.scale[:, 0, 0] * SIZE
    expected = spectra[0][..., 0, 0].real.clamp(-limit, limit)
    assert torch.allclose(made[..., 0, 0].real, expected, atol=1e-3)
    (slope,) = torch.autograd.grad(unclipped.mean(), parameters)
    assert float(slope[:, 0, 0, 0].abs().min()) > 0


def test_the_first_step_of_adam_changes_pixels_of_fourier_by_about_the_learning_rate() -> None:
    found = spectrum("fourier")
    signs = torch.randn(200, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    parameters = found.to_parameters(torch.full((200, 3, SIZE, SIZE), 0.5))
    step = torch.view_as_real(torch.fft.rfft2(signs)).sign()
    moved = found.to_patches(parameters + 0.01 * step) - found.to_patches(parameters)
    assert 0.01 < float(moved.square().mean().sqrt()) < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_finished_patches_are_in_range_and_better_than_random_ones(kind: str) -> None:
    spec = recipe(optimizer={"parametrization": kind, "initial": "noise", "steps": 150, "learning_rate": 0.03})
    saved: list[Tensor] = []
    found = condense_instance(
        photograph(), 2, SmallNetwork(), spec, "photo", checkpoint=lambda state: saved.append(state.patches.detach())
    )
    assert all(float(patches.min()) > -1e-5 and float(patches.max()) < 1 + 1e-5 for patches in saved)
    assert found.held_out < found.held_out_random


@pytest.mark.parametrize("kind", KINDS)
def test_a_gray_photograph_stays_gray(kind: str) -> None:
    gray = photograph()[:, :1].expand(-1, 3, -1, -1).contiguous()
    spec = recipe(optimizer__parametrization=kind)
    found = condense_instance(gray, 2, SmallNetwork(), spec, "photo").patches.int()
    assert int((found - found[:, :1]).abs().max()) <= 2
    assert float(found.float().std()) > 10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0, 90, 255])
def test_a_photograph_of_one_color_has_a_spectrum(kind: str, value: int) -> None:
    one = torch.full((4, 3, 8, 8), value, dtype=torch.uint8)
    found = spectrum(kind, one)
    patches = found.to_patches(found.to_parameters(one / 255))
    assert torch.allclose(patches, one / 255, atol=1e-4)

"""RLFF and its alternatives against their definitions: transforms of neighborhoods, one after the other."""

import math

import numpy as np
import pytest
import torch
from scipy.fft import dct

from idc_hub.condensation.transforms import (
    dct_filters,
    draw_filters,
    draw_rlff_indices,
    haar_filters,
    local_features,
    rlff_filters,
    unfold_pixels,
)
from idc_hub.recipe import Transform


def test_rows_are_the_dft_of_the_identity_real_part_then_minus_imaginary() -> None:
    channels, k = 3, 5
    size = channels * k * k
    spectrum = np.fft.fft(np.eye(size), axis=0)
    expected = np.concatenate([spectrum.real, -spectrum.imag])
    rows = rlff_filters(channels, k, torch.arange(2 * size))
    assert rows.shape == (2 * size, channels, k, k)
    np.testing.assert_allclose(rows.reshape(2 * size, size).numpy(), expected, atol=2e-6)


def test_rows_stay_exact_where_the_angle_is_large() -> None:
    channels, k = 60, 7
    size = channels * k * k
    row = 2939
    rows = rlff_filters(channels, k, torch.tensor([row, size + row])).reshape(2, -1)
    for j in (1, 1471, 2939):
        angle = 2 * math.pi * ((row * j) % size) / size
        assert rows[0, j].item() == pytest.approx(math.cos(angle), abs=1e-7)
        assert rows[1, j].item() == pytest.approx(math.sin(angle), abs=1e-7)


def test_rows_2940_and_4410_are_zero_and_5876_rows_have_a_twin() -> None:
    rows = rlff_filters(60, 7, torch.arange(5880)).reshape(5880, -1).double()
    zero = torch.nonzero(rows.abs().amax(dim=1) < 1e-6).flatten().tolist()
    assert zero == [2940, 4410]
    mirrored = (2940 - torch.arange(2940)) % 2940
    assert torch.allclose(rows[:2940], rows[mirrored], atol=1e-6)
    assert torch.allclose(rows[2940:], -rows[2940 + mirrored], atol=1e-6)
    # Cosine rows 0 and 1470 are their own mirror images, the two zero sine rows too: 5880 - 4 rows have a twin.
    own = int((mirrored == torch.arange(2940)).sum()) * 2
    assert 5880 - own == 5876


def test_an_index_outside_the_filter_bank_is_refused() -> None:
    with pytest.raises(IndexError, match=r"\[0, 24\)"):
        rlff_filters(3, 2, torch.tensor([24]))


@pytest.mark.parametrize(("padding", "numpy_mode"), [("reflect", "reflect"), ("zero", "constant"), ("valid", None)])
def test_rlff_is_the_dft_of_every_flattened_neighborhood(padding: str, numpy_mode: str | None) -> None:
    rng = np.random.default_rng(0)
    channels, k, side = 4, 3, 6
    maps = rng.normal(size=(2, channels, side, side))
    edge = k // 2
    padded = np.pad(maps, ((0, 0), (0, 0), (edge, edge), (edge, edge)), mode=numpy_mode) if numpy_mode else maps
    indices = [0, 5, 17, 36 + 5, 36 + 17, 71]
    found = local_features(
        torch.from_numpy(maps), rlff_filters(channels, k, torch.tensor(indices)).double(), padding
    ).numpy()
    height = padded.shape[2] - k + 1
    assert found.shape == (2, len(indices), height, height)
    for b in range(2):
        for y in range(height):
            for x in range(height):
                spectrum = np.fft.fft(padded[b, :, y : y + k, x : x + k].ravel())
                both = np.concatenate([spectrum.real, -spectrum.imag])
                np.testing.assert_allclose(found[b, :, y, x], both[indices], atol=1e-5)


def test_unique_rows_are_an_orthogonal_basis_without_zeros() -> None:
    for channels, k in ((4, 3), (3, 2), (5, 3)):
        size = channels * k * k
        rng = torch.Generator().manual_seed(0)
        indices = draw_rlff_indices(channels, k, size, rows="unique", generator=rng)
        filters = rlff_filters(channels, k, indices).reshape(size, size).double()
        gram = filters @ filters.T
        assert torch.linalg.matrix_rank(filters) == size
        assert float((gram - torch.diag(gram.diag())).abs().max()) < 1e-4


def test_draws_follow_the_generator_and_the_switches() -> None:
    def draw(count: int, seed: int, rows: str = "literal") -> torch.Tensor:
        rng = torch.Generator().manual_seed(seed)
        return draw_rlff_indices(2, 3, count, rows=rows, generator=rng)

    assert torch.equal(draw(20, 1), draw(20, 1))
    assert not torch.equal(draw(20, 1), draw(20, 2))
    assert len(draw(36, 0).unique()) == 36
    with pytest.raises(ValueError, match="only 18"):
        draw(19, 0, rows="unique")


def test_unfold_pixels_keeps_the_order_patch_y_x() -> None:
    maps = torch.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2)
    samples = unfold_pixels(maps)
    assert samples.shape == (8, 3)
    assert samples[5].tolist() == maps[1, :, 0, 1].tolist()


def maps_of(channels: int, side: int = 6) -> torch.Tensor:
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("padding", ["reflect", "zero", "valid"])
def test_identity_is_the_feature_map(padding: str) -> None:
    maps = maps_of(5)
    rows = draw_filters(Transform(kind="identity"), 5, torch.Generator())
    assert torch.equal(local_features(maps, rows.double(), padding), maps)


@pytest.mark.parametrize("padding", ["reflect", "zero", "valid"])
def test_dct_is_that_of_every_flattened_neighborhood(padding: str) -> None:
    channels, k = 4, 3
    maps, size = maps_of(channels), channels * k * k
    indices = torch.tensor([0, 1, 17, size - 1])
    found = local_features(maps, dct_filters(channels, k, indices).double(), padding).numpy()
    width = 0 if padding == "valid" else k // 2
    edges = ((0, 0), (0, 0), (width, width), (width, width))
    padded = np.pad(maps.numpy(), edges, mode="reflect" if padding == "reflect" else "constant")
    for b, y, x in np.ndindex(2, *found.shape[2:]):
        spectrum = dct(padded[b, :, y : y + k, x : x + k].ravel(), norm="ortho")
        np.testing.assert_allclose(found[b, :, y, x], spectrum[indices], atol=1e-6)


def test_dct_filters_stay_exact_where_the_angle_is_large() -> None:
    channels, k = 60, 7
    rows = dct_filters(channels, k, torch.tensor([2939])).flatten()
    exact = dct(np.eye(channels * k * k)[2939], type=3, norm="ortho")
    np.testing.assert_allclose(rows.numpy(), exact, atol=2e-9)


def test_haar_is_sums_and_differences_of_four_neighbors() -> None:
    maps = maps_of(2)
    found = local_features(maps, haar_filters(2).double(), "zero")
    assert found.shape == (2, 8, 6, 6)
    beyond = torch.nn.functional.pad(maps, (0, 1, 0, 1))
    here, right, below, across = beyond[..., :6, :6], beyond[..., :6, 1:], beyond[..., 1:, :6], beyond[..., 1:, 1:]
    expected = [
        (here + right + below + across) / 2,
        (here - right + below - across) / 2,
        (here + right - below - across) / 2,
        (here - right - below + across) / 2,
    ]
    for channel in range(2):
        for band in range(4):
            assert torch.allclose(found[:, 4 * channel + band], expected[band][:, channel], atol=1e-6)


def test_dct_and_haar_keep_the_energy_of_what_they_see() -> None:
    maps = maps_of(4)
    windows = maps.unfold(2, 3, 1).unfold(3, 3, 1).square().sum((1, 4, 5))
    whole = local_features(maps, dct_filters(4, 3, torch.arange(36)).double(), "valid")
    assert torch.allclose(whole.square().sum(1), windows, rtol=1e-5)
    fours = maps[..., 1:, 1:].unfold(2, 2, 1).unfold(3, 2, 1).square().sum((1, 4, 5))
    haar = local_features(maps, haar_filters(4).double(), "valid")
    assert torch.allclose(haar.square().sum(1), fours, rtol=1e-5)


@pytest.mark.parametrize("kind", ["rlff", "identity", "dct", "dwt"])
def test_a_draw_has_the_size_that_the_recipe_says(kind: str) -> None:
    spec = Transform.model_validate({"kind": kind, "kernel_size": 5, "channels": 11})
    rows, again, other = (draw_filters(spec, 3, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert rows.shape == (spec.local_channels(3), 3, spec.neighborhood, spec.neighborhood)
    assert rows.dtype == torch.float32
    assert torch.equal(rows, again)
    assert torch.equal(rows, other) == (kind in ("identity", "dwt"))  # nothing is drawn there


def test_dct_draws_every_row_once() -> None:
    def draw(**keys: object) -> torch.Tensor:
        spec = Transform.model_validate({"kind": "dct", "kernel_size": 3, **keys})
        return draw_filters(spec, 2, torch.Generator().manual_seed(0)).flatten(1)

    assert torch.allclose(draw(channels=18) @ draw(channels=18).T, torch.eye(18), atol=1e-6)
    with pytest.raises(ValueError, match="asks for 19 filters, but there are only 18"):
        draw(channels=19)

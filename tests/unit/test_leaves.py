"""Dead leaves: deterministic, sharp at all scales, with the spectrum and the colors of photographs."""

import numpy as np
import pytest

from idc_hub.images import leaves
from idc_hub.images.leaves import dead_leaves


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return dead_leaves(24, 64, 5)


def test_each_image_depends_on_seed_and_number_alone(images: np.ndarray) -> None:
    assert images.shape == (24, 3, 64, 64)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(dead_leaves(2, 64, 5), images[:2])
    assert not np.array_equal(images[0], images[1])
    assert not np.array_equal(dead_leaves(1, 64, 6)[0], images[0])


def test_power_falls_with_about_the_square_of_the_frequency(images: np.ndarray) -> None:
    def slope(values: np.ndarray) -> float:
        window = np.outer(np.hanning(64), np.hanning(64))
        gray = values.mean(axis=1)
        power = (np.abs(np.fft.fft2((gray - gray.mean((1, 2), keepdims=True)) * window)) ** 2).mean(axis=0)
        frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64)))
        rings = [(frequency > f - 1 / 128) & (frequency <= f + 1 / 128) for f in np.arange(2, 17) / 64]
        means = [power[ring].mean() for ring in rings]
        return float(np.polyfit(np.log(np.arange(2, 17)), np.log(means), 1)[0])

    assert -2.5 < slope(images) < -1.5
    noise = np.random.default_rng(0).integers(0, 256, images.shape)
    assert abs(slope(noise)) < 0.3


def test_colors_spread_like_those_of_photographs(images: np.ndarray) -> None:
    red, green, blue = (images[:, channel] / 255 for channel in range(3))
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    cb, cr = (blue - luma) / 1.772, (red - luma) / 1.402
    assert 0.42 < luma.mean() < 0.54
    assert 0.18 < luma.std() < 0.27
    assert abs(cb.mean()) < 0.02
    assert abs(cr.mean()) < 0.02
    assert 1.5 * (cr + cb).std() < (cr - cb).std() < 2.5 * (cr + cb).std()


def test_a_disk_of_known_place_has_its_area_and_a_soft_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    """One white disk of radius 5 in front of a black one that covers everything."""
    monkeypatch.setattr(
        leaves, "_places", lambda size, rng: (np.array([5.0, 99]), np.array([8.0, 8]), np.array([7.0, 8]))
    )
    monkeypatch.setattr(leaves, "_colors", lambda rng: np.array([[255, 255, 255], [0, 0, 0]], np.uint8))
    (image,) = dead_leaves(1, 16, 0)
    assert image[0].sum() / 255 == pytest.approx(25 * np.pi, rel=0.01)
    assert np.average(np.arange(16) + 0.5, weights=image[0].sum(1)) == pytest.approx(8)  # down
    assert np.average(np.arange(16) + 0.5, weights=image[0].sum(0)) == pytest.approx(7)  # across
    assert set(np.unique(image)) - {0, 255}, "pixels on the edge are mixed"


def test_radii_of_visible_leaves_follow_the_power_law() -> None:
    """Against a direct simulation: radii of density r^-3, centers over a plane, kept where the box meets the image."""
    size, rng = 8, np.random.default_rng(1)
    radii = 1 / np.sqrt(1 - rng.random(400_000) * (1 - 1 / size**2))
    centers = rng.uniform(-size, 2 * size, (2, len(radii)))
    meets = ((centers > -radii) & (centers < size + radii)).all(axis=0)
    drawn = np.concatenate([leaves._places(size, rng)[0] for _ in range(300)])
    quantiles = [0.1, 0.25, 0.5, 0.75, 0.9, 0.99]
    np.testing.assert_allclose(np.quantile(drawn, quantiles), np.quantile(radii[meets], quantiles), rtol=0.04)

import numpy as np
import pytest

from idc_hub.images.patches import cut, hr_box, hr_patches, lr_patches, places, synthetic_counts, windows
from idc_hub.images.resize import imresize


def test_a_div2k_image_has_150_windows():
    """2040x1356 at x4, HR 256 / stride 128 (BasicSR's rule): 15 x 10, the last row and column flush with the edge."""
    places = windows(339, 510, 64, 32)
    assert len(places) == 150


def test_places_by_hand():
    assert windows(10, 13, 4, 3) == [(t, x) for t in (0, 3, 6) for x in (0, 3, 6, 9)]
    assert windows(11, 14, 4, 3) == [(t, x) for t in (0, 3, 6, 7) for x in (0, 3, 6, 9, 10)]
    assert windows(4, 5, 4, 9) == [(0, 0), (0, 1)]


@pytest.mark.parametrize(("height", "width"), [(63, 64), (64, 63), (1, 1), (0, 100)])
def test_an_image_smaller_than_a_window_has_none(height, width):
    assert windows(height, width, 64, 32) == []
    assert cut(np.zeros((height, width, 3), np.uint8), 64, 32).shape == (0, 3, 64, 64)


@pytest.mark.parametrize("stride", [1, 3, 5, 8])
def test_every_pixel_is_covered_and_no_window_sticks_out(stride):
    for height in range(8, 30):
        covered = np.zeros((height, 19), bool)
        places = windows(height, 19, 8, stride)
        for top, left in places:
            assert 0 <= top <= height - 8
            assert 0 <= left <= 19 - 8
            covered[top : top + 8, left : left + 8] = True
        assert covered.all()
        assert len(set(places)) == len(places)


def test_cut_takes_the_pixels_of_each_window():
    lr = np.arange(11 * 14 * 3).reshape(11, 14, 3).astype(np.uint8)
    patches = cut(lr, 4, 3)
    assert patches.dtype == np.uint8
    assert patches.shape == (20, 3, 4, 4)
    for patch, (top, left) in zip(patches, windows(11, 14, 4, 3), strict=True):
        for channel in range(3):
            assert np.array_equal(patch[channel], lr[top : top + 4, left : left + 4, channel])
    patches[:] = 0
    assert lr.any()  # a copy, not a view


def test_the_hr_box_is_the_lr_box_times_the_scale():
    assert hr_box((3, 10), 64, 4) == (12, 40, 268, 296)
    lr = np.arange(9 * 8).reshape(9, 8)
    hr = lr.repeat(3, 0).repeat(3, 1)
    for top, left in windows(9, 8, 4, 3):
        box = hr_box((top, left), 4, 3)
        patch = hr[box[0] : box[2], box[1] : box[3]]
        assert np.array_equal(patch[::3, ::3], lr[top : top + 4, left : left + 4])
        assert patch.shape == (12, 12)


def test_patches_of_a_smaller_photograph_are_those_of_the_resized_image():
    hr = np.random.default_rng(0).integers(0, 256, (40, 52, 3), np.uint8)
    grid = {"scale": 2, "size": 8, "stride": 5}
    zooms = (1, 0.75, 0.5, 0.25)
    where = places(40, 52, **grid, zooms=zooms)
    lr, own = lr_patches(hr, **grid, zooms=zooms), hr_patches(hr, **grid, zooms=zooms)
    # 40 x 52 becomes 30 x 39, cropped to 30 x 38; 20 x 26; and 10 x 13, where no HR patch of 16 x 16 fits.
    resized = {1: hr, 0.75: imresize(hr, 0.75)[:30, :38], 0.5: imresize(hr, 0.5)}
    expected = [
        (zoom, *place) for zoom in resized for place in windows(*(n // 2 for n in resized[zoom].shape[:2]), 8, 5)
    ]
    assert [(zoom, top, left) for top, left, zoom in where] == expected
    assert len(lr) == len(own) == len(where)
    for place, small, large in zip(where, lr, own, strict=True):
        photograph = resized[place.zoom]
        rows, columns = slice(place.top, place.top + 8), slice(place.left, place.left + 8)
        assert np.array_equal(small, imresize(photograph, 1 / 2)[rows, columns].transpose(2, 0, 1))
        rows, columns = slice(2 * place.top, 2 * place.top + 16), slice(2 * place.left, 2 * place.left + 16)
        assert np.array_equal(large, photograph[rows, columns].transpose(2, 0, 1))


def test_shares_sum_to_the_floor_of_the_total_and_differ_by_one_at_most() -> None:
    # DIV2K's total of windows at x4 is 120,765 (paper, section 4); a tenth of them are 12,076.
    windows = [150] * 700 + [135] * 116 + [105]
    assert sum(windows) == 120_765
    counts = synthetic_counts(windows, 0.1, 0)
    assert sum(counts) == 12_076
    assert set(counts[:700]) == {15}
    assert set(counts[700:816]) == {13, 14}
    assert sum(synthetic_counts(windows, 0.01, 0)) == 1_207


def test_a_ratio_is_the_decimal_that_was_written() -> None:
    assert synthetic_counts([100], 0.29, 0) == [29]
    assert synthetic_counts([3, 3], 0.1, 1) == [1, 1]

"""Tiles: the whole image's result where the overlap suffices, and never more pixels at once than promised."""

import pytest
import torch
from torch import Tensor

from idc_hub.errors import NetworkError
from idc_hub.networks.edsr import EDSR
from idc_hub.networks.swinir import SwinIR
from idc_hub.networks.tiling import tiled

REACH = 8  # LR pixels that `convolutional` looks to each side: 8 convolutions, the last one finer than LR


def convolutional(scale: int) -> EDSR:
    torch.manual_seed(0)
    return EDSR(channels=4, blocks=2, scale=scale).double()


def photograph(height: int, width: int) -> Tensor:
    return torch.rand(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("tile", [7, 16, 24, 64])
def test_an_overlap_as_wide_as_the_network_looks_changes_nothing(scale: int, tile: int) -> None:
    network = convolutional(scale)
    lr = photograph(50, 33)
    result = tiled(network, lr, tile=tile, overlap=REACH)
    assert not result.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(result, network(lr), rtol=0, atol=1e-12)


def test_with_less_overlap_only_the_pixels_near_a_seam_differ() -> None:
    network = convolutional(2)
    lr = photograph(40, 50)
    with torch.no_grad():
        difference = (tiled(network, lr, tile=20, overlap=2) - network(lr)).abs().amax((0, 1))
    near = torch.zeros(80, 100, dtype=torch.bool)
    for seam in (20, 40):  # in LR pixels; the first one lies in both directions
        near[:, 2 * (seam - (REACH - 2)) : 2 * (seam + REACH - 2)] = True
    near[2 * (20 - (REACH - 2)) : 2 * (20 + REACH - 2)] = True
    assert difference[~near].max() < 1e-12
    assert difference[near].max() > 1e-6


def test_no_piece_is_larger_than_the_tile_and_its_overlap() -> None:
    network = convolutional(2)
    seen = []

    def watched(lr: Tensor) -> Tensor:
        seen.append(tuple(lr.shape[2:]))
        return network(lr)

    tiled(watched, photograph(50, 49), tile=16, overlap=4)
    assert len(seen) == 4 * 4
    assert max(seen) == (24, 24)
    assert min(seen) == (6, 5)  # the last row and column: 2 and 1 pixels, and what they see of their neighbors


def test_tiles_of_whole_windows_have_the_windows_of_the_whole_image() -> None:
    torch.manual_seed(0)
    network = SwinIR(depths=[1], dim=6, heads=2, window=4, upsampler="pixelshuffledirect", scale=2).double()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "attn" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(2))  # attention that is far from uniform
    lr = photograph(21, 26)  # mirrored up to 24x28
    with torch.no_grad():
        whole = network(lr)
    torch.testing.assert_close(tiled(network, lr, tile=8, overlap=8), whole, rtol=0, atol=1e-12)
    assert (tiled(network, lr, tile=6, overlap=7) - whole).abs().max() > 1e-6


@pytest.mark.parametrize(("tile", "overlap"), [(0, 8), (-4, 8), (16, -1)])
def test_impossible_tiles_are_refused(tile: int, overlap: int) -> None:
    with pytest.raises(NetworkError, match=r"tiles with an overlap of .+ are impossible\. Try 64 and 16\."):
        tiled(convolutional(2), photograph(8, 8), tile=tile, overlap=overlap)

"""SwinIR: what it computes, the published checkpoints that it must read, and what it refuses."""

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from idc_hub.errors import NetworkError
from idc_hub.networks import windowed
from idc_hub.networks.swinir import SwinIR

LIGHT = {"depths": [6] * 4, "dim": 60, "heads": 6, "window": 8, "upsampler": "pixelshuffledirect"}
CLASSICAL = {"depths": [6] * 6, "dim": 180, "heads": 6, "window": 8, "upsampler": "pixelshuffle"}
DEPTHS, HEADS, WINDOW = (2, 3), 2, 4


def tiny(scale: int = 2, upsampler: str = "pixelshuffledirect") -> SwinIR:
    """Two layers of six channels; every parameter counts, so that none could be left out unseen."""
    network = SwinIR(depths=DEPTHS, dim=6, heads=HEADS, window=WINDOW, upsampler=upsampler, scale=scale).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            size = 1.0 if "bias_table" in name else 0.5 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.copy_(size * noise + ("norm" in name and name.endswith("weight")))
    return network.eval()


def images(height: int = 7, width: int = 10) -> Tensor:
    return torch.rand(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


# The network once more, pixel by pixel: no rolling and no mask. A pixel attends to those that lie in the same
# cell of a grid whose origin is moved by the shift.


def linear(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def conv(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return functional.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)


def norm(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    centered = x - x.mean(-1, keepdim=True)
    deviation = (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return centered / deviation * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def reference_attention(weights: dict[str, Tensor], name: str, x: Tensor, shift: int) -> Tensor:
    """Of one image `[h, w, c]`."""
    height, width, channels = x.shape
    size = channels // HEADS
    q, k, v = linear(weights, f"{name}.qkv", x).split(channels, -1)
    table = weights[f"{name}.relative_position_bias_table"]
    pixels = [(row, column) for row in range(height) for column in range(width)]
    rows = []
    for row, column in pixels:
        cell = ((row - shift) // WINDOW, (column - shift) // WINDOW)
        others = [(r, c) for r, c in pixels if ((r - shift) // WINDOW, (c - shift) // WINDOW) == cell]
        heads = []
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            logits = []
            for r, c in others:
                entry = (row - r + WINDOW - 1) * (2 * WINDOW - 1) + (column - c + WINDOW - 1)
                logits.append(q[row, column, part] @ k[r, c, part] / math.sqrt(size) + table[entry, head])
            chances = torch.stack(logits).softmax(0)
            heads.append(sum(chance * v[r, c, part] for chance, (r, c) in zip(chances, others, strict=True)))
        rows.append(torch.cat(heads))
    return linear(weights, f"{name}.proj", torch.stack(rows).view(height, width, channels))


def reference(network: SwinIR, image: Tensor) -> tuple[dict[Any, Tensor], Tensor]:
    """Every feature map by its layer, and the output, of one image `[3, h, w]`."""
    weights = {key: value.detach() for key, value in network.state_dict().items()}
    _, height, width = image.shape
    rows, columns = (np.pad(np.arange(size), (0, -size % WINDOW), mode="reflect") for size in (height, width))
    x = image[:, rows][:, :, columns] - torch.tensor([0.4488, 0.4371, 0.4040])[:, None, None]

    first = conv(weights, "conv_first", x)
    x = norm(weights, "patch_embed.norm", first.permute(1, 2, 0))
    maps: dict[Any, Tensor] = {}
    for layer, depth in enumerate(DEPTHS):
        skip = x
        for block in range(depth):
            name = f"layers.{layer}.residual_group.blocks.{block}"
            shift = WINDOW // 2 if block % 2 else 0
            x = x + reference_attention(weights, f"{name}.attn", norm(weights, f"{name}.norm1", x), shift)
            hidden = linear(weights, f"{name}.mlp.fc1", norm(weights, f"{name}.norm2", x))
            hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
            x = x + linear(weights, f"{name}.mlp.fc2", hidden)
        x = skip + conv(weights, f"layers.{layer}.conv", x.permute(2, 0, 1)).permute(1, 2, 0)
        maps[layer + 1] = x.permute(2, 0, 1)
    maps |= {"first": maps[1], "last": maps[len(DEPTHS)], "norm": norm(weights, "norm", x).permute(2, 0, 1)}
    x = maps["body"] = conv(weights, "conv_after_body", maps["norm"]) + first

    if "conv_last.weight" in weights:
        x = functional.leaky_relu(conv(weights, "conv_before_upsample.0", x), 0.01)
        for index, factor in {2: [(0, 2)], 3: [(0, 3)], 4: [(0, 2), (2, 2)]}[network.scale]:
            x = functional.pixel_shuffle(conv(weights, f"upsample.{index}", x), factor)
        x = conv(weights, "conv_last", x)
    else:
        x = functional.pixel_shuffle(conv(weights, "upsample.0", x), network.scale)
    hr = x + torch.tensor([0.4488, 0.4371, 0.4040])[:, None, None]
    maps = {layer: feature_map[:, :height, :width] for layer, feature_map in maps.items()}
    return maps, hr[:, : network.scale * height, : network.scale * width]


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("upsampler", ["pixelshuffle", "pixelshuffledirect"])
def test_swinir_computes_what_the_slow_reference_computes(scale: int, upsampler: str) -> None:
    network = tiny(scale, upsampler)
    lr = images()
    with torch.no_grad():
        hr = network(lr)
        expected = torch.stack([reference(network, image)[1] for image in lr])
    assert hr.shape == (2, 3, 7 * scale, 10 * scale)
    torch.testing.assert_close(hr, expected, rtol=0, atol=1e-7)  # the mean is a float32 constant


@pytest.mark.parametrize(
    "size",
    [(4, 4), (8, 12), (5, 7), (2, 8), (4, 1)],
    ids=["one window", "whole windows", "mirrored", "mirrored twice", "one column"],
)
def test_features_are_the_reference_s_feature_maps(size: tuple[int, int]) -> None:
    network = tiny()
    lr = images(*size)
    with torch.no_grad():
        references = [reference(network, image)[0] for image in lr]
    for layer in (1, 2, "first", "last", "norm", "body"):
        features = network.features(lr, layer)
        assert features.shape == (2, network.feature_channels, *size)
        expected = torch.stack([maps[layer] for maps in references])
        torch.testing.assert_close(features.detach(), expected, rtol=0, atol=1e-6)


def test_the_gradient_is_that_of_the_reference() -> None:
    network = tiny()
    lr = images(5, 6)[:1].requires_grad_()
    weight = torch.randn(1, 6, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (ours,) = torch.autograd.grad((network.features(lr, "last") * weight).sum(), lr)
    (theirs,) = torch.autograd.grad((reference(network, lr[0])[0]["last"] * weight[0]).sum(), lr)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("frozen", [False, True])
def test_training_computes_what_inference_computed_before_it(frozen: bool) -> None:
    network = tiny().float().requires_grad_(not frozen)
    lr = images(16, 12).float()
    with torch.inference_mode():
        evaluated = network(lr)
    trained = network.train()(lr.requires_grad_())
    trained.sum().backward()
    torch.testing.assert_close(trained.detach(), evaluated, rtol=0, atol=1e-4)
    assert lr.grad is not None
    assert all((parameter.grad is None) == frozen for parameter in network.parameters())


# The published checkpoints. The figures come from the authors' code at commit 6545850, built with the arguments of
# its test script. Table 3 of the paper counts 878K, 886K and 897K for the light networks: one convolution from 60 to
# 60 channels (32,460 parameters) less than the published code and files have (JingyunLiang/SwinIR, issue 45).

PUBLISHED = {
    ("light", 2): (910_152, "15f2e40544bdebd3bb0c95f007a9e239da0a2717ca2843a7d1ecbcf59fec7137"),
    ("light", 3): (918_267, "4cb094f5a624f6763d81e04eaeeb086fa509b2e6fb550e56f5433e1da86d97c7"),
    ("light", 4): (929_628, "e36b52ed0545061b1ac0bf3d7453866785a5217fbfeffd212c070e93132266f5"),
    ("classical", 2): (11_752_487, "e93350fbfde33c7ba77bc684efae84df74804306718bc2c8ee30b44516273dbe"),
    ("classical", 3): (11_937_127, "e3dfea30cece47296688b10f82eb074877bb056e25f12b11ccdbaf4e50914bcd"),
    ("classical", 4): (11_900_199, "7b8fee1759a36ef2dbd89c4f84088498464b3b9c4fee2827d095d0ffc170dca5"),
}
"""(size, scale): parameters, and the SHA-256 of the state dict's sorted lines "key:shape"."""


def published_state_dict(network: SwinIR, *, training_size: int) -> dict[str, Tensor]:
    """The network's own state dict with the constants that the authors' code stores in each block."""
    state = dict(network.state_dict())
    window = network.window
    for layer, depth in enumerate(network.arguments["depths"]):
        for block in range(depth):
            name = f"layers.{layer}.residual_group.blocks.{block}"
            state[f"{name}.attn.relative_position_index"] = torch.zeros(window**2, window**2, dtype=torch.int64)
            if block % 2:
                windows = (training_size // window) ** 2
                state[f"{name}.attn_mask"] = torch.zeros(windows, window**2, window**2)
    return state


@pytest.mark.parametrize(("size", "scale"), PUBLISHED)
def test_parameters_and_keys_are_those_of_the_published_code(size: str, scale: int) -> None:
    with torch.device("meta"):
        network = SwinIR(**(LIGHT if size == "light" else CLASSICAL), scale=scale)
        state = published_state_dict(network, training_size=64)
    lines = sorted(f"{key}:{'x'.join(map(str, value.shape))}" for key, value in state.items())
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert (sum(parameter.numel() for parameter in network.parameters()), digest) == PUBLISHED[size, scale]


def test_a_published_checkpoint_loads_strictly(tmp_path: Path) -> None:
    lr = images(8, 8)
    trained = tiny()
    # `training_size` differs from the size at hand, and the zeros would change the result if they were read.
    torch.save({"params": published_state_dict(trained, training_size=12)}, tmp_path / "swinir.pth")
    network = SwinIR(depths=DEPTHS, dim=6, heads=HEADS, window=WINDOW, upsampler="pixelshuffledirect", scale=2).double()
    network.load_state_dict(torch.load(tmp_path / "swinir.pth", weights_only=True)["params"])
    with torch.no_grad():
        assert torch.equal(network(lr), trained(lr))


def test_loading_stays_strict_about_everything_else() -> None:
    state = tiny().state_dict()
    assert not any(key.endswith(("relative_position_index", "attn_mask")) for key in state)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*conv_hr\.weight"):
        tiny().load_state_dict(state | {"conv_hr.weight": torch.zeros(1)})
    del state["norm.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*norm\.weight"):
        tiny().load_state_dict(state)


def test_a_network_is_described_by_its_attributes() -> None:
    network = tiny(scale=3)
    assert (network.name, network.scale, len(network.layers), network.feature_channels) == ("swinir", 3, 2, 6)
    again = SwinIR(**network.arguments, scale=3)
    assert again.arguments == network.arguments
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in network.state_dict().items()}


# What is refused


@pytest.mark.parametrize("layer", [0, 3, -1, "middle", True, 1.5])
def test_a_layer_that_does_not_exist_is_refused_with_those_that_do(layer: Any) -> None:
    with pytest.raises(NetworkError, match=r'Its layers are 1 to 2, "first", "last", "norm", and "body"\.'):
        tiny().features(images(), layer)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"scale": 8}, "SwinIR supports scales 2, 3, and 4, not 8"),
        ({"upsampler": "nearest+conv"}, r"no upsampler 'nearest\+conv'\. Use \"pixelshuffle\" or"),
        ({"heads": 7}, "7 attention heads can't split 60 channels evenly"),
        ({"heads": 0}, "0 attention heads can't split 60 channels evenly"),
    ],
)
def test_an_impossible_network_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(NetworkError, match=sentence):
        SwinIR(**{**LIGHT, **change})


def test_padded_attention_heads_change_neither_the_output_nor_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    network = SwinIR(depths=[2], dim=20, heads=2, window=8, upsampler="pixelshuffledirect").double()
    lr = torch.rand(2, 3, 16, 24, dtype=torch.float64, requires_grad=True)
    found = []
    for multiple in (1, 8):
        monkeypatch.setattr(windowed, "HEAD_MULTIPLE", multiple)
        features = network.features(lr, "last")
        found.append((features.detach(), *torch.autograd.grad(features.square().sum(), lr)))
    for mine, other in zip(*found, strict=True):
        assert torch.allclose(mine, other, rtol=1e-10, atol=1e-10)

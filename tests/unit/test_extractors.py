"""Feature extractors: any module of any network, its gradient, and that condensation cannot tell the difference."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from idc_hub import networks
from idc_hub.condensation.condense import condense_instance
from idc_hub.errors import NetworkError
from idc_hub.networks.extractors import Tapped, feature_maps, load_extractor
from idc_hub.networks.foreign import weights_digest
from idc_hub.recipe import Recipe

Publish = Callable[..., None]


class Net(nn.Module):
    """Every kind of inner output that there is."""

    def __init__(self, scale: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1))
        self.tokens = nn.Linear(5, 6)
        self.pair = Pair()
        self.unused = nn.Identity()
        self.detached = Detached()
        self.head = nn.Conv2d(5, 3 * scale**2, 3, padding=1)
        self.after = Bomb()
        self.shuffle = nn.PixelShuffle(scale)

    def forward(self, lr: Tensor) -> Tensor:
        x = self.layers(lr)
        self.tokens(x.flatten(2).transpose(1, 2))
        self.pair(x)
        self.detached(x)
        return self.shuffle(self.head(x))


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return 2 * x, None


class Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


class Bomb(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("what follows the features should not be computed")


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Publish:
    """A function that makes `my_module` importable, with the given attributes."""

    def make(**attributes: object) -> None:
        monkeypatch.setitem(sys.modules, "my_module", SimpleNamespace(**attributes))

    return make


def assert_maps(found: Tensor, expected: Tensor) -> None:
    """Maps or gradients that one processor computes alike in two ways, and another to rounding."""
    largest = float(expected.detach().abs().max())
    torch.testing.assert_close(found.detach(), expected.detach(), rtol=0, atol=2e-6 * largest)


def load(layer: int | str, size: int = 8) -> Any:
    return load_extractor("my_module:build", layer, scale=2, size=size)


def test_features_are_the_output_of_the_module_that_the_layer_names(publish: Publish) -> None:
    publish(build=lambda *, scale: Net(scale))
    lr, net = torch.rand(2, 3, 8, 8), Net()
    extractor = load("layers.0")
    assert extractor.weights_sha256 == weights_digest(net)
    assert_maps(extractor.network.features(lr, "layers.0"), net.layers[0](lr))
    assert_maps(load("layers").network.features(lr, "layers"), net.layers(lr))
    tokens = net.tokens(net.layers(lr).flatten(2).transpose(1, 2))
    assert_maps(load("tokens").network.features(lr, "tokens"), tokens.view(2, 8, 8, 6).permute(0, 3, 1, 2))
    assert_maps(load("pair").network.features(lr, "pair"), 2 * net.layers(lr))


def test_a_sequence_counts_from_0(publish: Publish) -> None:
    publish(build=lambda *, scale: Net(scale).layers)
    lr = torch.rand(1, 3, 8, 8)
    assert_maps(load(1).network.features(lr, 1), torch.relu(Net().layers[0](lr)))


def test_what_follows_is_not_computed_and_no_hook_stays(publish: Publish) -> None:
    publish(build=lambda *, scale: nn.Sequential(nn.Conv2d(3, 4, 1), Bomb()))
    network = load("0").network
    network.features(torch.rand(1, 3, 8, 8), "0")
    with pytest.raises(AssertionError, match="should not be computed"):
        network.network(torch.rand(1, 3, 8, 8))


def test_the_gradient_reaches_the_patches_and_no_weight(publish: Publish) -> None:
    publish(build=lambda *, scale: Net(scale))
    network = load("layers.2").network
    lr = torch.rand(1, 3, 8, 8, requires_grad=True)
    network.features(lr, "layers.2").square().sum().backward()
    (expected,) = torch.autograd.grad(Net().layers(lr).square().sum(), lr)
    assert lr.grad is not None
    assert_maps(lr.grad, expected)
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        ("layer.2", "has no module 'layer.2'. It has layers.2"),
        ("first", "has no module 'first'"),
        ("unused", "never calls its module 'unused'"),
        ("shuffle", r"returns \[1, 3, 16, 16\] at 'shuffle' for LR patches \[1, 3, 8, 8\]"),
        ("detached", "my_module:build passes no gradient from 'detached'"),
        ("after", "never calls its module 'after'"),
    ],
)
def test_a_layer_that_gives_no_feature_map_is_refused_when_it_is_loaded(
    publish: Publish, layer: str, sentence: str
) -> None:
    publish(build=lambda *, scale: Net(scale))
    with pytest.raises(NetworkError, match=sentence):
        load(layer)


def test_a_network_that_cannot_extract_is_refused(publish: Publish, tmp_path: Path) -> None:
    publish(build=lambda *, scale: nn.Upsample(scale_factor=scale))
    with pytest.raises(NetworkError, match="has no weights"):
        load("0")
    publish(build=lambda *, scale: nn.Sequential(nn.Conv2d(1, 1, 1)))
    with pytest.raises(NetworkError, match=r"failed on a patch of 8 x 8 pixels \(RuntimeError"):
        load("0")
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(NetworkError, match=r"\(diffusers\) has no feature maps"):
        load_extractor(tmp_path, "unet", scale=2, size=8)


def test_our_own_networks_keep_their_layers_and_show_their_modules() -> None:
    edsr, lr = networks.load("edsr-small"), torch.rand(2, 3, 8, 8)
    own = load_extractor("edsr-small", "body", scale=2, size=8)  # of any scale
    assert_maps(own.network.features(lr, "body"), edsr.features(lr, "body"))
    assert own.weights_sha256 == networks.weights_sha256("edsr-small")
    assert not any(parameter.requires_grad for parameter in own.network.parameters())
    inner = load_extractor("edsr-small", "body.1", scale=4, size=8)
    assert_maps(inner.network.features(lr, "body.1"), edsr.features(lr, 2))
    with pytest.raises(NetworkError, match=r"has no layer 'body\.99'"):
        load_extractor("edsr-small", "body.99", scale=4, size=8)


def test_swin2sr_is_an_extractor(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra diffusion is not installed")
    config = transformers.Swin2SRConfig(embed_dim=12, depths=[1, 1], num_heads=[2, 2], window_size=8, image_size=16)
    network = transformers.Swin2SRForImageSuperResolution(config).eval()
    network.save_pretrained(tmp_path)
    lr = torch.rand(2, 3, 16, 16)
    layer = "swin2sr.encoder.stages.1"
    features = load_extractor(tmp_path, layer, scale=4, size=16).network.features(lr, layer)
    with torch.no_grad():
        states = network.swin2sr(lr, output_hidden_states=True).hidden_states
    assert torch.allclose(features.flatten(2).transpose(1, 2), states[2], atol=1e-6)


@pytest.mark.spandrel
def test_a_checkpoint_is_an_extractor_through_spandrel(tmp_path: Path) -> None:
    architectures = pytest.importorskip("spandrel.architectures.SwinIR", reason="the extra spandrel is not installed")
    network = architectures.SwinIR(
        upscale=2, window_size=8, img_size=16, depths=[1, 1], num_heads=[2, 2], embed_dim=12, upsampler="pixelshuffle"
    ).eval()
    torch.save(network.state_dict(), tmp_path / "net.pth")
    lr = torch.rand(2, 3, 16, 16)
    features = load_extractor(tmp_path / "net.pth", "layers.1", scale=4, size=16).network.features(lr, "layers.1")
    tokens: list[Tensor] = []
    network.layers[1].register_forward_hook(lambda module, inputs, output: tokens.append(output))
    network(lr)
    assert torch.allclose(features.flatten(2).transpose(1, 2), tokens[0], atol=1e-6)


def test_condensation_through_a_module_equals_condensation_through_the_layer_that_it_is() -> None:
    """EDSR's second block, once by its number and once by its path as somebody else's network."""
    generator = torch.Generator().manual_seed(3)
    lr = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=generator)
    edsr = networks.load("edsr-small").requires_grad_(False)
    results = []
    for network, layer in ((edsr, 2), (Tapped(edsr, "edsr"), "body.1")):
        recipe = Recipe.from_dict(
            {
                "name": "r",
                "source": {"path": "p"},
                "patches": {"size": 16, "stride": 8, "complexity": "all"},
                "features": {"layer": layer},
                "transform": {"channels": 8},
                "loss": {"frequencies": 16, "bank_size": 2},
                "assignment": {"groups": 2, "events": 2, "interval": 0.2},
                "optimizer": {"steps": 6, "milestones": [0.5], "initial": "noise", "learning_rate": 1e-2},
            }
        )
        results.append(condense_instance(lr, 2, network, recipe, "photograph").patches.int())
    # Another block's features move the patches by 15 levels, another order of sums tips what is nearly a half.
    assert (results[0] - results[1]).abs().max() <= 1


def test_several_layers_are_stacked_and_pixels_are_the_input() -> None:
    network = load_extractor("edsr-small", ("pixels", "first", "body"), scale=4, size=16).network
    lr = torch.rand(2, 3, 16, 12, generator=torch.Generator().manual_seed(0))
    maps = feature_maps(network, lr, ("pixels", "first", "body"))
    assert maps.shape == (2, 3 + 32 + 32, 16, 12)
    assert torch.equal(maps[:, :3], lr)
    assert_maps(maps[:, 3:35], network.features(lr, "first"))
    assert_maps(maps[:, 35:], network.features(lr, "body"))
    assert_maps(feature_maps(network, lr, "first"), network.features(lr, "first"))


def test_a_stack_may_hold_inner_modules_and_says_which_one_is_missing() -> None:
    network = load_extractor("edsr-small", ("pixels", "body.2.conv1"), scale=4, size=16).network
    assert feature_maps(network, torch.rand(1, 3, 16, 16), ("pixels", "body.2.conv1")).shape == (1, 35, 16, 16)
    with pytest.raises(NetworkError, match="12"):
        load_extractor("edsr-small", ("pixels", 12), scale=4, size=16)


@pytest.mark.parametrize("layer", ["residual", "body.2.conv1"])
def test_the_residual_is_what_the_network_adds_to_bicubic(layer: str) -> None:
    """Beside an inner module the network is `Tapped`."""
    network = load_extractor(
        "edsr-small", ("first" if layer == "residual" else layer, "residual"), scale=4, size=16
    ).network
    lr = torch.rand(2, 3, 16, 12, generator=torch.Generator().manual_seed(0))
    found = nn.functional.pixel_shuffle(feature_maps(network, lr, "residual"), 4)
    bicubic = nn.functional.interpolate(lr, scale_factor=4, mode="bicubic")
    assert torch.allclose(found + bicubic, networks.load("edsr-small")(lr), atol=1e-5)


def test_a_network_that_is_no_sr_network_has_no_residual() -> None:
    with pytest.raises(NetworkError, match="failed on a patch of 16 x 16 pixels"):
        load_extractor(f"{__name__}:build_classifier", "residual", scale=4, size=16)


def build_classifier(scale: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 10))


def test_condensation_sees_what_only_pixels_show() -> None:
    """A network that is blind to color leaves a wrong color alone; with the pixels beside it, it does not."""

    class Gray(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1), requires_grad=False)

        def features(self, lr: Tensor, layer: int | str) -> Tensor:
            return lr.mean(1, keepdim=True) * self.weight

    rng = torch.Generator().manual_seed(0)
    real = torch.randint(0, 256, (8, 1, 16, 16), generator=rng, dtype=torch.uint8).repeat(1, 3, 1, 1)  # gray noise

    def chroma(layer: object) -> float:
        recipe = Recipe.from_dict(
            {
                "name": "gray",
                "source": {"path": "photos"},
                "patches": {"size": 16, "stride": 16, "complexity": "all"},
                "features": {"layer": layer},
                "transform": {"kind": "identity"},
                "loss": {"frequencies": 128, "bank_size": 8, "group_weight": 0, "pair_weight": 0},
                "optimizer": {"steps": 300, "initial": "noise", "learning_rate": 0.03},
            }
        )
        patches = condense_instance(real, 1, Gray(), recipe, "noise").patches.float() / 255
        return float((patches - patches.mean(1, keepdim=True)).abs().mean())

    assert chroma(["pixels", "first"]) < 0.5 * chroma("first")

"""The networks: what they compute, how they are saved and loaded, and what is said when that fails."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from skimage import data

from idc_hub import networks
from idc_hub.errors import NetworkError
from idc_hub.images.metrics import Protocol, psnr
from idc_hub.images.resize import imresize
from idc_hub.networks.edsr import EDSR
from idc_hub.networks.teachers import load_teacher, upscale
from tests.hub_server import HubServer


def tiny(scale: int = 4, seed: int = 0) -> EDSR:
    torch.manual_seed(seed)
    return EDSR(channels=4, blocks=3, residual_scale=0.5, scale=scale)


# The network once more, in numpy and with loops.


def reference_conv(weights: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    """3x3 cross-correlation with a border of zeros; x is [channels, h, w]."""
    kernel, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    _, height, width = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    out = np.empty((len(bias), height, width))
    for row in range(height):
        for column in range(width):
            window = padded[:, row : row + 3, column : column + 3]
            out[:, row, column] = (kernel * window).sum(axis=(1, 2, 3)) + bias
    return out


def reference_pixel_shuffle(x: np.ndarray, factor: int) -> np.ndarray:
    channels, height, width = x.shape
    out = np.empty((channels // factor**2, height * factor, width * factor))
    for channel in range(out.shape[0]):
        for dy in range(factor):
            for dx in range(factor):
                out[channel, dy::factor, dx::factor] = x[channel * factor**2 + dy * factor + dx]
    return out


def reference_edsr(network: EDSR, lr: np.ndarray) -> tuple[dict[Any, np.ndarray], np.ndarray]:
    """Every feature map by its layer, and the output, of one image [3, h, w]."""
    weights = {key: value.double().numpy() for key, value in network.state_dict().items()}
    mean = np.array([0.4488, 0.4371, 0.4040])[:, None, None]
    x = first = reference_conv(weights, "conv_first", (lr - mean) * 255)
    features: dict[Any, np.ndarray] = {}
    for block in range(3):
        hidden = np.maximum(reference_conv(weights, f"body.{block}.conv1", x), 0)
        x = features[block + 1] = x + 0.5 * reference_conv(weights, f"body.{block}.conv2", hidden)
    x = features["body"] = reference_conv(weights, "conv_after_body", x) + first
    features |= {"first": features[1], "last": features[3]}
    for index, factor in {2: [(0, 2)], 3: [(0, 3)], 4: [(0, 2), (2, 2)]}[network.scale]:
        x = reference_pixel_shuffle(reference_conv(weights, f"upsample.{index}", x), factor)
    return features, reference_conv(weights, "conv_last", x) / 255 + mean


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_edsr_computes_what_the_slow_reference_computes(scale: int) -> None:
    network = tiny(scale).double()
    lr = torch.rand(2, 3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        hr = network(lr)
    assert hr.shape == (2, 3, 5 * scale, 7 * scale)
    for image, result in zip(lr.numpy(), hr.numpy(), strict=True):
        np.testing.assert_allclose(result, reference_edsr(network, image)[1], atol=1e-6)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_direct_upsampler_adds_one_shuffled_convolution_to_the_bicubic_enlargement(scale: int) -> None:
    network = EDSR(channels=4, blocks=1, upsampler="pixelshuffledirect", scale=scale).double()
    lr = torch.rand(1, 3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    enlarged = torch.nn.functional.interpolate(lr, scale_factor=scale, mode="bicubic")
    with torch.no_grad():
        body, hr = network.features(lr, "body")[0].numpy(), network(lr)
    weights = {key: value.numpy() for key, value in network.state_dict().items()}
    detail = reference_pixel_shuffle(reference_conv(weights, "upsample.0", body), scale) / 255
    assert np.allclose((hr - enlarged)[0].numpy(), detail, rtol=0, atol=1e-12)


def test_an_upsampler_that_edsr_does_not_have_is_refused() -> None:
    with pytest.raises(NetworkError, match="no upsampler 'nearest'"):
        EDSR(channels=4, blocks=1, upsampler="nearest")


@pytest.mark.parametrize("layer", [1, 2, 3, "first", "last", "body"])
def test_features_are_the_reference_s_feature_maps(layer: int | str) -> None:
    network = tiny().double()
    lr = torch.rand(1, 3, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = network.features(lr, layer)
    assert features.shape == (1, network.feature_channels, 6, 5)
    np.testing.assert_allclose(features[0].numpy(), reference_edsr(network, lr[0].numpy())[0][layer], atol=1e-4)


@pytest.mark.parametrize("layer", [0, 4, -1, "middle", True, 1.5])
def test_a_layer_that_does_not_exist_is_refused_with_those_that_do(layer: Any) -> None:
    with pytest.raises(NetworkError, match=r'Its layers are 1 to 3, "first", "last", and "body"\.'):
        tiny().features(torch.rand(1, 3, 4, 4), layer)


@pytest.mark.parametrize(
    ("name", "scale", "published"),
    [("edsr-baseline", 4, 1_517_571), ("edsr-baseline", 2, 1_369_859), ("edsr", 4, 43_089_923)],
)
def test_parameter_counts_are_the_published_ones(name: str, scale: int, published: int) -> None:
    with torch.device("meta"):
        network = networks.create(name, scale=scale)
    assert sum(parameter.numel() for parameter in network.parameters()) == published


@pytest.mark.parametrize(("scale", "upsamplers"), [(2, {"0": 16}), (3, {"0": 36}), (4, {"0": 16, "2": 16})])
def test_state_dict_keys_are_those_of_the_published_checkpoints(scale: int, upsamplers: dict[str, int]) -> None:
    shapes = {"conv_first": (4, 3), "conv_after_body": (4, 4), "conv_last": (3, 4)}
    shapes |= {f"body.{n}.conv{k}": (4, 4) for n in range(3) for k in (1, 2)}
    shapes |= {f"upsample.{n}": (out, 4) for n, out in upsamplers.items()}
    expected = {f"{name}.weight": (*shape, 3, 3) for name, shape in shapes.items()}
    expected |= {f"{name}.bias": (shape[0],) for name, shape in shapes.items()}
    assert {key: tuple(value.shape) for key, value in tiny(scale).state_dict().items()} == expected


@pytest.mark.parametrize("scale", [0, 1, 5, 8])
def test_a_scale_that_edsr_does_not_have_is_refused(scale: int) -> None:
    with pytest.raises(NetworkError, match=f"EDSR supports scales 2, 3, and 4, not {scale}"):
        networks.create("edsr-small", scale=scale)


# Saving and loading


def test_a_saved_network_comes_back_and_equal_weights_give_equal_bytes(tmp_path: Path) -> None:
    network = tiny(scale=3)
    network.name = "mine"
    networks.save(network, tmp_path / "a", license="cc0-1.0")
    loaded = networks.load(tmp_path / "a", scale=3)
    networks.save(loaded, tmp_path / "b", license="cc0-1.0")

    lr = torch.rand(1, 3, 8, 8)
    assert torch.equal(loaded(lr), network(lr))
    assert (loaded.name, loaded.scale, len(loaded.body), loaded.training) == ("mine", 3, 3, False)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert json.loads((tmp_path / "a" / "config.json").read_text()) == {
        "architecture": "EDSR",
        "arguments": {"channels": 4, "blocks": 3, "residual_scale": 0.5},
        "license": "cc0-1.0",
        "name": "mine",
        "scale": 3,
    }


def test_memory_order_does_not_reach_the_file_and_the_file_is_as_readable_as_others(tmp_path: Path) -> None:
    networks.save(tiny(), tmp_path / "a")
    networks.save(tiny().to(memory_format=torch.channels_last), tmp_path / "b")  # type: ignore[call-overload]
    weights = tmp_path / "a" / "model.safetensors"
    assert weights.read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert weights.stat().st_mode == (tmp_path / "a" / "config.json").stat().st_mode


def test_the_file_has_one_metadata_key_and_its_digest_is_the_plain_one(tmp_path: Path) -> None:
    networks.save(tiny(), tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert len(header["__metadata__"]) == 1
    assert networks.weights_sha256(tmp_path) == hashlib.sha256(content).hexdigest()


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, key: str, value: torch.Tensor | None) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop(key, None)
    if value is not None:
        weights[key] = value
    save_file(weights, folder / "model.safetensors")


BREAKAGES = {
    "no config": (lambda f: (f / "config.json").unlink(), r"contains no config\.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"contains no model\.safetensors"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), r"config\.json can't be read"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "architecture, arguments, name, scale"),
    "foreign config": (lambda f: (f / "config.json").write_text('{"scale": 4}'), "architecture, arguments, name mis"),
    "unknown architecture": (lambda f: edit_config(f, architecture="os.system"), "names the architecture 'os.system'"),
    "unknown argument": (lambda f: edit_config(f, arguments={"chanels": 4}), "can't be built from these arguments"),
    "impossible argument": (
        lambda f: edit_config(f, arguments={"channels": -4, "blocks": 1}),
        r'config\.json: "channels" is -4: no network has that',
    ),
    "other size": (
        lambda f: edit_config(f, arguments={"channels": 5, "blocks": 3}),
        r"has shape \[.+\] instead of \[.+\] \(and \d+ more\)",
    ),
    "fewer blocks": (
        lambda f: edit_config(f, arguments={"channels": 4, "blocks": 2}),
        r"body\.2\.conv\d\.\w+ is unexpected \(and 3 more\)",
    ),
    "lacks a key": (lambda f: edit_weights(f, "conv_last.bias", None), r"conv_last\.bias is missing\."),
    "one shape": (
        lambda f: edit_weights(f, "conv_last.bias", torch.zeros(4)),
        r"conv_last\.bias has shape \[4\] instead of \[3\]\.",
    ),
    "cut off": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-10]),
        r"model\.safetensors is not a complete safetensors file",
    ),
    "no safetensors": (
        lambda f: (f / "model.safetensors").write_bytes(b"<html>404</html>" * 9),
        r"model\.safetensors is not a complete safetensors file",
    ),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_folder_is_refused_with_a_sentence(breakage: str, tmp_path: Path) -> None:
    networks.save(tiny(), tmp_path)
    damage, sentence = BREAKAGES[breakage]
    damage(tmp_path)
    with pytest.raises(NetworkError, match=sentence):
        networks.load(tmp_path)


def test_a_network_for_another_scale_is_refused_with_both_scales(tmp_path: Path) -> None:
    networks.save(tiny(scale=2), tmp_path)
    with pytest.raises(NetworkError, match="is an x2 network, but x4 was requested"):
        networks.load(tmp_path, scale=4)


@pytest.mark.parametrize("function", [networks.create, networks.load, networks.weights_sha256])
def test_a_misspelt_name_is_answered_with_the_one_that_was_meant(function: Any) -> None:
    with pytest.raises(NetworkError, match="Did you mean 'edsr-small'"):
        function("edsr-smal")


def test_a_name_unlike_any_other_is_answered_with_all_of_them() -> None:
    with pytest.raises(
        NetworkError, match=r"Known names are edsr-tiny, edsr-small, edsr-baseline, edsr, swinir-light, .*\."
    ):
        networks.load("qqq")


# What comes with the package


def test_the_bundled_network_loads_and_is_small() -> None:
    network = networks.load("edsr-small", scale=4)
    assert (network.name, network.scale) == ("edsr-small", 4)
    folder = Path(networks.__file__).parent / "weights" / "edsr-small-x4"
    assert (folder / "model.safetensors").stat().st_size <= 1_000_000
    assert networks.weights_sha256("edsr-small") == networks.weights_sha256(folder)


@pytest.mark.parametrize(("name", "scale"), [("edsr-small", 2), ("edsr-small", 3), ("edsr-baseline", 4)])
def test_weights_that_are_not_bundled_are_said_to_be_so(name: str, scale: int) -> None:
    with pytest.raises(NetworkError, match=f"bundles no weights for {name} x{scale}, only edsr-small-x4"):
        networks.load(name, scale=scale)


def test_the_bundled_network_is_clearly_better_than_bicubic_on_a_photograph_it_never_saw() -> None:
    hr = data.astronaut()[:256, 128:384]
    lr = imresize(hr, 1 / 4)
    batch = torch.from_numpy(lr).permute(2, 0, 1)[None]
    protocol = Protocol("y", border=4, scale=4)
    results = (upscale(networks.load("edsr-small"), batch), load_teacher("bicubic", scale=4)(batch))
    ours, bicubic = (psnr(result[0].permute(1, 2, 0).numpy(), hr, protocol) for result in results)
    assert ours > bicubic + 1.5


# The Hub


def test_a_model_on_the_hub_is_loaded_by_its_id_and_then_offline(tmp_path: Path) -> None:
    networks.save(tiny(), tmp_path / "network")
    shutil.copytree(tmp_path / "network", tmp_path / "half")
    (tmp_path / "half" / "config.json").unlink()
    code = f"""
import os, sys
from huggingface_hub import HfApi
from idc_hub import networks
from idc_hub.errors import IDCError
if sys.argv[1] == "online":
    for name in ("network", "half"):
        HfApi().create_repo(f"alice/{{name}}")
        HfApi().upload_folder(repo_id=f"alice/{{name}}", folder_path=r"{tmp_path}/" + name)
for name in ("network", "half", "nothing"):
    try:
        networks.load(f"alice/{{name}}")
        print(networks.weights_sha256(f"alice/{{name}}"))
    except IDCError as error:
        print(type(error).__name__, error)
"""
    with HubServer(tmp_path / "hub") as server:
        environment = server.environment("hf_alice", tmp_path / "home")
        online = run(code, "online", environment)
    offline = run(code, "offline", environment)  # the server is gone
    digest = networks.weights_sha256(tmp_path / "network")
    assert online[0] == offline[0] == digest
    assert online[1] == "NetworkError alice/half contains no config.json. " + (
        "A network folder needs config.json and model.safetensors."
    )
    assert online[2].startswith("NetworkError There is no folder alice/nothing, and no Hub model of that name")
    assert offline[2].startswith("HubError Downloading the network alice/nothing from the Hub failed")


def run(code: str, argument: str, environment: dict[str, str]) -> list[str]:
    """A process of its own: huggingface_hub reads its variables when it is imported."""
    result = subprocess.run(
        [sys.executable, "-c", code, argument],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()

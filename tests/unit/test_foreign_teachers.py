"""Teachers that somebody else wrote: functions of a package and Swin2SR; what a name means."""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.dataset.regenerate import regenerate
from idc_hub.errors import NetworkError
from idc_hub.images.metrics import Protocol
from idc_hub.networks.foreign import kind_of, load_foreign, name_of, weights_digest
from idc_hub.networks.teachers import KINDS, load_teacher
from idc_hub.training.evaluation import evaluate
from tests.unit.foreign import Repeat, as_levels, mirrored, noise

Publish = Callable[..., None]


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Publish:
    """A function that makes `my_package.networks` importable, with the given attributes."""

    def make(**attributes: object) -> None:
        monkeypatch.setitem(sys.modules, "my_package", SimpleNamespace())
        monkeypatch.setitem(sys.modules, "my_package.networks", SimpleNamespace(**attributes))

    return make


# What a name means


def test_every_name_has_its_kind(tmp_path: Path) -> None:
    (tmp_path / "net.pth").touch()
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    (tmp_path / "swin2sr").mkdir()
    (tmp_path / "swin2sr" / "config.json").write_text('{"architectures": ["Swin2SRForImageSuperResolution"]}')
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "config.json").write_text('{"architecture": "EDSR"}')
    found = {
        spec: kind_of(spec)[0]
        for spec in (
            "bicubic",
            "edsr-small",
            "no-such-name",
            "my_package.networks:build",
            *(tmp_path / name for name in ("net.pth", "pipeline", "swin2sr", "ours")),
        )
    }
    named = ["bicubic", "network", "network", "module"]
    assert list(found.values()) == [*named, "spandrel", "diffusers", "transformers", "network"]
    assert set(found.values()) == set(KINDS)
    with pytest.raises(NetworkError, match=r"There is no file weights/net\.pth"):
        kind_of("weights/net.pth")  # and is not looked for on the Hub


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("weights/4x_Net.v2.pth", "4x-net-v2"),
        ("caidas/swin2SR-classical-sr-x4-64", "swin2sr-classical-sr-x4-64"),
        ("my_package.networks:build", "my-package-networks-build"),
        ("猫.pth", "teacher"),
    ],
)
def test_an_hr_version_may_be_called_like_its_teacher(spec: str, name: str) -> None:
    assert name_of(spec) == name


# package.module:build


def test_a_function_of_a_package_is_a_teacher(publish: Publish) -> None:
    publish(build=lambda *, scale: Repeat(scale, 0.5))
    teacher = load_teacher("my_package.networks:build", scale=3)
    lr = noise()
    expected = ((lr.float() / 2 + 0.5).floor().byte()).repeat_interleave(3, 2).repeat_interleave(3, 3)
    assert torch.equal(teacher(lr), expected)
    digest = hashlib.sha256(b"weight\0torch.float32\0[]\0" + np.float32(0.5).tobytes()).hexdigest()
    assert teacher.describe() == {
        "name": "my-package-networks-build",
        "kind": "module",
        "scale": 3,
        "weights_sha256": digest,
        "license": None,
    }


def test_it_need_not_have_weights(publish: Publish) -> None:
    publish(build=lambda *, scale: nn.Upsample(scale_factor=scale))
    teacher = load_teacher("my_package.networks:build", scale=2)
    assert teacher.weights_sha256 is None
    assert torch.equal(teacher(noise()), noise().repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_it_is_frozen_and_in_evaluation_mode(publish: Publish) -> None:
    network = nn.Sequential(nn.Dropout(0.9), Repeat(2))
    publish(build=lambda *, scale: network)
    load_teacher("my_package.networks:build", scale=2)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_a_real_module_is_imported_from_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nearest_teacher.py").write_text(
        "import torch\n\ndef build(scale):\n    return torch.nn.Upsample(scale_factor=scale)\n"
    )
    with pytest.raises(NetworkError, match="can't be imported: No module named 'nearest_teacher'"):
        load_teacher("nearest_teacher:build", scale=2)
    monkeypatch.syspath_prepend(tmp_path)
    assert load_teacher("nearest_teacher:build", scale=2)(noise()).shape == (3, 3, 16, 16)


def fail(*, scale: int) -> nn.Module:
    raise FileNotFoundError("weights.pth")


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (None, "can't be imported"),
        (fail, r"failed with scale=4 \(FileNotFoundError: weights\.pth\)"),
        (lambda: Repeat(4), r"failed with scale=4 \(TypeError"),
        (lambda *, scale: "a network", "returned a str, not a torch.nn.Module"),
        (lambda *, scale: Repeat(2), r"\[1, 3, 64, 64\] for 1 patches, not uint8 \[1, 3, 128, 128\]"),
        (lambda *, scale: nn.Conv2d(1, 3, 1), r"failed on a patch of 32 x 32 pixels \(RuntimeError"),
    ],
    ids=["no such function", "raises", "takes no scale", "no module", "another scale", "fails when applied"],
)
def test_a_function_that_makes_no_teacher_is_refused_when_it_is_loaded(
    publish: Publish, build: Callable[..., Any] | None, sentence: str
) -> None:
    publish(**({"build": build} if build else {}))
    with pytest.raises(NetworkError, match=sentence):
        load_teacher("my_package.networks:build", scale=4)


def test_the_digest_tells_weights_apart_and_nothing_else() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(2, 3), nn.Linear(2, 3)
    assert weights_digest(first) != weights_digest(second)
    second.load_state_dict(first.state_dict())
    assert weights_digest(first) == weights_digest(second)
    assert weights_digest(first) != weights_digest(first.double())
    wide = nn.Linear(3, 2)
    wide.weight.data = first.weight.data.view(2, 3)
    wide.bias.data = first.bias.data
    assert weights_digest(wide) != weights_digest(first)
    reversed_order = nn.Module()
    reversed_order.bias, reversed_order.weight = first.bias, first.weight
    assert weights_digest(reversed_order) == weights_digest(first)
    assert weights_digest(nn.BatchNorm2d(2)) is not None  # int64 and no dimensions
    assert weights_digest(nn.Linear(2, 2).bfloat16()) is not None


# A published network

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_a_published_network_reaches_its_stated_psnr_as_a_teacher(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("IMDN_WEIGHTS", str(shared / "weights" / "imdn_x4.safetensors"))
    spec = "imdn:build"
    entries = json.loads((shared / "weights" / "manifest.json").read_text())["files"]
    (stated,) = (entry["checked"]["set5_x4_psnr_y_db"] for entry in entries if entry["file"] == "imdn_x4.safetensors")
    protocol = Protocol("y", border=4, scale=4)
    network, teacher = load_foreign("module", spec, Path(), scale=4), load_teacher(spec, scale=4)
    results = (evaluate(way, shared / "data" / "test" / "Set5", [protocol]) for way in (network, teacher))
    names = (str(protocol), f"{protocol}, 8 LR pixels mirrored around")
    bare, mirrored_first = (result["protocols"][name]["psnr"] for name, result in zip(names, results, strict=True))
    assert bare == pytest.approx(stated, abs=0.002)
    assert mirrored_first == pytest.approx(stated, abs=0.05)  # it was trained on images with zeros around them


# transformers


def swin2sr(folder: Path, upsampler: str = "pixelshuffledirect", card: str | None = None) -> nn.Module:
    """A tiny Swin2SR for x2 with random weights, saved to `folder`."""
    transformers = pytest.importorskip("transformers", reason="the extra diffusion is not installed")
    torch.manual_seed(0)
    config = transformers.Swin2SRConfig(
        embed_dim=12, depths=[2], num_heads=[2], window_size=8, image_size=16, upscale=2, upsampler=upsampler
    )
    network = transformers.Swin2SRForImageSuperResolution(config).eval()
    network.save_pretrained(folder)
    if card:
        (folder / "README.md").write_text(card)
    return network


@pytest.mark.parametrize("upsampler", ["pixelshuffledirect", "pixelshuffle", "pixelshuffle_aux"])
def test_swin2sr_is_a_teacher(tmp_path: Path, upsampler: str) -> None:
    network = swin2sr(tmp_path / "Swin2SR-x2", upsampler, "---\nlicense: apache-2.0\n---\n")
    teacher = load_teacher(tmp_path / "Swin2SR-x2", scale=2)
    lr = noise(2, 9, 13)  # transformers' forward fails unless both sides are multiples of the window
    with torch.no_grad():
        levels = as_levels(network(mirrored(lr, below=15, right=11)).reconstruction, 18, 26)
    assert (teacher(lr) - levels).abs().max() <= 0.5 + 2e-4  # what is nearly a half may be tipped
    facts = teacher.describe()
    assert (facts["name"], facts["kind"], facts["license"]) == ("swin2sr-x2", "transformers", "apache-2.0")
    assert facts["weights_sha256"] == weights_digest(network)


def test_swin2sr_makes_an_hr_version(repo: Path, tmp_path: Path) -> None:
    swin2sr(tmp_path / "net")
    assert regenerate(CondensedSet(repo), load_teacher(tmp_path / "net", scale=2), "swin2sr").patches == 6


def test_swin2sr_of_another_scale_or_without_safetensors_is_refused(tmp_path: Path) -> None:
    network = swin2sr(tmp_path)
    with pytest.raises(NetworkError, match="is an x2 network, but x4 was requested"):
        load_teacher(tmp_path, scale=4)
    (tmp_path / "model.safetensors").unlink()
    torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(NetworkError, match=r"contains no model\.safetensors"):
        load_teacher(tmp_path, scale=2)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(NetworkError, match="can't be loaded as a Swin2SRForImageSuperResolution"):
        load_teacher(tmp_path, scale=2)


@pytest.mark.parametrize(("package", "extra"), [("transformers", "diffusion"), ("spandrel", "spandrel")])
def test_a_missing_extra_is_one_sentence_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    if package == "transformers":
        spec = tmp_path / "net"
        spec.mkdir()
        (spec / "config.json").write_text('{"architectures": ["Swin2SRForImageSuperResolution"]}')
    else:
        spec = tmp_path / "net.safetensors"
        save_file({"weight": torch.zeros(1)}, spec)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(NetworkError) as caught:
        load_teacher(spec, scale=2)
    assert f"{spec} needs {package}, which can't be imported" in caught.value.message
    assert caught.value.hint == f"Install it with: pip install 'idc-hub[{extra}]'"

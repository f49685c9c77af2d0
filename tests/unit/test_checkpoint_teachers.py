"""Checkpoint files as teachers, through spandrel; what would run code is refused and does not."""

import hashlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.dataset.regenerate import regenerate
from idc_hub.errors import NetworkError
from idc_hub.networks.teachers import load_teacher
from tests.unit.foreign import Explosive, Repeat, as_levels, mirrored, noise


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_would_run_code_is_refused_and_does_not(tmp_path: Path, suffix: str, zipped: bool) -> None:
    path = tmp_path / f"net{suffix}"
    harm = Explosive(tmp_path / "executed")
    torch.save({"params": harm}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(NetworkError, match="doesn't load with weights_only=True"):
        load_teacher(path, scale=2)
    assert not (tmp_path / "executed").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "executed").exists(), "the file should have been harmful"


def test_a_whole_network_in_a_pth_file_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "net.pth")
    with pytest.raises(NetworkError, match="doesn't load with weights_only=True"):
        load_teacher(tmp_path / "net.pth", scale=2)


def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "net.pt")
    with pytest.raises(NetworkError, match=r"net\.pt can't be read .*TorchScript"):
        load_teacher(tmp_path / "net.pt", scale=2)


@pytest.mark.parametrize("name", ["net.safetensors", "net.pth"])
@pytest.mark.parametrize("content", [b"", b"half a file", b"PK\x03\x04" + bytes(40)])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(NetworkError, match=name):
        load_teacher(tmp_path / name, scale=2)


def test_what_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "net.pth")
    with pytest.raises(NetworkError, match="contains a Tensor, not a state dict"):
        load_teacher(tmp_path / "net.pth", scale=2)


# spandrel itself: it needs torchvision, so it is not part of the test environment


def spandrel_swinir(path: Path) -> nn.Module:
    """A tiny SwinIR for x2 with random weights, its state dict saved as published ones are."""
    architectures = pytest.importorskip("spandrel.architectures.SwinIR", reason="the extra spandrel is not installed")
    torch.manual_seed(0)
    network = architectures.SwinIR(
        upscale=2, window_size=8, img_size=16, depths=[2], num_heads=[2], embed_dim=12, upsampler="pixelshuffledirect"
    ).eval()
    torch.save({"params_ema": network.state_dict()}, path)
    return network


@pytest.mark.spandrel
def test_a_checkpoint_is_a_teacher_through_spandrel(tmp_path: Path) -> None:
    network = spandrel_swinir(tmp_path / "2x_Swin.pth")
    teacher = load_teacher(tmp_path / "2x_Swin.pth", scale=2)
    lr = noise(2, 9, 13)  # not multiples of the window
    with torch.no_grad():
        levels = as_levels(network(mirrored(lr)), 18, 26)
    assert (teacher(lr) - levels).abs().max() <= 0.5 + 2e-4  # what is nearly a half may be tipped
    digest = hashlib.sha256((tmp_path / "2x_Swin.pth").read_bytes()).hexdigest()
    assert teacher.describe() == {
        "name": "2x-swin",
        "kind": "spandrel",
        "scale": 2,
        "weights_sha256": digest,
        "license": None,
    }
    save_file(network.state_dict(), tmp_path / "same.safetensors")
    assert torch.equal(load_teacher(tmp_path / "same.safetensors", scale=2)(lr), teacher(lr))
    with pytest.raises(NetworkError, match="is an x2 network, but x4 was requested"):
        load_teacher(tmp_path / "2x_Swin.pth", scale=4)


@pytest.mark.spandrel
def test_a_checkpoint_makes_an_hr_version_through_spandrel(repo: Path, tmp_path: Path) -> None:
    spandrel_swinir(tmp_path / "net.pth")
    assert regenerate(CondensedSet(repo), load_teacher(tmp_path / "net.pth", scale=2), "swin").patches == 6


@pytest.mark.spandrel
def test_an_architecture_that_spandrel_does_not_know_is_said_to_be_so(tmp_path: Path) -> None:
    pytest.importorskip("spandrel", reason="the extra spandrel is not installed")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "net.pth")
    with pytest.raises(NetworkError, match="spandrel doesn't recognize the architecture of") as caught:
        load_teacher(tmp_path / "net.pth", scale=2)
    assert "package.module:build" in str(caught.value.hint)


class Unsupported(Exception):
    """Stands for spandrel's UnsupportedModelError."""


class Descriptor:
    """Stands for spandrel's descriptor of a network, which takes one image at a time."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        if "weight" not in weights:
            raise Unsupported
        self.model = Repeat(2)
        self.model.load_state_dict(weights)
        self.scale = 2
        self.input_channels = self.output_channels = 3

    def __call__(self, image: Tensor) -> Tensor:
        assert len(image) == 1
        return self.model(image)


def test_spandrel_is_used_as_it_wants_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without the package: what it is given, and what is made of its answers."""
    double = SimpleNamespace(
        UnsupportedModelError=Unsupported,
        ImageModelDescriptor=Descriptor,
        canonicalize_state_dict=lambda weights: weights["params"],
        ModelLoader=lambda: SimpleNamespace(load_from_state_dict=Descriptor),
    )
    monkeypatch.setitem(sys.modules, "spandrel", double)
    torch.save({"params": {"weight": torch.tensor(0.5)}}, tmp_path / "net.pth")
    teacher = load_teacher(tmp_path / "net.pth", scale=2)
    expected = (noise().float() / 2 + 0.5).floor().byte()
    assert torch.equal(teacher(noise()), expected.repeat_interleave(2, 2).repeat_interleave(2, 3))
    torch.save({"params": {"unknown": torch.tensor(0.5)}}, tmp_path / "other.pth")
    with pytest.raises(NetworkError, match="spandrel doesn't recognize the architecture of"):
        load_teacher(tmp_path / "other.pth", scale=2)

"""Teachers: uint8 in, uint8 out, nothing lost and nothing added on the way."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data
from torch import Tensor, nn

from idc_hub import networks
from idc_hub.errors import NetworkError
from idc_hub.images.resize import imresize
from idc_hub.networks.edsr import EDSR
from idc_hub.networks.teachers import Teacher, load_teacher, upscale


def patches(count: int = 3, size: int = 20) -> Tensor:
    """LR patches of a photograph, uint8 [count, 3, size, size]."""
    lr = imresize(data.astronaut(), 1 / 4)
    cuts = [lr[30 : 30 + size, 10 + 20 * n : 10 + 20 * n + size] for n in range(count)]
    return torch.from_numpy(np.stack(cuts)).permute(0, 3, 1, 2).contiguous()


class Enlarge(nn.Module):
    """Repeats every pixel, then adds a number: a network whose output is known exactly."""

    def __init__(self, scale: int, plus: float) -> None:
        super().__init__()
        self.scale = scale
        self.plus = nn.Parameter(torch.tensor(plus))

    def forward(self, lr: Tensor) -> Tensor:
        return lr.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3) + self.plus


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_is_imresize_of_each_patch(scale: int) -> None:
    lr = patches()
    teacher = load_teacher("bicubic", scale=scale)
    hr = teacher(lr)
    assert hr.dtype == torch.uint8
    for patch, result in zip(lr, hr, strict=True):
        np.testing.assert_array_equal(result.permute(1, 2, 0).numpy(), imresize(patch.permute(1, 2, 0).numpy(), scale))


def test_a_network_teacher_is_mirror_network_cut_clamp_round() -> None:
    lr = patches()
    network = networks.load("edsr-small")
    mirrored = np.pad(lr.numpy(), ((0, 0), (0, 0), (8, 8), (8, 8)), mode="symmetric")
    with torch.no_grad():
        output = network(torch.from_numpy(mirrored).float() / 255).numpy()[:, :, 32:-32, 32:-32]
    levels = np.clip(output, 0, 1) * 255
    hr = load_teacher("edsr-small", scale=4)(lr)
    assert hr.shape == (3, 3, 80, 80)
    assert hr.dtype == torch.uint8
    # A teacher's weights are frozen: that may be another order of sums, which tips what is nearly a half.
    assert np.abs(hr.numpy() - levels).max() <= 0.5 + 2e-4


@pytest.mark.parametrize("margin", [0, 8])
def test_every_gray_level_survives_the_way_through_a_network(margin: int) -> None:
    lr = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    expected = lr.repeat_interleave(3, 2).repeat_interleave(3, 3)
    assert torch.equal(upscale(Enlarge(3, 0.0), lr, margin=margin), expected)


@pytest.mark.parametrize(
    ("plus", "level"),
    [(0.5 / 255, 129), (0.49 / 255, 128), (-0.5 / 255, 128), (-0.51 / 255, 127), (1.0, 255), (-1.0, 0)],
)
def test_halves_are_rounded_up_and_values_outside_are_clamped(plus: float, level: int) -> None:
    # float64, where (128 + 0.5) / 255 * 255 is a half and not a neighbor of one
    network = Enlarge(2, plus).double()
    lr = torch.full((1, 3, 4, 4), 128, dtype=torch.uint8)
    assert upscale(network, lr).unique().tolist() == [level]


def test_a_flat_patch_comes_back_without_a_frame() -> None:
    flat = torch.tensor([235, 235, 60], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 32, 32)

    def unevenness(hr: Tensor) -> int:
        values = hr.int().flatten(2)
        return int((values.amax(2) - values.amin(2)).max())

    assert unevenness(upscale(networks.load("edsr-small"), flat)) > 10, "zero padding should show without a margin"
    assert unevenness(load_teacher("edsr-small", scale=4)(flat)) <= 2


def test_a_patch_smaller_than_the_margin_is_upscaled_too() -> None:
    assert load_teacher("edsr-small", scale=4)(patches()[:, :, :3, :5]).shape == (3, 3, 12, 20)


def test_the_same_patch_gives_the_same_hr_alone_and_in_a_batch() -> None:
    lr = patches()
    for name in ("bicubic", "edsr-small"):
        teacher = load_teacher(name, scale=4)
        together = teacher(lr)
        assert torch.equal(together, teacher(lr))
        alone = torch.cat([teacher(patch[None]) for patch in lr])
        # another batch size may be computed in another order, which can tip a half
        assert (together.int() - alone.int()).abs().max() <= 1


def test_the_input_is_left_alone() -> None:
    lr = patches()
    before = lr.clone()
    load_teacher("edsr-small", scale=4)(lr)
    assert torch.equal(lr, before)


@pytest.mark.parametrize(
    "lr",
    [torch.rand(1, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(1, 1, 8, 8, dtype=torch.uint8)],
    ids=["float", "no batch", "gray"],
)
@pytest.mark.parametrize("name", ["bicubic", "edsr-small"])
def test_what_is_not_a_batch_of_uint8_rgb_is_refused(name: str, lr: Tensor) -> None:
    with pytest.raises(NetworkError, match=r"uint8 patches \[B, 3, h, w\]"):
        load_teacher(name, scale=4)(lr)


def test_the_facts_for_idc_json() -> None:
    assert load_teacher("bicubic", scale=2).describe() == {
        "name": "bicubic",
        "kind": "bicubic",
        "scale": 2,
        "weights_sha256": None,
        "license": None,
    }
    bundled = load_teacher("edsr-small", scale=4).describe()
    assert json.loads(json.dumps(bundled)) == {
        "name": "edsr-small",
        "kind": "network",
        "scale": 4,
        "weights_sha256": networks.weights_sha256("edsr-small"),
        "license": "apache-2.0",
    }


def test_a_folder_is_a_teacher_and_its_license_is_what_it_states(tmp_path: Path) -> None:
    network = EDSR(channels=4, blocks=1, scale=2)
    network.name = "mine"
    networks.save(network, tmp_path / "free", license="cc0-1.0")
    networks.save(network, tmp_path / "silent")
    teachers = [load_teacher(tmp_path / folder, scale=2) for folder in ("free", "silent")]
    assert [(t.name, t.kind, t.scale, t.license) for t in teachers] == [
        ("mine", "network", 2, "cc0-1.0"),
        ("mine", "network", 2, None),
    ]
    assert teachers[0](patches(1)).shape == (1, 3, 40, 40)


def test_a_teacher_of_another_scale_is_refused_with_both_scales(tmp_path: Path) -> None:
    networks.save(EDSR(channels=4, blocks=1, scale=2), tmp_path)
    with pytest.raises(NetworkError, match="is an x2 network, but x4 was requested"):
        load_teacher(tmp_path, scale=4)
    with pytest.raises(NetworkError, match="x3, only edsr-small-x4"):
        load_teacher("edsr-small", scale=3)


def test_an_unknown_teacher_is_refused() -> None:
    with pytest.raises(NetworkError, match="no network 'bicubik'"):
        load_teacher("bicubik", scale=4)


@pytest.mark.parametrize("size", [(1, 1), (3, 20), (16, 24)])
def test_sides_are_mirrored_until_the_network_can_take_them(size: tuple[int, int]) -> None:
    lr = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    shown: list[Tensor] = []

    def network(x: Tensor) -> Tensor:
        shown.append(x)
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    hr = upscale(network, lr, margin=4, multiple=16)
    assert torch.equal(hr, lr.repeat_interleave(2, 2).repeat_interleave(2, 3))
    height, width = shown[0].shape[2:]
    assert (height % 16, width % 16) == (0, 0)
    below, right = height - size[0] - 4, width - size[1] - 4
    assert 4 <= below < 20
    assert 4 <= right < 20
    mirrored = np.pad(lr.numpy(), ((0, 0), (0, 0), (4, below), (4, right)), mode="symmetric")
    np.testing.assert_array_equal((shown[0] * 255).round().numpy(), mirrored)


# Memory


def short_of_memory(room: int, error: Exception) -> tuple[Teacher, list[int]]:
    """A teacher for x2 whose memory holds `room` patches, and the sizes of the batches that it was given."""
    sizes: list[int] = []

    def answer(lr: Tensor) -> Tensor:
        sizes.append(len(lr))
        if len(lr) > room:
            raise error
        return lr.repeat_interleave(2, 2).repeat_interleave(2, 3)

    return Teacher("large", "module", 2, None, None, answer), sizes


OUT_OF_MEMORY = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_a_batch_that_does_not_fit_is_halved_and_so_are_the_next_ones(error: Exception) -> None:
    teacher, sizes = short_of_memory(3, error)
    lr = torch.arange(16 * 48, dtype=torch.int).remainder(251).byte().view(16, 3, 4, 4)
    expected = lr.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(teacher(lr), expected)
    assert sizes == [16, 8, 4] + [2] * 8
    assert torch.equal(teacher(lr[:5]), expected[:5])
    assert sizes[11:] == [2, 2, 1]


def test_a_patch_that_does_not_fit_alone_is_one_sentence() -> None:
    teacher, sizes = short_of_memory(0, OUT_OF_MEMORY[0])
    with pytest.raises(NetworkError, match="teacher large runs out of memory on a single patch of 4 x 4 pixels"):
        teacher(patches(3, size=4))
    assert sizes == [3, 1]


def test_other_errors_of_a_teacher_are_not_hidden() -> None:
    teacher, sizes = short_of_memory(0, RuntimeError("size mismatch"))
    with pytest.raises(RuntimeError, match="size mismatch"):
        teacher(patches(3, size=4))
    assert sizes == [3]


def test_an_empty_batch_is_an_empty_batch() -> None:
    teacher, _ = short_of_memory(1, MemoryError())
    assert teacher(torch.zeros(0, 3, 4, 4, dtype=torch.uint8)).shape == (0, 3, 8, 8)

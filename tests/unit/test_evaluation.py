"""Pairs from folders, and PSNR and SSIM over a test set."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

import idc_hub
from idc_hub import networks
from idc_hub.errors import ImageError, RecipeError
from idc_hub.images.files import write_png
from idc_hub.images.metrics import Protocol, ssim
from idc_hub.images.resize import imresize, mod_crop
from idc_hub.networks.edsr import EDSR
from idc_hub.networks.foreign import Foreign
from idc_hub.networks.teachers import load_teacher
from idc_hub.training.evaluation import evaluate, save_result
from idc_hub.training.pairs import read_pairs

RGB, Y = Protocol("rgb", border=4, scale=4), Protocol("y", border=4, scale=4)
BICUBIC_RGB, BICUBIC_Y = (f"{protocol}, upscaled by imresize" for protocol in (RGB, Y))
ROUNDED = 5.1e-5  # of a figure that is kept to four places
TIPPED = 3e-4  # the same, and a few of the image's pixels that were nearly a half and are rounded the other way


@pytest.fixture
def testset(tmp_path: Path) -> Path:
    """Two crops of a photograph, one of them gray and neither a multiple of 4."""
    folder = tmp_path / "Set2"
    folder.mkdir()
    write_png(folder / "face.png", data.astronaut()[60:129, 180:253])
    Image.fromarray(data.camera()[60:130, 180:251]).save(folder / "camera.png")
    return folder


def hand_psnr(sr: np.ndarray, hr: np.ndarray) -> float:
    """RGB, border 4."""
    error = (sr[4:-4, 4:-4].astype(float) - hr[4:-4, 4:-4].astype(float)) ** 2
    return 20 * np.log10(255) - 10 * np.log10(error.sum() / error.size)


def test_pairs_are_cropped_rgb_and_shrunk_by_imresize(testset: Path) -> None:
    pairs = dict(read_pairs(testset, 4))
    assert list(pairs) == ["camera.png", "face.png"]
    lr, hr = pairs["face.png"]
    np.testing.assert_array_equal(hr, data.astronaut()[60:128, 180:252])
    np.testing.assert_array_equal(lr, imresize(hr, 1 / 4))
    lr, hr = pairs["camera.png"]
    assert (lr.shape, hr.shape) == ((17, 17, 3), (68, 68, 3))
    np.testing.assert_array_equal(hr, np.repeat(data.camera()[60:128, 180:248, None], 3, 2))


def test_bicubic_is_measured_as_by_hand(testset: Path) -> None:
    result = evaluate(load_teacher("bicubic", scale=4), testset, [RGB, Y])
    assert (result["testset"], result["images"]) == ("Set2", 2)
    assert list(result["protocols"]) == [BICUBIC_RGB, BICUBIC_Y]

    rgb = result["protocols"][BICUBIC_RGB]
    psnrs, ssims = [], []
    for name, (lr, hr) in read_pairs(testset, 4):
        sr = imresize(lr, 4)
        psnrs.append(hand_psnr(sr, hr))
        ssims.append(ssim(sr, hr, RGB))
        by_hand = {"psnr": psnrs[-1], "ssim": ssims[-1]}
        assert rgb["per_image"][name] == pytest.approx(by_hand, rel=0, abs=ROUNDED)
    assert rgb["psnr"] == pytest.approx((psnrs[0] + psnrs[1]) / 2, rel=0, abs=ROUNDED)
    assert rgb["ssim"] == pytest.approx((ssims[0] + ssims[1]) / 2, rel=0, abs=ROUNDED)
    # of a gray image, Y is RGB times (235 - 16) / 255
    gray = result["protocols"][BICUBIC_Y]["per_image"]["camera.png"]["psnr"] - rgb["per_image"]["camera.png"]["psnr"]
    assert gray == pytest.approx(20 * np.log10(255 / 219), abs=2e-4)


def test_a_network_sees_the_whole_image_and_nothing_around_it(testset: Path) -> None:
    torch.manual_seed(0)
    network = EDSR(channels=4, blocks=1, scale=4)
    result = evaluate(network, testset, [RGB])["protocols"][str(RGB)]
    for name, (lr, hr) in read_pairs(testset, 4):
        with torch.no_grad():
            output = network(torch.from_numpy(lr).permute(2, 0, 1)[None].float() / 255)
        sr = np.floor(np.clip(output[0].permute(1, 2, 0).numpy(), 0, 1) * 255 + 0.5).astype(np.uint8)
        assert result["per_image"][name]["psnr"] == pytest.approx(hand_psnr(sr, hr), rel=0, abs=TIPPED)


@pytest.mark.parametrize("tile", [None, 16])
def test_one_set_of_weights_has_one_psnr_whichever_way_it_is_named(
    tile: int | None, testset: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = "from idc_hub.networks import load\ndef build(scale=4):\n    return load('edsr-small', scale=scale)\n"
    (tmp_path / "same_weights.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    results = [idc_hub.evaluate(name, testset, tile=tile) for name in ("edsr-small", "same_weights:build")]
    assert list(results[0].protocols) == list(results[1].protocols)
    for name, table in results[0].protocols.items():
        assert "mirrored" not in name
        for image, figures in table["per_image"].items():
            assert results[1].protocols[name]["per_image"][image] == pytest.approx(figures, rel=0, abs=TIPPED)
    assert results[0].sha256 == results[1].sha256


class Windowed(torch.nn.Module):
    """Repeats pixels; needs sides that are multiples of 8."""

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        assert lr.shape[2] % 8 == lr.shape[3] % 8 == 0
        return lr.repeat_interleave(4, 2).repeat_interleave(4, 3)


def test_a_foreign_network_of_windows_is_measured_whole_and_in_tiles(testset: Path) -> None:
    network = Windowed()
    foreign = Foreign("windowed", 4, network, network, None, multiple=8)
    results = [evaluate(foreign, testset, [RGB], tile=tile)["protocols"][str(RGB)] for tile in (None, 8, 16)]
    for name, (lr, hr) in read_pairs(testset, 4):
        expected = hand_psnr(lr.repeat(4, 0).repeat(4, 1), hr)
        for result in results:
            assert result["per_image"][name]["psnr"] == pytest.approx(expected, rel=0, abs=ROUNDED)
    with pytest.raises(RecipeError, match="windowed needs tiles whose side is a multiple of 8, not 20"):
        evaluate(foreign, testset, [RGB], tile=20)


def test_what_a_teacher_does_otherwise_is_in_the_protocol(testset: Path) -> None:
    teacher = load_teacher("edsr-small", scale=4)
    (name,) = evaluate(teacher, testset, [RGB])["protocols"]
    assert name == "x4, RGB, border 4, 8-bit, 8 LR pixels mirrored around"
    with pytest.raises(RecipeError, match="--tile is for networks: bicubic upscales an image at once"):
        evaluate(load_teacher("bicubic", scale=4), testset, [RGB], tile=64)


def test_a_set_is_read_whole_before_the_first_image_is_upscaled(testset: Path) -> None:
    (testset / "last.png").write_bytes(b"no image")

    def network(lr: torch.Tensor) -> torch.Tensor:
        pytest.fail("upscaled")

    with pytest.raises(ImageError, match=r"last\.png"):
        evaluate(Foreign("none", 4, Windowed(), network, None), testset, [RGB])


def test_the_digest_tells_given_from_made_lr_and_names_no_place(testset: Path, tmp_path: Path) -> None:
    (tmp_path / "moved" / "Set2").mkdir(parents=True)
    (tmp_path / "LR").mkdir()
    for path in testset.iterdir():
        (tmp_path / "moved" / "Set2" / path.name).write_bytes(path.read_bytes())
    for name, (lr, _) in read_pairs(testset, 4):
        write_png(tmp_path / "LR" / name, 255 - lr)
    bicubic = load_teacher("bicubic", scale=4)
    made, moved, given = (
        evaluate(bicubic, folder, [RGB], lr_location=lr)
        for folder, lr in ((testset, None), (tmp_path / "moved" / "Set2", None), (testset, tmp_path / "LR"))
    )
    assert made == moved
    assert given["sha256"] != made["sha256"]
    assert (given["lr_given"], made["lr_given"]) == (True, False)
    assert str(tmp_path) not in json.dumps(given)


def test_tiles_that_overlap_enough_change_nothing(testset: Path) -> None:
    network = networks.load("edsr-small")
    tiled, whole = (evaluate(network, testset, [RGB], tile=tile)["protocols"][str(RGB)] for tile in (16, None))
    assert tiled["per_image"].keys() == whole["per_image"].keys()
    for name, figures in tiled["per_image"].items():
        assert figures == pytest.approx(whole["per_image"][name], rel=0, abs=TIPPED)


def test_the_lr_images_of_the_folder_are_what_is_upscaled(testset: Path, tmp_path: Path) -> None:
    small = tmp_path / "LR"
    small.mkdir()
    for name, (lr, _) in read_pairs(testset, 4):
        write_png(small / name, 255 - lr)
    result = evaluate(load_teacher("bicubic", scale=4), testset, [RGB], lr_location=small)
    for name, (lr, hr) in read_pairs(testset, 4):
        measured = result["protocols"][f"{RGB}, given LR, upscaled by imresize"]["per_image"][name]["psnr"]
        assert measured == pytest.approx(hand_psnr(imresize(255 - lr, 4), hr), abs=1e-4)


def test_rgb_and_luma_stand_side_by_side_at_every_border(testset: Path) -> None:
    protocols = [Protocol(channel, border, 4) for border in (2, 4) for channel in ("rgb", "y")]
    together = evaluate(load_teacher("bicubic", scale=4), testset, protocols)
    for protocol in protocols:
        alone = evaluate(load_teacher("bicubic", scale=4), testset, [protocol])
        name = f"{protocol}, upscaled by imresize"
        assert together["protocols"][name] == alone["protocols"][name]
    psnrs = [table["psnr"] for table in together["protocols"].values()]
    assert len(set(psnrs)) == 4


def test_results_stay_with_the_weights_that_reached_them(tmp_path: Path) -> None:
    def result(testset: str, psnr: float, *, sha256: str = "", protocol: Protocol = Y) -> dict:
        table = {"psnr": psnr, "ssim": 0.5, "per_image": {}}
        facts = {"testset": testset, "sha256": sha256 or testset, "images": 1, "lr_given": protocol.lr_given}
        return facts | {"protocols": {str(protocol): table}}

    def kept() -> list[tuple[str, float]]:
        facts = json.loads((tmp_path / "results.json").read_text())
        assert facts["weights_sha256"] == networks.weights_sha256(tmp_path)
        return [(entry["testset"], entry["protocols"][str(Y)]["psnr"]) for entry in facts["results"]]

    networks.save(EDSR(channels=4, blocks=1, scale=4), tmp_path)
    for testset, psnr in (("Set5", 30.0), ("Set14", 27.0), ("Set5", 31.0)):
        save_result(tmp_path, result(testset, psnr))
    assert kept() == [("Set14", 27.0), ("Set5", 31.0)]

    # Other images of the same name, another protocol, and given LR replace nothing.
    save_result(tmp_path, result("Set5", 25.0, sha256="other"))
    save_result(tmp_path, result("Set5", 26.0, protocol=RGB))
    save_result(tmp_path, result("Set5", 31.5, protocol=replace(Y, lr_given=True)))
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [
        (entry["testset"], name, table["psnr"]) for entry in results for name, table in entry["protocols"].items()
    ] == [
        ("Set14", str(Y), 27.0),
        ("Set5", str(Y), 31.0),
        ("Set5", str(RGB), 26.0),
        ("Set5", str(Y), 25.0),
        ("Set5", f"{Y}, given LR", 31.5),
    ]
    networks.save(EDSR(channels=4, blocks=1, scale=4), tmp_path)
    save_result(tmp_path, result("Set14", 20.0))
    assert kept() == [("Set14", 20.0)]


# Conformance: figures that others have printed


@pytest.fixture
def luma_testset(shared: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A test set as the literature before RGB networks used it: nothing but Y, rounded to 8 bits, from the start."""
    folder = tmp_path / request.param
    folder.mkdir()
    for path in (shared / "data" / "test" / request.param).glob("*.png"):
        image = Image.open(path)
        pixels = np.asarray(image)
        if image.mode != "L":
            pixels = np.floor(16.5 + pixels @ np.array([65.481, 128.553, 24.966]) / 255).astype(np.uint8)
        Image.fromarray(mod_crop(pixels, 4)).save(folder / path.name)
    return folder


@pytest.mark.parametrize(
    ("luma_testset", "published_psnr", "published_ssim"),
    [("Set5", 28.42, 0.8104), ("Set14", 26.00, 0.7027)],  # bicubic, x4, in VDSR, EDSR, ESRGAN and papers after them
    indirect=["luma_testset"],
)
def test_bicubic_gives_the_figures_of_the_literature(
    luma_testset: Path, published_psnr: float, published_ssim: float
) -> None:
    """RGB of a gray image is the gray image, so that the RGB protocol measures Y itself here."""
    result = evaluate(load_teacher("bicubic", scale=4), luma_testset, [RGB])["protocols"][BICUBIC_RGB]
    assert result["psnr"] == pytest.approx(published_psnr, abs=0.01)
    assert result["ssim"] == pytest.approx(published_ssim, abs=0.0015)


def test_y_of_an_enlarged_rgb_image_is_close_to_an_enlarged_y(shared: Path) -> None:
    """What networks are measured by. On Set5 the published figure holds for it too; on Set14 it is 0.09 dB higher."""
    sets = shared / "data" / "test"
    result = evaluate(
        load_teacher("bicubic", scale=4), sets / "Set5", [Y], lr_location=sets / "LR_bicubic_x4" / "Set5"
    )["protocols"][f"{Y}, given LR, upscaled by imresize"]
    assert result["psnr"] == pytest.approx(28.42, abs=0.02)
    assert result["ssim"] == pytest.approx(0.8104, abs=0.001)


def test_the_bundled_network_holds_what_its_readme_promises(shared: Path) -> None:
    result = evaluate(networks.load("edsr-small"), shared / "data" / "test" / "Set5", [Y, RGB])["protocols"]
    readme = Path(networks.__file__).parent / "weights" / "edsr-small-x4" / "README.md"
    row = next(line for line in readme.read_text().splitlines() if line.startswith("| Set5"))
    promised = [float(cell) for cell in row.replace("/", "|").split("|")[2:6]]
    measured = [value for p in (Y, RGB) for value in (result[str(p)]["psnr"], result[str(p)]["ssim"])]
    assert measured[::2] == pytest.approx(promised[::2], abs=0.006)
    assert measured[1::2] == pytest.approx(promised[1::2], abs=0.0006)
    assert measured[0] >= 30.3

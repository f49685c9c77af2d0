"""What the commands say of sources that hold more than photographs."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import idc_hub
from idc_cli.main import main
from idc_hub.dataset.card_section import _provenance
from idc_hub.dataset.manifest import Manifest
from idc_hub.errors import ImageError, LeftOutWarning
from idc_hub.images.files import write_png
from idc_hub.images.metrics import Protocol, psnr
from idc_hub.images.resize import imresize
from idc_hub.recipe import Recipe, Source
from idc_hub.runs.worker import find_photographs
from idc_hub.training.pairs import read_data, read_pairs

Result = tuple[int, str, str]


@pytest.fixture
def idc(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs `idc` with arguments: exit code, stdout, stderr."""

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["idc", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


def photograph(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (64, 80, 3), dtype=np.uint8)


@pytest.fixture
def div2k(tmp_path: Path) -> Path:
    """One photograph in DIV2K's layout. LR is one gray, so that whatever is made of it shows where it came from."""
    root = tmp_path / "DIV2K"
    for folder in ("DIV2K_train_HR", "DIV2K_train_LR_bicubic/X4"):
        (root / folder).mkdir(parents=True)
    write_png(root / "DIV2K_train_HR" / "0001.png", photograph(1))
    write_png(root / "DIV2K_train_LR_bicubic" / "X4" / "0001x4.png", np.full((16, 20, 3), 90, np.uint8))
    return root


def test_every_way_to_a_source_refuses_lr_beside_hr(div2k, idc, tmp_path):
    refusal = f"give the folder of the HR images, {div2k}/DIV2K_train_HR."
    recipe = Recipe.from_dict({"name": "mine", "source": {"path": str(div2k)}})
    for use in (lambda: find_photographs(recipe, progress=False), lambda: read_data(str(div2k), 4)):
        with pytest.raises(ImageError) as caught:
            use()
        assert str(caught.value).endswith(refusal)
    for command in (
        ("condense", "small-x4", f"source.path={div2k}", "--run-dir", tmp_path / "run"),
        ("select", "random", div2k, "--run-dir", tmp_path / "run"),
        ("train", "edsr-small", "--data", div2k, "--out", tmp_path / "network"),
        ("evaluate", "bicubic", "--testset", div2k),
    ):
        code, out, err = idc(*command)
        assert (code, out) == (1, "")
        assert err.endswith(f"{refusal}\n")
    assert sorted(tmp_path.iterdir()) == [div2k]


def test_lr_images_may_have_the_scale_in_their_names(div2k):
    given = div2k / "DIV2K_train_LR_bicubic" / "X4"
    ((lr, hr),) = dict(read_pairs(div2k / "DIV2K_train_HR", 4, lr_location=given)).values()
    assert (lr == 90).all()
    assert np.array_equal(hr, photograph(1))
    with pytest.raises(ImageError, match=r"0001\.png"):
        read_pairs(div2k / "DIV2K_train_HR", 2, lr_location=given)


def test_evaluate_chooses_hr_by_a_pattern_and_names_what_it_leaves_out(tmp_path, idc):
    folder = tmp_path / "image_SRF_4"
    folder.mkdir()
    for number in (1, 2):
        write_png(folder / f"img_00{number}_SRF_4_HR.png", photograph(number))
        write_png(folder / f"img_00{number}_SRF_4_LR.png", photograph(9)[:16, :20])
    (folder / "readme_HR.txt").write_text("")
    code, out, err = idc("evaluate", "bicubic", "--testset", folder, "--include", "*_HR.*", "--border", "4", "--json")
    assert code == 0, err
    assert f"warning: 1 file is not a photograph and is left out of {folder}: readme_HR.txt." in err
    result = json.loads(out)
    assert (result["images"], result["left_out"]) == (2, ["readme_HR.txt"])
    protocol = Protocol("y", 4, 4, upscaling="upscaled by imresize")
    expected = [psnr(imresize(imresize(photograph(n), 1 / 4), 4), photograph(n), protocol) for n in (1, 2)]
    assert result["protocols"][str(protocol)]["psnr"] == pytest.approx(np.mean(expected), abs=1e-3)


def test_options_of_a_source_become_its_section(monkeypatch, idc):
    seen = {}

    def note(verb: str) -> Callable[..., None]:
        def call(*arguments: object, **options: object) -> None:
            seen[verb] = arguments
            raise ImageError("seen")

        return call

    for verb in ("select", "train", "evaluate"):
        monkeypatch.setattr(idc_hub, verb, note(verb))
    options = ("--split", "train[:9]", "--config", "x4", "--column", "hr", "--include", "a*", "--exclude", "b*")
    expected = Source(path="org/x", split="train[:9]", config="x4", column="hr", include=("a*",), exclude=("b*",))
    idc("select", "random", "org/x", *options)
    assert seen["select"][0].source == expected
    idc("train", "edsr-small", "--data", "org/x", "--out", "o", *options)
    assert seen["train"][1] == expected
    idc("evaluate", "bicubic", "--testset", "org/x", *options)
    assert seen["evaluate"][1] == expected
    idc("evaluate", "bicubic", "--testset", "org/x")
    assert seen["evaluate"][1] == "org/x"


def test_find_photographs_names_what_it_leaves_out(tmp_path):
    write_png(tmp_path / "a.png", np.tile(photograph(1), (5, 4, 1)))
    (tmp_path / "labels.mat").write_bytes(b"")
    recipe = Recipe.from_dict({"name": "mine", "source": {"path": str(tmp_path)}})
    with pytest.warns(LeftOutWarning, match=r"labels\.mat"):
        instances, left_out = find_photographs(recipe, progress=False)
    assert [instance.id for instance in instances] == ["a"]
    assert left_out == ["labels.mat"]


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        (
            {"gray converted to RGB": 1200, "color profile ignored": 2},
            "gray converted to RGB: 1,200, color profile ignored: 2",
        ),
        ({}, None),
        ("<b>", None),
        ({"x": "<b>"}, None),
    ],
)
def test_the_card_counts_conversions(counts, told):
    manifest = Manifest(
        name="x",
        scale=4,
        patch_size=8,
        lr_recipe_hash="0" * 64,
        lr_digest="0" * 64,
        instances=1,
        patches=1,
        packages={},
        condensation={"photographs": 1, "conversions": counts},
    )
    assert dict(_provenance(manifest, {}, None)).get("Conversions") == told

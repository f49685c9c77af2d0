"""NaN and Inf, from a teacher, an extractor, weights or an optimization: never published, always named."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import idc_hub
from idc_hub import networks
from idc_hub.condensation.condense import condense_instance
from idc_hub.condensation.real_side import RealSide
from idc_hub.condensation.state import State, Watch
from idc_hub.dataset import gate
from idc_hub.dataset.card import write_card
from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.dataset.judgment import FIGURES, judge, table
from idc_hub.dataset.manifest import Manifest
from idc_hub.dataset.parquet import read_rows, write_rows
from idc_hub.dataset.regenerate import regenerate
from idc_hub.errors import DivergedError, ImageError, IncompleteError, NetworkError, RecipeError, RunError
from idc_hub.hub.releases import NetworkRelease
from idc_hub.images.files import decode_png, encode_png, write_png
from idc_hub.images.metrics import Protocol
from idc_hub.networks import teachers
from idc_hub.networks.edsr import EDSR
from idc_hub.networks.extractors import load_extractor
from idc_hub.networks.foreign import infinite_as_nan, load_foreign
from idc_hub.networks.published import import_weights
from idc_hub.networks.teachers import Teacher, load_teacher
from idc_hub.recipe import Recipe
from idc_hub.runs.run import Run
from idc_hub.training.evaluation import evaluate
from idc_hub.training.pairs import read_version
from tests.unit.test_condense import SmallNetwork, photograph, recipe
from tests.unit.test_gate import recipe as gate_recipe
from tests.unit.test_pieces import Asked

MakeTeacher = Callable[..., Teacher]

MODULE = '''
import torch
from torch import nn


class Overflows(nn.Module):
    """Enlarges, and overflows where a patch is bright."""

    def __init__(self, scale, value):
        super().__init__()
        self.scale, self.value = scale, value

    def forward(self, x):
        y = x.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)
        return torch.where(x.mean((1, 2, 3), keepdim=True) > 0.5, self.value, y)


def build_nan(scale=4):
    return Overflows(scale, float("nan"))


def build_inf(scale=4):
    return Overflows(scale, float("inf"))


class Late(nn.Module):
    """Features that are NaN from the fourth step on."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.steps = 0

    def forward(self, x):
        in_step = x.requires_grad and torch.is_grad_enabled()
        self.steps += in_step
        return self.conv(x * (float("nan") if in_step and self.steps > 4 else 1))  # the first is a trial


def build_late(scale=4):
    torch.manual_seed(0)
    return Late()
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with the networks above; it can be imported here and by processes of its own."""
    (tmp_path / "overflowing.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "overflowing", raising=False)
    return "overflowing"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A crop of a photograph with 16 windows."""
    spec = find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    folder = tmp_path_factory.mktemp("photographs")
    pixels = np.asarray(Image.open(Path(spec.origin).parent / "data" / "coffee.png").convert("RGB"))
    write_png(folder / "coffee.png", pixels[60:316, 150:406])
    return folder


def batch(*values: int, side: int = 8) -> Tensor:
    """Gray patches, one of each value."""
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, side, side).contiguous()


# Teachers


@pytest.mark.parametrize("build", ["build_nan", "build_inf"])
def test_a_patch_that_is_not_finite_is_named_with_its_teacher(build: str, module: str) -> None:
    teacher = load_teacher(f"{module}:{build}", scale=2)
    assert teacher(batch(100, 90)).float().mean() == pytest.approx(95)
    keys = [("bridge", 0), ("bridge", 1), ("cat", 0)]
    with pytest.raises(NetworkError, match=r"The teacher overflowing-build-.* gave NaN or Inf for patch_index 1 of "):
        teacher.make_hr(keys, batch(10, 200, 20))
    with pytest.raises(
        NetworkError, match=r"for patch_index 1 of instance_id bridge, patch_index 0 of instance_id cat\."
    ):
        teacher.make_hr(keys, batch(10, 200, 220))
    with pytest.raises(NetworkError, match=r"for patch 0, patch 1, patch 2 and 2 more\."):
        teacher(batch(*[200] * 5))
    teacher.largest_batch = 2  # as after a batch that did not fit into memory
    with pytest.raises(NetworkError, match=r"for patch 3\."):
        teacher(batch(1, 2, 3, 200, 4))


def test_a_margin_that_is_cut_off_need_not_be_finite() -> None:
    def network(x: Tensor) -> Tensor:
        hr = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        hr[..., 0] = math.nan
        return hr

    assert torch.equal(teachers.upscale(network, batch(7), margin=8, device=torch.device("cpu")), batch(7, side=16))


def test_an_hr_version_that_fails_leaves_the_tree_as_it_was(repo: Path, module: str) -> None:
    regenerate(CondensedSet(repo), load_teacher("bicubic", scale=2), "bicubic")
    before = {path: path.read_bytes() for path in repo.rglob("*") if path.is_file()}
    with pytest.raises(NetworkError, match=r"gave NaN or Inf for patch_index \d of instance_id "):
        regenerate(CondensedSet(repo), load_teacher(f"{module}:build_nan", scale=2), "overflowing")
    assert {path: path.read_bytes() for path in repo.rglob("*") if path.is_file()} == before


def test_a_bad_version_that_was_deleted_may_be_made_by_another_teacher(repo: Path, make_teacher: MakeTeacher) -> None:
    regenerate(CondensedSet(repo), make_teacher("repeat"), "mine")
    with pytest.raises(RecipeError, match="choose another name"):
        regenerate(CondensedSet(repo), make_teacher("darken"), "mine")
    shutil.rmtree(repo / "data" / "mine")
    assert regenerate(CondensedSet(repo), make_teacher("darken"), "mine").written


def test_what_is_clamped_elsewhere_keeps_its_inf_as_nan() -> None:
    network = nn.Conv2d(3, 3, 1, bias=False)
    with torch.no_grad():
        network.weight.fill_(1e30)
    x = torch.stack([torch.full((3, 2, 2), 1e-30), torch.full((3, 2, 2), 1e30)])
    plain = network(x)
    infinite_as_nan(network)
    marked = network(x).clamp(0, 1)
    assert torch.equal(marked[0], plain[0].clamp(0, 1))
    assert marked[1].isnan().all()


def test_an_image_that_is_not_finite_is_named_with_its_network(module: str, tmp_path: Path) -> None:
    for name, value in (("dark", 40), ("bright", 200)):
        write_png(tmp_path / f"{name}.png", np.full((64, 64, 3), value, np.uint8))
    protocols = [Protocol("rgb", border=4, scale=4)]
    with pytest.raises(NetworkError, match=r"The teacher overflowing-build-nan gave NaN or Inf for bright\.png\."):
        evaluate(load_teacher(f"{module}:build_nan", scale=4), tmp_path, protocols)

    class Breaks(EDSR):
        def forward(self, lr: Tensor) -> Tensor:
            return super().forward(lr) * (math.inf if lr.mean() > 0.5 else 1)

    network = Breaks(channels=4, blocks=1, scale=4)
    network.name = "breaks"
    for tile in (None, 32):
        with pytest.raises(NetworkError, match=r"The network breaks gave NaN or Inf for bright\.png\."):
            evaluate(network, tmp_path, protocols, tile=tile)


def test_a_pipeline_whose_latents_overflow_gives_no_image(tmp_path: Path) -> None:
    """A quantizer takes some code for NaN, and the pipelines clamp: neither may hide it."""
    pytest.importorskip("diffusers")
    from tests.unit.test_diffusion_teachers import latent_pipeline

    for part in ("unet", "decoder"):
        pipeline = latent_pipeline()
        weights = (pipeline.unet if part == "unet" else pipeline.vqvae.decoder).conv_out
        with torch.no_grad():
            weights.weight.fill_(3e38)
        pipeline.save_pretrained(tmp_path / part)
        teacher = load_teacher(tmp_path / part, scale=2, steps=2)
        with pytest.raises(NetworkError, match=rf"The teacher {part} gave NaN or Inf for patch 0"):
            teacher(batch(30, 90))


# Weights


def poisoned(folder: Path, *, value: float = math.nan, tensors: int = 5) -> list[str]:
    """Put a number into the last value of some weights of a saved network; returns the tensors' names."""
    weights = load_file(folder / "model.safetensors")
    names = list(dict(networks.load(folder, scale=None).named_parameters()))[:tensors]
    for name in names:
        weights[name].view(-1)[-1] = value
    save_file(weights, folder / "model.safetensors")
    return names


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused_wherever_they_are_loaded(value: float, tmp_path: Path) -> None:
    folder = tmp_path / "net"
    networks.save(EDSR(channels=4, blocks=2, scale=4), folder)
    names = poisoned(folder, value=value)
    sentence = rf"{folder}/model\.safetensors has weights that are NaN or Inf, in {', '.join(names[:3])} and 2 more\."
    for load in (
        lambda: networks.load(folder),
        lambda: load_teacher(folder, scale=4),
        lambda: load_extractor(folder, "body", scale=4, size=16),
        lambda: NetworkRelease(folder),
    ):
        with pytest.raises(NetworkError, match=sentence):
            load()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_that_are_not_finite_are_not_imported(suffix: str, tmp_path: Path) -> None:
    weights = networks.create("edsr-small").state_dict()
    name = list(weights)[3]
    weights[name].view(-1)[0] = math.inf
    file = tmp_path / f"bad{suffix}"
    torch.save(weights, file) if suffix == ".pth" else save_file(weights, file)
    with pytest.raises(NetworkError, match=rf"bad{suffix} has weights that are NaN or Inf, in {name}\."):
        import_weights(file, "edsr-small", tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    network = EDSR(channels=4, blocks=1, scale=4)
    with torch.no_grad():
        next(network.parameters()).fill_(math.nan)
    with pytest.raises(NetworkError, match="NaN or Inf"):
        networks.save(network, tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_foreign_weights_that_are_not_finite_are_refused_but_masks_may_be_infinite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weighted.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def build(scale, value, buffer):\n"
        "    net = nn.Sequential(nn.Conv2d(3, 3 * scale**2, 1), nn.PixelShuffle(scale))\n"
        "    nn.init.constant_(net[0].bias, value)\n"
        "    net.register_buffer('mask', torch.tensor([0.0, buffer]))\n"
        "    return net\n"
        "def bad(scale): return build(scale, float('nan'), 0.0)\n"
        "def bad_buffer(scale): return build(scale, 0.0, float('nan'))\n"
        "def good(scale): return build(scale, 0.0, -float('inf'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NetworkError, match=r"weighted:bad has weights that are NaN or Inf, in 0\.bias"):
        load_teacher("weighted:bad", scale=2)
    with pytest.raises(NetworkError, match=r"weighted:bad_buffer has weights that are NaN or Inf, in mask"):
        load_foreign("module", "weighted:bad_buffer", tmp_path, scale=2)
    assert load_teacher("weighted:good", scale=2)(batch(9)).shape == (1, 3, 16, 16)


# Condensation


class Sick(SmallNetwork):
    """An extractor that passes a gradient of NaN back from one step on, while what it gives stays finite."""

    def __init__(self, step: int, value: float = math.nan) -> None:
        super().__init__()
        self.steps, self.step, self.value = 0, step, value

    def features(self, lr: Tensor, layer: int | str) -> Tensor:
        features = super().features(lr, layer)
        if lr.requires_grad and torch.is_grad_enabled():
            self.steps += 1
            if self.steps >= self.step:
                features.register_hook(lambda gradient: gradient * self.value)
        return features


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("step", "kept"), [(1, []), (6, []), (8, [7]), (9, [7]), (14, [7]), (15, [7, 14]), (20, [7, 14])]
)
def test_a_gradient_that_is_not_finite_fails_the_photograph_and_spoils_no_checkpoint(
    step: int, kept: list[int], value: float
) -> None:
    patches = photograph()
    saved: list[dict[str, Tensor]] = []

    def keep(state: State) -> None:
        saved.append({name: tensor.clone() for name, tensor in state.to_tensors().items()})

    # A log line at step 50 never comes, so that nothing but the checkpoints and the end can notice.
    spec = recipe(workers__log_every=50, loss__group_weight=0, loss__pair_weight=0)
    with pytest.raises(DivergedError, match=f"of photo has NaN or Inf from step {step} of 20 on") as caught:
        condense_instance(patches, 2, Sick(step, value), spec, "photo", checkpoint=keep)
    assert f"after step {kept[-1] if kept else 0}" in str(caught.value)
    assert "a lower optimizer.learning_rate (it is 0.01)" in str(caught.value)
    assert [int(state["step"]) for state in saved] == kept
    assert all(tensor.isfinite().all() for state in saved for tensor in state.values())


def test_with_events_and_log_lines_the_step_is_the_same_and_nothing_else_is_raised() -> None:
    patches = photograph()
    for step in (1, 3, 5, 12):
        with pytest.raises(DivergedError, match=f"from step {step} of 20 on"):
            condense_instance(patches, 2, Sick(step), recipe(), "photo")
    exact = recipe(features__precision="bf16")
    with pytest.raises(DivergedError, match=r"with features\.precision=fp32 and a lower"):
        condense_instance(patches, 2, Sick(3), exact, "photo")


def test_stopping_saves_no_state_that_is_not_finite() -> None:
    patches = photograph()
    saved: list[State] = []
    asked = iter([False] * 5 + [True])
    with pytest.raises(DivergedError):
        condense_instance(
            patches, 2, Sick(3), recipe(workers__log_every=50), "photo",
            checkpoint=saved.append, should_stop=lambda: next(asked),
        )  # fmt: skip
    assert saved == []


def test_moments_that_overflow_are_noticed() -> None:
    """A gradient of 1e25 is finite; its square is not, and Adam would never move again."""
    patches = photograph()
    spec = recipe(loss__group_weight=0, loss__pair_weight=0, loss__instance_weight=1e30, workers__log_every=50)
    saved: list[State] = []
    with pytest.raises(DivergedError, match="from step 7 of 20 on"):
        condense_instance(patches, 2, SmallNetwork(), spec, "photo", checkpoint=saved.append)
    assert saved == []


def test_watching_asks_the_device_for_nothing_between_two_looks() -> None:
    state = State.start(torch.rand(2, 3, 8, 8), 4)
    watch = Watch(state, recipe(), "photo")
    state.parameters.grad = torch.ones_like(state.parameters)
    with Asked() as asked:
        watch.note(torch.zeros(()))
    assert asked.found == []
    watch.check()
    state.adam["exp_avg_sq"][0, 0, 0, 0] = math.inf
    with pytest.raises(DivergedError):
        watch.check()


def test_features_of_real_patches_that_are_not_finite_name_the_patch() -> None:
    class Overflows(SmallNetwork):
        value = math.nan

        def features(self, lr: Tensor, layer: int | str) -> Tensor:
            features = super().features(lr, layer)
            features[lr.amax((1, 2, 3)) < 0.86] = self.value
            return features

    patches = photograph()
    patches[4] = patches[4].clamp(max=200)
    patches[:4], patches[5:] = patches[:4].clamp(min=230), patches[5:].clamp(min=230)
    with pytest.raises(NetworkError, match=r"on photo, for 1 of the 9 real patches, number 4 first\."):
        RealSide(patches, Overflows(), recipe(), "photo")
    Overflows.value = 1e30
    with pytest.raises(NetworkError, match="the statistics of all real patches: single features are too large"):
        RealSide(patches, Overflows(), recipe(), "photo")


def test_a_discrepancy_that_is_not_finite_is_not_recorded() -> None:
    class Fails(SmallNetwork):
        def features(self, lr: Tensor, layer: int | str) -> Tensor:
            # Two finished patches at a time, without a gradient: only at the very end.
            return super().features(lr, layer) * (math.nan if len(lr) == 2 and not lr.requires_grad else 1)

    patches = photograph()
    spec = recipe(loss__group_weight=0, loss__pair_weight=0)
    with pytest.raises(NetworkError, match="NaN or Inf on photo, for the finished patches or random"):
        condense_instance(patches, 2, Fails(), spec, "photo")


def test_a_run_names_the_photograph_and_the_next_run_begins_where_numbers_were(
    module: str, photographs: Path, tmp_path: Path
) -> None:
    spec = gate_recipe(photographs, initial="real").model_copy(deep=True)
    values = spec.model_dump(mode="json")
    values["features"] |= {"network": f"{module}:build_late", "layer": "conv", "weights_sha256": None}
    values["workers"] |= {"log_every": 50, "checkpoint_every": 2}
    late = Recipe.from_dict(values)
    # The second attempt continues after step 2, with a network that gives NaN by now.
    with pytest.raises(IncompleteError, match=r"coffee: DivergedError: .* has NaN or Inf from step 3 of 5 on"):
        idc_hub.condense(late, run_dir=tmp_path / "run", num_processes=1, progress=False)
    fails = [line["error"] for line in Run.open(tmp_path / "run").read_metrics("coffee") if line["event"] == "fail"]
    assert [re.findall(r"from step (\d) of", fail) for fail in fails] == [["4"], ["3"]]
    partial = load_file(tmp_path / "run" / "partial" / "coffee.safetensors")
    assert int(partial["step"]) == 2
    assert partial["patches"].isfinite().all()
    assert not list((tmp_path / "run" / "instances").iterdir())

    # What an earlier version saved after NaN is not continued.
    run = Run.open(tmp_path / "run")
    partial["patches"][0, 0, 0, 0] = math.nan
    run.write_partial(run.instances[0], partial)
    with pytest.raises(RunError, match=r"coffee\.safetensors holds NaN or Inf"):
        run.read_partial(run.instances[0])


def test_descriptors_that_are_not_finite_choose_nothing(module: str, photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "blind.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Blind(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.conv = nn.Conv2d(3, 4, 3, padding=1)\n"
        "    def forward(self, x):\n        return self.conv(torch.where(x.std() > 0, torch.nan, x))\n"
        "def build(scale):\n    return Blind()\n"
    )
    overrides = ["patches.size=16", "patches.stride=16", "features.network=blind:build", "features.layer=conv"]
    chosen = idc_hub.selection_recipe("herding", photographs, ratio=0.5, overrides=overrides)
    with pytest.raises(NetworkError, match="blind:build gives NaN or Inf on coffee"):
        idc_hub.select(chosen, run_dir=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


# The gate


@pytest.mark.parametrize("key", FIGURES)
@pytest.mark.parametrize(("value", "real"), [(math.nan, 0.1), (math.inf, 0.1), (0.1, math.nan), (math.nan, math.nan)])
def test_a_figure_that_is_not_finite_never_passes(key: str, value: float, real: float) -> None:
    verdict = judge({key: value}, [{key: real}])
    assert not verdict["passed"]
    assert verdict["figures"][key]["passed"] is False
    assert "is not a finite number" in verdict["warnings"][0]
    json.dumps(verdict, allow_nan=False)
    assert "not a number" in table(verdict["figures"])[0][1:3]


@pytest.mark.parametrize("key", [key for key, figure in FIGURES.items() if figure.at_most or figure.at_least])
def test_two_figures_near_0_are_no_failure(key: str) -> None:
    for value, real in ((3e-6, 1e-6), (1e-6, 3e-6), (0.0, 1e-6), (1e-6, 0.0)):
        assert judge({key: value}, [{key: real}])["passed"] or key == "chroma_over_luma"


def test_rounding_is_no_color_noise() -> None:
    """All but gray patches whose only detail is how their pixels were rounded."""
    from tests.unit.test_quality import figures

    def rounded(seed: int, spread: float) -> np.ndarray:
        random = np.random.default_rng(seed)
        return (100.5 + random.uniform(-0.5, 0.5, (6, 3, 16, 16)) * spread).astype(np.uint8)

    ours, theirs = rounded(0, 0.0), rounded(1, 0.02)
    ours[:, 0, ::5, ::5] += 1  # red dots of one level
    verdict = judge(figures(ours, theirs), [figures(theirs, theirs, np.arange(6))])
    assert verdict["figures"]["chroma_over_luma"]["passed"]


def test_black_patches_fail_on_either_side(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN as it was written before: every figure but those of the pixels' own range once let it pass."""
    spec = gate_recipe(photographs, initial="real", learning_rate=1e-9)
    idc_hub.condense(spec, run_dir=tmp_path / "run", num_processes=1, progress=False)
    run, bicubic = Run.open(tmp_path / "run"), load_teacher("bicubic", scale=4)
    assert gate.measure(run, CondensedSet(run.repo), "bicubic", bicubic)["passed"]
    folder = run.repo / "data" / "bicubic"
    rows = list(read_rows(folder))

    def black(png: bytes) -> bytes:
        return encode_png(np.zeros_like(decode_png(png)))

    write_rows(folder, [*rows[:-1], replace(rows[-1], hr_png=black(rows[-1].hr_png))])
    failed = gate.measure(run, CondensedSet(run.repo), "bicubic", bicubic)
    assert failed["warnings"][0].startswith(f"{FIGURES['residual'].label} is ")
    assert failed["warnings"][0].endswith("HR patches differ from their LR patches in content")
    assert not failed["figures"]["flat_hr"]["passed"]
    assert failed["figures"]["flat_hr"]["set"] == 1 / 16
    name = f"patch_index {rows[-1].patch_index} of instance_id coffee"
    with pytest.raises(ImageError, match=f"HR of {name} is of one color, and its LR is not"):
        list(read_version(CondensedSet(run.repo), 4))

    blackened = [replace(row, lr_png=black(row.lr_png), hr_png=black(row.hr_png)) for row in rows[:2]]
    write_rows(folder, [*blackened, *rows[2:]])
    failed = gate.measure(run, CondensedSet(run.repo), "bicubic", bicubic)
    assert failed["figures"]["flat"]["real"] == 0
    assert failed["figures"]["flat"]["set"] == 2 / 16
    assert not failed["figures"]["flat"]["passed"]


def test_a_figure_that_was_not_finite_fails_on_the_card_too(repo: Path) -> None:
    regenerate(CondensedSet(repo), load_teacher("bicubic", scale=2), "bicubic")
    manifest = Manifest.load(repo)
    manifest.condensation["quality"] = {"bicubic": {"held_out": {"set": None, "real": 0.1}}}
    manifest.save(repo)
    write_card(CondensedSet(repo))
    card = (repo / "README.md").read_text()
    assert "failed 1 of these checks" in card
    assert "held-out discrepancy cannot be judged" in card


# From the command line


def test_idc_says_it_and_exits_with_1(module: str, tmp_path: Path) -> None:
    testset = tmp_path / "bright"
    testset.mkdir()
    write_png(testset / "bright.png", np.full((64, 64, 3), 200, np.uint8))
    command = [sys.executable, "-m", "idc_cli.main", "evaluate", f"{module}:build_nan", "--testset", str(testset)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 1
    said = " ".join(result.stderr.split())
    assert said.startswith("error: The network overflowing-build-nan gave NaN or Inf for bright.png.")

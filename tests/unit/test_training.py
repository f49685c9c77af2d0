"""Training: the right crops, the right update, exact continuation, and a loss that falls."""

import hashlib
import json
import math
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from skimage import data
from torch import Tensor

from idc_hub import errors, networks
from idc_hub.errors import DivergedError, ImageError, IncompleteError, NetworkError, RecipeError
from idc_hub.images.files import encode_png
from idc_hub.images.resize import imresize
from idc_hub.networks.edsr import EDSR
from idc_hub.runs.progress import Progress
from idc_hub.training import loop as training
from idc_hub.training.crops import Batch, draw_batch, turned
from idc_hub.training.launch import train_network
from idc_hub.training.loop import learning_rate, train
from idc_hub.training.pairs import Pair, Pairs, StoredPair
from idc_hub.training.pixels import PixelFile, pixels_sha256, write_pixels
from idc_hub.training.prefetch import prefetch
from idc_hub.training.recipe import TrainingRecipe
from tests.unit.test_pieces import Asked
from tests.unit.test_tracking import stand_in_for_trackio


def tiny(seed: int = 0) -> EDSR:
    torch.manual_seed(seed)
    return EDSR(channels=8, blocks=1, scale=4)


@pytest.fixture(scope="module")
def photograph() -> dict[str, Pair]:
    hr = data.astronaut()[:256, 128:384]
    return {"astronaut": (imresize(hr, 1 / 4), hr)}


def stored(pairs: dict[str, Pair], scale: int = 4) -> Pairs:
    """The pairs as image files."""
    files = [StoredPair(name, encode_png(hr), encode_png(lr), f"LR of {name}") for name, (lr, hr) in pairs.items()]
    return Pairs(scale, len(files), lambda: iter(files), lr_given=True)


def recipe(**changes: Any) -> TrainingRecipe:
    """A short training without decay, so that its length changes nothing else."""
    settings = {"steps": 12, "batch_size": 2, "crop": 12, "learning_rate": 1e-3, "log_every": 1, "ema": 0.5}
    return TrainingRecipe(**(settings | {"decay": "milestones", "milestones": ()} | changes))


def weights(network: EDSR) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# Crops


def numbered_pair(scale: int, height: int, width: int) -> Pair:
    """An LR image whose pixels are all different, and HR where each of them is a block."""
    lr = np.zeros((height, width, 3), np.uint8)
    lr[..., 0], lr[..., 1] = np.mgrid[:height, :width]
    lr[..., 2] = 77
    return lr, lr.repeat(scale, 0).repeat(scale, 1)


def draw(pairs: list[Pair], *arguments: Any, **options: Any) -> Batch:
    named = {str(number): pair for number, pair in enumerate(pairs)}
    return draw_batch(named, list(named), *arguments, **options)


def as_seen(images: Tensor, turns: Tensor) -> np.ndarray:
    """The crops as the network gets them: uint8 [B, size, size, 3]."""
    return (turned(images, turns) * 255).round().byte().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_hr_crop_lies_on_the_lr_crop_in_every_orientation(scale: int) -> None:
    pairs = [numbered_pair(scale, 20, 31), numbered_pair(scale, 9, 9)]
    settings = recipe(batch_size=200, crop=8)
    batch = draw(pairs, settings, scale, step=1)
    lr, hr = as_seen(batch.lr, batch.turns), as_seen(batch.hr, batch.turns)
    assert lr.shape == (200, 8, 8, 3)
    np.testing.assert_array_equal(hr, lr.repeat(scale, 1).repeat(scale, 2))

    corners = set()
    for crop in lr.astype(int):
        rows, columns = crop[..., 0], crop[..., 1]
        top, left = rows.min(), columns.min()
        assert (rows.max() - top, columns.max() - left) == (7, 7), "a crop is a square piece of the image"
        corners.add((crop[0, 0, 0] == top, crop[0, 0, 1] == left, crop[0, 1, 0] == crop[0, 0, 0]))
    assert len(corners) == 8, "all 8 flips and rotations"
    assert {int(crop[..., 1].max()) for crop in lr} >= {8, 30}, "both images, up to their last column"
    assert int(lr[..., 0].max()) == 19, "and their last row"


def test_the_draws_are_those_that_the_shipped_weights_were_trained_with(photograph: dict[str, Pair]) -> None:
    """Image, top, left, quarter turns, mirror: in this order from one generator for each step."""
    settings = recipe(batch_size=16, seed=5)
    batch = draw([*photograph.values()] * 3, settings, 4, step=7)
    rng = np.random.default_rng((5, 7))
    for crop in as_seen(batch.lr, batch.turns):
        rng.integers(3)  # which image: all three are the same
        lr, _ = photograph["astronaut"]
        top, left = (rng.integers(side - 12 + 1) for side in lr.shape[:2])
        turns, mirror = int(rng.integers(4)), rng.integers(2)
        expected = np.rot90(lr[top : top + 12, left : left + 12], turns)
        np.testing.assert_array_equal(crop, expected[:, ::-1] if mirror else expected)


def test_what_a_step_draws_depends_on_seed_and_step_alone(photograph: dict[str, Pair]) -> None:
    draws = [
        draw([*photograph.values()], recipe(seed=seed), 4, step).lr for seed, step in ((0, 5), (0, 5), (0, 6), (1, 5))
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[3])


def test_shares_make_up_the_batch(photograph: dict[str, Pair]) -> None:
    settings = recipe(batch_size=6)
    whole = draw([*photograph.values()], settings, 4, step=1)
    for rank in range(3):
        share = draw([*photograph.values()], settings, 4, step=1, share=slice(rank, None, 3))
        for mine, all_of_it in zip(share, whole, strict=True):
            assert torch.equal(mine, all_of_it[rank::3])


def test_batches_are_drawn_ahead_and_come_in_order() -> None:
    drawn: list[int] = []
    enough = threading.Event()

    def draw(step: int) -> Batch:
        drawn.append(step)
        if len(drawn) >= 5:
            enough.set()
        return Batch(*[torch.tensor([step])] * 3)

    batches = prefetch(draw, range(1, 40))
    assert int(next(batches).lr) == 1
    assert enough.wait(10), "the batches after the first are under way before anybody asks for them"
    assert [int(batch.lr) for batch in batches] == list(range(2, 40))
    assert len(drawn) == 39

    def fail(step: int) -> Batch:
        raise ImageError("cut off")

    with pytest.raises(ImageError, match="cut off"):
        next(prefetch(fail, range(3)))


def test_pixels_in_a_file_are_the_pairs_again(tmp_path: Path) -> None:
    pairs = {"a": numbered_pair(3, 20, 31), "b": numbered_pair(3, 9, 8), "c": numbered_pair(3, 10, 10)}
    said: list[str] = []
    counted: list[tuple[int, int]] = []
    pixels = write_pixels(
        stored(pairs, scale=3), tmp_path, say=said.append, progress=lambda *count: counted.append(count)
    )
    size = sum(lr.size + hr.size for lr, hr in pairs.values())
    assert Path(pixels.path).stat().st_size == size
    assert said == [f"The pixels of 3 pairs need {size / 1e6:.1f} MB in {tmp_path} until the training ends."]
    assert counted == [(1, 3), (2, 3), (3, 3)]
    mapped = PixelFile(**json.loads(json.dumps(pixels.facts()))).map()
    assert list(mapped) == ["a", "b", "c"]
    digest = hashlib.sha256()
    for name, pair in mapped.items():
        for image, original in zip(pair, pairs[name], strict=True):
            np.testing.assert_array_equal(image, original)
            assert not image.flags.writeable
            digest.update(str(original.shape).encode() + original.tobytes())
    assert pixels.sha256 == pixels_sha256(pairs) == digest.hexdigest()


def test_a_disk_without_room_is_noticed_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photograph: dict[str, Pair]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_000_000))
    pairs = stored(photograph)
    monkeypatch.setattr(type(pairs), "__iter__", lambda self: pytest.fail("decoded"))
    sentence = r"The pixels of 1 pairs need 0\.2 MB in .*; only 1\.0 MB are free there\. Make room"
    with pytest.raises(IncompleteError, match=sentence):
        train_network("edsr-small", pairs, tmp_path / "new" / "out", recipe())
    assert list(tmp_path.iterdir()) == []


def test_a_training_leaves_no_pixels_behind(tmp_path: Path, photograph: dict[str, Pair]) -> None:
    networks.save(tiny(), tmp_path / "start")
    out, seen = tmp_path / "out", []
    (out / ".training").mkdir(parents=True)
    (out / ".training" / "pixels").write_bytes(b"of a training that was killed")

    def stop(event: Progress) -> None:
        seen.append((event.stage, event.done, (out / ".training" / "pixels").stat().st_size))
        if (event.stage, event.done) == ("training", 3):
            raise Interrupted

    settings = recipe(checkpoint_every=2, steps=4)
    with pytest.raises(Interrupted):
        train_network(str(tmp_path / "start"), stored(photograph), out, settings, progress=stop)
    assert {path.name for path in out.iterdir()} == {"checkpoint.safetensors", "metrics.jsonl"}
    (out / ".checkpoint.safetensors.0123abcd.partial").write_bytes(b"half")  # of a kill during a write
    train_network(str(tmp_path / "start"), stored(photograph), out, settings)
    names = {"config.json", "metrics.jsonl", "model.safetensors", "training.yaml"}
    assert {path.name for path in out.iterdir()} == names
    size = sum(image.size for image in photograph["astronaut"])
    assert seen[-3:] == [("training", step, size) for step in (1, 2, 3)]
    assert seen[0][:2] == ("decoding images", 1)

    train(networks.load(tmp_path / "start"), photograph, tmp_path / "direct", settings)
    files = [folder / "model.safetensors" for folder in (out, tmp_path / "direct")]
    assert files[0].read_bytes() == files[1].read_bytes()


# The update


def test_learning_rates_by_hand() -> None:
    cosine = TrainingRecipe(steps=100, learning_rate=0.8, decay="cosine")
    assert [learning_rate(cosine, done) for done in (0, 25, 50, 100)] == pytest.approx(
        [0.8, 0.4 + 0.2 * math.sqrt(2), 0.4, 0]
    )
    steps = TrainingRecipe(steps=100, learning_rate=0.8, decay="milestones", milestones=(0.5, 0.75), gamma=0.5)
    assert [learning_rate(steps, done) for done in (0, 49, 50, 74, 75, 99)] == [0.8, 0.8, 0.4, 0.4, 0.2, 0.2]


def test_one_step_is_one_step_of_adam_on_the_mean_absolute_error(photograph: dict[str, Pair], tmp_path: Path) -> None:
    batch = draw([*photograph.values()], recipe(), 4, step=1)
    lr, hr = (torch.from_numpy(as_seen(images, batch.turns)).permute(0, 3, 1, 2) / 255 for images in batch[:2])
    before = tiny()
    loss = (before(lr) - hr).abs().mean()
    gradients = torch.autograd.grad(loss, list(before.parameters()))

    trained = train(tiny(), photograph, tmp_path, recipe(steps=1))
    assert metrics(tmp_path)[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    checked = 0
    for old, new, gradient in zip(before.parameters(), trained.parameters(), gradients, strict=True):
        # Kingma & Ba, algorithm 1: after one step both bias-corrected moments are those of the gradient itself.
        expected = old - 1e-3 * gradient / (gradient.abs() + 1e-8)
        clear = gradient.abs() > 1e-6  # the sign of a vanishing gradient is a matter of rounding
        assert torch.allclose(new[clear], expected[clear], atol=2e-5)
        checked += int(clear.sum())
    assert checked > 0.9 * sum(parameter.numel() for parameter in before.parameters())


def test_what_is_saved_is_the_moving_average(photograph: dict[str, Pair], tmp_path: Path) -> None:
    raw = []
    for steps in (1, 2, 3, 4):
        network = tiny()
        trained = train(network, photograph, tmp_path / str(steps), recipe(steps=steps, ema=0.2))
        raw.append(weights(network))
    for key, value in weights(trained).items():
        average = raw[0][key]
        for count, new in enumerate(raw[1:], start=1):
            decay = min(0.2, (1 + count) / (10 + count))  # 2/11, then 0.2
            average = decay * average + (1 - decay) * new[key]
        assert torch.allclose(value, average, atol=1e-7)
        assert not torch.equal(value, raw[-1][key])


def test_a_batch_in_parts_is_the_same_step(photograph: dict[str, Pair], tmp_path: Path) -> None:
    whole = train(tiny(), photograph, tmp_path / "whole", recipe(steps=3, batch_size=4))
    parts = train(tiny(), photograph, tmp_path / "parts", recipe(steps=3, batch_size=4, accumulate=2))
    for key, value in weights(whole).items():
        assert torch.allclose(parts.state_dict()[key], value, atol=1e-6)
        assert not torch.equal(tiny().state_dict()[key], value)
    losses = [[line["loss"] for line in metrics(tmp_path / folder)] for folder in ("whole", "parts")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_the_folder_says_how_the_weights_were_made(photograph: dict[str, Pair], tmp_path: Path) -> None:
    settings = recipe(steps=1)
    train(tiny(), photograph, tmp_path, settings, data={"photographs": "holiday"})
    facts = yaml.safe_load((tmp_path / "training.yaml").read_text())
    assert (facts["network"], facts["scale"], facts["device"]) == ("edsr", 4, "1 x CPU")
    assert facts["data"] == {"photographs": "holiday", "pairs": 1, "sha256": facts["data"]["sha256"]}
    assert TrainingRecipe(**facts["recipe"]) == settings
    assert facts["packages"].keys() == {"idc-hub", "torch", "accelerate"}
    train(tiny(), {name: (lr, 255 - hr) for name, (lr, hr) in photograph.items()}, tmp_path / "other", settings)
    other = yaml.safe_load((tmp_path / "other" / "training.yaml").read_text())
    assert re.fullmatch("[0-9a-f]{64}", facts["data"]["sha256"])
    assert other["data"]["sha256"] != facts["data"]["sha256"]


def test_milestones_lower_the_rate_that_is_used(photograph: dict[str, Pair], tmp_path: Path) -> None:
    train(tiny(), photograph, tmp_path, recipe(steps=4, milestones=(0.5,), gamma=0.1))
    assert [line["learning_rate"] for line in metrics(tmp_path)] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_training_lowers_the_loss_on_a_photograph(
    mixed_precision: str, photograph: dict[str, Pair], tmp_path: Path
) -> None:
    settings = recipe(
        steps=120,
        batch_size=4,
        learning_rate=2e-3,
        ema=0.9,
        decay="cosine",
        mixed_precision=mixed_precision,
        log_every=20,
    )
    seen: list[tuple[int, float]] = []
    trained = train(tiny(), photograph, tmp_path, settings, progress=lambda step, loss: seen.append((step, loss)))
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == [20, 40, 60, 80, 100, 120]
    assert seen == [(line["step"], line["loss"]) for line in lines]
    assert lines[-1]["loss"] < lines[0]["loss"] / 2

    lr, hr = (torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 for image in photograph["astronaut"])
    with torch.no_grad():
        error_before, error_after = ((network(lr) - hr).abs().mean().item() for network in (tiny(), trained))
    assert error_after < error_before / 2
    assert all(value.dtype == torch.float32 for value in trained.state_dict().values())
    assert torch.allclose(networks.load(tmp_path)(lr), trained(lr), atol=1e-5)
    assert not (tmp_path / "checkpoint.safetensors").exists()


# Interruption


class Interrupted(Exception):
    pass


def interrupt_at(step: int) -> Callable[[int, float], None]:
    def progress(done: int, loss: float) -> None:
        if done == step:
            raise Interrupted

    return progress


@pytest.mark.parametrize("stops", [(8,), (3,), (6, 11)], ids=str)
def test_an_interrupted_training_continues_to_the_same_bytes(
    stops: tuple[int, ...], photograph: dict[str, Pair], tmp_path: Path
) -> None:
    settings = recipe(decay="cosine", checkpoint_every=5)
    train(tiny(), photograph, tmp_path / "straight", settings)
    for stop in stops:
        with pytest.raises(Interrupted):
            train(tiny(), photograph, tmp_path / "stopped", settings, progress=interrupt_at(stop))
    # Where there is a checkpoint, the weights of the network that is handed in no longer matter.
    train(tiny(seed=9 if stops[0] > 5 else 0), photograph, tmp_path / "stopped", settings)

    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "stopped" / file).read_bytes() == (tmp_path / "straight" / file).read_bytes()
    for one, other in zip(metrics(tmp_path / "stopped"), metrics(tmp_path / "straight"), strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}


class Noisy(EDSR):
    """A network that draws numbers in training, as MambaIRv2 does."""

    def forward(self, lr: Tensor) -> Tensor:
        return super().forward(lr) + (torch.randn(1) if self.training else 0)


def test_a_network_that_draws_numbers_continues_to_the_same_bytes(photograph: dict[str, Pair], tmp_path: Path) -> None:
    def noisy() -> EDSR:
        torch.manual_seed(0)
        return Noisy(channels=8, blocks=1, scale=4)

    settings = recipe(steps=6, checkpoint_every=2)
    train(noisy(), photograph, tmp_path / "straight", settings)
    with pytest.raises(Interrupted):
        train(noisy(), photograph, tmp_path / "stopped", settings, progress=interrupt_at(5))
    torch.manual_seed(77)
    train(noisy(), photograph, tmp_path / "stopped", settings)
    files = [tmp_path / folder / "model.safetensors" for folder in ("straight", "stopped")]
    assert files[0].read_bytes() == files[1].read_bytes()
    losses = [line["loss"] for line in metrics(tmp_path / "straight")]
    assert len(set(losses)) == 6


@pytest.mark.parametrize("change", ["recipe", "pairs", "network"])
def test_a_checkpoint_of_another_training_is_not_continued(
    change: str, photograph: dict[str, Pair], tmp_path: Path
) -> None:
    settings = recipe(checkpoint_every=2)
    with pytest.raises(Interrupted):
        train(tiny(), photograph, tmp_path, settings, progress=interrupt_at(3))
    network, pairs = tiny(), photograph
    if change == "recipe":
        settings = recipe(checkpoint_every=2, seed=1)
    elif change == "pairs":
        pairs = {name: (lr, 255 - hr) for name, (lr, hr) in photograph.items()}
    else:
        network = EDSR(channels=8, blocks=2)
    with pytest.raises(NetworkError, match=f"belongs to another training: another {change}\\."):
        train(network, pairs, tmp_path, settings)


@pytest.mark.parametrize("damage", ["empty", "cut", 8, 500, 3000])
def test_a_damaged_checkpoint_is_dropped_with_a_warning(
    damage: str | int, photograph: dict[str, Pair], tmp_path: Path
) -> None:
    settings, path = recipe(steps=4, checkpoint_every=2), tmp_path / "checkpoint.safetensors"
    whole = train(tiny(), photograph, tmp_path / "whole", settings)
    with pytest.raises(Interrupted):
        train(tiny(), photograph, tmp_path, settings, progress=interrupt_at(3))
    content = bytearray(path.read_bytes())
    if isinstance(damage, int):
        content[damage * 7 % len(content)] ^= 16
    path.write_bytes({"empty": b"", "cut": content[:-100]}.get(str(damage), content))
    with pytest.warns(UserWarning, match=r"checkpoint\.safetensors is damaged.*starts again"):
        again = train(tiny(), photograph, tmp_path, settings)
    assert all(torch.equal(again.state_dict()[key], value) for key, value in whole.state_dict().items())
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3, 4]


def test_a_torn_line_of_metrics_blocks_nothing(photograph: dict[str, Pair], tmp_path: Path) -> None:
    settings = recipe(steps=4, checkpoint_every=2)
    with pytest.raises(Interrupted):
        train(tiny(), photograph, tmp_path, settings, progress=interrupt_at(3))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    train(tiny(), photograph, tmp_path, settings)
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3, 4]


def test_a_signal_saves_and_stops(photograph: dict[str, Pair], tmp_path: Path) -> None:
    settings = recipe(steps=6, checkpoint_every=100)
    whole = train(tiny(), photograph, tmp_path / "whole", settings)

    def hang_up(step: int, loss: float) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGHUP)

    before = signal.getsignal(signal.SIGHUP)
    with pytest.raises(errors.Interrupted, match="SIGHUP"):
        train(tiny(), photograph, tmp_path, settings, progress=hang_up)
    assert signal.getsignal(signal.SIGHUP) == before
    done: list[int] = []
    again = train(tiny(), photograph, tmp_path, settings, progress=lambda step, loss: done.append(step))
    assert done[0] in (4, 5)
    assert all(torch.equal(again.state_dict()[key], value) for key, value in whole.state_dict().items())


def test_a_finished_training_is_finished_and_no_other_is_overwritten(
    photograph: dict[str, Pair], tmp_path: Path
) -> None:
    settings = recipe(steps=4, checkpoint_every=2)
    made = train(tiny(), photograph, tmp_path, settings)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "checkpoint.safetensors").write_bytes(b"of a kill just before it was removed")
    again = train(tiny(), photograph, tmp_path, settings, progress=lambda *_: pytest.fail("trained"))
    assert all(torch.equal(again.state_dict()[key], value) for key, value in made.state_dict().items())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    other = {name: (lr, 255 - hr) for name, (lr, hr) in photograph.items()}
    for pairs, changed in ((photograph, recipe(steps=5)), (other, settings)):
        with pytest.raises(NetworkError, match="already contains a trained network"):
            train(tiny(), pairs, tmp_path, changed)
    (tmp_path / "training.yaml").unlink()
    with pytest.raises(NetworkError, match="already contains a trained network"):
        train(tiny(), photograph, tmp_path, settings)
    assert (tmp_path / "model.safetensors").read_bytes() == files["model.safetensors"]


# Trackers


def test_trackers_get_what_the_metrics_get(
    photograph: dict[str, Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = stand_in_for_trackio(monkeypatch)
    train(tiny(), photograph, tmp_path / "mine", recipe(steps=2), trackers=["trackio"])

    assert said[0] == ("init", {"project": "idc-hub", "name": "mine"})
    assert said[1][1]["learning_rate"] == "0.001"
    assert said[2:4] == [
        ("log", line["step"], {key: line[key] for key in ("loss", "learning_rate", "seconds")})
        for line in metrics(tmp_path / "mine")
    ]
    assert said[4:] == ["finish"]


def test_a_tracker_that_is_missing_is_a_sentence(photograph: dict[str, Pair], tmp_path: Path) -> None:
    for name, sentence in (
        ("tensorbord", r"There is no tracker tensorbord\. The trackers are tensorboard, trackio, wandb\."),
        ("wandb", r"The tracker wandb is not installed: `pip install wandb`\."),
    ):
        with pytest.raises(RecipeError, match=sentence):
            train(tiny(), photograph, tmp_path / "out", recipe(), trackers=[name])
    assert not (tmp_path / "out").exists()


# What cannot be trained


def test_pairs_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    lr, hr = np.zeros((16, 16, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)
    for pairs, sentence in (
        ({}, "no image to train on"),
        ({"a.png": (lr, hr), "b.png": (lr, hr[:-1])}, r"b\.png has 64x63 HR and 16x16 LR pixels: not a pair for x4"),
        (
            {"a.png": (lr, hr), "b.png": (lr[:8], hr[:32]), "c.png": (lr[:7], hr[:28])},
            r"b\.png has 16x8 LR pixels, less than a crop \(12x12\) \(and 1 other images are too small\)"
            r"\. Train with crop=7",
        ),
    ):
        with pytest.raises(ImageError, match=sentence):
            train(tiny(), pairs, tmp_path / "out", recipe())
    assert not (tmp_path / "out").exists()


def test_a_training_that_diverges_says_so(photograph: dict[str, Pair], tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"diverged: NaN or Inf from step 2 on.*\(it is 1e\+30\) starts again"):
        train(tiny(), photograph, tmp_path, recipe(learning_rate=1e30))
    assert not (tmp_path / "model.safetensors").exists()


def sick(step: int, value: float = math.nan) -> EDSR:
    """The tiny network, whose output passes a gradient of NaN back from one step on."""
    network, steps = tiny(), iter(range(1, 100))

    def spoil(module: Any, inputs: Any, output: Tensor) -> None:
        if next(steps) >= step:
            output.register_hook(lambda gradient: gradient * value)

    # Not a subclass: the checkpoint is one of the healthy network.
    network.register_forward_hook(spoil)
    return network


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_training_that_diverges_keeps_its_checkpoint_and_continues_with_a_lower_rate(
    value: float, photograph: dict[str, Pair], tmp_path: Path
) -> None:
    settings = recipe(checkpoint_every=5, log_every=50)
    with pytest.raises(Interrupted):
        train(tiny(), photograph, tmp_path / "good", recipe(checkpoint_every=5, log_every=6), progress=interrupt_at(6))
    folder = tmp_path / "out"
    sentence = r"diverged: NaN or Inf from step 8 on\..* a lower learning_rate \(it is 0\.001\) continues from the "
    with pytest.raises(DivergedError, match=sentence + r"checkpoint of step 5 "):
        train(sick(8, value), photograph, folder, settings)
    assert {path.name for path in folder.iterdir()} == {"checkpoint.safetensors", "metrics.jsonl"}
    good, kept = (load_file(each / "checkpoint.safetensors") for each in (tmp_path / "good", folder))
    assert all(torch.equal(kept[name], tensor) for name, tensor in good.items())

    sentence = "another recipe.* only the learning rate may change, to a lower one"
    for other in ({"learning_rate": 2e-3}, {"learning_rate": 5e-4, "seed": 1}):
        with pytest.raises(NetworkError, match=sentence):
            train(tiny(), photograph, folder, recipe(checkpoint_every=5, log_every=50, **other))
    lower = recipe(checkpoint_every=5, log_every=50, learning_rate=5e-4)
    trained = train(tiny(seed=3), photograph, folder, lower)
    facts = yaml.safe_load((folder / "training.yaml").read_text())
    assert facts["learning_rates"] == {1: 1e-3, 6: 5e-4}
    assert facts["recipe"]["learning_rate"] == 5e-4
    # The same by a milestone after 5 of 12 steps.
    halved = train(tiny(), photograph, tmp_path / "halved", recipe(milestones=(0.41,), gamma=0.5))
    for name, weight in weights(halved).items():
        assert torch.allclose(trained.state_dict()[name], weight, atol=1e-6)


def test_a_rate_lowered_twice_is_told_twice_and_an_unchanged_one_not_at_all(
    photograph: dict[str, Pair], tmp_path: Path
) -> None:
    def stop(rate: float, step: int) -> None:
        with pytest.raises(Interrupted):
            train(tiny(), photograph, tmp_path / "out", recipe(checkpoint_every=3, learning_rate=rate),
                  progress=interrupt_at(step))  # fmt: skip

    stop(1e-3, 4)
    stop(5e-4, 5)  # before its first checkpoint: it holds from step 4 on all the same, the next time
    stop(5e-4, 7)
    with pytest.raises(NetworkError, match="another recipe"):
        stop(1e-3, 8)
    train(tiny(), photograph, tmp_path / "out", recipe(checkpoint_every=3, learning_rate=1e-4))
    facts = yaml.safe_load((tmp_path / "out" / "training.yaml").read_text())
    assert facts["learning_rates"] == {1: 1e-3, 4: 5e-4, 7: 1e-4}
    rates = [line["learning_rate"] for line in metrics(tmp_path / "out")]
    assert rates == [1e-3] * 3 + [5e-4] * 3 + [1e-4] * 6
    train(tiny(), photograph, tmp_path / "plain", recipe(steps=1))
    assert "learning_rates" not in yaml.safe_load((tmp_path / "plain" / "training.yaml").read_text())


@pytest.mark.parametrize("step", [11, 12])
def test_divergence_at_the_end_saves_no_network(step: int, photograph: dict[str, Pair], tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=f"NaN or Inf from step {step} on"):
        train(sick(step), photograph, tmp_path, recipe(log_every=50, checkpoint_every=5))
    assert not (tmp_path / "model.safetensors").exists()
    assert (tmp_path / "checkpoint.safetensors").exists()


def test_watching_a_training_asks_the_device_for_nothing_between_two_looks(photograph: dict[str, Pair]) -> None:
    network = tiny()
    state = training._State(network, "digest", recipe())
    accelerator: Any = SimpleNamespace(device=torch.device("cpu"), gather=lambda tensor: tensor)
    watch = training._Finiteness(state, 0, accelerator)
    loss = network(torch.rand(1, 3, 8, 8)).mean()
    loss.backward()
    with Asked() as asked:
        watch.note(loss.detach())
    assert asked.found == []
    watch.check(Path("out"), 1)
    # What another process has seen counts as well.
    accelerator.gather = lambda tensor: torch.cat([tensor, torch.tensor([0, 0])])
    with pytest.raises(DivergedError, match="from step 1 on"):
        watch.check(Path("out"), 1)


def test_a_batch_that_cannot_be_shared_is_refused(photograph: dict[str, Pair], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"A batch of 4 cannot be shared equally by 3 processes\. Make batch_size a"):
        training.check(tmp_path, photograph, 4, recipe(batch_size=4), num_processes=3)
    with pytest.raises(RecipeError, match="by 2 processes that compute it in 4 parts"):
        training.check(tmp_path, photograph, 4, recipe(batch_size=4, accumulate=4), num_processes=2)
    training.check(tmp_path, photograph, 4, recipe(batch_size=8, accumulate=4), num_processes=2)


def test_two_processes_do_not_share_a_gpu(
    photograph: dict[str, Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(RecipeError, match="2 processes need as many GPUs, and 1 can be seen"):
        train_network("edsr-small", stored(photograph), tmp_path / "out", recipe(), num_processes=2)
    assert not (tmp_path / "out").exists()

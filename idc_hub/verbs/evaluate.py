"""evaluate: measure PSNR and SSIM of a network or a teacher on a test set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idc_hub.errors import NetworkError, RecipeError
from idc_hub.images.metrics import Protocol
from idc_hub.machine import device
from idc_hub.networks import load
from idc_hub.networks.foreign import kind_of, load_foreign
from idc_hub.networks.teachers import load_teacher
from idc_hub.recipe import Source
from idc_hub.runs.progress import Reporting, counting
from idc_hub.training import evaluation


@dataclass(frozen=True)
class EvaluateResult:
    """Result of `evaluate`.

    Attributes:
        network: The network, as it was given.
        testset: Name of the test set.
        sha256: Digest of its pixels, LR and HR (`training.pixels.pixels_sha256`).
        images: Number of its images.
        lr_given: Whether LR images were given, rather than made by bicubic downscaling.
        pairing: What was paired with what, with an example.
        protocols: For each protocol the mean `psnr` (dB) and `ssim`, and `per_image` with the two for each image.
        left_out: Names of the files of the test set that are no photographs.
    """

    network: str
    testset: str
    sha256: str
    images: int
    lr_given: bool
    pairing: str
    protocols: dict[str, dict[str, Any]]
    left_out: list[str]


def evaluate(
    network: str,
    testset: str | Path | Source,
    *,
    lr: str | Path | None = None,
    scale: int = 4,
    borders: Sequence[int] = (),
    tile: int | None = None,
    save: bool = False,
    progress: Reporting = True,
) -> EvaluateResult:
    """Measure PSNR and SSIM on a test set, in RGB and in luma, under one or more protocols.

    Args:
        network: A network or any other teacher: what `load_teacher` accepts.
        testset: HR images: a folder, a zip, a Hub dataset; or a recipe's `Source`, which chooses among them.
        lr: LR images, named as the field names them (`0001.png` or `0001x4.png` for `0001.png`, ...); None: HR,
            downscaled bicubically.
        scale: How many times larger HR is than LR.
        borders: Pixels left out on each side; empty: 2, and the scale.
        tile: Side of the tiles, in LR pixels, in which a network upscales, to save memory; None: the whole image.
        save: Keep the result in the network's folder, for its model card.
        progress: True shows progress on stderr, False nothing; a function gets every `Progress` event.

    Returns:
        The figures.

    Raises:
        RecipeError: `save` was requested, and the network is not a folder; or `tile`, and it is not a network.
        NetworkError: There is no such network, or it has another scale.
        ImageError: There is no such test set, or images cannot be used.
    """
    if save and not Path(network).is_dir():
        raise RecipeError(f"{network} is not a folder in which a result can be kept.", "Leave --save out.")
    protocols = [
        Protocol(channel, cut, scale) for cut in sorted(set(borders or (2, scale))) for channel in ("rgb", "y")
    ]
    with counting("evaluating", progress) as count:
        measured = evaluation.evaluate(
            _load(network, scale), testset, protocols, lr_location=lr, tile=tile, on_progress=count
        )
    if save:
        evaluation.save_result(Path(network), measured)
    return EvaluateResult(network=network, **measured)


def _load(network: str, scale: int) -> evaluation.Upscaler:
    """The bare network, without the margin that it has as a teacher; a teacher only where there is no network."""
    kind, path = kind_of(network)
    if kind == "network":
        return load(network, scale=scale).to(device())
    if kind in ("bicubic", "diffusers"):
        return load_teacher(network, scale=scale, device=device())
    foreign = load_foreign(kind, network, path, scale=scale, device=device())
    if foreign.scale != scale:
        raise NetworkError(
            f"{network} is an x{foreign.scale} network, but x{scale} was requested.", f"Say --scale {foreign.scale}."
        )
    return foreign

"""evaluate: PSNR and SSIM of a network or a teacher on a test set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idc_hub.errors import RecipeError
from idc_hub.images.metrics import Protocol
from idc_hub.machine import device
from idc_hub.networks import load
from idc_hub.networks.foreign import kind_of
from idc_hub.networks.teachers import load_teacher
from idc_hub.training import evaluation


@dataclass(frozen=True)
class EvaluateResult:
    """What `evaluate` measured.

    Attributes:
        network: What was measured, as it was named.
        testset: Name of the test set.
        images: Number of its images.
        protocols: For each protocol the mean `psnr` (dB) and `ssim`, and `per_image` with the two for each image.
    """

    network: str
    testset: str
    images: int
    protocols: dict[str, dict[str, Any]]


def evaluate(
    network: str,
    testset: str | Path,
    *,
    lr: str | Path | None = None,
    scale: int = 4,
    borders: Sequence[int] = (),
    tile: int | None = None,
    save: bool = False,
) -> EvaluateResult:
    """Measure PSNR and SSIM on a test set, in RGB and in luma side by side, each number under its protocol.

    Args:
        network: A network or any other teacher: what `load_teacher` accepts.
        testset: HR images: a folder, a zip, a Hub dataset.
        lr: LR images of the same names; None: HR, downscaled bicubically.
        scale: How many times larger HR is than LR.
        borders: Pixels left out on each side; empty: 2, and the scale.
        tile: Side of the tiles, in LR pixels, that bound the memory; None: the whole image at once.
        save: Keep the result in the network's folder, for its model card.

    Returns:
        What was measured.

    Raises:
        RecipeError: `save` was asked for, and the network is no folder.
        NetworkError: There is no such network, or it has another scale.
        ImageError: There is no such test set, or an image does not fit.
    """
    if save and not Path(network).is_dir():
        raise RecipeError(f"{network} is no folder to keep a result in.", "Leave --save out.")
    protocols = [
        Protocol(channel, cut, scale) for cut in sorted(set(borders or (2, scale))) for channel in ("rgb", "y")
    ]
    ours = network != "bicubic" and kind_of(network)[0] == "network"
    measured = evaluation.evaluate(
        load(network, scale=scale).to(device()) if ours else load_teacher(network, scale=scale, device=device()),
        testset,
        protocols,
        lr_location=lr,
        tile=tile,
    )
    if save:
        evaluation.save_result(Path(network), measured)
    return EvaluateResult(network=network, **measured)

"""train: train a network on pairs."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idc_hub.errors import printable
from idc_hub.recipe import Source
from idc_hub.runs.progress import Reporting
from idc_hub.training.launch import train_network
from idc_hub.training.pairs import read_data
from idc_hub.training.recipe import TrainingRecipe


@dataclass(frozen=True)
class TrainResult:
    """Result of `train`.

    Attributes:
        network: The folder of the trained network.
        pairs: Number of pairs that it was trained on.
        lr_given: Whether their LR images were given, rather than made by bicubic downscaling.
        pairing: What was paired with what, with an example.
        scale: HR pixels per LR pixel.
        recipe: How it was trained, with every key.
        left_out: Names of the files of the source that are no photographs.
        seconds: Wall-clock seconds of this call.
    """

    network: str
    pairs: int
    lr_given: bool
    pairing: str
    scale: int
    recipe: dict[str, Any]
    left_out: list[str]
    seconds: float


def train(
    network: str,
    data: str | Path | Source,
    out: str | Path,
    *,
    recipe: TrainingRecipe | None = None,
    scale: int = 4,
    lr: str | Path | None = None,
    hr_version: str | None = None,
    num_processes: int | None = None,
    trackers: Sequence[str] = (),
    progress: Reporting = True,
) -> TrainResult:
    """Train a network on pairs; for photographs, LR is given or made by bicubic downscaling.

    All pixels are decoded once, into a temporary file in `out`; memory does not grow with the number of images. Call it
    again to continue an interrupted training.

    Args:
        network: A name for a new network, or a folder or Hub id of a network to train further.
        data: A folder or zip of photographs, a Run, or a dataset on the Hub; or a recipe's `Source`, which chooses
            among photographs.
        out: Folder for the trained network.
        recipe: How to train; None: 20,000 steps of 16 crops.
        scale: How many times larger HR is than LR.
        lr: LR images of photographs, named as the field names them (`0001.png` or `0001x4.png` for `0001.png`, ...);
            None: the photographs, downscaled bicubically.
        hr_version: HR version of a condensed set; None: the set's own default.
        num_processes: None: one for each visible GPU, or a single one on the CPU.
        trackers: tensorboard, trackio or wandb, in addition to `metrics.jsonl`.
        progress: True prints progress on stderr, False nothing; a function gets every `Progress` event.

    Returns:
        The folder, and what it was trained on.

    Raises:
        RecipeError: The batch cannot be split equally among the processes, a tracker is not installed, `hr_version` is
            given for photographs, or `lr` for data that have LR images of their own.
        RunError: The condensed set is damaged or has no such HR version.
        ImageError: Images cannot be used, do not fit the scale or are smaller than a crop; they are named.
        NetworkError: There is no such network, or `out` holds another training.
        DivergedError: The loss, a gradient or a weight became NaN or Inf; the last checkpoint stays.
        HubError: The network or the data is on the Hub and cannot be loaded.
        IncompleteError: The disk is too full, or one of several processes died; the same call continues.
        Interrupted: A signal stopped the training; the same call continues.
    """
    begun = time.monotonic()
    recipe = recipe or TrainingRecipe()
    given = data if isinstance(data, Source) else str(data)
    pairs = read_data(given, scale, hr_version, lr_location=lr)
    if progress is True:
        print(printable(pairs.pairing), file=sys.stderr, flush=True)
    train_network(
        network,
        pairs,
        Path(out),
        recipe,
        num_processes=num_processes,
        trackers=trackers,
        progress=progress,
    )
    return TrainResult(
        network=str(out),
        pairs=len(pairs),
        lr_given=pairs.lr_given,
        pairing=pairs.pairing,
        scale=scale,
        recipe=recipe.model_dump(mode="json"),
        left_out=list(pairs.left_out),
        seconds=round(time.monotonic() - begun, 1),
    )

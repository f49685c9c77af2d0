"""train: a network on pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idc_hub.runs.progress import Reporting
from idc_hub.training.launch import train_network
from idc_hub.training.pairs import read_data
from idc_hub.training.recipe import TrainingRecipe


@dataclass(frozen=True)
class TrainResult:
    """What `train` made.

    Attributes:
        network: The folder of the trained network.
        pairs: Number of pairs that it was trained on.
        scale: How many times it enlarges.
        recipe: How it was trained, every key written out.
    """

    network: str
    pairs: int
    scale: int
    recipe: dict[str, Any]


def train(
    network: str,
    data: str | Path,
    out: str | Path,
    *,
    recipe: TrainingRecipe | None = None,
    scale: int = 4,
    hr_version: str | None = None,
    num_processes: int | None = None,
    trackers: Sequence[str] = (),
    progress: Reporting = True,
) -> TrainResult:
    """Train a network on pairs; photographs become pairs by bicubic downscaling.

    Call it again to continue an interrupted training.

    Args:
        network: A name for a fresh network; a folder or a Hub id for one to train further.
        data: A folder or zip of photographs, a Run, or a dataset on the Hub.
        out: Folder for the trained network.
        recipe: How to train; None: 20,000 steps of 16 crops.
        scale: How many times larger HR is than LR.
        hr_version: HR version of a condensed set; None: the set's own default.
        num_processes: None: one for each visible GPU, or a single one on the CPU.
        trackers: tensorboard, trackio or wandb, besides `metrics.jsonl`.
        progress: True prints a line of the loss now and then, False nothing; a function gets every `Progress` event.

    Returns:
        What was made.

    Raises:
        RecipeError: The batch cannot be shared equally, or there is no such tracker or HR version.
        ImageError: A pair does not fit the scale or is smaller than a crop.
        NetworkError: There is no such network, the folder holds another one, or the training diverged.
        IncompleteError: One of several processes died; the same call continues.
        Interrupted: A signal stopped the training; the same call continues.
    """
    recipe = recipe or TrainingRecipe()
    pairs, facts = read_data(str(data), scale, hr_version)
    train_network(
        network,
        pairs,
        Path(out),
        recipe,
        scale=scale,
        num_processes=num_processes,
        data=facts,
        trackers=trackers,
        progress=progress,
    )
    return TrainResult(str(out), len(pairs), scale, recipe.model_dump(mode="json"))

"""Forecast time and memory of a condensation: run the real loop for a few steps on a few patches and extrapolate."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from idc_hub.condensation.condense import RANDOM_SUBSETS, Photograph, Stopped, assignment_events, condense_batch
from idc_hub.condensation.pieces import piece_size
from idc_hub.condensation.real_side import HELD_OUT_DRAWS, SUBSET_DRAWS, represented_patches
from idc_hub.images.sources import open_source
from idc_hub.runs.memory import Memory, batch_size
from idc_hub.runs.worker import real_patches

if TYPE_CHECKING:
    import torch

    from idc_hub.images.sources import Instance
    from idc_hub.recipe import Recipe

CALIBRATION_SECONDS = 6.0
"""Seconds after which no new round of samples starts."""

ROUNDS = 5
SIZES = ((16, 1), (32, 2))
"""(real, synthetic) patches of the small and the large sample."""

STEPS = 8
SLOW = 1.5
"""If the small sample takes longer than this many seconds on a quarter of its pixels, all samples use a quarter."""

Samples = dict[tuple[int, int], list["Sample"]]
"""Samples by (real, synthetic) patches: of one size, or of a small and a large one."""


@dataclass(frozen=True)
class Sample:
    """Seconds that each part of one short condensation took, a photograph.

    Attributes:
        fixed: Work done once before the first step, without draws: features, groups.
        draw: The real side for one draw.
        plain: A step in which no tile is paired.
        event: One assignment event.
        partners: Local features of all real partners for one draw.
        paired: A step in which all tiles are paired and the features of their partners are cached.
    """

    fixed: float
    draw: float
    plain: float
    event: float
    partners: float
    paired: float

    @classmethod
    def take(cls, lr: torch.Tensor, count: int, network: torch.nn.Module, recipe: Recipe, batch: int) -> Sample:
        """Condense `count` patches of each of `batch` photographs and read the clock before every step.

        Args:
            lr: uint8 `[N, 3, h, w]`, real LR patches.
            count: Number of synthetic patches.
            network: The extractor.
            recipe: A recipe made by `shortened`.
            batch: Photographs in a step.

        Raises:
            NetworkError: The extractor gives NaN or Inf for `lr`.
        """
        times = [time.monotonic()]

        def tick() -> bool:
            times.append(time.monotonic())
            return len(times) == STEPS + 2

        photographs = [Photograph(lr, count, f"forecast-{number}") for number in range(batch)]
        with suppress(Stopped):
            for _, outcome in condense_batch(photographs, network, recipe, should_stop=tick):
                if isinstance(outcome, Exception):
                    raise outcome
        # Steps 0 and 1 are plain and use a new draw each. Step 3 groups all tiles, step 4 pairs them and computes the
        # partners' features for one draw, step 5 for the other.
        fixed, first, second, plain, groups, pairs, partners, *rest = (
            (late - early) / batch for early, late in pairwise(times)
        )
        paired = min(rest)
        return cls(
            fixed=fixed,
            draw=max(min(first, second) - plain, 0),
            plain=plain,
            event=max(groups - plain, pairs - partners, 0),
            partners=max(partners - paired, 0),
            paired=paired,
        )


@dataclass(frozen=True)
class Forecast:
    """What a condensation will take.

    Attributes:
        seconds: Seconds until the last worker has ended, at least those of the slowest photographs.
        batch: Photographs that a worker condenses together.
        peak_bytes: Peak memory of a worker's tensors, with the largest photographs in one batch.
    """

    seconds: float
    batch: int
    peak_bytes: float


def predict(
    recipe: Recipe, instances: list[Instance], network: torch.nn.Module, processes: int, device: torch.device
) -> Forecast:
    """Predict time and memory of the workers for all photographs; calibrates for about ten seconds on this device.

    The time before the first step grows with the real patches of a photograph, the time of a step with its synthetic
    patches. The prediction leaves out reading the photographs and making HR, and assumes that workers do not slow each
    other down.

    Args:
        recipe: The recipe.
        instances: The photographs; at least one has synthetic patches.
        network: The extractor.
        processes: Number of workers.
        device: Where they compute.

    Raises:
        ImageError: The photograph used for calibration is gone or has changed.
        NetworkError: The extractor gives NaN or Inf for it.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.workers.threads)
    network = network.to(device).eval().requires_grad_(False)
    work = [instance for instance in instances if instance.count]
    typical = sorted(work, key=lambda instance: instance.count)[len(work) // 2]
    source = open_source(**recipe.source.model_dump())
    real = real_patches(typical, source, recipe, measured=True)
    represented = real.lr[represented_patches(real.lr, recipe, real.hardness)]
    fraction = len(represented) / len(real.lr)  # assumed to be the same for all photographs
    batch = batch_size(recipe, work, network, processes)
    samples, scale = _calibrate(represented, network, shortened(recipe), batch)
    memory = Memory.measure(network, recipe)
    torch.set_num_threads(threads)
    reals = [max(round(fraction * instance.patches), 1) for instance in work]
    counts = [instance.count for instance in work]
    seconds = [scale * _seconds(real, count, samples, recipe) for real, count in zip(reals, counts, strict=True)]
    return Forecast(
        seconds=max(sum(seconds) / processes, batch * max(seconds)),
        batch=batch,
        peak_bytes=memory.peak(recipe, max(reals), max(counts), batch, on_gpu=device.type == "cuda"),
    )


def _calibrate(lr: torch.Tensor, network: torch.nn.Module, recipe: Recipe, batch: int) -> tuple[Samples, float]:
    """Take samples of both sizes in turn; returns them and the factor for their seconds.

    A first sample on a quarter of the pixels warms up the libraries. If it is already slow, the other samples use a
    quarter of the pixels too: nearly all work is proportional to the pixels.
    """
    half = max(lr.shape[-1] // 2, recipe.transform.neighborhood + recipe.assignment.tile)
    cut = lr[..., :half, :half]
    sizes = sorted({(min(real, len(lr)), count) for real, count in SIZES})
    begun = time.monotonic()
    Sample.take(cut[: sizes[0][0]], sizes[0][1], network, recipe, batch)
    small = cut if time.monotonic() - begun > SLOW else lr
    samples: Samples = {size: [] for size in sizes}
    for _ in range(ROUNDS):
        for (real, count), found in samples.items():
            found.append(Sample.take(small[:real], count, network, recipe, batch))
        if time.monotonic() - begun > CALIBRATION_SECONDS:
            break
    return samples, lr[0].numel() / small[0].numel()


def shortened(recipe: Recipe) -> Recipe:
    """The recipe with all real patches, two draws and a few steps: all tiles are grouped at step 3 and paired at 4."""
    steps = STEPS + 1  # the loop is stopped before the last one
    changes = {
        "patches": {"complexity": "all"},
        "loss": {"draws": "bank", "bank_size": 2},
        "assignment": {"warmup": 3 / steps, "interval": 1 / steps, "events": 1},
        "optimizer": {"steps": steps, "initial": "real"},
        "workers": {"log_every": steps + 1, "checkpoint_every": steps + 1},
    }
    # `model_copy` does not validate: milestones that fall on the same step do no harm here.
    return recipe.model_copy(
        update={section: getattr(recipe, section).model_copy(update=keys) for section, keys in changes.items()}
    )


def _seconds(real: int, synthetic: int, samples: Samples, recipe: Recipe) -> float:
    """Seconds for one photograph with `real` real and `synthetic` synthetic patches."""

    def at(part: str, size: int, axis: int) -> float:
        """Seconds of a part at a size, extrapolated linearly over sizes; axis 0 is real patches, 1 synthetic."""
        # The fastest sample is the one that other processes disturbed least.
        points = sorted((key[axis], min(getattr(sample, part) for sample in found)) for key, found in samples.items())
        (small, seconds), (large, more) = points[0], points[-1]
        slope = (more - seconds) / (large - small) if large > small else more / large
        return more + (size - large) * max(slope, 0)

    loss, assignment, steps = recipe.loss, recipe.assignment, recipe.optimizer.steps
    events = len(assignment_events(recipe))
    paired = (
        max(1 - assignment.warmup - assignment.interval * events / 2, 0) if events else 0.0
    )  # mean share of paired tiles
    fresh = loss.draws == "fresh"
    draws = steps if fresh else min(loss.bank_size, steps)
    between = min(loss.bank_size, assignment.interval * steps)
    cut = piece_size(synthetic, recipe.patches.size**2) < synthetic  # a step in pieces makes its forward pass twice
    remade = paired * steps if fresh or cut or not events else between * assignment.events / 2 + draws
    plain, whole = at("plain", synthetic, 1), at("paired", synthetic, 1)
    chosen = min(SUBSET_DRAWS, loss.bank_size) if recipe.optimizer.initial == "cf-greedy" else 0
    held_out = HELD_OUT_DRAWS * (RANDOM_SUBSETS + 1) / 4  # a forward pass is about a quarter of a step
    return (
        at("fixed", real, 0)
        + (draws + chosen + HELD_OUT_DRAWS) * at("draw", real, 0)
        + held_out * plain
        + steps * ((1 - paired) * plain + paired * whole) * (1 + 2 / recipe.workers.log_every) * (4 / 3 if cut else 1)
        + remade * at("partners", synthetic, 1)
        + events * at("event", real, 0)
    )

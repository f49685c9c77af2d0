"""How long a condensation will take: the loop itself is run for a few steps on a few patches, and scaled up."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from idc_hub.condensation.condense import RANDOM_SUBSETS, Stopped, assignment_events, condense_instance
from idc_hub.condensation.pieces import piece_size
from idc_hub.condensation.real_side import HELD_OUT_DRAWS, SUBSET_DRAWS, represented_patches
from idc_hub.images.sources import open_source
from idc_hub.runs.worker import real_patches

if TYPE_CHECKING:
    import torch

    from idc_hub.images.sources import Instance
    from idc_hub.recipe import Recipe

CALIBRATION_SECONDS = 6.0
"""No round of samples begins later than this."""

ROUNDS = 5
SIZES = ((16, 1), (32, 2))
"""Real and synthetic patches of a small sample and of a large one."""

STEPS = 8
SLOW = 1.5
"""Seconds of the small sample, cut to a quarter of its pixels, above which all samples are cut so."""

Samples = dict[tuple[int, int], list["Sample"]]
"""By real and synthetic patches; one size, or a small and a large one."""


@dataclass(frozen=True)
class Sample:
    """Seconds of the parts of one short condensation.

    Attributes:
        fixed: What happens once before the first step, draws excepted: features, groups.
        draw: The real side at one draw.
        plain: A step with no tile paired.
        event: One event of the assignment.
        partners: Local features of all real partners at one draw.
        paired: A step with all tiles paired and the features of their partners at hand.
    """

    fixed: float
    draw: float
    plain: float
    event: float
    partners: float
    paired: float

    @classmethod
    def take(cls, lr: torch.Tensor, count: int, network: torch.nn.Module, spec: Recipe) -> Sample:
        """Condense `count` patches under a recipe of `shortened` and look at the clock before every step."""
        times = [time.monotonic()]

        def note() -> bool:
            times.append(time.monotonic())
            return len(times) == STEPS + 2

        with suppress(Stopped):
            condense_instance(lr, count, network, spec, "forecast", should_stop=note)
        # Steps 0 and 1 are plain and meet a draw each; 3 groups all tiles, 4 pairs them and meets the partners at one
        # draw, 5 at the other.
        fixed, first, second, plain, groups, pairs, partners, *rest = (late - early for early, late in pairwise(times))
        paired = min(rest)
        return cls(
            fixed=fixed,
            draw=max(min(first, second) - plain, 0),
            plain=plain,
            event=max(groups - plain, pairs - partners, 0),
            partners=max(partners - paired, 0),
            paired=paired,
        )


def predict_seconds(
    recipe: Recipe, instances: list[Instance], network: torch.nn.Module, processes: int, device: torch.device
) -> float:
    """Seconds that workers will need for all photographs, by a calibration of about ten seconds on this device.

    Precomputation grows with the real patches of a photograph, steps with its synthetic ones. Reading the photographs
    and making HR come on top; workers are taken not to slow each other down.

    Args:
        recipe: The recipe.
        instances: The photographs and their synthetic patches; at least one of which has any.
        network: The extractor.
        processes: Workers.
        device: Where they compute.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.workers.threads)
    network = network.to(device).eval().requires_grad_(False)
    work = [instance for instance in instances if instance.count]
    typical = sorted(work, key=lambda instance: instance.count)[len(work) // 2]
    lr, _ = real_patches(typical, open_source(**recipe.source.model_dump()), recipe)
    represented = lr[represented_patches(lr, recipe)]
    fraction = len(represented) / len(lr)  # taken to be the same for all photographs
    samples, scale = _calibrate(represented, network, shortened(recipe))
    torch.set_num_threads(threads)
    reals = [max(round(fraction * instance.patches), 1) for instance in work]
    seconds = [
        scale * _seconds(real, instance.count, samples, recipe) for real, instance in zip(reals, work, strict=True)
    ]
    return max(sum(seconds) / processes, max(seconds))


def _calibrate(lr: torch.Tensor, network: torch.nn.Module, spec: Recipe) -> tuple[Samples, float]:
    """Samples of both sizes in turn, and what to multiply their seconds by.

    The processor's libraries are warmed up by a sample of a quarter of the pixels. Where that is slow already, the
    other samples are cut like it: nearly all of the work is proportional to the pixels.
    """
    half = max(lr.shape[-1] // 2, spec.transform.neighborhood + spec.assignment.tile)
    cut = lr[..., :half, :half]
    sizes = sorted({(min(real, len(lr)), count) for real, count in SIZES})
    begun = time.monotonic()
    Sample.take(cut[: sizes[0][0]], sizes[0][1], network, spec)
    small = cut if time.monotonic() - begun > SLOW else lr
    samples: Samples = {size: [] for size in sizes}
    for _ in range(ROUNDS):
        for (real, count), found in samples.items():
            found.append(Sample.take(small[:real], count, network, spec))
        if time.monotonic() - begun > CALIBRATION_SECONDS:
            break
    return samples, lr[0].numel() / small[0].numel()


def shortened(recipe: Recipe) -> Recipe:
    """The recipe without choosing, with two draws and a few steps: all is grouped at step 3 and paired at step 4."""
    steps = STEPS + 1  # the last one is not made
    changes = {
        "patches": {"complexity": "all"},
        "loss": {"draws": "bank", "bank_size": 2},
        "assignment": {"warmup": 3 / steps, "interval": 1 / steps, "events": 1},
        "optimizer": {"steps": steps, "initial": "real"},
        "workers": {"log_every": steps + 1, "checkpoint_every": steps + 1},
    }
    # Copies are not checked: milestones that fall on one step do no harm here.
    return recipe.model_copy(
        update={section: getattr(recipe, section).model_copy(update=keys) for section, keys in changes.items()}
    )


def _seconds(real: int, synthetic: int, samples: Samples, recipe: Recipe) -> float:
    """Seconds of one photograph with so many real and synthetic patches."""

    def at(part: str, size: int, axis: int) -> float:
        """A part at a size, on the line through what was measured at the sizes `axis` of the samples."""
        # Nothing is ever faster than it can be.
        points = sorted((key[axis], min(getattr(sample, part) for sample in found)) for key, found in samples.items())
        (small, seconds), (large, more) = points[0], points[-1]
        slope = (more - seconds) / (large - small) if large > small else more / large
        return more + (size - large) * max(slope, 0)

    loss, spec, steps = recipe.loss, recipe.assignment, recipe.optimizer.steps
    events = len(assignment_events(recipe))
    paired = max(1 - spec.warmup - spec.interval * events / 2, 0) if events else 0.0  # mean share of paired tiles
    fresh = loss.draws == "fresh"
    draws = steps if fresh else min(loss.bank_size, steps)
    between = min(loss.bank_size, spec.interval * steps)
    cut = piece_size(synthetic, recipe.patches.size**2) < synthetic  # then forward passes are made twice
    remade = paired * steps if fresh or cut or not events else between * spec.events / 2 + draws
    plain, whole = at("plain", synthetic, 1), at("paired", synthetic, 1)
    chosen = min(SUBSET_DRAWS, loss.bank_size) if recipe.optimizer.initial == "cf-greedy" else 0
    measured = HELD_OUT_DRAWS * (RANDOM_SUBSETS + 1) / 4  # a forward pass is about a quarter of a step
    return (
        at("fixed", real, 0)
        + (draws + chosen + HELD_OUT_DRAWS) * at("draw", real, 0)
        + measured * plain
        + steps * ((1 - paired) * plain + paired * whole) * (1 + 2 / recipe.workers.log_every) * (4 / 3 if cut else 1)
        + remade * at("partners", synthetic, 1)
        + events * at("event", real, 0)
    )

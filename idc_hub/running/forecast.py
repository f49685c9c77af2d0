"""How long a condensation will take: the loop itself is run for a few steps on a few patches, and scaled up."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from idc_hub.condensation.condense import condense_instance
from idc_hub.images.sources import open_source
from idc_hub.running.worker import real_patches

if TYPE_CHECKING:
    import torch

    from idc_hub.recipe import Recipe
    from idc_hub.storage.run import Share

CALIBRATION_SECONDS = 8.0
ROUNDS = 3
REAL_PATCHES = (16, 32)
STEPS = 7

Samples = dict[tuple[int, int], list["Sample"]]
"""By real and synthetic patches; one size, or a small and a large one."""


@dataclass(frozen=True)
class Sample:
    """Seconds of the parts of one short condensation.

    Attributes:
        fixed: What happens once, draws excepted: features, groups, the final measurement.
        draw: The real side at one draw.
        plain: A step with no tile paired.
        event: One event of the assignment.
        partners: Rows of all real partners at one draw.
        paired: A step with all tiles paired, whose partners' rows are at hand.
    """

    fixed: float
    draw: float
    plain: float
    event: float
    partners: float
    paired: float

    @classmethod
    def take(
        cls, lr: torch.Tensor, offsets: torch.Tensor, count: int, network: torch.nn.Module, spec: Recipe
    ) -> Sample:
        """Condense `count` patches under a recipe of `shortened` and look at the clock before every step."""
        begun, times = time.monotonic(), []

        def note() -> bool:
            times.append(time.monotonic())
            return False

        condense_instance(lr, offsets, count, network, spec, "forecast", should_stop=note)
        ended = time.monotonic()
        # Steps 0 and 1 are plain, the first with a new draw; 2 groups all tiles, 3 pairs them; the last is not closed.
        first, plain, groups, pairs, *rest = (later - earlier for earlier, later in pairwise(times))
        paired = min(rest)
        return cls(
            fixed=times[0] - begun + max(ended - times[-1] - paired, 0),
            draw=max(first - plain, 0),
            plain=plain,
            event=max(groups - plain, 0),
            partners=max(pairs - paired - (groups - plain), 0),
            paired=paired,
        )


def predict_seconds(
    recipe: Recipe, shares: list[Share], network: torch.nn.Module, processes: int, device: torch.device
) -> float:
    """Seconds that workers will need for all photographs, by a calibration of about ten seconds on this device.

    Precomputation grows with the real patches of a photograph, steps with its synthetic ones. Reading the photographs
    and making HR come on top; workers are taken not to slow each other down.

    Args:
        recipe: The recipe.
        shares: The photographs and their synthetic patches; at least one of which has any.
        network: The extractor.
        processes: Workers.
        device: Where they compute.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.workers.threads)
    network = network.to(device).eval().requires_grad_(False)
    work = [share for share in shares if share.count]
    typical = sorted(work, key=lambda share: share.count)[len(work) // 2]
    lr, offsets = real_patches(typical, open_source(**recipe.source.model_dump()), recipe)
    spec = shortened(recipe)
    sizes = {(min(REAL_PATCHES[0], len(lr)), 1), (min(REAL_PATCHES[1], len(lr)), min(typical.count, 4))}
    samples: Samples = {size: [] for size in sorted(sizes)}
    begun = time.monotonic()
    for round_ in range(ROUNDS):
        for (real, count), found in samples.items():
            found.append(Sample.take(lr[:real], offsets[:real], count, network, spec))
        if round_ and time.monotonic() - begun > CALIBRATION_SECONDS:
            break
    torch.set_num_threads(threads)
    seconds = [_seconds(share.instance.patches, share.count, samples, recipe) for share in work]
    return max(sum(seconds) / processes, max(seconds))


def shortened(recipe: Recipe) -> Recipe:
    """The recipe with a few steps, in which all is grouped at step 2 and paired at step 3, and one draw."""
    changes = {
        "loss": {"draws": "bank", "bank_size": 1},
        "assignment": {"warmup": 2 / STEPS, "interval": 1 / STEPS, "events": 1},
        "optimiser": {"steps": STEPS},
        "workers": {"log_every": STEPS + 1, "checkpoint_every": STEPS + 1},
    }
    # Copies are not checked: milestones that fall on one step do no harm here.
    return recipe.model_copy(
        update={section: getattr(recipe, section).model_copy(update=keys) for section, keys in changes.items()}
    )


def _seconds(real: int, synthetic: int, samples: Samples, recipe: Recipe) -> float:
    """Seconds of one photograph with so many real and synthetic patches."""

    def at(part: str, size: int, axis: int) -> float:
        """A part at a size, on the line through what was measured at the sizes `axis` of the samples."""
        # The first round also warms the processor's libraries up, and nothing is ever faster than it can be.
        points = sorted((key[axis], min(getattr(sample, part) for sample in found)) for key, found in samples.items())
        (small, seconds), (large, more) = points[0], points[-1]
        slope = (more - seconds) / (large - small) if large > small else more / large
        return more + (size - large) * max(slope, 0)

    loss, spec, steps = recipe.loss, recipe.assignment, recipe.optimiser.steps
    paired = max(1 - spec.warmup - spec.interval * spec.events / 2, 0)  # mean share of paired tiles
    fresh = loss.draws == "fresh"
    draws = steps if fresh else min(loss.bank_size, steps)
    between = min(loss.bank_size, spec.interval * steps)
    remade = paired * steps if fresh else between * spec.events / 2 + draws
    plain, whole = at("plain", synthetic, 1), at("paired", synthetic, 1)
    return (
        at("fixed", real, 0)
        + draws * at("draw", real, 0)
        + steps * ((1 - paired) * plain + paired * whole) * (1 + 2 / recipe.workers.log_every)
        + remade * at("partners", synthetic, 1)
        + (spec.events + 1) * at("event", synthetic, 1)
    )

"""Does the drawing of crops keep up with the device?

    python benchmarks/data_loading.py [--batch-size 16] [--step-milliseconds 5]

Samples a second of training steps whose batches are drawn as `idc train` draws them, from a pixel file of photographs
of DIV2K's size, against the same steps on one batch in memory. On a GPU a step is one of edsr-baseline in bf16. Without
one the device is a clock: like a GPU it takes steps from a queue, needs some milliseconds for each, and the program
waits only when the queue is full. A ratio of 1 means that the device never waits for data.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import l1_loss

from idc_hub.networks import create
from idc_hub.training.crops import Batch, draw_batch, turned
from idc_hub.training.pixels import PixelFile
from idc_hub.training.prefetch import prefetch
from idc_hub.training.recipe import TrainingRecipe

HEIGHT, WIDTH, SCALE = 1356, 2040, 4


def real_step() -> Callable[[Batch], None]:
    """A training step of edsr-baseline on the GPU."""
    network = create("edsr-baseline", scale=SCALE).cuda().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(network.parameters())

    def step(batch: Batch) -> None:
        lr, hr, turns = (tensor.cuda(non_blocking=True) for tensor in batch)
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            sr = network(turned(lr, turns))
        l1_loss(sr.float(), turned(hr, turns)).backward()
        optimizer.step()

    return step


class Clock:
    """A device that is busy for `seconds` with every step, and has up to `QUEUE` steps waiting."""

    QUEUE = 4

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.free_at = 0.0

    def __call__(self, batch: Batch) -> None:
        self.free_at = max(self.free_at, time.perf_counter()) + self.seconds
        time.sleep(max(0.0, self.free_at - self.QUEUE * self.seconds - time.perf_counter()))


def samples_a_second(batches: Iterable[Batch], step: Callable[[Batch], None], warm_up: int = 10) -> float:
    """Crops a second over all batches but the first few."""
    samples, begun = 0, 0.0
    for number, batch in enumerate(batches):
        if number == warm_up:
            _wait()
            begun = time.perf_counter()
        step(batch)
        samples += len(batch.lr) if number >= warm_up else 0
    _wait()
    return samples / (time.perf_counter() - begun)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    """Print the two rates and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--crop", type=int, default=48, help="LR pixels")
    parser.add_argument("--step-milliseconds", type=float, default=5.0, help="of the clock, where there is no GPU")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--photographs", type=int, default=100)
    arguments = parser.parse_args()

    gpu = torch.cuda.is_available()
    recipe = TrainingRecipe(batch_size=arguments.batch_size, crop=arguments.crop)
    random = np.random.default_rng(0)
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name, "pixels")
    height, width = HEIGHT // SCALE, WIDTH // SCALE
    with path.open("wb") as file:
        for _ in range(arguments.photographs):
            file.write(random.integers(0, 256, height * width * 3 * (1 + SCALE**2), dtype=np.uint8).data)
    sizes = {f"{number:04}": (height, width) for number in range(arguments.photographs)}
    pairs = PixelFile(str(path), SCALE, sizes, sha256="").map()
    draw = partial(draw_batch, pairs, tuple(pairs), recipe, SCALE, pinned=gpu)
    step = real_step() if gpu else Clock(arguments.step_milliseconds / 1000)
    device = torch.cuda.get_device_name() if gpu else f"{arguments.step_milliseconds} ms of a clock"
    held = samples_a_second(repeat(draw(1), arguments.steps), step)
    drawn = samples_a_second(prefetch(draw, range(1, arguments.steps + 1)), step)
    alone = samples_a_second(prefetch(draw, range(1, arguments.steps + 1)), lambda batch: None)
    print(f"a step:            {device}, {recipe.batch_size} crops of {recipe.crop} LR pixels")
    print(f"held in memory:    {held:8,.0f} samples/s")
    print(f"drawn as in train: {drawn:8,.0f} samples/s, ratio {drawn / held:.3f}")
    print(f"drawing alone:     {alone:8,.0f} samples/s")


if __name__ == "__main__":
    main()

"""Gradient noise of independent and of orthogonal frequencies (`loss.frequency_kind`), on photographs and extractors.

    PYTHONPATH=. python benchmarks/frequencies.py PHOTOGRAPH.png ... --networks edsr-small FOLDER

The gradient is that of the instance term (paper Eq. 6) in the pixels of two random real patches under noise. Its noise
is the root mean square distance of single draws from their mean, divided by the length of the mean; `draws` draws
filters and frequencies, as an optimization does, `frequencies` draws only the frequencies.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from idc_hub.condensation.condense import random_subset
from idc_hub.condensation.discrepancy import set_distance, set_sums
from idc_hub.condensation.real_side import Draw, RealSide, extract
from idc_hub.images.files import decode_png
from idc_hub.images.patches import windows
from idc_hub.images.resize import imresize, mod_crop
from idc_hub.networks.extractors import load_extractor
from idc_hub.recipe import Recipe

KINDS = [("iid", 512), ("orthogonal", 512), ("iid", 1024)]
SIZE, REAL, SYNTHETIC = 32, 6, 2


def recipe(kind: str, frequencies: int, overrides: Sequence[str] = ()) -> Recipe:
    """The default preset with all real patches and the instance term alone."""
    return Recipe.from_dict(
        {
            "name": "frequencies",
            "source": {"path": "none"},
            "patches": {"size": SIZE, "stride": SIZE, "complexity": "all"},
            "loss": {"frequencies": frequencies, "frequency_kind": kind, "group_weight": 0, "pair_weight": 0},
        },
        overrides,
    )


def real_patches(photograph: Path) -> Tensor:
    """uint8 `[REAL, 3, SIZE, SIZE]`, evenly spaced LR patches of a photograph at scale 4."""
    lr = imresize(mod_crop(decode_png(photograph.read_bytes()), 4), 1 / 4).transpose(2, 0, 1)
    places = windows(*lr.shape[1:], SIZE, SIZE)
    chosen = [places[number] for number in np.linspace(0, len(places) - 1, REAL).round().astype(int)]
    return torch.from_numpy(np.stack([lr[:, top : top + SIZE, left : left + SIZE] for top, left in chosen]))


def gradients(lr: Tensor, network: nn.Module, spec: Recipe, draws: int, *, same_filters: bool) -> Tensor:
    """Gradients in the pixels, one a row, of as many draws."""
    real = RealSide(lr, network, spec, "photograph")
    rng = torch.Generator().manual_seed(0)
    patches = real.lr[random_subset(real, SYNTHETIC, "noise")].float() / 255
    patches = (patches + 0.05 * torch.randn(patches.shape, generator=rng).to(patches)).clamp(0, 1).requires_grad_()
    raw = extract(network, patches, spec)
    first, found = real.draw(0, real.statistics), []
    for number in range(draws):
        draw = real.draw(number, real.statistics)
        if same_filters:
            draw = Draw(first.filters, draw.freqs)
        maps = raw.detach().requires_grad_()
        samples = real.samples(real.normalize(maps), draw)
        sums = set_sums(samples, draw.freqs, torch.ones(1, len(samples), device=samples.device), spec.loss)[0]
        distance = set_distance(real.targets(draw, real.statistics).instance, sums / len(samples), spec.loss)
        (in_maps,) = torch.autograd.grad(distance, maps)
        (in_pixels,) = torch.autograd.grad(raw, patches, in_maps, retain_graph=True)
        found.append(in_pixels.flatten())
    return torch.stack(found)


def noises(rows: Sequence[Tensor]) -> list[float]:
    """The noise of each set of `gradients`, whose common mean is that of all of them."""
    mean = torch.cat(list(rows)).mean(0)
    return [float((row - mean).square().sum(1).mean().sqrt() / mean.norm()) for row in rows]


def main() -> None:
    """Print a row for each network, photograph and way to draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photographs", nargs="+", type=Path)
    parser.add_argument("--networks", nargs="+", default=["edsr-small"], help="names or folders")
    parser.add_argument("--draws", type=int, default=10, help="draws of each kind (default: %(default)s)")
    parser.add_argument("--set", nargs="+", default=[], metavar="section.key=value", help="other recipe keys")
    options = parser.parse_args()
    specs = [recipe(kind, count, options.set) for kind, count in KINDS]
    torch.set_num_threads(1)
    begun = time.process_time()
    print("network", "photograph", "drawn", *(f"{kind} {count}" for kind, count in KINDS), sep="\t")
    for name in options.networks:
        network = load_extractor(name, specs[0].features.layer, scale=4, size=SIZE).network
        for photograph in options.photographs:
            lr = real_patches(photograph)
            for drawn in ("draws", "frequencies"):
                rows = [
                    gradients(lr, network, spec, options.draws, same_filters=drawn == "frequencies") for spec in specs
                ]
                noise = (f"{each:.3f}" for each in noises(rows))
                print(Path(name).stem, photograph.stem, drawn, *noise, sep="\t", flush=True)
    print(f"{time.process_time() - begun:.0f} s of CPU")


if __name__ == "__main__":
    main()

"""PSNR and SSIM of a network or a teacher on a test set, each number under its Protocol."""

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import ceil
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from idc_hub.atomic import write_text_atomically
from idc_hub.errors import RecipeError, one_line
from idc_hub.images.metrics import Protocol, psnr, ssim
from idc_hub.networks import weights_sha256
from idc_hub.networks.foreign import Foreign
from idc_hub.networks.teachers import MARGIN, NonFiniteError, Teacher, upscale
from idc_hub.networks.tiling import tiled
from idc_hub.recipe import Source
from idc_hub.training.pairing import set_name
from idc_hub.training.pairs import location_of, read_pairs
from idc_hub.training.pixels import pixels_sha256

RESULTS = "results.json"
TILE_OVERLAP = 32  # LR pixels; a multiple of our networks' windows, so that tiles and image have the same windows

Upscaler = nn.Module | Foreign | Teacher


def evaluate(
    upscaler: Upscaler,
    testset: str | Path | Source,
    protocols: Sequence[Protocol],
    *,
    lr_location: str | Path | None = None,
    tile: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Upscale every LR image of a test set, and compare it with its HR image.

    A network, third-party or ours, sees the whole LR image and nothing around it, in float32, as the literature
    evaluates. A teacher does what it does to patches; its protocol says so. SR is rounded to uint8 before it is
    measured. Images are read twice: first all of them are checked, then each is upscaled.

    Args:
        upscaler: A network or a teacher of the protocols' scale.
        testset: HR images: a folder or whatever else `images.sources.open_source` opens; or a recipe's `Source`.
        protocols: What to measure, all of one scale. `lr_given` and `upscaling` are filled in here.
        lr_location: LR images, paired as `training.pairing.pair_files` does; without it `imresize` makes them.
        tile: Side of the tiles, in LR pixels, in which a network upscales a large image; None: the whole image at once.
        on_progress: Called after each image with the number done and the number of images.

    Returns:
        For JSON: "testset" (its name), "sha256" (`pixels_sha256` of its pairs), "images" (their number), "lr_given",
        "pairing" (what is paired with what), "left_out" (names of files that are no images), and "protocols": for each
        `str(protocol)` the mean "psnr" (dB) and "ssim", and "per_image" with both for each image, to 4 decimals.

    Raises:
        ImageError: There is no such test set, or images cannot be used; all of them are named.
        NetworkError: The output for an image has NaN or Inf.
        RecipeError: Tiles were requested from a teacher that is no network, or do not fit the network.
    """
    enlarge, upscaling = _upscaling(upscaler, tile)
    pairs = read_pairs(testset, protocols[0].scale, lr_location=lr_location)
    protocols = [replace(protocol, lr_given=pairs.lr_given, upscaling=upscaling) for protocol in protocols]
    digest = pixels_sha256(pairs)
    scores: dict[str, dict[str, tuple[float, float]]] = {str(protocol): {} for protocol in protocols}
    for done, (name, (lr, hr)) in enumerate(pairs, start=1):
        batch = torch.from_numpy(lr).permute(2, 0, 1)[None]
        try:
            enlarged = enlarge(batch, name)
        except NonFiniteError as error:
            raise error.told_of(f"The network {getattr(upscaler, 'name', '')}".rstrip(), [name]) from error
        sr = enlarged[0].permute(1, 2, 0).numpy()
        for protocol in protocols:
            scores[str(protocol)][name] = psnr(sr, hr, protocol), ssim(sr, hr, protocol)
        if on_progress:
            on_progress(done, len(pairs))
    return {
        "testset": set_name(location_of(testset)),
        "sha256": digest,
        "images": len(pairs),
        "lr_given": pairs.lr_given,
        "pairing": pairs.pairing,
        "protocols": {protocol: _table(per_image) for protocol, per_image in scores.items()},
        "left_out": list(pairs.left_out),
    }


def save_result(folder: Path, result: dict[str, Any]) -> None:
    """Keep a result of `evaluate` in the network's folder, for its model card.

    `results.json` contains `{"weights_sha256", "results"}`. There is one result for each test set, by the digest of its
    pixels and whether LR was given, with the newest figures under each protocol. Results of other weights are dropped.
    The file is written atomically.
    """
    results = read_results(folder)

    def identity(entry: dict[str, Any]) -> tuple[Any, ...]:
        return entry.get("sha256"), entry.get("lr_given")

    earlier = [entry for entry in results if identity(entry) == identity(result)]
    others = [entry for entry in results if identity(entry) != identity(result)]
    protocols = {key: table for entry in earlier for key, table in entry["protocols"].items()}
    results = [*others, result | {"protocols": protocols | result["protocols"]}]
    results.sort(key=lambda entry: (entry["testset"], str(entry.get("lr_given")), str(entry.get("sha256"))))
    facts = {"weights_sha256": weights_sha256(folder, scale=None), "results": results}
    write_text_atomically(folder / RESULTS, json.dumps(facts, indent=2) + "\n")


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The results in `results.json` that were measured with the network's present weights; none if it is damaged."""
    path = folder / RESULTS
    if not path.exists():
        return []
    try:
        saved = json.loads(path.read_bytes())
        for result in saved["results"]:
            result["testset"], result["protocols"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(f"{path} is damaged ({one_line(error)}); its results are measured again.", stacklevel=1)
        return []
    return saved["results"] if saved.get("weights_sha256") == weights_sha256(folder, scale=None) else []


def _upscaling(upscaler: Upscaler, tile: int | None) -> tuple[Callable[[Tensor, str], Tensor], str]:
    """How to upscale an image (uint8 `[1, 3, h, w]`, its name), and what the protocol says about it."""
    if isinstance(upscaler, Teacher):
        if tile:
            raise RecipeError(f"--tile is for networks: {upscaler.name} upscales an image at once.", "Leave it out.")
        margin = f"{MARGIN} LR pixels mirrored around"
        upscaling = {"bicubic": "upscaled by imresize", "diffusers": f"upscaled by diffusion, {margin}"}
        return lambda lr, name: upscaler(lr, [name]), upscaling.get(upscaler.kind, margin)
    network: Callable[[Tensor], Tensor]
    if isinstance(upscaler, Foreign):
        module, network, multiple = upscaler.network, upscaler.enlarge, upscaler.multiple
    else:
        module, network, multiple = upscaler, upscaler, 1
    if tile:
        if tile % multiple:
            raise RecipeError(f"{upscaler.name} needs tiles whose side is a multiple of {multiple}, not {tile}.")
        overlap = ceil(TILE_OVERLAP / multiple) * multiple
        network = partial(tiled, network, tile=tile, overlap=overlap)
    weight = next(module.parameters(), None)
    enlarge = partial(
        upscale, network, multiple=multiple, device=torch.device("cpu") if weight is None else weight.device
    )
    return lambda lr, name: enlarge(lr), ""


def _table(per_image: dict[str, tuple[float, float]]) -> dict[str, Any]:
    def row(psnr: float, ssim: float) -> dict[str, float]:
        return {"psnr": round(psnr, 4), "ssim": round(ssim, 4)}

    mean_psnr, mean_ssim = (fmean(values) for values in zip(*per_image.values(), strict=True))
    return row(mean_psnr, mean_ssim) | {"per_image": {name: row(*pair) for name, pair in per_image.items()}}

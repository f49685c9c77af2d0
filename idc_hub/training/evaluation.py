"""PSNR and SSIM of a network or a teacher on a test set, each number under its Protocol."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from idc_hub.images.metrics import Protocol, psnr, ssim
from idc_hub.networks import weights_sha256
from idc_hub.networks.teachers import NonFiniteError, Teacher, upscale
from idc_hub.networks.tiling import tiled
from idc_hub.training.pairs import read_pairs

RESULTS = "results.json"
TILE_OVERLAP = 32  # LR pixels; a multiple of every window, so that tiles of such sides keep the image's windows


def evaluate(
    upscaler: nn.Module | Teacher,
    testset: str | Path,
    protocols: Sequence[Protocol],
    *,
    lr_location: str | Path | None = None,
    tile: int | None = None,
) -> dict[str, Any]:
    """Upscale every LR image of a test set and compare it with its HR image.

    A network sees the whole LR image and nothing around it, in float32, as the literature evaluates; a
    teacher does what it does to patches. Both results are uint8 before they are measured.

    Args:
        upscaler: A network or a teacher of the protocols' scale.
        testset: HR images: a folder, or what else `images.sources.open_source` opens.
        protocols: What to measure, all of one scale.
        lr_location: LR images under the HR images' names; without it they are made by `imresize`.
        tile: Side, in LR pixels, of the tiles that a network computes a large image in; None: the whole at once.

    Returns:
        `{"testset", "images", "protocols"}`, ready for JSON; under "protocols" for each `str(protocol)` the
        mean "psnr" (dB) and "ssim", and "per_image" with the two for each image. Rounded to 4 decimals.

    Raises:
        ImageError: There is no such test set, or an image does not fit.
        NetworkError: What was made of an image has NaN or Inf in it.
    """
    pairs = read_pairs(testset, protocols[0].scale, lr_location=lr_location)
    if not isinstance(upscaler, Teacher):
        network = partial(tiled, upscaler, tile=tile, overlap=TILE_OVERLAP) if tile else upscaler
        enlarge: Callable[[Tensor], Tensor] = partial(upscale, network, device=next(upscaler.parameters()).device)
    scores: dict[str, dict[str, tuple[float, float]]] = {str(protocol): {} for protocol in protocols}
    for name, (lr, hr) in pairs.items():
        batch = torch.from_numpy(lr).permute(2, 0, 1)[None]
        try:
            enlarged = upscaler(batch, [name]) if isinstance(upscaler, Teacher) else enlarge(batch)
        except NonFiniteError as error:
            raise error.told_of(f"The network {getattr(upscaler, 'name', '')}".rstrip(), [name]) from error
        sr = enlarged[0].permute(1, 2, 0).numpy()
        for protocol in protocols:
            scores[str(protocol)][name] = psnr(sr, hr, protocol), ssim(sr, hr, protocol)
    return {
        "testset": Path(testset).name,
        "images": len(pairs),
        "protocols": {protocol: _table(per_image) for protocol, per_image in scores.items()},
    }


def save_result(folder: Path, result: dict[str, Any]) -> None:
    """Keep what `evaluate` found in the folder of the network, where its model card is made from.

    `results.json` holds `{"weights_sha256", "results"}`: for every test set the newest result. Those of other
    weights are dropped. The file appears whole or not at all.
    """
    path, digest = folder / RESULTS, weights_sha256(folder, scale=None)
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    earlier = kept["results"] if kept.get("weights_sha256") == digest else []
    results = [old for old in earlier if old["testset"] != result["testset"]] + [result]
    facts = {"weights_sha256": digest, "results": sorted(results, key=lambda entry: entry["testset"])}
    temporary = folder / (RESULTS + ".tmp")
    temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def _table(per_image: dict[str, tuple[float, float]]) -> dict[str, Any]:
    def row(psnr: float, ssim: float) -> dict[str, float]:
        return {"psnr": round(psnr, 4), "ssim": round(ssim, 4)}

    mean_psnr, mean_ssim = (fmean(values) for values in zip(*per_image.values(), strict=True))
    return row(mean_psnr, mean_ssim) | {"per_image": {name: row(*pair) for name, pair in per_image.items()}}

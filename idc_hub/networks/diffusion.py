"""Diffusion teachers: the two upscaling pipelines of diffusers, made reproducible.

A pipeline's output for a patch depends only on the patch, the weights, and the settings: we seed its noise with a
hash of the seed and the patch's pixels, so the other patches in a batch don't matter.
"""

import hashlib
import inspect
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from idc_hub.errors import NetworkError
from idc_hub.networks.foreign import infinite_as_nan, package, read_json, told, weights_digest
from idc_hub.networks.registry import PIPELINE, refuse_non_finite

LATENT, STABLE = "LDMSuperResolutionPipeline", "StableDiffusionUpscalePipeline"
STEPS = {LATENT: 100, STABLE: 75}
"""Default denoising steps per pipeline. These and the next two are diffusers' own defaults."""
GUIDANCE = 9.0
NOISE_LEVEL = 20  # noise that Stable Diffusion's upscaler adds to the patch first


@dataclass(frozen=True)
class Diffusion:
    """A pipeline and its settings.

    Attributes:
        pipeline: An `LDMSuperResolutionPipeline` or a `StableDiffusionUpscalePipeline`.
        scale: Output size over input size.
        multiple: Input sides must be multiples of this.
        settings: "pipeline", "scheduler", "steps", and "seed"; for Stable Diffusion, also "guidance" and "prompt".
    """

    pipeline: Any
    scale: int
    multiple: int
    settings: dict[str, Any]

    def __call__(self, lr: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Float `[B, 3, h, w]` in [0, 1] to `[B, 3, scale*h, scale*w]`, with one noise generator per patch."""
        pipeline, settings = self.pipeline, self.settings
        common = {"num_inference_steps": settings["steps"], "generator": generators, "output_type": "pt"}
        if settings["pipeline"] == STABLE:
            prompts = [settings["prompt"]] * len(lr)
            guidance = {"guidance_scale": settings["guidance"], "noise_level": NOISE_LEVEL}
            hr: Tensor = pipeline(prompts, lr, **guidance, **common).images
            return hr
        # This pipeline uses the generators for the initial noise only; its scheduler would use the global one.
        step = partial(type(pipeline.scheduler).step, pipeline.scheduler)
        if "generator" in inspect.signature(step).parameters:
            pipeline.scheduler.step = partial(step, generator=generators)
        hr = pipeline(2 * lr - 1, **common).images
        return hr

    def generators(self, lr: Tensor) -> list[torch.Generator]:
        """A noise generator per patch of uint8 `[B, 3, h, w]`, on the CPU so that noise is the same on every device."""
        return [torch.Generator().manual_seed(_seed(self.settings["seed"], patch)) for patch in lr]

    def weights_sha256(self) -> str | None:
        """Digest of the weights of all the pipeline's networks."""
        parts = {name: part for name, part in self.pipeline.components.items() if isinstance(part, nn.Module)}
        return weights_digest(nn.ModuleDict(parts))


def load_diffusion(
    spec: str | Path,
    folder: Path,
    *,
    device: str | torch.device = "cpu",
    steps: int | None = None,
    guidance: float | None = None,
    prompt: str = "",
    seed: int = 0,
) -> Diffusion:
    """Load an upscaling pipeline of diffusers in float32.

    Args:
        spec: The folder or Hub id, as the user typed it.
        folder: Contains model_index.json. The rest of a Hub pipeline is downloaded.
        device: Where to run it.
        steps: Denoising steps. Defaults to `STEPS`.
        guidance: Stable Diffusion's classifier-free guidance; 1 turns it off. Defaults to `GUIDANCE` with a prompt
            and to 1 without.
        prompt: Tells Stable Diffusion what the patches show.
        seed: Seed for all noise.

    Raises:
        NetworkError: It isn't such a pipeline, can't be loaded, doesn't take such a setting, has weights that are NaN
            or Inf, or a package is missing.
    """
    name = _check_index(spec, folder)
    if name == LATENT and (guidance is not None or prompt):
        raise NetworkError(f"{spec} is an {LATENT}, which takes no prompt and no guidance.")
    if guidance is not None and guidance > 1 and not prompt:
        raise NetworkError(
            f"Guidance {guidance} has no effect without a prompt.", "Add a prompt, or drop the guidance."
        )
    package("transformers", extra="diffusion", purpose=spec)
    pipelines = package("diffusers", extra="diffusion", purpose=spec)
    # Local folders are read as they are; for Hub models, we use the files from the same commit as the index.
    place = {} if Path(spec).expanduser().is_dir() else {"revision": folder.name}
    try:
        pipeline = getattr(pipelines, name).from_pretrained(
            str(spec) if place else str(folder), dtype=torch.float32, **place
        )
    except Exception as error:  # the library can raise anything on a damaged folder
        raise NetworkError(f"{spec} can't be loaded as {name} ({told(error)}).") from error
    for part, network in pipeline.components.items():
        if isinstance(network, nn.Module):
            refuse_non_finite(network, f"The {part} of {spec}")
    if name == LATENT:
        pipeline.vqvae.quantize.register_forward_hook(_keep_nan)
    infinite_as_nan((pipeline.vae if name == STABLE else pipeline.vqvae).decoder)
    pipeline.set_progress_bar_config(disable=True)
    settings = {
        "pipeline": name,
        "scheduler": type(pipeline.scheduler).__name__,
        "steps": steps or STEPS[name],
        "seed": seed,
    }
    if name == STABLE:
        strength = GUIDANCE if prompt else 1.0
        settings |= {"prompt": prompt, "guidance": strength if guidance is None else float(guidance)}
    scale = 2 ** (len((pipeline.vae if name == STABLE else pipeline.vqvae).config.block_out_channels) - 1)
    halvings = len(pipeline.unet.config.block_out_channels) - 1
    return Diffusion(pipeline.to(device), scale, max(scale, 2**halvings), settings)


def _keep_nan(module: nn.Module, inputs: tuple[Tensor], output: tuple[Tensor, Any, Any]) -> tuple[Tensor, Any, Any]:
    """What is NaN or Inf stays NaN through a quantizer, which would take any of its codes for it."""
    return output[0].where(inputs[0].isfinite(), torch.nan), *output[1:]


def _check_index(spec: str | Path, folder: Path) -> str:
    """The pipeline class that model_index.json names, once it and its parts are known to be safe."""
    index = read_json(folder / PIPELINE)
    name = index.pop("_class_name", None)
    if name not in (LATENT, STABLE):
        raise NetworkError(
            f"{folder / PIPELINE} names the pipeline {name!r}, which idc-hub doesn't support.",
            hint=f"It supports {LATENT} and {STABLE}.",
        )
    for part, origin in index.items():
        if isinstance(origin, list) and origin[0] not in ("diffusers", "transformers", None):
            raise NetworkError(
                f"{spec} takes its {part} from {origin[0]!r}, but only diffusers and transformers parts are allowed.",
                hint="Save the pipeline without custom code.",
            )
    return str(name)


def _seed(seed: int, patch: Tensor) -> int:
    digest = hashlib.sha256(f"{seed}\0{list(patch.shape)}\0".encode())
    digest.update(patch.cpu().numpy().tobytes())
    return int.from_bytes(digest.digest()[:7], "big")

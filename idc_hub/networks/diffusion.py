"""Diffusion pipelines as teachers: the two upscalers of diffusers, made reproducible.

What a pipeline makes of a patch depends on the patch, the weights and the settings alone: the noise comes from a
hash of the seed and the patch's own pixels, never from the patches beside it.
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
from idc_hub.networks.foreign import package, read_json, told, weights_digest
from idc_hub.networks.registry import PIPELINE

LATENT, STABLE = "LDMSuperResolutionPipeline", "StableDiffusionUpscalePipeline"
STEPS = {LATENT: 100, STABLE: 75}
"""The pipelines, and how many steps each takes unless told otherwise: diffusers' own defaults, as the next two."""
GUIDANCE = 9.0
NOISE_LEVEL = 20  # noise that Stable Diffusion's upscaler puts on the patch before it starts


@dataclass(frozen=True)
class Diffusion:
    """A pipeline with its settings.

    Attributes:
        pipeline: A `LDMSuperResolutionPipeline` or a `StableDiffusionUpscalePipeline`.
        scale: How much larger its output is.
        multiple: The sides of its input must be multiples of this.
        settings: "pipeline", "scheduler", "steps" and "seed"; with Stable Diffusion also "guidance" and "prompt".
    """

    pipeline: Any
    scale: int
    multiple: int
    settings: dict[str, Any]

    def __call__(self, lr: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Float `[B, 3, h, w]` in [0, 1] to `[B, 3, scale*h, scale*w]`, each with the noise of its generator."""
        pipeline, settings = self.pipeline, self.settings
        common = {"num_inference_steps": settings["steps"], "generator": generators, "output_type": "pt"}
        if settings["pipeline"] == STABLE:
            prompts = [settings["prompt"]] * len(lr)
            guidance = {"guidance_scale": settings["guidance"], "noise_level": NOISE_LEVEL}
            hr: Tensor = pipeline(prompts, lr, **guidance, **common).images
            return hr
        # This pipeline draws the first noise from its generators and lets its scheduler draw from the global one.
        step = partial(type(pipeline.scheduler).step, pipeline.scheduler)
        if "generator" in inspect.signature(step).parameters:
            pipeline.scheduler.step = partial(step, generator=generators)
        hr = pipeline(2 * lr - 1, **common).images
        return hr

    def generators(self, lr: Tensor) -> list[torch.Generator]:
        """For each patch of uint8 `[B, 3, h, w]` the source of its noise; on the CPU, so the same for every device."""
        return [torch.Generator().manual_seed(_seed(self.settings["seed"], patch)) for patch in lr]

    def weights_sha256(self) -> str | None:
        """Digest over the weights of all its networks."""
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
    """An upscaling pipeline of diffusers, in float32.

    Args:
        spec: The folder or the Hub id, as the user named it.
        folder: Where its model_index.json lies; what else a pipeline on the Hub needs is fetched.
        device: Where it shall run.
        steps: Denoising steps; None: as in `STEPS`.
        guidance: Classifier-free guidance of Stable Diffusion, 1 for none; None: `GUIDANCE` with a prompt, else 1.
        prompt: What Stable Diffusion is told that the patches show.
        seed: Seed of all noise.

    Raises:
        NetworkError: It is no such pipeline, cannot be loaded, takes no such setting, or a package is missing.
    """
    name = _check_index(spec, folder)
    if name == LATENT and (guidance is not None or prompt):
        raise NetworkError(f"{spec} is a {LATENT}, which takes no prompt and no guidance.")
    if guidance is not None and guidance > 1 and not prompt:
        raise NetworkError(
            f"Guidance {guidance} changes nothing without a prompt.", "Give a prompt too, or leave the guidance out."
        )
    package("transformers", extra="diffusion", purpose=spec)
    pipelines = package("diffusers", extra="diffusion", purpose=spec)
    # A folder on this machine is read as it is; of the Hub's model, the files of the same commit as the index.
    place = {} if Path(spec).expanduser().is_dir() else {"revision": folder.name}
    try:
        pipeline = getattr(pipelines, name).from_pretrained(
            str(spec) if place else str(folder), dtype=torch.float32, **place
        )
    except Exception as error:  # whatever the library raises at a damaged folder
        raise NetworkError(f"{spec} cannot be loaded as a {name} ({told(error)}).") from error
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


def _check_index(spec: str | Path, folder: Path) -> str:
    """The class that model_index.json names: one of ours, of parts that bring no code of their own."""
    index = read_json(folder / PIPELINE)
    name = index.pop("_class_name", None)
    if name not in (LATENT, STABLE):
        raise NetworkError(
            f"{folder / PIPELINE} names the pipeline {name!r}, which is no upscaler that idc-hub knows.",
            hint=f"It knows {LATENT} and {STABLE}.",
        )
    for part, origin in index.items():
        if isinstance(origin, list) and origin[0] not in ("diffusers", "transformers", None):
            raise NetworkError(
                f"{spec} takes its {part} from {origin[0]!r}: only parts of diffusers and transformers are loaded.",
                hint="Save the pipeline without code of its own.",
            )
    return str(name)


def _seed(seed: int, patch: Tensor) -> int:
    digest = hashlib.sha256(f"{seed}\0{list(patch.shape)}\0".encode())
    digest.update(patch.cpu().numpy().tobytes())
    return int.from_bytes(digest.digest()[:7], "big")

"""Teachers make the HR side: uint8 LR patches in, uint8 HR patches out.

`load_teacher` turns a name, a file, a folder or a Hub id into a `Teacher`; a new kind of teacher is one more branch
there and one function from patches to patches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from idc_hub.errors import NetworkError
from idc_hub.images.resize import imresize
from idc_hub.networks.diffusion import Diffusion, load_diffusion
from idc_hub.networks.foreign import card_license, kind_of, load_foreign, name_of, told
from idc_hub.networks.registry import load, locate, read_config, weights_sha256

KINDS = {
    "bicubic": "the word bicubic: MATLAB's imresize",
    "network": "a network of idc-hub: a name, a folder that `idc train` wrote, or such a model on the Hub",
    "spandrel": "a checkpoint file that spandrel recognizes (.safetensors, .pth, .pt, .ckpt); extra spandrel",
    "transformers": "a Swin2SRForImageSuperResolution: a folder or a model on the Hub; extra diffusion",
    "diffusers": "an LDMSuperResolutionPipeline or a StableDiffusionUpscalePipeline, likewise; extra diffusion",
    "module": "package.module:build, a function of an installed package; build(scale=4) gives a torch.nn.Module "
    "from RGB in [0, 1] to RGB in [0, 1]. Naming it runs its code",
}
"""Every kind of teacher, and what to name for it."""

MARGIN = 8
"""LR pixels mirrored around a patch before a network sees it, and cut off again.

Networks pad with zeros, which no photograph has around it: without the margin HR patches get a frame, 17 gray
levels deep on a flat color (edsr-small, x4). The mirror repeats the outermost pixel, as MATLAB's `imresize`
does. On 60 patches of photographs the outer 8 HR pixels are then as good as without a margin (24.72 against
24.73 dB); torch's own `reflect`, whose mirror lies on the outermost pixel, makes them 0.6 dB worse.
"""


@dataclass
class Teacher:
    """What makes HR from LR: call it with uint8 `[B, 3, h, w]`, get uint8 `[B, 3, scale*h, scale*w]`.

    Attributes:
        name: What the HR version is called unless the recipe says otherwise.
        kind: One of `KINDS`.
        scale: How much larger HR is.
        weights_sha256: Digest of the weights' file, or of the weights; None for what has none.
        license: License of the weights as the files beside them state it; None where they say nothing.
        upscale: The function behind the call.
        settings: Of a diffusion pipeline: "pipeline", "scheduler", "steps", "seed", "guidance", "prompt".
        largest_batch: Patches that fit into memory together; None while nothing has gone wrong.
    """

    name: str
    kind: str
    scale: int
    weights_sha256: str | None
    license: str | None
    upscale: Callable[[Tensor], Tensor]
    settings: dict[str, Any] = field(default_factory=dict)
    largest_batch: int | None = field(default=None, init=False)

    def __call__(self, lr: Tensor) -> Tensor:
        """HR patches, on the CPU. A batch that does not fit into memory is halved, and so are those after it.

        Raises:
            NetworkError: `lr` is not uint8 `[B, 3, h, w]`, what comes back is not its HR, or not even a single
                patch fits into memory.
        """
        if lr.dtype != torch.uint8 or lr.ndim != 4 or lr.shape[1] != 3:
            raise NetworkError(
                f"A teacher takes uint8 patches [B, 3, h, w], not {lr.dtype} {list(lr.shape)}.",
                hint="Round the patches to uint8 first: HR must belong to what a consumer reads.",
            )
        done: list[Tensor] = []
        while len(lr) or not done:
            batch = lr[: self.largest_batch]
            hr = self._attempt(batch)
            if hr is None:
                self.largest_batch = len(batch) // 2
                torch.cuda.empty_cache()
            else:
                done.append(hr)
                lr = lr[len(batch) :]
        return torch.cat(done)

    def _attempt(self, lr: Tensor) -> Tensor | None:
        """The HR of one batch; None where it does not fit into memory."""
        try:
            hr = self.upscale(lr)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            if len(lr) <= 1:
                raise NetworkError(
                    f"The memory does not hold what the teacher {self.name} needs for one patch of {lr.shape[2]} x "
                    f"{lr.shape[3]} pixels.",
                    hint="Free memory, use a larger device, or choose a smaller teacher.",
                ) from error
            return None
        expected = (len(lr), 3, lr.shape[2] * self.scale, lr.shape[3] * self.scale)
        if hr.dtype != torch.uint8 or tuple(hr.shape) != expected:
            raise NetworkError(
                f"The teacher {self.name} gave {hr.dtype} {list(hr.shape)} for {len(lr)} patches, "
                f"not uint8 {list(expected)}."
            )
        return hr

    def make_hr(self, keys: Sequence[tuple[str, int]], lr: Tensor) -> Tensor:
        """HR patches, whichever patches they are: a teacher sees nothing but LR."""
        return self(lr)

    def describe(self) -> dict[str, Any]:
        """The facts for `idc.json`."""
        facts = ("name", "kind", "scale", "weights_sha256", "license")
        return {fact: getattr(self, fact) for fact in facts} | self.settings


def load_teacher(spec: str | Path, *, scale: int, device: str | torch.device = "cpu", **settings: Any) -> Teacher:
    """The teacher that `spec` names.

    Args:
        spec: What to name for each kind of teacher stands in `KINDS`.
        scale: The scale of the LR patches' recipe.
        device: Where a network runs.
        **settings: Of a diffusion pipeline, as in `load_diffusion`: `steps`, `guidance`, `prompt`, `seed`.

    Raises:
        NetworkError: There is no such teacher, it is made for another scale, cannot be loaded, takes no such
            setting, or needs a package that is not installed (the sentence says how to install it).
        HubError: The Hub did not answer.
    """
    kind, path = kind_of(spec)
    if settings and kind != "diffusers":
        raise NetworkError(f"{spec} is no diffusion pipeline and takes no {', '.join(settings)}.")
    device = torch.device(device)
    if kind == "bicubic":
        return Teacher("bicubic", kind, scale, None, None, partial(_upscale_bicubic, scale=scale))
    if kind == "network":
        folder = locate(spec, scale=scale)
        network = load(folder, scale=scale).to(device)
        license = read_config(folder).get("license")
        answer = partial(upscale, network, margin=MARGIN)
        return Teacher(network.name, kind, scale, weights_sha256(folder), license, answer)
    if kind == "diffusers":
        diffusion = load_diffusion(spec, path, device=device, **settings)
        _check_scale(spec, diffusion.scale, scale)
        answer = partial(_diffuse, diffusion, device=device)
        digest, license = diffusion.weights_sha256(), card_license(path)
        return Teacher(name_of(spec), kind, scale, digest, license, answer, diffusion.settings)
    foreign = load_foreign(kind, spec, path, scale=scale, device=device)
    _check_scale(spec, foreign.scale, scale)
    answer = partial(upscale, foreign.enlarge, margin=MARGIN, multiple=foreign.multiple, device=device)
    teacher = Teacher(foreign.name, kind, scale, foreign.weights_sha256, foreign.license, answer)
    if kind == "module":
        _try(teacher, spec)
    return teacher


def upscale(
    network: Callable[[Tensor], Tensor],
    lr: Tensor,
    *,
    margin: int = 0,
    multiple: int = 1,
    device: torch.device | None = None,
) -> Tensor:
    """uint8 in, uint8 out through a network, in float32.

    Args:
        network: Maps float `[B, 3, h, w]` in [0, 1] to `[B, 3, scale*h, scale*w]`.
        lr: uint8 `[B, 3, h, w]`.
        margin: LR pixels to mirror on each side and cut off again. 0 is what the literature evaluates with.
        multiple: The network's input is mirrored further, until its sides are multiples of this.
        device: Where the network is; None: where the first parameter of this `nn.Module` is.

    Returns:
        uint8 `[B, 3, scale*h, scale*w]` on the CPU: clamped, halves rounded up.
    """
    if device is None and isinstance(network, nn.Module):
        device = next(network.parameters()).device
    x = _mirror(lr.to(device).float() / 255, margin, multiple)
    # cuDNN would otherwise compute float32 convolutions with TF32's 10 bits.
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        hr = network(x)
    scale = hr.shape[2] // x.shape[2]
    top, height, width = (pixels * scale for pixels in (margin, *lr.shape[2:]))
    hr = hr[:, :, top : top + height, top : top + width]
    return (hr.clamp(0, 1) * 255 + 0.5).floor().byte().cpu()


def _mirror(x: Tensor, margin: int, multiple: int) -> Tensor:
    """`x` with mirrors of itself around it; the outermost pixels are repeated."""
    for axis in (2, 3):
        length = x.shape[axis]
        end = ceil((length + 2 * margin) / multiple) * multiple - margin
        index = torch.arange(-margin, end, device=x.device) % (2 * length)  # to and fro: 0 1 2 2 1 0 0 1 ...
        x = x.index_select(axis, torch.minimum(index, 2 * length - 1 - index))
    return x


def _diffuse(diffusion: Diffusion, lr: Tensor, *, device: torch.device) -> Tensor:
    # On a CPU a batch saves no time, and without one not even rounding depends on the other patches.
    answers = [
        upscale(
            partial(diffusion, generators=diffusion.generators(patches)),
            patches,
            margin=MARGIN,
            multiple=diffusion.multiple,
            device=device,
        )
        for patches in lr.split(1 if device.type == "cpu" else max(1, len(lr)))
    ]
    return torch.cat(answers)


def _upscale_bicubic(lr: Tensor, *, scale: int) -> Tensor:
    images = [imresize(image, scale) for image in lr.permute(0, 2, 3, 1).cpu().numpy()]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _check_scale(spec: str | Path, found: int, wanted: int) -> None:
    if found != wanted:
        raise NetworkError(
            f"{spec} is a network for x{found}, and x{wanted} was asked for.",
            hint=f"Set the scale to {found}, or choose a network made for x{wanted}.",
        )


def _try(teacher: Teacher, spec: str | Path) -> None:
    """Let somebody else's function answer for one patch now, not after hours of condensation."""
    try:
        teacher(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    except NetworkError:
        raise
    except Exception as error:
        raise NetworkError(f"{spec} failed on a patch of 32 x 32 pixels ({told(error)}).") from error


def _is_out_of_memory(error: Exception) -> bool:
    """Whether a smaller batch may help: of the GPU by its class, elsewhere by what torch says."""
    said = ("can't allocate memory", "MPS backend out of memory", "STATUS_ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or any(text in str(error) for text in said)

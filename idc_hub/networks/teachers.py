"""Teachers generate the HR side: uint8 LR patches in, uint8 HR patches out.

`load_teacher` turns a name, file, folder, or Hub id into a `Teacher`. To add a kind of teacher, add a branch there
and a function from patches to patches.
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

from idc_hub.errors import NetworkError, first_few
from idc_hub.images.resize import imresize
from idc_hub.networks.diffusion import Diffusion, load_diffusion
from idc_hub.networks.foreign import card_license, kind_of, load_foreign, name_of, told
from idc_hub.networks.registry import load, locate, read_config, weights_sha256

KINDS = {
    "bicubic": "the word bicubic, for MATLAB's imresize",
    "network": "an idc-hub network: a name, a folder from `idc train`, or a Hub model",
    "spandrel": "a checkpoint that spandrel recognizes (.safetensors, .pth, .pt, .ckpt); needs the spandrel extra",
    "transformers": "a Swin2SRForImageSuperResolution folder or Hub model; needs the diffusion extra",
    "diffusers": "an LDMSuperResolutionPipeline or StableDiffusionUpscalePipeline folder or Hub model; needs the "
    "diffusion extra",
    "module": "package.module:build, a function in an installed package; build(scale=4) returns a torch.nn.Module "
    "from RGB in [0, 1] to RGB in [0, 1]. This runs its code",
}
"""Kinds of teachers, and how users specify each."""

MARGIN = 8
"""LR pixels to mirror around a patch before a network sees it, and to crop afterwards.

Networks pad with zeros, which real photographs don't have around them. Without the margin, HR patches get a
frame: 17 gray levels off on a flat color (edsr-small, x4). The mirror image repeats the outermost pixel, as in
MATLAB's `imresize`. On 60 photo patches, the outer 8 HR pixels are then as good as without a margin (24.72 vs.
24.73 dB). Torch's `reflect`, which doesn't repeat that pixel, makes them 0.6 dB worse.
"""


class NonFiniteError(NetworkError):
    """What a network made of some images of a batch has NaN or Inf in it.

    Attributes:
        images: Which images of the batch.
    """

    def __init__(self, images: list[int]) -> None:
        super().__init__(f"The network's output has NaN or Inf in it for {len(images)} images of the batch.")
        self.images = images

    def told_of(self, network: str, names: Sequence[str]) -> NetworkError:
        """The sentence for a user, with the network's name and the images'."""
        return NetworkError(
            f"{network} gave NaN or Inf for {first_few(names)}.",
            hint="Computing in float16 overflows like that: use float32, or choose another network.",
        )


@dataclass
class Teacher:
    """Generates HR from LR: maps uint8 `[B, 3, h, w]` to uint8 `[B, 3, scale*h, scale*w]`.

    Attributes:
        name: Default name of the HR version.
        kind: One of `KINDS`.
        scale: HR size over LR size.
        weights_sha256: Digest of the weights file or of the weights; None without weights.
        license: License of the weights, as stated by the files next to them; None if they don't.
        upscale: The function that does the work.
        settings: For a diffusion pipeline, "pipeline", "scheduler", "steps", "seed", "guidance", and "prompt".
        largest_batch: How many patches fit into memory at once; None until memory runs out.
    """

    name: str
    kind: str
    scale: int
    weights_sha256: str | None
    license: str | None
    upscale: Callable[[Tensor], Tensor]
    settings: dict[str, Any] = field(default_factory=dict)
    largest_batch: int | None = field(default=None, init=False)

    def __call__(self, lr: Tensor, names: Sequence[str] | None = None) -> Tensor:
        """HR patches, on the CPU. If a batch doesn't fit into memory, this and later batches are halved.

        Args:
            lr: uint8 `[B, 3, h, w]`.
            names: What to call the patches in an error; None: by their number.

        Raises:
            NetworkError: `lr` isn't uint8 `[B, 3, h, w]`, the result has the wrong shape or dtype or contains NaN or
                Inf, or even a single patch doesn't fit into memory.
        """
        if lr.dtype != torch.uint8 or lr.ndim != 4 or lr.shape[1] != 3:
            raise NetworkError(
                f"A teacher takes uint8 patches [B, 3, h, w], not {lr.dtype} {list(lr.shape)}.",
                hint="Round the patches to uint8 first, so that HR matches the LR that users load.",
            )
        names = names or [f"patch {number}" for number in range(len(lr))]
        done: list[Tensor] = []
        while len(lr) or not done:
            batch = lr[: self.largest_batch]
            try:
                hr = self._attempt(batch)
            except NonFiniteError as error:
                begun = len(names) - len(lr)
                bad = [names[begun + image] for image in error.images]
                raise error.told_of(f"The teacher {self.name}", bad) from error
            if hr is None:
                self.largest_batch = len(batch) // 2
                torch.cuda.empty_cache()
            else:
                done.append(hr)
                lr = lr[len(batch) :]
        return torch.cat(done)

    def _attempt(self, lr: Tensor) -> Tensor | None:
        """HR for one batch; None if it doesn't fit into memory."""
        try:
            hr = self.upscale(lr)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            if len(lr) <= 1:
                raise NetworkError(
                    f"The teacher {self.name} runs out of memory on a single patch of {lr.shape[2]} x "
                    f"{lr.shape[3]} pixels.",
                    hint="Free memory, use a larger device, or choose a smaller teacher.",
                ) from error
            return None
        expected = (len(lr), 3, lr.shape[2] * self.scale, lr.shape[3] * self.scale)
        if hr.dtype != torch.uint8 or tuple(hr.shape) != expected:
            raise NetworkError(
                f"The teacher {self.name} returned {hr.dtype} {list(hr.shape)} for {len(lr)} patches, "
                f"not uint8 {list(expected)}."
            )
        return hr

    def make_hr(self, keys: Sequence[tuple[str, int]], lr: Tensor) -> Tensor:
        """HR patches. A teacher only looks at LR; the keys name the patches in an error.

        Raises:
            NetworkError: As for a call.
        """
        return self(lr, [f"patch_index {index} of instance_id {instance_id}" for instance_id, index in keys])

    def describe(self) -> dict[str, Any]:
        """Facts for `idc.json`."""
        facts = ("name", "kind", "scale", "weights_sha256", "license")
        return {fact: getattr(self, fact) for fact in facts} | self.settings


def load_teacher(spec: str | Path, *, scale: int, device: str | torch.device = "cpu", **settings: Any) -> Teacher:
    """Load the teacher that `spec` names.

    Args:
        spec: See `KINDS`.
        scale: The recipe's scale.
        device: Where to run a network.
        **settings: For a diffusion pipeline: `steps`, `guidance`, `prompt`, and `seed`, as in `load_diffusion`.

    Raises:
        NetworkError: There is no such teacher, it is made for another scale, can't be loaded, doesn't take such a
            setting, or needs a package that isn't installed (the message says how to install it).
        HubError: The Hub can't be reached.
    """
    kind, path = kind_of(spec)
    if settings and kind != "diffusers":
        raise NetworkError(f"{spec} isn't a diffusion pipeline and doesn't take {', '.join(settings)}.")
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
    """Run a network in float32 on uint8 patches.

    Args:
        network: Maps float `[B, 3, h, w]` in [0, 1] to `[B, 3, scale*h, scale*w]`.
        lr: uint8 `[B, 3, h, w]`.
        margin: LR pixels to mirror on each side and crop afterwards. The literature evaluates with 0.
        multiple: Mirror further until the sides of the input are multiples of this.
        device: The network's device. Defaults to that of its first parameter if it is an `nn.Module`.

    Returns:
        uint8 `[B, 3, scale*h, scale*w]` on the CPU, clamped, with halves rounded up.

    Raises:
        NonFiniteError: It contains NaN or Inf.
    """
    if device is None and isinstance(network, nn.Module):
        device = next(network.parameters()).device
    x = _mirror(lr.to(device).float() / 255, margin, multiple)
    # Otherwise cuDNN may run float32 convolutions in TF32, with a 10-bit mantissa.
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        hr = network(x)
    scale = hr.shape[2] // x.shape[2]
    top, height, width = (pixels * scale for pixels in (margin, *lr.shape[2:]))
    hr = hr[:, :, top : top + height, top : top + width]
    finite = hr.isfinite().flatten(1).all(1)
    if not finite.all():
        raise NonFiniteError(torch.nonzero(~finite).flatten().tolist())
    return (hr.clamp(0, 1) * 255 + 0.5).floor().byte().cpu()


def _mirror(x: Tensor, margin: int, multiple: int) -> Tensor:
    """Surround `x` with its mirror image, which repeats the outermost pixels."""
    for axis in (2, 3):
        length = x.shape[axis]
        end = ceil((length + 2 * margin) / multiple) * multiple - margin
        index = torch.arange(-margin, end, device=x.device) % (2 * length)  # back and forth: 0 1 2 2 1 0 0 1 ...
        x = x.index_select(axis, torch.minimum(index, 2 * length - 1 - index))
    return x


def _diffuse(diffusion: Diffusion, lr: Tensor, *, device: torch.device) -> Tensor:
    # On the CPU, batches save no time, and single patches keep even rounding independent of the others.
    size = 1 if device.type == "cpu" else max(1, len(lr))
    answers = []
    for number, patches in enumerate(lr.split(size)):
        network = partial(diffusion, generators=diffusion.generators(patches))
        try:
            hr = upscale(network, patches, margin=MARGIN, multiple=diffusion.multiple, device=device)
        except NonFiniteError as error:
            raise NonFiniteError([number * size + image for image in error.images]) from error
        answers.append(hr)
    return torch.cat(answers)


def _upscale_bicubic(lr: Tensor, *, scale: int) -> Tensor:
    images = [imresize(image, scale) for image in lr.permute(0, 2, 3, 1).cpu().numpy()]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _check_scale(spec: str | Path, found: int, wanted: int) -> None:
    if found != wanted:
        raise NetworkError(
            f"{spec} is an x{found} network, but x{wanted} was requested.",
            hint=f"Set the scale to {found}, or choose an x{wanted} network.",
        )


def _try(teacher: Teacher, spec: str | Path) -> None:
    """Try a third-party function on one patch now, rather than fail after hours of condensation."""
    try:
        teacher(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), ["a black patch"])
    except NetworkError:
        raise
    except Exception as error:
        raise NetworkError(f"{spec} failed on a patch of 32 x 32 pixels ({told(error)}).") from error


def _is_out_of_memory(error: Exception) -> bool:
    """Whether a smaller batch may help, judging by the error's class on CUDA and by its message elsewhere."""
    said = ("can't allocate memory", "MPS backend out of memory", "STATUS_ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or any(text in str(error) for text in said)

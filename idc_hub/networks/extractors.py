"""Feature extractors: feature maps by layer for our networks, by module name for any other network."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from idc_hub.errors import NetworkError
from idc_hub.networks.foreign import kind_of, load_foreign, told
from idc_hub.networks.registry import load, weights_sha256

LAYERS = ("first", "last", "norm", "body")
"""Layer names of our networks; they take precedence over inner modules with the same name."""
PIXELS = "pixels"
"""The layer name for the network's input."""
RESIDUAL = "residual"
"""The layer name for what the network's output adds to bicubic upscaling: nearly all of it at edges."""

Layer = int | str


@dataclass(frozen=True)
class Extractor:
    """A frozen network with `features(lr, layer)`, and its weights' digest."""

    network: nn.Module
    weights_sha256: str


def load_extractor(
    spec: str | Path, layer: Layer | tuple[Layer, ...], *, scale: int, size: int, device: str | torch.device = "cpu"
) -> Extractor:
    """Load the network that a recipe's `features.network` names, and try it on one patch.

    Args:
        spec: As for a teacher, except bicubic and diffusion pipelines, which have no features.
        layer: Which output to use: a layer of our networks (see their `features`), the path of an inner module as
            in `named_modules()`, such as "layers.3", or several of these (see `feature_maps`).
        scale: Passed to a module's `build`. Other networks may have any scale.
        size: Side of the recipe's LR patches in pixels.
        device: Where to compute.

    Returns:
        An extractor for `feature_maps`, from float `[B, 3, size, size]` in [0, 1] to `[B, c, size, size]`.

    Raises:
        NetworkError: There is no such network or layer, its output isn't a feature map, or it blocks gradients.
        HubError: The Hub can't be reached.
    """
    kind, path = kind_of(spec)
    if kind in ("bicubic", "diffusers"):
        raise NetworkError(f"{spec} ({kind}) has no feature maps.", "Choose a network instead.")
    network: nn.Module
    if kind == "network":
        network, digest = load(spec, scale=None).requires_grad_(False).to(device), weights_sha256(spec, scale=None)
        modules = dict(network.named_modules())
        if any(name in modules and name not in LAYERS for name in _listed(layer)):
            network = Tapped(network, str(spec))
    else:
        foreign = load_foreign(kind, spec, path, scale=scale, device=device)
        if foreign.weights_sha256 is None or next(foreign.network.parameters(), None) is None:
            raise NetworkError(f"{spec} has no weights.", "A feature extractor must be a trained network.")
        network, digest = Tapped(foreign.network, str(spec)), foreign.weights_sha256
    _try(network, layer, size, torch.device(device), spec)
    return Extractor(network, digest)


def feature_maps(network: nn.Module, lr: Tensor, layer: Layer | tuple[Layer, ...]) -> Tensor:
    """The feature map of one layer, or of several layers concatenated.

    Args:
        network: An `Extractor`'s network.
        lr: Float `[B, 3, h, w]` in [0, 1].
        layer: Passed to `network.features`; "pixels" is `lr` itself, and "residual" the SR network's output minus
            bicubic upscaling, `[B, 3 * scale^2, h, w]`. A tuple concatenates its layers' channels.

    Returns:
        `[B, c, h, w]`.
    """
    maps = [_feature_map(network, lr, name) for name in _listed(layer)]
    return maps[0] if len(maps) == 1 else torch.cat(maps, dim=1)


def _feature_map(network: nn.Module, lr: Tensor, layer: Layer) -> Tensor:
    if layer == PIXELS:
        return lr
    if layer == RESIDUAL:
        sr: Tensor = network(lr)
        scale = sr.shape[-1] // lr.shape[-1]
        bicubic = nn.functional.interpolate(lr, scale_factor=scale, mode="bicubic")
        return nn.functional.pixel_unshuffle(sr - bicubic, scale)
    found: Tensor = network.features(lr, layer)  # type: ignore[operator]
    return found


def _listed(layer: Layer | tuple[Layer, ...]) -> tuple[Layer, ...]:
    return layer if isinstance(layer, tuple) else (layer,)


class Tapped(nn.Module):
    """A network whose feature maps are its inner modules' outputs.

    Args:
        network: Takes float `[B, 3, h, w]`.
        name: Name for error messages.
    """

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.network = network
        self.name = name

    def forward(self, lr: Tensor) -> Tensor:
        """The network's output."""
        sr: Tensor = self.network(lr)
        return sr

    def features(self, lr: Tensor, layer: int | str) -> Tensor:
        """An inner module's first output. The forward pass stops there.

        Args:
            lr: Float `[B, 3, h, w]` in [0, 1].
            layer: The module's path in `named_modules()`.

        Returns:
            Float `[B, c, h, w]`. Tokens `[B, h*w, c]` are reshaped into a map; a tuple counts by its first entry.

        Raises:
            NetworkError: There is no such module, it isn't called, or its output isn't a map of h x w pixels.
        """
        taken: list[Any] = []

        def take(module: nn.Module, inputs: Any, output: Any) -> None:
            taken.append(output)
            raise _Taken

        handle = self._module(str(layer)).register_forward_hook(take)
        try:
            self.network(lr)
        except _Taken:
            pass
        finally:
            handle.remove()
        if not taken:
            raise NetworkError(f"{self.name} never calls its module {layer!r}, so there is no feature map.")
        output = taken[0][0] if isinstance(taken[0], tuple) else taken[0]
        height, width = lr.shape[2:]
        if isinstance(output, Tensor) and output.ndim == 3 and output.shape[:2] == (len(lr), height * width):
            output = output.transpose(1, 2).unflatten(2, (height, width))
        if not isinstance(output, Tensor) or output.ndim != 4 or output.shape[2:] != lr.shape[2:]:
            found = list(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise NetworkError(
                f"{self.name} returns {found} at {layer!r} for LR patches {list(lr.shape)}, not a map of that size.",
                hint="Choose a module before the upsampling.",
            )
        return output

    def _module(self, path: str) -> nn.Module:
        modules = dict(self.network.named_modules())
        del modules[""]
        if path not in modules:
            close = difflib.get_close_matches(path, modules, n=3) or list(modules)[:5]
            raise NetworkError(f"{self.name} has no module {path!r}.", hint=f"It has {', '.join(close)}.")
        return modules[path]


class _Taken(Exception):
    """Stops a forward pass once we have its feature map."""


def _try(
    network: nn.Module, layer: Layer | tuple[Layer, ...], size: int, device: torch.device, spec: str | Path
) -> None:
    """Compute one patch's features and gradient now, rather than fail once workers have started."""
    lr = torch.full((1, 3, size, size), 0.5, device=device, requires_grad=True)
    try:
        features = feature_maps(network, lr, layer)
    except NetworkError:
        raise
    except Exception as error:  # third-party code can raise anything
        raise NetworkError(f"{spec} failed on a patch of {size} x {size} pixels ({told(error)}).") from error
    if not features.requires_grad:
        raise NetworkError(
            f"{spec} passes no gradient from {layer!r} to its input.", hint="Choose another layer or network."
        )

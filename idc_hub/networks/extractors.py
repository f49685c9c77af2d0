"""Feature extractors: our networks by their layers, any network by the name of one of its inner modules."""

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
"""Names that our networks give to layers; an inner module of the same name is not meant."""
PIXELS = "pixels"
"""The layer that is the network's input."""

Layer = int | str


@dataclass(frozen=True)
class Extractor:
    """A frozen network with `features(lr, layer)`, and the digest of its weights."""

    network: nn.Module
    weights_sha256: str


def load_extractor(
    spec: str | Path, layer: Layer | tuple[Layer, ...], *, scale: int, size: int, device: str | torch.device = "cpu"
) -> Extractor:
    """The network that `features.network` of a recipe names, tried out on one patch.

    Args:
        spec: As for a teacher; a diffusion pipeline and bicubic have no features.
        layer: Whose output is the feature map: what our networks call a layer (see their `features`), or the path
            of an inner module as in `named_modules()`, such as "layers.3"; or several, see `feature_maps`.
        scale: What `build` of a module is asked for. Other weights may have any scale.
        size: Side of the recipe's LR patches.
        device: Where to compute.

    Returns:
        Its network maps float `[B, 3, size, size]` in [0, 1] to `[B, c, size, size]` by `feature_maps`.

    Raises:
        NetworkError: There is no such network or layer, its output is no feature map, or no gradient passes it.
        HubError: The Hub did not answer.
    """
    kind, path = kind_of(spec)
    if kind in ("bicubic", "diffusers"):
        raise NetworkError(f"{spec} ({kind}) has no feature maps.", "Choose a network.")
    network: nn.Module
    if kind == "network":
        network, digest = load(spec, scale=None).requires_grad_(False).to(device), weights_sha256(spec, scale=None)
        modules = dict(network.named_modules())
        if any(name in modules and name not in LAYERS for name in _listed(layer)):
            network = Tapped(network, str(spec))
    else:
        foreign = load_foreign(kind, spec, path, scale=scale, device=device)
        if foreign.weights_sha256 is None or next(foreign.network.parameters(), None) is None:
            raise NetworkError(f"{spec} has no weights.", "A feature extractor is a trained network.")
        network, digest = Tapped(foreign.network, str(spec)), foreign.weights_sha256
    _try(network, layer, size, torch.device(device), spec)
    return Extractor(network, digest)


def feature_maps(network: nn.Module, lr: Tensor, layer: Layer | tuple[Layer, ...]) -> Tensor:
    """The feature map of a layer, or those of several layers stacked.

    Args:
        network: Of an `Extractor`.
        lr: Float `[B, 3, h, w]` in [0, 1].
        layer: Of `network.features`; "pixels" is `lr` itself. A tuple stacks the channels of its layers.

    Returns:
        `[B, c, h, w]`.
    """
    maps = [lr if name == PIXELS else network.features(lr, name) for name in _listed(layer)]  # type: ignore[operator]
    return maps[0] if len(maps) == 1 else torch.cat(maps, dim=1)


def _listed(layer: Layer | tuple[Layer, ...]) -> tuple[Layer, ...]:
    return layer if isinstance(layer, tuple) else (layer,)


class Tapped(nn.Module):
    """A network whose inner modules' outputs are its feature maps.

    Args:
        network: Takes float `[B, 3, h, w]`.
        name: What to call it in error messages.
    """

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.network = network
        self.name = name

    def features(self, lr: Tensor, layer: int | str) -> Tensor:
        """The feature map that an inner module gives, the first time it is called; what follows is not computed.

        Args:
            lr: Float `[B, 3, h, w]` in [0, 1].
            layer: The module's path in `named_modules()`.

        Returns:
            Float `[B, c, h, w]`. Tokens `[B, h*w, c]` are laid out as the map that they are; of a tuple the first
            entry counts.

        Raises:
            NetworkError: There is no such module, it is not called, or gives no map of h x w pixels.
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
            raise NetworkError(f"{self.name} does not use its module {layer!r}, so it has no feature map.")
        output = taken[0][0] if isinstance(taken[0], tuple) else taken[0]
        height, width = lr.shape[2:]
        if isinstance(output, Tensor) and output.ndim == 3 and output.shape[:2] == (len(lr), height * width):
            output = output.transpose(1, 2).unflatten(2, (height, width))
        if not isinstance(output, Tensor) or output.ndim != 4 or output.shape[2:] != lr.shape[2:]:
            found = list(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise NetworkError(
                f"{self.name} gives {found} at {layer!r} for LR patches {list(lr.shape)}: no map of their size.",
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
    """Ends a forward pass that has given its feature map."""


def _try(
    network: nn.Module, layer: Layer | tuple[Layer, ...], size: int, device: torch.device, spec: str | Path
) -> None:
    """Take the features of one patch now, with a gradient, not when the first worker has started."""
    lr = torch.full((1, 3, size, size), 0.5, device=device, requires_grad=True)
    try:
        features = feature_maps(network, lr, layer)
    except NetworkError:
        raise
    except Exception as error:  # somebody else's code
        raise NetworkError(f"{spec} failed on a patch of {size} x {size} pixels ({told(error)}).") from error
    if not features.requires_grad:
        raise NetworkError(f"No gradient passes through {spec} to {layer!r}.", hint="Choose another layer or network.")

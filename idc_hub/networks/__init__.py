"""Super-resolution networks: `create` a fresh one, `load` a trained one, `save` one; teachers in `teachers`.

A network maps RGB float `[B, 3, h, w]` in [0, 1] to `[B, 3, scale*h, scale*w]` (not clamped) and hands out
its feature maps by `features(lr, layer)`.
"""

from idc_hub.networks.registry import NETWORKS, create, load, save, weights_sha256

__all__ = ["NETWORKS", "create", "load", "save", "weights_sha256"]

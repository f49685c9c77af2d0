"""Super-resolution networks: `create` a new one, `load` a trained one, or `save` one. Teachers are in `teachers`.

A network maps RGB float `[B, 3, h, w]` in [0, 1] to `[B, 3, scale*h, scale*w]` (not clamped).
`features(lr, layer)` returns its feature maps.
"""

from idc_hub.networks.registry import NETWORKS, create, load, save, weights_sha256

__all__ = ["NETWORKS", "create", "load", "save", "weights_sha256"]

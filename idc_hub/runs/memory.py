"""How much memory condensing takes, and how many photographs fit together: measured on a step of one and of two."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from idc_hub.condensation.condense import Member, Photograph
from idc_hub.condensation.objective import PARTNER_BYTES
from idc_hub.condensation.pieces import piece_size
from idc_hub.condensation.real_side import CHUNK
from idc_hub.condensation.step import Step

if TYPE_CHECKING:
    from idc_hub.images.sources import Instance
    from idc_hub.recipe import Recipe

MOST = 64
"""Photographs that `workers.batch: auto` condenses together at most."""

SHARE = 0.8
"""Part of a GPU's free memory that `workers.batch: auto` plans with."""

REAL = 2
"""Real patches of the photographs that are measured, each with one synthetic patch."""


@dataclass(frozen=True)
class Memory:
    """Bytes of tensors.

    Attributes:
        network: The extractor.
        real: Of a real patch.
        kept: Of a synthetic patch, between two steps.
        partners: Of a synthetic patch at one draw: local features of the real partners.
        shared: Of a synthetic patch in a step, for all photographs of a batch at the same time.
        losses: Of a synthetic patch in a step, for one photograph of a batch at a time.
        begin: Of a real patch before the first step, for `CHUNK` of them at a time.
    """

    network: float
    real: float
    kept: float
    partners: float
    shared: float
    losses: float
    begin: float

    @classmethod
    def measure(cls, network: torch.nn.Module, recipe: Recipe) -> Memory:
        """Make a step of one photograph and of two, with all tiles paired, on the device of the network."""
        device = next(network.parameters()).device
        loss = recipe.loss
        changes = {"loss": {"bank_size": 1}, "optimizer": {"initial": "noise"}, "patches": {"complexity": "all"}}
        recipe = recipe.model_copy(
            update={section: getattr(recipe, section).model_copy(update=keys) for section, keys in changes.items()}
        )
        lr = torch.randint(256, (REAL, 3, recipe.patches.size, recipe.patches.size), dtype=torch.uint8)
        members: list[Member] = []
        before, between, during = [], [0.0], []
        with _counting(device) as meter:
            for name in ("noise-1", "noise-2"):
                meter.reset()
                members.append(Member(Photograph(lr, 1, name), network, recipe, 1))
                members[-1].real.at("memory", keep=False)
                before.append(meter.peak() - meter.now())
                if loss.group_weight or loss.pair_weight:
                    for tiles in (members[-1].state.assignment.group, members[-1].state.assignment.partner):
                        tiles.fill_(0)
                    members[-1].objective.take_partners(members[-1].state.assignment)
                step = Step([(m.state, m.objective, m.watch) for m in members], network, recipe)
                step(0, 0.0, measured=True)  # fills the tables of the real side
                between.append(meter.now())
                meter.reset()
                step(0, 0.0, measured=True)
                during.append(meter.peak() - between[-1])
        real = members[0].real.features.nbytes / REAL
        partners = sum(tensor.nbytes for tensor in members[0].objective.kept.values())
        shared = max(during[1] - during[0], 0)
        return cls(
            network=sum(parameter.nbytes for parameter in network.parameters()),
            real=real,
            kept=max(between[2] - between[1] - REAL * real - partners, 0),
            partners=partners,
            shared=shared,
            losses=during[0] - shared,
            begin=before[0] / REAL,
        )

    def peak(self, recipe: Recipe, real: int, count: int, batch: int, *, on_gpu: bool) -> float:
        """Peak bytes of a batch of equal photographs.

        Args:
            recipe: The recipe.
            real: Real patches of each.
            count: Synthetic patches of each.
            batch: Photographs.
            on_gpu: Whether a step is a CUDA graph, whose memory is not shared with that of other steps.
        """
        at_once = piece_size(count, recipe.patches.size**2)
        partners = min(recipe.loss.bank_size * count * self.partners, PARTNER_BYTES)
        step = (batch * count if batch > 1 else at_once) * self.shared + at_once * self.losses
        between = self.network + batch * (real * self.real + count * self.kept + partners)
        return between + max(step * (2 if on_gpu else 1), min(real, CHUNK) * self.begin)

    def largest_batch(self, recipe: Recipe, real: int, count: int, free: float) -> int:
        """Photographs, at most `MOST`, that take at most `SHARE` of the free bytes of a GPU; arguments as in `peak`."""
        sizes = range(2, MOST + 1)
        fitting = [n for n in sizes if self.peak(recipe, real, count, n, on_gpu=True) <= SHARE * free]
        return max(fitting, default=1)


def batch_size(recipe: Recipe, instances: list[Instance], network: torch.nn.Module, workers: int) -> int:
    """Photographs that a worker condenses together (`workers.batch`), at most its share of all.

    Args:
        recipe: The recipe.
        instances: The photographs.
        network: The extractor, on the worker's device.
        workers: Number of workers.
    """
    work = [instance for instance in instances if instance.count]
    share = max(-(-len(work) // workers), 1)
    if recipe.workers.batch != "auto":
        return min(recipe.workers.batch, share)
    device = next(network.parameters()).device
    if device.type != "cuda" or share == 1:
        return 1
    memory = Memory.measure(network, recipe)
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(device)[0] + memory.network  # the network is already there
    largest = max(instance.patches for instance in work), max(instance.count for instance in work)
    return min(memory.largest_batch(recipe, *largest, free), share)


class _Gpu:
    """The tensors of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = torch.cuda.memory_allocated(device)

    def now(self) -> float:
        return torch.cuda.memory_allocated(self.device) - self.before

    def peak(self) -> float:
        return torch.cuda.max_memory_allocated(self.device) - self.before

    def reset(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)


class _Cpu(TorchDispatchMode):
    """The tensors that operators make while the mode is on: PyTorch counts no memory of a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.bytes = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        self.most = max(self.most, self.bytes)
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        if id(storage) not in self.sizes:
            self.sizes[id(storage)] = storage.nbytes()
            self.bytes += storage.nbytes()
            weakref.finalize(storage, self._remove, id(storage))

    def _remove(self, key: int) -> None:
        self.bytes -= self.sizes.pop(key)

    def now(self) -> float:
        return self.bytes

    def peak(self) -> float:
        return self.most

    def reset(self) -> None:
        self.most = self.bytes


@contextmanager
def _counting(device: torch.device) -> Iterator[_Gpu | _Cpu]:
    """Count the bytes of the tensors that are made on a device."""
    if device.type == "cuda":
        yield _Gpu(device)
        return
    with _Cpu() as meter:
        yield meter

"""Ray: a task for each photograph. Ray picks the node, and starts the task again elsewhere if its node dies.

The nodes need the package, and nothing else of the launching machine: the extractor and the file of the photograph
come through Ray, and checkpoints, metrics and finished patches return the same way. A photograph whose node died
continues at its last checkpoint.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from idc_hub.errors import ClusterError, IncompleteError, one_line
from idc_hub.images.sources import Entry, Instance, Source, open_source
from idc_hub.runs.launch import worker_device
from idc_hub.runs.run import Run
from idc_hub.runs.worker import condense_claimed, set_up_torch, stop_on_signal

if TYPE_CHECKING:
    import torch

    from idc_hub.recipe import Recipe

DEATHS = 20
"""How often a photograph is started again after its process or its node died. One may kill every process it gets."""

POLL_SECONDS = 1.0


class _RunElsewhere:
    """A Run on another node, for a worker: its methods are called there, by an actor.

    Attributes:
        recipe: The recipe.
        sample: As `Run.sample`, but only of the worker's photograph.
    """

    def __init__(self, actor: Any, recipe: Recipe, sample: tuple[str, ...]) -> None:
        self.recipe = recipe
        self.sample = sample
        self._actor = actor

    def __getattr__(self, method: str) -> Any:
        import ray

        def call(*arguments: Any) -> Any:
            try:
                return ray.get(getattr(self._actor, method).remote(*arguments))
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None

        return call


def _condense(
    actor: Any, recipe: Recipe, instance: Instance, sampled: bool, content: bytes, network: torch.nn.Module
) -> None:
    """The task: condense one photograph, whose file has this content."""
    set_up_torch(recipe)
    run: Any = _RunElsewhere(actor, recipe, (instance.id,) if sampled else ())
    source = Source(recipe.source.path, (Entry(instance.id, instance.name),), lambda name: content)
    with stop_on_signal() as stopping:
        condense_claimed(run, [instance], source, network.to(worker_device(0)), stopping)


def condense_by_ray(
    run: Run, network: torch.nn.Module, workers: int, *, address: str | None = None, gpus_per_worker: float = 0
) -> None:
    """Condense all photographs of a Run on a Ray cluster. Nodes may join and die meanwhile.

    Args:
        run: The Run, on this machine, which must be a node of the cluster.
        network: The extractor.
        workers: How many photographs are condensed at once. Those that find no free node wait for one.
        address: Address of the cluster; None: that of `RAY_ADDRESS` or of `ray start`, or a new one on this machine.
        gpus_per_worker: GPUs of each worker; a fraction lets several share one.

    Raises:
        Interrupted: A signal stopped the work; checkpoints are kept.
        IncompleteError: The Run cannot be written.
        ImageError: The source is gone.
        ClusterError: Ray is not installed or cannot be reached.
    """
    try:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
    except ImportError as error:
        raise ClusterError("Ray is not installed.", "Install it on every node: pip install 'idc-hub[ray]'.") from error
    if (address or "").startswith("ray://"):
        raise ClusterError(
            f"{address} is the address of a Ray client, whose machine is no node of the cluster.",
            "Start the command on a node, for example with `ray job submit`.",
        )
    left = deque(run.unsettled(run.instances))
    if not left:
        return
    source = open_source(**run.recipe.source.model_dump())
    with ExitStack() as ending:
        try:
            ray.init(address=address)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ClusterError(
                f"Ray cannot be reached: {one_line(error)}", "Check --address, or `ray start`."
            ) from error
        ending.callback(ray.shutdown)
        stopping = ending.enter_context(stop_on_signal())  # after `ray.init`, which sets handlers of its own
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = (
            ray.remote(num_cpus=0)(Run).options(scheduling_strategy=here).remote(run.path, run.recipe, run.instances)
        )
        needs = {"num_cpus": run.recipe.workers.threads, "num_gpus": gpus_per_worker}
        # `max_calls=0` keeps a process for the next photograph also if it has a GPU.
        task = ray.remote(max_retries=DEATHS, max_calls=0, **needs)(_condense)
        extractor = ray.put(network)
        under_way: dict[Any, tuple[Instance, ExitStack]] = {}
        try:
            while left or under_way:
                for _ in range(min(len(left), workers - len(under_way))):
                    instance = left.popleft()
                    claim = ExitStack()
                    if not claim.enter_context(run.claim(instance.id)):
                        left.append(instance)  # a worker outside Ray has it
                    elif not run.is_settled(instance):
                        sampled, content = instance.id in run.sample, source.read(instance)
                        reference = task.remote(actor, run.recipe, instance, sampled, content, extractor)
                        under_way[reference] = instance, claim
                        continue
                    claim.close()
                finished, _ = ray.wait(list(under_way), timeout=POLL_SECONDS) if under_way else ([], [])
                for reference in finished:
                    instance, claim = under_way.pop(reference)
                    _record_death(run, instance, reference)
                    claim.close()
                    if not run.is_settled(instance):
                        left.append(instance)
                if left and not under_way:
                    time.sleep(POLL_SECONDS)
                stopping.raise_if_any()
        finally:
            for _, claim in under_way.values():
                claim.close()


def _record_death(run: Run, instance: Instance, reference: Any) -> None:
    """Record a photograph whose task ended without a word of its own: its processes died, or it could not start."""
    import ray

    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, IncompleteError):
            raise error.cause from None  # the Run cannot be written
        run.record_failure(instance, f"{type(error.cause).__name__}: {one_line(error.cause)}")
    except ray.exceptions.RayError as error:
        run.record_failure(instance, one_line(error))

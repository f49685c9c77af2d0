"""A quarter of an hour of one GPU: condense photographs as the paper does, and time steps of several photographs.

    PYTHONPATH=. python benchmarks/gpu.py prepare PHOTOGRAPHS --folder gpu-files [--limit 31]
    PYTHONPATH=. python benchmarks/gpu.py condense --folder gpu-files --network FILE --out results [--minutes 9]
    PYTHONPATH=. python benchmarks/gpu.py table --out results [--batches 1 4 16 64] [--minutes 8]

`condense` and `table` need torch, numpy, scipy, safetensors, pyyaml and pydantic, and no network connection. `prepare`
cuts the LR patches here, so that no photograph has to be decoded there. `condense` takes all photographs in one batch
with `preset: paper`, but for a bank of draws, and saves the patches as it goes; it continues from `--state`. A row of
the table is one batch size, precision and way to run the step: `graph` is a CUDA graph, `eager` is not. Rows that do
not fit in memory, or for which no time is left, are named. The table is written after each row.

The smallest form on a CPU:

    ... condense --folder gpu-files --out results --photographs 2 --steps 60 --channels 16 --frequencies 32 --bank 2
    ... table --device cpu --network edsr-small -N 6 -n 1 --size 32 --batches 1 4 --precisions fp32 --steps 2
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from speed import DIV2K, STEPS, Clock, memory, network
from speed import photograph as windows_of
from torch import nn

from idc_hub.condensation.condense import Photograph, Stopped, condense_batch, initial_patches, update_assignment
from idc_hub.condensation.objective import Objective
from idc_hub.condensation.real_side import RealSide, extract
from idc_hub.condensation.state import State, Watch
from idc_hub.condensation.step import Step
from idc_hub.recipe import Recipe

PRECISIONS = ("fp32", "tf32", "bf16")
RATIO = 0.1


def prepare(options: argparse.Namespace) -> None:
    """Write `photographs.safetensors`: the real LR patches of evenly chosen photographs, uint8 `[N, 3, size, size]`."""
    from idc_hub.images.files import read_image
    from idc_hub.images.patches import windows
    from idc_hub.images.resize import imresize, mod_crop

    paths = sorted(options.photographs.glob("*.png"))
    chosen = np.linspace(0, len(paths) - 1, min(options.limit, len(paths))).round().astype(int)
    found = {}
    for path in (paths[number] for number in chosen):
        lr = imresize(mod_crop(read_image(path).pixels, 4), 1 / 4).transpose(2, 0, 1)
        size = options.size
        places = windows(*lr.shape[1:], size, size // 2)
        found[path.stem] = torch.from_numpy(
            np.stack([lr[:, y : y + size, x : x + size] for y, x in places])
        ).contiguous()
    options.folder.mkdir(parents=True, exist_ok=True)
    save_file(found, options.folder / "photographs.safetensors")
    print(len(found), "photographs,", sum(map(len, found.values())), "patches")


def condense(options: argparse.Namespace) -> None:
    """Condense all photographs of the folder in one batch; stops in time, and saves patches, state and losses."""
    from idc_hub.networks.extractors import load_extractor

    end = time.monotonic() + 60 * options.minutes
    real = dict(sorted(load_file(options.folder / "photographs.safetensors").items())[: options.photographs])
    size = next(iter(real.values())).shape[-1]
    spec = Recipe.from_dict(
        {
            "name": "gpu",
            "preset": "paper",
            "source": {"path": "none"},
            "patches": {"size": size, "stride": size // 2},
            "transform": {"channels": options.channels},
            "loss": {"frequencies": options.frequencies, "draws": "bank", "bank_size": options.bank},
            "optimizer": {"steps": options.steps},
            "workers": {"checkpoint_every": max(options.steps // 20, 1), "log_every": max(options.steps // 200, 1)},
        }
    )
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.tf32
    device = torch.device(options.device)
    extractor = load_extractor(options.network, spec.features.layer, scale=4, size=size, device=device).network
    options.out.mkdir(parents=True, exist_ok=True)
    saved = load_file(options.state) if options.state and options.state.is_file() else {}
    states: dict[str, dict[str, torch.Tensor]] = {}
    patches: dict[str, torch.Tensor] = {}

    def keep(name: str, state: State) -> None:
        states[name] = {key: tensor.detach().cpu().clone() for key, tensor in state.to_tensors().items()}
        patches[name] = (states[name]["patches"] * 255).round().byte()
        if name == list(real)[-1]:  # the last of a batch
            write()

    def write() -> None:
        steps = {name: int(each["step"]) for name, each in states.items()}
        facts = {"steps": json.dumps(steps), "recipe": spec.to_yaml()}
        save_file(patches, options.out / "patches.safetensors", metadata=facts)
        if options.state:
            flat = {f"{name}/{key}": tensor for name, each in states.items() for key, tensor in each.items()}
            save_file(flat, options.state)

    def log(name: str, line: dict[str, float]) -> None:
        with (options.out / "losses.jsonl").open("a") as file:
            file.write(json.dumps({"photograph": name, **line}) + "\n")

    batches: dict[int, list[Photograph]] = {}  # by step
    for name, lr in real.items():
        tensors = {key.removeprefix(f"{name}/"): saved[key] for key in saved if key.startswith(f"{name}/")}
        photograph = Photograph(
            lr,
            max(round(RATIO * len(lr)), 1),
            name,
            resume=State.from_tensors(tensors, device) if tensors else None,
            checkpoint=lambda state, name=name: keep(name, state),
            log=lambda line, name=name: log(name, line),
        )
        batches.setdefault(int(tensors.get("step", 0)), []).append(photograph)
    facts: dict[str, Any] = {"device": device_name(device), "torch": torch.__version__, "settings": settings(options)}
    begun = time.monotonic()
    try:
        for batch in batches.values():
            for photograph, found in condense_batch(batch, extractor, spec, should_stop=lambda: time.monotonic() > end):
                name = photograph.instance_id
                if isinstance(found, Exception):
                    facts[name] = f"{type(found).__name__}: {found}"
                else:
                    patches[name] = found.patches
                    facts[name] = {"held_out": found.held_out, "held_out_random": found.held_out_random}
    except Stopped:
        facts["stopped"] = f"no time left; continue with --state {options.state}"
    write()
    facts |= {"seconds": time.monotonic() - begun, "peak memory, GB": memory(device)}
    (options.out / "condense.json").write_text(json.dumps(facts, indent=2, default=str))
    print(json.dumps(facts, default=str))


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """The command line, for the results."""
    return {key: value for key, value in vars(options).items() if key != "command"}


def device_name(device: torch.device) -> str:
    """The GPU's name, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def recipe(options: argparse.Namespace, precision: str) -> Recipe:
    """The default preset with all tiles paired from the second event on."""
    chosen = "bf16" if precision == "bf16" else "fp32"
    return Recipe.from_dict(
        {
            "name": "gpu",
            "source": {"path": "none"},
            "patches": {"size": options.size, "stride": options.size // 2, "complexity": "all"},
            "features": {"precision": chosen},
            "transform": {"precision": chosen},
            "loss": {"bank_size": 2},
            "assignment": {"events": 1},
            "optimizer": {"initial": "real"},
            "workers": {"fused": options.fused},
        }
    )


class Photographs:
    """Photographs with all tiles grouped and paired, prepared one by one as batches grow."""

    def __init__(self, options: argparse.Namespace, extractor: nn.Module, spec: Recipe) -> None:
        self.options, self.extractor, self.spec = options, extractor, spec
        self.members: list[tuple[State, Objective, Watch]] = []

    def first(self, count: int) -> list[tuple[State, Objective, Watch]]:
        """The first `count` photographs."""
        lr = windows_of(self.options).to(self.options.device)
        for number in range(len(self.members), count):
            real = RealSide(lr, self.extractor, self.spec, f"photograph-{number}")
            grid = replace(real.grid, patches=self.options.n)
            state = State.start(initial_patches(real, self.options.n), len(grid))
            for event in (1, 2):
                update_assignment(state, real, grid, self.extractor, self.spec, event)
            objective = Objective(real, grid, self.spec)
            objective.take_partners(state.assignment)
            self.members.append((state, objective, Watch(state, self.spec, real.instance_id)))
        return self.members[:count]


def row(photographs: Photographs, batch: int, *, graph: bool) -> dict[str, Any]:
    """Milliseconds of a step and of the bare extractor, for one photograph of a batch."""
    options, spec = photographs.options, photographs.spec
    clock = Clock(torch.device(options.device))
    members = photographs.first(batch)
    step = Step(members, photographs.extractor, spec, fixed=graph)
    # Each draw is new once; the first steps also set up libraries and capture the graph.
    for number in range(3):
        step(number, 0.0)
    patches = torch.cat([state.patches.detach() for state, _, _ in members]).requires_grad_()
    for number in range(3, 3 + options.steps):
        clock.measure("step", lambda number=number: step(number, 0.0))
        clock.measure("extractor", lambda: extract(step.network, patches, spec, whole=True).sum().backward())
    ours, extractor = (1e3 * clock.median(part) / batch for part in ("step", "extractor"))
    return {
        "ms an image-iteration": ours,
        "ms of the extractor alone, eager": extractor,
        "share of the extractor": extractor / ours,
        "hours for DIV2K at 20,000 steps": ours * DIV2K * STEPS / 3.6e6,
    }


def table(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """All rows, written to `--out` as they come."""
    found: dict[str, dict[str, Any]] = {}
    on_gpu = torch.device(options.device).type == "cuda"
    extractor = network(options.network).to(options.device).eval().requires_grad_(False)
    end = time.monotonic() + 60 * options.minutes
    for precision in options.precisions:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        photographs = Photographs(options, extractor, recipe(options, precision))
        for batch in options.batches:
            for graph in (True, False) if on_gpu else (False,):
                name = f"{precision}, batch {batch}, {'graph' if graph else 'eager'}"
                if time.monotonic() > end:
                    found[name] = {"left out": "no time left"}
                    continue
                if on_gpu:
                    torch.cuda.reset_peak_memory_stats()
                try:
                    found[name] = row(photographs, batch, graph=graph)
                except torch.OutOfMemoryError:
                    found[name] = {"left out": "out of memory"}
                except RuntimeError as error:  # a step that cannot be captured must not cost the other rows
                    found[name] = {"left out": str(error).splitlines()[0]}
                found[name]["peak memory, GB"] = memory(torch.device(options.device))
                print(name, json.dumps(found[name]), flush=True)
                options.out.mkdir(parents=True, exist_ok=True)
                device = device_name(torch.device(options.device))
                facts = {"device": device, "torch": torch.__version__, "settings": settings(options), "rows": found}
                (options.out / "table.json").write_text(json.dumps(facts, indent=2, default=str))
        del photographs
    return found


def main() -> None:
    """Run one of the three commands."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    preparing = commands.add_parser("prepare", help="cut LR patches of photographs")
    preparing.add_argument("photographs", type=Path, help="a folder of PNG files")
    preparing.add_argument("--folder", type=Path, required=True)
    preparing.add_argument("--limit", type=int, default=31, help="photographs (default: %(default)s)")
    preparing.add_argument("--size", type=int, default=64, help="side of a patch, LR pixels (default: %(default)s)")
    preparing.set_defaults(command=prepare)

    condensing = commands.add_parser("condense", help="condense all of them in one batch, as the paper does")
    condensing.add_argument("--folder", type=Path, required=True, help="what `prepare` wrote")
    condensing.add_argument("--network", default="edsr-small", help="a name, a folder or a file (default: %(default)s)")
    condensing.add_argument("--photographs", type=int, help="use only the first ones")
    condensing.add_argument("--steps", type=int, default=STEPS)
    condensing.add_argument("--channels", type=int, default=256, help="Fourier rows (default: %(default)s)")
    condensing.add_argument("--frequencies", type=int, default=1024, help="(default: %(default)s)")
    condensing.add_argument("--bank", type=int, default=64, help="draws; the paper draws anew (default: %(default)s)")
    condensing.add_argument("--tf32", action="store_true")
    condensing.add_argument("--minutes", type=float, default=9, help="stop and save then (default: %(default)s)")
    condensing.add_argument("--state", type=Path, help="file to continue from, and to save to")
    condensing.set_defaults(command=condense)

    timing = commands.add_parser("table", help="time steps of several photographs")
    timing.add_argument("--network", default="swinir-light", help="a name or a folder (default: %(default)s)")
    timing.add_argument("-N", type=int, default=150, help="real patches (default: %(default)s)")
    timing.add_argument("-n", type=int, default=15, help="synthetic patches (default: %(default)s)")
    timing.add_argument("--size", type=int, default=64, help="side of a patch, LR pixels (default: %(default)s)")
    timing.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64], help="photographs in a step")
    timing.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["tf32", "bf16", "fp32"])
    timing.add_argument("--fused", action="store_true", help="sum in Triton kernels (workers.fused)")
    timing.add_argument("--steps", type=int, default=10, help="timed steps of a row (default: %(default)s)")
    timing.add_argument("--minutes", type=float, default=8, help="start no row after this time (default: %(default)s)")
    timing.set_defaults(command=table)

    for command in (condensing, timing):
        command.add_argument("--out", type=Path, required=True, help="folder for the results")
        command.add_argument("--device", default=device)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.command(options)


if __name__ == "__main__":
    main()

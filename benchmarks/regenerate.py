"""How busy is the teacher while an HR version is made?

    python benchmarks/regenerate.py runs/quickstart --network swinir-light [--repeats 2] [--json]

Times `regenerate` (read LR, teacher, PNG, parquet) against the bare network's forward on the same batches, in turn. The
network has random weights: time does not depend on them. `mirrored` batches are what a teacher really sees, with
its margin of mirrored pixels around every patch; `plain` ones are the patches alone.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.dataset.regenerate import regenerate
from idc_hub.networks import create, save
from idc_hub.networks.teachers import MARGIN, load_teacher

BATCH = 16


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def measure(run: Path, name: str, repeats: int, device: str) -> dict[str, float]:
    """Median seconds of the three, and the throughput of `regenerate` over that of the bare network."""
    condensed = CondensedSet.open(run)
    scale = condensed.manifest.scale
    lr = torch.cat([patches for _, patches in condensed.patches()])
    times: dict[str, list[float]] = {"regenerate": [], "mirrored": [], "plain": []}
    with tempfile.TemporaryDirectory() as scratch:
        save(create(name, scale=scale), Path(scratch) / "network")
        teacher = load_teacher(Path(scratch) / "network", scale=scale, device=device)
        network = create(name, scale=scale).to(device).eval()

        def bare(margin: int) -> None:
            with torch.inference_mode():
                for batch in lr.split(BATCH):
                    padded = torch.nn.functional.pad(batch.float(), (margin,) * 4, mode="replicate")
                    network(padded.to(device) / 255).cpu()

        teacher(lr[:1])
        for number in range(repeats):
            repo = Path(scratch) / str(number)
            shutil.copytree(condensed.folder, repo)
            times["mirrored"].append(seconds(lambda: bare(MARGIN)))
            times["regenerate"].append(
                seconds(lambda repo=repo: regenerate(CondensedSet(repo), teacher, "timed", batch_size=BATCH))  # type: ignore[misc]
            )
            times["plain"].append(seconds(lambda: bare(0)))
    found = {key: statistics.median(values) for key, values in times.items()}
    found["of_mirrored"] = found["mirrored"] / found["regenerate"]
    found["of_plain"] = found["plain"] / found["regenerate"]
    return {"patches": len(lr), **found}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description="Throughput of regenerate over the bare network's.")
    parser.add_argument("run", type=Path, help="a finished Run")
    parser.add_argument("--network", default="swinir-light")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments.run, arguments.network, arguments.repeats, arguments.device)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    for key, value in result.items():
        print(f"{key:<14}{value:.3f}")


if __name__ == "__main__":
    main()

"""Compare the patches of a finished Run with real crops of the same photographs.

    python benchmarks/quality.py runs/quickstart [--json]

For each photograph as many random real LR patches as there are condensed ones go through the same teacher. The
figures are those of `idc_hub.judging.quality`; `L_ins` is the discrepancy on draws that no optimisation step used.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from idc_hub.condensation.real_side import generator
from idc_hub.images.sources import load_lr_patches, open_source
from idc_hub.judging.quality import colour_distance, high_frequency, teacher_residual
from idc_hub.networks.teachers import load_teacher
from idc_hub.storage.run import Run

SUBSETS = 4


def figures(lr: np.ndarray, real: np.ndarray, teacher: torch.nn.Module) -> dict[str, float]:
    """Luma detail, chroma over luma, colour distance and teacher residual of uint8 patches `[n, 3, h, w]`."""
    luma, chroma = high_frequency(lr)
    hr = torch.cat([teacher(piece) for piece in torch.from_numpy(lr).split(16)]).numpy()
    return {
        "luma_hf": luma,
        "chroma_over_luma_hf": chroma / luma,
        "colour_distance": colour_distance(lr, real),
        "residual_99.5": teacher_residual(lr, hr),
    }


def gradient_norms(run: Run, instance_id: str) -> dict[str, float]:
    """Median norm of each weighted term's gradient over the second half of the steps."""
    lines = [line for line in run.read_metrics(instance_id) if line["event"] == "log"]
    late = [line for line in lines if line["step"] > run.recipe.optimiser.steps / 2]
    terms = ("gradient_instance", "gradient_group", "gradient_pair")
    return {term: float(np.median([line[term] for line in late if term in line])) for term in terms}


def measure(run: Run) -> dict[str, dict[str, float]]:
    """Means over the photographs of a Run, weighted by their patches: condensed, and random real patches."""
    recipe = run.recipe
    source = open_source(**recipe.source.model_dump())
    teacher = load_teacher(recipe.teacher.network, scale=recipe.scale)
    rows: dict[str, list[dict[str, float]]] = {"condensed": [], "random real": []}
    weights = []
    spec = recipe.patches
    for share in run.shares:
        if not share.count:
            continue
        real = load_lr_patches(
            source, share.instance, scale=recipe.scale, size=spec.size, stride=spec.stride, tail=spec.tail
        )
        facts = run.read_facts(share)
        condensed = figures(run.read_patches(share).numpy(), real, teacher)
        rows["condensed"].append({"L_ins": facts["held_out"], **condensed, **gradient_norms(run, share.id)})
        subsets = []
        for number in range(SUBSETS):
            chosen = torch.randperm(len(real), generator=generator(share.id, number))[: share.count].numpy()
            subsets.append(figures(real[chosen], real, teacher))
        mean = {key: float(np.mean([subset[key] for subset in subsets])) for key in subsets[0]}
        rows["random real"].append({"L_ins": facts["held_out_random"], **mean})
        weights.append(share.count)
    return {
        name: {key: float(np.average([row[key] for row in found], weights=weights)) for key in found[0]}
        for name, found in rows.items()
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path, help="a finished Run")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    result = measure(Run.open(arguments.run))
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    for name, row in result.items():
        print(name, *(f"  {key:<22}{value:.4g}" for key, value in row.items()), sep="\n")


if __name__ == "__main__":
    main()

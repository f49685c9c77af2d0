"""A GPU computes what a CPU does. Needs no more than torch, numpy, scipy, safetensors, pyyaml, pydantic and pytest."""

import warnings
from dataclasses import replace
from itertools import product

import pytest
import torch

from idc_hub.condensation.condense import Condensed, learning_rate
from idc_hub.condensation.step import Step
from idc_hub.networks import load
from idc_hub.runs.memory import Memory
from tests.unit.test_batch import EXTRACTORS, members, named, recipe, together

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.mark.parametrize(
    ("name", "precision", "parametrization"),
    [
        *product(EXTRACTORS, ["fp32", "bf16"], ["pixels"]),
        ("edsr", "fp32", "fourier"),
        ("edsr", "fp32", "maco"),
    ],
)
def test_a_step_is_a_cuda_graph_that_computes_the_step(name: str, precision: str, parametrization: str) -> None:
    network = EXTRACTORS[name]().eval().requires_grad_(False).cuda()
    spec = recipe(
        features={"precision": precision},
        transform={"precision": precision},
        optimizer={"parametrization": parametrization},
    )
    steps = [Step(members((0, 1, 2), network, spec), network, spec, fixed=fixed) for fixed in (False, True)]
    for number in range(8):
        lines = [step(number, learning_rate(spec, number), measured=number % 4 == 3) for step in steps]
    assert steps[1].graph is not None
    for line, other in zip(*lines, strict=True):
        assert line == pytest.approx(other, rel=0.05)
    for (state, _, _), (other, _, _) in zip(*(step.members for step in steps), strict=True):
        assert int(state.adam["step"]) == int(other.adam["step"]) == 8
        assert float((state.patches - other.patches).abs().mean()) < 1e-3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_triton_kernels_work(precision: str) -> None:
    network = EXTRACTORS["edsr"]().eval().requires_grad_(False).cuda()
    patches = []
    for fused in (False, True):
        spec = recipe(transform={"precision": precision}, workers={"fused": fused})
        step = Step(members((0, 1), network, spec), network, spec)
        with warnings.catch_warnings(action="error"):  # a warning says that they do not
            for number in range(8):
                step(number, learning_rate(spec, number))
        patches.append(torch.cat([state.patches for state, _, _ in step.members]))
    assert float((patches[0] - patches[1]).abs().mean()) < 1e-3


def test_a_batch_on_a_gpu_gives_the_patches_of_a_cpu() -> None:
    network = load("edsr-small").eval().requires_grad_(False)
    spec = recipe(patches={"size": 32, "stride": 32}, optimizer={"steps": 50})
    photographs = [named(number, 32) for number in range(3)]
    on_cpu = together(photographs, spec, network)
    on_gpu = together([replace(each) for each in photographs], spec, network.cuda())
    for name, expected in on_cpu.items():
        found = on_gpu[name]
        assert isinstance(found, Condensed), found
        assert float(((found.patches.int() - expected.patches.int()).abs() <= 1).float().mean()) > 0.9
        assert found.held_out == pytest.approx(expected.held_out, rel=0.1)


def test_the_predicted_memory_is_enough() -> None:
    network = load("edsr-small").eval().requires_grad_(False).cuda()
    spec = recipe(patches={"size": 64, "stride": 64}, loss={"frequencies": 256})
    predicted = Memory.measure(network, spec).peak(spec, 9, 3, 8, on_gpu=True)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = together([replace(named(2, 64), instance_id=f"photo-{n}") for n in range(8)], spec, network)
    assert all(isinstance(each, Condensed) for each in found.values())
    assert predicted > torch.cuda.max_memory_allocated() - before

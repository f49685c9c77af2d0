"""Time one step of the condensation against the algorithm as the paper writes it, on the same image and draws.

    python benchmarks/speed.py --network swinir-light -N 150 -n 15 -T 1024 [--transform fp32] [--json]
    python benchmarks/speed.py --scaling --network edsr-small -N 16 -n 2 -T 256 --kernel 5 --channels 128 --size 48

`paper` keeps the real feature maps and redoes everything else at each step: it draws the rows and the frequencies,
transforms and normalizes all real local features, and evaluates the characteristic functions of the photograph and of
each group for themselves, in eager fp32. `ours` is what `idc condense` runs. Before anything is timed, the losses of
both must agree: with every lever off, and with the levers that are measured.

`equal noise` is `ours` with the fewest frequencies of `--frequency-kind`, of T/4, T/2, 3T/4 and T, whose gradient is no
noisier than that of T independent ones. `frequencies.py` measures it on patches of the same picture, with the same
filters at every draw, since the noise of the filters would hide that of the frequencies.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idc_hub.condensation.assignment import TileGrid
from idc_hub.condensation.condense import condense_instance, initial_patches, update_assignment
from idc_hub.condensation.discrepancy import set_sums
from idc_hub.condensation.objective import Objective, weighted
from idc_hub.condensation.real_side import Draw, RealSide, extract
from idc_hub.condensation.state import State
from idc_hub.networks import create, load
from idc_hub.networks.swinir import SwinIR
from idc_hub.recipe import Recipe

Result = TypeVar("Result")

AGREEMENT = {"fp32": 1e-4, "bf16": 2e-3}
"""Largest relative difference between the losses of `paper` and of `ours`."""

DIV2K = 800
STEPS = 20_000
SHORT = 50
"""Steps of each photograph in `scaling`."""

EQUAL = "equal noise"
"""The way to make a step whose gradient is as noisy as the paper's."""

_CHUNK = 10
"""Real patches at a time in `paper`; without gradients the chunks change its memory, not its time."""


class Clock:
    """Seconds of a call on a device: of the process on a CPU, so that other load does not count; wall time on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.times: dict[str, list[float]] = {}

    def now(self) -> float:
        """A point in time, after everything that was asked of the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.process_time()

    def measure(self, part: str, call: Callable[[], Result]) -> Result:
        """Call and remember how long it took."""
        begun = self.now()
        result = call()
        self.times.setdefault(part, []).append(self.now() - begun)
        return result

    def median(self, part: str) -> float:
        """Median seconds of a part."""
        return statistics.median(self.times[part])

    def spread(self, part: str) -> float:
        """Half the range over the median."""
        return (max(self.times[part]) - min(self.times[part])) / 2 / self.median(part)


class Paper:
    """The objective as the paper writes it (Eq. 2-8), sharing no code with the library but the draws.

    Args:
        features: float `[N, c, h, w]`, raw features of the real patches.
        labels: int64, the group of each real tile; tiles in the order (patch, y, x).
        recipe: The recipe.
    """

    def __init__(self, features: Tensor, labels: Tensor, recipe: Recipe) -> None:
        self.features = features
        self.labels = labels
        self.recipe = recipe
        self.mean = features.mean((0, 2, 3), keepdim=True)
        self.std = (features.var((0, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()

    def __call__(self, raw: Tensor, group: Tensor, partner: Tensor, name: object) -> dict[str, Tensor]:
        """The three unweighted terms for raw synthetic features `[n, c, h, w]`."""
        draw = Draw.make(self.recipe, raw.shape[1], 1, name, raw.device)
        with torch.no_grad():
            real = torch.cat([self.tiles(piece, draw) for piece in self.features.split(_CHUNK)])
        syn = self.tiles(raw, draw)
        present = [m for m in group.unique().tolist() if m >= 0]
        between = [
            self.distance(self.function(real[self.labels == m], draw.freqs), self.function(syn[group == m], draw.freqs))
            for m in present
        ]
        paired = partner >= 0
        return {
            "instance": self.distance(self.function(real, draw.freqs), self.function(syn, draw.freqs)),
            "group": torch.stack(between).sum(),
            "pair": (syn[paired] - real[partner[paired]]).abs().mean(),
        }

    def tiles(self, raw: Tensor, draw: Draw) -> Tensor:
        """Unit-length local features, tile by tile: `[tiles, tile * tile, C_out]`."""
        tile = self.recipe.assignment.tile
        maps = F.conv2d((raw - self.mean) / self.std, draw.filters, padding=draw.filters.shape[-1] // 2)
        pieces = F.normalize(maps, dim=1).unfold(2, tile, tile).unfold(3, tile, tile)
        return pieces.permute(0, 2, 3, 4, 5, 1).reshape(-1, tile * tile, len(draw.filters))

    def function(self, tiles: Tensor, freqs: Tensor) -> tuple[Tensor, Tensor]:
        """Real and imaginary part of the characteristic function of all samples of some tiles, each `[T]`."""
        cosines, sines, count = [], [], tiles.shape[0] * tiles.shape[1]
        pieces = [tiles] if tiles.requires_grad else tiles.split(4096)
        for piece in pieces:
            phases = piece.flatten(0, 1) @ freqs.T
            cosines.append(phases.cos().sum(0))
            sines.append(phases.sin().sum(0))
        return torch.stack(cosines).sum(0) / count, torch.stack(sines).sum(0) / count

    def distance(self, real: tuple[Tensor, Tensor], syn: tuple[Tensor, Tensor]) -> Tensor:
        """Equation 3: amplitude and phase of two characteristic functions."""
        loss = self.recipe.loss
        # The phase as printed is a difference of nearly equal numbers; of so few numbers doubles cost nothing.
        real, syn = (real[0].double(), real[1].double()), (syn[0].double(), syn[1].double())
        size_real, size_syn = ((re.square() + im.square() + 1e-12).sqrt() for re, im in (real, syn))
        phase = 2 * (size_real * size_syn - real[0] * syn[0] - real[1] * syn[1])
        return (loss.alpha * (size_real - size_syn).square() + loss.beta * phase).clamp(min=1e-12).sqrt().mean()


class Bench:
    """One photograph, one set of synthetic patches with all tiles grouped and paired, and both ways to make a step."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.set_num_threads(options.threads)
        self.options = options
        self.device = torch.device(options.device)
        self.clock = Clock(self.device)
        self.network = network(options.network).to(self.device).eval().requires_grad_(False)
        plain = recipe(options)
        lr = photograph(options)
        self.real = {"fp32": RealSide(lr.to(self.device), self.network, plain, "speed")}
        grid = TileGrid(options.n, *self.real["fp32"].features.shape[2:], tile=plain.assignment.tile)
        self.state = State.start(initial_patches(self.real["fp32"], options.n), len(grid))
        # One event groups all tiles and the next one pairs them; 26 events cost no more than these two 26 times.
        for event in (1, 2):
            call = lambda event=event: update_assignment(  # noqa: E731
                self.state, self.real["fp32"], grid, self.network, plain, event
            )
            self.clock.measure("events", call)
        specs = {"fp32": plain}
        if "bf16" in (options.features, options.transform):
            specs["bf16"] = recipe(options, features=options.features, transform=options.transform)
        self.chosen = list(specs)[-1]
        self.noise: dict[int, float] = {}
        if options.frequency_kind != "iid":
            specs[EQUAL] = self._fewest_frequencies(lr, specs[self.chosen])
        for way, spec in specs.items():
            if way not in self.real:
                self.real[way] = RealSide(lr.to(self.device), self.network, spec, "speed")
                self.real[way].labels = self.real["fp32"].labels  # rounding may move a tile to another group
                self.real[way].sizes = self.real["fp32"].sizes
        self.objectives = {way: Objective(self.real[way], grid, spec) for way, spec in specs.items()}
        for objective in self.objectives.values():
            objective.take_partners(self.state.assignment)
        self.paper = Paper(self.real["fp32"].features, self.real["fp32"].labels, plain)
        self.optimizer = torch.optim.Adam([self.state.patches.requires_grad_()], lr=0.0, foreach=False)

    def _fewest_frequencies(self, lr: Tensor, spec: Recipe) -> Recipe:
        """A recipe with as few frequencies as its noise allows; `noise` is that of each number, over the paper's."""
        from frequencies import REAL, gradients, noises  # needs Pillow, which is missing where gpu.py uses this file

        def measured(found: Recipe) -> Tensor:
            return gradients(lr[:REAL].to(self.device), self.network, found, self.options.draws, same_filters=True)

        count, papers = self.options.T, measured(spec)
        for frequencies in (count // 4, count // 2, 3 * count // 4, count):
            changed = {"frequencies": frequencies, "frequency_kind": self.options.frequency_kind}
            fewer = spec.model_copy(update={"loss": spec.loss.model_copy(update=changed)})
            ours, limit = noises([measured(fewer), papers])
            self.noise[frequencies] = ours / limit
            if ours <= limit:
                break
        return fewer

    def agree(self) -> dict[str, float]:
        """Relative difference of the weighted sum, and of each term, at every precision; an error if too large.

        Raises:
            AssertionError: If the losses differ by more than `AGREEMENT` allows.
        """
        worst = {}
        with torch.no_grad():
            name = self.objectives["fp32"].draw_name(0)
            raw = extract(self.network, self.state.patches, self.real["fp32"].recipe)
            expected = self.paper(raw, self.state.assignment.group, self.state.assignment.partner, name)
            for precision in [way for way in self.objectives if way != EQUAL]:  # which has other frequencies
                objective = self.objectives[precision]
                spec = self.real[precision].recipe
                terms = objective(extract(self.network, self.state.patches, spec), 0)
                pairs = [(float(terms[term]), float(expected[term])) for term in expected]
                pairs.append(tuple(float(sum(weighted(found, spec).values())) for found in (terms, expected)))
                worst[precision] = max(abs(mine - other) / other for mine, other in pairs)
                bound = AGREEMENT[precision]
                assert worst[precision] <= bound, f"{precision}: the losses differ by {worst[precision]:.1e} > {bound}"
        return worst

    def step_of_paper(self, number: int) -> None:
        """One iteration as written, by parts."""
        clock, state = self.clock, self.state
        raw = clock.measure("paper features forward", lambda: self.network.features(state.patches, "last"))
        leaf = raw.detach().requires_grad_()
        name = self.objectives["fp32"].draw_name(number)

        def losses() -> None:
            terms = self.paper(leaf, state.assignment.group, state.assignment.partner, name)
            sum(weighted(terms, self.paper.recipe).values()).backward()  # type: ignore[union-attr]

        clock.measure("paper losses", losses)
        clock.measure("paper features backward", lambda: raw.backward(leaf.grad))
        clock.measure("paper optimizer", self._update)

    def step_of_ours(self, precision: str, number: int) -> None:
        """One iteration of the library, by parts."""
        clock, state, objective = self.clock, self.state, self.objectives[precision]
        spec = self.real[precision].recipe
        objective(self._leaf(precision), number)  # the first use of a draw belongs to the setup
        raw = clock.measure(f"{precision} features forward", lambda: extract(self.network, state.patches, spec))
        leaf = raw.detach().requires_grad_()

        def losses() -> None:
            terms = objective(leaf, number)
            sum(weighted(terms, spec).values()).backward()  # type: ignore[union-attr]

        clock.measure(f"{precision} losses", losses)
        clock.measure(f"{precision} features backward", lambda: raw.backward(leaf.grad))
        clock.measure(f"{precision} optimizer", self._update)

    def parts_of_ours(self, precision: str, number: int) -> None:
        """What the losses are made of: each part alone, forward and backward."""
        clock, objective = self.clock, self.objectives[precision]
        piece = objective.pieces[0]  # all patches, unless there are more than `pieces.WHOLE_PIXELS` holds
        leaf = self._leaf(precision)[: objective.piece_size].requires_grad_()
        real = self.real[precision]
        inputs = objective.inputs(number, real.statistics)
        draw = inputs.draw

        def transform() -> Tensor:
            samples = real.samples(real.normalize(leaf), draw)
            samples.backward(torch.ones_like(samples))
            return samples.detach().requires_grad_()

        samples = clock.measure(f"{precision} transform", transform)

        def distributions() -> None:
            sums = set_sums(samples, draw.freqs, piece.members, real.recipe.loss)
            terms = objective.distribution_terms(sums, inputs.targets)
            sum(weighted(terms, real.recipe).values()).backward()  # type: ignore[union-attr]

        clock.measure(f"{precision} instance and group", distributions)
        partners = objective.partner_samples(draw, real.statistics, piece)
        clock.measure(f"{precision} pair", lambda: objective.pair_term(samples, partners, piece).backward())

    def precompute(self, precision: str, number: int) -> None:
        """The real side at one draw."""
        real = self.real[precision]
        draw = real.draw(f"timed-{number}", real.statistics)
        self.clock.measure(f"{precision} targets", lambda: real.targets(draw, real.statistics))

    def run(self) -> dict[str, object]:
        """All figures."""
        agreement = self.agree()
        peak: dict[str, float] = {}
        for repeat in range(-1, self.options.repeats):
            for precision in self.objectives:
                self.step_of_ours(precision, max(repeat, 0))
                self.parts_of_ours(precision, max(repeat, 0))
                if repeat < 1:
                    self.precompute(precision, repeat)
            peak.setdefault("ours", memory(self.device))
            if repeat < 0:
                # The first round warms up; what it measured does not count, but for the events.
                self.clock.times = {"events": self.clock.times["events"]}
                continue
            self.step_of_paper(repeat)
            peak["paper"] = memory(self.device)
        return self._figures(agreement, peak)

    def _figures(self, agreement: dict[str, float], peak: dict[str, float]) -> dict[str, object]:
        ms = {part: 1e3 * self.clock.median(part) for part in self.clock.times}
        events = sum(self.clock.times["events"]) * 1e3 * 26 / STEPS
        ways = ("paper", *self.objectives)
        features = {way: ms[f"{way} features forward"] + ms[f"{way} features backward"] for way in ways}
        rest = {way: ms[f"{way} losses"] + ms[f"{way} optimizer"] for way in ways}
        bank = self.real["fp32"].recipe.loss.bank_size
        figures: dict[str, object] = {}
        for way, suffix in ((self.chosen, ""), (EQUAL if EQUAL in ways else self.chosen, "_equal_noise")):
            ours_rest = rest[way] + events + ms[f"{way} targets"] * bank / STEPS
            ours, paper = features[way] + ours_rest, features["paper"] + rest["paper"]
            figures |= {
                f"paper_over_ours{suffix}": paper / ours,
                f"paper_over_ours_without_extractor{suffix}": rest["paper"] / ours_rest,
                f"rest_over_extractor{suffix}": ours_rest / features["fp32"],
                f"ours_over_bare_extractor{suffix}": ours / features[way],
            }
            ms[f"ours{suffix}"], ms["paper"] = ours, paper
        hours = {way: ms[way] * DIV2K * STEPS / 3.6e6 for way in ("paper", "ours")}
        return {
            **figures,
            "noise_over_papers": self.noise,
            "ms": {"events a step": events, **ms},
            "spread": {part: self.clock.spread(part) for part in self.clock.times},
            "agreement": agreement,
            "peak_memory_gb": peak,
            "hours_for_div2k": hours,
            "settings": {key: value for key, value in vars(self.options).items() if key != "json"},
        }

    def _leaf(self, precision: str) -> Tensor:
        with torch.no_grad():
            return extract(self.network, self.state.patches, self.real[precision].recipe)

    def _update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


def scaling(chosen: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Seconds against n, against N, and against the number of photographs: at the sizes chosen, twice and four times.

    A row is named by what is varied and what is timed; everything is fp32 and as `idc condense` runs it.
    """
    found: dict[str, dict[str, float]] = {}
    parts = ("features forward", "losses", "features backward", "optimizer")
    for size in ("n", "N"):
        for factor in (1, 2, 4):
            plain = {"features": "fp32", "transform": "fp32", "frequency_kind": "iid"}
            varied = {**vars(chosen), **plain, size: factor * getattr(chosen, size)}
            bench = Bench(argparse.Namespace(**varied))
            for _ in range(chosen.repeats + 1):  # the median passes over the first one, which warms up
                bench.step_of_ours("fp32", 0)
            bench.precompute("fp32", 0)
            step = sum(bench.clock.median(f"fp32 {part}") for part in parts)
            found.setdefault(f"{size}: a step", {})[str(varied[size])] = step
            if size == "N":
                draw = bench.clock.median("fp32 targets")
                found.setdefault("N: the real side at one draw", {})[str(varied[size])] = draw
    spec = recipe(chosen)
    spec = spec.model_copy(update={"optimizer": spec.optimizer.model_copy(update={"steps": SHORT})})
    clock, extractor = Clock(torch.device(chosen.device)), network(chosen.network).to(chosen.device).eval()
    extractor.requires_grad_(False)
    lr = photograph(chosen)
    for number in range(4):
        run = lambda number=number: condense_instance(  # noqa: E731
            lr, chosen.n, extractor, spec, f"photograph-{number}"
        )
        clock.measure("photograph", run)
    totals = {str(images): sum(clock.times["photograph"][:images]) for images in (1, 2, 4)}
    return {**found, f"photographs, {SHORT} steps each": totals}


def recipe(options: argparse.Namespace, *, features: str = "fp32", transform: str = "fp32") -> Recipe:
    """The paper's settings with a bank of draws, at the precisions of the extractor and of the transform."""
    return Recipe.from_dict(
        {
            "name": "speed",
            "preset": "paper",
            "source": {"path": "none"},
            "patches": {"size": options.size, "stride": options.size // 2},
            "features": {"precision": features},
            "transform": {"kernel_size": options.kernel, "channels": options.channels, "precision": transform},
            "loss": {"frequencies": options.T, "draws": "bank", "bank_size": max(1, options.repeats)},
            "assignment": {"events": 1},
            "optimizer": {"initial": "real"},
        }
    )


def network(name: str) -> nn.Module:
    """A trained network if the package has it or the name is a folder's, else a fresh one."""
    if name == "swinir-light":
        torch.manual_seed(0)
        return SwinIR(depths=(6, 6, 6, 6), dim=60, heads=6, window=8, upsampler="pixelshuffledirect")
    return load(name) if Path(name).is_dir() or name == "edsr-small" else create(name)


def photograph(options: argparse.Namespace) -> Tensor:
    """uint8 `[N, 3, size, size]` crops of a smooth random picture: time depends on shapes alone."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(options.N, 3, 8, 8, generator=rng)
    lr = F.interpolate(coarse, size=(options.size, options.size), mode="bicubic")
    lr = lr + 0.1 * torch.rand(lr.shape, generator=rng)
    return (lr.clamp(0, 1) * 255).round().byte()


def memory(device: torch.device) -> float:
    """Peak memory of the process so far, or of the GPU, in GB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", default="swinir-light", help="a name or a folder (default: %(default)s)")
    parser.add_argument("-N", type=int, default=150, help="real patches (default: %(default)s)")
    parser.add_argument("-n", type=int, default=15, help="synthetic patches (default: %(default)s)")
    parser.add_argument("-T", type=int, default=1024, help="frequencies (default: %(default)s)")
    parser.add_argument("--kernel", type=int, default=7, help="side of the neighborhood (default: %(default)s)")
    parser.add_argument("--channels", type=int, default=256, help="Fourier rows (default: %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="side of a patch, LR pixels (default: %(default)s)")
    for key, default in (("features", "fp32"), ("transform", "bf16")):
        text = f"precision of `ours`: {key}.precision of the recipe (default: %(default)s)"
        parser.add_argument(f"--{key}", choices=list(AGREEMENT), default=default, help=text)
    text = "how `equal noise` draws frequencies; iid: T of them, nothing is measured (default: %(default)s)"
    parser.add_argument("--frequency-kind", choices=["orthogonal", "iid"], default="orthogonal", help=text)
    text = "draws of each kind that measure the noise (default: %(default)s)"
    parser.add_argument("--draws", type=int, default=10, help=text)
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of each (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--scaling", action="store_true", help="time n, N and photographs, once, twice and four times")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(arguments)


def main() -> None:
    """Print the figures."""
    chosen = options()
    result: dict[str, object] = {**scaling(chosen)} if chosen.scaling else Bench(chosen).run()
    if chosen.json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        entries = value if isinstance(value, dict) else {"": value}
        numbers = {key: entry for key, entry in entries.items() if isinstance(entry, int | float)}
        print(name, *(f"  {key:<36}{entry:.4g}" for key, entry in numbers.items()), sep="\n")


if __name__ == "__main__":
    main()

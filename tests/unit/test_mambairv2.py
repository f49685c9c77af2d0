"""MambaIRv2: against a slow reference, the published checkpoint and its figures, and its two modes."""

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from idc_hub import networks
from idc_hub.errors import NetworkError
from idc_hub.images.metrics import Protocol
from idc_hub.networks.mambairv2 import AttentiveStateSpace, MambaIRv2
from idc_hub.training.evaluation import evaluate

LIGHT_DIGEST = "2874b8b71fa95692b17145f2dd3e4a2dcf4eea9bd6e2dba2696a8daa452f138c"
"""SHA-256 of the lines `key:shape` of mambairv2_light_x4, sorted."""

WINDOW, HEADS, STATES, PROMPTS = 4, 2, 3, 5
MEAN = np.float32([0.4488, 0.4371, 0.4040])
ARGUMENTS: dict[str, Any] = {"dim": 6, "depths": [2, 1], "heads": HEADS, "d_state": STATES, "window": WINDOW}
ARGUMENTS |= {"inner_rank": 2, "num_tokens": PROMPTS}
LAYERS = [1, 2, "first", "last", "norm", "body"]


def tiny(light: bool, scale: int = 4, seed: int = 0) -> MambaIRv2:
    """Float64, in evaluation mode, and no parameter is near the value that would hide it (0, 1 or 1e-4)."""
    network = MambaIRv2(**ARGUMENTS, mlp_ratio=1 if light else 2, light=light, scale=scale)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            spread = parameter[0].numel() ** -0.5  # 1 for a vector
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread / 2)
    return network.double().eval()


def digest(shapes: dict[str, torch.Tensor]) -> str:
    lines = sorted(f"{key}:{list(value.shape)}" for key, value in shapes.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# The network once more, for one image, in numpy: pixels [h, w, c], loops over windows, pixels and tokens.


class Reference:
    def __init__(self, network: MambaIRv2) -> None:
        self.weights = {key: value.numpy() for key, value in network.state_dict().items()}
        self.light = bool(network.arguments["light"])
        self.scale = network.scale

    def __call__(self, lr: np.ndarray) -> tuple[dict[Any, np.ndarray], np.ndarray]:
        """Every feature map by its layer, and the output, both [h, w, c], of `lr` [h, w, 3]."""
        height, width = lr.shape[:2]
        padding = [(0, -height % WINDOW), (0, -width % WINDOW), (0, 0)]
        image = np.pad(lr, padding, mode="symmetric") - MEAN
        first = self.conv("conv_first", image)
        x = self.norm("patch_embed.norm", first)
        maps: dict[Any, np.ndarray] = {}
        for group, depth in enumerate((2, 1)):
            deep = x
            for layer in range(depth):
                deep = self.layer(f"layers.{group}.residual_group.layers.{layer}", deep, shifted=layer == 1)
            x = maps[group + 1] = x + self.conv(f"layers.{group}.conv", deep)
        maps |= {"first": maps[1], "last": maps[2], "norm": self.norm("norm", x)}
        x = maps["body"] = self.conv("conv_after_body", maps["norm"]) + first
        if self.light:
            x = self.shuffle(self.conv("upsample.0", x), self.scale)
        else:
            x = self.conv("conv_before_upsample.0", x)
            x = np.where(x > 0, x, 0.01 * x)
            for index, factor in {2: [(0, 2)], 3: [(0, 3)], 4: [(0, 2), (2, 2)]}[self.scale]:
                x = self.shuffle(self.conv(f"upsample.{index}", x), factor)
            x = self.conv("conv_last", x)
        maps = {name: value[:height, :width] for name, value in maps.items()}
        return maps, (x + MEAN)[: height * self.scale, : width * self.scale]

    def layer(self, name: str, x: np.ndarray, shifted: bool) -> np.ndarray:
        attended = x + self.attention(name, self.norm(f"{name}.norm1", x), WINDOW // 2 if shifted else 0)
        attended = attended + self.feed_forward(f"{name}.convffn1", self.norm(f"{name}.norm2", attended))
        x = x * self.weights[f"{name}.scale1"] + attended
        scanned = x + self.state_space(name, self.norm(f"{name}.norm3", x))
        scanned = scanned + self.feed_forward(f"{name}.convffn2", self.norm(f"{name}.norm4", scanned))
        return x * self.weights[f"{name}.scale2"] + scanned

    def attention(self, name: str, x: np.ndarray, shift: int) -> np.ndarray:
        """Nothing is rolled: shifted windows begin at `shift`, and those at the edges are smaller."""
        q, k, v = np.split(self.linear(f"{name}.wqkv", x), 3, axis=2)
        table = self.weights[f"{name}.win_mhsa.relative_position_bias_table"]
        out = np.empty_like(x)
        size = x.shape[2] // HEADS
        for y, z in np.ndindex(*x.shape[:2]):
            top, left = (y - shift) // WINDOW * WINDOW + shift, (z - shift) // WINDOW * WINDOW + shift
            rows = range(max(0, top), min(top + WINDOW, x.shape[0]))
            columns = range(max(0, left), min(left + WINDOW, x.shape[1]))
            for head in range(HEADS):
                part = np.s_[head * size : (head + 1) * size]
                weights, values = [], []
                for r in rows:
                    for c in columns:
                        bias = table[(y - r + WINDOW - 1) * (2 * WINDOW - 1) + z - c + WINDOW - 1, head]
                        weights.append(math.exp(q[y, z, part] @ k[r, c, part] / math.sqrt(size) + bias))
                        values.append(v[r, c, part])
                out[y, z, part] = np.array(weights) @ np.array(values) / sum(weights)
        return self.linear(f"{name}.win_mhsa.proj", out)

    def state_space(self, name: str, x: np.ndarray) -> np.ndarray:
        weights, table = self.weights, self.weights[f"{name}.embeddingA.weight"]
        name = f"{name}.assm"
        scores = self.linear(f"{name}.route.2", gelu(self.linear(f"{name}.route.0", x)))
        noise = np.random.RandomState(0).gumbel(size=(WINDOW, WINDOW, PROMPTS)).astype(np.float32)
        height, width = x.shape[:2]
        noisy = [scores[y, z] + noise[y % WINDOW, z % WINDOW] for y in range(height) for z in range(width)]
        prompts = [int(pixel.argmax()) for pixel in noisy]
        order = sorted(range(len(prompts)), key=lambda pixel: (prompts[pixel], pixel))
        inside = x @ weights[f"{name}.in_proj.0.weight"][:, :, 0, 0].T + weights[f"{name}.in_proj.0.bias"]
        inside = inside / (1 + np.exp(-self.conv(f"{name}.CPE.0", inside, depthwise=True)))

        scan = f"{name}.selectiveScan"
        rates = -np.exp(weights[f"{scan}.A_logs"])
        rank = weights[f"{scan}.dt_projs_weight"].shape[2]
        state = np.zeros_like(rates)
        scanned = np.empty((len(order), len(rates)))
        for step, pixel in enumerate(order):
            token = inside.reshape(-1, len(rates))[pixel]
            low, write, read = np.split(weights[f"{scan}.x_proj_weight"][0] @ token, [rank, rank + STATES])
            raw = weights[f"{scan}.dt_projs_weight"][0] @ low + weights[f"{scan}.dt_projs_bias"][0]
            delta = np.log1p(np.exp(raw))
            read = read + weights[f"{name}.embeddingB.weight"][prompts[step]] @ table  # of the step, not of the pixel
            state = np.exp(delta[:, None] * rates) * state + (delta * token)[:, None] * write
            scanned[pixel] = state @ read + weights[f"{scan}.Ds"] * token
        return self.linear(f"{name}.out_proj", self.norm(f"{name}.out_norm", scanned)).reshape(x.shape)

    def feed_forward(self, name: str, x: np.ndarray) -> np.ndarray:
        x = gelu(self.linear(f"{name}.fc1", x))
        if self.light:
            value, gate = np.split(x, 2, axis=2)
            x = value * self.conv(f"{name}.sg.conv", self.norm(f"{name}.sg.norm", gate), depthwise=True)
        else:
            x = x + gelu(self.conv(f"{name}.dwconv.depthwise_conv.0", x, depthwise=True))
        return self.linear(f"{name}.fc2", x)

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
        return x * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def conv(self, name: str, x: np.ndarray, depthwise: bool = False) -> np.ndarray:
        kernel, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        size = kernel.shape[2]
        padded = np.pad(x, [(size // 2, size // 2), (size // 2, size // 2), (0, 0)])
        out = np.empty((*x.shape[:2], len(bias)))
        for y, z in np.ndindex(*x.shape[:2]):
            piece = padded[y : y + size, z : z + size].transpose(2, 0, 1)
            product = kernel[:, 0] * piece if depthwise else (kernel * piece).sum(1)
            out[y, z] = product.sum((1, 2)) + bias
        return out

    def shuffle(self, x: np.ndarray, factor: int) -> np.ndarray:
        out = np.empty((x.shape[0] * factor, x.shape[1] * factor, x.shape[2] // factor**2))
        for dy, dx in np.ndindex(factor, factor):
            out[dy::factor, dx::factor] = x[:, :, dy * factor + dx :: factor**2]
        return out


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


@pytest.mark.parametrize(
    ("light", "scale", "size"),
    [
        (True, 4, (8, 12)),
        (True, 2, (5, 7)),
        (True, 3, (4, 1)),
        (False, 4, (7, 9)),
        (False, 2, (4, 8)),
        (False, 3, (2, 3)),
    ],
)
def test_output_and_features_are_the_slow_reference_s(light: bool, scale: int, size: tuple[int, int]) -> None:
    network = tiny(light, scale)
    lr = torch.rand(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        hr = network(lr)
        features = {layer: network.features(lr, layer) for layer in LAYERS}
    assert hr.shape == (2, 3, size[0] * scale, size[1] * scale)
    for n in range(2):
        expected, expected_hr = Reference(network)(lr[n].permute(1, 2, 0).numpy())
        np.testing.assert_allclose(hr[n].permute(1, 2, 0).numpy(), expected_hr, rtol=1e-9, atol=1e-9)
        for layer in LAYERS:
            result = features[layer][n].permute(1, 2, 0).numpy()
            np.testing.assert_allclose(result, expected[layer], rtol=1e-9, atol=1e-9, err_msg=str(layer))


def test_the_reference_tells_the_prompts_and_windows_apart() -> None:
    """Else the comparison above would prove less than it seems to."""
    network = tiny(light=True)
    chosen: set[int] = set()
    for module in network.modules():
        if isinstance(module, AttentiveStateSpace):
            module.route.register_forward_hook(
                lambda module, x, scores: chosen.update(scores.argmax(-1).flatten().tolist())
            )
    with torch.no_grad():
        network(torch.rand(1, 3, 8, 12, dtype=torch.float64))
    assert len(chosen) >= 3


# The published network


@pytest.mark.parametrize(
    ("name", "scale", "published"),
    [("mambairv2-light", 4, 789_680), ("mambairv2-light", 2, 774_092), ("mambairv2", 4, 23_050_713)],
)
def test_parameter_counts_are_the_published_ones(name: str, scale: int, published: int) -> None:
    with torch.device("meta"):
        network = networks.create(name, scale=scale)
    assert sum(parameter.numel() for parameter in network.parameters()) == published


def test_state_dict_keys_and_shapes_are_those_of_the_published_light_checkpoint() -> None:
    assert digest(networks.create("mambairv2-light").state_dict()) == LIGHT_DIGEST


def test_the_published_light_weights_reach_their_psnr_on_set5(shared: Path) -> None:
    weights = load_file(shared / "weights" / "mambairv2_light_x4.safetensors")
    assert digest(weights) == LIGHT_DIGEST
    network = networks.create("mambairv2-light").eval()
    network.load_state_dict(weights)
    test = shared / "data" / "test"
    protocol = Protocol("y", border=4, scale=4)
    result = evaluate(network, test / "Set5", [protocol], lr_location=test / "LR_bicubic_x4" / "Set5")
    assert result["protocols"][f"{protocol}, given LR"]["psnr"] == pytest.approx(32.55, abs=0.03)


def test_the_stored_positions_are_the_computed_ones(shared: Path) -> None:
    weights = load_file(shared / "weights" / "mambairv2_light_x4.safetensors")
    network = networks.create("mambairv2-light")
    assert torch.equal(network.relative_position_index_SA, weights["relative_position_index_SA"])


# Training and evaluation mode


def test_in_evaluation_mode_the_seed_changes_nothing_and_in_training_mode_it_does() -> None:
    network, lr = tiny(light=True), torch.rand(1, 3, 8, 8, dtype=torch.float64)

    def outputs() -> list[torch.Tensor]:
        results = []
        for seed in (0, 1, 0):
            torch.manual_seed(seed)
            with torch.no_grad():
                results.append(network(lr))
        return results

    a, b, c = outputs()
    assert torch.equal(a, b)
    assert torch.equal(a, c)
    network.train()
    a, b, c = outputs()
    assert not torch.equal(a, b)
    assert torch.equal(a, c)


def router() -> AttentiveStateSpace:
    return AttentiveStateSpace(dim=6, hidden=6, d_state=STATES, inner_rank=2, num_tokens=PROMPTS)


@pytest.mark.parametrize("training", [True, False])
def test_a_prompt_is_drawn_with_its_probability(training: bool) -> None:
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.1, 0.0])
    noise = MambaIRv2(**ARGUMENTS | {"window": 32}, mlp_ratio=1, light=True).noise
    torch.manual_seed(0)
    draws = router().train(training)._choose(probabilities.log().expand(16, 32, 32, PROMPTS), noise)
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(
        draws.mean((0, 1, 2)), probabilities, rtol=0, atol=0.06
    )  # four standard errors of 32 * 32 draws


def test_in_evaluation_mode_the_best_noisy_score_wins_and_gives_the_gradient_of_the_softmax() -> None:
    scores = torch.randn(2, 4, 6, PROMPTS, dtype=torch.float64).log_softmax(-1).requires_grad_()
    noise = torch.randn(2, 2, PROMPTS, dtype=torch.float64)
    noisy = scores + noise.tile(2, 3, 1)
    choice = router().eval()._choose(scores, noise)
    assert torch.equal(choice.detach(), functional.one_hot(noisy.argmax(-1), PROMPTS).double())
    weights = torch.randn_like(choice)
    (gradient,) = torch.autograd.grad((choice * weights).sum(), scores)
    (expected,) = torch.autograd.grad((noisy.softmax(-1) * weights).sum(), scores)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("light", [True, False])
def test_gradients_are_the_slopes_of_the_output(light: bool) -> None:
    """With a router that sees nothing, whose gradient is no slope by design."""
    network = tiny(light)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("route.2.weight"):
                parameter.zero_()
    generator = torch.Generator().manual_seed(1)
    lr, direction = (torch.rand(1, 3, 6, 8, dtype=torch.float64, generator=generator) for _ in range(2))
    lr.requires_grad_()
    (gradient,) = torch.autograd.grad(network(lr).sin().sum(), lr)
    with torch.no_grad():
        slope = (network(lr + 1e-6 * direction).sin().sum() - network(lr - 1e-6 * direction).sin().sum()) / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("light", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_every_parameter_and_pixel_gets_a_gradient(light: bool, training: bool) -> None:
    network = tiny(light).train(training)
    lr = torch.rand(1, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    network(lr).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in network.parameters())
    assert lr.grad is not None
    assert (lr.grad != 0).all()


def test_bfloat16_autocast_stays_near_float32() -> None:
    torch.manual_seed(0)
    network, lr = networks.create("mambairv2-light").eval(), torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = network(lr)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = network(lr)
    assert (result - expected).abs().mean() < 0.02 * expected.std()


# Refusals, and the registry


@pytest.mark.parametrize("layer", [0, 3, -1, "middle", True, 1.5])
def test_a_layer_that_does_not_exist_is_refused_with_those_that_do(layer: Any) -> None:
    with pytest.raises(NetworkError, match=r'Its layers are 1 to 2, "first", "last", "norm", and "body"\.'):
        tiny(light=True).features(torch.rand(1, 3, 4, 4, dtype=torch.float64), layer)


@pytest.mark.parametrize("name", ["mambairv2-light", "mambairv2"])
def test_a_scale_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(NetworkError, match="MambaIRv2 supports scales 2, 3, and 4, not 8"):
        networks.create(name, scale=8)


def test_heads_that_do_not_divide_the_channels_are_refused() -> None:
    arguments = networks.create("mambairv2-light").arguments
    with pytest.raises(NetworkError, match="5 attention heads can't split 48 channels evenly"):
        MambaIRv2(**{**arguments, "heads": 5})


def test_a_saved_network_comes_back(tmp_path: Path) -> None:
    network = tiny(light=False, scale=3).float()
    networks.save(network, tmp_path)
    loaded = networks.load(tmp_path, scale=3)
    lr = torch.rand(1, 3, 8, 8)
    assert torch.equal(loaded(lr), network(lr))
    assert (loaded.name, loaded.scale, loaded.training) == ("mambairv2", 3, False)

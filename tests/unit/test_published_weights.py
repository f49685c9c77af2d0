"""State dicts from elsewhere: what becomes a network's folder, and what is refused."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from idc_hub import networks
from idc_hub.errors import NetworkError
from idc_hub.networks.published import import_weights


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return networks.create("edsr-small", scale=2).state_dict()


@pytest.mark.parametrize("wrapper", ["params_ema", "params", None])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_published_files_load(
    wrapper: str | None, suffix: str, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    file = tmp_path / f"published{suffix}"
    if suffix == ".safetensors":
        save_file(weights, file)
    else:
        other = {key: torch.zeros_like(value) for key, value in weights.items()}
        # Where both are there, the averaged ones are those that the authors evaluate.
        torch.save({"params": other, wrapper: weights} if wrapper else weights, file)
    import_weights(file, "edsr-small", tmp_path / "net", scale=2, license="mit")
    network = networks.load(tmp_path / "net", scale=2)
    assert network.name == "edsr-small"
    for key, value in network.state_dict().items():
        assert torch.equal(value, weights[key])


class Runs:
    """What a malicious checkpoint holds: unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_what_is_refused(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    trace = tmp_path / "it-ran"
    torch.save({"params": weights, "extra": Runs(trace)}, tmp_path / "runs.pth")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(Runs(trace), protocol=2))
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    (tmp_path / "cut.pth").write_bytes(b"PK")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"params": {"conv_first.weight": torch.zeros(1)}}, tmp_path / "small.pth")
    for name, sentence in (
        ("gone.pth", "There is no file"),
        ("runs.pth", "can't be read as pure weights.*contains code, which we never run"),
        ("pickle.pth", "can't be read as pure weights"),
        ("cut.safetensors", "can't be read as pure weights"),
        ("cut.pth", "can't be read as pure weights"),
        ("list.pth", "contains no state dict"),
        ("small.pth", "doesn't fit edsr-small x2: Missing key.*Check the network's name and --scale"),
    ):
        with pytest.raises(NetworkError, match=sentence):
            import_weights(tmp_path / name, "edsr-small", tmp_path / "net", scale=2)
    assert not trace.exists()
    assert not (tmp_path / "net").exists()

    save_file(weights, tmp_path / "good.safetensors")
    import_weights(tmp_path / "good.safetensors", "edsr-small", tmp_path / "net", scale=2)
    with pytest.raises(NetworkError, match="already contains a network"):
        import_weights(tmp_path / "good.safetensors", "edsr-small", tmp_path / "net", scale=2)

"""State dicts from elsewhere: what becomes a network's folder, and what is refused."""

import errno
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


@pytest.mark.parametrize("prefix", ["module.", "model.", "net_g.", "module.net."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "net_g", "params"])
def test_wrappers_and_prefixes_are_removed(
    prefix: str, wrapper: str | None, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    named = {f"{prefix}{key}": value for key, value in weights.items()}
    if wrapper is None:
        torch.save(named, tmp_path / "file.pth")
        expected = []
    else:
        others = {"epoch": 3, "optimizer": {"state": {}}}
        torch.save(others | {wrapper: named | {"loss.vgg.weight": torch.zeros(2)}}, tmp_path / "file.pth")
        expected = ["epoch", "optimizer", "loss.*"]
    assert import_weights(tmp_path / "file.pth", "edsr-small", tmp_path / "net", scale=2) == expected
    for key, value in networks.load(tmp_path / "net", scale=2).state_dict().items():
        assert torch.equal(value, weights[key])


def test_averaged_weights_are_preferred(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    both = {f"net_g.{key}": torch.zeros_like(value) for key, value in weights.items()}
    both |= {f"net_g_ema.{key}": value for key, value in weights.items()}
    torch.save({"state_dict": both}, tmp_path / "file.ckpt")
    assert import_weights(tmp_path / "file.ckpt", "edsr-small", tmp_path / "net", scale=2) == ["net_g.*"]
    for key, value in networks.load(tmp_path / "net", scale=2).state_dict().items():
        assert torch.equal(value, weights[key])


def test_a_full_disk_is_a_sentence_and_leaves_nothing_behind(
    weights: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from idc_hub.networks import registry

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    torch.save(weights, tmp_path / "file.pth")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    monkeypatch.setattr(registry, "write_bytes_atomically", full)
    for folder in ("mine", "new/net"):
        with pytest.raises(NetworkError, match=f"{folder} can't be written: No space left on device. Free space there"):
            import_weights(tmp_path / "file.pth", "edsr-small", tmp_path / folder, scale=2)
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["file.pth", "mine", "notes.txt"]


def test_a_file_that_is_no_checkpoint_is_called_what_it_is(tmp_path: Path) -> None:
    for start, sentence in (
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:12",
            "is a Git LFS pointer, not the file itself: run",
        ),
        (b"\n <!DOCTYPE html><html>", "is a web page, not a checkpoint"),
        (b"\x89PNG\r\n\x1a\n", "is a PNG image"),
        (b"", r"is empty \(0 bytes\)"),
        (b"weights, but in words", "contains something else than a PyTorch checkpoint of tensors"),
    ):
        for suffix in (".pth", ".safetensors"):
            file = tmp_path / f"file{suffix}"
            file.write_bytes(start)
            if suffix == ".safetensors" and "something else" in sentence:
                sentence = "is damaged, cut off or not a PyTorch or safetensors checkpoint"
            with pytest.raises(NetworkError, match=sentence):
                import_weights(file, "edsr-small", tmp_path / "net", scale=2)
    assert not (tmp_path / "net").exists()


def test_what_is_refused(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    trace = tmp_path / "it-ran"
    torch.save({"params": weights, "extra": Runs(trace)}, tmp_path / "runs.pth")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(Runs(trace), protocol=2))
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    (tmp_path / "cut.pth").write_bytes(b"PK")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 1}, tmp_path / "plain.pth")
    others = {f"other.{number}": torch.zeros(1) for number in range(6)}
    torch.save({"params": {"conv_first.weight": torch.zeros(1)} | others}, tmp_path / "small.pth")
    for name, sentence in (
        ("gone.pth", "There is no file"),
        ("runs.pth", r"contains more than tensors \(.*getattr\)\. Loading it could run code, which we never do"),
        ("pickle.pth", r"contains (more|something else) than .*tensors.* could run code"),
        ("cut.safetensors", "is damaged, cut off or not a PyTorch or safetensors checkpoint"),
        ("cut.pth", "contains something else|is damaged, cut off"),
        ("list.pth", "contains a list, not a state dict"),
        ("plain.pth", r"contains no state dict\. Its keys: epoch\. "),
        (
            "small.pth",
            r"doesn't fit edsr-small x2\. Tensors 39 missing: (\S+, ){5}\.\.\.; 6 unexpected: (\S+, ){5}\.\.\.; "
            r"1 of another shape: conv_first\.weight \(\[1\] instead of \[32, 3, 3, 3\]\)\. "
            r"Check the network's name and --scale",
        ),
    ):
        with pytest.raises(NetworkError, match=sentence) as caught:
            import_weights(tmp_path / name, "edsr-small", tmp_path / "net", scale=2)
        assert "weights_only" not in str(caught.value)
        assert str(caught.value).isprintable()
    assert not trace.exists()
    assert not (tmp_path / "net").exists()

    save_file(weights, tmp_path / "good.safetensors")
    import_weights(tmp_path / "good.safetensors", "edsr-small", tmp_path / "net", scale=2)
    with pytest.raises(NetworkError, match="already contains a network"):
        import_weights(tmp_path / "good.safetensors", "edsr-small", tmp_path / "net", scale=2)

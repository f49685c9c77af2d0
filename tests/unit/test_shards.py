"""LR shards: bytes, digest, order, limits, damaged or hostile files, and interruption."""

import hashlib
import json
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from idc_hub.dataset.manifest import Manifest
from idc_hub.dataset.shards import (
    INDEX_NAME,
    Facts,
    LRDigest,
    iterate_lr,
    read_facts,
    read_index,
    verify_lr,
    write_shards,
)
from idc_hub.errors import RunError

METADATA = {"format": "idc", "format_version": 1, "scale": 2, "lr_recipe_hash": "a" * 64}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def lr_digest(instances: Iterable[tuple[str, np.ndarray | torch.Tensor]]) -> str:
    digest = LRDigest()
    for instance_id, patches in instances:
        digest.update(instance_id, patches)
    return digest.hexdigest()


def test_the_digest_is_sha256_over_id_shape_and_bytes(instances: dict[str, np.ndarray]) -> None:
    by_hand = hashlib.sha256()
    for name, shape in (("bridge", "2,3,8,8"), ("cat", "3,3,8,8"), ("tower", "1,3,8,8")):
        by_hand.update(name.encode() + b"\0" + shape.encode() + b"\0" + instances[name].tobytes())
    assert lr_digest(instances.items()) == by_hand.hexdigest()
    tensors = ((name, torch.from_numpy(array)) for name, array in instances.items())
    assert lr_digest(tensors) == by_hand.hexdigest()


def test_the_digest_does_not_depend_on_memory_layout(instances: dict[str, np.ndarray]) -> None:
    turned = ((name, np.asfortranarray(array)) for name, array in instances.items())
    assert lr_digest(turned) == lr_digest(instances.items())


def test_patches_come_back_pixel_for_pixel_in_id_order(tmp_path: Path, instances: dict[str, np.ndarray]) -> None:
    digest = write_shards(tmp_path / "lr", instances.items(), metadata=METADATA)
    read = list(iterate_lr(tmp_path / "lr"))
    assert [name for name, _ in read] == ["bridge", "cat", "tower"]
    for name, tensor in read:
        assert tensor.dtype == torch.uint8
        assert np.array_equal(tensor.numpy(), instances[name])
    assert digest == lr_digest(instances.items()) == read_index(tmp_path / "lr")["metadata"]["lr_digest"]


def test_shards_are_plain_safetensors_with_one_metadata_key(tmp_path: Path, instances: dict[str, np.ndarray]) -> None:
    write_shards(tmp_path / "lr", instances.items(), metadata=METADATA)
    path = tmp_path / "lr" / "lr-00001-of-00001.safetensors"
    assert load_file(path).keys() == instances.keys()
    with safe_open(path, "np") as shard:
        assert shard.metadata() == {"idc": json.dumps(METADATA, sort_keys=True)}


def test_equal_patches_give_equal_bytes(tmp_path: Path, instances: dict[str, np.ndarray]) -> None:
    for folder in ("one", "two"):
        write_shards(tmp_path / folder, instances.items(), metadata=dict(reversed(METADATA.items())))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_the_index_has_the_facts_of_each_instance(tmp_path: Path, instances: dict[str, np.ndarray]) -> None:
    facts = {name: Facts(source_sha256=digit * 64) for name, digit in zip(instances, "abc", strict=True)}
    facts["cat"] = Facts(source_sha256="b" * 64, nearest_real=[0, 3.125, 254.5])
    with_facts = write_shards(tmp_path / "lr", instances.items(), metadata=METADATA, facts=facts)
    assert json.loads((tmp_path / "lr" / INDEX_NAME).read_bytes())["instances"] == {
        "bridge": {"source_sha256": "a" * 64},
        "cat": {"source_sha256": "b" * 64, "nearest_real": [0, 3.125, 254.5]},
        "tower": {"source_sha256": "c" * 64},
    }
    assert read_facts(tmp_path / "lr") == facts
    assert write_shards(tmp_path / "without", instances.items(), metadata=METADATA) == with_facts
    assert "instances" not in read_index(tmp_path / "without")
    assert read_facts(tmp_path / "without") == dict.fromkeys(instances, Facts())


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ([], "instances: "),
        ({"cat": 3}, r"instances\.cat: "),
        ({"cat": {"source_sha256": "../x"}}, r"instances\.cat\.source_sha256: "),
        ({"cat": {"nearest_real": [1.0, float("nan"), 2.0]}}, r"instances\.cat\.nearest_real\.1: "),
        ({"cat": {"nearest_real": ["1", 2.0, 2.0]}}, r"instances\.cat\.nearest_real\.0: "),
        ({"cat": {"nearest_real": [1.0, 2.0, 256.0]}}, r"instances\.cat\.nearest_real\.2: "),
        ({"cat": {"nearest_real": [1.0, 2.0]}}, "2 values of nearest_real for the 3 patches of 'cat'"),
    ],
)
def test_invalid_facts_are_refused(
    tmp_path: Path, instances: dict[str, np.ndarray], facts: object, sentence: str
) -> None:
    write_shards(tmp_path / "lr", instances.items(), metadata=METADATA)
    path = tmp_path / "lr" / INDEX_NAME
    path.write_text(json.dumps(read_index(tmp_path / "lr") | {"instances": facts}))
    with pytest.raises(RunError, match=sentence):
        list(iterate_lr(tmp_path / "lr"))


def test_a_full_shard_is_followed_by_another_and_the_digest_stays(
    tmp_path: Path, instances: dict[str, np.ndarray]
) -> None:
    whole = write_shards(tmp_path / "one", instances.items(), metadata=METADATA)
    # bridge 384 bytes, cat 576, tower 192: the first fits alone, the other two fit together.
    split = write_shards(tmp_path / "two", instances.items(), metadata=METADATA, max_bytes=768)
    assert whole == split
    assert read_index(tmp_path / "two")["weight_map"] == {
        "bridge": "lr-00001-of-00002.safetensors",
        "cat": "lr-00002-of-00002.safetensors",
        "tower": "lr-00002-of-00002.safetensors",
    }
    assert read_index(tmp_path / "two")["metadata"]["total_size"] == 384 + 576 + 192
    assert [name for name, _ in iterate_lr(tmp_path / "two")] == ["bridge", "cat", "tower"]


def test_an_instance_larger_than_a_shard_gets_its_own(tmp_path: Path, instances: dict[str, np.ndarray]) -> None:
    write_shards(tmp_path / "lr", instances.items(), metadata=METADATA, max_bytes=1)
    assert len(set(read_index(tmp_path / "lr")["weight_map"].values())) == 3


def test_instances_without_patches_have_no_key(tmp_path: Path, instances: dict[str, np.ndarray]) -> None:
    empty = np.empty((0, 3, 8, 8), np.uint8)
    with_empty = sorted([*instances.items(), ("dog", empty)], key=lambda item: item[0])
    digest = write_shards(tmp_path / "lr", with_empty, metadata=METADATA)
    assert "dog" not in read_index(tmp_path / "lr")["weight_map"]
    assert digest == lr_digest(instances.items())


def test_packing_and_reading_need_the_memory_of_a_few_shards_only(tmp_path: Path) -> None:
    many = ((f"{number:03}", np.full((8, 3, 64, 64), number, np.uint8)) for number in range(80))  # 98 kB each
    tracemalloc.start()
    write_shards(tmp_path / "lr", many, metadata=METADATA, max_bytes=300_000)
    for _ in iterate_lr(tmp_path / "lr"):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert read_index(tmp_path / "lr")["metadata"]["total_size"] == 80 * 8 * 3 * 64 * 64
    assert peak < 3_000_000


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_an_interrupted_packing_leaves_the_old_tree(
    tmp_path: Path, instances: dict[str, np.ndarray], error: BaseException
) -> None:
    write_shards(tmp_path / "lr", instances.items(), metadata=METADATA)
    before = contents(tmp_path)

    def breaking() -> Iterator[tuple[str, np.ndarray]]:
        yield "bridge", instances["cat"]
        yield "cat", instances["bridge"]
        raise error

    with pytest.raises(type(error)):
        write_shards(tmp_path / "lr", breaking(), metadata=METADATA, max_bytes=1)
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["lr"]


def test_packing_again_replaces_every_old_file_and_what_a_killed_process_left(
    tmp_path: Path, instances: dict[str, np.ndarray]
) -> None:
    write_shards(tmp_path / "lr", instances.items(), metadata=METADATA, max_bytes=1)
    abandoned = tmp_path / ".lr.12345678.partial"
    abandoned.mkdir()
    (abandoned / "0.safetensors").write_bytes(b"half")
    write_shards(tmp_path / "lr", instances.items(), metadata=METADATA)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lr"]
    assert sorted(contents(tmp_path / "lr")) == ["lr-00001-of-00001.safetensors", INDEX_NAME]


@pytest.mark.parametrize(
    ("name", "array", "sentence"),
    [
        ("../evil", np.zeros((1, 3, 8, 8), np.uint8), "may not be called"),
        ("a/b", np.zeros((1, 3, 8, 8), np.uint8), "may not be called"),
        ("a", np.zeros((1, 3, 8, 8), np.float32), "not uint8"),
        ("a", np.zeros((3, 8, 8), np.uint8), "not uint8"),
        ("a", np.zeros((1, 1, 8, 8), np.uint8), "not uint8"),
        ("a", np.zeros((1, 3, 0, 8), np.uint8), "not uint8"),
    ],
)
def test_what_does_not_belong_into_a_shard_is_refused(
    tmp_path: Path, name: str, array: np.ndarray, sentence: str
) -> None:
    with pytest.raises(RunError, match=sentence):
        write_shards(tmp_path / "lr", [(name, array)], metadata=METADATA)
    assert not (tmp_path / "lr").exists()


@pytest.mark.parametrize("second", ["bridge", "alley"])
def test_ids_out_of_order_are_refused(tmp_path: Path, second: str) -> None:
    patch = np.zeros((1, 3, 8, 8), np.uint8)
    with pytest.raises(RunError, match="order"):
        write_shards(tmp_path / "lr", [("bridge", patch), (second, patch)], metadata=METADATA)


@pytest.mark.parametrize(
    ("weight_map", "sentence"),
    [
        ({"cat": "../secret.safetensors"}, "invalid file name"),
        ({"cat": "/etc/passwd"}, "invalid file name"),
        ({"cat": "sub/lr-00001-of-00001.safetensors"}, "invalid file name"),
        ({"cat": "lr-00001-of-00001.safetensors\n"}, "invalid file name"),
        ({"cat": 3}, "invalid file name"),
        ({"../cat": "lr-00001-of-00001.safetensors"}, "invalid instance id"),
        ({"": "lr-00001-of-00001.safetensors"}, "invalid instance id"),
        (["cat"], "not a shard index"),
    ],
)
def test_an_index_that_leads_out_of_its_folder_is_refused(
    tmp_path: Path, instances: dict[str, np.ndarray], weight_map: object, sentence: str
) -> None:
    write_shards(tmp_path / "lr", instances.items(), metadata=METADATA)
    save_file({"cat": instances["cat"]}, tmp_path / "secret.safetensors")
    index = {"metadata": {"total_size": 1, "lr_digest": "a" * 64}, "weight_map": weight_map}
    (tmp_path / "lr" / INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(RunError, match=sentence):
        list(iterate_lr(tmp_path / "lr"))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"weight_map": {}}', '{"metadata": {}, "weight_map": {}}'])
def test_a_damaged_index_is_a_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / INDEX_NAME).write_text(content)
    with pytest.raises(RunError, match="not a shard index"):
        read_index(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 60, 700])
def test_a_truncated_shard_is_a_sentence(tmp_path: Path, instances: dict[str, np.ndarray], keep: int) -> None:
    write_shards(tmp_path / "lr", instances.items(), metadata=METADATA)
    path = tmp_path / "lr" / "lr-00001-of-00001.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RunError, match="truncated or damaged") as caught:
        list(iterate_lr(tmp_path / "lr"))
    assert str(path) in caught.value.message


def test_a_missing_shard_and_a_missing_index_are_sentences(tmp_path: Path, instances: dict[str, np.ndarray]) -> None:
    write_shards(tmp_path / "lr", instances.items(), metadata=METADATA)
    (tmp_path / "lr" / "lr-00001-of-00001.safetensors").unlink()
    with pytest.raises(RunError, match=r"lr-00001-of-00001.safetensors is missing"):
        list(iterate_lr(tmp_path / "lr"))
    (tmp_path / "lr" / INDEX_NAME).unlink()
    with pytest.raises(RunError, match=f"{INDEX_NAME} is missing"):
        list(iterate_lr(tmp_path / "lr"))


def test_a_shard_that_holds_something_else_than_the_index_says_is_refused(
    tmp_path: Path, instances: dict[str, np.ndarray]
) -> None:
    write_shards(tmp_path / "lr", instances.items(), metadata=METADATA)
    path = tmp_path / "lr" / "lr-00001-of-00001.safetensors"
    save_file({**instances, "hidden": instances["cat"]}, path)
    with pytest.raises(RunError, match="other instances"):
        list(iterate_lr(tmp_path / "lr"))
    save_file({name: array.astype(np.float32) for name, array in instances.items()}, path)
    with pytest.raises(RunError, match="not uint8"):
        list(iterate_lr(tmp_path / "lr"))


def test_verify_holds_the_patches_to_the_manifest(repo: Path) -> None:
    manifest = Manifest.load(repo)
    verify_lr(repo / "lr", manifest)
    path = repo / "lr" / "lr-00001-of-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunError, match="digest differs"):
        verify_lr(repo / "lr", manifest)


@pytest.mark.parametrize(("key", "value", "sentence"), [("patches", 7, "says 7"), ("patch_size", 9, "another size")])
def test_verify_compares_counts_and_sizes(repo: Path, key: str, value: int, sentence: str) -> None:
    manifest = Manifest.load(repo)
    setattr(manifest, key, value)
    with pytest.raises(RunError, match=sentence):
        verify_lr(repo / "lr", manifest)

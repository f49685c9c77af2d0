"""HR versions as parquet: loading with `datasets`, bytes, shards, damage and interruption."""

import hashlib
import io
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from idc_hub.dataset.parquet import Row, read_keys, read_rows, size_of_version, write_rows
from idc_hub.errors import RunError

COLUMNS = ("instance_id", "patch_index", "lr", "hr")
IDS = ["bridge"] * 5 + ["cat"] * 4 + ["tower"] * 3


FEATURES = datasets.Features(
    instance_id=datasets.Value("string"),
    patch_index=datasets.Value("int32"),
    lr=datasets.Image(),
    hr=datasets.Image(),
    source_sha256=datasets.Value("string"),
    nearest_real=datasets.Value("float32"),
    teacher_residual=datasets.Value("float32"),
)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def pixels() -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(3)
    return [(random.integers(0, 256, (8, 8, 3), np.uint8), random.integers(0, 256, (16, 16, 3), np.uint8)) for _ in IDS]


@pytest.fixture
def rows(pixels: list[tuple[np.ndarray, np.ndarray]]) -> list[Row]:
    return [
        Row(name, IDS[:number].count(name), png(lr), png(hr), f"{number:064x}", number * 5 % 12 / 2, number / 4)
        for number, (name, (lr, hr)) in enumerate(zip(IDS, pixels, strict=True))
    ]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_rows_come_back_as_they_were(tmp_path: Path, rows: list[Row]) -> None:
    size = write_rows(tmp_path / "hr", rows)
    assert list(read_rows(tmp_path / "hr")) == rows
    assert read_keys(tmp_path / "hr") == [(row.instance_id, row.patch_index) for row in rows]
    assert size.columns == (*COLUMNS, "source_sha256", "nearest_real", "teacher_residual")
    assert size.rows == len(rows)
    assert size.file_bytes == sum(path.stat().st_size for path in (tmp_path / "hr").iterdir())
    pngs = sum(len(row.lr_png) + len(row.hr_png) for row in rows)
    assert pngs < size.data_bytes < size.file_bytes


def test_datasets_decodes_exact_pixels_and_needs_no_card(
    tmp_path: Path, rows: list[Row], pixels: list[tuple[np.ndarray, np.ndarray]]
) -> None:
    write_rows(tmp_path / "hr", rows)
    files = str(tmp_path / "hr" / "train-*")
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.features == FEATURES
    for row, (lr, hr) in zip(loaded, pixels, strict=True):
        assert np.array_equal(np.asarray(row["lr"]), lr)
        assert np.array_equal(np.asarray(row["hr"]), hr)
    raw = loaded.cast_column("lr", datasets.Image(decode=False))
    assert raw[5]["lr"] == {"bytes": rows[5].lr_png, "path": "cat-0-lr.png"}


def test_the_files_are_written_as_datasets_writes_them(tmp_path: Path, rows: list[Row]) -> None:
    """The reference is `Dataset.to_parquet` itself: same schema and metadata, encodings, compression and index."""
    write_rows(tmp_path / "hr", rows)
    images = {side: [{"bytes": getattr(row, f"{side}_png"), "path": "x.png"} for row in rows] for side in ("lr", "hr")}
    keys = {"instance_id": [row.instance_id for row in rows], "patch_index": [row.patch_index for row in rows]}
    facts = {name: [getattr(row, name) for row in rows] for name in FEATURES if name not in COLUMNS}
    datasets.Dataset.from_dict(keys | images | facts, features=FEATURES).to_parquet(tmp_path / "reference.parquet")
    ours = pq.ParquetFile(tmp_path / "hr" / "train-00000-of-00001.parquet")
    theirs = pq.ParquetFile(tmp_path / "reference.parquet")
    assert ours.schema_arrow.equals(theirs.schema_arrow, check_metadata=True)
    assert ours.metadata.metadata.keys() == theirs.metadata.metadata.keys()
    for key in (b"huggingface", b"content_defined_chunking"):
        assert ours.metadata.metadata[key] == theirs.metadata.metadata[key]
    for column in range(9):
        mine, reference = (file.metadata.row_group(0).column(column) for file in (ours, theirs))
        for fact in ("path_in_schema", "compression", "encodings", "has_offset_index", "has_column_index"):
            assert getattr(mine, fact) == getattr(reference, fact), (mine.path_in_schema, fact)


def test_users_sort_by_the_facts(tmp_path: Path, rows: list[Row]) -> None:
    write_rows(tmp_path / "hr", rows)
    files = str(tmp_path / "hr" / "train-*")
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    by_hand = sorted(rows, key=lambda row: row.nearest_real)
    assert [(row["instance_id"], row["patch_index"]) for row in loaded.sort("nearest_real")] == [
        (row.instance_id, row.patch_index) for row in by_hand
    ]


def drop_facts(path: Path) -> None:
    """Rewrite a file with the four columns that HR versions had at first."""
    schema = datasets.Features({name: FEATURES[name] for name in COLUMNS}).arrow_schema
    pq.write_table(pq.read_table(path, columns=list(COLUMNS)).cast(schema), path)


def test_files_without_facts_stay_valid(tmp_path: Path, rows: list[Row]) -> None:
    write_rows(tmp_path / "hr", rows)
    drop_facts(tmp_path / "hr" / "train-00000-of-00001.parquet")
    assert size_of_version(tmp_path / "hr").columns == COLUMNS
    nothing = {"source_sha256": None, "nearest_real": None, "teacher_residual": None}
    assert list(read_rows(tmp_path / "hr")) == [replace(row, **nothing) for row in rows]


def test_files_with_different_columns_are_refused(tmp_path: Path, rows: list[Row]) -> None:
    write_rows(tmp_path / "hr", rows, shard_bytes=1, row_group_bytes=5000)
    _, second, *_ = sorted((tmp_path / "hr").iterdir())
    drop_facts(second)
    with pytest.raises(RunError, match=f"{second.name} has other columns than the files before it"):
        size_of_version(tmp_path / "hr")


def test_equal_rows_give_equal_bytes(tmp_path: Path, rows: list[Row]) -> None:
    digests = set()
    for folder in ("one", "two", "three"):
        write_rows(tmp_path / folder, iter(rows), shard_bytes=4000, row_group_bytes=2000)
        digests.add(hashlib.sha256(repr(contents(tmp_path / folder)).encode()).hexdigest())
    assert len(digests) == 1


def test_full_files_are_followed_by_others_in_order(tmp_path: Path, rows: list[Row]) -> None:
    one = len(rows[0].lr_png) + len(rows[0].hr_png)  # about 1,100 bytes a row
    write_rows(tmp_path / "hr", rows, shard_bytes=5 * one, row_group_bytes=2 * one - 100)
    names = sorted(contents(tmp_path / "hr"))
    assert names == [f"train-{number:05}-of-00003.parquet" for number in range(3)]
    groups = [pq.ParquetFile(tmp_path / "hr" / name).metadata for name in names]
    assert [[meta.row_group(i).num_rows for i in range(meta.num_row_groups)] for meta in groups] == [[2, 2]] * 3
    assert list(read_rows(tmp_path / "hr")) == rows
    assert size_of_version(tmp_path / "hr").rows == len(rows)


def test_the_rows_of_some_instances_only(tmp_path: Path, rows: list[Row]) -> None:
    write_rows(tmp_path / "hr", rows, row_group_bytes=2000)
    chosen = list(read_rows(tmp_path / "hr", {"cat", "nobody"}))
    assert chosen == [row for row in rows if row.instance_id == "cat"]
    assert list(read_rows(tmp_path / "hr", set())) == []


def test_writing_needs_the_memory_of_a_few_row_groups_only(tmp_path: Path) -> None:
    image = bytes(50_000)
    many = (Row("cat", number, image, image[:-1] + bytes([number])) for number in range(200))  # 20 MB
    tracemalloc.start()
    write_rows(tmp_path / "hr", many, row_group_bytes=500_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_an_interruption_leaves_the_old_version(tmp_path: Path, rows: list[Row], error: BaseException) -> None:
    write_rows(tmp_path / "data" / "hr", rows)
    before = contents(tmp_path)

    def breaking() -> Iterator[Row]:
        yield from rows[:3]
        raise error

    for folder in ("hr", "new"):
        with pytest.raises(type(error)):
            write_rows(tmp_path / "data" / folder, breaking(), row_group_bytes=1)
    assert contents(tmp_path) == before
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["hr"]


def test_no_rows_are_refused_and_the_old_version_stays(tmp_path: Path, rows: list[Row]) -> None:
    write_rows(tmp_path / "hr", rows)
    with pytest.raises(RunError, match="no rows"):
        write_rows(tmp_path / "hr", [])
    assert list(read_rows(tmp_path / "hr")) == rows


@pytest.mark.parametrize("keep", [0, 3, 200, 5000])
def test_a_truncated_file_is_a_sentence(tmp_path: Path, rows: list[Row], keep: int) -> None:
    write_rows(tmp_path / "hr", rows)
    path = tmp_path / "hr" / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:keep])
    for read in (size_of_version, read_keys, lambda folder: list(read_rows(folder))):
        with pytest.raises(RunError, match="truncated or damaged") as caught:
            read(tmp_path / "hr")
        assert str(path) in caught.value.message


def test_a_missing_file_is_a_sentence(tmp_path: Path, rows: list[Row]) -> None:
    with pytest.raises(RunError, match="not hold all files"):
        size_of_version(tmp_path / "hr")
    write_rows(tmp_path / "hr", rows, shard_bytes=1, row_group_bytes=1)
    (tmp_path / "hr" / "train-00001-of-00012.parquet").unlink()
    with pytest.raises(RunError, match="not hold all files"):
        list(read_rows(tmp_path / "hr"))


def write_table(folder: Path, entry: dict) -> None:
    write_rows(folder, [Row("cat", 0, b"x", b"x")])
    path = folder / "train-00000-of-00001.parquet"
    schema = pq.read_schema(path)
    pq.write_table(pa.Table.from_pylist([entry], schema=schema), path)


@pytest.mark.parametrize(
    "change",
    [
        {"instance_id": "../../etc/cron.d/x"},
        {"instance_id": None},
        {"patch_index": None},
        {"lr": None},
        {"hr": {"bytes": None, "path": "/etc/passwd"}},
    ],
)
def test_rows_that_could_do_harm_are_refused(tmp_path: Path, change: dict) -> None:
    image = {"bytes": b"x", "path": None}
    write_table(tmp_path / "hr", {"instance_id": "cat", "patch_index": 0, "lr": image, "hr": image} | change)
    with pytest.raises(RunError, match="invalid row of instance"):
        list(read_rows(tmp_path / "hr"))


def test_other_columns_are_refused(tmp_path: Path) -> None:
    (tmp_path / "hr").mkdir()
    pq.write_table(pa.table({"image": ["x"]}), tmp_path / "hr" / "train-00000-of-00001.parquet")
    with pytest.raises(RunError, match="other columns"):
        size_of_version(tmp_path / "hr")

"""The rows of an HR version as parquet: instance_id, patch_index, lr and hr with the PNG bytes inside, and facts.

The files have the layout that `datasets` 5.2 writes: content-defined chunking, so that the Hub's storage deduplicates
the LR bytes of all HR versions; a page index, so that the viewer can read a single page; images uncompressed, because
PNG is compressed already. With the same version of pyarrow, equal rows give equal bytes.
"""

import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, Value

from idc_hub.atomic import replace_folder
from idc_hub.errors import RunError
from idc_hub.images.sources import is_instance_id

FEATURES = Features(
    {
        "instance_id": Value("string"),
        "patch_index": Value("int32"),
        "lr": Image(),
        "hr": Image(),
        "source_sha256": Value("string"),
        "nearest_real": Value("float32"),
        "teacher_residual": Value("float32"),
    }
)
"""The columns in their order. Sets made before the last three were added, or by hand, may lack those."""

_CHUNKING = {"min_chunk_size": 256 * 1024, "max_chunk_size": 1024 * 1024, "norm_level": 0}
_KEY_COLUMNS = ["instance_id", "patch_index"]
_FACT_COLUMNS = ["source_sha256", "nearest_real", "teacher_residual"]
_PLAIN_COLUMNS = _KEY_COLUMNS + _FACT_COLUMNS
_IMAGE_COLUMNS = ["lr.bytes", "lr.path", "hr.bytes", "hr.path"]
REMEDY = "Pull the repository again, or run `idc regenerate` again."


@dataclass(frozen=True)
class Row:
    """One LR/HR pair.

    Attributes:
        instance_id: Id of the instance.
        patch_index: Index of the patch within its instance, from 0.
        lr_png: PNG bytes of the LR patch.
        hr_png: PNG bytes of the HR patch.
        source_sha256: SHA-256 of the photograph's file. This and the following are None if they are not known.
        nearest_real: RMS difference of the LR patch to the nearest real one of its photograph, in gray levels (0..255).
        teacher_residual: RMS difference of HR to the LR patch upscaled by bicubic, in gray levels (0..255).
    """

    instance_id: str
    patch_index: int
    lr_png: bytes
    hr_png: bytes
    source_sha256: str | None = None
    nearest_real: float | None = None
    teacher_residual: float | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """All columns but the images."""
        return {key: value for key, value in vars(self).items() if not key.endswith("_png")}

    @property
    def name(self) -> str:
        """What messages call the row."""
        return f"patch_index {self.patch_index} of instance_id {self.instance_id}"


@dataclass(frozen=True)
class Size:
    """Columns and size of an HR version.

    Attributes:
        columns: Names of its columns.
        rows: Number of rows.
        data_bytes: Uncompressed size of its columns.
        file_bytes: Size of its files.
    """

    columns: tuple[str, ...]
    rows: int
    data_bytes: int
    file_bytes: int


def write_rows(
    folder: Path, rows: Iterable[Row], *, shard_bytes: int = 100_000_000, row_group_bytes: int = 95_000_000
) -> Size:
    """Write an HR version, holding one row group in memory at a time.

    Replaces the whole folder at the end. After an exception, even one raised by `rows`, the folder is unchanged.

    Args:
        folder: `data/<hr-version>` in a repository folder.
        rows: Sorted by instance id, then patch index.
        shard_bytes: Maximum size of a file. Streaming distributes whole files to workers, so files are small.
        row_group_bytes: Size of a row group, the unit that readers load. The Hub's viewer accepts at most 286 MiB;
            groups far below 100 MB deduplicate badly.

    Returns:
        The size of the written version.

    Raises:
        RunError: There are no rows.
    """
    groups = _row_groups(rows, row_group_bytes)
    count = 0
    with replace_folder(folder) as temporary:
        table = next(groups, None)
        while table is not None:
            size = 0
            with _open_writer(temporary / f"{count}.parquet") as writer:
                while table is not None and (size == 0 or size + table.nbytes <= shard_bytes):
                    writer.write_table(table, row_group_size=len(table))
                    size += table.nbytes
                    del table  # frees its memory before the next one is made
                    table = next(groups, None)
                writer.add_key_value_metadata({"content_defined_chunking": json.dumps(_CHUNKING)})
            count += 1
        if count == 0:
            raise RunError(f"There are no rows to write to {folder}.")
        for number in range(count):
            name = f"train-{number:05}-of-{count:05}.parquet"
            (temporary / f"{number}.parquet").rename(temporary / name)
    return size_of_version(folder)


def size_of_version(folder: Path) -> Size:
    """Columns, rows and bytes of an HR version, from the footers of its files.

    Raises:
        RunError: A file is missing, truncated or has other columns.
    """
    columns: list[str] = []
    rows = data_bytes = file_bytes = 0
    for path in files_of(folder):
        with _open(path) as file:
            if columns not in ([], file.schema_arrow.names):
                raise RunError(f"{path} has other columns than the files before it.", REMEDY)
            columns = file.schema_arrow.names
            rows += file.metadata.num_rows
            groups = (file.metadata.row_group(number) for number in range(file.num_row_groups))
            data_bytes += sum(group.total_byte_size for group in groups)
        file_bytes += path.stat().st_size
    return Size(tuple(columns), rows, data_bytes, file_bytes)


def files_of(folder: Path) -> list[Path]:
    """The files of an HR version in order.

    Raises:
        RunError: Some are missing.
    """
    found = sorted(folder.glob("train-*"))
    expected = [folder / f"train-{number:05}-of-{len(found):05}.parquet" for number in range(len(found))]
    if not found or found != expected:
        raise RunError(f"{folder} does not hold all files of an HR version.", REMEDY)
    return found


def read_keys(folder: Path) -> list[tuple[str, int]]:
    """(instance id, patch index) of every row in order, without reading images.

    Raises:
        RunError: A file is missing, truncated or has other columns.
    """
    keys: list[tuple[str, int]] = []
    for path in files_of(folder):
        with _open(path) as file:
            columns = file.read(columns=_KEY_COLUMNS).to_pydict()
        keys.extend(zip(columns["instance_id"], columns["patch_index"], strict=True))
    return keys


def read_rows(folder: Path, instances: Collection[str] | None = None) -> Iterator[Row]:
    """The rows of an HR version in order, a few in memory at a time.

    Args:
        folder: `data/<hr-version>` in a repository folder.
        instances: Only yield rows of these instances; row groups without any of them are not loaded. None: all rows.

    Raises:
        RunError: A file is missing, truncated or has other columns, or a row is invalid.
    """
    for path in files_of(folder):
        with _open(path) as file:
            for group in range(file.num_row_groups):
                if instances is not None:
                    ids = file.read_row_group(group, columns=["instance_id"])["instance_id"].to_pylist()
                    if set(instances).isdisjoint(ids):
                        continue
                yield from _rows_of_group(path, file, group, instances)


def _row_groups(rows: Iterable[Row], row_group_bytes: int) -> Iterator[pa.Table]:
    group: list[Row] = []
    size = 0
    for row in rows:
        group.append(row)
        size += len(row.lr_png) + len(row.hr_png)
        if size >= row_group_bytes:
            table = _to_table(group)
            group, size = [], 0
            yield table
            del table
    if group:
        yield _to_table(group)


def _to_table(rows: list[Row]) -> pa.Table:
    def entry(row: Row) -> dict:
        # The viewer shows this path, so it must not reveal folders of the machine that wrote it.
        name = f"{row.instance_id}-{row.patch_index}"
        return {
            "instance_id": row.instance_id,
            "patch_index": row.patch_index,
            "lr": {"bytes": row.lr_png, "path": f"{name}-lr.png"},
            "hr": {"bytes": row.hr_png, "path": f"{name}-hr.png"},
            **{column: getattr(row, column) for column in _FACT_COLUMNS},
        }

    return pa.Table.from_pylist([entry(row) for row in rows], schema=FEATURES.arrow_schema)


def _open_writer(path: Path) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        path,
        FEATURES.arrow_schema,
        use_content_defined_chunking=_CHUNKING,
        write_page_index=True,
        use_dictionary=_PLAIN_COLUMNS,
        column_encoding=dict.fromkeys(_IMAGE_COLUMNS, "PLAIN"),
        compression=dict.fromkeys(_PLAIN_COLUMNS, "snappy") | dict.fromkeys(_IMAGE_COLUMNS, "none"),
    )


@contextmanager
def _open(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            schema = FEATURES.arrow_schema
            without_facts = pa.schema([schema.field(name) for name in FEATURES if name not in _FACT_COLUMNS])
            if not any(file.schema_arrow.equals(known) for known in (schema, without_facts)):
                raise RunError(f"{path} has other columns than {', '.join(FEATURES)}.", REMEDY)
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is truncated or damaged ({error}).", REMEDY) from error


def _rows_of_group(path: Path, file: pq.ParquetFile, group: int, instances: Collection[str] | None) -> Iterator[Row]:
    for batch in file.iter_batches(batch_size=64, row_groups=[group]):
        for entry in batch.to_pylist():
            if instances is not None and entry["instance_id"] not in instances:
                continue
            lr_png, hr_png = ((entry[side] or {}).get("bytes") for side in ("lr", "hr"))
            index = entry["patch_index"]
            if not (lr_png and hr_png and index is not None and is_instance_id(entry["instance_id"] or "")):
                raise RunError(f"{path} has an invalid row of instance {entry['instance_id']!r}.", REMEDY)
            facts = {column: entry.get(column) for column in _FACT_COLUMNS}
            yield Row(entry["instance_id"], index, lr_png, hr_png, **facts)

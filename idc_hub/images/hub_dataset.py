"""Photographs of a dataset on the Hub: rows by index from the Arrow cache, undecoded, each read when it is needed."""

import re
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from idc_hub.errors import HubError, ImageError, one_line
from idc_hub.images.files import read_file, read_member
from idc_hub.images.sources import Entry, is_instance_id

if TYPE_CHECKING:
    import datasets


def open_hub_dataset(
    repo_id: str, *, config: str | None, split: str, column: str | None, revision: str | None
) -> tuple[list[Entry], Callable[[str], bytes]]:
    """Entries and reader of a Hub dataset.

    Names are the files' paths inside the repository, ids their stems. Where these are missing, equal or unfit, the
    number of the row stands in.

    Args:
        repo_id: `org/name`.
        config: Which config; None: the default, or the only one.
        split: Which split; `train[:100]` takes a part.
        column: Which image column; None: the only one.
        revision: Branch, tag or commit; None: main.

    Raises:
        ImageError: There is no such dataset, config, split or image column.
        HubError: The dataset cannot be loaded.
    """
    import datasets

    check_existence(repo_id, revision)
    dataset = _load(repo_id, config, split, revision)
    column = _image_column(dataset.features, column, repo_id)
    stored = dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    files = [_path_in_repository(path or "") for path in stored.flatten()[f"{column}.path"]]
    ids = [PurePosixPath(file).stem for file in files]
    if len({name.casefold() for name in ids}) < len(ids) or not all(map(is_instance_id, ids)):
        ids = [f"{row:0{max(4, len(str(len(files))))}}" for row in range(len(files))]
    if len(set(files)) < len(files) or not all(files):
        files = [f"row {row}" for row in range(len(files))]
    entries = [Entry(*named) for named in zip(ids, files, strict=True)]
    rows = {entry.name: row for row, entry in enumerate(entries)}
    return entries, lambda name: _stored_bytes(stored[rows[name]][column], name)


def check_existence(repo_id: str, revision: str | None = None) -> None:
    """Ask the Hub once for a dataset, so that a mistyped folder does not cost all the retries of `load_dataset`.

    Nothing is asked offline, or if main is in the cache of `datasets`, which then works without the Hub.

    Raises:
        ImageError: There is no such dataset or revision.
        HubError: The Hub refuses or cannot be reached.
    """
    import datasets
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    cached = (Path(datasets.config.HF_DATASETS_CACHE) / repo_id.replace("/", "___")).is_dir()
    if constants.HF_HUB_OFFLINE or (cached and revision is None):
        return
    nothing = f"There is no folder or zip {repo_id} here"
    try:
        HfApi().dataset_info(repo_id, revision=revision, timeout=10)
    except GatedRepoError as error:
        raise ImageError(
            f"{nothing}, and the dataset of that name on the Hub is gated.",
            f"Ask for access on its page, {constants.ENDPOINT}/datasets/{repo_id}, and log in (hf auth login).",
        ) from error
    except RepositoryNotFoundError as error:
        raise ImageError(
            f"{nothing}, and on the Hub no such dataset that you may read.",
            "Check the name; for a private dataset log in first (hf auth login).",
        ) from error
    except RevisionNotFoundError as error:
        raise ImageError(f"The Hub dataset {repo_id} has no revision {revision}.", "Check source.revision.") from error
    except HfHubHTTPError as error:
        said = f"{error.response.status_code} ({one_line(error.server_message or 'no reason given')})"
        raise HubError(f"{nothing}, and the Hub answered {said}.", "Check the path, or try again later.") from error
    except Exception as error:  # the transport's own classes: no connection, no name server, a timeout
        raise HubError(
            f"{nothing}, and the Hub at {constants.ENDPOINT} cannot be reached ({type(error).__name__}).",
            "Check the path, or the connection.",
        ) from error


def _load(repo_id: str, config: str | None, split: str, revision: str | None) -> "datasets.Dataset":
    import datasets

    try:
        splits = datasets.load_dataset(repo_id, config, revision=revision)
        name = re.split(r"[\[+]", split)[0]
        if name in splits:
            return (
                splits[split]
                if split in splits
                else datasets.load_dataset(repo_id, config, split=split, revision=revision)
            )
    except datasets.exceptions.DatasetNotFoundError as error:
        raise ImageError(
            f"There is no folder or zip {repo_id} here, and on the Hub no such dataset that you may read.",
            "Check the name and the revision; for a private dataset log in first (hf auth login).",
        ) from error
    except Exception as error:  # network, config, broken files: the library has no common class for them
        if isinstance(error, ValueError) and ("Config name is missing" in str(error) or "BuilderConfig" in str(error)):
            names = ", ".join(re.findall(r"'([^']+)'", str(error).rpartition("[")[2].partition("]")[0]))
            problem = f"no config {config!r}" if config else "several configs"
            raise ImageError(
                f"The Hub dataset {repo_id} has {problem}; its configs: {names}.",
                "Name one of them as source.config (or --config).",
            ) from error
        raise HubError(f"The Hub dataset {repo_id} cannot be loaded: {one_line(error)}") from error
    raise ImageError(
        f"The Hub dataset {repo_id} has no split {split!r}; its splits: {', '.join(splits)}.",
        "Name one of them as source.split (or --split).",
    )


def _path_in_repository(path: str) -> str:
    """The path of a file without the places of the cache, of archives and of the repository before it."""
    inner = path.removeprefix("zip://").partition("::")[0]
    for place in (r"^hf://datasets/[^/]+/[^/]+?(@[^/]+)?/", r"^.*/snapshots/[0-9a-f]{40}/", r"^.*/"):
        if place != r"^.*/" or inner.startswith("/"):
            inner = re.sub(place, "", inner)
    return inner


def _image_column(features: "datasets.Features", column: str | None, repo_id: str) -> str:
    import datasets

    columns = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if column is not None and column in columns:
        return column
    if column is None and len(columns) == 1:
        return columns[0]
    problem = f"no image column {column!r}" if column else f"{len(columns)} image columns"
    hint = "Name one of them as source.column (or --column)." if columns else "Give a dataset with an image column."
    raise ImageError(
        f"The Hub dataset {repo_id} has {problem}; its image columns: {', '.join(columns) or 'none'}.", hint
    )


def _stored_bytes(cell: dict | None, name: str) -> bytes:
    """The bytes of an undecoded image cell: embedded, or in a file or zip that was downloaded with the dataset."""
    if not cell or (cell["bytes"] is None and cell["path"] is None):
        raise ImageError(f"{name} has no image: leave it out.")
    if cell["bytes"] is not None:
        return cell["bytes"]
    if cell["path"].startswith("zip://"):
        member, _, archive = cell["path"].removeprefix("zip://").partition("::")
        return _zipped_bytes(_downloaded(archive, name), member, name)
    return read_file(_downloaded(cell["path"], name), name)


def _downloaded(path: str, name: str) -> Path:
    """A file of the download cache; a row must not name any other."""
    import datasets
    from huggingface_hub import constants

    resolved = Path(path).resolve()
    config = datasets.config
    caches = (constants.HF_HUB_CACHE, config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH)
    if not any(resolved.is_relative_to(Path(cache).resolve()) for cache in caches):
        raise ImageError(f"{name} has no bytes and names a file outside the download cache: leave it out.")
    return resolved


def _zipped_bytes(archive: Path, member: str, name: str) -> bytes:
    try:
        with zipfile.ZipFile(archive) as file:
            return read_member(file, member, name)
    except (zipfile.BadZipFile, OSError) as error:
        raise ImageError(f"{name} cannot be read from its zip ({one_line(error)}): download it again.") from error

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from idc_hub.errors import HubError, ImageError, LeftOutWarning
from idc_hub.images.files import encode_png
from idc_hub.images.patches import hr_box, lr_patches, windows
from idc_hub.images.resize import imresize
from idc_hub.images.sources import Entry, Source, count_conversions, load_hr, open_source, survey

GRID = {"scale": 4, "size": 8, "stride": 4}


def photograph(seed: int, height: int = 50, width: int = 66) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "b.png").write_bytes(encode_png(photograph(1)))
    (root / "deep" / "a.PNG").write_bytes(encode_png(photograph(2, 33, 40)))
    Image.fromarray(photograph(3)).save(root / "deep" / "er" / "10.jpg")
    Image.fromarray(photograph(4)).save(root / "9.webp")
    (root / "notes.txt").write_text("not a photograph")
    (root / ".DS_Store").write_bytes(b"x")
    return root


def names(source: Source) -> list[tuple[str, str]]:
    return [(entry.id, entry.name) for entry in source.entries]


IN_ORDER = [("10", "deep/er/10.jpg"), ("9", "9.webp"), ("a", "deep/a.PNG"), ("b", "b.png")]


def test_a_folder_is_listed_by_id(folder):
    source = open_source(str(folder))
    assert names(source) == IN_ORDER
    assert source.read(source.entries[3]) == (folder / "b.png").read_bytes()
    assert names(open_source(str(folder), limit=2)) == IN_ORDER[:2]


def test_a_zip_is_the_same_source(folder, tmp_path):
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    before = sorted(tmp_path.iterdir())
    zipped, plain = open_source(str(path)), open_source(str(folder))
    assert zipped.entries == plain.entries
    assert survey(zipped, **GRID) == survey(plain, **GRID)
    assert sorted(tmp_path.iterdir()) == before


def test_include_chooses_by_pattern(folder):
    assert names(open_source(str(folder), include=["deep/*"])) == [IN_ORDER[0], IN_ORDER[2]]
    assert names(open_source(str(folder), include=["b.png", "*.webp", "9*"])) == [IN_ORDER[1], IN_ORDER[3]]
    with pytest.raises(ImageError, match=r"No photograph of .* fits the pattern c\*\.png"):
        open_source(str(folder), include=["b.png", "c*.png"])


def test_exclude_leaves_out_by_pattern(folder):
    assert names(open_source(str(folder), exclude=["deep/*", "*.webp"])) == [IN_ORDER[3]]
    with pytest.raises(ImageError, match=r"fits the pattern c\* of source\.exclude"):
        open_source(str(folder), exclude=["c*"])
    with pytest.raises(ImageError, match=r"source\.exclude leaves no photograph of"):
        open_source(str(folder), include=["deep/*"], exclude=["deep/*"])


def test_files_that_are_no_photographs_are_named(folder):
    (folder / "deep" / "labels.mat").write_bytes(b"")
    (folder / "Thumbs.db").write_bytes(b"")
    source = open_source(str(folder))
    assert source.left_out == ("deep/labels.mat", "notes.txt")
    with pytest.warns(LeftOutWarning) as caught:
        source.warn_of_left_out()
    sentence = f"2 files are not photographs and are left out of {folder}: deep/labels.mat, notes.txt."
    assert [str(warning.message) for warning in caught] == [sentence]
    assert open_source(str(folder), include=["deep/*"]).left_out == ("deep/labels.mat",)
    assert open_source(str(folder), exclude=["*.txt", "*.webp"]).left_out == ("deep/labels.mat",)


def test_at_most_five_files_are_named(folder):
    for number in range(6):
        (folder / f"a{number}.csv").write_bytes(b"")
    with pytest.warns(LeftOutWarning, match=r"^7 files .*: a0.csv, a1.csv, a2.csv, a3.csv, a4.csv and 2 more\.$"):
        open_source(str(folder)).warn_of_left_out()


def test_conversions_are_counted(folder):
    for number in range(2):
        Image.fromarray(photograph(number)[..., 0]).save(folder / f"gray{number}.png")
    Image.fromarray(photograph(7)).save(folder / "profile.png", icc_profile=b"profile" * 20)
    instances = survey(open_source(str(folder)), **GRID)
    assert count_conversions(instances) == {"gray converted to RGB": 2, "color profile ignored": 1}


def test_a_linked_folder_and_a_linked_file_are_followed(folder, tmp_path):
    root = tmp_path / "linked"
    root.mkdir()
    (root / "more").symlink_to(folder / "deep", target_is_directory=True)
    (root / "z.png").symlink_to(folder / "b.png")
    assert names(open_source(str(root))) == [("10", "more/er/10.jpg"), ("a", "more/a.PNG"), ("z", "z.png")]


def test_home_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert names(open_source("~/photos")) == IN_ORDER


def test_survey_describes_every_instance(folder):
    calls = []
    instances = survey(open_source(str(folder)), **GRID, progress=lambda done, total: calls.append((done, total)))
    assert [(instance.id, instance.name) for instance in instances] == IN_ORDER
    small = instances[2]
    assert (small.width, small.height) == (40, 32)  # 33 rows, mod-cropped
    assert small.patches == 2  # 10 x 8 LR pixels: one row of windows at 0 and, flush with the edge, 2
    assert small.sha256 == hashlib.sha256((folder / "deep/a.PNG").read_bytes()).hexdigest()
    assert small.notes == ()
    assert instances[3].patches == len(windows(12, 16, 8, 4)) == 6
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_survey_hands_on_the_notes(folder):
    Image.fromarray(photograph(5)[..., 0]).save(folder / "gray.png")
    notes = {instance.id: instance.notes for instance in survey(open_source(str(folder)), **GRID)}
    assert notes["gray"] == ("gray converted to RGB",)
    assert notes["b"] == ()


def test_lr_patches_are_windows_of_the_shrunk_photograph(folder):
    source = open_source(str(folder))
    instance = survey(source, **GRID)[3]
    hr = load_hr(source, instance, scale=4)
    assert np.array_equal(hr, photograph(1)[:48, :64])
    patches = lr_patches(hr, **GRID)
    assert patches.shape == (6, 3, 8, 8)
    assert patches.dtype == np.uint8
    lr = imresize(photograph(1)[:48, :64], 1 / 4)
    for patch, (top, left) in zip(patches, windows(12, 16, 8, 4), strict=True):
        assert np.array_equal(patch, lr[top : top + 8, left : left + 8].transpose(2, 0, 1))
    assert hr_box((4, 8), 8, 4) == (16, 32, 48, 64)  # the last window ends where the HR image ends


def test_a_photograph_that_changed_is_refused(folder):
    source = open_source(str(folder))
    instance = survey(source, **GRID)[3]
    (folder / "b.png").write_bytes(encode_png(photograph(99)))
    with pytest.raises(ImageError, match=r"b\.png in .* is not the file that this run began with"):
        load_hr(source, instance, scale=4)
    (folder / "b.png").unlink()
    with pytest.raises(ImageError, match=r"b\.png is missing"):
        load_hr(source, instance, scale=4)


@pytest.mark.parametrize("name", ["../outside.png", "/etc/hostname", "notes.txt"])
def test_only_listed_names_are_read(folder, name):
    (folder.parent / "outside.png").write_bytes(encode_png(photograph(6)))
    with pytest.raises(ImageError, match="is not among the photographs"):
        open_source(str(folder)).read(Entry("x", name))


def test_package_source_is_found_without_import(tmp_path, monkeypatch):
    package = tmp_path / "photo_package"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "data" / "cat.png").write_bytes(encode_png(photograph(7)))
    (tmp_path / "secret.png").write_bytes(encode_png(photograph(8)))
    monkeypatch.syspath_prepend(tmp_path)
    source = open_source("package:photo_package/data")
    assert names(source) == [("cat", "cat.png")]
    assert survey(source, **GRID)[0].patches == 6
    assert source.location == "package:photo_package/data"
    for subfolder in ("photos", "..", "../", "data/../..", "data/cat.png"):
        with pytest.raises(ImageError, match="photo_package has no folder"):
            open_source(f"package:photo_package/{subfolder}")


@pytest.mark.parametrize("package", ["no_such_package", "os.path", "", "../x", "zipfile_not", "this"])
def test_package_that_is_not_there(package):
    with pytest.raises(ImageError, match="There is no installed Python package"):
        open_source(f"package:{package}/data")


def test_the_photographs_that_come_with_scikit_image():
    instance = survey(
        open_source("package:skimage/data", include=["astronaut.png", "rocket.jpg"]), scale=4, size=64, stride=32
    )[0]
    assert (instance.id, instance.width, instance.height, instance.patches) == ("astronaut", 512, 512, 9)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A function that publishes rows as the parquet file of `org/photos`, loaded by `datasets` itself."""
    import datasets

    load = datasets.load_dataset
    repo = tmp_path / "repo"

    def load_from_disk(path, *arguments, **options):
        assert path == "org/photos"
        return load(str(repo), *arguments, cache_dir=str(tmp_path / "cache"), **options)

    def publish(split="train", folder="data", **columns) -> None:
        kinds = {name: datasets.Image() if name != "label" else datasets.Value("string") for name in columns}
        table = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
        (repo / folder).mkdir(parents=True, exist_ok=True)
        table.to_parquet(repo / folder / f"{split}-00000-of-00001.parquet")

    monkeypatch.setattr(datasets, "load_dataset", load_from_disk)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    return publish


def cells(*paths: str | None) -> list[dict]:
    return [{"bytes": encode_png(photograph(seed)), "path": path} for seed, path in enumerate(paths)]


def test_hub_dataset_takes_its_ids_from_file_names(hub):
    hub(label=["x", "y", "z"], photo=cells("0802.png", "0801.png", "0803.jpg"))
    source = open_source("org/photos")
    assert names(source) == [("0801", "0801.png"), ("0802", "0802.png"), ("0803", "0803.jpg")]
    assert source.read(source.entries[0]) == encode_png(photograph(1))
    assert names(open_source("org/photos", include=["080[12]*"], limit=1)) == [("0801", "0801.png")]
    assert [instance.patches for instance in survey(source, **GRID)] == [6, 6, 6]


@pytest.mark.parametrize("paths", [("a.png", "A.jpg"), (None, None), ("a.png", None), ("a.png", "x" * 201 + ".png")])
def test_hub_dataset_without_unique_names_takes_row_numbers(hub, paths):
    hub(photo=cells(*paths))
    source = open_source("org/photos")
    expected = paths if None not in paths else ("row 0", "row 1")
    assert names(source) == [("0000", expected[0]), ("0001", expected[1])]
    assert source.read(source.entries[1]) == encode_png(photograph(1))


def test_hub_dataset_with_several_image_columns(hub):
    hub(lr=cells("a.png"), hr=cells("b.png"), label=["x"])
    assert names(open_source("org/photos", column="hr")) == [("b", "b.png")]
    with pytest.raises(ImageError, match="has 2 image columns; its image columns: lr, hr"):
        open_source("org/photos")
    for column in ("label", "sr"):
        with pytest.raises(ImageError, match=f"has no image column '{column}'; its image columns: lr, hr"):
            open_source("org/photos", column=column)


def test_hub_dataset_without_images(hub):
    hub(label=["x"])
    with pytest.raises(ImageError, match="has 0 image columns; its image columns: none"):
        open_source("org/photos")


def test_hub_dataset_rows_without_bytes(hub, tmp_path):
    (tmp_path / "cache").mkdir()
    for place in ("cache/inside.png", "outside.png"):
        (tmp_path / place).write_bytes(encode_png(photograph(1)))
    (tmp_path / "cache" / "link.png").symlink_to(tmp_path / "outside.png")
    paths = [str(tmp_path / place) for place in ("cache/inside.png", "outside.png", "cache/link.png")]
    hub(photo=[{"bytes": None, "path": path} for path in paths] + [None])
    source = open_source("org/photos")
    assert source.read(source.entries[0]) == encode_png(photograph(1))
    with pytest.raises(ImageError) as caught:
        survey(source, **GRID)
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()[1:]] == [
        "  row 1 has no bytes and names a file outside the download cache",
        "  row 2 has no bytes and names a file outside the download cache",
        "  row 3 has no image",
    ]


def test_hub_dataset_with_another_split(hub):
    hub(photo=cells("a.png"))
    hub(split="validation", photo=cells("b.png", "c.png"))
    assert names(open_source("org/photos", split="validation")) == [("b", "b.png"), ("c", "c.png")]
    assert names(open_source("org/photos", split="validation[:1]")) == [("b", "b.png")]
    with pytest.raises(ImageError, match=r"org/photos has no split 'test'; its splits: train, validation\. Name one"):
        open_source("org/photos", split="test")


def test_hub_dataset_that_is_not_there(monkeypatch):
    import datasets

    def not_found(path, *arguments, **options):
        raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{path}' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", not_found)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: None)
    with pytest.raises(ImageError, match=r"There is no folder or zip org/none here, and on the Hub"):
        open_source("org/none")


def test_what_is_on_this_machine_comes_before_the_hub(hub, tmp_path):
    hub(photo=cells("hub.png"))
    assert names(open_source("org/photos")) == [("hub", "hub.png")]
    (tmp_path / "org" / "photos").mkdir(parents=True)
    (tmp_path / "org" / "photos" / "local.png").write_bytes(encode_png(photograph(0)))
    assert names(open_source("org/photos")) == [("local", "local.png")]


def test_hub_dataset_with_several_configs(hub):
    hub(folder="Set5", photo=cells("a.png"))
    hub(folder="Set14", photo=cells("b.png"))
    (Path("repo") / "README.md").write_text(
        "---\nconfigs:\n- {config_name: Set5, data_files: Set5/*}\n- {config_name: Set14, data_files: Set14/*}\n---\n"
    )
    assert names(open_source("org/photos", config="Set14")) == [("b", "b.png")]
    for config, problem in ((None, "several configs"), ("Set15", "no config 'Set15'")):
        with pytest.raises(ImageError, match=rf"org/photos has {problem}; its configs: Set5, Set14\. Name one"):
            open_source("org/photos", config=config)


def test_hub_dataset_with_images_in_a_zip(hub, tmp_path):
    (tmp_path / "cache").mkdir()
    for place in ("cache/images.zip", "outside.zip"):
        with zipfile.ZipFile(tmp_path / place, "w") as archive:
            for name in ("baby", "bird", "woman"):
                archive.writestr(f"Set5/{name}.png", encode_png(photograph(1)))
    paths = [
        f"zip://Set5/{name}::{tmp_path}/{place}"
        for name, place in [
            ("baby.png", "cache/images.zip"),
            ("bird.png", "cache/images.zip"),
            ("woman.png", "outside.zip"),
        ]
    ]
    hub(photo=[{"bytes": None, "path": path} for path in paths])
    with zipfile.ZipFile(tmp_path / "cache/images.zip", "w") as archive:
        archive.writestr("Set5/baby.png", encode_png(photograph(1)))
    source = open_source("org/photos")
    assert names(source) == [(name, f"Set5/{name}.png") for name in ("baby", "bird", "woman")]
    assert source.read(source.entries[0]) == encode_png(photograph(1))
    with pytest.raises(ImageError, match=r"Set5/bird\.png cannot be read from its zip"):
        source.read(source.entries[1])
    with pytest.raises(ImageError, match=r"Set5/woman\.png has no bytes and names a file outside the download cache"):
        source.read(source.entries[2])
    archive_bytes = bytearray((tmp_path / "cache/images.zip").read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        archive_bytes[archive_bytes.index(signature) + flags] |= 1  # encrypted
    (tmp_path / "cache/images.zip").write_bytes(archive_bytes)
    with pytest.raises(ImageError, match=r"Set5/baby\.png cannot be read from its zip \(.*password"):
        source.read(source.entries[0])


def test_hub_dataset_with_lr_beside_hr(hub):
    hub(photo=cells("DIV2K_train_HR/0001.png", "DIV2K_train_LR_bicubic/X4/0001x4.png"))
    with pytest.raises(ImageError, match=r"choose HR with source\.include=DIV2K_train_HR/\*"):
        open_source("org/photos")
    assert names(open_source("org/photos", include=["DIV2K_train_HR/*"])) == [("0001", "DIV2K_train_HR/0001.png")]


def test_a_mistyped_folder_costs_one_request(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", "http://127.0.0.1:9", raising=False)
    with pytest.raises(
        HubError, match=r"^There is no folder or zip photos/train here, and the Hub .* cannot be reached"
    ):
        open_source("photos/train")


@pytest.mark.parametrize("path", ["photos", "a/b/c", "../photos", "./photos", "org/", "/org/photos", "org /photos"])
def test_what_cannot_be_a_hub_id_never_asks_the_hub(hub, path):
    with pytest.raises(ImageError, match="There is no folder, zip or Hub dataset"):
        open_source(path)


def test_the_room_imports_nothing_heavy():
    code = (
        "import sys, idc_hub.images.sources, idc_hub.images.metrics\n"
        "print([name for name in ('torch', 'datasets', 'skimage', 'huggingface_hub') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"

"""The card: metadata that loads, true facts, no injection by foreign values, and user text that is kept."""

import re
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt

from idc_hub.dataset.card import BEGIN, END, merge_card, render_card, write_card
from idc_hub.dataset.check import check_repository, repository_files
from idc_hub.dataset.condensed_set import CondensedSet
from idc_hub.dataset.licenses import License, choose
from idc_hub.dataset.manifest import Manifest
from idc_hub.dataset.parquet import FEATURES, Row, write_rows
from idc_hub.dataset.regenerate import regenerate
from idc_hub.errors import RecipeError, RunError
from idc_hub.networks.teachers import Teacher
from tests.flow.hub_tools import make_repository

MakeTeacher = Callable[..., Teacher]

USER_CARD = """\
---
# The license was agreed with the photographers.
license: cc-by-4.0
language:
- no          # Norwegian captions; YAML takes this word for a boolean
pretty_name: "Bridges: a set"
tags: [bridges, x2]
version: 1.10
configs:
- config_name: stale
  data_files: gone/*

# Contact before use.
extra_gated_prompt: |-
  # Terms
  license: be nice
---
Words before.

<!-- idc:begin -->
old facts
<!-- idc:end -->

## My own section

| a | b |
| - | - |
Trailing   spaces.\x20\x20
"""


@pytest.fixture
def published(repo: Path, make_teacher: MakeTeacher) -> Path:
    """A set with two HR versions: `nearest`, the default, and the newer `dark`."""
    regenerate(CondensedSet(repo), make_teacher("repeat"), "nearest", date="2026-11-01")
    regenerate(CondensedSet(repo), make_teacher("darken"), "dark", date="2026-11-02", set_default=False)
    return repo


def metadata(card: str) -> dict[str, Any]:
    return DatasetCard(card).data.to_dict()


def change(repo: Path, **fields: Any) -> None:
    manifest = Manifest.load(repo)
    for name, value in fields.items():
        setattr(manifest, name, value)
    manifest.save(repo)


def to_html(card: str) -> str:
    body = re.sub(r"\A---\n.*?^---\n", "", card, flags=re.MULTILINE | re.DOTALL)
    return MarkdownIt("commonmark").enable("table").render(body)


def test_the_metadata_has_what_the_hub_looks_for(published: Path) -> None:
    data = metadata(render_card(CondensedSet(published), license=License("cc-by-4.0")))
    assert data["license"] == "cc-by-4.0"
    assert data["task_categories"] == ["image-to-image"]
    assert {"super-resolution", "dataset-condensation", "dataset-distillation", "x2"} <= set(data["tags"])
    assert data["size_categories"] == ["n<1K"]
    assert data["source_datasets"] == ["extended"]
    assert data["annotations_creators"] == ["machine-generated"]
    assert "sample-x2" in data["pretty_name"]


def test_without_a_license_none_is_claimed(published: Path) -> None:
    assert "license" not in metadata(render_card(CondensedSet(published)))


def test_every_version_is_a_config_with_true_counts_and_one_is_the_default(published: Path) -> None:
    data = metadata(render_card(CondensedSet(published)))
    assert data["configs"] == [
        {
            "config_name": "nearest",
            "default": True,
            "data_files": [{"split": "train", "path": "data/nearest/train-*"}],
        },
        {"config_name": "dark", "data_files": [{"split": "train", "path": "data/dark/train-*"}]},
    ]
    info = {entry["config_name"]: entry for entry in data["dataset_info"]}
    for name in ("nearest", "dark"):
        on_disk = sum(path.stat().st_size for path in (published / "data" / name).iterdir())
        assert info[name]["download_size"] == on_disk
        assert info[name]["splits"][0]["num_examples"] == 6
        assert 0 < info[name]["dataset_size"] == info[name]["splits"][0]["num_bytes"] < on_disk
        assert info[name]["features"] == [
            {"name": "instance_id", "dtype": "string"},
            {"name": "patch_index", "dtype": "int32"},
            {"name": "lr", "dtype": "image"},
            {"name": "hr", "dtype": "image"},
            {"name": "source_sha256", "dtype": "string"},
            {"name": "nearest_real", "dtype": "float32"},
            {"name": "teacher_residual", "dtype": "float32"},
        ]
        assert datasets.Features._from_yaml_list(info[name]["features"]) == FEATURES


def test_only_columns_that_files_have_are_named(tmp_path: Path, published: Path) -> None:
    by_hand = make_repository(tmp_path / "by-hand", {"edsr": 0})
    card = render_card(CondensedSet(by_hand))
    [info] = metadata(card)["dataset_info"]
    assert [feature["name"] for feature in info["features"]] == ["instance_id", "patch_index", "lr", "hr"]
    assert "`nearest_real`" not in card
    assert "`nearest_real`" in render_card(CondensedSet(published))


@pytest.mark.parametrize(
    ("rows", "category"),
    [(999, "n<1K"), (1000, "1K<n<10K"), (12_000, "10K<n<100K"), (100_000, "100K<n<1M"), (10**9, "n>1B")],
)
def test_the_size_category_follows_the_number_of_pairs(repo: Path, rows: int, category: str) -> None:
    change(repo, patches=rows)
    assert metadata(render_card(CondensedSet(repo)))["size_categories"] == [category]


def test_without_an_hr_version_there_is_nothing_to_load(repo: Path) -> None:
    card = render_card(CondensedSet(repo))
    assert "configs" not in metadata(card)
    assert "load_dataset(" not in card
    assert "No HR version" in card


def test_the_facts_are_on_the_card(published: Path) -> None:
    card = render_card(CondensedSet(published), repo_id="ada/bridges")
    for fact in (
        "6 pairs",
        "120 patches of 3 photographs",
        "×2",
        'load_dataset("ada/bridges", "nearest", split="train")',
        "there is also `dark`",
        "idc condense ada/bridges",
        "version 0.1.0 made this set",
        "idc pull ada/bridges --run-dir runs/sample-x2",
        "idc push runs/sample-x2 ada/bridges",
        "(5 %)",
        "1 min 15 s",
        "torch 2.13.0+cpu",
        "1" * 12,
        "2" * 12,
        "2505.21099",
        "Not measured yet",
        Manifest.load(published).lr_digest[:12],
    ):
        assert fact in card, fact
    sections = re.findall(r"^## (.*)$", card, flags=re.MULTILINE)
    assert sections == [
        "Load it",
        "HR versions",
        "What it is worth",
        "Files",
        "How it was made",
        "Add an HR version",
        "Limits and license",
        "Citation",
    ]


def test_the_versions_table_marks_the_default(published: Path) -> None:
    html = to_html(render_card(CondensedSet(published)))
    table = html[html.index("<h2>HR versions") :].partition("</table>")[0]
    rows = re.findall(r"<tr>\n<td>.*?</tr>", table, flags=re.DOTALL)
    assert [re.findall(r"<code>([\w-]+)</code>", row)[0] for row in rows] == ["nearest", "dark"]
    assert ["(default)" in row for row in rows] == [True, False]


def test_a_measured_result_replaces_the_warning(published: Path) -> None:
    results = [{"set": "this", "Set14 PSNR (Y, border 2)": 27.04}, {"set": "whole | all"}]
    change(published, condensation={"results": results, "held_out": 0.0482, "held_out_random": 0.137})
    card = render_card(CondensedSet(published))
    assert "Not measured yet" not in card
    assert "27.04" in to_html(card)
    assert "<td>whole | all</td>" in to_html(card)
    assert "0.0482" in card
    assert "0.137" in card


def test_the_judgment_is_shown_as_sentences_and_a_table_for_each_measured_version(published: Path) -> None:
    assert "### Quality" not in render_card(CondensedSet(published))
    good = {"held_out": {"set": 0.0155, "real": 0.0532}, "copied": {"set": 0.25, "real": 0.0}}
    bad = {"chroma_over_luma": {"set": 0.59, "real": 0.26}, "residual": {"set": 0.2, "real": 0.2}}
    change(published, condensation={"quality": {"nearest": good, "dark": bad, "unknown": bad}})
    card = render_card(CondensedSet(published))
    assert re.findall("^### (.*)$", card, flags=re.MULTILINE) == ["Quality of `nearest`", "Quality of `dark`"]
    assert "**The patches passed all of these checks**" in card
    assert "**The patches failed 1 of these checks.**" in card
    rows = [
        re.findall("<t[hd].*?>(.*?)</t[hd]>", row)
        for row in re.findall(r"<tr>.*?</tr>", to_html(card), flags=re.DOTALL)
    ]
    assert ["held-out discrepancy", "0.0155", "0.0532", "at most 0.0532", "passed"] in rows
    assert ["share of copied patches", "0.25", "0", "", ""] in rows
    assert ["chroma HF / luma HF", "0.59", "0.26", "at most 0.39", "failed"] in rows
    warning = (
        "chroma HF / luma HF is 0.59, 2.3 times that of random real patches (0.26): the patches carry color noise."
    )
    assert f"<li>{warning}</li>" in to_html(card)


@pytest.mark.parametrize(
    "quality",
    [
        "x",
        [],
        {"nearest": "x"},
        {"nearest": {"held_out": "x"}},
        {"nearest": {"held_out": {"set": 1}}},
        {"nearest": {"held_out": {"set": "<b>", "real": True}, "<script>": {"set": 1, "real": 1}}},
    ],
)
def test_invalid_figures_are_not_shown(published: Path, quality: object) -> None:
    plain = render_card(CondensedSet(published))
    change(published, condensation=Manifest.load(published).condensation | {"quality": quality})
    assert render_card(CondensedSet(published)) == plain


def test_pictures_are_shown_where_they_are(published: Path) -> None:
    assert "![" not in render_card(CondensedSet(published))
    (published / "report").mkdir()
    for name in ("patches.png", "a b](x).png", "photographs.png", "notes.txt"):
        (published / "report" / name).touch()
    assert re.findall(r"!\[.*?\]\((.*?)\)", render_card(CondensedSet(published))) == ["report/patches.png"]
    assert [name for name in repository_files(published) if name.startswith("report/")] == ["report/patches.png"]


def test_folders_of_the_authors_machine_are_not_revealed(published: Path) -> None:
    (published / "recipe.yaml").write_text("source: {path: /home/ada/secret-project/photos}\n")
    card = render_card(CondensedSet(published))
    assert "secret-project" not in card
    assert "photos" in card


def test_a_card_is_made_with_the_same_bytes_again_and_without_any_network(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert render_card(CondensedSet(published)) == render_card(CondensedSet(published))


HOSTILE = "x|`z` <script>a(1)</script> ![i](http://e.test/p) *b*\n---\n<!-- idc:end -->\n# h\nconfigs: \"'{{ 7777*11 }}"


def test_values_from_outside_cannot_format_the_page_or_its_metadata(published: Path, make_teacher: MakeTeacher) -> None:
    plain = render_card(CondensedSet(published))
    regenerate(
        CondensedSet(published), make_teacher("repeat", name=HOSTILE, license=HOSTILE, weights_sha256="3" * 64), "third"
    )
    change(
        published,
        default="nearest",
        packages={HOSTILE: HOSTILE, HOSTILE + "2": "1.0", "idc-hub": '0"; rm -rf ~; "'},
        condensation={"device": HOSTILE, HOSTILE: HOSTILE, "steps": HOSTILE, "photographs": HOSTILE}
        | {"real_patches": HOSTILE, "held_out": HOSTILE, "worker_seconds": HOSTILE, "results": [{HOSTILE: HOSTILE}]},
    )
    recipe = {"preset": HOSTILE, "source": {"path": HOSTILE}, "features": {"network": HOSTILE}, "patches": HOSTILE}
    (published / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    card = render_card(CondensedSet(published))
    assert metadata(card).keys() == metadata(plain).keys()
    assert metadata(card)["configs"][0]["config_name"] == "nearest"
    assert (card.count(f"\n{BEGIN}\n"), card.count(f"\n{END}\n")) == (1, 1)
    html = to_html(card)
    for element in ("<script", "<img", "<h1>h", "85547", "rm -rf"):
        assert element not in html, element
    assert html.count("<h1>") == 1
    for row in re.findall(r"<tr>.*?</tr>", html, flags=re.DOTALL):
        assert row.count("</td>") + row.count("</th>") in (1, 2, 7)  # columns of results, files, versions
    assert merge_card(card, card) == card


def test_a_hostile_repository_id_stays_inside_its_string(published: Path) -> None:
    card = render_card(CondensedSet(published), repo_id='a"b; rm -rf ~\n```\n# h')
    html = to_html(card)
    assert html.count("<h1>") == 1
    assert r'load_dataset("a\"b; rm -rf ~\n```\n# h", "nearest", split="train")' in card
    assert "idc condense 'a\"b; rm -rf ~ ``` # h'" in card


def test_the_users_pretty_name_is_the_heading(published: Path) -> None:
    card = render_card(CondensedSet(published), existing=USER_CARD)
    assert "\n# Bridges: a set\n" in card


def test_what_the_user_wrote_survives_character_by_character(published: Path) -> None:
    merged = render_card(CondensedSet(published), existing=USER_CARD)
    for text in (
        "# The license was agreed with the photographers.\nlicense: cc-by-4.0\n",
        "language:\n- no          # Norwegian captions; YAML takes this word for a boolean\n",
        'pretty_name: "Bridges: a set"\n',
        "version: 1.10\n",
        "\n# Contact before use.\nextra_gated_prompt: |-\n  # Terms\n  license: be nice\n",
        "---\nWords before.\n",
        "\n## My own section\n\n| a | b |\n| - | - |\nTrailing   spaces.  \n",
    ):
        assert text in merged, text
    assert "old facts" not in merged
    assert merged.index("Words before.") < merged.index(BEGIN) < merged.index(END) < merged.index("## My own")


def test_generated_keys_are_updated_and_tags_are_united(published: Path) -> None:
    before, after = metadata(USER_CARD), metadata(render_card(CondensedSet(published), existing=USER_CARD))
    assert [config["config_name"] for config in after["configs"]] == ["nearest", "dark", "stale"]
    assert after["tags"][:2] == ["bridges", "x2"]
    assert "super-resolution" in after["tags"]
    assert len(after["tags"]) == len(set(after["tags"]))
    for key in ("license", "language", "pretty_name", "version", "extra_gated_prompt"):
        assert after[key] == before[key]
    assert after["task_categories"] == ["image-to-image"]


def test_a_license_that_is_given_replaces_the_one_there(published: Path) -> None:
    merged = render_card(CondensedSet(published), existing=USER_CARD, license=License("mit"))
    assert metadata(merged)["license"] == "mit"
    assert "cc-by" not in merged


EXISTING = {
    "the user's": USER_CARD,
    "empty": "",
    "prose only": "# A title\n\nSome words.\n",
    "prose without a line end": "Some words.",
    "front matter only": "---\nlicense: mit\n---\n",
    "front matter without a line end": "---\nlicense: mit\n---",
    "empty front matter": "---\n---\nSome words.\n",
    "only comments": "---\n# nothing yet\n---\nSome words.\n",
    "odd line ends": USER_CARD.replace("\n", "\r\n"),
    "a byte order mark": "\ufeff" + USER_CARD,
    "a rule in the prose": "Some words.\n\n---\n\nlicense: mine\n\n---\n",
    "one tag": "---\ntags: bridges\n---\nSome words.\n",
    "odd keys": "---\n2024: x\n? [a]\n: b\n---\nSome words.\n".replace("? [a]\n: b\n", "'a b': c\n"),
    "quoted text that looks like keys": "---\nnote: 'first\n\n  tags: x\n\n  last'\nlicense: mit\n---\nWords.\n",
}


@pytest.mark.parametrize("existing", EXISTING.values(), ids=EXISTING.keys())
def test_merging_keeps_the_users_keys_and_text_and_twice_is_once(published: Path, existing: str) -> None:
    generated = render_card(CondensedSet(published))
    merged = merge_card(existing, generated)
    assert merge_card(merged, generated) == merged
    unix = existing.removeprefix("\ufeff").replace("\r\n", "\n")
    match = re.match(r"---\n(.*?)^---(?:\n|\Z)", unix, flags=re.MULTILINE | re.DOTALL)
    keys = yaml.safe_load(match[1]) or {} if match else {}
    result = yaml.safe_load(merged.split("---\n")[1])
    for key in keys.keys() - {"configs", "tags"}:
        assert result[key] == keys[key]
    assert metadata(generated).keys() <= result.keys()
    prose = unix[match.end() :] if match else unix
    outside = re.sub(f"{BEGIN}.*?{END}", "", merged, flags=re.DOTALL)
    for line in prose.splitlines():
        assert line in outside or line in (BEGIN, "old facts", END)


def test_in_a_card_without_markers_the_generated_section_comes_first(published: Path) -> None:
    merged = render_card(CondensedSet(published), existing="# A title\n\nSome words.\n")
    assert merged.index(END) < merged.index("# A title")


@pytest.mark.parametrize("markers", [[BEGIN], [END], [END, BEGIN], [BEGIN, BEGIN, END], [BEGIN, END, BEGIN, END]])
def test_markers_that_do_not_match_are_refused_before_text_is_lost(published: Path, markers: list[str]) -> None:
    with pytest.raises(RunError, match="Keep one of each"):
        render_card(CondensedSet(published), existing="\n\nwords\n\n".join(["", *markers, ""]))


def test_markers_inside_a_sentence_are_text(published: Path) -> None:
    words = f"Delete {BEGIN} and {END} to write all of it yourself.\n"
    assert render_card(CondensedSet(published), existing=words).endswith(words)


@pytest.mark.parametrize(
    ("front", "sentence"),
    [
        ("license: [", "is not YAML"),
        ("when: 2024-13-45", "is not YAML"),
        ("- a\n- b", "not a list of distinct keys"),
        ("{license: mit}", "not a list of distinct keys"),
        ("license: mit\nlicense: gpl", "not a list of distinct keys"),
        ("words", "not a list of distinct keys"),
        ("tags: &mine [a]\nother: *mine", "is not YAML"),
    ],
)
def test_metadata_that_cannot_be_parsed_is_refused_in_a_sentence(published: Path, front: str, sentence: str) -> None:
    with pytest.raises(RunError, match=sentence):
        render_card(CondensedSet(published), existing=f"---\n{front}\n---\n")


def test_a_version_with_other_rows_than_idc_json_says_is_refused(published: Path) -> None:
    write_rows(published / "data" / "dark", [Row("cat", 0, b"x", b"x")])
    with pytest.raises(RunError, match="1 rows, not 6"):
        render_card(CondensedSet(published))


@pytest.mark.parametrize(("recipe", "sentence"), [("a: [", "is not YAML"), ("- a", "is not a recipe")])
def test_a_damaged_recipe_is_a_sentence(published: Path, recipe: str, sentence: str) -> None:
    (published / "recipe.yaml").write_text(recipe)
    with pytest.raises(RunError, match=sentence):
        render_card(CondensedSet(published))


def test_writing_the_card_keeps_what_the_user_wrote_in_the_folder(published: Path) -> None:
    write_card(CondensedSet(published), license=License("mit"))
    path = published / "README.md"
    path.write_text(path.read_text(encoding="utf-8") + "\nMine.\n", encoding="utf-8")
    write_card(CondensedSet(published), repo_id="ada/bridges")
    card = path.read_text(encoding="utf-8")
    assert card.endswith(f"{END}\n\nMine.\n")
    assert metadata(card)["license"] == "mit"
    assert "ada/bridges" in card


OWNERS_CARD = """\
---
configs:
- config_name: nearest
  data_files:
  - split: train
    path: old/*
  - split: test
    path: test.parquet
- config_name: former
  default: true
  data_files:
  - split: train
    path: data/former/train-*
- config_name: masks
  default: true
  data_files: masks.parquet
dataset_info:
- config_name: masks
  features:
  - name: text
    dtype: string
---
"""


def test_an_owners_configs_and_splits_survive_and_are_named(published: Path) -> None:
    card = render_card(CondensedSet(published), existing=OWNERS_CARD)
    data = metadata(card)
    assert data["configs"] == [
        {
            "config_name": "nearest",
            "default": True,
            "data_files": [
                {"split": "train", "path": "data/nearest/train-*"},
                {"split": "test", "path": "test.parquet"},
            ],
        },
        {"config_name": "dark", "data_files": [{"split": "train", "path": "data/dark/train-*"}]},
        {"config_name": "masks", "data_files": "masks.parquet"},
    ]
    info = {entry["config_name"]: entry for entry in data["dataset_info"]}
    assert info["masks"] == metadata(OWNERS_CARD)["dataset_info"][0]
    assert "splits" not in info["nearest"]  # they would leave out `test`, and `load_dataset` would refuse it
    assert "idc-hub neither made nor checked them: `masks`." in card
    assert render_card(CondensedSet(published), existing=card) == card


def test_an_owners_configs_load_beside_the_hr_versions(published: Path, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["hello"]}).to_parquet(published / "masks.parquet")
    write_rows(published / "more", [Row("dog", 0, b"x", b"x")])
    (published / "more" / "train-00000-of-00001.parquet").rename(published / "test.parquet")
    (published / "README.md").write_text(OWNERS_CARD)
    write_card(CondensedSet(published))
    write_card(CondensedSet(published))
    for config, rows in (("masks", 1), ("dark", 6), ("nearest", 6)):
        loaded = datasets.load_dataset(str(published), config, split="train", cache_dir=str(tmp_path / "cache"))
        assert len(loaded) == rows
    for name in ("masks.parquet", "test.parquet"):
        (published / name).unlink()
    check_repository(CondensedSet(published), again=True)  # `idc pull` does not fetch an owner's files


def test_a_new_license_takes_the_name_and_link_of_the_old_one_away(published: Path) -> None:
    old = "---\nlicense: other\nlicense_name: div2k\nlicense_link: LICENSE\n---\n"
    kept = metadata(render_card(CondensedSet(published), existing=old))
    assert (kept["license"], kept["license_name"], kept["license_link"]) == ("other", "div2k", "LICENSE")
    new = metadata(render_card(CondensedSet(published), existing=old, license=License("mit")))
    assert new["license"] == "mit"
    assert not new.keys() & {"license_name", "license_link"}


@pytest.mark.parametrize(
    ("license", "sentence"),
    [
        (License("CC-BY-4.0"), r"no license 'CC-BY-4\.0'.*Did you mean cc-by-4\.0\?"),
        (License("apache"), r"Did you mean apache-2\.0\?"),
        (License(["mit", "do as you like"]), "no license 'do as you like'"),
        (License("other"), "needs a name and a link.*--license-name and --license-link"),
        (License("other", "div2k"), "needs a name and a link"),
        (License("other", "My License", "LICENSE"), "lower-case"),
        (License("other", "div2k", "file:///etc/passwd"), "https://"),
    ],
)
def test_a_license_that_the_hub_would_refuse(license: License, sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        license.check()
    assert re.search(sentence, f"{caught.value.message} {caught.value.hint}")


@pytest.mark.parametrize("license", [License("mit"), License(["mit", "cc0-1.0"]), License("other", "a-1.0", "LICENSE")])
def test_a_license_that_the_hub_knows(license: License) -> None:
    license.check()


def test_the_given_license_is_completed_from_the_card() -> None:
    card = {"license": "other", "license_name": "div2k", "license_link": "LICENSE"}
    whole = License("other", "div2k", "LICENSE")
    assert choose(License("other"), {}, card) == whole
    assert choose(License("other", "mine"), card) == License("other", "mine", "LICENSE")
    assert choose(None, {}, card) == whole
    assert choose(License("mit"), card) == License("mit")
    assert choose(None, {}) is None


def test_an_edit_inside_the_generated_section_is_kept_beside_the_folder(published: Path) -> None:
    write_card(CondensedSet(published))
    path = published / "README.md"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_card(CondensedSet(published))
        write_card(CondensedSet(published), repo_id="ada/bridges")
    edited = path.read_text().replace("## Citation", "My own words.\n\n## Citation")
    path.write_text(edited)
    with pytest.warns(UserWarning, match=r"Lines \d+ to \d+ of README\.md were edited"):
        write_card(CondensedSet(published))
    assert "My own words." not in path.read_text()
    (copy,) = published.parent.glob("repo-README-*.md")
    assert copy.read_text() == edited


def test_many_copies_are_called_copies(published: Path) -> None:
    measured = {"copied": {"set": 0.9, "real": 0.0}, "held_out": {"set": 0.0155, "real": 0.0532}}
    change(published, condensation={"quality": {"nearest": measured}})
    card = render_card(CondensedSet(published))
    assert "90 % of them are still nearly copies of real crops" in card
    assert "**90 % of the LR patches are nearly copies of real crops**" in card
    assert "LR patches are synthetic" not in card
    assert "synthetic" not in metadata(card)["tags"]
    change(published, condensation={"quality": {"nearest": measured | {"copied": {"set": 0.1, "real": 0.0}}}})
    card = render_card(CondensedSet(published))
    assert "still nearly copies" not in card
    assert "10 % of the LR patches are nearly copies" in card
    assert "synthetic" in metadata(card)["tags"]


def test_a_release_is_pinned_in_the_snippets(published: Path) -> None:
    card = render_card(CondensedSet(published), repo_id="ada/bridges", revision="v1.2.0")
    assert 'load_dataset("ada/bridges", "nearest", split="train", revision="v1.2.0")' in card
    assert 'snapshot_download("ada/bridges", repo_type="dataset", revision="v1.2.0"' in card


def test_the_snippet_for_the_lr_patches_runs(
    published: Path, instances: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    card = render_card(CondensedSet(published))
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL) if "safetensors" in block)
    exec(code.replace("path/to/this/folder", str(published)), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{name} {patches.shape} 2" for name, patches in instances.items()]


@pytest.mark.parametrize(
    ("path", "expected"),
    [("owner/photos", "owner/photos"), ("photos", "extended"), ("package:skimage/data", "extended")],
)
def test_photographs_from_the_hub_are_named_as_the_source(published: Path, path: str, expected: str) -> None:
    (published / "recipe.yaml").write_text(yaml.safe_dump({"source": {"path": path}}))
    assert metadata(render_card(CondensedSet(published)))["source_datasets"] == [expected]


def test_names_that_the_font_lacks_are_explained(published: Path) -> None:
    (published / "report").mkdir()
    (published / "report" / "patches.png").touch()
    assert "photograph N" not in render_card(CondensedSet(published))
    index = published / "lr" / "lr.safetensors.index.json"
    index.write_text(index.read_text().replace('"cat"', '"猫"'))
    assert "photograph N" in render_card(CondensedSet(published))

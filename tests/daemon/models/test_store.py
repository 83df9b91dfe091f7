"""Models on disk: every shape, and everything that may be wrong with one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from support.tables import read_tables

from daemon.config import Config, ModelsTable, PathsTable
from daemon.models.store import FoundModel, FoundVersion, scan

if TYPE_CHECKING:
    from pathlib import Path

NEEDS_PERMISSIONS = pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of models."""
    path = tmp_path / "models"
    path.mkdir()
    return path


def put(path: Path, content: str | bytes = b"TFL3") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def look(*folders: Path, serve: tuple[dict[str, object], ...] = (), **keys) -> list[FoundModel]:
    """Everything found in the folders and at the entries."""
    models = read_tables(ModelsTable, {"folders": folders, "serve": serve, **keys})
    return list(scan(Config(models=models)))


def only_model(*folders: Path, **keys) -> FoundModel:
    (model,) = look(*folders, **keys)
    return model


def only_version(*folders: Path, **keys) -> FoundVersion:
    (version,) = only_model(*folders, **keys).versions
    return version


def names(models: list[FoundModel]) -> list[str]:
    return [model.name for model in models]


# Shapes


def test_a_lone_file_is_named_by_its_stem_and_has_version_1(folder):
    file = put(folder / "mobilenet_v1_1.0_224.tflite")

    model = only_model(folder)

    assert (model.name, model.problem, model.entry) == ("mobilenet_v1_1.0_224", "", None)
    (version,) = model.versions
    assert (version.version, version.model_path, version.folder) == (1, file, None)
    assert (version.problem, version.label_lines) == ("", ())


def test_a_model_folder_is_named_by_itself(folder):
    file = put(folder / "parts" / "model.tflite")

    model = only_model(folder)

    assert (model.name, model.versions[0].version) == ("parts", 1)
    assert (model.versions[0].model_path, model.versions[0].folder) == (file, file.parent)


def test_model_toml_gives_name_version_and_tables(folder):
    put(folder / "parts" / "model.tflite")
    put(
        folder / "parts" / "model.toml",
        '[model]\nname = "nuts"\nversion = 7\n[limits]\nqueue = 3',
    )

    model = only_model(folder)

    assert (model.name, model.versions[0].version) == ("nuts", 7)
    assert model.versions[0].tables.limits.queue == 3


def test_a_folder_may_name_its_one_file_as_it_likes(folder):
    file = put(folder / "parts" / "parts-int8.tflite")

    assert only_version(folder).model_path == file


def test_model_tflite_is_taken_among_several(folder):
    put(folder / "parts" / "other.tflite")
    file = put(folder / "parts" / "model.tflite")

    assert only_version(folder).model_path == file


def test_a_tree_has_a_version_for_each_numbered_folder(folder):
    for name in ("1", "00000123", "20"):
        put(folder / "half" / name / "model.tflite")
    put(folder / "half" / "notes" / "model.tflite")

    model = only_model(folder)

    assert (model.name, model.problem) == ("half", "")
    assert [(v.version, v.folder.name, v.problem) for v in model.versions] == [
        (1, "1", ""),
        (20, "20", ""),
        (123, "00000123", ""),
    ]


def test_in_a_tree_the_versions_own_files_win(folder):
    put(folder / "half" / "model.toml", "[limits]\nqueue = 1")
    put(folder / "half" / "labels.txt", "outer")
    put(folder / "half" / "1" / "model.tflite")
    put(folder / "half" / "2" / "model.tflite")
    put(folder / "half" / "2" / "model.toml", "[limits]\nqueue = 2")
    put(folder / "half" / "2" / "labels.txt", "inner")

    first, second = only_model(folder).versions

    assert (first.tables.limits.queue, first.label_lines) == (1, ("outer",))
    assert (second.tables.limits.queue, second.label_lines) == (2, ("inner",))


def test_a_trees_own_model_toml_names_it(folder):
    put(folder / "half" / "model.toml", '[model]\nname = "halves"')
    put(folder / "half" / "1" / "model.tflite")

    model = only_model(folder)

    assert (model.name, model.versions[0].problem) == ("halves", "")


def test_an_installed_release_is_found_behind_its_link(folder, tmp_path):
    release = tmp_path / "store" / "parts" / "abc"
    put(release / "model.tflite")
    put(release / "model.toml", "[model]\nversion = 4")
    (folder / "parts").mkdir()
    (folder / "parts" / "current").symlink_to(release)

    model = only_model(folder)

    assert (model.name, model.versions[0].version) == ("parts", 4)
    assert model.versions[0].model_path == release / "model.tflite"


def test_a_link_to_a_file_is_a_model(folder, tmp_path):
    file = put(tmp_path / "elsewhere" / "x.tflite")
    (folder / "a.tflite").symlink_to(file)
    (folder / "b.tflite").symlink_to(file)

    assert names(look(folder)) == ["a", "b"]


def test_a_tree_of_empty_version_folders_has_nothing_to_serve(folder):
    (folder / "half" / "1").mkdir(parents=True)

    model = only_model(folder)

    assert (model.versions, model.problem.endswith("are empty")) == ((), True)


def test_a_version_folder_that_is_still_empty_does_not_hide_the_others(folder):
    put(folder / "half" / "1" / "model.tflite")
    (folder / "half" / "2").mkdir()

    assert [version.version for version in only_model(folder).versions] == [1]


def test_what_is_no_model_is_passed_over(folder):
    put(folder / "README.md")
    put(folder / "docs" / "index.html")
    put(folder / ".hidden.tflite")
    put(folder / ".git" / "model.tflite")
    put(folder / "copying.tmp" / "model.tflite")
    put(folder / "copying.tflite.part")
    (folder / "empty").mkdir()

    assert look(folder) == []


# Entries of the configuration


def test_an_entry_names_a_lone_file(folder):
    file = put(folder / "x.tflite")

    model = only_model(serve=({"path": file, "name": "parts"},))

    assert (model.name, model.entry.name) == ("parts", "parts")


def test_an_entrys_name_wins_over_model_toml(folder):
    put(folder / "x" / "model.tflite")
    put(folder / "x" / "model.toml", '[model]\nname = "other"')

    assert only_model(serve=({"path": folder / "x", "name": "parts"},)).name == "parts"


def test_a_relative_path_is_below_root(tmp_path):
    put(tmp_path / "x.tflite")
    config = Config(
        paths=PathsTable(root=tmp_path),
        models=read_tables(ModelsTable, {"folders": ["none"], "serve": [{"path": "x.tflite"}]}),
    )

    assert scan(config)[0].versions[0].model_path == tmp_path / "x.tflite"


def test_an_entry_for_a_model_in_a_folder_is_the_same_model(folder):
    put(folder / "half" / "1" / "model.tflite")
    put(folder / "other.tflite")

    models = look(folder, serve=({"path": folder / "half", "version_policy": "all"},))

    assert [(m.name, m.problem, m.entry is not None) for m in models] == [
        ("half", "", True),
        ("other", "", False),
    ]


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("nothing.tflite", "cannot be read: No such file or directory"),
        ("note.txt", "expected a .tflite file or a folder with one"),
        ("empty", "expected a .tflite file or a folder with one"),
        ("note.txt/x", "cannot be read: Not a directory"),
    ],
)
def test_an_entry_without_a_model_stays_listed_with_its_problem(folder, path, problem):
    put(folder / "note.txt")
    (folder / "empty").mkdir()

    model = only_model(serve=({"path": folder / path},))

    assert (model.versions, model.problem.endswith(problem)) == ((), True)


# Labels


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ("nut\nbolt\n", ("nut", "bolt")),
        ("nut\nbolt", ("nut", "bolt")),
        ("\ufeffnut\r\nbolt\r\n", ("nut", "bolt")),
        ("nut\n\nbolt\n\n", ("nut", "", "bolt", "")),
        ("Mutter groß\n螺栓", ("Mutter groß", "螺栓")),
        ("", ()),
    ],
)
def test_a_labels_line_number_is_its_class_number(folder, content, lines):
    put(folder / "parts" / "model.tflite")
    put(folder / "parts" / "labels.txt", content)

    assert only_version(folder).label_lines == lines


def test_labels_may_stand_in_model_toml(folder):
    put(folder / "parts" / "model.tflite")
    put(folder / "parts" / "labels.txt", "not these")
    put(folder / "parts" / "model.toml", '[output]\nlabels = ["nut", "bolt"]')

    assert only_version(folder).label_lines == ("nut", "bolt")


def test_model_toml_may_name_the_label_file(folder):
    put(folder / "parts" / "model.tflite")
    put(folder / "parts" / "labels.txt", "not these")
    put(folder / "parts" / "names.txt", "nut")
    put(folder / "parts" / "model.toml", '[output]\nlabels = "names.txt"')

    assert only_version(folder).label_lines == ("nut",)


def test_a_label_file_outside_the_folder_is_not_read(folder):
    put(folder / "secret", "secret")
    put(folder / "parts" / "model.tflite")
    put(folder / "parts" / "model.toml", '[output]\nlabels = "../secret"')

    version = only_version(folder)

    assert version.label_lines == ()
    assert "expected the name of a file beside model.toml" in version.problem


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"nut\n\xff", "is not UTF-8 at byte 4"),
        (b"x" * (4 * 1024 * 1024 + 1), "is larger than 4194304 bytes"),
        (b"\n" * 200_002, "has 200002 lines: expected at most 200000"),
    ],
)
def test_a_label_file_that_makes_no_sense_is_a_problem(folder, content, problem):
    put(folder / "parts" / "model.tflite")
    put(folder / "parts" / "labels.txt", content)

    assert only_version(folder).problem.endswith(problem)


def test_a_named_label_file_that_is_missing_is_a_problem(folder):
    put(folder / "parts" / "model.tflite")
    put(folder / "parts" / "model.toml", '[output]\nlabels = "names.txt"')

    assert only_version(folder).problem.endswith("parts/names.txt does not exist")


# The model for the CPU beside one that is compiled for a device


TWIN = '[placement]\ncpu_model = "parts-cpu.tflite"'


def put_twins(release: Path) -> tuple[Path, Path]:
    """A folder with a model, the model for the CPU, and a model.toml that says so."""
    put(release / "model.toml", TWIN)
    return put(release / "parts_edgetpu.tflite"), put(release / "parts-cpu.tflite")


def test_the_model_for_the_cpu_lies_beside_the_one_that_is_served(folder):
    file, twin = put_twins(folder / "parts")

    version = only_version(folder)

    assert (version.model_path, version.cpu_model, version.problem) == (file, twin, "")


def test_also_a_model_tflite_may_be_the_one_for_the_cpu(folder):
    put(folder / "parts" / "model.toml", '[placement]\ncpu_model = "model.tflite"')
    twin = put(folder / "parts" / "model.tflite")
    file = put(folder / "parts" / "compiled.tflite")

    version = only_version(folder)

    assert (version.model_path, version.cpu_model, version.problem) == (file, twin, "")


def test_each_version_of_a_tree_has_its_own_model_for_the_cpu(folder):
    put(folder / "parts" / "model.toml", TWIN)
    twins = [put(folder / "parts" / name / "parts-cpu.tflite") for name in "12"]
    for name in "12":
        put(folder / "parts" / name / "model.tflite")

    assert [version.cpu_model for version in only_model(folder).versions] == twins


def test_a_model_without_one_has_none(folder):
    put(folder / "parts" / "model.tflite")
    put(folder / "parts" / "parts-cpu.tflite")

    assert only_version(folder).cpu_model is None


def test_a_missing_model_for_the_cpu_is_a_problem(folder):
    _, twin = put_twins(folder / "parts")
    twin.unlink()

    assert only_version(folder).problem == (
        f"placement.cpu_model: {twin} cannot be read: No such file or directory"
    )


def test_a_folder_as_model_for_the_cpu_is_a_problem(folder):
    _, twin = put_twins(folder / "parts")
    twin.unlink()
    twin.mkdir()

    assert only_version(folder).problem == f"placement.cpu_model: {twin} is not a regular file"


def test_a_model_for_the_cpu_alone_is_a_problem(folder):
    file, _ = put_twins(folder / "parts")
    file.unlink()

    assert only_version(folder).problem == (
        f"no .tflite file in {file.parent} besides placement.cpu_model"
    )


def test_two_models_besides_the_one_for_the_cpu_are_a_problem(folder):
    file, _ = put_twins(folder / "parts")
    put(file.with_name("other.tflite"))

    assert only_version(folder).problem == (
        f"2 .tflite files in {file.parent} besides placement.cpu_model and none is named "
        "model.tflite"
    )


def test_another_model_for_the_cpu_changes_the_stamp(folder):
    _, twin = put_twins(folder / "parts")
    before = only_version(folder).stamp

    put(twin, "another")

    assert only_version(folder).stamp != before


# What may be wrong


@pytest.mark.parametrize("slip", ["[limits]\nqueue = 0", "[limits]\nqueue = ", "[limits"])
def test_a_broken_model_toml_leaves_the_version_listed_under_its_own_number(folder, slip):
    put(folder / "parts" / "model.tflite")
    put(folder / "parts" / "model.toml", f'[model]\nname = "nuts"\nversion = 7\n{slip}')

    model = only_model(folder)

    assert (model.name, model.versions[0].version) == ("nuts", 7)
    assert model.versions[0].problem.startswith("model.toml: ")


def test_every_problem_of_model_toml_is_told(folder):
    put(folder / "parts" / "model.tflite")
    put(folder / "parts" / "model.toml", "[limits]\nqueue = 0\nquue = 1")

    assert only_version(folder).problem == (
        "model.toml: limits.queue = 0: expected a whole number from 1 to 100000; "
        "model.toml: limits.quue: unknown key (did you mean 'queue'?)"
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"\xff", "is not UTF-8 at byte 0"), (b"#" * 300_000, "is larger than 262144 bytes")],
)
def test_a_model_toml_that_is_no_text_is_a_problem(folder, content, problem):
    put(folder / "parts" / "model.tflite")
    put(folder / "parts" / "model.toml", content)

    assert only_version(folder).problem.endswith(f"model.toml {problem}")


@pytest.mark.parametrize("name", ["a\\u0000b", " a", ".."])
def test_a_name_that_cannot_stand_in_a_topic_is_a_problem(folder, name):
    put(folder / "parts" / "model.tflite")
    put(folder / "parts" / "model.toml", f'[model]\nname = "{name}"')

    model = only_model(folder)

    assert model.name == "parts"
    assert "model.name" in model.versions[0].problem


@pytest.mark.parametrize("name", [b"a\xff.tflite", b"a\nb.tflite", b"a" * 200 + b".tflite"])
def test_a_file_name_that_is_no_name_is_a_problem(folder, name):
    (folder / os.fsdecode(name)).write_bytes(b"TFL3")

    model = only_model(folder)

    assert model.name.isprintable()
    assert "printable characters" in model.versions[0].problem


def test_a_file_name_with_signs_of_topics_is_a_name(folder):
    put(folder / "a+b#c.tflite")

    model = only_model(folder)

    assert (model.name, model.versions[0].problem) == ("a+b#c", "")


def test_a_folder_without_its_file_is_a_problem(folder):
    put(folder / "parts" / "model.toml", "[model]\nversion = 3")

    version = only_version(folder)

    assert (version.version, version.model_path) == (3, folder / "parts" / "model.tflite")
    assert version.problem == f"no .tflite file in {folder}/parts"


def test_several_files_without_a_model_tflite_are_a_problem(folder):
    put(folder / "parts" / "a.tflite")
    put(folder / "parts" / "b.tflite")

    assert only_version(folder).problem.startswith("2 .tflite files in ")


def test_version_0_is_a_problem(folder):
    put(folder / "half" / "0" / "model.tflite")

    assert only_version(folder).problem.startswith("version folder 0: expected a number from 1")


def test_a_version_beyond_int64_is_a_problem(folder):
    put(folder / "half" / "9223372036854775808" / "model.tflite")

    assert "expected a number from 1 to 9223372036854775807" in only_version(folder).problem


def test_two_folders_of_one_version_are_a_problem(folder):
    put(folder / "half" / "1" / "model.tflite")
    put(folder / "half" / "001" / "model.tflite")

    assert only_version(folder).problem.endswith("are both version 1")


def test_a_version_that_contradicts_its_folder_is_a_problem(folder):
    put(folder / "half" / "2" / "model.tflite")
    put(folder / "half" / "2" / "model.toml", '[model]\nversion = 3\nname = "other"')

    assert only_version(folder).problem == (
        "model.toml says version 3, its folder 2; "
        "model.toml says name 'other', it lies in the folder of 'half'"
    )


def test_one_broken_version_leaves_the_others_alone(folder):
    put(folder / "half" / "1" / "model.tflite")
    put(folder / "half" / "2" / "saved_model.pb")

    first, second = only_model(folder).versions

    assert (first.problem, second.problem) == ("", f"no .tflite file in {folder}/half/2")


def test_of_two_models_with_one_name_the_first_keeps_it(folder):
    put(folder / "a.tflite")
    put(folder / "b" / "model.tflite")
    put(folder / "b" / "model.toml", '[model]\nname = "a"')
    put(folder / "c" / "model.tflite")
    put(folder / "c" / "model.toml", '[model]\nname = "a"')

    first, second, third = look(folder)

    assert (first.name, first.problem, len(first.versions)) == ("a", "", 1)
    assert (second.name, third.name) == ("a (2)", "a (3)")
    assert second.versions == ()
    assert second.problem == (
        f"the model at {folder}/a.tflite has the name 'a' already: rename one of them"
    )


def test_a_dangling_link_is_a_problem(folder):
    (folder / "a.tflite").symlink_to(folder / "gone")

    model = only_model(folder)

    assert (model.name, model.problem.endswith("No such file or directory")) == ("a", True)


def test_a_release_link_that_leads_nowhere_is_a_problem(folder):
    (folder / "parts").mkdir()
    (folder / "parts" / "current").symlink_to(folder / "gone")

    model = only_model(folder)

    assert (model.name, model.problem.endswith("No such file or directory")) == ("parts", True)


def test_a_link_to_itself_is_a_problem(folder):
    (folder / "a.tflite").symlink_to(folder / "a.tflite")

    assert "symbolic links" in only_model(folder).problem


@pytest.mark.parametrize("name", ["model.toml", "labels.txt"])
def test_a_pipe_in_place_of_a_file_is_a_problem_and_never_waited_for(folder, name):
    put(folder / "parts" / "model.tflite")
    os.mkfifo(folder / "parts" / name)

    assert only_version(folder).problem.endswith("is not a regular file")


def test_a_pipe_in_place_of_a_model_is_a_problem(folder):
    os.mkfifo(folder / "a.tflite")

    assert only_version(folder).problem.endswith("a.tflite is not a regular file")


def test_a_folder_named_like_a_file_is_looked_into(folder):
    file = put(folder / "a.tflite" / "model.tflite")

    model = only_model(folder)

    assert (model.name, model.versions[0].model_path) == ("a.tflite", file)


@NEEDS_PERMISSIONS
def test_an_unreadable_version_leaves_the_others_alone(folder):
    put(folder / "half" / "1" / "model.tflite")
    (folder / "half" / "2").mkdir(mode=0)

    first, second = only_model(folder).versions

    assert (first.problem, second.problem.endswith("Permission denied")) == ("", True)


@NEEDS_PERMISSIONS
def test_the_folder_of_a_file_system_is_passed_over(folder):
    (folder / "lost+found").mkdir(mode=0)

    assert look(folder) == []


@NEEDS_PERMISSIONS
def test_an_unreadable_folder_is_a_problem(folder):
    put(folder / "good.tflite")
    (folder / "shut").mkdir(mode=0)

    good, shut = look(folder)

    assert (good.problem, shut.problem.endswith("Permission denied")) == ("", True)


def test_a_configured_folder_that_is_no_folder_is_a_problem(folder):
    file = put(folder / "note.txt")

    assert only_model(file).problem == f"folder {file} cannot be read: Not a directory"


def test_a_configured_folder_that_is_missing_is_a_problem(tmp_path):
    assert only_model(tmp_path / "gone").problem == f"folder {tmp_path}/gone does not exist"


def test_the_default_folder_may_be_missing(tmp_path):
    assert scan(Config(paths=PathsTable(root=tmp_path))) == ()


def test_a_folder_of_too_many_entries_is_a_problem(folder):
    for number in range(10_001):
        (folder / f"{number}.txt").touch()

    assert only_model(folder).problem.endswith("holds more than 10000 entries")


def test_models_beyond_the_limit_are_listed_and_not_looked_at(folder):
    for name in "abc":
        put(folder / f"{name}.tflite")

    models = look(folder, max_models=2)

    assert [(model.name, model.problem) for model in models] == [
        ("a", ""),
        ("b", ""),
        ("c", "not looked at: models.max_models = 2 is reached"),
    ]


def test_a_folder_listed_twice_or_within_another_is_looked_at_once(folder):
    put(folder / "a.tflite")
    put(folder / "more" / "b.tflite")
    put(folder / "more" / "c.tflite")

    models = look(folder, folder / "more", folder)

    assert [(model.name, model.problem) for model in models] == [("a", ""), ("b", ""), ("c", "")]


def test_a_model_that_two_paths_lead_to_is_one_model(folder, tmp_path):
    put(folder / "parts" / "model.tflite")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "parts").symlink_to(folder / "parts")
    paths = (folder / "parts", folder / ".." / "models" / "parts", elsewhere / "parts")

    models = look(folder, elsewhere, serve=tuple({"path": path} for path in paths))

    assert [(model.name, model.problem) for model in models] == [("parts", "")]


def test_a_link_of_another_name_is_another_model(folder):
    put(folder / "parts.tflite")
    (folder / "alias.tflite").symlink_to(folder / "parts.tflite")

    assert names(look(folder)) == ["alias", "parts"]


def test_a_path_may_be_served_under_two_names(folder):
    file = put(folder / "parts.tflite")

    models = look(serve=({"path": file}, {"path": file, "name": "again"}))

    assert [(model.name, model.problem) for model in models] == [("parts", ""), ("again", "")]


def test_a_path_that_is_asked_for_in_two_ways_is_a_problem(folder):
    put(folder / "half" / "1" / "model.tflite")

    models = look(
        serve=({"path": folder / "half"}, {"path": folder / "half", "version_policy": "all"})
    )

    assert names(models) == ["half", "half (2)"]
    assert models[1].problem.endswith("has the name 'half' already: rename one of them")


def test_what_is_no_model_is_said_to_those_who_want_to_know(folder, caplog):
    (folder / "empty").mkdir()

    with caplog.at_level("DEBUG", "inferd.daemon.models.store"):
        assert look(folder) == []

    assert caplog.messages == [f"no model here path={folder}/empty"]


# Changes


def test_an_untouched_model_keeps_its_stamp(folder):
    put(folder / "parts" / "model.tflite")
    put(folder / "parts" / "labels.txt", "nut")

    assert look(folder) == look(folder)


@pytest.mark.parametrize("name", ["model.tflite", "model.toml", "labels.txt"])
def test_a_file_that_grows_changes_the_stamp(folder, name):
    for file in ("model.tflite", "model.toml", "labels.txt"):
        put(folder / "parts" / file, "#")
    before = only_version(folder).stamp

    put(folder / "parts" / name, "# more")

    assert only_version(folder).stamp != before


def test_a_file_replaced_by_one_of_the_same_size_and_time_changes_the_stamp(folder):
    file = put(folder / "a.tflite")
    before = only_version(folder).stamp

    other = put(folder / "b.tflite.tmp")
    os.utime(other, ns=(0, file.stat().st_mtime_ns))
    other.rename(file)

    assert only_version(folder).stamp != before


def test_a_problem_that_comes_or_goes_changes_the_stamp(folder):
    put(folder / "half" / "1" / "model.tflite")
    before = only_version(folder).stamp

    put(folder / "half" / "01" / "model.tflite")

    assert only_version(folder).stamp != before


def test_the_bytes_of_a_model_are_never_read(folder):
    file = put(folder / "a.tflite")
    os.utime(file, ns=(1, file.stat().st_mtime_ns))
    file.read_bytes()
    if file.stat().st_atime_ns == 1:
        pytest.skip("this file system does not record when a file was read")
    os.utime(file, ns=(1, file.stat().st_mtime_ns))

    look(folder)

    assert file.stat().st_atime_ns == 1


def test_every_real_model_is_found(shared_models):
    folder = shared_models / "models"

    found = {model.name: model.versions[0].problem for model in look(folder)}

    expected = {file.stem: "" for file in folder.glob("*.tflite")}
    assert expected.items() <= found.items()

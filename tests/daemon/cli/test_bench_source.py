"""Which model `bench MODEL` means, and where its settings may be written."""

from __future__ import annotations

import os
import shutil

import pytest
from support.tables import read_tables

from daemon.cli.modelsource import NoPlace, TablesPlace, UnknownModel, find_source
from daemon.cli.outcome import CommandError, UsageError
from daemon.config import Config
from daemon.tables import changed

DIGEST = "ab" * 32


@pytest.fixture
def models(tmp_path):
    """The folder that the configuration serves."""
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def config(tmp_path, models):
    return read_tables(Config, {"paths": {"root": tmp_path}, "models": {"folders": [models]}})


def put(folder, name="model.tflite", tables=None):
    """A model's file, and a model.toml beside it; nothing here opens the former."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"TFL3")
    if tables is not None:
        (folder / "model.toml").write_text(tables)
    return folder


def test_a_name_of_the_configuration_is_its_model(models, config):
    put(models / "parts", tables="[model]\nname = 'screws'\n")

    source = find_source("screws", config)

    assert source.name == "screws"
    assert source.found.model_path == models / "parts" / "model.tflite"


def test_a_name_goes_before_a_file_of_the_same_name(models, config, tmp_path, monkeypatch):
    put(models / "parts")
    put(tmp_path / "elsewhere" / "parts")
    monkeypatch.chdir(tmp_path / "elsewhere")

    assert find_source("parts", config).found.folder == models / "parts"
    assert find_source("./parts", config).found.folder == tmp_path / "elsewhere" / "parts"


def test_a_model_need_not_be_configured_to_be_measured(config, tmp_path, monkeypatch):
    put(tmp_path / "elsewhere" / "parts")
    monkeypatch.chdir(tmp_path / "elsewhere")

    assert find_source("parts", config).name == "parts"


def test_the_newest_version_is_the_one_measured(models, config):
    put(models / "parts" / "2")
    put(models / "parts" / "10")

    assert find_source("parts", config).found.version == 10


def test_the_version_that_the_configuration_wants_is_the_one_measured(tmp_path, models):
    for number in ("1", "2"):
        put(models / "parts" / number)
    entry = {"path": models / "parts", "version_policy": "specific", "versions": [1]}
    config = read_tables(Config, {"models": {"folders": [], "serve": [entry]}})

    assert find_source("parts", config).found.version == 1


def test_the_settings_are_those_the_daemon_would_use(models, config):
    put(models / "parts", tables="[placement]\nthreads = 3\n[batching]\nmax_delay_ms = 5\n")
    config = changed(config, defaults=changed(config.defaults, instances=2))

    settings = find_source("parts", config).settings

    assert (settings.load.threads, settings.load.instances, settings.max_delay_s) == (3, 2, 0.005)


def test_a_mistyped_name_gets_the_nearest_one_suggested(models, config):
    put(models / "digits")

    with pytest.raises(UnknownModel, match=r"'dgits' is no path.*did you mean 'digits'"):
        find_source("dgits", config)


def test_a_name_like_no_other_gets_all_of_them_listed(models, config):
    put(models / "digits")

    with pytest.raises(UnknownModel, match="which has: digits"):
        find_source("xyzzy", config)


@pytest.mark.parametrize("word", ["no/such", "none.tflite"])
def test_a_path_that_is_not_there_is_a_usage_error(word, config):
    with pytest.raises(UsageError, match="no such file or folder"):
        find_source(word, config)


def test_a_model_that_cannot_be_served_is_refused_with_the_reason(models, config):
    put(models / "parts", tables="[placement]\nthreds = 1\n")

    with pytest.raises(CommandError, match="did you mean 'threads'"):
        find_source("parts", config)


@pytest.mark.parametrize("word", ["twice (2)", "two"])
def test_a_model_without_a_version_is_refused_with_the_reason(word, models, config):
    put(models / "a", tables="[model]\nname = 'twice'\n")
    put(models / "b", tables="[model]\nname = 'twice'\n")
    put(put(models / "two", "x.tflite"), "y.tflite")

    with pytest.raises(CommandError, match=r"already|none is named"):
        find_source(word, config)


def test_a_folder_without_a_model_is_refused(config, tmp_path):
    (tmp_path / "empty").mkdir()

    with pytest.raises(CommandError, match=r"expected a \.tflite file or a folder"):
        find_source(str(tmp_path / "empty"), config)


@pytest.mark.parametrize("tables", [None, ""])
def test_settings_go_into_the_model_toml_of_the_folder(tables, models, config):
    put(models / "parts", tables=tables)

    place = find_source("parts", config).place

    assert place == TablesPlace(models / "parts" / "model.toml")


def test_settings_of_a_tree_go_where_they_hold_for_its_next_version_too(models, config):
    put(models / "parts" / "1")

    assert find_source("parts", config).place == TablesPlace(models / "parts" / "model.toml")
    path = str(models / "parts")
    assert find_source(path, config).place == TablesPlace(models / "parts" / "model.toml")


def test_settings_go_into_the_model_toml_of_the_version_where_it_has_one(models, config):
    put(models / "parts" / "1", tables="")
    (models / "parts" / "model.toml").write_text("")

    assert find_source("parts", config).place == TablesPlace(models / "parts" / "1" / "model.toml")


def test_a_link_in_place_of_model_toml_is_followed(models, config, tmp_path):
    put(models / "parts")
    real = tmp_path / "etc.toml"
    real.write_text("")
    (models / "parts" / "model.toml").symlink_to(real)

    assert find_source("parts", config).place == TablesPlace(real)


def test_a_lone_file_has_no_place_and_the_way_to_one_is_told(models, config):
    put(models, "my parts.tflite")

    place = find_source("my parts", config).place

    assert isinstance(place, NoPlace)
    assert "lone file" in place.reason
    assert f"mkdir '{models}/my parts' && mv '{models}/my parts.tflite' " in place.advice


def test_the_way_told_for_a_lone_file_leads_to_a_model_with_a_place(models, config):
    put(models, "parts.tflite")
    advice = find_source("parts", config).place.advice
    command = advice.split("`")[1]

    assert os.system(command) == 0  # noqa: S605 (the point of the test)

    assert find_source("parts", config).place == TablesPlace(models / "parts" / "model.toml")


def test_a_release_that_a_link_leads_to_is_never_changed(models, config, tmp_path):
    release = put(tmp_path / "var" / "lib" / "inferd" / "store" / "parts" / DIGEST, tables="")
    (models / "parts").mkdir()
    (models / "parts" / "current").symlink_to(release)

    for word in ("parts", str(models / "parts"), str(models / "parts" / "current"), str(release)):
        place = find_source(word, config).place
        assert isinstance(place, NoPlace), word
        assert "next version" in place.advice


def test_a_folder_in_a_store_elsewhere_is_never_changed(config, tmp_path):
    release = put(tmp_path / "mnt" / "store" / "parts" / DIGEST, tables="")

    assert isinstance(find_source(str(release), config).place, NoPlace)


def test_a_model_toml_that_links_into_the_store_is_never_changed(models, config, tmp_path):
    release = put(tmp_path / "var" / "lib" / "inferd" / "store" / "parts" / DIGEST, tables="")
    put(models / "parts")
    (models / "parts" / "model.toml").symlink_to(release / "model.toml")

    assert isinstance(find_source("parts", config).place, NoPlace)


def test_the_demo_model_has_a_place(demo_model, config, tmp_path):
    copy = shutil.copytree(demo_model, tmp_path / "fashion")

    assert find_source(str(copy), config).place == TablesPlace(copy / "model.toml")

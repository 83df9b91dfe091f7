"""Reading the configuration's files."""

from __future__ import annotations

import pytest

from daemon.config import Config
from daemon.configfiles import read_config
from daemon.errors import ConfigError


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems_of(path):
    with pytest.raises(ConfigError) as caught:
        read_config(path, {})
    return caught.value.problems


def test_drop_ins_override_the_main_file_in_the_order_of_their_names(tmp_path):
    main = write(tmp_path / "inferd.toml", "[media]\ndecode_threads = 1\nmax_pixels = 1")
    write(tmp_path / "conf.d" / "20-b.toml", "[media]\ndecode_threads = 3")
    write(tmp_path / "conf.d" / "10-a.toml", "[media]\ndecode_threads = 2\nmax_pixels = 2")

    media = read_config(main, {}).media

    assert (media.decode_threads, media.max_pixels) == (3, 2)


def test_other_and_hidden_files_in_the_drop_in_folder_are_ignored(tmp_path):
    main = write(tmp_path / "inferd.toml", "")
    write(tmp_path / "conf.d" / "note.txt", "not toml")
    write(tmp_path / "conf.d" / ".10-a.toml", "not toml")

    assert read_config(main, {}) == Config()


def test_the_environment_is_applied(tmp_path):
    main = write(tmp_path / "inferd.toml", "")

    assert read_config(main, {"INFERD_DEVICE__ID": "box"}).device.id == "box"


def test_a_named_file_that_is_missing_is_a_problem(tmp_path):
    (only,) = problems_of(tmp_path / "inferd.toml")

    assert only == f"{tmp_path}/inferd.toml: cannot be read: No such file or directory"


def test_the_default_file_may_be_missing(tmp_path):
    write(tmp_path / "conf.d" / "10-a.toml", "[device]\nid = 'box'")

    config = read_config(None, {}, default=tmp_path / "inferd.toml")

    assert config.device.id == "box"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a = '\xff'", "expected UTF-8: invalid start byte at byte 5"),
        (b"#" * ((1 << 20) + 1), "expected at most 1048576 bytes"),
        (b"[", "not TOML: "),
    ],
)
def test_a_file_that_is_no_text_of_ours_is_a_problem(tmp_path, content, problem):
    main = write(tmp_path / "inferd.toml", content)

    (only,) = problems_of(main)

    assert only.startswith(f"{main}: {problem}")


def test_a_folder_in_place_of_a_file_is_a_problem(tmp_path):
    (tmp_path / "inferd.toml").mkdir()

    (only,) = problems_of(tmp_path / "inferd.toml")

    assert only.endswith("cannot be read: Is a directory")


def test_unreadable_files_and_bad_keys_are_told_together(tmp_path):
    main = write(tmp_path / "inferd.toml", "[media]\ndecode_threads = 0")
    (tmp_path / "conf.d" / "10-a.toml").mkdir(parents=True)

    problems = problems_of(main)

    assert [problem.partition(": ")[2].split(" ")[0] for problem in problems] == [
        "cannot",
        "media.decode_threads",
    ]

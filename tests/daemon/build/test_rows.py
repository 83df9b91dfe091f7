"""Files of rows come back as they went in."""

from __future__ import annotations

import numpy as np

from daemon.build.rows import read_rows, writing_rows


def test_rows_come_back_one_by_one_with_every_name(tmp_path):
    rows = [
        {"a": np.zeros((1, 2), np.float32), "b": np.array([[1]], np.int8)},
        {"a": np.ones((3, 5), np.float32), "b": np.array([[-1]], np.int8)},
    ]

    with writing_rows(tmp_path / "rows", ["a", "b"]) as writer:
        for row in rows:
            writer.add(row)

    found = list(read_rows(tmp_path / "rows"))
    assert writer.count == len(found) == 2
    for row, wanted in zip(found, rows, strict=True):
        for name, array in wanted.items():
            assert row[name].dtype == array.dtype
            assert np.array_equal(row[name], array)


def test_bytes_are_objects_again(tmp_path):
    words = np.array([[b"eins", b"\xff\x00z"]], object)

    with writing_rows(tmp_path / "rows", ["w"]) as writer:
        writer.add({"w": words})

    (row,) = read_rows(tmp_path / "rows")
    assert row["w"].dtype == object
    assert row["w"].tolist() == words.tolist()


def test_no_rows_are_no_rows(tmp_path):
    with writing_rows(tmp_path / "rows", ["w"]):
        pass

    assert list(read_rows(tmp_path / "rows")) == []

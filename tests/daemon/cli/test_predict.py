"""How `inferctl predict` reads files and shows answers."""

from __future__ import annotations

import pytest

from daemon.cli.outcome import CommandError
from daemon.cli.predict import content_type, describe_answer, read_input


def make_answer(**meaning):
    return {
        "model": "m",
        "version": "2",
        "id": "1",
        "device": "cpu",
        "requested_device": "cpu",
        "degraded": False,
        "timing_ms": {"queue": 0.0, "total": 1.5},
        **meaning,
    }


def test_classes_are_listed_with_their_scores():
    answer = make_answer(classification=[{"label": "cat", "index": 3, "score": 0.87654}])

    assert describe_answer(answer) == "0.877  cat\nm version 2 on cpu, 1.50 ms"


def test_boxes_are_listed_with_their_edges():
    box = {"label": "cat", "index": 3, "score": 0.9, "box": [0.1, 0.2, 0.5, 1.0]}

    lines = describe_answer(make_answer(detection=[box])).splitlines()

    assert lines[0].split() == ["score", "label", "ymin", "xmin", "ymax", "xmax"]
    assert lines[1].split() == ["0.900", "cat", "0.100", "0.200", "0.500", "1.000"]


def test_an_empty_picture_is_said_to_be_empty():
    assert describe_answer(make_answer(detection=[])).startswith("nothing detected")


def test_a_mask_is_told_by_its_shares():
    classes = [{"label": "bird", "index": 3, "share": 0.25}]
    mask = {"width": 4, "height": 2, "classes": classes, "mask_png": ""}

    assert describe_answer(make_answer(segmentation=mask)).startswith("mask of 4x2\n25.0%  bird")


def test_each_of_several_pictures_gets_its_own_answer():
    rows = [[{"label": label, "index": 0, "score": 1.0}] for label in ("cat", "dog")]

    text = describe_answer(make_answer(classifications=rows))

    assert text.startswith("1.000  cat\n\n1.000  dog\n")


def test_long_tensors_are_cut_and_the_rest_is_counted():
    output = {"name": "y", "datatype": "INT32", "shape": [10], "data": list(range(10))}

    text = describe_answer(make_answer(outputs=[output]))

    assert text.startswith("y: INT32[10] 0, 1, 2, 3, 4, 5, 6, 7 and 2 more")


def test_a_score_that_is_no_number_is_shown_as_such():
    answer = make_answer(classification=[{"label": "cat", "index": 3, "score": "NaN"}])

    assert describe_answer(answer).startswith("nan  cat")


def test_a_model_on_another_device_says_which_was_wanted():
    answer = make_answer(classification=[], degraded=True, requested_device="edgetpu")

    assert "on cpu (wanted edgetpu)" in describe_answer(answer)


@pytest.mark.parametrize(
    ("file", "body", "hint"),
    [
        ("a.png", b"", "image/png"),
        ("a.json", b"", "application/json"),
        ("a.bin", b"{}", "application/octet-stream"),
        ("a.html", b"", "application/octet-stream"),
        ("-", b' {"inputs": []}', "application/json"),
        ("-", b"\x89PNG", "application/octet-stream"),
    ],
)
def test_the_hint_follows_the_files_name(file, body, hint):
    assert content_type(file, body) == hint


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(CommandError, match=r"none\.png: No such file"):
        read_input(str(tmp_path / "none.png"))

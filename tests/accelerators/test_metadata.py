"""Packed metadata is read as its authors meant it, and never stops or hurts anything."""

from __future__ import annotations

import io
import random
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tflite_builder as models
from support.tflite_builder import TensorNotes

from accelerators.base import LABELS_MAX, ModelMetadata, ScoreTransformation
from accelerators.flatbuffer import DamagedFile
from accelerators.metadata import parse_calibration, read_metadata


def read(data: bytes) -> tuple[ModelMetadata, str]:
    return read_metadata(memoryview(data), io.BytesIO(data))


def described(*outputs: TensorNotes, files: dict[str, bytes] | None = None) -> bytes:
    packed = models.metadata([TensorNotes("picture", 2)], list(outputs))
    return models.with_metadata(packed, files or {})


def test_file_without_metadata_has_none_and_nothing_is_wrong():
    assert read(models.scale()) == (ModelMetadata(), "")


def test_image_input_with_normalization():
    packed = models.metadata([TensorNotes("pic", 2, mean=(127.5,), std=(128.0,))], [], name="net")
    metadata, problem = read(models.with_metadata(packed, {}))

    assert (metadata.name, problem) == ("net", "")
    assert metadata.inputs[0].name == "pic"
    assert metadata.inputs[0].content == "image"
    assert (metadata.inputs[0].mean, metadata.inputs[0].std) == ((127.5,), (128.0,))


def test_audio_input_with_rate_and_channels():
    packed = models.metadata([TensorNotes("sound", 4, audio=(16000, 2))], [])
    metadata, _ = read(models.with_metadata(packed, {}))

    assert metadata.inputs[0].content == "audio"
    assert (metadata.inputs[0].sample_rate, metadata.inputs[0].channels) == (16000, 2)


@pytest.mark.parametrize("kind", [2, 3], ids=["axis labels", "value labels"])
def test_labels_keep_their_line_numbers(kind):
    notes = TensorNotes("p", 1, files=(("labels.txt", kind, ""),))
    metadata, problem = read(
        described(notes, files={"labels.txt": "cat\r\n\n???\nÄpfel\n".encode()})
    )

    assert metadata.outputs[0].labels == ("cat", "", "???", "Äpfel")
    assert problem == ""


def test_labels_without_a_locale_win_over_translations():
    notes = TensorNotes(
        "p", 1, files=(("de.txt", 2, "de"), ("any.txt", 2, ""), ("en.txt", 2, "en"))
    )
    metadata, _ = read(
        described(notes, files={"de.txt": b"Katze", "any.txt": b"cat", "en.txt": b"x"})
    )

    assert metadata.outputs[0].labels == ("cat",)


def test_box_order_is_read():
    metadata, _ = read(described(TensorNotes("boxes", 3, box_index=(1, 0, 3, 2))))

    assert metadata.outputs[0].content == "bounding_box"
    assert metadata.outputs[0].box_order == (1, 0, 3, 2)


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 0, 1, 2), (1, 2, 3, 4)], ids=str)
def test_box_order_that_is_none_is_not_used(order):
    metadata, _ = read(described(TensorNotes("boxes", 3, box_index=order)))

    assert metadata.outputs[0].box_order == ()


def test_score_calibration_and_threshold():
    notes = TensorNotes(
        "s", 1, threshold=0.25, calibration=(2, 0.125), files=(("c.txt", 4, ""), ("l.txt", 2, ""))
    )
    metadata, _ = read(
        described(notes, files={"c.txt": b"1,2,3\n\n4,5,6,0.5\n", "l.txt": b"a\nb\nc"})
    )
    calibration = metadata.outputs[0].calibration

    assert metadata.outputs[0].score_threshold == 0.25
    assert calibration is not None
    assert calibration.transformation is ScoreTransformation.INVERSE_LOGISTIC
    assert calibration.default_score == 0.125
    assert calibration.lines == ((1, 2, 3, None), None, (4, 5, 6, 0.5))


@pytest.mark.parametrize("text", ["1,2", "1,2,3,4,5", "a,b,c", "1,2,nan", "1,inf,3"])
def test_calibration_line_that_is_not_three_or_four_numbers(text):
    with pytest.raises(DamagedFile):
        parse_calibration(text)


def test_label_file_that_is_not_there_is_noted():
    metadata, problem = read(described(TensorNotes("p", 1, files=(("no.txt", 2, ""),))))

    assert metadata.outputs[0].labels == ()
    assert metadata.inputs[0].content == "image"
    assert "no.txt" in problem


@pytest.mark.parametrize("end", ["", "\n"], ids=["last line open", "last line ended"])
def test_as_many_labels_as_may_be_are_read(end):
    notes = TensorNotes("p", 1, files=(("l.txt", 2, ""),))
    text = "\n".join(["x"] * LABELS_MAX) + end
    metadata, problem = read(described(notes, files={"l.txt": text.encode()}))

    assert (len(metadata.outputs[0].labels), problem) == (LABELS_MAX, "")


@pytest.mark.parametrize("end", ["", "\n"], ids=["last line open", "last line ended"])
def test_more_labels_are_left_out_and_noted(end):
    notes = TensorNotes("p", 1, files=(("l.txt", 2, ""),))
    text = "\n".join(["x"] * (LABELS_MAX + 1)) + end
    metadata, problem = read(described(notes, files={"l.txt": text.encode()}))

    assert (metadata.outputs[0].name, metadata.outputs[0].labels) == ("p", ())
    assert "'l.txt'" in problem
    assert "200001 lines, more than 200000" in problem


def test_labels_of_many_outputs_together_are_bounded_too():
    notes = [TensorNotes(name, 1, files=(("l.txt", 2, ""),)) for name in "abc"]
    metadata, problem = read(described(*notes, files={"l.txt": b"\n" * LABELS_MAX}))

    assert [len(output.labels) for output in metadata.outputs] == [LABELS_MAX, LABELS_MAX, 0]
    assert "more than 0" in problem


def test_file_with_a_way_out_of_its_folder_is_a_name_like_any_other(tmp_path):
    notes = TensorNotes("p", 1, files=(("../../etc/passwd", 2, ""),))
    metadata, problem = read(described(notes, files={"../../etc/passwd": b"cat"}))

    assert (metadata.outputs[0].labels, problem) == (("cat",), "")


def test_bomb_in_the_zip_is_not_unpacked():
    bomb = io.BytesIO(described(TensorNotes("p", 1, files=(("l.txt", 2, ""),))))
    bomb.seek(0, io.SEEK_END)
    with zipfile.ZipFile(bomb, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("l.txt", b"\n" * (64 << 20))
    data = bomb.getvalue()

    metadata, problem = read(data)

    assert len(data) < 200_000
    assert metadata.outputs[0].labels == ()
    assert "more than" in problem


@pytest.mark.parametrize(
    "notes",
    [TensorNotes(mean=(1.0,), std=(0.0,)), TensorNotes(mean=(float("nan"),), std=(1.0,))],
    ids=["std of zero", "mean is nan"],
)
def test_normalization_that_cannot_be_is_refused(notes):
    _, problem = read(models.with_metadata(models.metadata([notes], []), {}))

    assert "normalization" in problem


def test_metadata_of_an_unknown_version_is_not_used():
    packed = models.metadata([], []).replace(b"M001", b"M002")

    assert "unknown version" in read(models.with_metadata(packed, {}))[1]


WHOLE = described(
    TensorNotes(
        "p", 1, threshold=0.5, files=(("l.txt", 2, ""), ("c.txt", 4, "")), calibration=(0, 1)
    ),
    TensorNotes("b", 3, box_index=(1, 0, 3, 2), mean=(1.0,), std=(2.0,)),
    files={"l.txt": b"cat\ndog\n", "c.txt": b"1,2,3\n"},
)


def test_damaged_files_are_read_or_refused_with_a_sentence():
    rng = random.Random(7)
    understood = 0

    for number in range(3000):
        data = bytearray(WHOLE)
        if number % 3 == 0:
            del data[rng.randrange(len(data)) :]
        for _ in range(rng.randrange(1, 6)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        metadata, problem = read(bytes(data))
        understood += not problem
        assert isinstance(metadata, ModelMetadata)

    assert 0 < understood < 3000


@given(st.binary(max_size=400))
def test_random_bytes_are_no_metadata(data):
    metadata, _ = read(data)

    assert metadata == ModelMetadata()


@given(st.binary(min_size=8, max_size=400))
def test_random_bytes_in_the_metadata_buffer_do_no_harm(packed):
    metadata, _ = read(models.with_metadata(packed[:4] + b"M001" + packed[4:], {}))

    assert isinstance(metadata, ModelMetadata)

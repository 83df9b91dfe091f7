"""Pictures, sounds and arrays become rows; what cannot is refused with what was expected."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from PIL import Image
from support.media_files import (
    LIMITS,
    encode,
    make_profile,
    make_report,
    make_wav,
    random_picture,
    tone,
)

from accelerators.base import DataType, TensorSpec
from daemon.build.data import (
    DataKind,
    check_finite,
    labels_from_folders,
    number_classes,
    open_data,
    split_classes,
    write_rows,
)
from daemon.build.errors import BadData
from daemon.build.rows import read_rows
from daemon.build.sources import digest_of
from daemon.modelfile import parse_model_file

GREY = TensorSpec("image", DataType.FP32, (-1, 16))


def rows_of(data, spec: TensorSpec, tmp_path, toml: str = ""):
    """What the rows of a model with one input are."""
    profile = make_profile(spec, tables=parse_model_file(toml))
    out = tmp_path / "out.rows"
    write_rows(data, out, make_report([spec]).signatures[0], profile, LIMITS)
    return list(read_rows(out))


def picture(path, value: int = 255):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(Image.fromarray(np.full((4, 4), value, np.uint8))))


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


class TestFolders:
    def test_pictures_become_rows_by_the_daemons_own_pipeline(self, tmp_path):
        picture(tmp_path / "p" / "a.png", 0)
        picture(tmp_path / "p" / "b.png", 255)
        data = open_data(tmp_path / "p", most=10)

        rows = rows_of(data, GREY, tmp_path, '[input]\nkind = "image"\nmean = 127.5\nstd = 127.5')

        assert data.kind is DataKind.PICTURES
        assert [row["image"].shape for row in rows] == [(1, 16), (1, 16)]
        assert (rows[0]["image"][0, 0], rows[1]["image"][0, 0]) == (-1.0, 1.0)

    def test_sounds_do_too(self, tmp_path):
        (tmp_path / "s").mkdir()
        (tmp_path / "s" / "a.wav").write_bytes(make_wav(tone(8000), 8000))
        data = open_data(tmp_path / "s", most=10)

        rows = rows_of(data, GREY, tmp_path, "[input]\nsample_rate_hz = 8000")

        assert data.kind is DataKind.SOUNDS
        assert rows[0]["image"].shape == (1, 16)

    def test_the_folder_of_each_is_its_class(self, tmp_path):
        for name in ("dog/1.png", "cat/2.png", "cat/deeper/0.png"):
            picture(tmp_path / name)
        data = open_data(tmp_path, most=10)

        labels = labels_from_folders(data)

        assert data.names == ("cat/2.png", "cat/deeper/0.png", "dog/1.png")
        assert labels == ("cat", "dog")
        assert number_classes(data, labels, 2) == (0, 0, 1)
        assert number_classes(data, ("dog", "bird", "cat"), 3) == (2, 2, 0)

    def test_a_folder_that_is_no_label_is_refused(self, tmp_path):
        picture(tmp_path / "cat" / "1.png")

        with pytest.raises(BadData, match="no label is called cat; the labels are dog"):
            number_classes(open_data(tmp_path, most=10), ("dog",), 2)

    def test_more_classes_than_the_model_has_are_refused(self, tmp_path):
        for name in "abc":
            picture(tmp_path / name / "1.png")
        data = open_data(tmp_path, most=10)

        with pytest.raises(BadData, match="class numbers go from 0 to 2; the model's are 0 to 1"):
            number_classes(data, labels_from_folders(data), 2)

    def test_numbered_folders_are_taken_where_both_orders_agree(self, tmp_path):
        for number in range(10):
            picture(tmp_path / str(number) / "a.png")
        assert labels_from_folders(open_data(tmp_path, most=99)) == tuple("0123456789")

        picture(tmp_path / "10" / "a.png")

        with pytest.raises(BadData, match="say which class is which with --labels"):
            labels_from_folders(open_data(tmp_path, most=99))

    def test_other_and_hidden_files_are_passed_over(self, tmp_path):
        picture(tmp_path / "a.png")
        picture(tmp_path / ".hidden.png")
        picture(tmp_path / ".cache" / "b.png")
        (tmp_path / "README.txt").write_text("pictures")

        assert open_data(tmp_path, most=10).names == ("a.png",)

    def test_more_are_thinned_evenly_in_the_order_of_names(self, tmp_path):
        for number in range(10):
            picture(tmp_path / f"{number}.png", number)

        data = open_data(tmp_path, most=4)

        assert data.names == ("0.png", "2.png", "5.png", "7.png")

    def test_the_digest_is_that_of_the_files_that_are_used(self, tmp_path):
        (tmp_path / "a").mkdir()
        picture(tmp_path / "a" / "0.png", 1)
        picture(tmp_path / "a" / "1.png", 2)
        both = open_data(tmp_path / "a", most=2).digest
        assert both == digest_of(tmp_path / "a")

        (tmp_path / "a" / "note.txt").write_text("not used")

        assert open_data(tmp_path / "a", most=2).digest == both
        assert open_data(tmp_path / "a", most=1).digest != both

    def test_a_damaged_picture_is_named(self, tmp_path):
        (tmp_path / "p").mkdir()
        whole = encode(random_picture())
        (tmp_path / "p" / "torn.png").write_bytes(whole[:40])

        with pytest.raises(BadData, match=r"torn\.png: "):
            rows_of(open_data(tmp_path / "p", most=1), GREY, tmp_path, '[input]\nkind = "image"')

    @pytest.mark.parametrize(
        ("names", "told"),
        [
            ((), "no pictures .* or sounds"),
            (("a.png", "b/c.png"), "here are both"),
            (("a.png", "b.wav"), "pictures or sounds, not both"),
        ],
    )
    def test_a_folder_that_cannot_be_used_is_refused(self, tmp_path, names, told):
        for name in names:
            picture(tmp_path / name)
            if name.endswith(".wav"):
                (tmp_path / name).write_bytes(make_wav(tone(8000), 8000))

        with pytest.raises(BadData, match=told):
            open_data(tmp_path, most=10)

    def test_pictures_for_a_model_of_tensors_are_refused(self, tmp_path):
        picture(tmp_path / "p" / "a.png")

        with pytest.raises(BadData, match="holds pictures, and the model takes tensors"):
            rows_of(open_data(tmp_path / "p", most=1), GREY, tmp_path)


class TestArrays:
    def test_each_input_gets_the_array_of_its_name(self, tmp_path):
        values = np.arange(6, dtype=np.float64).reshape(3, 2)
        data = open_data(npz(tmp_path / "d.npz", image=values), most=10)

        rows = rows_of(data, TensorSpec("image", DataType.FP32, (-1, 2)), tmp_path)

        assert data.names == ("row 0", "row 1", "row 2")
        assert rows[2]["image"].tolist() == [[4.0, 5.0]]
        assert rows[2]["image"].dtype == np.float32

    def test_one_input_takes_the_only_array_whatever_its_name(self, tmp_path):
        data = open_data(npz(tmp_path / "d.npz", other=np.zeros((1, 2), np.float32)), most=10)

        assert rows_of(data, TensorSpec("image", DataType.FP32, (1, 2)), tmp_path)

    def test_an_item_may_be_the_whole_tensor(self, tmp_path):
        data = open_data(npz(tmp_path / "d.npz", x=np.zeros((5, 3, 2), np.float32)), most=10)

        rows = rows_of(data, TensorSpec("x", DataType.FP32, (3, 2)), tmp_path)

        assert rows[0]["x"].shape == (3, 2)

    def test_words_become_bytes(self, tmp_path):
        data = open_data(npz(tmp_path / "d.npz", word=np.array(["grün", "no"])), most=10)

        rows = rows_of(data, TensorSpec("word", DataType.BYTES, (-1,)), tmp_path)

        assert rows[0]["word"].tolist() == ["grün".encode()]
        assert rows[0]["word"].dtype == object

    @pytest.mark.parametrize("key", ["labels", "y"])
    @pytest.mark.parametrize("shape", [(3,), (3, 1)])
    def test_class_numbers_are_told_from_inputs(self, tmp_path, key, shape):
        arrays = {"x": np.zeros((3, 2)), key: np.array([0, 2, 1]).reshape(shape)}
        data = split_classes(open_data(npz(tmp_path / "d.npz", **arrays), most=10), ["x"])

        assert number_classes(data, (), 3) == (0, 2, 1)
        assert set(data.arrays) == {"x"}

    def test_an_input_that_is_called_y_stays_one(self, tmp_path):
        data = open_data(npz(tmp_path / "d.npz", y=np.zeros(3, np.int64)), most=10)

        assert split_classes(data, ["y"]) is data

    def test_thinning_keeps_items_and_their_classes_together(self, tmp_path):
        arrays = {"x": np.arange(10.0)[:, None], "y": np.arange(10)}

        data = split_classes(open_data(npz(tmp_path / "d.npz", **arrays), most=3), ["x"])

        assert data.names == ("row 0", "row 3", "row 6")
        assert data.class_numbers == (0, 3, 6)
        assert data.arrays["x"].ravel().tolist() == [0.0, 3.0, 6.0]

    @pytest.mark.parametrize(
        ("arrays", "told"),
        [
            ({}, "not none"),
            ({"x": np.float32(3)}, "'x' is one number"),
            ({"a": np.zeros(2), "b": np.zeros(3)}, "not 2 in 'a', 3 in 'b'"),
            ({"a": np.zeros((0, 2))}, "from 1 on"),
        ],
    )
    def test_a_file_that_cannot_be_used_is_refused(self, tmp_path, arrays, told):
        with pytest.raises(BadData, match=told):
            open_data(npz(tmp_path / "d.npz", **arrays), most=10)

    @pytest.mark.parametrize("numbers", [np.eye(3), np.zeros((3, 2), np.int64)])
    def test_class_numbers_that_are_none_are_refused(self, tmp_path, numbers):
        data = open_data(npz(tmp_path / "d.npz", x=np.zeros((3, 2)), y=numbers), most=10)

        with pytest.raises(BadData, match="expected a whole number for each item"):
            split_classes(data, ["x"])

    @pytest.mark.parametrize(
        ("arrays", "told"),
        [
            ({"x": np.zeros((1, 3), np.float32)}, r"shape \[3\], the model takes \[1, 2\]"),
            ({"x": np.array([["a", "b"]])}, "the model takes float32"),
            (
                {"a": np.zeros((1, 2)), "b": np.zeros((1, 2))},
                "holds a, b; the model's inputs are x",
            ),
        ],
    )
    def test_what_does_not_fit_the_model_is_refused(self, tmp_path, arrays, told):
        data = open_data(npz(tmp_path / "d.npz", **arrays), most=10)

        with pytest.raises(BadData, match=told):
            rows_of(data, TensorSpec("x", DataType.FP32, (1, 2)), tmp_path)

    def test_what_is_no_npz_is_refused(self, tmp_path):
        (tmp_path / "d.npz").write_bytes(b"no zip")
        (tmp_path / "d.csv").write_bytes(b"1,2")

        with pytest.raises(BadData, match=r"not an \.npz file"):
            open_data(tmp_path / "d.npz", most=10)
        with pytest.raises(BadData, match=r"expected a folder of pictures .* or an \.npz file"):
            open_data(tmp_path / "d.csv", most=10)

    def test_packed_bytes_that_are_damaged_are_refused(self, tmp_path):
        np.savez_compressed(tmp_path / "d.npz", x=np.arange(1000.0))
        raw = bytearray((tmp_path / "d.npz").read_bytes())
        start = 30 + raw[26] + raw[28]  # of the packed bytes: behind the entry's head
        raw[start : start + 40] = b"\xff" * 40
        (tmp_path / "d.npz").write_bytes(raw)

        with pytest.raises(BadData, match=r"not an \.npz file of plain arrays"):
            open_data(tmp_path / "d.npz", most=10)

    @pytest.mark.parametrize(
        "header",
        [
            "{'descr': '<f8', 'fortran_order': False, 'shape': (900000000000,), }",
            "{'descr': '<f8', 'fortran_order': False, 'shape': (3",
        ],
        ids=["claims too much", "ends too soon"],
    )
    def test_an_array_whose_head_is_damaged_is_refused(self, tmp_path, header):
        text = header.encode()
        raw = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
        with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
            archive.writestr("x.npy", raw)

        with pytest.raises(BadData, match=r"not an \.npz file of plain arrays"):
            open_data(tmp_path / "d.npz", most=10)

    def test_a_file_in_it_that_is_no_array_is_named(self, tmp_path):
        npz(tmp_path / "d.npz", x=np.zeros((1, 2)))
        with zipfile.ZipFile(tmp_path / "d.npz", "a") as archive:
            archive.writestr("readme.txt", "two numbers")

        with pytest.raises(BadData, match=r"'readme\.txt' in it is no array"):
            open_data(tmp_path / "d.npz", most=10)

    @pytest.mark.parametrize("bad", [np.nan, -np.inf, 1e300])
    def test_numbers_that_ranges_cannot_be_taken_from_are_named(self, tmp_path, bad):
        values = np.zeros((3, 2, 2))
        check_finite(open_data(npz(tmp_path / "d.npz", image=values), most=10))
        values[1, 1, 0] = bad

        with pytest.raises(BadData, match="row 1 of 'image' is not finite"):
            check_finite(open_data(npz(tmp_path / "d.npz", image=values), most=10))

    def test_objects_that_would_have_to_be_unpickled_are_refused(self, tmp_path):
        npz(tmp_path / "d.npz", x=np.array([{"a": 1}], object))

        with pytest.raises(BadData, match="of plain arrays"):
            open_data(tmp_path / "d.npz", most=10)

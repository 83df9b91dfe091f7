"""Health samples: a sound run of the model passes them, a broken one does not."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from support.media_files import encode, random_picture

from accelerators.base import DataType, Quantization, SignatureSpec, TensorSpec
from daemon.build.healthsamples import (
    Evaluated,
    choose_samples,
    samples_toml,
    write_samples,
)
from daemon.modelfile import HealthTable, parse_model_file
from daemon.pipeline.profiles import InputKind, ModelProfile, OutputKind
from daemon.samples import MAX_FILE_BYTES, judge, load_samples
from daemon.tensors import (
    Box,
    Category,
    Classification,
    ClassShare,
    Detection,
    PredictResult,
    Segmentation,
    Timing,
)
from updater.manifest import check_path

X = TensorSpec("x", DataType.FP32, (1, 2))
Y = TensorSpec("y", DataType.FP32, (1, 3))
PROFILE = ModelProfile(InputKind.TENSOR, OutputKind.TENSOR)


def classified(**scores: float) -> Classification:
    """Best first."""
    ranked = sorted(scores.items(), key=lambda pair: -pair[1])
    places = list(scores)
    return Classification(tuple(Category(k, places.index(k), v) for k, v in ranked))


def item(name: str, meaning=None, expected=None, *, x=(1.0, 2.0), **outputs) -> Evaluated:
    """An evaluated row of tensors."""
    arrays = {key: np.asarray(value) for key, value in outputs.items()}
    return Evaluated(name, {"x": np.array([x], np.float32)}, arrays, meaning, expected)


def numbers(name: str, *values: float, **changes) -> Evaluated:
    return item(name, y=np.array([values], np.float32), x=(len(name), values[0]), **changes)


def result(meaning=None, **outputs) -> PredictResult:
    arrays = {key: np.asarray(value) for key, value in outputs.items()}
    told = () if meaning is None else (meaning,)
    return PredictResult("m", 1, "1", "cpu", "cpu", False, Timing(), arrays, told)


def names(chosen) -> list[str]:
    return [each.name for each in chosen]


class TestLabels:
    def test_for_each_class_the_item_the_model_is_surest_of(self):
        items = [
            item("a", classified(cat=0.6, dog=0.4), "cat"),
            item("b", classified(cat=0.9, dog=0.1), "cat"),
            item("c", classified(cat=0.2, dog=0.8), "dog"),
        ]

        chosen = choose_samples(items, [])

        assert [(each.name, each.label) for each in chosen] == [("b", "cat"), ("c", "dog")]

    def test_what_the_model_got_wrong_is_no_sample(self):
        items = [
            item("wrong", classified(cat=0.99, dog=0.01), "dog"),
            item("right", classified(cat=0.7, dog=0.3), "cat"),
        ]

        assert names(choose_samples(items, [])) == ["right"]

    def test_without_a_right_answer_there_is_no_sample(self):
        assert choose_samples([item("a", classified(cat=0.9, dog=0.1), "dog")], []) == ()

    def test_where_nobody_knows_the_models_own_answer_is_expected(self):
        (chosen,) = choose_samples([item("a", classified(cat=0.9, dog=0.1))], [])

        assert chosen.label == "cat"

    def test_of_equals_the_first_is_chosen(self):
        items = [item(name, classified(cat=0.9, dog=0.1), "cat") for name in "ab"]

        assert names(choose_samples(items, [])) == ["a"]

    @pytest.mark.parametrize(
        ("scores", "least"),
        [
            ({"cat": 0.9, "dog": 0.1}, 0.5),
            ({"cat": 8.0, "dog": -4.0}, 2.0),
            ({"cat": -1.0, "dog": -9.0}, -5.0),
        ],
        ids=["probabilities", "logits", "logits below 0"],
    )
    def test_the_least_score_is_half_way_to_the_next_best(self, scores, least):
        (chosen,) = choose_samples([item("a", classified(**scores))], [])

        assert chosen.min_score == least

    def test_what_it_is_hardly_sure_of_is_left_out(self):
        items = [
            item("sure", classified(cat=0.95, dog=0.05)),
            item("torn", classified(dog=0.52, cat=0.48)),
        ]

        assert names(choose_samples(items, [])) == ["sure"]

    def test_at_most_so_many_and_the_surest_first(self):
        items = [item(f"{n}", classified(**{f"c{n}": n / 10, "x": 0.0})) for n in range(2, 9)]

        assert names(choose_samples(items, [], limit=3)) == ["8", "7", "6"]

    def test_an_answer_that_is_no_number_is_no_sample(self):
        bad = item("nan", classified(cat=0.9, dog=0.1), y=[np.nan])

        assert choose_samples([bad], []) == ()

    def test_a_detector_is_asked_for_the_object_it_is_surest_of(self):
        (chosen,) = choose_samples([item("street", objects())], [])

        assert (chosen.label, chosen.min_score) == ("car", 0.4)

    def test_a_detector_is_asked_for_the_object_that_is_known_to_be_there(self):
        (chosen,) = choose_samples([item("street", objects(), "dog")], [])

        assert (chosen.label, chosen.min_score) == ("dog", 0.3)

    def test_a_segmenter_is_asked_for_the_areas_it_found(self):
        shares = (ClassShare("background", 0, 0.8), ClassShare("bird", 3, 0.2))
        chosen = choose_samples([item("p", Segmentation(2, 2, shares, b""))], [])

        assert [(each.label, each.min_score) for each in chosen] == [
            ("background", 0.4),
            ("bird", 0.1),
        ]

    @pytest.mark.parametrize("meaning", [Classification(()), Detection(())])
    def test_an_answer_without_anything_is_no_sample(self, meaning):
        assert choose_samples([item("a", meaning)], []) == ()


def objects() -> Detection:
    found = [("car", 0.8), ("dog", 0.6), ("car", 0.5)]
    return Detection(tuple(Box(label, 0, score, (0, 0, 1, 1)) for label, score in found))


class TestNumbers:
    def test_the_items_are_those_whose_answers_differ_most(self):
        items = [numbers("a", 0, 0, 0), numbers("b", 0.1, 0, 0), numbers("c", 9, 9, 9)]

        assert names(choose_samples(items, [Y], limit=2)) == ["a", "c"]

    def test_a_model_that_always_says_the_same_has_one_sample(self):
        items = [numbers(name, 1, 1, 1) for name in "abc"]

        assert names(choose_samples(items, [Y])) == ["a"]

    def test_the_tolerance_is_a_share_of_the_outputs_span(self):
        chosen = choose_samples([numbers("a", 0, 0, 0), numbers("b", 20, 0, 0)], [Y])

        assert {each.tolerance for each in chosen} == {2.0}

    @pytest.mark.parametrize(("value", "tolerance"), [(40.0, 4.0), (0.0, 0.001)])
    def test_where_all_values_are_equal_it_is_a_share_of_them(self, value, tolerance):
        (chosen,) = choose_samples([numbers("a", value, value, value)], [Y])

        assert chosen.tolerance == tolerance

    def test_the_tolerance_is_rounded_up_to_two_digits(self):
        chosen = choose_samples([numbers("a", 0, 0, 0), numbers("b", 1.2345, 0, 0)], [Y])

        assert {each.tolerance for each in chosen} == {0.13}

    def test_class_numbers_must_be_equal(self):
        items = [item("a", n=np.array([3], np.int64)), item("b", n=np.array([90], np.int64))]
        chosen = choose_samples(items, [TensorSpec("n", DataType.INT64, (1,))])

        assert {each.tolerance for each in chosen} == {0.0}

    def test_quantised_numbers_have_a_tolerance(self):
        spec = TensorSpec("q", DataType.UINT8, (1,), Quantization(1 / 256, 0))
        items = [item("a", q=np.array([0], np.uint8)), item("b", q=np.array([200], np.uint8))]

        assert {each.tolerance for each in choose_samples(items, [spec])} == {20.0}

    def test_outputs_of_other_spans_are_samples_of_their_own(self):
        items = [
            item("a", small=np.zeros(2, np.float32), large=np.zeros(2, np.float32)),
            item("b", small=np.ones(2, np.float32), large=np.full(2, 1000, np.float32)),
        ]

        chosen = choose_samples(items, [])

        assert sorted((each.name, *each.outputs, each.tolerance) for each in chosen) == [
            ("a", "large", 100.0),
            ("a", "small", 0.1),
            ("b", "large", 100.0),
            ("b", "small", 0.1),
        ]
        assert len(choose_samples(items, [], limit=3)) <= 3

    def test_texts_must_be_equal_and_those_a_file_cannot_hold_are_not_asked_for(self):
        kept, lost = np.array([b"ab"], object), np.array([b"ab\0"], object)

        (chosen,) = choose_samples([item("a", kept=kept, lost=lost)], [])

        assert list(chosen.outputs) == ["kept"]
        assert chosen.tolerance == 0.0

    def test_answers_of_other_shapes_differ(self):
        items = [item("a", y=np.zeros((1, 2))), item("b", y=np.zeros((1, 3)))]

        assert names(choose_samples(items, [])) == ["a", "b"]

    def test_without_items_there_is_none(self):
        assert choose_samples([], [Y]) == ()

    def test_inputs_that_are_too_large_to_be_read_are_left_out(self):
        large = Evaluated("a", bytes(MAX_FILE_BYTES + 1), {"y": np.zeros(1)})

        assert choose_samples([large], []) == ()

    def test_all_samples_together_are_bounded(self):
        large = [
            Evaluated(name, bytes(MAX_FILE_BYTES), {"y": np.full(1, value, np.float32)})
            for value, name in enumerate("abcd")
        ]

        assert len(choose_samples(large, [])) == 1


class TestFiles:
    def load(self, folder, *, inputs=(X,), outputs=(Y,)):
        """As a device does."""
        tables = parse_model_file((folder / "model.toml").read_text())
        spec = SignatureSpec("serving_default", inputs, outputs)
        return load_samples(folder, tables.health, spec, PROFILE)

    def write(self, folder, chosen):
        entries = write_samples(folder, chosen)
        (folder / "model.toml").write_text("[model]\nname = 'm'\n\n" + samples_toml(entries))
        return entries

    def test_a_device_reads_back_what_was_chosen(self, tmp_path):
        items = [numbers("a", 0, 1, 2), numbers("bb", 5, 6, 7)]
        self.write(tmp_path, choose_samples(items, [Y]))

        samples = self.load(tmp_path)

        for sample, one in zip(samples, items, strict=True):
            assert np.array_equal(sample.inputs["x"], one.inputs["x"])
            assert np.array_equal(sample.outputs["y"], one.outputs["y"])
            assert judge(sample, result(y=one.outputs["y"])) == ""

    def test_noise_passes_and_another_answer_does_not(self, tmp_path):
        items = [numbers("a", 0, 1, 2), numbers("bb", 5, 6, 7)]
        self.write(tmp_path, choose_samples(items, [Y]))
        first, second = self.load(tmp_path)

        noisy = items[0].outputs["y"] + np.float32(0.02 * 7)

        assert judge(first, result(y=noisy)) == ""
        assert "differs" in judge(second, result(y=items[0].outputs["y"]))

    def test_labels_are_read_back(self, tmp_path):
        items = [
            item("cats/1.png", classified(cat=0.9, dog=0.1), "cat"),
            item("dogs/1.png", classified(dog=0.8, cat=0.2), "dog"),
        ]
        self.write(tmp_path, choose_samples(items, []))
        cat, _ = self.load(tmp_path)

        assert (cat.label, cat.min_score, cat.name) == ("cat", 0.5, "samples/cat.npy")
        assert judge(cat, result(classified(cat=0.6, dog=0.4))) == ""
        assert "expected 'cat'" in judge(cat, result(classified(cat=0.4, dog=0.3)))
        assert "expected 'cat'" in judge(cat, result(classified(dog=0.8, cat=0.2)))

    def test_several_inputs_are_in_one_file(self, tmp_path):
        inputs = {"a/b:0": np.zeros((1, 2), np.int8), "n": np.array(3.5, np.float32)}
        one = Evaluated("r", inputs, {"y": np.zeros((1, 3), np.float32)})
        self.write(tmp_path, choose_samples([one], [Y]))

        (sample,) = self.load(tmp_path, inputs=(X, Y))

        assert sample.inputs.keys() == inputs.keys()
        assert sample.inputs["n"].shape == ()
        assert sample.inputs["a/b:0"].dtype == np.int8

    def test_texts_come_back_as_the_daemon_has_them(self, tmp_path):
        text = np.array([["grüß".encode(), b""]], object)
        one = Evaluated("t", {"x": text}, {"y": text})
        self.write(tmp_path, choose_samples([one], []))

        (sample,) = self.load(tmp_path)

        assert sample.inputs["x"].dtype == object
        assert np.array_equal(sample.inputs["x"], text)
        assert judge(sample, result(y=text)) == ""
        assert judge(sample, result(y=text[:, ::-1])) == "output 'y' differs"

    def test_a_picture_stays_as_it_is_and_keeps_its_kind(self, tmp_path):
        picture = encode(random_picture(4, 4))
        one = Evaluated("c/1", picture, {}, classified(cat=0.9, dog=0.1))

        (entry,) = write_samples(tmp_path, choose_samples([one], []))

        assert entry.input == "samples/cat.png"
        assert (tmp_path / entry.input).read_bytes() == picture

    def test_one_picture_for_several_labels_is_written_once(self, tmp_path):
        shares = (ClassShare("sky", 0, 0.6), ClassShare("bird", 3, 0.4))
        one = Evaluated("p.bmp", b"BM", {}, Segmentation(2, 2, shares, b""))

        first, second = write_samples(tmp_path, choose_samples([one], []))

        assert first.input == second.input == "samples/sky.bmp"
        assert len(list((tmp_path / "samples").iterdir())) == 1

    @pytest.mark.parametrize(
        "label", ["Äpfel & Birnen", "../../etc/passwd", "", "x" * 300, "???", "a\nb", ".hidden"]
    )
    def test_whatever_a_label_is_its_file_can_be_in_a_bundle(self, label, tmp_path):
        one = item("n", classified(**{label: 0.9, "other": 0.1}))

        (entry,) = self.write(tmp_path, choose_samples([one], []))

        check_path(entry.input)
        assert self.load(tmp_path)[0].label == label

    def test_labels_that_look_alike_have_files_of_their_own(self, tmp_path):
        items = [
            item("1", classified(**{"a b": 0.9, "x": 0.1}), x=(1, 1)),
            item("2", classified(**{"A-B": 0.8, "x": 0.1}), x=(2, 2)),
        ]

        entries = write_samples(tmp_path, choose_samples(items, []))

        assert [entry.input for entry in entries] == ["samples/a-b.npy", "samples/a-b-2.npy"]

    def test_the_same_samples_are_the_same_bytes(self, tmp_path):
        chosen = choose_samples([numbers("a", 0, 1, 2), numbers("bb", 5, 6, 7)], [Y])
        folders = [tmp_path / name for name in ("one", "two")]
        for folder in folders:
            folder.mkdir()
            self.write(folder, chosen)

        one, two = (
            {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}
            for folder in folders
        )

        assert one == two
        assert len(one) == 5

    def test_an_archive_says_nothing_of_when_it_was_made(self, tmp_path):
        inputs = {"a": np.zeros(1), "b": np.zeros(1)}
        one = Evaluated("r", inputs, {"y": np.zeros(1)})
        (entry,) = write_samples(tmp_path, choose_samples([one], []))

        with zipfile.ZipFile(io.BytesIO((tmp_path / entry.input).read_bytes())) as archive:
            assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}

    def test_no_samples_are_no_text(self):
        assert samples_toml(()) == ""

    def test_the_text_is_a_tables_end(self, tmp_path):
        entries = write_samples(tmp_path, choose_samples([numbers("a", 1, 2, 3)], [Y]))

        text = "[health]\nmax_latency_ms = 5\n\n" + samples_toml(entries)

        tables = parse_model_file(text)
        assert tables.health == HealthTable(samples=entries, max_latency_ms=5)

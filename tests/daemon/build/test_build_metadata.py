"""Metadata is written as the standard says, into any model, and changes nothing of the model."""

from __future__ import annotations

import io
import random
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from hypothesis import given
from hypothesis import strategies as st
from support import tflite_builder as models
from support.tflite_builder import TensorNotes

from accelerators.base import (
    LABELS_MAX,
    ModelMetadata,
    ScoreCalibration,
    ScoreTransformation,
    TensorMetadata,
)
from accelerators.metadata import read_metadata
from accelerators.outline import read_outline
from daemon.build.carrier import detach
from daemon.build.errors import BadMetadata
from daemon.build.metadata import write_metadata

MODEL = models.mlp((8, 16, 4), batch=1)
LABELS = ("cat", "dog", "", "Äpfel ???")
PICTURE = TensorMetadata(
    name="image", description="a picture", content="image", mean=(127.5,), std=(63.75,)
)
SCORES = TensorMetadata(name="scores", content="feature", labels=LABELS)
WHOLE = ModelMetadata(
    name="net",
    description="Says what is in a picture.",
    version="7",
    author="us",
    license="none",
    inputs=(PICTURE,),
    outputs=(SCORES,),
)


def read(data: bytes) -> ModelMetadata:
    """As the daemon's workers read it; nothing is wrong with it."""
    metadata, problem = read_metadata(memoryview(data), io.BytesIO(data))
    assert problem == ""
    return metadata


def written(model: bytes = MODEL, **changes) -> bytes:
    return write_metadata(model, replace(WHOLE, **changes))


def with_output(**changes) -> bytes:
    return written(outputs=(replace(SCORES, **changes),))


def graph_of(data: bytes) -> schema.ModelT:
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))


def answers(model: bytes, seed: int = 3) -> list[np.ndarray]:
    """What every output is for one random input."""
    interpreter = Interpreter(model_content=model)
    interpreter.allocate_tensors()
    rng = np.random.default_rng(seed)
    for source in interpreter.get_input_details():
        values = rng.integers(0, 100, source["shape"])
        interpreter.set_tensor(source["index"], values.astype(source["dtype"]))
    interpreter.invoke()
    return [interpreter.get_tensor(each["index"]) for each in interpreter.get_output_details()]


class TestWhatIsRead:
    def test_everything_is_read_back_as_it_was_given(self):
        assert read(written()) == WHOLE

    def test_a_sound_with_its_rate(self):
        sound = TensorMetadata(name="s", content="audio", sample_rate=16000, channels=2)

        assert read(written(inputs=(sound,))).inputs == (sound,)

    def test_a_normalisation_for_each_channel(self):
        picture = replace(PICTURE, mean=(1.5, 2.5, -3.0), std=(0.5, 0.25, 128.0))

        assert read(written(inputs=(picture,))).inputs == (picture,)

    @pytest.mark.parametrize("transformation", ScoreTransformation)
    def test_a_calibration_and_a_threshold(self, transformation):
        lines = ((1.0, 0.1, -2.5, 0.5), None, (3.0, 4.0, 5.0, None))
        scores = replace(
            SCORES,
            calibration=ScoreCalibration(transformation, 0.25, lines),
            score_threshold=0.5,
        )

        assert read(written(outputs=(scores,))).outputs == (scores,)

    def test_boxes_with_their_order(self):
        outputs = (
            TensorMetadata(name="boxes", content="bounding_box", box_order=(1, 0, 3, 2)),
            TensorMetadata(name="category", content="feature", labels=("a", "b")),
        )

        assert read(write_three(outputs)).outputs[:2] == outputs

    def test_ports_that_nothing_is_said_of_have_their_tensors_names(self):
        metadata = read(write_metadata(MODEL, ModelMetadata(name="n")))

        assert [each.name for each in metadata.inputs] == ["serving_default_x:0"]
        assert [each.name for each in metadata.outputs] == ["StatefulPartitionedCall:0"]

    @given(
        st.lists(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\ufeff"))
        ),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=100),
    )
    def test_any_text_is_read_back(self, labels, text):
        data = with_output(labels=tuple(labels), description=text)

        assert read(data).outputs[0].labels == tuple(labels)
        assert read(data).outputs[0].description == text

    def test_as_many_labels_as_are_read_can_be_written(self):
        labels = tuple(str(number) for number in range(LABELS_MAX))

        assert read(with_output(labels=labels)).outputs[0].labels == labels


class TestBytes:
    def test_the_same_twice_gives_the_same_bytes(self):
        assert written() == written()

    def test_writing_into_what_was_written_gives_the_same_bytes(self):
        assert written(written()) == written()

    def test_other_metadata_leaves_nothing_of_the_first(self):
        first = written(name="secret", outputs=(replace(SCORES, labels=("hidden",)),))

        assert written(first) == written()

    def test_the_models_own_bytes_are_in_it_as_they_were(self):
        assert detach(written()) == MODEL
        assert MODEL in written()

    def test_another_programs_metadata_is_replaced_and_wiped_out(self):
        notes = TensorNotes("old", 1, files=(("old.txt", 2, ""),))
        packed = models.metadata([TensorNotes("x", 2)], [notes], name="old name")
        other = models.with_metadata(packed, {"old.txt": b"old label\n"})

        data = written(other)

        assert read(data) == WHOLE
        assert data.count(b"M001") == 1
        for old in (b"old name", b"old label", b"old.txt"):
            assert old in other
            assert old not in data

    def test_replacing_another_programs_metadata_twice_gives_the_same_bytes(self):
        other = models.with_metadata(models.metadata([], [], name="old"), {"a.txt": b"a"})

        assert written(written(other)) == written(other)

    def test_a_description_that_looks_like_a_models_start_changes_nothing(self):
        tricky = written(description="TFL3" * 500)

        assert written(tricky) == written()
        assert detach(tricky) == MODEL

    def test_the_zip_says_nothing_of_when_and_by_whom_it_was_made(self):
        with zipfile.ZipFile(io.BytesIO(written())) as archive:
            (info,) = archive.infolist()

        assert info.date_time == (1980, 1, 1, 0, 0, 0)
        assert info.compress_type == zipfile.ZIP_STORED
        assert (info.create_system, info.external_attr) == (3, 0o644 << 16)

    def test_offsets_in_the_zip_count_from_the_files_start(self):
        data = written()
        end = data.rindex(b"PK\x05\x06")
        directory = int.from_bytes(data[end + 16 : end + 20], "little")

        assert data[directory : directory + 4] == b"PK\x01\x02"

    def test_outputs_with_the_same_labels_share_a_file(self):
        outputs = tuple(replace(SCORES, name=name) for name in "abc")

        with zipfile.ZipFile(io.BytesIO(write_three(outputs))) as archive:
            assert archive.namelist() == ["labels.txt"]

    def test_outputs_with_other_labels_have_a_file_each(self):
        outputs = tuple(replace(SCORES, labels=(name, "x")) for name in "abc")
        data = write_three(outputs)

        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert archive.namelist() == ["labels.txt", "labels-2.txt", "labels-3.txt"]
        assert [each.labels[0] for each in read(data).outputs] == ["a", "b", "c"]


def write_three(outputs) -> bytes:
    """Into a model of three outputs."""
    model = models.Model()
    graph = model.graph()
    x = graph.tensor("x", (1, 4))
    places = [graph.tensor(name, (1, 4)) for name in "abc"]
    for place in places:
        graph.op("SOFTMAX", [x], [place], models._options("Softmax", beta=1.0))
    graph.between([x], places)
    return write_metadata(model.build(), ModelMetadata(outputs=outputs))


class TestTheModel:
    def test_the_graph_is_as_it_was_to_the_runtimes_own_schema(self):
        before, after = graph_of(MODEL), graph_of(written())

        assert len(after.buffers) == len(before.buffers) + 1
        assert len(after.subgraphs) == len(before.subgraphs)
        assert after.description == before.description
        assert [each.signatureKey for each in after.signatureDefs] == [
            each.signatureKey for each in before.signatureDefs
        ]
        for one, other in zip(before.buffers, after.buffers, strict=False):
            assert np.array_equal(one.data, other.data)

    def test_entries_of_the_converter_stay(self):
        model = models.Model()
        graph = model.graph()
        x, y = graph.tensor("x", (1, 3)), graph.tensor("y", (1, 3))
        graph.op("SOFTMAX", [x], [y], models._options("Softmax", beta=1.0))
        graph.between([x], [y])
        model.attach("min_runtime_version", b"2.3.0")

        entries = graph_of(written(model.build())).metadata

        assert [each.name for each in entries] == [b"min_runtime_version", b"TFLITE_METADATA"]

    def test_answers_are_as_before(self):
        for before, after in zip(answers(MODEL), answers(written()), strict=True):
            assert np.array_equal(before, after)

    def test_weights_stay_as_aligned_as_they_were(self):
        tree = graph_of(MODEL)
        builder = models.flatbuffers.Builder(1024)
        tree.buffers = [AlignedBuffer(each) for each in tree.buffers]
        builder.Finish(tree.Pack(builder), file_identifier=b"TFL3")
        model = bytes(builder.Output())

        assert starts_of_buffers(model) == {0}
        assert starts_of_buffers(written(model)) == {0}


class AlignedBuffer(schema.BufferT):
    """Its bytes start at a multiple of 64."""

    def __init__(self, buffer: schema.BufferT) -> None:
        super().__init__()
        self.data = buffer.data

    def Pack(self, builder):  # noqa: N802 (the generated name)
        if self.data is None:
            return super().Pack(builder)
        data = bytes(self.data)
        builder.StartVector(1, len(data), 64)
        for byte in reversed(data):
            builder.PrependByte(byte)
        place = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, place)
        return schema.BufferEnd(builder)


def starts_of_buffers(data: bytes) -> set[int]:
    """Where the model's weights start, modulo 64; the metadata is the last buffer of a file."""
    model = schema.Model.GetRootAs(data, 0)
    start = np.frombuffer(data, np.uint8).ctypes.data
    buffers = [model.Buffers(number).DataAsNumpy() for number in range(model.BuffersLength())]
    filled = [buffer for buffer in buffers if isinstance(buffer, np.ndarray)]
    weights = [buffer for buffer in filled if bytes(buffer[4:8]) != b"M001"]
    assert len(weights) > 3
    return {int(buffer.ctypes.data - start) % 64 for buffer in weights}


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "word"),
        [
            ({"mean": (1.0,), "std": ()}, "a mean and a std"),
            ({"mean": (), "std": (1.0,)}, "a mean and a std"),
            ({"std": (0.0,)}, "other than 0"),
            ({"std": (1e-60,)}, "other than 0"),
            ({"mean": (float("nan"),)}, "finite"),
            ({"mean": (1e300,)}, "finite"),
            ({"content": "smell"}, "expected one of feature, image"),
            ({"name": "x" * 4001}, "at most 4000"),
            ({"description": "\ud800"}, "UTF-8"),
            ({"labels": ("a\nb",)}, "one line"),
            ({"labels": ("a\r",)}, "one line"),
            ({"labels": ("\ufeffa",)}, "one line"),
            ({"labels": ("\ud800",)}, "UTF-8"),
            ({"labels": ("x",) * (LABELS_MAX + 1)}, "at most 200000"),
            ({"labels": ("x" * 1000,) * 5000}, "at most 4194304"),
            ({"content": "bounding_box", "box_order": (0, 0, 1, 2)}, "0 to 3"),
            ({"score_threshold": float("inf")}, "finite"),
        ],
    )
    def test_what_could_not_be_read_is_refused(self, changes, word):
        with pytest.raises(BadMetadata, match=word):
            written(inputs=(replace(PICTURE, **changes),))

    @pytest.mark.parametrize("kind", ["inputs", "outputs"])
    def test_more_entries_than_the_model_has_are_refused(self, kind):
        with pytest.raises(BadMetadata, match=f"speaks of 2 {kind}, .* has 1"):
            written(**{kind: (PICTURE, PICTURE)})

    @pytest.mark.parametrize(
        "model", [b"", b"TFL3", b"x" * 100, bytes(4) + b"TFL3", b"\xff\xff\xff\x7fTFL3" + bytes(99)]
    )
    def test_what_is_no_model_is_refused(self, model):
        with pytest.raises(BadMetadata, match="cannot be written into the model"):
            written(model)

    def test_weights_behind_the_flatbuffer_are_not_torn_off(self):
        tree = graph_of(MODEL)
        tree.buffers[1].data, tree.buffers[1].offset, tree.buffers[1].size = None, 4096, 64
        builder = models.flatbuffers.Builder(1024)
        builder.Finish(tree.Pack(builder), file_identifier=b"TFL3")

        with pytest.raises(BadMetadata, match="above 2 GB"):
            written(bytes(builder.Output()))


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The bytes with some changed, or the end missing."""
    copy = bytearray(data)
    if rng.random() < 0.3:
        del copy[rng.randrange(len(copy)) :]
    for _ in range(rng.randrange(1, 6)):
        if copy:
            copy[rng.randrange(len(copy))] = rng.randrange(256)
    return bytes(copy)


class TestDamage:
    @pytest.mark.parametrize("start", [MODEL, written(), models.labelled(4)], ids=range(3))
    def test_a_damaged_model_is_refused_or_keeps_its_graph(self, start):
        rng = random.Random(11)
        done = 0

        for _ in range(1500):
            data = damaged(start, rng)
            try:
                result = written(data)
            except BadMetadata:
                continue
            done += 1
            assert read_outline(memoryview(result)) == read_outline(memoryview(data))
            assert read(result).name == "net"

        assert 0 < done < 1500

    @given(st.binary(max_size=300))
    def test_random_bytes_are_refused(self, data):
        with pytest.raises(BadMetadata):
            written(bytes(4) + b"TFL3" + data)

    def test_a_vector_that_points_at_itself_a_million_times_is_refused_soon(self):
        data = bytearray(MODEL)
        root = int.from_bytes(data[:4], "little")
        vtable = root - int.from_bytes(data[root : root + 4], "little", signed=True)
        field = root + int.from_bytes(data[vtable + 12 : vtable + 14], "little")  # the buffers
        vector = field + int.from_bytes(data[field : field + 4], "little")
        data[vector : vector + 4] = (1 << 30).to_bytes(4, "little")

        with pytest.raises(BadMetadata, match="more than"):
            written(bytes(data))


@pytest.mark.shared
class TestRealModels:
    @pytest.fixture(
        params=[
            "mobilenet_v1_0.25_224_float_meta",
            "mobilenet_v1_0.25_224_quant_meta",
            "mobilenet_v2_1.0_224_quant",
            "coco_ssd_mobilenet_v1_quant_meta",
            "yamnet_classifier_meta",
            "mobilenet_v1_0.25_128_quant_edgetpu",
        ]
    )
    def described(self, request, shared_models) -> bytes:
        """A model with metadata that another program wrote."""
        return (shared_models / "models" / f"{request.param}.tflite").read_bytes()

    def test_what_we_read_of_a_file_we_write_into_it(self, described):
        metadata = read(described)

        data = write_metadata(described, metadata)

        assert read(data) == metadata
        assert write_metadata(data, metadata) == data

    @pytest.mark.parametrize(
        "name",
        [
            "cifar10_resnet8_int8",
            "fc_mnist_qat_uint8",
            "hello_world_sine_int8",
            "micro_speech_quantized_int8",
            "mobilenet_v1_0.25_224_quant_meta",
            "movie_review_avg_word_vec",
            "reverse_signature_two_in_two_out",
            "simple_add_dynamic_batch",
            "yamnet_classifier_meta",
        ],
    )
    def test_answers_are_as_before(self, name, shared_models):
        model = (shared_models / "models" / f"{name}.tflite").read_bytes()

        data = write_metadata(model, ModelMetadata(name="n", version="2"))

        assert detach(data) == model or b"TFLITE_METADATA" in model
        for before, after in zip(answers(model), answers(data), strict=True):
            assert np.array_equal(before, after)

    def test_a_model_whose_first_graph_has_no_inputs(self, shared_models):
        model = (shared_models / "models" / "training_linear_regression.tflite").read_bytes()

        data = write_metadata(model, ModelMetadata(name="line"))

        assert read(data).name == "line"
        assert read(data).inputs == ()
        assert [each.signatureKey for each in graph_of(data).signatureDefs] == [
            b"get_weights",
            b"infer",
            b"set_weights",
            b"train",
        ]


class TestOtherTools:
    """MediaPipe's own reader, where it is installed: not a dependency, and large."""

    @pytest.fixture
    def displayer(self):
        try:
            from mediapipe.tasks.python.metadata import metadata  # noqa: PLC0415 (a skip)
        except ImportError as exc:
            pytest.skip(f"needs mediapipe 0.10.21 with its metadata tools: {exc}")
        return metadata.MetadataDisplayer

    def test_mediapipe_reads_what_was_written(self, displayer):
        shown = displayer.with_model_buffer(written())

        text = shown.get_metadata_json()
        assert '"name": "net"' in text
        assert '"type": "TENSOR_AXIS_LABELS"' in text
        assert "127.5" in text
        assert shown.get_packed_associated_file_list() == ["labels.txt"]
        labels = shown.get_associated_file_buffer("labels.txt").decode()
        assert labels == "".join(f"{label}\n" for label in LABELS)

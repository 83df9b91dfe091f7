"""Topics: what asks for a prediction, and where an answer may never go."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.mqtt.topics import Command, Topics, decode_level, encode_level, reply_topic_problem

TOPICS = Topics("box-1", "inferd")


def test_topics_are_those_of_the_contract():
    assert TOPICS.requests == "inferd/box-1/models/+/predict"
    assert TOPICS.shared_requests == "$share/inferd/inferd/any/models/+/predict"
    assert TOPICS.availability == "inferd/box-1/availability"
    assert TOPICS.state == "inferd/box-1/state"
    assert TOPICS.updates == "inferd/box-1/updates"
    assert TOPICS.hints == ("inferd/box-1/updates/refresh", "inferd/any/updates/refresh")
    assert TOPICS.result(Command("m", "m")) == "inferd/box-1/models/m/result"


def test_without_a_group_there_is_no_shared_subscription():
    assert Topics("box-1").shared_requests is None


@pytest.mark.parametrize("device", ["box-1", "any"])
def test_predict_of_this_device_and_of_any_is_a_command(device):
    assert TOPICS.command(f"inferd/{device}/models/m/predict") == Command("m", "m")


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "inferd/box-2/models/m/predict",
        "inferd/box-1/models/m/result",
        "inferd/box-1/models/m/versions/1/predict",
        "other/box-1/models/m/predict",
        "inferd/box-1/models/a/b/predict",
        "/inferd/box-1/models/m/predict",
        "inferd/box-1/models/" + "m" * 2000 + "/predict",
        "inferd/box-1/updates/refresh",
        "inferd/any/updates/refresh",
    ],
)
def test_anything_else_is_no_command(topic):
    assert TOPICS.command(topic) is None


def test_model_names_are_decoded_and_the_result_topic_keeps_their_form():
    command = TOPICS.command("inferd/box-1/models/a%2Fb/predict")

    assert command == Command("a/b", "a%2Fb")
    assert TOPICS.result(command) == "inferd/box-1/models/a%2Fb/result"


@given(st.text(max_size=40))
def test_every_name_is_one_level_and_comes_back(name):
    level = encode_level(name)

    assert not set(level) & set("/+#")
    assert decode_level(level) == name


@pytest.mark.parametrize("char", ["/", "+", "#", "%", "\0", "\n", "\x7f", "\x85"])
def test_characters_that_topics_cannot_hold_are_escaped(char):
    assert encode_level(f"a{char}b").startswith("a%")
    assert char not in encode_level(f"a{char}b").replace("%", "", 1 if char == "%" else 0)


def test_a_percent_sign_that_escapes_nothing_stands_for_itself():
    assert decode_level("50%zz") == "50%zz"


@pytest.mark.parametrize("topic", ["a", "clients/7/answers", "inferd/replies/7", "é/ü", "a b"])
def test_ordinary_reply_topics_are_taken(topic):
    assert reply_topic_problem(topic) == ""


@pytest.mark.parametrize(
    ("topic", "why"),
    [
        ("", "empty"),
        ("a/+/b", "wildcard"),
        ("a/#", "wildcard"),
        ("$SYS/x", "broker"),
        ("$share/g/a", "broker"),
        ("a\0b", "control"),
        ("a\nb", "control"),
        ("\ud800", "UTF-8"),
        ("a" * 65536, "65535"),
        ("é" * 32768, "65535"),
        ("inferd/box-1/models/m/predict", "as a request"),
        ("inferd/box-2/models/m/predict", "as a request"),
        ("inferd/any/models/m/predict", "as a request"),
        ("inferd/box-1/availability", "speaks for"),
        ("inferd/box-2/state", "speaks for"),
        ("inferd/box-2/updates", "speaks for"),
        ("inferd/box-2/updates/refresh", "as a hint"),
        ("inferd/any/updates/refresh", "as a hint"),
    ],
)
def test_topics_that_would_break_something_are_refused_with_the_reason(topic, why):
    assert why in reply_topic_problem(topic)

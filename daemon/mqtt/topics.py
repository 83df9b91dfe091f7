"""Which topic says what: topics to models and back. Pure.

Rules:
1. A model name is one topic level: `/`, `+`, `#`, `%` and control characters are percent-encoded.
2. Only `inferd/<device>/models/<model>/predict` and `inferd/any/models/<model>/predict` ask for a
   prediction.
3. An answer is never published where some appliance would read it as a request or a hint, nor on
   a topic that speaks for an appliance (`availability`, `state`, `updates`).
4. `inferd/<device>/updates/refresh` and `inferd/any/updates/refresh` are hints that there may be
   updates; every appliance hears the second.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote

ROOT = "inferd"
ANY_DEVICE = "any"
"""The device level that every appliance of a group answers for; no appliance may be named so."""

MAX_TOPIC_BYTES = 65535
"""Source: MQTT 5, section 1.5.4: a UTF-8 string has a two byte length."""

_MAX_LEVEL_CHARS = 1024
"""Longer model levels are not read: a name has at most 128 characters, at most 12 each here."""

_RESERVED = frozenset("/+#%\x7f")
_DEVICE_TOPICS = frozenset({"availability", "state", "updates"})


@dataclass(frozen=True, slots=True)
class Command:
    """A request's topic, understood.

    Attributes:
        model: the decoded model name.
        level: the same as it stands in the topic.
    """

    model: str
    level: str


@dataclass(frozen=True, slots=True)
class Topics:
    """Every topic of one appliance.

    Attributes:
        device: the device id as a topic level.
        shared_group: group of the shared subscription; "" for none.
    """

    device: str
    shared_group: str = ""

    @property
    def base(self) -> str:
        """What every topic of this appliance begins with."""
        return f"{ROOT}/{self.device}"

    @property
    def availability(self) -> str:
        """`online` or `offline`, retained."""
        return f"{self.base}/availability"

    @property
    def state(self) -> str:
        """The state document, retained."""
        return f"{self.base}/state"

    @property
    def updates(self) -> str:
        """Events of updates."""
        return f"{self.base}/updates"

    @property
    def hints(self) -> tuple[str, str]:
        """Topics of hints: for this appliance, and for every one (rule 4)."""
        return f"{self.base}/updates/refresh", f"{ROOT}/{ANY_DEVICE}/updates/refresh"

    @property
    def requests(self) -> str:
        """The filter for requests to this appliance."""
        return f"{self.base}/models/+/predict"

    @property
    def shared_requests(self) -> str | None:
        """The filter for requests to any appliance of the group; None when it takes no part."""
        if not self.shared_group:
            return None
        return f"$share/{self.shared_group}/{ROOT}/{ANY_DEVICE}/models/+/predict"

    def result(self, command: Command) -> str:
        """Where the answer goes that has no topic of its own."""
        return f"{self.base}/models/{command.level}/result"

    def command(self, topic: str) -> Command | None:
        """What a message on this topic asks for; None when it is no request to this appliance."""
        match topic.split("/"):
            case [root, device, "models", level, "predict"] if root == ROOT and device in (
                self.device,
                ANY_DEVICE,
            ):
                if len(level) > _MAX_LEVEL_CHARS:
                    return None
                return Command(decode_level(level), level)
        return None


def encode_level(name: str) -> str:
    """A name as one topic level (rule 1); other characters stay as they are."""
    return "".join(_encode_char(char) for char in name)


def decode_level(level: str) -> str:
    """The name a topic level stands for; a `%` that begins no escape stands for itself."""
    return unquote(level, errors="replace")


def reply_topic_problem(topic: str) -> str:
    """Why an answer may not be published on this topic (rule 3), in plain words; "" when it may."""
    if not topic:
        return "it is empty"
    try:
        size_bytes = len(topic.encode())
    except UnicodeEncodeError:
        return "it is not valid UTF-8"
    if size_bytes > MAX_TOPIC_BYTES:
        return f"it is longer than {MAX_TOPIC_BYTES} bytes"
    if "+" in topic or "#" in topic:
        return "it has a wildcard"
    if any(_is_control(char) for char in topic):
        return "it has a control character"
    return _reserved_topic_problem(topic)


def _reserved_topic_problem(topic: str) -> str:
    if topic.startswith("$"):
        return "topics that begin with $ belong to the broker"
    match topic.split("/"):
        case [root, _, "models", _, "predict"] if root == ROOT:
            return "an appliance would read the answer as a request"
        case [root, _, "updates", "refresh"] if root == ROOT:
            return "an appliance would read the answer as a hint"
        case [root, _, last] if root == ROOT and last in _DEVICE_TOPICS:
            return "it speaks for an appliance"
    return ""


def _encode_char(char: str) -> str:
    if char not in _RESERVED and not _is_control(char):
        return char
    return "".join(f"%{byte:02X}" for byte in char.encode())


def _is_control(char: str) -> bool:
    return char < " " or "\x7f" <= char <= "\x9f"

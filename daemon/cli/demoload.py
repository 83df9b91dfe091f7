"""Clients that keep asking, by HTTP and by MQTT, and count what becomes of every request."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from daemon.cli.outcome import CommandError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from daemon.cli.mqttclient import MqttRequester

_PAUSE_S = 0.004
"""Between an answer and the next question: a demo leaves room for what it shows."""
_END_S = 40.0
"""For a request under way: longer than any of them waits."""
_MOST_PROBLEMS = 3


@dataclass(slots=True)
class Tally:
    """What became of one client's requests.

    Attributes:
        answered: by version.
        wrong: of these, by version: another label than the right one.
        problems: of those that were not answered.
    """

    answered: Counter[int] = field(default_factory=Counter)
    wrong: Counter[int] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    @property
    def sent(self) -> int:
        """Requests."""
        return self.answered.total() + len(self.problems)


@dataclass(frozen=True, slots=True)
class Question:
    """A picture, and what each version should call it.

    Attributes:
        labels: by version.
    """

    picture: bytes
    labels: dict[int, str]


class Load:
    """Two clients, from entering the block to leaving it; each asks one question after the other.

    Args:
        questions: asked in turn.
        over: set when there is nobody left to ask; the requester's too.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        ask_http: Callable[[bytes], dict[str, Any]],
        requester: MqttRequester,
        ask_mqtt: Callable[[bytes], dict[str, Any]],
        over: threading.Event,
    ) -> None:
        self._questions = questions
        self._requester = requester
        self._over = over
        self._done = threading.Event()
        self.http, self.mqtt = Tally(), Tally()
        self._clients = [
            threading.Thread(target=self._run, args=(ask, tally), name=f"load-{name}", daemon=True)
            for name, ask, tally in (("http", ask_http, self.http), ("mqtt", ask_mqtt, self.mqtt))
        ]

    def __enter__(self) -> Self:
        self._requester.__enter__()
        self._requester.wait_until_online()
        for client in self._clients:
            client.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._done.set()
        for client in self._clients:
            client.join(_END_S)
        self._requester.__exit__(exc_type, exc, traceback)

    @property
    def problems(self) -> list[str]:
        """Of every request that was not answered."""
        return [*self.http.problems, *self.mqtt.problems]

    @property
    def lost(self) -> int:
        """Requests that were not answered."""
        return len(self.problems)

    @property
    def wrong(self) -> int:
        """Answers with another label than the right one."""
        return (self.http.wrong + self.mqtt.wrong).total()

    @property
    def versions(self) -> set[int]:
        """That have answered."""
        return set(self.http.answered + self.mqtt.answered)

    def answered_by(self, version: int) -> int:
        """Answers of a version so far, by whichever way had fewer."""
        return min(self.http.answered[version], self.mqtt.answered[version])

    def wait_for(self, version: int, count: int, *, timeout_s: float) -> None:
        """Return once a version has answered so often by each way.

        Raises:
            CommandError: it did not in time, or there is no one left to ask.
        """
        deadline = time.monotonic() + timeout_s
        before = self.answered_by(version)
        while self.answered_by(version) < before + count:
            if self._over.wait(_PAUSE_S):
                raise CommandError("the daemon was stopped in the middle of the story")
            if time.monotonic() > deadline:
                raise CommandError(
                    f"version {version} has answered too little in {timeout_s:.0f} s: "
                    f"{'; '.join(self.problems[:_MOST_PROBLEMS])}"
                )

    def _run(self, ask: Callable[[bytes], dict[str, Any]], tally: Tally) -> None:
        number = 0
        while not self._done.is_set() and not self._over.is_set():
            question = self._questions[number % len(self._questions)]
            number += 1
            try:
                answer = ask(question.picture)
            except CommandError as error:
                tally.problems.append(str(error))
            else:
                version = int(answer["version"])
                tally.answered[version] += 1
                if answer["classification"][0]["label"] != question.labels.get(version):
                    tally.wrong[version] += 1
            self._done.wait(_PAUSE_S)

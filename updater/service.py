"""The updater's service: looks, takes every model's steps, obeys the operator, says what it is at.

Who waits for what:
1. One thread decides and acts. It waits for the daemon and the disk, never for a network.
2. Looks (looks.py) and downloads (transfers.py) have threads of their own, and so have reports
   (herald.py): neither a bad network nor a deaf daemon keeps a rollback or a probation waiting.
3. What others ask (control.py) is answered from what is known, or put in a short queue.

Other fleet protocols: `hint` takes "there is something for you", and a `Reporter` is handed the
events (outbox.py). Whoever hints, the bytes come by TUF.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import random
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from updater import atomic
from updater.daemonlink import DaemonLink, DaemonRefused
from updater.device import read_boot_id, read_facts, utc_offset_s
from updater.errors import DaemonUnavailable, Untrusted, UpdateError
from updater.fetch import Limits
from updater.folderlock import locked
from updater.herald import DaemonReporter, Herald
from updater.history import History
from updater.install import Installer
from updater.journal import Journal
from updater.looks import Looks, Order, Outcome, look
from updater.outbox import Outbox
from updater.overview import Overview
from updater.quarantine import Quarantine
from updater.report import Status, daemon_document
from updater.requests import Busy, Refused, Requests, answer
from updater.schedule import first, never
from updater.source import Limits as DocumentLimits
from updater.store import Store
from updater.timekeeper import Timekeeper
from updater.transfers import Transfers
from updater.trust import Trust
from updater.walk import Walk
from updater.wishes import Wished, read_wishes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from updater.desired import Device
    from updater.history import Chain, Line
    from updater.outbox import Reporter
    from updater.quarantine import Case
    from updater.view import View

_log = logging.getLogger(f"inferd.{__name__}")

_PATIENCE_S = 3.0
"""For the deciding thread, which may be in a probe. The daemon waits 5 s for an answer."""
_IMPORT_S = 120.0
"""For the metadata on a stick; a good one takes a second."""
_AFTER_TROUBLE_S = 10.0
"""A disk that cannot be read now is asked again then."""
_STOP_S = 10.0
"""For the step that is under way; a longer one ends with the process, as in a power cut."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the service must be told.

    Attributes:
        state: the updater's own folder, on a disk.
        store, links: releases, and the models' folders with their links.
        daemon_socket: of the inference daemon; its mark lies beside it.
        source: URL or folder of the fleet's repository; "" for none.
        anchor: root.json that the device was provisioned with; b"" for none.
        scratch: name of a folder in memory for looks; None: they work in `state`.
        clock: wall clock, seconds.
    """

    state: Path
    store: Path
    links: Path
    daemon_socket: Path
    device: Device
    source: str
    anchor: bytes
    scratch: Path | None = None
    poll_interval_s: float = 900.0
    download_limits: Limits = field(default_factory=Limits)
    document_limits: DocumentLimits = field(default_factory=DocumentLimits)
    clock: Callable[[], float] = time.time


@dataclass(frozen=True, slots=True)
class _Known:
    """What the looks have found; replaced as a whole.

    Attributes:
        source: of the view.
        problem: why the last look failed.
        checked_at: when one succeeded last, wall clock seconds.
    """

    view: View | None
    source: str
    problem: str = ""
    checked_at: float = 0.0


class UpdateService:
    """All that the updater is, but for its socket and its signals."""

    def __init__(
        self, settings: Settings, *, reporters: Collection[Reporter] | None = None
    ) -> None:
        """Build; nothing is read yet.

        Args:
            reporters: None for the one through the daemon.
        """
        state = settings.state
        self._settings = settings
        self._history = History(state / "history.jsonl")
        self._quarantine = Quarantine(state / "quarantine.json")
        self._store = Store(settings.store, settings.links)
        self._trust = Trust(
            state,
            settings.anchor,
            clock=settings.clock,
            limits=settings.document_limits,
            scratch=settings.scratch,
        )
        self._time = Timekeeper(self._trust, settings.clock)
        self._looks = Looks(self._trust, self._look_is_over)
        self._transfers = Transfers(settings.download_limits)
        self._daemon = DaemonLink(settings.daemon_socket)
        ear = DaemonLink(settings.daemon_socket)  # of its own: the other one is cut at a stop
        chosen = [DaemonReporter(ear)] if reporters is None else reporters
        outboxes = [Outbox(state / "outbox", self._history, one) for one in chosen]
        self._herald = Herald(ear, self._report, outboxes)
        journal = Journal(state / "journal")
        self._facts = read_facts()
        self._kinds: frozenset[str] = frozenset()
        self._installer = Installer(
            staging=state / "staging",
            journal=journal,
            store=self._store,
            quarantine=self._quarantine,
            history=self._history,
            daemon=self._daemon,
            device=self._facts,
            transfers=self._transfers,
            lives=settings.daemon_socket.with_name("daemon.json"),
            ballast=state / "ballast",
            boot_id=read_boot_id(),
            clock=settings.clock,
        )
        self._walk = Walk(
            self._installer,
            journal,
            staging=state / "staging",
            interval_s=settings.poll_interval_s,
            on_change=self._herald.news,
        )
        self._overview = Overview(self._store, self._walk)
        self._known = _Known(None, settings.source)
        self._wished: Mapping[str, Wished] = {}
        self._folder = ""  # that was imported last
        self._import: Order | None = None
        self._schedule = never()
        self._schedule_lock = threading.Lock()
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._wake = threading.Event()
        self._requests = Requests(self._wake.set)
        self._is_in_turn = True
        self._stopping = threading.Event()
        self._cleanup = contextlib.ExitStack()
        self._thread = threading.Thread(target=self._run, name="updates", daemon=True)
        self.recovered: Future[None] = Future()
        """Done when the disk is in order and steps are taken; fails when that cannot be."""
        self.ended: Future[None] = Future()
        """Done when the deciding thread has ended; fails with what ended it."""

    # What others may call, from any thread.

    def start(self) -> None:
        """Take the state folder, and begin.

        Raises:
            OSError: another updater has it, or the disk refused.
        """
        self._cleanup.enter_context(locked(self._settings.state))
        self._thread.start()

    def stop(self) -> None:
        """End: what is under way is given up, and goes on at the next start. Bounded."""
        self._stopping.set()
        self._wake.set()
        self._looks.cancel()
        self._daemon.cut()
        if self._thread.ident is not None:
            self._thread.join(_STOP_S)
        self._transfers.stop()
        self._looks.stop()
        self._herald.stop()
        self._requests.stop()
        if not self._thread.is_alive():  # else the lock ends with the process
            self._cleanup.close()

    def run_once(self) -> tuple[Status, str]:
        """Instead of `start`: look once, and bring every model as far as it comes in one go.

        Nobody waits for windows and probations; the next run goes on from there.

        Returns:
            What is known then, and what has gone wrong; "" when nothing has.

        Raises:
            OSError: another updater has the state folder, or the disk refused.
        """
        with locked(self._settings.state):
            try:
                self._recover()
                if self._settings.source:
                    order = Order(self._settings.source)
                    self._take_in(look(self._trust, order, self._stopping.is_set))
                wait_s = self._take_steps()
                while (wait_s <= 0 or self._walk.is_arriving) and not self._stopping.wait(wait_s):
                    wait_s = self._take_steps()
                self._herald.tell()
            finally:
                self._transfers.stop()
            return self.status(), self._trouble()

    def interrupt(self) -> None:
        """End `run_once` soon."""
        self._stopping.set()
        self._daemon.cut()

    def hint(self, origin: str) -> float:
        """Somebody says that there is something new; it carries no trust.

        Args:
            origin: "operator" looks at once; anybody else within the bounds of schedule.py.

        Returns:
            Seconds until the look; 0 also while one is under way, which another will follow.

        Raises:
            Refused: there is no repository to look at.
        """
        if not self._settings.source:
            raise Refused("no repository is configured: updates.source is empty")
        now = time.monotonic()
        with self._schedule_lock:
            before = self._schedule
            self._schedule = before.urged(now) if origin == "operator" else before.hinted(now)
            in_s = self._schedule.in_s(now)
        if origin == "operator":
            self._requests.ask(self._walk.forgive)
        self._wake.set()
        return in_s if math.isfinite(in_s) else 0.0

    def status(self) -> Status:
        """What is known now.

        Raises:
            OSError: the disk cannot be read.
        """
        known, stands, wished = self._known, self._walk.stands, self._wished
        view, time_now = known.view, self._time.now()
        with self._schedule_lock:
            in_s = self._schedule.in_s(time.monotonic())
        return Status(
            device=self._settings.device.id,
            source=known.source,
            checked_at=known.checked_at,
            next_check_in_s=round(in_s, 3) if math.isfinite(in_s) else None,
            is_busy=self._is_in_turn
            or self._wake.is_set()
            or self._looks.is_busy
            or bool(self._settings.source and not math.isfinite(in_s)),
            problem=known.problem or (_expiry(view, time_now.now) if view else ""),
            clock_good=time_now.is_clock_good,
            expires=view.expires if view else {},
            versions=view.versions if view else {},
            models=tuple(
                self._overview.of(stands[model])
                for model in sorted(stands)
                if stands[model].record.digest or model in wished
            ),
        )

    def roll_back(self, model: str) -> int:
        """Go back to the release before, by an operator's word.

        Returns:
            The version gone back to. It may be a while: a probe under way is waited for.

        Raises:
            Refused: there is nothing to go back to.
            Busy: too much is asked for already.
        """
        stand = self._walk.stands.get(model)
        if stand is None or not stand.record.previous:
            raise Refused(f"there is no release of {model[:100]!r} to go back to")
        if stand.record.previous == self._store.current(model):
            raise Refused(f"nothing of {model} is switched that could be turned back")
        version = self._overview.version(model, stand.record.previous)
        asked = self._requests.ask(lambda: self._turn_back(model))
        with contextlib.suppress(TimeoutError):  # it is in the queue, and will be done
            asked.result(_PATIENCE_S)
        return version

    def history(self, *, limit: int, model: str = "") -> tuple[tuple[Line, ...], Chain]:
        """The last events, oldest first, and what the chain of all is like.

        Args:
            model: only of this one; "" for all.

        Raises:
            OSError: the disk cannot be read.
        """
        lines = self._last_lines(limit, model)
        chain = self._history.verify()
        if chain.broken is not None or chain.torn_bytes:
            chain = self._history.verify()  # a line was just being written
        return lines, chain

    def quarantine(self) -> tuple[Case, ...]:
        """The bundles in quarantine, the last failure last.

        Raises:
            OSError: the disk cannot be read.
        """
        return self._quarantine.entries()

    def clear_quarantine(self, digest: str | None) -> tuple[str, ...]:
        """Give bundles another chance.

        Args:
            digest: sha256 of one, or a beginning of it that is no other's; None for all.

        Returns:
            The digests that are out.

        Raises:
            Refused: none is so called, or more than one.
            Busy: a step is under way; nothing was changed.
            OSError: the disk refused.
        """
        return self._requests.result(self._requests.ask(lambda: self._clear(digest)), _PATIENCE_S)

    def import_folder(self, folder: Path) -> dict[str, int]:
        """Look once at a repository in a folder, such as a stick, and take bundles from there.

        Returns:
            The version that is wished of each model now.

        Raises:
            Refused: it is no repository, or not to be believed.
            Busy: another import is under way, or this one takes too long.
        """
        asked: Future[dict[str, int]] = Future()
        order = Order(str(folder), asked)
        self._requests.result(self._requests.ask(lambda: self._ask_for_import(order)), _PATIENCE_S)
        return self._requests.result(asked, _IMPORT_S)

    # The deciding thread.

    def _run(self) -> None:
        try:
            self._recover()
            with self._schedule_lock:
                if self._settings.source:
                    interval_s = self._settings.poll_interval_s
                    self._schedule = first(time.monotonic(), interval_s, jitter=_jitter())
            self._herald.start()
            self.recovered.set_result(None)
            while not self._stopping.is_set():
                wait_s = self._turn()
                self._is_in_turn = wait_s <= 0
                self._wake.wait(wait_s)
                self._is_in_turn = True  # before what woke it is forgotten: see status
                self._wake.clear()
        except BaseException as exc:  # noqa: BLE001 - the top of a thread; the program ends
            _log.exception("the updater cannot go on")
            if not self.recovered.done():
                self.recovered.set_exception(exc)
            self.ended.set_exception(exc)
        else:
            self.ended.set_result(None)

    def _recover(self) -> None:
        atomic.make_folder(self._settings.state / "outbox")
        self._walk.recover()
        try:
            self._known = replace(self._known, view=self._trust.current())
        except (OSError, UpdateError) as exc:
            _log.warning("what was known cannot be read cause=%s", exc)
            self._known = replace(self._known, problem=str(exc))

    def _turn(self) -> float:
        """Do what is to be done now; seconds until there may be more."""
        try:
            self._requests.obey()
            while not self._outcomes.empty():
                self._take_in(self._outcomes.get())
            self._begin_look()
            wait_s = self._take_steps()
        except (OSError, UpdateError) as exc:
            _log.warning("not now cause=%s", exc)
            wait_s = _AFTER_TROUBLE_S
        if self._looks.is_busy:  # its end is told
            return wait_s
        with self._schedule_lock:
            return min(wait_s, self._schedule.in_s(time.monotonic()))

    def _take_steps(self) -> float:
        self._renew_wishes()
        now = self._time.now().now
        return self._walk.go(self._wished, now=now, interrupted=self._is_interrupted)

    def _is_interrupted(self) -> bool:
        return self._stopping.is_set() or self._requests.are_waiting

    def _renew_wishes(self) -> None:
        now = self._time.now().now
        device = replace(self._settings.device, utc_offset_s=utc_offset_s(now))
        view = self._known.view
        self._wished = read_wishes(
            view, device, now=now, places=self._places(), objection=self._objection
        )

    def _objection(self, model: str) -> str:
        try:
            self._store.check_link(model)
        except OSError as exc:
            return str(exc)
        return ""

    def _places(self) -> tuple[str, ...]:
        """Where bundles may be had: first where an operator has pointed to."""
        places = [place for place in (self._folder, self._settings.source) if place]
        return tuple(dict.fromkeys(places)) or ("(no repository: import it again)",)

    # Looks.

    def _look_is_over(self, outcome: Outcome) -> None:
        self._outcomes.put(outcome)
        self._wake.set()

    def _begin_look(self) -> None:
        if self._looks.is_busy:
            return
        if self._import is not None:
            order, self._import = self._import, None
            self._looks.begin(order)
            return
        now = time.monotonic()
        with self._schedule_lock:
            if self._schedule.due > now:
                return
            self._schedule = self._schedule.begun(now)
        self._looks.begin(Order(self._settings.source))

    def _ask_for_import(self, order: Order) -> None:
        if self._import is not None or self._looks.is_asked_for:
            raise Busy("another import is under way")
        self._import = order
        self._looks.cancel()  # whoever stands at the box waits for no server

    def _take_in(self, outcome: Outcome) -> None:
        """Go by what a look has found."""
        order, asked = outcome.order, outcome.order.asked_by
        if asked is None:
            self._plan_next(outcome)
        if outcome.view is not None:
            self._adopt(outcome.view, order)
        elif not outcome.was_cancelled and asked is None:
            _log.warning("a look failed source=%s cause=%s", order.source, outcome.problem)
            self._known = replace(self._known, problem=outcome.problem)
        if asked is not None:
            answer(asked, lambda: self._imported(outcome))
        self._herald.news()

    def _plan_next(self, outcome: Outcome) -> None:
        now, retry_after_s = time.monotonic(), outcome.retry_after_s
        with self._schedule_lock:
            if outcome.was_cancelled:
                self._schedule = self._schedule.interrupted(now)
            elif outcome.view is not None:
                self._schedule = self._schedule.succeeded(now, jitter=_jitter())
            else:
                self._schedule = self._schedule.failed(
                    now, jitter=_jitter(), retry_after_s=retry_after_s
                )

    def _adopt(self, view: View, order: Order) -> None:
        before = self._known.view
        self._known = _Known(view, order.source, checked_at=self._settings.clock())
        self._time.forget()
        if before is None or before.versions != view.versions:
            _log.info("metadata is new source=%s versions=%s", order.source, view.versions)
        self._learn_device()

    def _learn_device(self) -> None:
        """Ask the daemon what models can run on; what it said last holds while it does not say."""
        try:
            kinds = self._daemon.kinds()
        except (DaemonUnavailable, DaemonRefused):
            return
        if kinds != self._kinds:
            self._kinds = kinds
            accelerators = self._facts.accelerators | kinds
            self._installer.learn(replace(self._facts, accelerators=accelerators))
            self._walk.forgive()  # what was refused for want of one may come in now

    def _imported(self, outcome: Outcome) -> dict[str, int]:
        """Have bundles come from the folder that was looked at; the versions that are wished now.

        Raises:
            Refused: the look failed.
            OSError: the disk refused.
        """
        if outcome.view is None:
            raise Refused(outcome.problem)
        self._folder = outcome.order.source
        self._walk.forgive()
        self._note("import", source=self._folder)
        self._renew_wishes()
        return {model: one.version for model, one in self._wished.items()}

    # What operators ask for.

    def _turn_back(self, model: str) -> None:
        if not self._walk.roll_back(model):
            raise Refused(f"there is no release of {model} to go back to")

    def _clear(self, digest: str | None) -> tuple[str, ...]:
        found = {case.digest for case in self._quarantine.entries()}
        if digest is not None:
            found = {one for one in found if one.startswith(digest)}
            if len(found) != 1:
                count = f"{len(found)} bundles" if found else "no bundle"
                raise Refused(f"{count} in quarantine with a sha256 that begins with {digest}")
        for one in sorted(found):
            for case in self._quarantine.clear(one):
                self._note("quarantine cleared", model=case.model, digest=one)
        self._walk.forgive()
        return tuple(sorted(found))

    def _note(self, what: str, **facts: str) -> None:
        self._history.append({"event": what, **facts}, now=self._settings.clock())
        self._herald.news()

    # What is known.

    def _report(self) -> dict[str, object]:
        return daemon_document(self.status(), dict(self._installer.outcomes))

    def _last_lines(self, limit: int, model: str) -> tuple[Line, ...]:
        """The last lines of the history, of one model or of all; no more is read than it takes."""
        most = limit
        while True:
            lines = self._history.read(limit=most)
            found = [line for line in lines if not model or line.event.get("model") == model]
            if len(found) >= limit or len(lines) < most:
                return tuple(found[-limit:])
            most *= 8

    def _trouble(self) -> str:
        """What keeps a look or a model from what is wished, other than its time."""
        if self._stopping.is_set():
            return "interrupted"
        stands = self._walk.stands
        troubles = [f"{model}: {stands[model].trouble}" for model in sorted(stands)]
        return self._known.problem or next((one for one in troubles if one[-2:] != ": "), "")


def _expiry(view: View, now: float) -> str:
    """Why nothing new may be installed by this metadata; "" while it may."""
    try:
        view.check_expiry(now)
    except Untrusted as exc:
        return f"nothing new is installed: {exc}"
    return ""


def _jitter() -> float:
    return random.random()  # noqa: S311 (it spreads load, it hides nothing)

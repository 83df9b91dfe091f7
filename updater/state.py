"""The states of an update of one model, and what may follow what. Pure.

Rules:
1. `advance` is one table. A pair that is not in it is a bug of ours and raises.
2. Trouble that passes (no network, no daemon, a closed window, a full disk) is no event: the
   state stays as it is, and the step is tried again later.
3. An update goes forward through every state in order, and leaves in three ways: COMMITTED, given
   up before anything was switched (ABANDON), or through ROLLING_BACK.
4. A candidate is loaded at most MAX_TRIES times to be probed, and as often to serve. Each try is on
   disk before it begins; a reboot or the daemon's death on the candidate ends it.
5. The moves of one serial are bounded, whatever else goes wrong, and the bound always leaves room
   for the moves back to IDLE.
"""

from __future__ import annotations

from enum import Enum

MAX_TRIES = 2
"""One more than one: a power cut that was not the candidate's fault must not condemn it."""

MAX_TRANSITIONS = 28
"""Moves of one serial, the way back included. An update without a hitch takes 10."""

_WAY_BACK = 2
"""The moves from any state to IDLE: ROLL_BACK, DONE."""


class State(Enum):
    """Where the update of one model stands."""

    IDLE = "idle"
    ASSIGNED = "assigned"  # the signed desired state names another release than the current one
    DOWNLOADING = "downloading"
    VERIFIED = "verified"  # signed, complete and synced in the store
    PROBED = "probed"  # its health samples have passed in a worker of its own
    WAIT_WINDOW = "wait_window"
    TRYING = "trying"  # the link is, or is about to be, the candidate's
    PROBATION = "probation"  # the candidate answers real requests, and is watched
    COMMITTED = "committed"
    ROLLING_BACK = "rolling_back"  # the link is, or is about to be, the previous release's


class Event(Enum):
    """What has been decided or has happened."""

    ASSIGN = "assign"  # another release belongs here
    FETCH = "fetch"  # policy lets it in: get the bytes
    PUBLISH = "publish"  # the bytes are what was signed, and in the store
    PROBE = "probe"  # one more probe is counted, and may begin
    PROBED = "probed"
    AWAIT_WINDOW = "await_window"
    TRY = "try"  # the window is open: the first try is counted, the link may be switched
    RETRY = "retry"  # the try was cut short, and there is another one
    WATCH = "watch"  # the daemon serves the candidate
    COMMIT = "commit"  # the probation is over, and it was good
    ROLL_BACK = "roll_back"  # the candidate has failed, is blocked now, or an operator says so
    ABANDON = "abandon"  # not wanted any more, or refused, before anything was switched
    DONE = "done"  # what a finished update leaves to do is done


_TABLE: dict[State, dict[Event, State]] = {
    State.IDLE: {Event.ASSIGN: State.ASSIGNED, Event.ROLL_BACK: State.ROLLING_BACK},
    State.ASSIGNED: {
        Event.FETCH: State.DOWNLOADING,
        Event.ROLL_BACK: State.ROLLING_BACK,
        Event.ABANDON: State.IDLE,
    },
    State.DOWNLOADING: {
        Event.PUBLISH: State.VERIFIED,
        Event.ROLL_BACK: State.ROLLING_BACK,
        Event.ABANDON: State.IDLE,
    },
    State.VERIFIED: {
        Event.PROBE: State.VERIFIED,
        Event.PROBED: State.PROBED,
        Event.ROLL_BACK: State.ROLLING_BACK,
        Event.ABANDON: State.IDLE,
    },
    State.PROBED: {
        Event.AWAIT_WINDOW: State.WAIT_WINDOW,
        Event.ROLL_BACK: State.ROLLING_BACK,
        Event.ABANDON: State.IDLE,
    },
    State.WAIT_WINDOW: {
        Event.TRY: State.TRYING,
        Event.ROLL_BACK: State.ROLLING_BACK,
        Event.ABANDON: State.IDLE,
    },
    State.TRYING: {
        Event.WATCH: State.PROBATION,
        Event.RETRY: State.TRYING,
        Event.ROLL_BACK: State.ROLLING_BACK,
    },
    State.PROBATION: {
        Event.COMMIT: State.COMMITTED,
        Event.RETRY: State.TRYING,
        Event.ROLL_BACK: State.ROLLING_BACK,
    },
    State.COMMITTED: {Event.DONE: State.IDLE},
    State.ROLLING_BACK: {Event.DONE: State.IDLE},
}

UNDER_TRIAL = frozenset({State.TRYING, State.PROBATION})
"""The states in which the link is, or is about to be, the candidate's."""

_AGAIN = {
    State.VERIFIED: Event.PROBE,
    State.TRYING: Event.RETRY,
    State.PROBATION: Event.RETRY,
}
"""The states in which the candidate may be loaded, and what begins another try."""

_ENDINGS = frozenset({Event.ROLL_BACK, Event.ABANDON, Event.DONE})


def advance(state: State, event: Event) -> State:
    """The state after an event.

    Raises:
        RuntimeError: the event cannot happen in this state; a bug of the caller.
    """
    try:
        return _TABLE[state][event]
    except KeyError:
        raise RuntimeError(f"{event.name} cannot happen in {state.name}") from None


def has_room(event: Event, transitions: int) -> bool:
    """Whether a serial that has moved so often may make this move (rule 5).

    Where it may not, the way back is what is left: ROLL_BACK or ABANDON, then DONE.

    Args:
        transitions: moves made, 0 or more.
    """
    reserved = 0 if event in _ENDINGS else _WAY_BACK
    return transitions < MAX_TRANSITIONS - reserved


def after_restart(state: State, *, tries: int, interrupted: bool) -> Event | None:
    """What a start of the updater makes of the state it finds (rule 4).

    Args:
        tries: begun ones, this one included; 0 in VERIFIED before the first probe.
        interrupted: the machine has booted since the try was counted, or the daemon has died.

    Returns:
        PROBE, RETRY or ROLL_BACK, to be put on disk before the candidate loads; None to go on.
    """
    again = _AGAIN.get(state)
    if again is None or not interrupted or not tries:
        return None
    return again if tries < MAX_TRIES else Event.ROLL_BACK

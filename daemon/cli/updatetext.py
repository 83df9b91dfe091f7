"""How the updater's own documents are shown to people. Pure."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from daemon.cli.text import describe_duration, printable, table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

AT_REST, DOWNLOADING = "idle", "downloading"
_DAY_S = 86_400
_SOON_S = 30 * _DAY_S
_TIMESTAMP_SOON_S = _DAY_S
"""Signed anew every day, for a week or so: a month's notice would be no news."""
_KILOBYTE, _MEGABYTE = 10**3, 10**6
DIGEST_SHOWN = 12

_MODEL_COLUMNS = ("MODEL", "INSTALLED", "STATE", "UPDATE TO", "FOR", "WHY")
_EVENT_COLUMNS = ("NO.", "TIME", "MODEL", "VERSION", "EVENT", "WHY")
_CASE_COLUMNS = ("BUNDLE", "MODEL", "VERSION", "SINCE", "FAILED", "WHY")

_EVENTS = {
    "fetch": "download begins",
    "publish": "downloaded and verified",
    "probed": "probe passed",
    "await_window": "ready to take over",
    "watch": "serves, on probation",
    "commit": "kept",
    "roll_back": "turned back from",
    "abandon": "given up",
    "done": "finished",
}
"""Where the word in the history is not one for people."""
_SAID_IN_COLUMNS = frozenset({"model", "event", "version", "state", "reason"})
_FOR_MACHINES = frozenset({"digest", "length", "previous", "target", "transition"})
_SAID_ONCE = frozenset({"rollout_id", "serial"})
"""In the line that begins an update; the lines after it are of the same one."""
_BEGIN, _END = "assigned", "done"


def describe_time(seconds: float) -> str:
    """Wall clock seconds as this machine's local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def describe_status(document: Mapping[str, Any], now: float) -> str:
    """Where updates stand: how the last look went, and a line for each model."""
    rows = [
        ("device", str(document["device"])),
        ("source", str(document["source"]) or "none: [updates] source is not set"),
        ("looked", _describe_looks(document, now)),
    ]
    if document["problem"]:
        rows.append(("problem", str(document["problem"])))
    if not document["clock_good"]:
        rows.append(("clock", "cannot be right; the times in signed metadata count instead"))
    rows += expiry_rows(document["expires"], now)
    head = table(rows)
    models = document["models"]
    if not models:
        return f"{head}\n\nno update of any model yet"
    return f"{head}\n\n{table([_model_row(each, now) for each in models], _MODEL_COLUMNS)}"


def describe_report(report: Mapping[str, Any], now: float) -> list[tuple[str, str]]:
    """Rows for what the updater has told the daemon: the last look, trouble, what is under way."""
    if not report["enabled"]:
        return [("updates", "off: no updater has said anything")]
    looked = report["checked_at"]
    rows = [("updates", f"looked {_ago(looked, now)}" if looked else "no look has succeeded yet")]
    if report["problem"]:
        rows.append(("  problem", str(report["problem"])))
    rows += [(f"  {role}", text) for role, text in expiry_rows(report["expires"], now)]
    for model in report["models"]:
        state = model["state"].lower().replace("_", " ")
        if model["state"] != AT_REST.upper():
            share = f", {model['progress']:.0%}" if state == DOWNLOADING else ""
            text = f"version {model['version']} {state}{share}"
            rows.append((f"  {model['model']}", _with_reason(text, model["reason"])))
        elif model["reason"]:
            rows.append((f"  {model['model']}", str(model["reason"])))
    return rows


def expiry_rows(expires: Mapping[str, float], now: float) -> list[tuple[str, str]]:
    """A row for what has expired, or soon will; none while all is well."""
    rows = []
    for role, end in sorted(expires.items(), key=lambda item: item[1]):
        if end <= now:
            advice = "nothing new is installed until the publisher has signed it anew"
            rows.append(("expired", f"{role}, on {describe_time(end)}: {advice}"))
        elif end - now < (_TIMESTAMP_SOON_S if role == "timestamp" else _SOON_S):
            left = describe_duration(end - now)
            rows.append(("expires", f"{role}, in {left}; the publisher must sign it anew"))
    return rows


def why(model: Mapping[str, Any]) -> str:
    """What keeps a model's update, or how the last one has ended."""
    return printable(str(model["waiting_for"] or model["reason"]))


def describe_history(events: Sequence[Mapping[str, Any]]) -> str:
    """A line for each event, the last one last."""
    rows = [_event_row(event) for event in events]
    return table(rows, _EVENT_COLUMNS) if rows else "no events"


def describe_event(event: Mapping[str, Any]) -> str:
    """What happened, in words."""
    word = str(event.get("event", ""))
    return _EVENTS.get(word, word)


def describe_chain(chain: Mapping[str, Any]) -> str:
    """Whether the history is what was written."""
    broken = chain["broken"]
    if broken:
        where = f"{broken['file']} line {broken['line']}" if broken["line"] else broken["file"]
        return f"BROKEN at {where}: {broken['problem']}"
    if not chain["last"]:
        return "unbroken: there is none yet"
    span = f"events {chain['first']} to {chain['last']}"
    return f"unbroken: {span}, sha256 of the last {chain['digest']}"


def describe_quarantine(cases: Sequence[Mapping[str, Any]]) -> str:
    """A line for each bundle that has failed here."""
    rows = [
        (
            str(case["digest"])[:DIGEST_SHOWN],
            str(case["model"]),
            str(case["version"]),
            describe_time(case["since"]),
            "once" if case["failures"] == 1 else f"{case['failures']} times",
            str(case["reason"]),
        )
        for case in cases
    ]
    return table(rows, _CASE_COLUMNS) if rows else "no bundle is in quarantine"


def describe_size(there: int, length: int) -> str:
    """How much of a download is there: "12.3 of 40.0 MB"."""
    if length < _MEGABYTE:
        return f"{there / _KILOBYTE:.0f} of {length / _KILOBYTE:.0f} kB"
    return f"{there / _MEGABYTE:.1f} of {length / _MEGABYTE:.1f} MB"


def describe_step(event: Mapping[str, Any]) -> str:
    """What has happened, in a line that says to what and why: "digits version 2: kept: …"."""
    what = str(event.get("model", ""))
    if event.get("version"):
        what += f" version {event['version']}"
    # The end of a way back repeats why it was taken.
    reason = f": {event['reason']}" if event.get("reason") and event["event"] != _END else ""
    return f"{what}: {describe_event(event)}{reason}".removeprefix(": ")


def _ago(at: float, now: float) -> str:
    return f"{describe_duration(max(0.0, now - at))} ago"


def _with_reason(text: str, reason: object) -> str:
    return f"{text}: {reason}" if reason else text


def _describe_looks(document: Mapping[str, Any], now: float) -> str:
    at, in_s = document["checked_at"], document["next_check_in_s"]
    last = _ago(at, now) if at else "never with success"
    if in_s is None:
        return last
    return f"{last}, next in {describe_duration(in_s)}" if in_s > 0 else f"{last}, looking now"


def _model_row(model: Mapping[str, Any], now: float) -> tuple[str, ...]:
    is_at_rest = model["state"] == AT_REST
    return (
        str(model["model"]),
        str(model["current_version"] or "-"),
        str(model["state"]).replace("_", " "),
        "" if is_at_rest else str(model["version"]),
        "" if is_at_rest else describe_duration(max(0.0, now - model["since"])),
        why(model),
    )


def _event_row(line: Mapping[str, Any]) -> tuple[str, ...]:
    event = line["event"]
    word = event.get("event")
    said = _SAID_IN_COLUMNS | _FOR_MACHINES | (frozenset() if word == _BEGIN else _SAID_ONCE)
    more = [f"{key}={fact}" for key, fact in event.items() if key not in said and fact]
    # The end of a way back repeats why it was taken.
    reason = "" if word == _END else str(event.get("reason") or "")
    if event.get("digest") and not event.get("version"):
        more.append(f"bundle {str(event['digest'])[:DIGEST_SHOWN]}")
    return (
        str(line["sequence"]),
        describe_time(line["time"]),
        str(event.get("model", "")),
        str(event.get("version") or ""),
        describe_event(event),
        "; ".join(filter(None, (reason, " ".join(more)))),
    )

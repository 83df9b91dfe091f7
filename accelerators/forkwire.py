"""What the daemon and its fork server say to each other, over a SOCK_SEQPACKET pair. Pure."""

from __future__ import annotations

import struct

# Daemon to fork server: what, and the request's number or a pid.
REQUEST = struct.Struct("<BI")

FORK = 1  # request number; the worker's descriptors come along
KILL = 2  # pid of a child whose descriptor did not arrive; nothing is answered

# Fork server to daemon: what, request number, pid, wait status or errno, peak resident KiB.
ANSWER = struct.Struct("<BIiiq")

READY = 1  # it can fork; its own pid
FORKED = 2  # request number and pid; the pidfd comes along
FAILED = 3  # request number and errno
EXITED = 4  # pid, wait status and peak memory

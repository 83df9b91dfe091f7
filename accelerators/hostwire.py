"""What the daemon and a device's process say to each other, over a SOCK_SEQPACKET pair. Pure."""

from __future__ import annotations

import struct

# Daemon to process: the request's number; the worker's descriptors come along.
JOIN = struct.Struct("<I")

# Process to daemon: what, the request's number, wait status or errno.
TOLD = struct.Struct("<BIi")

JOINED = 1
FAILED = 2  # errno
LEFT = 3  # wait status, as if the worker had been a process

# The outermost function of a worker's thread, with its request's number: when the process crashes,
# faulthandler lists the functions of the thread in which it did.
WORKER_NAME = "worker-{}"

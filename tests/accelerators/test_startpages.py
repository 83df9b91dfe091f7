"""Pages that only the start needed are given back; whatever was written stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from accelerators.startpages import clean_files

REPOSITORY = Path(__file__).resolve().parents[2]


FILE_KIB = """
from accelerators.startpages import give_back_start_pages

def file_kib():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    kib = {line.split()[0]: int(line.split()[1]) for line in lines[1:]}
    return kib["Rss:"] - kib["Anonymous:"]
"""


def mapping(start: int, access: str, *, inode: int = 5, anonymous: int = 0, swap: int = 0) -> str:
    """One mapping of two pages, as the kernel tells it."""
    return (
        f"{start:x}-{start + 0x2000:x} {access} 00000000 fe:00 {inode}      /usr/lib/x.so (a b)\n"
        f"Size:                  8 kB\nRss:                   4 kB\nAnonymous:  {anonymous} kB\n"
        f"Swap:   {swap} kB\nTHPeligible:           0\nVmFlags: rd mr mw me sd\n"
    )


def test_code_and_constants_of_files_are_clean():
    smaps = mapping(0x1000, "r-xp") + mapping(0x5000, "r--p")

    assert list(clean_files(smaps)) == [(0x1000, 0x3000), (0x5000, 0x7000)]


def test_what_was_written_is_never_clean():
    smaps = "".join(
        (
            mapping(0x1000, "r--p", anonymous=4),
            mapping(0x5000, "r--p", swap=4),
            mapping(0x9000, "rw-p"),
            mapping(0xD000, "rw-s"),
        )
    )

    assert list(clean_files(smaps)) == []


def test_memory_without_a_file_is_never_clean():
    assert list(clean_files(mapping(0x1000, "r-xp", inode=0))) == []


def run(program: str) -> list[str]:
    """The words it prints. `file_kib()` is what it has in memory of files."""
    command = [sys.executable, "-c", FILE_KIB + program]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPOSITORY)
    return done.stdout.split()


def test_a_process_goes_on_with_less_memory():
    before, after, answer = run("""
import os
os.environ["OPENBLAS_NUM_THREADS"] = "1"
import ssl, sqlite3, numpy
before = file_kib()
give_back_start_pages()
print(before, file_kib(), numpy.linalg.det(numpy.eye(3)))
ssl.create_default_context()
sqlite3.connect(":memory:").execute("select 1")
""")

    assert int(after) < int(before) / 2
    assert answer == "1.0"


def test_a_process_with_threads_keeps_what_it_has():
    before, after = run("""
import threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
before = file_kib()
give_back_start_pages()
print(before, file_kib())
""")

    assert int(after) >= int(before)

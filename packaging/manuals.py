"""Writes the manual pages and the shell completion from the programs' own parsers.

    python packaging/manuals.py FOLDER

Whatever `--help` says is in them, and nothing else, so they cannot grow old.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import shtab
from argparse_manpage.manpage import Manpage

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from daemon import __main__ as inferd  # noqa: E402 (the tree beside this file)
from daemon.cli import arguments as inferctl  # noqa: E402
from daemon.cli import updaterd  # noqa: E402
from daemon.version import VERSION  # noqa: E402

if TYPE_CHECKING:
    import argparse

_FILES = (
    (r"\fI/etc/inferd/inferd.toml\fR", "the configuration; it explains each of its keys"),
    (r"\fI/etc/inferd/conf.d/*.toml\fR", "read after it, in the order of their names"),
    (r"\fI/etc/inferd/root.json\fR", "the trust anchor for updates"),
    (r"\fI/var/lib/inferd/models/\fR", "what is served: a folder or a .tflite file for each model"),
    (r"\fI/var/lib/inferd-updater/\fR", "metadata, journal, quarantine and history of updates"),
    (r"\fI/run/inferd/\fR", "sockets"),
)


def write_all(folder: Path) -> None:
    """A page and bash's completion for each program."""
    folder.mkdir(parents=True, exist_ok=True)
    programs = (
        (inferd.build_parser(), 8),
        (updaterd.build_parser(), 8),
        (inferctl.build_parser(), 1),
    )
    for parser, section in programs:
        (folder / f"{parser.prog}.{section}").write_text(_page(parser, section))
        (folder / parser.prog).write_text(shtab.complete(parser, "bash"))


def _page(parser: argparse.ArgumentParser, section: int) -> str:
    page = Manpage(parser)
    page.manual = "inferd"
    page.description = (parser.description or "").partition(".")[0]
    page.section = str(section)
    page.version = VERSION
    page.source = f"inferd {VERSION}"
    files = "".join(f".TP\n{path}\n{text}\n" for path, text in _FILES)
    others = "inferd(8), inferd-updater(8), inferctl(1)"
    return f"{page}\n.SH FILES\n{files}.SH SEE ALSO\n{others}\n"


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))

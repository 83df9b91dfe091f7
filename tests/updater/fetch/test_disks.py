"""Folders in a server's place, and disks without room."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from support.badproxy import bad_proxy, cut
from support.fetching import CONTENT, LENGTH, NAME, failure, take

from updater.errors import FetchReason, NoSpace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a small disk of its own needs root")


class TestFolders:
    def test_a_missing_file_is_404(self, site, part):
        assert failure(site, part, name="targets/other").status == 404

    def test_a_missing_folder_is_unreachable(self, site, part):
        assert failure(site / "other", part).reason is FetchReason.UNREACHABLE

    @pytest.mark.parametrize("name", ["../secret", "targets/../../secret", "%2e%2e/secret"])
    def test_no_name_leads_out_of_it(self, site, part, name):
        (site.parent / "secret").write_bytes(CONTENT)

        assert failure(site, part, name=name).status == 404

    @pytest.mark.parametrize("name", ["/etc/passwd", "%2fetc%2fpasswd", "a%00b"])
    def test_no_name_is_absolute_or_cut_short(self, site, part, name):
        assert failure(site, part, name=name).status == 404

    def test_a_pipe_is_no_file(self, site, part):
        os.mkfifo(site / "pipe")

        assert failure(site, part, name="pipe").status == 404

    def test_a_link_is_no_file(self, site, part):
        (site / "link").symlink_to(NAME)

        assert failure(site, part, name="link").status == 404

    def test_a_folder_is_no_file(self, site, part):
        assert failure(site, part, name="targets").status == 404

    @needs_root
    def test_a_stick_that_is_pulled_out_is_a_cut_line(self, tmp_path, part):
        image = tmp_path / "image"
        image.write_bytes(bytes(1 << 20))
        subprocess.run(["/sbin/mkfs.ext2", "-q", "-F", image], check=True)

        with mounted(tmp_path, "-o", "loop", image) as stick:
            with (stick / "a.bundle").open("wb") as file:
                file.write(CONTENT)
                file.flush()
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            os.truncate(image, 0)
            failed = failure(stick, part, name="a.bundle")

        assert failed.reason is FetchReason.CUT
        assert "Input/output error" in str(failed)

    @pytest.mark.parametrize("size", [LENGTH - 1, LENGTH + 1, 0])
    def test_a_file_of_another_length_is_refused_and_the_part_kept(self, site, part, size):
        part.write_bytes(CONTENT[:1000])
        os.truncate(site / NAME, size)

        failed = failure(site, part)

        assert failed.reason is FetchReason.STATUS
        assert part.read_bytes() == CONTENT[:1000]


@needs_root
class TestFullDisks:
    @pytest.mark.parametrize("kind", ["server", "site"])
    def test_room_is_taken_before_the_first_byte(self, request, tmp_path, kind):
        with mounted(tmp_path, "-t", "tmpfs", "-o", "size=128k", "none") as disk:
            with pytest.raises(NoSpace) as refused:
                take(request.getfixturevalue(kind), disk / "part")
            size = (disk / "part").stat().st_size

        assert size == 0
        assert refused.value.needed_bytes == LENGTH

    def test_it_is_no_failure_of_the_network_where_room_cannot_be_taken(self, tmp_path, server):
        image = tmp_path / "image"
        image.write_bytes(bytes(256 * 1024))
        subprocess.run(["/sbin/mkfs.ext2", "-q", "-F", image], check=True)

        with mounted(tmp_path, "-o", "loop", image) as disk:
            with pytest.raises(NoSpace):
                take(server, disk / "part")
            kept = (disk / "part").read_bytes()

        assert kept
        assert CONTENT.startswith(kept)

    def test_it_goes_on_when_there_is_room_again(self, tmp_path, server):
        with mounted(tmp_path, "-t", "tmpfs", "-o", "size=400k", "none") as disk:
            with bad_proxy(server, cut(1000)) as proxy:
                failure(proxy.url, disk / "part")
                (disk / "other").write_bytes(b"x" * 100_000)
                os.truncate(disk / "part", 1000)  # gives the reserved room back
                (disk / "more").write_bytes(b"x" * 50_000)
                with pytest.raises(NoSpace):
                    take(proxy.url, disk / "part")
                (disk / "other").unlink()
                take(proxy.url, disk / "part")

            assert (disk / "part").read_bytes() == CONTENT
            assert [each.range_start for each in proxy.connections] == [None, 1000, 1000]


@contextmanager
def mounted(tmp_path: Path, *how: object) -> Iterator[Path]:
    """A small disk of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", *map(str, how), disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)

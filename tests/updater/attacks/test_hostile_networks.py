"""Whoever has the network, or hands over a stick, and none of the keys."""

from __future__ import annotations

import os
import socket
import struct
import threading
from typing import TYPE_CHECKING, Any

import pytest
from support.attacks import HTML, refused, said
from support.fleet import SHORT, Device

from updater.errors import FetchFailed, FetchReason, TrustReason, Untrusted
from updater.source import Limits

if TYPE_CHECKING:
    from http.server import SimpleHTTPRequestHandler


class TestEndlessData:
    @pytest.mark.parametrize(
        ("path", "role"),
        [("/metadata/timestamp.json", "timestamp"), ("/metadata/2.root.json", "root")],
    )
    def test_it_is_not_taken(self, path, role, server, device):
        server.answers[path] = pour

        assert said(refused(device, server.url)) == (TrustReason.TOO_LARGE, role)

    def test_a_wish_that_goes_on_after_its_signed_length_is_cut(self, fleet, server, device):
        fleet.ship("digits", 2)
        (wish,) = fleet.repository.metadata.newest("fleet").signed.targets.values()
        path = fleet.path / "targets" / wish.get_prefixed_paths()[0]
        path.write_bytes(path.read_bytes() + b" ")

        with pytest.raises(Untrusted) as caught:
            device.trust.refresh(server.url)

        assert said(caught.value) == (TrustReason.TOO_LARGE, "fleet")

    def test_a_wish_signed_as_huge_is_not_even_asked_for(self, fleet, server, device):
        def enlarge(signed: Any) -> None:
            (wish,) = signed.targets.values()
            wish.length = 1 << 40

        fleet.forge_all("fleet", enlarge)

        with pytest.raises(Untrusted) as caught:
            device.trust.refresh(server.url)

        assert said(caught.value) == (TrustReason.TOO_LARGE, "fleet")
        assert not any(path.startswith("/targets/") for path in server.requests[-2:])


def pour(handler: SimpleHTTPRequestHandler) -> None:
    """Go on until the device hangs up."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(bytes(65536))


def stall(handler: SimpleHTTPRequestHandler) -> None:
    """Promise a body, then say nothing until the device hangs up."""
    handler.send_response(200)
    handler.send_header("Content-Length", "500")
    handler.end_headers()
    handler.rfile.read(1)


def drip_body(handler: SimpleHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    _drip(handler)


def drip_head(handler: SimpleHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    _drip(handler)


def _drip(handler: SimpleHTTPRequestHandler) -> None:
    """A byte now and then: never silent, never done."""
    tick = threading.Event()
    while not tick.wait(0.02):
        handler.wfile.write(b" ")


class TestSlowRetrieval:
    @pytest.mark.parametrize("attack", [stall, drip_body, drip_head])
    def test_it_ends_by_the_deadline(self, attack, tmp_path, fleet, server):
        device = Device(tmp_path / "slow", fleet, limits=SHORT)
        server.answers["/metadata/timestamp.json"] = attack

        with pytest.raises(FetchFailed) as caught:
            device.trust.refresh(server.url)

        assert caught.value.reason is FetchReason.TOO_SLOW
        assert device.versions() == {}

    def test_silence_ends_it_sooner(self, tmp_path, fleet, server):
        limits = Limits(silence_s=0.2, patience_s=1000)
        device = Device(tmp_path / "silent", fleet, limits=limits)
        server.answers["/metadata/timestamp.json"] = stall

        with pytest.raises(FetchFailed) as caught:
            device.trust.refresh(server.url)

        assert caught.value.reason is FetchReason.TOO_SLOW


def hang_up(handler: SimpleHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "500")
    handler.end_headers()
    handler.wfile.write(b"{")
    handler.close_connection = True


def reset(handler: SimpleHTTPRequestHandler) -> None:
    """RST instead of an answer."""
    handler.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.request.close()


class TestBadNetwork:
    @pytest.mark.parametrize("fault", [hang_up, reset])
    def test_a_connection_that_is_cut_is_tried_again_later(self, fault, server, device):
        before = device.disk()
        server.answers["/metadata/timestamp.json"] = fault

        with pytest.raises(FetchFailed) as caught:
            device.trust.refresh(server.url)

        assert caught.value.reason is FetchReason.CUT
        assert device.disk() == before

    def test_a_server_that_is_down_is_not_a_slow_one(self, device):
        before = device.disk()

        with pytest.raises(FetchFailed) as caught:
            device.trust.refresh("http://127.0.0.1:9")

        assert caught.value.reason is FetchReason.UNREACHABLE
        assert device.disk() == before

    @pytest.mark.parametrize("path", ["/metadata/2.root.json", "/metadata/timestamp.json"])
    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_a_server_that_is_busy_says_when_to_come_back(self, path, status, server, device):
        server.answer(path, b"later", status=status, Retry_After="120")

        with pytest.raises(FetchFailed) as caught:
            device.trust.refresh(server.url)

        assert (caught.value.status, caught.value.retry_after_s) == (status, 120)

    def test_a_repository_that_is_gone_is_a_matter_for_later(self, tmp_path, server, device):
        server.folder = tmp_path

        with pytest.raises(FetchFailed) as caught:
            device.trust.refresh(server.url)

        assert caught.value.status == 404

    def test_a_captive_portals_page_is_no_metadata(self, server, device):
        server.answer("", HTML, Content_Type="text/html")

        assert said(refused(device, server.url)) == (TrustReason.MALFORMED, "root")

    def test_a_captive_portals_redirect_leads_to_no_metadata(self, server, device):
        server.answer("", b"", status=302, Location=f"{server.url}/login")
        server.answer("/login", HTML, Content_Type="text/html")

        assert said(refused(device, server.url)) == (TrustReason.MALFORMED, "root")

    def test_a_redirect_in_circles_ends(self, server, device):
        server.answer("", b"", status=302, Location=f"{server.url}/again")

        with pytest.raises(FetchFailed) as caught:
            device.trust.refresh(server.url)

        assert caught.value.reason is FetchReason.STATUS


class TestHostileStick:
    def test_a_pipe_in_the_place_of_a_file_holds_nobody(self, fleet, device):
        stick = fleet.copy("stick").path
        (stick / "metadata" / "timestamp.json").unlink()
        os.mkfifo(stick / "metadata" / "timestamp.json")

        with pytest.raises(FetchFailed) as caught:
            device.trust.refresh(str(stick))

        assert caught.value.status == 404

    def test_a_link_in_the_place_of_a_file_is_not_followed(self, fleet, device):
        stick = fleet.copy("stick").path
        (stick / "metadata" / "timestamp.json").unlink()
        (stick / "metadata" / "timestamp.json").symlink_to("/dev/zero")

        with pytest.raises(FetchFailed) as caught:
            device.trust.refresh(str(stick))

        assert caught.value.status == 404

    def test_a_stick_that_is_not_there_is_a_matter_for_later(self, tmp_path, device):
        with pytest.raises(FetchFailed) as caught:
            device.trust.refresh(str(tmp_path / "nowhere"))

        assert caught.value.reason is FetchReason.UNREACHABLE

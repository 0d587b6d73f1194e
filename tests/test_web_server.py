"""What uvicorn leaves open: bounds for a request's head and time, upgrades that nobody makes, what is no HTTP."""

from __future__ import annotations

import socket
import time

import msgspec
import pytest

from director import log
from director.web import server
from tests.processes import until
from tests.web_fixtures import serving, settings_for

BODY = b'{"kept":"whole"}'
START = b"POST /workflows/plain/runs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
LENGTH = b"Content-Length: %d\r\n\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
LIVE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def web(tmp_path):
    with serving(settings_for(tmp_path)) as running:
        yield running


def talk(web, *parts: bytes, pause_s: float = 0.05, timeout_s: float = 5.0) -> bytes:
    """Send the parts one by one; return what comes back until the server closes or is silent for a while."""
    with socket.create_connection(("127.0.0.1", web.port), timeout=timeout_s) as connection:
        for index, part in enumerate(parts):
            time.sleep(pause_s if index else 0)
            connection.sendall(part)
        connection.settimeout(0.5)
        received = b""
        try:
            while data := connection.recv(65536):
                received += data
        except (TimeoutError, ConnectionResetError):
            pass
        return received


def closes_within(web, data: bytes, timeout_s: float) -> bool:
    """Return whether the server ends a connection on which nothing more is sent."""
    with socket.create_connection(("127.0.0.1", web.port), timeout=timeout_s) as connection:
        connection.sendall(data)
        try:
            while connection.recv(65536):
                pass
        except TimeoutError:
            return False
        return True


def payload_of(web, answer: bytes) -> object:
    status, _, rest = answer.partition(b"\r\n")
    assert b" 202 " in status, answer
    run_id = msgspec.json.decode(rest.partition(b"\r\n\r\n")[2])["id"]
    return web.client.get(f"/runs/{run_id}").json()["payload"]


@pytest.mark.parametrize(
    "parts",
    [
        (START + H2C + LENGTH + BODY,),
        (START + H2C + LENGTH, BODY),
        (START[:30], START[30:] + H2C[:10], H2C[10:] + LENGTH[:5], LENGTH[5:] + BODY[:4], BODY[4:]),
        (START + H2C + CHUNKED,),
    ],
    ids=["one packet", "head, then body", "in pieces", "chunked"],
)
def test_a_wish_to_upgrade_is_ignored_and_the_body_kept(web, parts):
    assert payload_of(web, talk(web, *parts)) == {"kept": "whole"}


def test_no_request_hides_in_the_body_of_an_upgrade(web):
    """Given an upgrade whose body is a request, then it is a body; a request after it is one."""
    body = msgspec.json.encode({"text": LIVE.decode()})
    first = START + H2C + b"Content-Length: %d\r\n\r\n" % len(body) + body
    answer = talk(web, first + LIVE)
    assert answer.count(b"HTTP/1.1 202") == 1
    assert answer.count(b"HTTP/1.1 200") == 1
    assert answer.endswith(b'{"status":"live"}')


def test_websockets_are_plain_requests(web):
    upgrade = b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    answer = talk(web, LIVE[:-2] + upgrade + b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"hello\r\n\r\n", 400),
        (b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (START + b"Transfer-Encoding: chunked\r\n\r\nnot a size\r\n", 400),
        (START + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (LIVE[:-2] + b"X: " + b"x" * server.MAX_HEAD_BYTES, 431),
        (b"GET /" + b"x" * server.MAX_HEAD_BYTES, 431),
        (LIVE[:-2] + b"X: " + b"x" * server.MAX_HEAD_BYTES + b"\r\n\r\n", 431),
        (START + LENGTH[:-2] + b"X: " + b"x" * server.MAX_HEAD_BYTES + b"\r\n\r\n" + BODY, 431),
    ],
)
def test_what_is_no_request_is_a_problem_and_ends_the_connection(web, data, status):
    answer = talk(web, data)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"connection: close" in head.lower()
    problem = msgspec.json.decode(body)
    assert problem["status"] == status
    assert problem["detail"]
    assert web.client.get("/health/live").status_code == 200


def test_nonsense_after_a_request_leaves_it_its_answer(web):
    answer = talk(web, START + LENGTH + BODY + b"nonsense\r\n\r\n")
    assert payload_of(web, answer) == {"kept": "whole"}


@pytest.mark.parametrize(
    "data",
    [b"", LIVE[:20], LIVE + LIVE[:20], START + b"Content-Length: 9\r\n\r\n{", START + b"Content-Length: 9\r\n"],
    ids=["nothing", "half a head", "half a second head", "half a body", "a head without an end"],
)
def test_a_connection_that_sends_no_whole_request_is_closed(web, monkeypatch, data):
    monkeypatch.setattr(server, "MESSAGE_S", 0.3)
    assert closes_within(web, data, 3.0)


def test_a_request_that_takes_long_to_answer_is_none_of_them(web, monkeypatch):
    monkeypatch.setattr(server, "MESSAGE_S", 0.3)
    assert web.client.post("/workflows/plain/runs?wait=1", json={}).status_code == 202


def test_who_hangs_up_on_several_requests_is_no_error(web, capfd):
    """Given requests in a row and a connection that closes before their answers, then no traceback is logged."""
    one = START + LENGTH + BODY
    for _ in range(10):
        with socket.create_connection(("127.0.0.1", web.port)) as connection:
            connection.sendall(one * 3)
    until(lambda: len(web.client.get("/runs").json()["runs"]) >= 10, what="the first of each")
    payload_of(web, talk(web, one))
    log.flush()
    assert "Exception in ASGI application" not in capfd.readouterr().err

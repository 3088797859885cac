"""The server under clients that are many, slow, broken or hostile: nothing changes for the others."""

import contextlib
import json
import random
import socket
import threading
import time

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

from agent.test_api import DOCUMENT
from agent_process import agent_process, short_folder
from otlp_receiver import eventually

GET = b"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def agent():
    with (
        short_folder() as folder,
        agent_process(folder, GPUMON_COLLECTORS="disk,host", GPUMON_INTERVALS="disk=1,host=1") as running,
    ):
        eventually(lambda: running.values("system.cpu.utilization"))  # it listens before it has read anything
        yield running


@pytest.fixture
def unchanged(agent):
    """Afterwards it has as many threads and descriptors as before, hardly more memory, and fresh readings."""
    agent.ask("/v1/readings")
    threads, descriptors, memory_kb = agent.threads(), agent.descriptors(), agent.rss_kb()
    yield
    eventually(lambda: agent.threads() == threads, timeout_s=15)
    eventually(lambda: agent.descriptors() <= descriptors, timeout_s=15)
    assert agent.rss_kb() < memory_kb + 8_000
    before = agent.values("system.cpu.utilization")
    eventually(lambda: agent.values("system.cpu.utilization") != before)
    assert all(each["age_s"] < 3 for each in agent.ask("/v1/readings", collector="host")["readings"])
    assert "Traceback" not in agent.log


def connect(agent, timeout_s=5.0):
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(timeout_s)
    client.connect(str(agent.socket))
    return client


def answer(client):
    """All that the server says until it closes."""
    received = b""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while chunk := client.recv(65536):
            received += chunk
    return received


def exchange(agent, data):
    with connect(agent) as client:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
        return answer(client)


def test_two_hundred_clients_at_once(agent, unchanged):
    """All are connected before any of them asks, and all are answered."""
    clients = [connect(agent, 20) for _ in range(200)]
    for client in clients:
        client.sendall(b"GET /v1/readings HTTP/1.1\r\nHost: x\r\n\r\n")
    answers = [answer(client) for client in clients]
    for client in clients:
        client.close()

    assert all(each.startswith(b"HTTP/1.1 200 OK") for each in answers)
    assert all(json.loads(each.partition(b"\r\n\r\n")[2])["readings"] for each in answers)


def test_two_hundred_clients_again_and_again(agent, unchanged):
    """As ranks do, every second: each gets every answer."""
    failures = []

    def ask_often():
        for _ in range(5):
            try:
                assert agent.ask("/v1/readings", collector="host")["readings"]
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=ask_often) for _ in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []


def garbage(random):
    """A request that is none, of one of many kinds."""
    noise = random.randbytes(random.randrange(1, 400))
    line = bytes(random.choices(b"GETPOS /v1.?&=%HTP\r\n:\0\xff", k=random.randrange(1, 200)))
    return random.choice(
        (
            noise,
            line,
            line + b"\r\n\r\n",
            b"GET /v1/readings?" + noise.hex().encode() + b" HTTP/9.9\r\n\r\n",
            b"GET /v1/devices?path=%2F" + b"%2e%2e%2f" * random.randrange(400) + b" HTTP/1.1\r\n\r\n",
            b"GET /" + noise + b" HTTP/1.1\r\nHost: x\r\n\r\n",
            b"POST /v1/readings HTTP/1.1\r\nContent-Length: "
            + str(random.getrandbits(70)).encode()
            + b"\r\n\r\n"
            + noise,
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + noise,
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffff\r\n" + noise,
            b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (each, noise.hex().encode()) for each in range(40)),
            b"GET http://elsewhere/v1/health HTTP/1.1\r\nHost: a\r\nHost: b\r\nContent-Length: 5, 6\r\n\r\n",
            b"GET /v1/health HTTP/1.1\r\n" + b"A" * random.choice((100, 33_000, 70_000)),
            GET * random.randrange(1, 300),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"",
        )
    )


def test_ten_thousand_broken_requests(agent, unchanged):
    """Noise, half requests, lies about lengths, floods of requests over one connection."""
    numbers = random.Random(7)
    for _ in range(10_000):
        exchange(agent, garbage(numbers))

    assert exchange(agent, GET).startswith(b"HTTP/1.1 200 OK")


class _Connection(HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost")
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(self._path)


class _Pool(HTTPConnectionPool):
    def __init__(self, path):
        super().__init__("localhost")
        self._path = path

    def _new_conn(self):
        return _Connection(self._path)


class _Adapter(HTTPAdapter):
    def __init__(self, path):
        super().__init__()
        self._path = path

    def get_connection_with_tls_context(self, request, verify, proxies=None, cert=None):
        return _Pool(self._path)


schema = schemathesis.openapi.from_dict(DOCUMENT)
schema.config.generation.update(modes=list(schemathesis.GenerationMode))


@schema.parametrize()
@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)
def test_every_answer_is_as_the_document_says(case, agent):
    """Requests that fit the OpenAPI document and requests that do not: schemathesis makes them up."""
    with requests.Session() as session:
        session.mount("http://", _Adapter(str(agent.socket)))
        case.call_and_validate(base_url="http://localhost", session=session)


def test_clients_that_dawdle_are_dropped_and_more_than_are_served_wait_for_it(agent, unchanged):
    """One sends a byte now and then, the others nothing at all; whoever comes after them gets an answer."""
    dawdling = connect(agent)
    silent = [connect(agent) for _ in range(300)]
    with connect(agent, 25) as client:
        client.sendall(GET)
        began, is_open = time.monotonic(), True
        while is_open and time.monotonic() - began < 20:
            try:
                dawdling.sendall(b"X")
            except OSError:
                is_open = False
            time.sleep(0.2)
        received = answer(client)
    for each in (*silent, dawdling):
        each.close()

    assert not is_open
    assert received.startswith(b"HTTP/1.1 200 OK")


def test_one_request_per_connection(agent):
    """Further ones on the same connection are not served: that bounds what a client may leave unread."""
    received = exchange(agent, GET * 20)

    assert received.count(b"HTTP/1.1") == 1
    assert b"Connection: close" in received

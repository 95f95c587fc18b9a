"""Who may talk to the server."""

import pytest

from mutoscope.playground.guard import Guard, is_loopback

LOCAL = {"host": "127.0.0.1:8321"}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.3.2.1"])
def test_this_machine_alone_needs_no_token(host: str):
    assert is_loopback(host) and Guard.of(host).token is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org"])
def test_every_other_address_gets_a_token(host: str):
    first, second = Guard.of(host), Guard.of(host)
    assert not is_loopback(host) and first.token != second.token and len(first.token or "") > 20
    assert first.token is not None and first.token not in repr(first)
    assert Guard.of(host, "mine").token == "mine"


def test_the_token_may_come_in_the_address_a_cookie_or_a_header():
    guard, headers = Guard("0.0.0.0", "secret"), {"host": "10.0.0.1:8321"}
    assert guard.problem(headers, {}, {}) is not None
    assert guard.problem(headers, {"token": "wrong"}, {"mutoscope_token": "sécret"}) is not None
    assert guard.problem(headers, {"token": "secret"}, {}) is None
    assert guard.problem(headers, {}, {"mutoscope_token": "secret"}) is None
    assert guard.problem({**headers, "authorization": "Bearer secret"}, {}, {}) is None


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8321", "", "["])
def test_names_that_lead_here_by_rebinding_are_refused(host: str):
    assert Guard.of("127.0.0.1").problem({"host": host}, {}, {}) is not None


@pytest.mark.parametrize("origin", ["https://evil.example", "http://127.0.0.1:9999", "null", "http://[::1"])
def test_pages_of_other_sites_are_refused(origin: str):
    guard = Guard.of("127.0.0.1")
    assert guard.problem({**LOCAL, "origin": origin}, {}, {}) is not None
    assert guard.problem({**LOCAL, "origin": "http://127.0.0.1:8321"}, {}, {}) is None
    assert guard.problem(LOCAL, {}, {}) is None  # programs state no origin

"""Who may talk to the server: the page itself, from an expected host, with the token where one is needed."""

import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import urlsplit

COOKIE = "mutoscope_token"
LOOPBACK_NAMES = {"localhost", "127.0.0.1", "::1"}


def is_loopback(host: str) -> bool:
    """Whether a server bound to this address can be reached from this machine alone."""
    if host in LOOPBACK_NAMES:
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Guard:
    """host: what the server is bound to. token: needed by every request, None where the host is loopback."""

    host: str
    token: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, host: str, token: str | None = None) -> "Guard":
        """A token is made up where one is needed and none is stated."""
        if token is None and not is_loopback(host):
            token = secrets.token_urlsafe(24)
        return cls(host, token)

    def problem(self, headers: Mapping[str, str], query: Mapping[str, str], cookies: Mapping[str, str]) -> str | None:
        """Why a request is refused, or None. Host names of others show DNS rebinding, other origins a foreign page."""
        host = headers.get("host", "")
        if is_loopback(self.host) and _hostname(host) not in LOOPBACK_NAMES:
            return "This server answers to localhost only."
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return "Pages of other sites may not use this server."
        if self.token is None:
            return None
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        shown = (query.get("token", ""), cookies.get(COOKIE, ""), bearer)
        if any(hmac.compare_digest(one.encode(), self.token.encode()) for one in shown):
            return None
        return "This server needs a token: open the address that it printed."


def _hostname(host: str) -> str:
    """Of a Host header; empty where it is malformed."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""

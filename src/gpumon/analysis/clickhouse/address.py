"""`clickhouse://user:password@host:port/database?run=ID&secure=1`: where a database is, and how it is spoken to.

The scheme is short for ClickHouse's HTTP interface. User and password may come from `CLICKHOUSE_USER` and
`CLICKHOUSE_PASSWORD`, where no list of processes and no shell history shows them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from gpumon.errors import RunError
from gpumon.system.own_title import hide_in_title

SCHEME = "clickhouse"
PORT, SECURE_PORT = 8123, 8443
_YES, _NO = ("1", "true", "yes"), ("0", "false", "no", "")
_FILES = ("ca_cert", "client_cert", "client_cert_key")
_SECONDS = ("connect_timeout", "send_receive_timeout")
_COMPRESSIONS = ("none", "lz4", "zstd", "gzip", "br")
_KNOWN = ("run", "secure", "verify", "compress", *_FILES, *_SECONDS)


@dataclass(frozen=True)
class Address:
    """A database; `str` of it is for people and has no password."""

    host: str
    port: int
    database: str = "default"
    user: str = "default"
    password: str = field(default="", repr=False)
    is_secure: bool = False
    run: str | None = None
    settings: Mapping[str, str | bool | float] = field(default_factory=dict)
    """Of TLS and of time, as clickhouse-connect names them."""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{SCHEME}://{host}:{self.port}/{quote(self.database)}{'?secure=1' if self.is_secure else ''}"

    def of_run(self, run: str) -> str:
        """The same with a run's id."""
        return f"{self}{'&' if self.is_secure else '?'}run={quote(run)}"

    def hide(self, text: str) -> str:
        """*text* without the password, should a server or a library repeat it."""
        for secret in {self.password, quote(self.password, safe="")} - {""}:
            text = text.replace(secret, "***")
        return text


def parse(url: str, environment: Mapping[str, str] = os.environ) -> Address:
    """Read a URL; its password is hidden in this process' title from now on.

    Raises:
        RunError: it is none; the text is one line for the user, without a password.
    """
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        raise RunError(f"'{_shown(url)}': the port is no number from 1 to 65535") from None
    if parts.scheme != SCHEME or not parts.hostname:
        raise RunError(f"'{_shown(url)}' is no address of a ClickHouse (clickhouse://user@host:8123/database)")
    if parts.password:
        hide_in_title(parts.password)
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := sorted(set(given) - set(_KNOWN)):
        raise RunError(f"'{unknown[0]}' is no setting of a ClickHouse address (known: {', '.join(_KNOWN)})")
    is_secure = _is_yes("secure", given.pop("secure", ""))
    settings: dict[str, str | bool | float] = {name: given[name] for name in _FILES if given.get(name)}
    settings |= {name: _seconds(name, given[name]) for name in _SECONDS if name in given}
    if "verify" in given:
        settings["verify"] = _is_yes("verify", given["verify"])
    if "compress" in given:
        settings["compress"] = _compression(given["compress"])
    return Address(
        host=parts.hostname,
        port=port or (SECURE_PORT if is_secure else PORT),
        database=unquote(parts.path.strip("/")) or "default",
        user=unquote(parts.username or "") or environment.get("CLICKHOUSE_USER") or "default",
        password=unquote(parts.password or "") or environment.get("CLICKHOUSE_PASSWORD") or "",
        is_secure=is_secure,
        run=given.get("run") or None,
        settings=settings,
    )


def _is_yes(name: str, text: str) -> bool:
    if text.lower() in (*_YES, *_NO):
        return text.lower() in _YES
    raise RunError(f"'{name}={text}' in a ClickHouse address: expected 1 or 0")


def _compression(name: str) -> str | bool:
    if name in _COMPRESSIONS:
        return name != "none" and name
    raise RunError(f"'compress={name}' in a ClickHouse address: expected {', '.join(_COMPRESSIONS)}")


def _seconds(name: str, text: str) -> float:
    with suppress(ValueError):
        if (seconds := float(text)) > 0:
            return seconds
    raise RunError(f"'{name}={text}' in a ClickHouse address: expected seconds")


def _shown(url: str) -> str:
    """The URL without what may be a user and a password."""
    head, at, rest = url.rpartition("@")
    return f"{head.partition('//')[0]}//…@{rest}" if at else url

"""A connection to ClickHouse, through clickhouse-connect; what goes wrong is one line, without a password."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gpumon.analysis.clickhouse.address import Address
from gpumon.errors import RunError

MISSING = "clickhouse-connect is not installed: pip install 'opentelemetry-instrumentation-gpumon[clickhouse]'"
UNKNOWN_IDENTIFIER, UNKNOWN_TABLE, UNKNOWN_DATABASE = 47, 60, 81
_LOGIN = (192, 193, 194, 516)
_DENIED = (164, 497)
_NATIVE_PORTS = (9000, 9440)
_ANSWER = re.compile(
    r"DB::Exception: (?P<why>.*?)(?:\. )?(?:\([A-Z_]{4,}\))? *(?:\(version [^)]*\))? *(?:\(for url .*)?$", re.S
)


class ServerError(RunError):
    """The server refused a statement; `code` is ClickHouse's, 0 where it did not answer at all; `why` its reason."""

    def __init__(self, message: str, code: int = 0, why: str = "") -> None:
        super().__init__(message)
        self.code, self.why = code, why or message


@dataclass(frozen=True)
class Answer:
    """The rows of a query, as in Python's database API."""

    names: tuple[str, ...]
    rows: list[tuple[Any, ...]]

    @property
    def description(self) -> list[tuple[str]]:
        return [(name,) for name in self.names]

    def fetchall(self) -> list[tuple[Any, ...]]:
        return self.rows

    def fetchone(self) -> tuple[Any, ...] | None:
        return self.rows[0] if self.rows else None


class Server:
    """A database of a server. Usable in one thread at a time."""

    def __init__(self, address: Address) -> None:
        """Connect.

        Raises:
            RunError: it cannot be reached, or does not let us in.
        """
        try:
            import clickhouse_connect
        except ImportError:
            raise RunError(MISSING) from None
        self.address = address
        logging.getLogger("clickhouse_connect").addHandler(logging.NullHandler())  # what it says is in our error
        with self._errors():
            self._client = clickhouse_connect.get_client(
                host=address.host,
                port=address.port,
                username=address.user,
                password=address.password,
                database=address.database or None,
                interface="https" if address.is_secure else "http",
                client_name="gpumon",
                autogenerate_session_id=False,  # nothing here outlives a statement, and proxies spread those
                **{"connect_timeout": 10, "send_receive_timeout": 300, **address.settings},
            )

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> Answer:
        """The rows of *sql*; *parameters* stand in it as `{name:Type}`."""
        with self._errors():
            result = self._client.query(sql, parameters=dict(parameters or {}))
        return Answer(tuple(result.column_names), [tuple(row) for row in result.result_rows])

    def command(self, sql: str) -> None:
        """Run a statement that has no rows."""
        with self._errors():
            self._client.command(sql)

    def insert(
        self, table: str, names: Sequence[str], rows: Sequence[Sequence[Any]], settings: Mapping[str, Any]
    ) -> None:
        """Insert rows; times as whole numbers in the column's own unit."""
        with self._errors():
            self._client.insert(table, rows, column_names=list(names), settings=dict(settings))

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        from clickhouse_connect.driver.exceptions import Error

        try:
            yield
        except (Error, OSError) as error:
            raise self._told(error) from None

    def _told(self, error: Exception) -> ServerError:
        address, text = self.address, str(error)
        number = re.search(r"Code: (\d+)|code: (\d+)", text)
        code = int(number[1] or number[2]) if number else 0
        answer = _ANSWER.search(text)
        why = address.hide(" ".join((answer["why"] if answer else _root(error)).split()))[:300]
        if code in _LOGIN:
            return ServerError(
                f"{address} does not let user '{address.user}' in: wrong name or password "
                "(CLICKHOUSE_USER and CLICKHOUSE_PASSWORD set them)",
                code,
            )
        if code == UNKNOWN_DATABASE:
            return ServerError(f"{address}: there is no database '{address.database}'", code)
        if code in _DENIED:
            return ServerError(f"{address}: user '{address.user}' may not do this: {why}", code)
        if code:
            return ServerError(f"{address}: {why}", code, why)
        hint = ""
        if address.port in _NATIVE_PORTS:
            hint = f"; {address.port} is ClickHouse's native port, gpumon speaks HTTP: 8123, with TLS 8443"
        elif not address.is_secure and re.search(r"Connection aborted|closed connection|400 ", text):
            hint = "; does it want TLS? (?secure=1)"
        return ServerError(f"cannot reach {address}: {why}{hint}")


def _root(error: BaseException) -> str:
    """What the innermost of nested errors says."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    reason = getattr(error, "reason", None)
    return str(getattr(error, "strerror", None) or reason or error)

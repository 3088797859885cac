"""To an OTLP receiver: requests of about 1 MiB, one after the other, so that series arrive in order."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from gpumon.errors import RunError
from gpumon.export.outcome import SIGNALS, Outcome
from gpumon.system.own_title import hide_in_title
from gpumon.telemetry import otlp
from gpumon.telemetry.otlp_client import GIVE_UP_S, OtlpClient, Refused
from gpumon.telemetry.otlp_requests import items_of, pieces_of, request_of

REQUEST_BYTES = 2**20
"""Receivers over grpc take 4 MiB, unless told otherwise."""


class OtlpTarget:
    """A receiver; `OTEL_EXPORTER_OTLP_*` say the protocol, headers, certificates and compression."""

    def __init__(self, url: str, outcome: Outcome, give_up_s: float = GIVE_UP_S) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RunError(
                f"'{_shown(url)}' is no address to export to (http://host:4318, https://…, or clickhouse://…)"
            )
        if parts.password:
            hide_in_title(parts.password)
        outcome.target = _shown(url)
        self._outcome = outcome
        self._url = url
        self._give_up_s = give_up_s
        self._clients: dict[str, OtlpClient] = {}
        self._waiting: dict[str, Any] = {}
        self._sizes = dict.fromkeys(SIGNALS, 0)
        self._closed: dict[str, str] = {}  # why a signal is not sent any more

    def __enter__(self) -> OtlpTarget:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients.values():
            client.close()

    def add(self, signal: str, line: dict[str, Any]) -> None:
        request = request_of(signal, line)
        for piece in pieces_of(signal, request, REQUEST_BYTES):
            size = piece.ByteSize()
            if self._sizes[signal] + size > REQUEST_BYTES:
                self._flush(signal)
            if signal in self._waiting:
                self._waiting[signal].MergeFrom(piece)
            else:
                self._waiting[signal] = piece
            self._sizes[signal] += size

    def finish(self) -> None:
        for signal in SIGNALS:
            self._flush(signal)

    def _flush(self, signal: str) -> None:
        request = self._waiting.pop(signal, None)
        self._sizes[signal] = 0
        if request is None:
            return
        items = items_of(signal, request)
        if signal in self._closed:
            self._outcome.refuse(signal, items, self._closed[signal])
            return
        try:
            taken = self._client(signal).send(request)
        except Refused as error:
            why = f"{error}{self._hint(signal)}"
            if error.is_final:
                self._closed[signal] = why
            if error.is_absent and not any(self._outcome.sent.values()):
                self._give_up_s = 0.0  # nobody is there: the other signals are tried once
            self._outcome.refuse(signal, items, why)
            return
        self._outcome.sent[signal] += items - taken.rejected
        if taken.rejected:
            self._outcome.refuse(signal, taken.rejected, taken.why or "rejected, without a reason")

    def _client(self, signal: str) -> OtlpClient:
        if signal not in self._clients:
            self._clients[signal] = OtlpClient(signal, self._url, self._give_up_s)
        return self._clients[signal]

    def _hint(self, signal: str) -> str:
        port, protocol = urlsplit(self._url).port, otlp.protocol_of(signal)
        if port == 4317 and protocol != "grpc":
            return " (4317 is for grpc: OTEL_EXPORTER_OTLP_PROTOCOL=grpc)"
        if port == 4318 and protocol == "grpc":
            return " (4318 is for http: OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf)"
        return ""


def _shown(url: str) -> str:
    return re.sub(r"(?<=//)[^/]*@", "", url)

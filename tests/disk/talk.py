"""Talking to a coordinator over plain HTTP, one request at a time a connection, and remembering which answer was which."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass, field
from typing import Any, Final

TIMEOUT_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Answer:
    """`port` and `nth`: the connection by its client's port, and the place among the answers on it. Status 0: no answer came."""

    port: int
    nth: int
    status: int
    body: Any
    content_type: str = ""
    retry_after: str | None = None

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def error(self) -> str:
        """The problem's code; empty where there is none."""
        return self.body.get("code", "") if isinstance(self.body, dict) and not self.ok else ""


@dataclass(slots=True)
class Talk:
    """One connection, kept open. After one request without an answer it is dead: whether that one arrived is not known."""

    coordinator: int
    _connection: http.client.HTTPConnection | None = None
    _port: int = 0
    _nth: int = 0
    dead: bool = False
    answers: list[Answer] = field(default_factory=list)

    def ask(self, method: str, path: str, body: Any = None) -> Answer:
        try:
            answer = self._ask(method, path, body)
        except (OSError, http.client.HTTPException, json.JSONDecodeError):
            self.dead = True
            answer = Answer(self._port, self._nth, 0, None)
        self.answers.append(answer)
        return answer

    def _ask(self, method: str, path: str, body: Any) -> Answer:
        if self.dead:
            raise ConnectionError("dead")
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self.coordinator, timeout=TIMEOUT_S)
            self._connection.connect()
            self._port = self._connection.sock.getsockname()[1]
        data = None if body is None else json.dumps(body).encode()
        self._connection.request(method, path, data, {"Content-Type": "application/json"} if data is not None else {})
        got = self._connection.getresponse()
        text = got.read()
        nth, self._nth = self._nth, self._nth + 1
        content_type = got.getheader("Content-Type", "")
        body = json.loads(text) if "json" in content_type and text else text.decode()
        return Answer(self._port, nth, got.status, body, content_type, got.getheader("Retry-After"))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self.dead = True

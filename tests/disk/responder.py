"""A producer that is asked: a small HTTP server of the tests' own that answers check-backs, signed, from a table of verdicts."""

from __future__ import annotations

import http.server
import json
import threading
import time
from typing import Any

from halfmsg.checkback import signing


class Responder:
    """`verdicts`: transaction id -> what is answered for it; others are `unknown`. `secret` is what the coordinator gave."""

    def __init__(self) -> None:
        self.verdicts: dict[str, dict[str, Any]] = {}
        self.secret = ""
        self.asked = 0
        responder = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                question, id = json.loads(body), self.headers["webhook-id"]
                answer = responder.answer(question)
                self.send_response(200)
                signed = signing.sign(signing.check_secrets(responder.secret), id, time.time(), answer)
                for name, value in {"Content-Type": "application/json", "Content-Length": str(len(answer)), **signed}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/check"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def answer(self, question: dict[str, Any]) -> bytes:
        self.asked += 1
        found = [{"id": each["id"], **self.verdicts.get(each["id"], {"verdict": "unknown"})} for each in question["transactions"]]
        return json.dumps({"source": question.get("source"), "verdicts": found}).encode()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

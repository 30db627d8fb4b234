"""A mixed load of real requests, each answer turned into what it promises. One seed, one plan; the moments differ."""

from __future__ import annotations

import base64
import random
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from tests.disk.facts import UNKNOWN, Absent, Fact, InHand, Made, Settled, Undecided, of_deliveries, of_transaction, raw
from tests.disk.responder import Responder
from tests.disk.talk import Answer, Talk

PRODUCER, GROUP = "orders", "stock"
PLAIN, ORDERED = "plain", "ordered"
WORKERS: Final = 5

Facts = list[tuple[Answer, list[Fact]]]


@dataclass
class Books:
    """What was sent, what was told, and by which answer."""

    told: Facts = field(default_factory=list)
    may_commit: dict[bytes, bool] = field(default_factory=dict)
    refused: list[Answer] = field(default_factory=list)
    answers: int = 0

    def add(self, other: Books) -> None:
        self.told += other.told
        self.may_commit |= other.may_commit
        self.refused += other.refused
        self.answers += other.answers


@dataclass
class Worker:
    """One client with one connection. Keys and ids are its own, so that what it expects depends on nobody else."""

    name: str
    talk: Talk
    chance: random.Random
    responder: Responder
    books: Books = field(default_factory=Books)
    numbers: dict[str, int] = field(default_factory=dict)
    large: bool = False

    def ask(self, method: str, path: str, body: Any, facts: Callable[[Any], list[Fact]], *refused: Fact) -> Answer:
        """`facts` makes of the answer what it promises; `refused` holds where the answer is a definite no, and nobody asks again."""
        answer = self.talk.ask(method, path, body)
        self.books.answers += 1
        if answer.ok:
            self.books.told.append((answer, facts(answer.body)))
            return answer
        self.books.refused.append(answer)
        if answer.error not in UNKNOWN:
            self.books.told.append((answer, list(refused)))
        return answer

    # --- what is made once ---

    def set_up(self) -> None:
        made = lambda kind, name: lambda _: [Made(kind, name)]  # noqa: E731
        self.ask("PUT", f"/v1/topics/{PLAIN}", {"kind": "unordered"}, made("topic", PLAIN))
        self.ask("PUT", f"/v1/topics/{ORDERED}", {"kind": "sequence", "lanes": 4}, made("topic", ORDERED))
        group = {"topics": [{"topic": PLAIN}, {"topic": ORDERED}], "backoff": {"first_s": 0.05}, "max_attempts": 3}
        self.ask("PUT", f"/v1/groups/{GROUP}", group, made("grp", GROUP))
        producer = self.ask("PUT", f"/v1/producers/{PRODUCER}", {"check_url": self.responder.url}, made("source", PRODUCER))
        if producer.ok:
            self.responder.secret = producer.body["secret"]

    # --- content ---

    def bodies(self, count: int) -> tuple[bytes, ...]:
        size = lambda: self.chance.choice((2_000, 9_000, 30_000)) if self.large else self.chance.randrange(20, 400)  # noqa: E731
        return tuple(self.chance.randbytes(size()) for _ in range(count))

    def content(self, topic: str, bodies: tuple[bytes, ...], **more: Any) -> dict[str, Any]:
        id = str(uuid.UUID(int=self.chance.getrandbits(128), version=4))
        key = {"key": f"{self.name}-{self.chance.randrange(3)}"} if topic == ORDERED else {}
        messages = [
            {"topic": topic, "index": index, "content_type": "application/octet-stream", "data_base64": base64.b64encode(body).decode(), **key}
            for index, body in enumerate(bodies)
        ]
        return {"id": id, "producer": PRODUCER, "messages": messages, **more}

    def sends(self, content: dict[str, Any], *, commits: bool) -> None:
        self.books.may_commit[raw(content["id"])] = commits

    def number(self, content: dict[str, Any]) -> list[int | None]:
        """The next numbers of its key, as a local transaction would draw them; one in ten leaves a gap for a while."""
        drawn: list[int | None] = []
        for message in content["messages"]:
            key = message.get("key")
            if key is None:
                drawn.append(None)
                continue
            self.numbers[key] = self.numbers.get(key, 0) + 1
            drawn.append(self.numbers[key])
        return drawn

    # --- what producers do ---

    def prepare(self, topic: str, *, commits: bool, count: int = 1, first_check_s: float = 300.0) -> tuple[dict[str, Any], Any, tuple[bytes, ...]]:
        bodies = self.bodies(count)
        content = self.content(topic, bodies, first_check_s=first_check_s)
        self.sends(content, commits=commits)
        answer = self.ask("POST", "/v1/transactions", content, lambda view: of_transaction(view, bodies), Absent(raw(content["id"])))
        return content, answer, bodies

    def half_then(self, verb: str, topic: str) -> None:
        content, answer, bodies = self.prepare(topic, commits=verb == "commit", count=self.chance.choice((1, 1, 2, 3)))
        if not answer.ok or verb == "nothing":
            return
        body: dict[str, Any] = {"producer": PRODUCER}
        if verb == "commit":
            body |= {"digest": answer.body["digest"], "numbers": self.number(content)}
        self.ask("POST", f"/v1/transactions/{content['id']}/{verb}", body, lambda view: of_transaction(view, bodies), Undecided(raw(content["id"])))

    def submit(self, topic: str) -> None:
        bodies = self.bodies(self.chance.choice((1, 2)))
        content = self.content(topic, bodies, state="committed")
        for message, number in zip(content["messages"], self.number(content), strict=True):
            if number is not None:
                message["sequence"] = number
        self.sends(content, commits=True)
        self.ask("POST", "/v1/transactions", content, lambda view: of_transaction(view, bodies), Absent(raw(content["id"])))

    def batch(self) -> None:
        """Several operations in one envelope: submits, and halves that nobody decides."""
        ops, sent = [], []
        for _ in range(self.chance.randrange(2, 12)):
            bodies, commits = self.bodies(1), self.chance.random() < 0.7
            content = self.content(PLAIN, bodies, op="submit" if commits else "prepare", first_check_s=300.0)
            if commits:
                del content["first_check_s"]
            self.sends(content, commits=commits)
            ops.append(content)
            sent.append(bodies)

        def facts(answer: dict[str, Any]) -> list[Fact]:
            both = zip(answer["results"], sent, strict=True)
            return [fact for result, bodies in both if "ok" in result for fact in of_transaction(result["ok"], bodies)]

        self.ask("POST", "/v1/batch", {"ops": ops}, facts)

    def asked(self) -> None:
        """A half message about which its producer is asked at once; what is read afterwards is a promise too."""
        committed = self.chance.random() < 0.6
        content, answer, bodies = self.prepare(PLAIN, commits=committed)
        if not answer.ok:
            return
        verdict = {"verdict": "committed", "digest": answer.body["digest"]} if committed else {"verdict": "rolled_back"}
        self.responder.verdicts[answer.body["id"]] = verdict
        self.ask("POST", f"/v1/transactions/{content['id']}/check", None, lambda _: [])
        self.ask("GET", f"/v1/transactions/{content['id']}", None, lambda view: of_transaction(view, bodies))

    # --- what consumers do ---

    def consume(self) -> None:
        want = {"max": 10, "lease_s": 60, "member": self.name}
        fetched = self.ask("POST", f"/v1/groups/{GROUP}/fetch", want, of_deliveries)
        if not fetched.ok:
            return
        for delivery in fetched.body["deliveries"]:
            self.settle(self.chance.choices(("ack", "nack", "reject"), (7, 2, 1))[0], [delivery["token"]])

    def settle(self, what: str, tokens: list[str]) -> None:
        body = {"deliveries": [{"token": token} | ({} if what == "ack" else {"reason": "of the test"}) for token in tokens]}

        def facts(answer: dict[str, Any]) -> list[Fact]:
            return [Settled(token, what) for token, item in zip(tokens, answer["results"], strict=True) if "error" not in item]

        self.ask("POST", f"/v1/groups/{GROUP}/{what}", body, facts, *map(InHand, tokens))


def step(worker: Worker) -> None:
    chance = worker.chance
    topic = chance.choice((PLAIN, ORDERED))
    acts: list[tuple[int, Callable[[], None]]] = [
        (5, lambda: worker.half_then("commit", topic)),
        (2, lambda: worker.half_then("rollback", topic)),
        (1, lambda: worker.half_then("nothing", PLAIN)),
        (3, lambda: worker.submit(topic)),
        (1, worker.batch),
        (1, worker.asked),
        (4, worker.consume),
    ]
    chance.choices([act for _, act in acts], [weight for weight, _ in acts])[0]()


def run(coordinator: int, seed: int, steps: int, *, large: bool = False, until: Callable[[], bool] = lambda: False) -> Books:
    """The load on a port: `WORKERS` clients of `steps` steps each. Ends early where `until` says so or nobody answers."""
    responder = Responder()
    try:
        workers = [Worker(f"w{i}", Talk(coordinator), random.Random(seed * 100 + i), responder, large=large) for i in range(WORKERS)]
        workers[0].set_up()

        def work(worker: Worker) -> None:
            for _ in range(steps):
                if worker.talk.dead or until():
                    return
                step(worker)

        threads = [threading.Thread(target=work, args=(worker,)) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        responder.close()
    books = Books()
    for worker in workers:
        worker.talk.close()
        books.add(worker.books)
    return books

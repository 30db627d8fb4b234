"""The operations of the matrix: what each needs to stand before it, what is done, and which fail points it passes.

Each one is done over the real faces (HTTP, stream, start, timers) to a coordinator of its own. `act` may be said again after a restart, as
a client that got no answer does; what comes of itself (a lease that ends, a check that is due) has no `act`.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Final, LiteralString

from tests.kill.scene import Answers, Scene

Act = Callable[[Scene], Any]
GROUP_POINTS: Final = ("begun", "applied", "committed")
"""Passed by every transaction."""
SHOP: Final = "shop"
SOURCE: Final = "5" * 32
WAL_BYTES: Final = 34 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Operation:
    """`function`: of the service, as a fail point names it. `points`: those it passes, besides those of every transaction; `@2` is the second
    time. `first` readies the store, and ends at the fail point `first_until` if one is named. `until`: the control ends at this fail point,
    for what does not stay as it is. `verdict`: what the producer answers. `said_again`: statuses besides success that a repeat may get.
    `grows`: tables in which each question leaves a line of its own, so that a repeat has two. `asked_beside`: the poller may claim
    what it wakes in the same commit or in the next. `aged`: SQL that lets time pass for the readied store.
    """

    name: str
    function: str
    points: tuple[str, ...] = ()
    act: Act | None = None
    first: Act | None = None
    first_until: str = ""
    until: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    verdict: Mapping[str, Any] | None = None
    said_again: tuple[int, ...] = ()
    grows: tuple[str, ...] = ()
    asked_beside: bool = False
    aged: LiteralString = ""
    writes: bool = True
    in_groups: bool = True

    @property
    def all_points(self) -> tuple[str, ...]:
        return ("begun", *self.points, "applied", "committed") if self.in_groups else self.points


def base(scene: Scene, answers: Answers) -> None:
    """Topics of each kind, a group on each, a producer with a check URL, and one with none yet."""
    for topic, kind in (("notes", "unordered"), ("orders", "sequence"), ("rates", "arrival"), ("bulk", "unordered")):
        scene.must("PUT", f"/v1/topics/{topic}", {"kind": kind, "lanes": 2, "allow_no_group": True})
    for topic in ("notes", "orders"):
        policy = {"lease_s": 3_000, "max_attempts": 2, "backoff": {"first_s": 3_000, "max_s": 3_000}}
        scene.must("PUT", f"/v1/groups/on-{topic}", {"topics": [{"topic": topic}], **policy})
    answers.secret = scene.must("PUT", f"/v1/producers/{SHOP}", {"check_url": answers.url})["secret"]


# --- what is said ---


def id_of(number: int) -> str:
    return f"{number:032x}"


def note(text: str = "n") -> dict[str, Any]:
    return {"topic": "notes", "data": text}


def order(number: int | None = None, key: str = "k") -> dict[str, Any]:
    return {"topic": "orders", "key": key, "data": "o"} | ({} if number is None else {"sequence": number})


def content(id: int, *messages: dict[str, Any], submit: bool = False, **more: Any) -> dict[str, Any]:
    state = {"state": "committed"} if submit else {}
    return {"id": id_of(id), "producer": SHOP, "messages": list(messages), "first_check_s": 86_400, **state, **more}


def prepare(id: int, *messages: dict[str, Any], **more: Any) -> Act:
    def act(scene: Scene) -> Any:
        answer = scene.ask("POST", "/v1/transactions", content(id, *messages, **more))
        if answer is not None and answer[0] < 300:
            scene.facts[f"digest {id}"] = answer[1]["digest"]
        return answer

    return act


def submit(id: int, *messages: dict[str, Any]) -> Act:
    return lambda scene: scene.ask("POST", "/v1/transactions", content(id, *messages, submit=True))


def commit(id: int, numbers: list[int | None] | None = None) -> Act:
    return lambda scene: scene.ask(
        "POST", f"/v1/transactions/{id_of(id)}/commit", {"producer": SHOP, "digest": scene.facts[f"digest {id}"], "numbers": numbers}
    )


def rollback(id: int) -> Act:
    return lambda scene: scene.ask("POST", f"/v1/transactions/{id_of(id)}/rollback", {"producer": SHOP})


def ask(method: str, path: str, body: Any = None) -> Act:
    return lambda scene: scene.ask(method, path, body)


def fetch(topic: str, member: str = "m", **more: Any) -> Act:
    """The tokens are kept under the member's name."""

    def act(scene: Scene) -> Any:
        answer = scene.ask("POST", f"/v1/groups/on-{topic}/fetch", {"member": member, "max": 10, **more})
        if answer is not None and answer[0] == 200:
            scene.facts[f"tokens {member}"] = [each["token"] for each in answer[1]["deliveries"]]
        return answer

    return act


def settle(what: str, topic: str, first: int = 0, last: int | None = None, **more: Any) -> Act:
    """Ack, nack, reject or extend those of what member `m` holds."""

    def act(scene: Scene) -> Any:
        extra = {"by_s": 3_600} if what == "extend" else {}
        deliveries = [{"token": token, **more} for token in scene.facts["tokens m"][first:last]]
        return scene.ask("POST", f"/v1/groups/on-{topic}/{what}", {"deliveries": deliveries, **extra})

    return act


def say(*frames: dict[str, Any]) -> Act:
    def act(scene: Scene) -> Any:
        answers = scene.say({"type": "hello", "client": "matrix", "producers": []}, *frames)
        return None if answers is None else (200, answers)

    return act


def each(*acts: Act) -> Act:
    """One after the other; gives the answer of the last one."""

    def act(scene: Scene) -> Any:
        answer = None
        for one in acts:
            answer = one(scene)
        return answer

    return act


def passing(seconds: float) -> Act:
    return lambda scene: time.sleep(seconds)


HELLO: Final = {"type": "hello", "client": "matrix", "producers": [{"name": SHOP, "source": SOURCE}]}
BEAT: Final = {"type": "beat", "producers": [{"name": SHOP, "source": SOURCE, "beats": ["b1", "b2"]}]}
SUBSCRIBE: Final = {"type": "subscribe", "group": "on-orders", "credits": 0, "member": "m"}
SUBSCRIBE_NOTES: Final = {"type": "subscribe", "group": "on-notes", "credits": 0, "member": "m"}
UNSUBSCRIBE: Final = {"type": "unsubscribe", "group": "on-orders"}


def verdict_now(id: int) -> Act:
    return ask("POST", f"/v1/transactions/{id_of(id)}/check")


def parked(id: int) -> Act:
    return each(prepare(id, note()), ask("POST", f"/v1/transactions/{id_of(id)}/park", {"reason": "test"}))


def forced(id: int, word: str) -> Act:
    return ask("POST", f"/v1/transactions/{id_of(id)}/{word}", {"force": True, "reason": "test"})


def held(scene: Scene, upto: int) -> None:
    """Numbers 2 to `upto` of a key wait for number 1; 500 transactions a batch."""
    for start in range(2, upto + 1, 500):
        ops = [{"op": "submit", **_submitted(number)} for number in range(start, min(start + 500, upto + 1))]
        scene.must("POST", "/v1/batch", {"ops": ops})


def _submitted(number: int) -> dict[str, Any]:
    return {"id": id_of(number), "producer": SHOP, "messages": [order(number)]}


def three_orders(scene: Scene) -> None:
    for number in (1, 2, 3):
        submit(number, order(number))(scene)


def three_notes(scene: Scene) -> None:
    submit(1, note("1"), note("2"), note("3"))(scene)


def grow_wal(scene: Scene) -> None:
    """A reader that stays keeps the WAL from starting anew; what is rolled back leaves nothing but pages."""
    with closing(sqlite3.connect(f"{scene.store.as_uri()}?mode=ro", uri=True, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM topic").fetchone()
        wal = scene.store.with_name(scene.store.name + "-wal")
        number = 100
        while wal.stat().st_size < WAL_BYTES:
            number += 1
            prepare(number, *[{"topic": "bulk", "data": "x" * 1_000_000}] * 4)(scene)
            rollback(number)(scene)


BATCH: Final = ask(
    "POST",
    "/v1/batch",
    {
        "ops": [
            {"op": "prepare", "id": id_of(1), "producer": SHOP, "messages": [note()], "first_check_s": 86_400},
            {"op": "submit", **_submitted(2)},
            {"op": "submit", **_submitted(1) | {"id": id_of(3)}},
        ]
    },
)

OPERATIONS: Final = (
    # what a producer says
    Operation("prepare", "transactions.store_content", ("half_stored", "prepared"), prepare(1, note(), order())),
    Operation("submit", "transactions.store_content", ("half_stored", "released", "released@2"), submit(1, note("1"), note("2"))),
    Operation("submit out of turn", "transactions.store_content", ("half_stored", "held"), submit(2, order(2))),
    Operation(
        "submit fills a gap", "transactions.store_content", ("half_stored", "released", "released@2", "released@3"), submit(1, order(1)),
        lambda scene: held(scene, 4),
    ),
    Operation("submit of a prepared one", "transactions.store_content", ("decided", "released"), submit(1, note()), prepare(1, note())),
    Operation("submit of a taken number", "transactions.store_content", ("half_stored",), submit(2, order(1)), submit(1, order(1))),
    Operation(
        "send in order of arrival", "transactions.store_content", ("half_stored", "released"),
        ask("POST", "/v1/topics/rates/messages", {"id": id_of(1), "key": "k", "data": "r"}),
    ),
    Operation("batch", "transactions.store_content", ("half_stored", "half_stored@3", "prepared", "held", "released", "released@2"), BATCH),
    Operation(
        "commit", "transactions.decide", ("decided", "released", "released@2"), commit(1, [None, 1]), prepare(1, note(), order()),
    ),
    Operation("commit out of turn", "transactions.decide", ("decided", "held"), commit(2, [2]), prepare(2, order())),
    Operation(
        "commit fills a gap", "transactions.decide", ("decided", "released", "released@2", "released@4"), commit(9, [1]),
        each(prepare(9, order()), lambda scene: held(scene, 4)),
    ),
    Operation(
        "commit of another number", "transactions.decide", (), commit(1, [2]), each(prepare(1, order()), commit(1, [1])),
        said_again=(409,), writes=False,
    ),
    Operation("rollback", "transactions.decide", ("decided",), rollback(1), prepare(1, note(), order())),
    Operation("rollback of an unknown one", "transactions.decide", ("half_stored",), rollback(1)),
    Operation("contrary word", "transactions.decide", (), commit(1), each(prepare(1, note()), rollback(1)), said_again=(409,)),
    # check-backs, and an operator
    Operation(
        "verdict committed", "verdicts.apply_ruling", ("decided", "released"), verdict_now(1), prepare(1, note()),
        verdict={"verdict": "committed", "digest": "digest 1"}, said_again=(409,),
    ),
    Operation(
        "verdict committed out of turn", "verdicts.apply_ruling", ("decided", "held"), verdict_now(2), prepare(2, order()),
        verdict={"verdict": "committed", "digest": "digest 2", "numbers": [2]}, said_again=(409,),
    ),
    Operation(
        "verdict rolled back", "verdicts.apply_ruling", ("decided",), verdict_now(1), prepare(1, note(), order()), verdict={"verdict": "rolled_back"},
        said_again=(409,),
    ),
    Operation(
        "verdict incomplete", "verdicts.apply_ruling", (), verdict_now(1), prepare(1, order()), verdict={"verdict": "committed"},
        grows=("tx_note",),
    ),
    Operation("ask now", "verdicts.claim_one", (), verdict_now(1), prepare(1, note()), until="begun:verdicts.apply_ruling", writes=False),
    Operation(
        "claim of a check", "verdicts.claim_due", (), None, prepare(1, note()), aged="UPDATE tx SET next_check = 1",
        until="begun:verdicts.apply_ruling", verdict={"verdict": "running"},
    ),
    Operation(
        "parked one is asked again", "verdicts.claim_parked", (), None, parked(1), aged="UPDATE tx SET next_check = 1",
        until="begun:verdicts.apply_ruling", verdict={"verdict": "running"},
    ),
    Operation(
        "claims of a dead process", "verdicts.unclaim_all", (), None, prepare(1, note()),
        aged="UPDATE tx SET next_check = 4102444800000, reason = 'being asked'", until="begun:verdicts.claim_due", verdict={"verdict": "running"},
    ),
    Operation("park", "verdicts.park", (), ask("POST", f"/v1/transactions/{id_of(1)}/park", {"reason": "test"}), prepare(1, note())),
    Operation("forced commit", "verdicts.force", ("decided", "released"), forced(1, "commit"), parked(1), said_again=(409,)),
    Operation("forced rollback", "verdicts.force", ("decided",), forced(1, "rollback"), parked(1), said_again=(409,)),
    # consumers
    Operation("fetch", "fetching.fetch", ("handed_out",), fetch("notes"), three_notes),
    Operation("fetch of an ordered lane", "fetching.fetch", ("handed_out",), fetch("orders"), three_orders),
    Operation(
        "fetch of what failed", "fetching.fetch", ("handed_out",), fetch("orders"),
        each(three_orders, fetch("orders"), settle("nack", "orders", 0, 1, delay_s=0.0)),
    ),
    Operation("fetch behind a failed one", "fetching.fetch", (), fetch("orders"), each(
        three_orders, fetch("orders"), settle("nack", "orders", 0, 1), submit(4, order(4)))),
    Operation("ack", "settling.settle", ("settled",), settle("ack", "notes"), each(three_notes, fetch("notes"))),
    Operation("ack of a part", "settling.settle", ("settled",), settle("ack", "notes", 1, 2), each(three_notes, fetch("notes"))),
    Operation("ack in order", "settling.settle", ("settled",), settle("ack", "orders"), each(three_orders, fetch("orders"))),
    Operation("nack", "settling.settle", ("settled",), settle("nack", "notes", 0, 1), each(three_notes, fetch("notes"))),
    Operation("nack in order", "settling.settle", ("settled",), settle("nack", "orders", 0, 1), each(three_orders, fetch("orders"))),
    Operation(
        "nack for the last time", "settling.settle", ("settled",), settle("nack", "orders"),
        each(three_orders, fetch("orders"), settle("nack", "orders", 0, 1, delay_s=0.0), fetch("orders")),
    ),
    Operation("reject", "settling.settle", ("settled",), settle("reject", "notes", 1, 2, reason="no"), each(three_notes, fetch("notes"))),
    Operation("reject in order", "settling.settle", ("settled",), settle("reject", "orders", 0, 1, reason="no"), each(three_orders, fetch("orders"))),
    Operation("extend", "settling.extend", (), settle("extend", "orders"), each(three_orders, fetch("orders"))),
    Operation(
        "lease end", "settling.expire_tick", ("expired",), None, each(three_notes, fetch("notes", lease_s=0.05), passing(0.06)),
        first_until="expired:settling.expire_tick",
    ),
    Operation(
        "lease end in order", "settling.expire_tick", ("expired",), None, each(three_orders, fetch("orders", lease_s=0.05), passing(0.06)),
        first_until="expired:settling.expire_tick",
    ),
    Operation(
        "lease end for the last time", "settling.expire_tick", ("expired",), None, each(
            submit(1, order(1)), fetch("orders"), settle("nack", "orders", delay_s=0.0), fetch("orders", lease_s=0.05), passing(0.06)),
        first_until="expired:settling.expire_tick",
    ),
    Operation(
        "rest of a long gap", "release.drain_tick", ("released", "released@2"), None, each(lambda scene: held(scene, 1_003), submit(1, order(1))),
        first_until="released:release.drain_tick",
    ),
    Operation("comes back", "groups.rejoin", ("settled",), say(SUBSCRIBE), each(three_orders, fetch("orders"))),
    Operation("comes back, without order", "groups.rejoin", ("settled",), say(SUBSCRIBE_NOTES), each(three_notes, fetch("notes"))),
    Operation("goes", "groups.leave", (), say(SUBSCRIBE, UNSUBSCRIBE), each(three_orders, fetch("orders"), settle("ack", "orders"))),
    # what is made, changed and removed
    Operation("topic made", "topics.put", (), ask("PUT", "/v1/topics/new", {"kind": "sequence", "lanes": 4})),
    Operation("topic changed", "topics.put", (), ask("PUT", "/v1/topics/notes", {"kind": "unordered", "lanes": 2, "max_backlog": 7})),
    Operation("topic removed", "topics.remove", (), ask("DELETE", "/v1/topics/rates"), said_again=(404,)),
    Operation("group made", "groups.put", (), ask("PUT", "/v1/groups/new", {"topics": [{"topic": "notes"}, {"topic": "orders"}]}), three_notes),
    Operation("group changed", "groups.put", (), ask("PUT", "/v1/groups/on-notes", {"topics": [{"topic": "notes"}], "lease_s": 7})),
    Operation("group paused", "groups.pause", (), ask("POST", "/v1/groups/on-notes/pause")),
    Operation("group removed", "groups.remove", (), ask("DELETE", "/v1/groups/on-notes"), said_again=(404,)),
    Operation("producer made", "producers.put", (), ask("PUT", "/v1/producers/new", {})),
    Operation("producer removed", "producers.remove", (), ask("DELETE", "/v1/producers/new"), ask("PUT", "/v1/producers/new", {}), said_again=(404,)),
    Operation("hello", "producers.hello", (), say(HELLO)),
    Operation(
        "hello wakes a parked one", "producers.hello", (), say(HELLO), parked(1), until="committed:producers.hello", grows=("tx_note",),
        asked_beside=True,
    ),
    Operation("beat", "producers.beat", (), say(HELLO, BEAT), say(HELLO)),
    # what writes nothing
    Operation("long poll", "groups.get", (), ask("POST", "/v1/groups/on-notes/fetch", {"wait_s": 0.1}), writes=False),
    Operation("readiness", "engine._nothing", (), ask("GET", "/readyz"), writes=False),
    # outside of transactions
    Operation("checkpoint", "", ("checkpoint", "checkpointed"), None, grow_wal, in_groups=False, writes=False),
)  # fmt: skip

NOT_OPERATIONS: Final = {
    "transactions.show": "a part of park, and it reads only",
    "release.drain": "a part of submit, commit, verdict and drain_tick",
    "restoring.begin_again": "restore does it on a file of its own, which no coordinator has yet",
}
"""Functions of the service that have the form of a transaction function and are never given to the writer."""

WHY_NOT: Final = {
    "begun": "it is no transaction",
    "applied": "it is no transaction",
    "committed": "it is no transaction",
    "half_stored": "it stores no new transaction",
    "prepared": "it stores no half message",
    "decided": "it changes no state from undecided to decided",
    "released": "it puts nothing into the log",
    "held": "nothing of it is out of turn",
    "handed_out": "it gives nobody a lease",
    "settled": "it marks no message of a run as done",
    "expired": "it ends no lease",
    "checkpoint": "it is a transaction, and the checkpoint runs between two of them",
}
"""Why an operation does not pass a fail point that it does not name. Shown true by the control run, in which each of these is armed."""

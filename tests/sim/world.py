"""One world of one seed: nodes, their faults, the way back to rest, and the judgement."""

from __future__ import annotations

import asyncio
import logging
import random
import shutil
import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from contextlib import closing
from contextvars import copy_context
from pathlib import Path
from typing import Any, ClassVar

from halfmsg.coordinator import doctor
from halfmsg.coordinator.settings import Check, Groups, Settings
from halfmsg.coordinator.store import failpoints
from halfmsg.coordinator.store.sqlite import file
from halfmsg.txclient import Client, HalfmsgError
from tests.kill import load
from tests.support import history

from . import cast, judgement, operators, planted, till
from .ledger import Ledger
from .loop import SimLoop, Stuck
from .net import Net
from .seams import NODE, Node
from .store import Crash, SimCoordinator

LOAD_S = 10.0
RATE = 3.0
REST_S = 90.0
JUMPS_S = (-31_536_000.0, -3_600.0, -30.0, -3.0, 3.0, 30.0, 3_600.0, 31_536_000.0)
FAR_AHEAD_S = 600_000.0
SKEWS_S = (0.0, 0.0, 1e8, -1e8, 3.0)
EVENTS_KEPT = 60
WAL_PAGES_WIDE = 100
CHECKPOINT = ("checkpoint", "checkpointed")
POINTS = (*failpoints.NAMES, "checkpointed")


class World:
    def __init__(self, seed: int, loop: SimLoop, folder: Path, plant: str | None = None) -> None:
        self.seed, self.loop, self.folder, self.plant = seed, loop, folder, plant
        self.chance = random.Random(seed)
        self.net = loop.net = Net(loop, seed)
        self.ledger = Ledger(load.MAX_ATTEMPTS)
        self.rate = RATE
        self.healed = False
        self.wide = seed % 2 == 0
        """Has it what came after the first worlds: sends in order of arrival, decisions by hand, pauses, backups? The seeds of old play on."""
        self.topics: tuple[str, ...] = (load.ORDERED, load.PLAIN, *([till.TOPIC] if self.wide else []))
        self.groups = (*load.GROUPS, cast.RAW)
        self.told: list[str] = []
        self.states: dict[str, str] = {}
        """What was said last of each told one."""
        self.forced: set[str] = set()
        """Decided by hand, as far as somebody tried to."""
        self.flagged: set[str] = set()
        self.unflagged: set[str] = set()
        """Transactions that came with the flag of a decision by hand, and without."""
        self.answered: dict[str, set[str]] = {"ack": set(), "reject": set()}
        """Tokens of which a consumer was told that its word was taken."""
        self.parked_by_age = False
        """May a transaction be older than it is? The clock went far ahead, and the next start believes it."""
        self.backups: list[operators.Backup] = []
        self.last: deque[str] = deque(maxlen=EVENTS_KEPT)
        self.nodes: dict[str, Node] = {}
        self._mains: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {}
        self._stores = 0
        self._owners: dict[str, dict[Any, Any]] = {}
        self.relays: dict[bytes, Node] = {}
        """Whose name in the lanes of an outbox is which process."""
        self.store = folder / "store-0.db"
        self.book = history.Writer(folder / "history.jsonl", "world")

    # --- told by everybody ---

    @property
    def marks(self) -> Counter[str]:
        return self.ledger.marks

    def mark(self, name: str) -> None:
        self.marks[name] += 1

    def wrong(self, line: str) -> None:
        self.ledger.wrong.append(line)

    def node_here(self) -> Node | None:
        return NODE.get()

    def say(self, text: str) -> None:
        self.last.append(f"{self.loop.time():9.3f} {text}")

    # --- nodes ---

    def start(self, name: str) -> None:
        node = Node(name, self._skews.get(name, 0.0))
        node.owner = self
        self.nodes[name] = node
        context = copy_context()
        context.run(NODE.set, node)
        self.say(f"{name} starts")
        task = context.run(self.loop.create_task, self._mains[name]())
        task.add_done_callback(lambda task: self._ended(name, task), context=context)
        node.tasks.append(task)

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        """No main ends by itself but the coordinator's, and that in good order."""
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Crash):  # in the last checkpoint of a graceful stop
            self.failpoint_fired(error.name)
        elif error is not None:
            self.wrong(f"{name} ended with {error!r}")

    def crash(self, name: str, *, told: bool = True) -> None:
        node = self.nodes[name]
        if not node.alive:
            return
        if told:
            self.say(f"{name} crashes")
        node.alive = False
        self.net.crash(node)
        if name == "coordinator":
            self._keep_store()
        for conn in node.connections:
            conn.close()

    def _keep_store(self) -> None:
        """The file as the dead process left it: closing its connection would tidy up."""
        self._stores += 1
        after = self.folder / f"store-{self._stores}.db"
        for suffix in ("", "-wal", "-sums"):
            before = self.store.with_name(self.store.name + suffix)
            if before.exists():
                shutil.copyfile(before, after.with_name(after.name + suffix))
        self.store = after

    def failpoint_fired(self, name: str) -> None:
        self.mark(f"failpoint_{name}")
        self.say(f"fail point {name}")
        self.crash("coordinator")

    async def _coordinate(self) -> None:
        settings = Settings(
            listen="127.0.0.1:7610", store=str(self.store), drain_s=5.0, stuck_s=1e6,
            check=Check(first_delay_s=load.FIRST_CHECK_S, question_timeout_s=2.0, max_interval_s=4.0),
            group=Groups(lease_s=load.LEASE_S, backoff_first_s=0.1, backoff_max_s=0.5),
        )  # fmt: skip
        coordinator = SimCoordinator(settings)
        node = NODE.get()
        if node is not None:
            node.owner_coordinator = coordinator  # type: ignore[attr-defined]
        await coordinator.start()
        await coordinator.stopped.wait()
        if coordinator.broken is not None:
            self.wrong(f"the store broke: {coordinator.broken!r}")
        await coordinator.stop()

    # --- the play ---

    async def play(self) -> None:
        load.make_databases(self.folder)
        self._skews = {name: self.chance.choice(SKEWS_S) for name in ("shop-a/1", "shop-a/2", "shop-b/1", "stock/1", "stock/2", "billing/1")}
        seed = self.seed * 1_000
        shops = {f"{name}/{number}": name for name, number in (("shop-a", 1), ("shop-a", 2), ("shop-b", 1))}
        self._mains["coordinator"] = self._coordinate
        for at, (process, name) in enumerate(shops.items()):
            self._mains[process] = lambda name=name, process=process, at=at: cast.SimShop(self, name, process, self._fresh(seed + at)).main()  # type: ignore[misc]
        for process in ("stock/1", "stock/2", "billing/1"):
            self._mains[process] = lambda process=process: cast.stock(self, process.partition("/")[0], process)  # type: ignore[misc]
        for at in (1, 2):
            self._mains[f"zombie/{at}"] = lambda at=at: cast.zombie(self, self._fresh(seed + 100 + at))  # type: ignore[misc]
        self._mains["operator"] = lambda: operators.operator(self, self._fresh(seed + 200))
        if self.wide:
            for at in (1, 2):
                self._mains[f"till/{at}"] = lambda at=at: till.Till(self, f"till/{at}", self._fresh(seed + 300 + at), cast.URL).main()  # type: ignore[misc]
            self._mains["caretaker"] = lambda: operators.caretaker(self, self._fresh(seed + 400))
        self.start("coordinator")
        await self._set_up()
        for name in list(self._mains)[1:]:
            self.start(name)
        await self._trouble()
        await self._heal()
        await self._rest()
        if self.plant is not None:
            planted.ENDS[self.plant](self)
        await judgement.judge(self)

    def _fresh(self, seed: int) -> int:
        """A process that comes back does not do the same again."""
        return seed * 100 + self.chance.randrange(100)

    async def _set_up(self) -> None:
        client = Client(cast.URL)
        for name, kind in (load.TOPICS | ({till.TOPIC: "arrival"} if self.wide else {})).items():
            await self._put(client.put_topic, name, kind=kind, lanes=4, allow_no_group=name == load.BULK)
            self.book.add("topic", topic=name, kind=kind)
        topics = list(self.topics)
        for group in self.groups:
            wanted = {"topics": [{"topic": name} for name in topics], "lease_s": load.LEASE_S, "max_attempts": load.MAX_ATTEMPTS}
            await self._put(client.put_group, group, **wanted, backoff={"first_s": 0.1, "max_s": 0.5})
            if group != cast.RAW:
                self.book.add("group", group=group, topics=topics, at=history.ALWAYS)
        for name in load.PRODUCERS:
            await self._put(lambda name: client._put(f"/v1/producers/{name}", {}), name)
        await client.aclose()

    async def _put(self, put: Any, name: str, **fields: Any) -> None:
        for _ in range(50):
            try:
                await put(name, **fields)
                return
            except HalfmsgError:
                await asyncio.sleep(0.1)
        raise Stuck(f"{name} could not be made")

    # --- trouble ---

    async def _trouble(self) -> None:
        until = self.loop.time() + LOAD_S
        while self.loop.time() < until:
            await asyncio.sleep(self.chance.expovariate(1.2))
            kind = self.chance.choices(list(self._FAULTS), weights=[weight for weight, _ in self._FAULTS.values()])[0]
            self._FAULTS[kind][1](self)
            self._watch()
        failpoints.arm("")

    def _kill_coordinator(self) -> None:
        if self.nodes["coordinator"].alive:
            self.mark("coordinator_killed")
            self.crash("coordinator")
        self._back("coordinator")

    def _arm(self) -> None:
        def fall(name: str) -> None:
            if name == "checkpointed":
                self._keep_store()  # as it is now: on its way out the error may pass code that a kill would not
            raise Crash(name)

        name = self.chance.choice(POINTS)
        failpoints.arm(f"{name}@{1 if name in CHECKPOINT else self.chance.choice((1, 1, 2, 5))}", act=fall)
        if name in CHECKPOINT:
            self._checkpoint()
        self._back("coordinator", always=False)

    def _checkpoint(self) -> None:
        coordinator = self.coordinator()
        if coordinator is not None:
            node = self.nodes["coordinator"]
            context = copy_context()
            context.run(NODE.set, node)
            node.tasks.append(context.run(self.loop.create_task, coordinator.engine.checkpoint()))

    def coordinator(self) -> SimCoordinator | None:
        node = self.nodes["coordinator"]
        return getattr(node, "owner_coordinator", None) if node.alive else None

    def _stop_coordinator(self) -> None:
        coordinator = self.coordinator()
        if coordinator is not None and not coordinator.stopped.is_set():
            self.say("coordinator is told to stop")
            self.mark("coordinator_stopped")
            coordinator.stopped.set()
            self.loop.call_later(self.chance.uniform(1.0, 6.0), self.crash, "coordinator")
            self._back("coordinator", after_s=7.0)

    def _back(self, name: str, *, after_s: float = 0.0, always: bool = True) -> None:
        def come() -> None:
            if not self.nodes[name].alive:
                self.start(name)
            elif not always:
                self._back_later(name)

        self.loop.call_later(after_s + self.chance.uniform(0.05, 2.0), come)

    def _back_later(self, name: str) -> None:
        """A fail point may fire whenever; somebody starts it again then."""
        if not self.healed:
            self._back(name, always=False)

    def _one_of(self, *heads: str) -> str:
        return self.chance.choice([name for name in self.nodes if name.startswith(heads)])

    def _kill_shop(self) -> None:
        name = self._one_of("shop", "till")
        self.mark("shop_killed")
        self.crash(name)
        self._back(name, after_s=self.chance.choice((0.0, 4.0)))

    def _kill_consumer(self) -> None:
        name = self._one_of("stock", "billing", "zombie")
        self.mark("consumer_killed")
        self.crash(name)
        self._back(name)

    def _freeze(self) -> None:
        name = self._one_of("coordinator", "shop", "till", "stock", "billing", "zombie")
        node = self.nodes[name]
        until = self.loop.time() + self.chance.uniform(0.5, 2.5 * load.LEASE_S)
        node.frozen_until = max(node.frozen_until, until)
        self.say(f"{name} stands still until {node.frozen_until:.3f}")
        if name.startswith(("shop", "till")):
            self.mark("shop_frozen")
        elif node.alive and until > self.loop.time() + load.LEASE_S:
            self.mark("coordinator_frozen" if name == "coordinator" else "consumer_frozen")

    def _wall(self) -> None:
        name = self._one_of("shop", "till", "stock", "billing", "zombie")
        until = self.loop.time() + self.chance.uniform(0.3, 6.0)
        self.net.wall(name, "coordinator", until)
        self.say(f"{name} and the coordinator cannot reach each other until {until:.3f}")
        self.mark("wall")

    def _cut(self) -> None:
        name = self.chance.choice(list(self.nodes))
        self.net.cut(self.nodes[name])
        self.say(f"all connections of {name} are cut")
        self.mark("cut")

    def _slow(self) -> None:
        self.net.delay_s = self.chance.choice((0.001, 0.02, 0.1, 0.3))
        self.say(f"the network takes {self.net.delay_s} s")
        self.mark("slow_network")

    def _jump(self) -> None:
        step = self.chance.choice(JUMPS_S)
        self._skews["coordinator"] = self._skews.get("coordinator", 0.0) + step
        self.nodes["coordinator"].skew_s = self._skews["coordinator"]
        self.parked_by_age = self.parked_by_age or step > FAR_AHEAD_S
        self.say(f"the coordinator's clock jumps by {step} s")
        self.mark("clock_forward" if step > 0 else "clock_back")

    _FAULTS: ClassVar[dict[str, tuple[int, Callable[[World], None]]]] = {
        "kill_coordinator": (2, _kill_coordinator), "arm": (5, _arm), "stop_coordinator": (1, _stop_coordinator), "kill_shop": (3, _kill_shop),
        "kill_consumer": (2, _kill_consumer), "freeze": (3, _freeze), "wall": (3, _wall), "cut": (2, _cut), "slow": (2, _slow), "jump": (2, _jump),
        "checkpoint": (1, _checkpoint),
    }  # fmt: skip

    def _watch(self) -> None:
        """Owners of lanes, and what waits: rare things that leave no word."""
        with closing(sqlite3.connect(load.database(self.folder, "shop-a"))) as conn:
            if conn.execute("SELECT 1 FROM sqlite_master WHERE name = 'halfmsg_lane'").fetchone():
                rows = conn.execute("SELECT lane, owner FROM halfmsg_lane WHERE owner IS NOT NULL")
                dead = [owner for owner in self._taken_from("relays", rows) if owner in self.relays and not self.relays[owner].alive]
                self.marks["relay_take_over"] += len(dead)
        if not self.store.exists():
            return
        with closing(sqlite3.connect(f"{self.store.as_uri()}?mode=ro", uri=True)) as conn:
            if conn.execute("SELECT 1 FROM sqlite_master WHERE name = 'place'").fetchone():
                self._holds_now(conn)
                rows = conn.execute("SELECT grp || '/' || lane, owner FROM place WHERE owner IS NOT NULL AND owner != ''")
                self.marks["lane_take_over"] += len(self._taken_from("members", rows))
                self.marks["held"] += conn.execute("SELECT count(*) FROM held").fetchone()[0]

    def _holds_now(self, conn: sqlite3.Connection) -> None:
        """Every invariant in the middle of the trouble too: at rest nothing is in a hand."""
        self.ledger.wrong += [f"now: {each.name}: {each.rows[:2]}" for each in doctor.run(conn, sample=5) if each.ok is not True]

    def _taken_from(self, kind: str, rows: Any) -> list[Any]:
        """Whose lanes have another owner than at the last look."""
        before, now = self._owners.get(kind, {}), dict(rows)
        self._owners[kind] = before | now
        return [before[lane] for lane, owner in now.items() if before.get(lane, owner) != owner]

    # --- the end ---

    async def _heal(self) -> None:
        self.say("everything heals")
        self.healed = True
        self.net.tear_down_walls()
        failpoints.arm("")
        for name, node in list(self.nodes.items()):
            if not node.alive:
                self.start(name)
        await asyncio.sleep(8.0)  # a graceful stop may still be under way
        if not self.nodes["coordinator"].alive:
            self.start("coordinator")

    async def _rest(self) -> None:
        """I10: what was begun ends, in a stated time."""
        until = self.loop.time() + REST_S
        while left := judgement.left(self):
            if self.loop.time() > until:
                self.wrong(f"no rest in {REST_S:g} s: {'; '.join(left)}")
                return
            await asyncio.sleep(0.5)


def run(seed: int, folder: Path, plant: str | None = None) -> World:
    """Play one seed to its end, with a wrong end where `plant` names one. Never raises for what the code under test does: that is in `wrong`."""
    from . import seams

    loop = SimLoop(seed)
    world = World(seed, loop, folder, plant)
    ear, logs = cast.Ear(world), [logging.getLogger(name) for name in ("halfmsg", "aiohttp")]
    for each in logs:
        each.addHandler(ear)
    seams.enter(loop, seed)
    failpoints.arm("")
    wal_pages, file.WAL_PAGES = file.WAL_PAGES, WAL_PAGES_WIDE if world.wide else file.WAL_PAGES
    loop.set_exception_handler(lambda loop, context: _unexpected(world, context))
    try:
        loop.run_until_complete(world.play())
    except Stuck as stuck:
        world.wrong(f"stuck: {stuck}")
    finally:
        file.WAL_PAGES = wal_pages
        seams.leave()
        for each in logs:
            each.removeHandler(ear)
        failpoints.arm("")
        for node in world.nodes.values():
            node.alive = False
            for conn in node.connections:
                conn.close()
    return world


def _unexpected(world: World, context: dict[str, Any]) -> None:
    error = context.get("exception")
    text = context.get("message", "")
    if "was destroyed" in text or text.startswith("Unclosed") or isinstance(error, Crash):
        return
    world.wrong(f"loop: {text}: {error!r}")

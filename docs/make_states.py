"""Draws docs/states.md from the state table: `make states`. A test keeps the page up to date."""

from __future__ import annotations

from pathlib import Path

from halfmsg.coordinator import states

PAGE = Path(__file__).with_name("states.md")

HEAD = """# States of a transaction

Drawn by `docs/make_states.py` from the table in `coordinator/states.py`; change that table, then run `make states`.
The rules behind it are in [`protocol.md`](protocol.md).

A transaction is *prepared* (stored, invisible), then exactly once *committed* or *rolled_back*; both are final. *parked* is prepared
with the asking given up for now. What the diagram leaves out changes no state; the table below has all of it.
"""

TABLE_HEAD = """
In the table: `=` the state stays and the answer is a success, `-> state` the state changes, `ignored` nothing is said to anybody,
`refused` the answer is that error code, *listed* it goes to the conflict list as well, a dash cannot happen.
"""


def _word(state: states.State | None) -> str:
    return "none" if state is None else state.word


def _diagram() -> list[str]:
    arrows: dict[tuple[str, str], list[str]] = {}
    for event, row in states.TABLE.items():
        for state, step in row.items():
            if step.to is not None and step.to is not state:
                arrows.setdefault(("[*]" if state is None else state.word, step.to.word), []).append(event.value)
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f"    {start} --> {end}: {', '.join(events)}" for (start, end), events in sorted(arrows.items())]
    lines += [f"    {state.word} --> [*]" for state in states.State if states.is_decided(state)]
    return [*lines, "```"]


def _cell(state: states.State | None, step: states.Step | None) -> str:
    if step is None:
        return "—"
    if step.outcome is states.Outcome.IGNORED:
        text = "ignored"
    elif step.outcome is not states.Outcome.OK:
        text = f"refused `{step.outcome.value}`"
    elif step.to is state:
        text = "="
    else:
        text = f"-> {_word(step.to)}"
    return f"{text}, *listed*" if step.listed else text


def _table() -> list[str]:
    columns: list[states.State | None] = [None, *states.State]
    lines = ["| event | " + " | ".join(_word(state) for state in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for event, row in states.TABLE.items():
        lines.append(f"| `{event.value}` | " + " | ".join(_cell(state, row.get(state)) for state in columns) + " |")
    return lines


def render() -> str:
    """The whole page, the same for the same table."""
    return "\n".join([HEAD, *_diagram(), TABLE_HEAD, *_table()]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")

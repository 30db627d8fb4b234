"""The command line: the one place that reads argv and the environment. Nouns, then verbs; one file a noun, loaded when it is called,
so that `halfmsg --help` costs the interpreter and click, not aiohttp.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from .lazy import LazyRoot

COMMANDS = {
    # name: (module, attribute, one line)
    "demo": ("demo", "demo", "Three processes, kills, and books that balance."),
    "serve": ("serve", "serve", "Run the coordinator."),
    "publish": ("publish", "publish", "Send one committed message."),
    "tail": ("tail", "tail", "Print messages as they become visible; takes nothing from anyone."),
    "tx": ("tx", "tx", "Transactions: what is decided, what is in doubt."),
    "check": ("check", "check", "Ask a producer now, and show its answer."),
    "topic": ("topic", "topic", "Topics."),
    "group": ("group", "group", "Consumer groups."),
    "key": ("key", "key", "Ordering keys, gaps and what is held."),
    "dlq": ("dlq", "dlq", "Dead letters."),
    "producer": ("producer", "producer", "Who is asked, and how that goes."),
    "outbox": ("outbox", "outbox", "Tables in YOUR database, and the relay."),
    "doctor": ("doctor", "doctor", "Check the invariants of the store."),
    "backup": ("backup", "backup", "A checked copy of the store, while it runs."),
    "restore": ("backup", "restore", "A store of a backup."),
    "bench": ("bench", "bench", "Figures of this machine."),
    "config": ("config", "config", "Settings and where they come from."),
}

NOT_BUILT = {
    "consume": "Write a program of your own with halfmsg.Consumer: consumer.run()",
    "sink": "",
    "token": "Without tokens the coordinator listens on loopback only",
    "audit": "Forced decisions are in: halfmsg tx show ID",
    "migrate": "`halfmsg serve` brings the store to the newest schema by itself",
}


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from halfmsg import __version__

        click.echo(f"halfmsg {__version__}")
        ctx.exit()


@click.group(
    cls=LazyRoot,
    package=__name__,
    lazy=COMMANDS,
    not_built=NOT_BUILT,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 the answer is no, 2 wrong usage, 3 unreachable, 4 refused, 5 conflict, 75 busy, 130 interrupted.",
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version.")
def cli() -> None:
    """Save an order and tell other services, as one thing."""


def main(args: Sequence[str] | None = None) -> None:
    """Entry of the `halfmsg` command; ends the process with the exit codes of docs/operations.md."""
    try:
        code = cli.main(args=args, prog_name="halfmsg", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.Abort:
        click.echo("interrupted", err=True)
        code = 130
    sys.exit(code if isinstance(code, int) else 0)

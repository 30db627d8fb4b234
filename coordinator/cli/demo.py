"""`halfmsg demo`: hands over to the sample."""

from __future__ import annotations

from pathlib import Path

import click

from .lazy import later


@click.command()
@click.option("--keep", is_flag=True, help="Leave it running, and keep its data.")
@click.option("--seed", type=int, help="The same orders and the same kills again.")
@click.option("--kills", type=click.IntRange(0, 10_000), help="How many processes to kill.")
@click.option("--data", type=click.Path(path_type=Path), help="Orders to place (CSV, may be .gz).")
def demo(keep: bool, seed: int | None, kills: int | None, data: Path | None) -> None:
    """A coordinator, an order and an inventory service; kills, and books that must balance (exit code 1 if not)."""
    code = later("halfmsg.samples.order_inventory.demo", "run", "demo")(keep=keep, seed=seed, kills=kills, data=data)
    raise click.exceptions.Exit(code or 0)

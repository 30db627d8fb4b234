"""`halfmsg bench`: hands over to the benchmark."""

from __future__ import annotations

from typing import Any

import click

from .lazy import later

BENCH = "halfmsg.coordinator.bench"


@click.command()
@click.option("--producers", type=click.IntRange(1, 10_000), help="Transactions in flight on the stream.")
@click.option("--batch", type=click.IntRange(1, 1_000), help="Deliveries of one fetch and ack over HTTP.")
@click.option("--seconds", type=click.FloatRange(0.1, 86_400), help="How long each run measures.")
@click.option("--runs", type=click.IntRange(1, 100), help="How often it is measured.")
def bench(**wanted: Any) -> None:
    """Throughput and latency on this machine, with the settings that were measured. Exit code 1 if a bar was missed."""
    plan = later(BENCH, "Plan", "bench")(**{name: value for name, value in wanted.items() if value is not None})
    raise click.exceptions.Exit(later(BENCH, "run", "bench")(plan) or 0)

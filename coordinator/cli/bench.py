"""`halfmsg bench`: hands over to the benchmark."""

from __future__ import annotations

import click

from .common import json_option
from .lazy import later


@click.command()
@click.option("--producers", type=click.IntRange(1, 1_000), default=8, show_default=True, help="Producers at the same time.")
@click.option("--batch", type=click.IntRange(1, 1_000), default=1, show_default=True, help="Transactions in one request.")
@click.option("--seconds", type=click.FloatRange(0.1, 86_400), default=10.0, show_default=True, help="How long to measure.")
@json_option
def bench(producers: int, batch: int, seconds: float, as_json: bool) -> None:
    """Throughput and latency on this machine, with the settings that were measured."""
    code = later("halfmsg.coordinator.bench", "run", "bench")(producers=producers, batch=batch, seconds=seconds, as_json=as_json)
    raise click.exceptions.Exit(code or 0)

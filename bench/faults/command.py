"""The command that plays scenarios."""

import logging
from pathlib import Path

import click

from bench.faults.run import play_seeds


@click.command()
@click.option("--seeds", default="0-199", show_default=True, help="The seeds to play, such as `0-9,42`.")
@click.option("--seed", type=int, help="Play this seed alone and tell what happens.")
@click.option("--output", type=click.Path(path_type=Path), help="Add a line of JSON for each scenario to this file.")
@click.option("--log", type=click.Path(path_type=Path), help="Add what happens to this file.")
def faults(seeds: str, seed: int | None, output: Path | None, log: Path | None) -> None:
    """Seeded faults in real calls: each scenario breaks parts of a stack, and the invariants must hold all the time."""
    # The callers' own client tells of every connection that a fault has cut.
    logging.getLogger("livekit").setLevel(logging.CRITICAL)
    chosen = seeds_in(seeds) if seed is None else [seed]
    failed = play_seeds(chosen, output=output, log=log, show=click.echo, is_told=seed is not None)
    if failed:
        raise click.ClickException(f"invariants did not hold with the seeds {', '.join(map(str, failed))}")


def seeds_in(text: str) -> list[int]:
    """The seeds of ranges and single numbers, in order."""
    chosen: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        chosen += range(int(first), int(last or first) + 1)
    return chosen

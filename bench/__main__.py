"""The command line of the measurements."""

import json
import os
from pathlib import Path

import click
from rich.console import Console

from bench.drains import measure_drains
from bench.endpointing import measure_endpointing
from bench.faults.command import faults
from bench.graph import measure_graph
from bench.join_storm import measure_join_storm
from bench.joins import measure_joins
from bench.livekit_restart import AWAY, measure_livekit_restart
from bench.long_sessions import measure_long_sessions
from bench.machine_loss import measure_machine_loss
from bench.native.report import FAULTS, measure_native_faults
from bench.recovery import measure_recovery
from bench.redis_restart import Outage, measure_redis_restart
from bench.report import Report, print_report
from bench.requests import measure_requests
from bench.rolling_restart import measure_rolling_restart
from bench.stored_sessions import measure_stored_sessions
from bench.turns import measure_turns

#: The load average from which on a machine is not quiet.
_BUSY_LOAD = 1.0


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure this machine's Muster: joins and turns with real audio through the whole local stack, requests, graph.

    Run it on a quiet machine: on a busy one every figure is about the machine.
    """
    load = os.getloadavg()[0]
    if load > _BUSY_LOAD:
        click.echo(f"The machine is busy (load {load:.1f}); the figures will be too.", err=True)


@main.command()
@click.option("--count", default=20, show_default=True, help="How many joins to count, after two that warm up.")
@click.option("--output", type=click.Path(path_type=Path), help="Also write the figures here, as JSON.")
def joins(count: int, output: Path | None) -> None:
    """From POST /join to the agent's first audible frame, with its parts; the caller is in the room already."""
    _show(measure_joins(count=count), output)


@main.command()
@click.option("--calls", default=6, show_default=True, help="How many calls of ten turns, one barge-in in each.")
@click.option(
    "--first-token-delay", default=0.0, show_default=True, help="Seconds the stand-in model takes to its first token."
)
@click.option("--output", type=click.Path(path_type=Path), help="Also write the figures here, as JSON.")
def turns(calls: int, first_token_delay: float, output: Path | None) -> None:
    """From the end of the caller's speech to the agent's first audible frame, with its critical path."""
    _show(measure_turns(calls=calls, first_token_delay=first_token_delay), output)


@main.command()
@click.option("--count", default=30, show_default=True, help="How many of the thirty utterances to speak.")
@click.option("--output", type=click.Path(path_type=Path), help="Also write the figures here, as JSON.")
def endpointing(count: int, output: Path | None) -> None:
    """Utterances with pauses inside: which are taken for over at a pause, and how long after its end a turn is over."""
    _show(measure_endpointing(count=count), output)


@main.command()
@click.option("--count", default=1500, show_default=True, help="How many joins to count per server and kind.")
@click.option("--rate", default=50.0, show_default=True, help="How many joins per second arrive on average.")
@click.option("--output", type=click.Path(path_type=Path), help="Also write the figures here, as JSON.")
def requests(count: int, rate: float, output: Path | None) -> None:
    """POST /join at a steady rate, and /health beside slow clients, under two HTTP servers; no call starts."""
    _show(measure_requests(count=count, rate=rate), output)


@main.command()
@click.option("--count", default=300, show_default=True, help="How many turns to count for each way, after 20.")
@click.option("--output", type=click.Path(path_type=Path), help="Also write the figures here, as JSON.")
def graph(count: int, output: Path | None) -> None:
    """From a question to its first token, through the graph and with OpenAI's client directly; no audio, no Redis."""
    _show(measure_graph(count=count), output)


@main.command()
@click.option("--sessions", default=20, show_default=True, help="How many sessions of 100 turns.")
@click.option("--output", type=click.Path(path_type=Path), help="Also write the figures here, as JSON.")
def memory(sessions: int, output: Path | None) -> None:
    """What the graph's own work takes in the first and in the last turns of long sessions; no model, no Redis."""
    _show(measure_long_sessions(sessions=sessions), output)


@main.command()
@click.option("--sessions", default=5, show_default=True, help="How many sessions of 100 turns for each way.")
@click.option("--output", type=click.Path(path_type=Path), help="Also write the figures here, as JSON.")
def storage(sessions: int, output: Path | None) -> None:
    """What a long session stores in Redis and sends there, beside LangGraph's own checkpoints; no audio."""
    _show(measure_stored_sessions(sessions=sessions), output)


@main.command("native-faults")
@click.option("--fault", "faults", type=click.Choice(list(FAULTS)), multiple=True, help="Only this; may be repeated.")
@click.option("--count", default=3, show_default=True, help="How many calls for each fault, each of up to two minutes.")
@click.option("--output", type=click.Path(path_type=Path), help="Also write the figures here, as JSON.")
def native_faults(faults: tuple[str, ...], count: int, output: Path | None) -> None:
    """What becomes of calls with LiveKit Agents' own workers when a process, a machine or the server is lost."""
    _show(measure_native_faults(faults=faults or FAULTS, count=count), output)


@main.command("rolling-restart")
@click.option("--rounds", default=20, show_default=True, help="How often each of the three workers is restarted.")
@click.option("--callers", default=3, show_default=True, help="How many callers talk meanwhile, six at most.")
@click.option("--seed", default=0, show_default=True, help="Of the order and the moments.")
@click.option("--output", type=click.Path(path_type=Path), help="Also write the figures here, as JSON.")
def rolling_restart(rounds: int, callers: int, seed: int, output: Path | None) -> None:
    """Three workers of three slots are restarted one after the other while callers talk; every word is counted."""
    _show(measure_rolling_restart(rounds=rounds, callers=callers, seed=seed), output)


@main.command()
@click.option(
    "--count", default=21, show_default=True, help="How many drains; a third in silence, in speech, in answers."
)
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
@click.option("--output", type=click.Path(path_type=Path), help="Also write the figures here, as JSON.")
def drain(count: int, seed: int, output: Path | None) -> None:
    """From SIGTERM, or from the first quiet moment after it, to the exit of a worker whose call goes elsewhere."""
    _show(measure_drains(count=count, seed=seed), output)


@main.command("join-storm")
@click.option("--count", default=1000, show_default=True, help="How many joins, concurrent and repeated.")
@click.option("--rooms", default=50, show_default=True, help="For how many rooms.")
@click.option("--seed", default=0, show_default=True, help="Of the joins, the kills and their moments.")
@click.option("--output", type=click.Path(path_type=Path), help="Also write the figures here, as JSON.")
def join_storm(count: int, rooms: int, seed: int, output: Path | None) -> None:
    """Joins from many threads while processes are killed: never two agents in a room, and nothing left behind."""
    _show(measure_join_storm(count=count, rooms=rooms, seed=seed), output)


@main.command()
@click.option("--count", default=50, show_default=True, help="How many kills, at most three in a call.")
@click.option("--seed", default=0, show_default=True, help="Determines when they fall.")
@click.option("--output", type=click.Path(path_type=Path), help="Also write the figures here, as JSON.")
def recovery(count: int, seed: int, output: Path | None) -> None:
    """From the kill of a call's process to the next agent's first audible frame, and what became of the words."""
    _show(measure_recovery(count=count, seed=seed), output)


@main.command()
@click.option("--count", default=30, show_default=True, help="How many losses, and as many with a partition.")
@click.option("--seed", default=0, show_default=True, help="Determines when they fall.")
@click.option("--output", type=click.Path(path_type=Path), help="Also write the figures here, as JSON.")
def machine_loss(count: int, seed: int, output: Path | None) -> None:
    """From the stop of all of a worker's processes to the next agent's sound, and what the old agent says later."""
    _show(measure_machine_loss(count=count, seed=seed), output)


@main.command()
@click.option("--count", default=3, show_default=True, help="How many restarts of each of the three kinds.")
@click.option(
    "--outage",
    "outages",
    type=click.Choice([each.name.lower() for each in Outage]),
    multiple=True,
    help="Only this; may be repeated.",
)
@click.option("--output", type=click.Path(path_type=Path), help="Also write the figures here, as JSON.")
def redis_restart(count: int, outages: tuple[str, ...], output: Path | None) -> None:
    """Redis killed under two callers who talk: down 5 s, down 20 s, and without its data; what joins answer."""
    chosen = [each for each in Outage if each.name.lower() in outages]
    _show(measure_redis_restart(count=count, outages=chosen or tuple(Outage)), output)


@main.command()
@click.option("--count", default=3, show_default=True, help="How many kills for each time the server is away.")
@click.option("--away", type=float, multiple=True, help="Only this many seconds; may be repeated.")
@click.option("--output", type=click.Path(path_type=Path), help="Also write the figures here, as JSON.")
def livekit_restart(count: int, away: tuple[float, ...], output: Path | None) -> None:
    """LiveKit killed under a call: whether it goes on when the server is back soon, and how it ends otherwise."""
    _show(measure_livekit_restart(count=count, away=away or AWAY), output)


def _show(report: Report, output: Path | None) -> None:
    print_report(Console(), report)
    if output is not None:
        output.write_text(json.dumps(report.to_json(), indent=2) + "\n")


main.add_command(faults)

if __name__ == "__main__":
    main()

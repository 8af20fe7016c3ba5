"""The dead man's switch in real processes: who may have lost its session dies, and an outage of Redis kills nobody."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from local.paths import ROOT
from tests.redis_server import RedisServer
from worker.fleet.times import DEAD_MAN, LEASE, WITNESS


@contextmanager
def process(
    url: str, *, age: float = 0.0, renews: bool = False, witness: bool = True
) -> Iterator["subprocess.Popen[str]"]:
    """An armed process, which is gone afterwards."""
    flags = ["yes" if flag else "no" for flag in (renews, witness)]
    started = subprocess.Popen(
        [sys.executable, "-m", "tests.dead_man_process", url, str(age), *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    with started:
        try:
            assert started.stdout is not None and started.stdout.readline() == "armed\n"
            yield started
        finally:
            started.kill()


def dies(armed: "subprocess.Popen[str]", *, within: float) -> bool:
    try:
        return armed.wait(within) == -signal.SIGALRM
    except subprocess.TimeoutExpired:
        return False


def test_without_renewals_a_process_dies_before_its_lease_ends_although_it_could_go_on(redis_url: str) -> None:
    with process(redis_url) as silent, process(redis_url, renews=True) as renewed:
        assert dies(silent, within=LEASE - 0.5)
        assert not dies(renewed, within=1.0)


def test_a_process_that_was_stopped_for_too_long_dies_when_it_goes_on(redis_url: str) -> None:
    with process(redis_url, renews=True) as armed:
        armed.send_signal(signal.SIGSTOP)
        time.sleep(DEAD_MAN + 0.5)
        armed.send_signal(signal.SIGCONT)
        assert dies(armed, within=0.5)


def test_a_redis_that_answers_and_takes_no_writes_is_as_good_as_none(own_redis: RedisServer) -> None:
    """Nobody can take the session over in it either."""
    own_redis.demote()
    try:
        with process(own_redis.url) as in_its_room, process(own_redis.url, witness=False) as without_a_room:
            assert dies(without_a_room, within=LEASE - 0.5)
            assert not dies(in_its_room, within=LEASE - 0.5)
    finally:
        own_redis.promote()


def test_while_redis_does_not_answer_the_room_is_witness_enough_for_a_while(own_redis: RedisServer) -> None:
    with (
        process(own_redis.url) as in_its_room,
        process(own_redis.url, witness=False) as without_a_room,
        process(own_redis.url, age=WITNESS - 1) as for_too_long,
        own_redis.frozen(),
    ):
        assert dies(without_a_room, within=LEASE - 0.5)
        assert dies(for_too_long, within=LEASE)
        assert not dies(in_its_room, within=LEASE)

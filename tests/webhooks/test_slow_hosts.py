"""Which receivers get how many places of a sender."""

from __future__ import annotations

from pipeserve.webhooks.slow_hosts import SOON_SECONDS, SlowHosts

URL = "https://hooks.example:8443/a?key=b"
ELSEWHERE = "https://other.example/a"


def entered(hosts: SlowHosts, url: str = URL, tries: int = 10) -> int:
    """How many of so many jobs get a place."""
    return sum(hosts.enter(url) is None for _ in range(tries))


def test_a_host_that_is_not_known_has_its_share() -> None:
    hosts = SlowHosts(2)
    assert entered(hosts) == 2
    assert entered(hosts, ELSEWHERE) == 2


def test_a_host_that_answers_soon_has_every_place() -> None:
    hosts = SlowHosts(2)
    hosts.note(URL, SOON_SECONDS)
    assert entered(hosts) == 10


def test_a_host_that_answers_late_or_not_at_all_has_its_share() -> None:
    for seconds in (None, SOON_SECONDS + 0.1):
        hosts = SlowHosts(2)
        hosts.note(URL, 0.01)
        hosts.note(URL, seconds)
        assert entered(hosts) == 2


def test_a_place_that_is_given_back_is_had_again() -> None:
    hosts = SlowHosts(1)
    assert entered(hosts) == 1
    hosts.leave(URL)
    assert entered(hosts) == 1


def test_the_more_jobs_wait_for_a_host_the_later_they_come_again() -> None:
    hosts = SlowHosts(1)
    assert hosts.enter(URL) is None
    pauses = [pause for _ in range(3000) if (pause := hosts.enter(URL)) is not None]
    assert len(pauses) == 3000
    assert 0 < pauses[0] < 1, "it may answer any moment"
    assert 30 <= pauses[-1] <= 60, "thousands that come again each second would keep the store busy"

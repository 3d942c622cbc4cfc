"""The pool's bookkeeping: who gets what, what goes back, and when a run must stop."""

from __future__ import annotations

import pytest

from actors.dispatch import (
    IN_FLIGHT,
    MAX_KEPT,
    MAX_UNIT_DEATHS,
    SUSPECT_DEATHS,
    Deadlines,
    Dispatcher,
    FleetError,
    Job,
    Member,
)
from raydense.core.interfaces import UnitFailed
from raydense.core.types import RenderUnit, WorkUnit

RULE = Deadlines(first_s=100.0, factor=10.0, floor_s=5.0)


def job(index: int) -> Job:
    return Job("sample", WorkUnit(0, index, (index,), ("a cat",), 0), None, None)


def pool(*names: str) -> Dispatcher:
    dispatcher = Dispatcher(RULE, run_seed=7)
    dispatcher.members = {name: Member(name, alive=True) for name in names}
    return dispatcher


def assign_all(dispatcher: Dispatcher, now: float = 0.0) -> list[tuple[int, str]]:
    given = []
    while pair := dispatcher.assign(now):
        given.append((pair[0].unit.index, pair[1].name))
    return given


def test_everybody_gets_one_before_anybody_gets_two() -> None:
    dispatcher = pool("a", "b")
    dispatcher.add([job(i) for i in range(5)])
    assert assign_all(dispatcher) == [(0, "a"), (1, "b"), (2, "a"), (3, "b")]
    assert all(len(member.jobs) == IN_FLIGHT for member in dispatcher.live)


def test_a_dispatch_looks_at_every_member_a_few_times_and_not_at_all_of_them_for_each() -> None:
    looks = 0

    class Watched(Member):
        @property
        def seconds_a_job(self) -> float | None:
            nonlocal looks
            looks += 1
            return 1.0

    dispatcher = Dispatcher(RULE, run_seed=7)
    dispatcher.members = {str(i): Watched(str(i), alive=True) for i in range(300)}
    dispatcher.add([job(0)])
    assert dispatcher.assign(0.0) is not None
    assert looks <= 2 * 300


def test_a_slow_member_gets_less_work() -> None:
    dispatcher = pool("fast", "slow")
    dispatcher.members["fast"].done, dispatcher.members["fast"].busy_s = 10, 10.0
    dispatcher.members["slow"].done, dispatcher.members["slow"].busy_s = 2, 10.0
    dispatcher.add([job(i) for i in range(3)])
    # the second job of the fast one is done after 2 s, the first of the slow one after 5
    assert assign_all(dispatcher) == [(0, "fast"), (1, "fast"), (2, "slow")]


def test_a_member_whose_groups_do_not_leave_gets_no_more_units_but_pictures() -> None:
    dispatcher = pool("slow", "fast")
    dispatcher.members["slow"].kept = MAX_KEPT
    dispatcher.add([job(i) for i in range(5)])
    assert assign_all(dispatcher) == [(0, "fast"), (1, "fast")]
    dispatcher.add([Job("render", RenderUnit(("a cat",), (3,), 0), None, None)])
    assert [member.name for _, member in [dispatcher.assign(0.0)]] == ["slow"]  # type: ignore[misc]
    dispatcher.members["slow"].kept = MAX_KEPT - 1
    assert assign_all(dispatcher) == [(2, "slow")]


def test_pictures_that_somebody_waits_for_come_before_units() -> None:
    dispatcher = pool("a")
    picture = Job("render", RenderUnit(("a cat",), (3,), 0), None, None)
    dispatcher.add([job(0), picture])
    pair = dispatcher.assign(0.0)
    assert pair is not None
    assert pair[0] is picture


def test_a_job_that_raised_goes_to_another_member_and_the_third_failure_ends_the_run() -> None:
    dispatcher = pool("a", "b", "c", "d")
    failing = job(0)
    dispatcher.add([failing])
    members = []
    said = r"^no good \(unit 0 of stage 0, run seed 7, prompts 'a cat'; tried 3 times\)$"

    def fail_for_ever() -> None:
        while pair := dispatcher.assign(0.0):
            members.append(pair[1].name)
            dispatcher.fail(pair[1], failing, ValueError("no good"), 0.0)

    with pytest.raises(UnitFailed, match=said):
        fail_for_ever()
    assert members == ["a", "b", "c"]


def test_a_single_member_may_try_again_what_it_failed() -> None:
    dispatcher = pool("a")
    failing = job(0)
    dispatcher.add([failing])
    for _ in range(2):
        assert dispatcher.assign(0.0) is not None
        dispatcher.fail(dispatcher.members["a"], failing, ValueError("no good"), 0.0)
    assert dispatcher.faults == {"retried": 2}


def test_a_death_returns_all_jobs_to_the_front_and_counts_against_those_that_were_under_way() -> None:
    dispatcher = pool("a")
    jobs = [job(i) for i in range(3)]
    dispatcher.add(jobs)
    assign_all(dispatcher)
    dispatcher.die(dispatcher.members["a"], "deaths", "killed")
    assert [j.deaths for j in jobs] == [1, 1, 0]
    assert dispatcher.faults == {"deaths": 1, "lost": 2, "retried": 2}
    assert dispatcher.assign(0.0) is None  # nobody is alive
    dispatcher.members["b"] = Member("b", alive=True)
    assert assign_all(dispatcher) == [(0, "b"), (1, "b")]


def test_the_unit_that_kills_every_member_ends_the_run_and_its_neighbour_does_not() -> None:
    dispatcher = pool("a")
    dispatcher.add([job(0), job(1)])

    def die_again() -> None:
        assign_all(dispatcher)
        dispatcher.die(dispatcher.members["a"], "deaths", "no memory")
        dispatcher.members["a"].alive = True

    for _ in range(MAX_UNIT_DEATHS):
        die_again()
    said = r"^11 samplers died over one unit \(unit 0 of stage 0, run seed 7, prompts 'a cat'\); the last: no memory$"
    with pytest.raises(FleetError, match=said):
        die_again()


def test_a_unit_that_kills_while_its_neighbour_is_scored_soon_runs_alone_and_the_neighbour_is_delivered() -> None:
    dispatcher = pool("a", "b")
    jobs = [job(i) for i in range(4)]
    dispatcher.add(jobs)
    dispatcher.members["b"].alive = False
    for _ in range(SUSPECT_DEATHS):
        assert assign_all(dispatcher) == [(0, "a"), (1, "a")]
        dispatcher.die(dispatcher.members["a"], "deaths", "no memory")
        dispatcher.members["a"].alive = True
    dispatcher.members["b"].alive = True
    assert assign_all(dispatcher) == [(0, "a"), (1, "b")]  # and nothing beside them
    dispatcher.finish(dispatcher.members["a"], jobs[0], now=1.0)
    assert assign_all(dispatcher) == [(2, "a"), (3, "a")]
    dispatcher.die(dispatcher.members["b"], "deaths", "no memory")
    dispatcher.members["b"].alive = True
    dispatcher.add([job(4)])
    assert assign_all(dispatcher) == [(1, "b")]
    assert [j.deaths for j in jobs] == [3, 4, 0, 0]


def test_members_empty_themselves_for_a_suspect() -> None:
    dispatcher = pool("a")
    jobs = [job(i) for i in range(3)]
    dispatcher.add(jobs)
    assert assign_all(dispatcher) == [(0, "a"), (1, "a")]
    jobs[2].deaths = SUSPECT_DEATHS
    dispatcher.add([job(3)])
    dispatcher.finish(dispatcher.members["a"], jobs[0], now=1.0)
    assert assign_all(dispatcher) == []
    dispatcher.finish(dispatcher.members["a"], jobs[1], now=2.0)
    assert assign_all(dispatcher) == [(2, "a")]
    dispatcher.finish(dispatcher.members["a"], jobs[2], now=3.0)
    assert assign_all(dispatcher) == [(3, "a")]


def test_a_deadline_comes_from_measured_times() -> None:
    dispatcher = pool("a")
    jobs = [job(0), job(1), job(2)]
    dispatcher.add(jobs)
    assign_all(dispatcher, now=10.0)
    assert dispatcher.deadline_s("sample") == 100.0  # nothing is measured yet
    assert dispatcher.overdue(109.0) == []
    assert [m.name for m in dispatcher.overdue(111.0)] == ["a"]
    dispatcher.finish(dispatcher.members["a"], jobs[0], now=12.0)
    assert dispatcher.deadline_s("sample") == 20.0  # ten times two seconds
    assert dispatcher.overdue(31.0) == []  # the second began when the first ended
    assert [m.name for m in dispatcher.overdue(32.5)] == ["a"]
    dispatcher.finish(dispatcher.members["a"], jobs[1], now=12.1)
    assert dispatcher.deadline_s("sample") == 20.0  # of the slowest
    assert dispatcher.deadline_s("render") == 100.0  # another kind


def test_what_is_given_up_is_not_tried_again() -> None:
    dispatcher = pool("a")
    jobs = [job(i) for i in range(4)]
    dispatcher.add(jobs)
    assign_all(dispatcher)
    dispatcher.cancel(jobs)
    dispatcher.die(dispatcher.members["a"], "deaths", "killed")
    assert not dispatcher.has_work

"""Who works on what: the bookkeeping of an elastic pool, without Ray and without a clock of its own.

A job goes to the member that is expected to finish it first, at most `IN_FLIGHT` at a time; one whose member died,
hung or raised goes back to the front. Every job ends exactly once, or the run stops with the reason.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from raydense.core.interfaces import MAX_UNIT_FAILURES, UnitFailed

IN_FLIGHT = 2  # jobs a member: one is scored while the next is denoised, and the control plane's latency is hidden
MAX_KEPT = 2  # units that a member has made and nobody has fetched yet, with which it gets no other to sample
MAX_UNIT_DEATHS = 10  # of members that held one job
SUSPECT_DEATHS = 3  # after which it runs alone, so that no other job dies with it or is blamed for it


class FleetError(RuntimeError):
    """The fleet cannot finish its work; the message says why."""


@dataclass(frozen=True)
class Deadlines:
    """How long one job may run before its member counts as hung.

    first_s: until one of its kind was measured. factor: of the slowest one measured. floor_s: never less.
    """

    first_s: float
    factor: float
    floor_s: float


@dataclass(eq=False)
class Job:
    """One unit for one method of a sampler."""

    method: str
    unit: Any
    weights: Any  # a handle of the version that the unit names
    arrived: Any  # the queue that (job, result) is put into
    failures: int = 0  # exceptions of its own
    deaths: int = 0  # of members that held it
    failed_on: set[str] = field(default_factory=set)
    wanted: bool = True

    @property
    def suspect(self) -> bool:
        """Whether it should run alone: it kills its members, or its next failure ends the run."""
        return self.deaths >= SUSPECT_DEATHS or self.failures == MAX_UNIT_FAILURES - 1


@dataclass(eq=False)
class Member:
    """One sampler: alive or being started, with the jobs that it holds; the first of them is the furthest."""

    name: str
    alive: bool = False
    jobs: deque[Job] = field(default_factory=deque)
    running_since: float = 0.0
    done: int = 0
    busy_s: float = 0.0
    kept: int = 0  # units whose groups still lie only where it made them

    @property
    def seconds_a_job(self) -> float | None:
        return self.busy_s / self.done if self.done else None

    def takes(self, job: Job) -> bool:
        """Whether it has room for the job."""
        return not self.jobs or (len(self.jobs) < IN_FLIGHT and not any(j.suspect for j in (job, *self.jobs)))


class Dispatcher:
    """Args: run_seed: for messages."""

    def __init__(self, deadlines: Deadlines, run_seed: int) -> None:
        self._deadlines, self._run_seed = deadlines, run_seed
        self._urgent: deque[Job] = deque()  # pictures and judging: somebody waits for them
        self._pending: deque[Job] = deque()
        self._slowest: dict[str, float] = {}  # method → seconds
        self.members: dict[str, Member] = {}
        self.faults: Counter[str] = Counter()

    def add(self, jobs: list[Job]) -> None:
        for job in jobs:
            (self._urgent if job.method == "render" else self._pending).append(job)

    def cancel(self, jobs: list[Job]) -> None:
        """Forgets those of the jobs that nobody has begun."""
        for job in jobs:
            job.wanted = False
        for queue in (self._urgent, self._pending):
            kept = [job for job in queue if job.wanted]
            queue.clear()
            queue.extend(kept)

    @property
    def has_work(self) -> bool:
        return bool(self._urgent or self._pending or any(m.jobs for m in self.members.values()))

    @property
    def live(self) -> list[Member]:
        return [member for member in self.members.values() if member.alive]

    @property
    def _emptied(self) -> list[Member]:
        """Who may sample more: a host whose link is slow first gets rid of what it has made."""
        return [member for member in self.live if member.kept < MAX_KEPT]

    def assign(self, now: float) -> tuple[Job, Member] | None:
        """The next job and the member that should have it; None if nothing waits or nobody has room."""
        for queue, members in ((self._urgent, self.live), (self._pending, self._emptied)):
            if all(len(member.jobs) >= IN_FLIGHT for member in members):
                continue
            for job in queue:
                room = [member for member in members if member.takes(job)]
                allowed = [m for m in room if m.name not in job.failed_on] or self._last_resort(job, room)
                if allowed:
                    member = min(allowed, key=partial(_expected_finish, _typical_seconds(self.live)))
                    queue.remove(job)
                    if not member.jobs:
                        member.running_since = now
                    member.jobs.append(job)
                    return job, member
                if job.suspect:
                    return None  # until a member has nothing else
        return None

    def finish(self, member: Member, job: Job, now: float) -> None:
        """The member delivered it."""
        if member.jobs[0] is job:
            seconds = now - member.running_since
            member.busy_s, member.done = member.busy_s + seconds, member.done + 1
            self._slowest[job.method] = max(self._slowest.get(job.method, 0.0), seconds)
        self._leave(member, job, now)

    def fail(self, member: Member, job: Job, error: BaseException, now: float) -> None:
        """The job raised; it goes back, to another member if one lives. Raises: UnitFailed at the last failure."""
        self._leave(member, job, now)
        job.failures += 1
        job.failed_on.add(member.name)
        if job.failures >= MAX_UNIT_FAILURES:
            raise UnitFailed.after(job.failures, job.unit.describe(self._run_seed), error) from error
        self._put_back([job])

    def die(self, member: Member, fault: str, cause: str) -> None:
        """The member is gone; its jobs go back, each of them under suspicion. Raises: FleetError."""
        jobs = list(member.jobs)
        member.jobs.clear()
        member.alive = False
        self.faults[fault] += 1
        self.faults["lost"] += len(jobs)
        self._put_back(jobs)
        for job in jobs:
            job.deaths += 1
            if job.deaths > MAX_UNIT_DEATHS:
                what = job.unit.describe(self._run_seed)
                raise FleetError(f"{job.deaths} samplers died over one unit ({what}); the last: {cause}")

    def overdue(self, now: float) -> list[Member]:
        """Live members whose running job has passed its deadline."""
        return [m for m in self.live if m.jobs and now - m.running_since > self.deadline_s(m.jobs[0].method)]

    def deadline_s(self, method: str) -> float:
        rule, slowest = self._deadlines, self._slowest.get(method)
        return rule.first_s if slowest is None else max(rule.floor_s, rule.factor * slowest)

    def _last_resort(self, job: Job, room: list[Member]) -> list[Member]:
        """A job that failed on every live member may run on any of them again."""
        return room if all(member.name in job.failed_on for member in self.live) else []

    def _leave(self, member: Member, job: Job, now: float) -> None:
        was_first = member.jobs[0] is job
        member.jobs.remove(job)
        if was_first:
            member.running_since = now

    def _put_back(self, jobs: list[Job]) -> None:
        again = [job for job in jobs if job.wanted]
        self.faults["retried"] += len(again)
        for job in reversed(again):
            (self._urgent if job.method == "render" else self._pending).appendleft(job)


def _typical_seconds(members: list[Member]) -> float:
    """A job, on average over those that have done one."""
    measured = [s for m in members if (s := m.seconds_a_job) is not None]
    return sum(measured) / len(measured) if measured else 1.0


def _expected_finish(typical: float, member: Member) -> tuple[float, int, str]:
    """Of one more job; the least is taken. Args: typical: seconds of a job, where the member has done none."""
    own = member.seconds_a_job
    return (len(member.jobs) + 1) * (typical if own is None else own), len(member.jobs), member.name

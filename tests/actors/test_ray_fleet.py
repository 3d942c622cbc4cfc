"""The elastic pool on a real cluster: every unit exactly once, whatever happens to the samplers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.dispatch import IN_FLIGHT, MAX_KEPT, Deadlines, FleetError, Member
from actors.ray_departures import Departures
from actors.ray_fleet import MAX_BUILD_FAILURES, RayFleet
from raydense.config import ConfigError
from raydense.core.interfaces import UnitFailed
from raydense.core.types import PolicyWeights, Rendered, RenderUnit, TrajectoryGroup, UnitReport, WorkUnit
from raydense.pipelines.base_model import BaseModel

pytestmark = pytest.mark.ray
Factory = Callable[[str], Any]


def sampler_factory(
    *,
    kill_at: int | None = None,
    fail_at: int | None = None,
    fail_on: tuple[str, ...] | None = None,
    stop_at: int | None = None,
    fault_at: int | None = None,
    marker: Path | None = None,
    restart_s: float = 0.0,
) -> Factory:
    """A `Sampler` without a model. It is made inside this function so that workers get it by value.

    Args:
        kill_at: the unit index at which it kills its own process, once where `marker` is given, else always.
        stop_at: the unit index at which it freezes its own process, once.
        fault_at: the unit index at which its GPU fails, once.
        fail_at: the unit index at which it raises; on the samplers of `fail_on` alone where that is given.
        restart_s: how long a construction after the marker was set takes, as loading a model does.
    """

    class FakeSampler:
        def __init__(self, name: str) -> None:
            self._name = name
            if marker is not None and marker.exists():
                time.sleep(restart_s)

        def sample(self, unit: WorkUnit, weights: PolicyWeights) -> tuple[UnitReport, list[TrajectoryGroup]]:
            self._misbehave(unit.index)
            time.sleep(0.02 * (unit.index % 3))  # arrivals out of order
            groups = [
                TrajectoryGroup(
                    stage=unit.stage,
                    index=index,
                    prompt=prompt,
                    conditioning={"prompt_embeds": np.zeros((2, 2), np.float32)},
                    latents=np.full((5, 11, 4, 64, 64), index, np.float16),  # 1.8 MB: never inlined in a reply
                    log_probs=np.zeros((5, 10), np.float32),
                    rewards=np.zeros(5, np.float32),
                    weights_version=weights.version,
                    weights_checksum=weights.checksum,
                )
                for index, prompt in zip(unit.group_indices, unit.prompts, strict=True)
            ]
            return UnitReport(unit, (), {}, self._name), groups

        def render(self, unit: RenderUnit, weights: PolicyWeights) -> Rendered:
            self._misbehave(unit.seeds[0])
            time.sleep(0.05 * (3 - unit.seeds[0] % 3))
            return Rendered(np.full((1, 1, 1, 3), unit.seeds[0], np.uint8), {"version": np.array([weights.version])})

        def _misbehave(self, index: int) -> None:
            if index == fail_at and (fail_on is None or self._name in fail_on):
                raise ValueError(f"unit {index} is no good")
            if index in (kill_at, stop_at, fault_at) and not (marker is not None and marker.exists()):
                if marker is not None:
                    marker.touch()
                if index == fault_at:
                    raise RuntimeError("CUDA error: an illegal memory access was encountered")
                os.kill(os.getpid(), signal.SIGKILL if index == kill_at else signal.SIGSTOP)

    return FakeSampler


@pytest.fixture
def make_fleet(ray_cluster: None) -> Iterator[Callable[..., RayFleet]]:
    fleets = []

    def make(
        factory: Factory, count: int = 2, *, hang_s: float = 60.0, minimum: int | None = None, **options: Any
    ) -> RayFleet:
        fleet = RayFleet(
            factory,
            maximum=count,
            minimum=count if minimum is None else minimum,
            num_gpus=0,
            **{"num_cpus": 0.5, "patience_s": 120.0, **options},
            deadlines=Deadlines(first_s=hang_s, factor=10.0, floor_s=hang_s),
            run_seed=7,
        )
        fleets.append(fleet)
        fleet.wait_ready()
        fleet.broadcast(PolicyWeights.of(0, {"a": np.zeros(3, np.float32)}))
        return fleet

    yield make
    for fleet in fleets:
        fleet.shutdown()


def units(count: int, prompts: int = 1) -> list[WorkUnit]:
    return [
        WorkUnit(0, i, tuple(range(i * prompts, (i + 1) * prompts)), ("a cat",) * prompts, weights_version=0)
        for i in range(count)
    ]


def test_every_unit_arrives_exactly_once_with_a_reference_a_group(make_fleet: Callable[..., RayFleet]) -> None:
    import ray

    fleet = make_fleet(sampler_factory())
    arrivals = list(fleet.collect(units(10, prompts=2)))
    assert sorted(report.unit.index for report, _ in arrivals) == list(range(10))
    assert {report.sampler for report, _ in arrivals} == {"sampler-0", "sampler-1"}
    for report, handles in arrivals:
        groups = ray.get(list(handles))
        assert [g.index for g in groups] == list(report.unit.group_indices)
        assert [g.latents[0, 0, 0, 0, 0] for g in groups] == list(report.unit.group_indices)
    assert fleet.faults == {}
    assert list(fleet.collect([])) == []


def ignore(report: UnitReport, groups: Sequence[Any]) -> None:
    """Fetches nothing."""


def test_a_sampler_whose_groups_stay_where_they_are_gets_no_more_until_they_have_left(
    make_fleet: Callable[..., RayFleet],
) -> None:
    import ray

    wanted_on: list[str] = []  # nobody fetches them, until it is here that they are wanted
    fleet = make_fleet(sampler_factory(), departures=Departures(ignore, lambda: wanted_on))
    collection = fleet.collect(units(20))
    arrived = [next(collection) for _ in range(2 * MAX_KEPT)]
    time.sleep(2)
    while collection.ready():
        arrived.append(next(collection))
    assert len(arrived) <= 2 * (MAX_KEPT + IN_FLIGHT)
    wanted_on.append(ray.get_runtime_context().get_node_id())
    assert sorted(report.unit.index for report, _ in [*arrived, *collection]) == list(range(20))


def test_a_group_that_comes_a_moment_after_its_report_has_not_left(ray_cluster: None) -> None:
    """It is counted before it is there, when it is there and nobody knows where, and from then on."""
    import ray

    @ray.remote
    def late(size: int) -> Any:
        time.sleep(0.3)
        return np.zeros(size, np.uint8)

    def outcome(size: int) -> tuple[set[int], Member, Departures]:
        member, report = Member("sampler-0"), UnitReport(units(1)[0], (), {}, "sampler-0")
        departures, counted = Departures(ignore, lambda: ()), set()
        departures.begin(member, report, [late.remote(size)], until=time.monotonic() + 60)
        began = time.monotonic()
        while time.monotonic() < began + 2 and member.kept:
            departures.look(time.monotonic())
            counted.add(member.kept)
        return counted, member, departures

    ray.get(late.remote(1))  # there is a process for it
    counted, member, departures = outcome(1_800_000)
    assert counted == {1}
    departures.look(time.monotonic() + 60)
    assert member.kept == 0
    assert outcome(1_000)[0] == {1, 0}  # that one came with the reply, and is on no node


def test_groups_that_nobody_ever_fetches_hold_a_sampler_up_no_longer_than_a_hang(
    make_fleet: Callable[..., RayFleet],
) -> None:
    fleet = make_fleet(sampler_factory(), hang_s=3.0, departures=Departures(ignore, lambda: ()))
    began = time.monotonic()
    assert len(list(fleet.collect(units(10)))) == 10
    assert time.monotonic() - began > 3.0
    assert fleet.faults == {}


def test_pictures_come_back_in_the_order_of_their_units(make_fleet: Callable[..., RayFleet]) -> None:
    rendered = make_fleet(sampler_factory()).render([RenderUnit(("a cat",), (seed,), 0) for seed in range(7)])
    assert [int(r.images[0, 0, 0, 0]) for r in rendered] == list(range(7))


def test_the_weights_broadcast_last_are_the_ones_used(make_fleet: Callable[..., RayFleet]) -> None:
    fleet = make_fleet(sampler_factory())
    for version in (4, 5):
        fleet.broadcast(PolicyWeights.of(version, {}))
        rendered = fleet.render([RenderUnit(("a cat",), (seed,), version) for seed in range(4)])
        assert {int(r.scores["version"][0]) for r in rendered} == {version}


@pytest.mark.parametrize("count", [1, 2])
def test_a_killed_samplers_units_are_delivered_by_others_or_by_itself_restarted(
    make_fleet: Callable[..., RayFleet], tmp_path: Path, count: int
) -> None:
    import ray

    marker = tmp_path / "killed"
    fleet = make_fleet(sampler_factory(kill_at=3, marker=marker, restart_s=2.0), count)
    arrivals = list(fleet.collect(units(12)))
    assert marker.exists()
    assert fleet.faults["deaths"] == 1
    assert sorted(report.unit.index for report, _ in arrivals) == list(range(12))
    for report, (handle,) in arrivals:
        assert ray.get(handle).latents.max() == report.unit.index


@pytest.mark.parametrize("work", ["sample", "render"])
def test_a_sampler_whose_gpu_failed_ends_and_is_replaced(
    make_fleet: Callable[..., RayFleet], tmp_path: Path, work: str
) -> None:
    fleet = make_fleet(sampler_factory(fault_at=2, marker=tmp_path / "failed"), 1)
    if work == "sample":
        assert sorted(report.unit.index for report, _ in fleet.collect(units(4))) == [0, 1, 2, 3]
    else:
        rendered = fleet.render([RenderUnit(("a cat",), (seed,), 0) for seed in range(4)])
        assert [int(r.images[0, 0, 0, 0]) for r in rendered] == [0, 1, 2, 3]
    assert fleet.faults["deaths"] == 1


def test_a_frozen_sampler_is_killed_at_its_deadline_and_its_units_go_elsewhere(
    make_fleet: Callable[..., RayFleet], tmp_path: Path
) -> None:
    fleet = make_fleet(sampler_factory(stop_at=2, marker=tmp_path / "frozen"), hang_s=4.0)
    assert sorted(report.unit.index for report, _ in fleet.collect(units(8))) == list(range(8))
    assert fleet.faults["hangs"] == 1
    assert 1 <= fleet.faults["lost"] <= 2
    deadline = time.monotonic() + 60
    while fleet.live < 2:  # it comes back
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_sampler_without_a_place_is_not_waited_for(make_fleet: Callable[..., RayFleet]) -> None:
    fleet = make_fleet(sampler_factory(), count=3, minimum=1, num_cpus=1.8)  # of the cluster's four
    assert sorted(report.unit.index for report, _ in fleet.collect(units(6))) == list(range(6))
    assert fleet.live < 3


def test_no_sampler_for_too_long_ends_the_run_with_a_word(make_fleet: Callable[..., RayFleet]) -> None:
    fleet = make_fleet(sampler_factory(), count=1, minimum=0, num_cpus=64, patience_s=1.0)
    with pytest.raises(FleetError, match=r"^no live sampler for 1 s \(samplers.patience_s\); add nodes, then continue"):
        next(fleet.collect(units(1)))


def test_pictures_are_drawn_while_units_are_under_way_each_with_its_own_weights(
    make_fleet: Callable[..., RayFleet],
) -> None:
    fleet = make_fleet(sampler_factory())
    collection = fleet.collect(units(20))
    fleet.broadcast(PolicyWeights.of(4, {}))
    rendered = fleet.render([RenderUnit(("a cat",), (seed,), 4) for seed in range(2)])
    assert {int(r.scores["version"][0]) for r in rendered} == {4}
    assert sum(1 for _ in collection) == 20


def test_a_sampler_that_is_back_works_again(make_fleet: Callable[..., RayFleet], tmp_path: Path) -> None:
    fleet = make_fleet(sampler_factory(kill_at=1, marker=tmp_path / "killed"), count=1)
    for _ in range(2):
        rendered = fleet.render([RenderUnit(("a cat",), (seed,), 0) for seed in range(3)])
        assert [int(r.images[0, 0, 0, 0]) for r in rendered] == [0, 1, 2]
    assert fleet.faults["deaths"] == 1


def test_a_sampler_has_the_next_unit_under_way_while_one_is_scored(make_fleet: Callable[..., RayFleet]) -> None:
    class TwoAtOnce:
        """Ends a unit only once the next one has begun."""

        def __init__(self, name: str) -> None:
            import threading

            self._begun = [threading.Event() for _ in range(6)]

        def sample(self, unit: WorkUnit, weights: PolicyWeights) -> tuple[UnitReport, list[TrajectoryGroup]]:
            self._begun[unit.index].set()
            together = unit.index == 5 or self._begun[unit.index + 1].wait(20)
            group: Any = "in place of a group"
            return UnitReport(unit, (), {"together": float(together)}, "sampler-0"), [group]

    fleet = make_fleet(TwoAtOnce, 1)
    reports = sorted((report for report, _ in fleet.collect(units(6))), key=lambda report: report.unit.index)
    assert [report.seconds["together"] for report in reports] == [1.0] * 6


@pytest.mark.slow
def test_a_unit_that_kills_every_sampler_ends_the_run_with_a_word(make_fleet: Callable[..., RayFleet]) -> None:
    """plain: `test_the_unit_that_kills_every_member_ends_the_run_and_its_neighbour_does_not`, without Ray."""
    said = r"^11 samplers died over one unit \(unit 2 of stage 0, run seed 7, prompts 'a cat'\); the last: "
    with pytest.raises(FleetError, match=said):
        list(make_fleet(sampler_factory(kill_at=2)).collect(units(6)))


@pytest.mark.parametrize("count", [1, 2])
def test_a_unit_that_always_fails_ends_the_run_with_its_cause(make_fleet: Callable[..., RayFleet], count: int) -> None:
    fleet = make_fleet(sampler_factory(fail_at=2), count)
    delivered: list[int] = []
    said = r"^unit 2 is no good \(unit 2 of stage 0, run seed 7, prompts 'a cat'; tried 3 times\)$"
    with pytest.raises(UnitFailed, match=said) as caught:
        delivered.extend(report.unit.index for report, _ in fleet.collect(units(6)))
    assert set(delivered) <= {0, 1, 3, 4, 5}
    assert len({0, 1} & set(delivered)) >= 3 - count  # its last try runs alone: what its sampler held before is done
    assert isinstance(caught.value.__cause__, ValueError)
    assert fleet.faults == {"retried": 2}


@pytest.mark.parametrize("work", ["sample", "render"])
def test_a_unit_that_failed_is_tried_on_another_sampler(make_fleet: Callable[..., RayFleet], work: str) -> None:
    fleet = make_fleet(sampler_factory(fail_at=2, fail_on=("sampler-0",)))
    if work == "sample":
        arrivals = {report.unit.index: report.sampler for report, _ in fleet.collect(units(6))}
        assert sorted(arrivals) == list(range(6))
        assert arrivals[2] == "sampler-1"
    else:
        rendered = fleet.render([RenderUnit(("a cat",), (seed,), 0) for seed in range(6)])
        assert [int(r.images[0, 0, 0, 0]) for r in rendered] == list(range(6))
    assert set(fleet.faults) <= {"retried"}
    assert fleet.faults.get("retried", 0) <= 1


def test_a_sampler_that_cannot_be_built_says_why(make_fleet: Callable[..., RayFleet]) -> None:
    def broken(name: str) -> Any:
        raise FileNotFoundError("policy.model=nowhere: cannot load its unet")

    with pytest.raises(Exception, match=r"policy\.model=nowhere: cannot load its unet"):
        make_fleet(broken)


class BaseModels(BaseModel):
    """As if the first process that looks had other files than all later ones."""

    def __init__(self, marker: Path) -> None:
        super().__init__("/models/sd")
        self._marker = marker

    def look(self, folders: Sequence[str] = ()) -> Callable[[], dict[str, str]]:
        marker = self._marker

        def report() -> dict[str, str]:
            try:
                marker.touch(exist_ok=False)
            except FileExistsError:
                return {"unet": "of the others", "vae": "of all"}
            return {"unet": "of the first", "vae": "of all"}

        return report


class OutOfMemory(BaseModel):
    """As if the nodes of the first few samplers ran out of memory while these start."""

    def __init__(self, marker: Path, often: int) -> None:
        super().__init__("/models/sd")
        self._marker, self._often = marker, often

    def look(self, folders: Sequence[str] = ()) -> Callable[[], dict[str, str]]:
        marker, often = self._marker, self._often

        def report() -> dict[str, str]:
            import ray

            with marker.open("a+") as file:
                file.write("x")
                file.seek(0)
                if len(file.read()) <= often:
                    raise ray.exceptions.OutOfMemoryError("the node ran low on memory")
            return {"unet": "of all"}

        return report


def test_a_sampler_that_its_node_took_down_while_it_started_is_started_anew(
    make_fleet: Callable[..., RayFleet], tmp_path: Path
) -> None:
    fleet = make_fleet(sampler_factory(), 1, base=OutOfMemory(tmp_path / "starts", MAX_BUILD_FAILURES - 1))
    assert sum(1 for _ in fleet.collect(units(3))) == 3
    assert fleet.faults["unbuilt"] == MAX_BUILD_FAILURES - 1
    with pytest.raises(Exception, match="the node ran low on memory"):
        make_fleet(sampler_factory(), 1, base=OutOfMemory(tmp_path / "others", MAX_BUILD_FAILURES))


def test_a_node_with_another_base_model_is_named_before_work_begins(
    make_fleet: Callable[..., RayFleet], tmp_path: Path
) -> None:
    said = (
        r"^policy.model=/models/sd: on node \S+ \(\w{8}\), sampler-\d loaded another unet than sampler-\d on node \S+ "
        r"\(\w{8}\); put the same files there on every node$"
    )
    with pytest.raises(ConfigError, match=said):
        make_fleet(sampler_factory(), base=BaseModels(tmp_path / "marker"))


def test_a_node_with_another_base_model_that_joins_later_gets_no_work(
    make_fleet: Callable[..., RayFleet], tmp_path: Path
) -> None:
    fleet = make_fleet(sampler_factory(), 2, minimum=1, base=BaseModels(tmp_path / "marker"))
    deadline = time.monotonic() + 60
    while fleet.faults.get("unbuilt", 0) < MAX_BUILD_FAILURES:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert len({report.sampler for report, _ in fleet.collect(units(6))}) == 1
    assert fleet.live == 1


def test_groups_outlive_the_samplers_that_made_them(make_fleet: Callable[..., RayFleet]) -> None:
    import ray

    fleet = make_fleet(sampler_factory())
    handles = [handle for _, unit_handles in fleet.collect(units(4)) for handle in unit_handles]
    fleet.shutdown()
    time.sleep(1.5)  # an object owned by a dead sampler would be lost within about a second
    groups = ray.get(handles)
    assert sorted(int(g.latents.max()) for g in groups) == [0, 1, 2, 3]
    assert all(g.nbytes > 1_000_000 for g in groups)
    assert not any(g.latents.flags.writeable for g in groups)  # views of the store, not copies

"""What samplers and learner have in common as Ray actors."""

from __future__ import annotations

import pytest

from raydense.core.ray_actors import DEATHS, ended_by_device_faults


@pytest.mark.ray
def test_an_actor_that_reserves_no_gpu_sees_none(ray_cluster: None) -> None:
    import ray

    @ray.remote(num_cpus=0, num_gpus=0, runtime_env={"env_vars": {"CUDA_VISIBLE_DEVICES": "0,1"}})  # as on a GPU node
    def visible() -> tuple[str, str]:
        import os

        from raydense.core.ray_actors import hide_unreserved_gpus

        before = os.environ["CUDA_VISIBLE_DEVICES"]
        hide_unreserved_gpus()
        return before, os.environ["CUDA_VISIBLE_DEVICES"]

    assert ray.get(visible.remote()) == ("0,1", "")


@pytest.mark.ray
def test_a_process_is_called_after_its_method_whatever_its_task_is_called(ray_cluster: None) -> None:
    """Else every task would begin series of its own in Ray's metrics of processes."""
    import ray

    @ray.remote(num_cpus=0)
    class Actor:
        def work(self, keep: bool) -> str:
            from pathlib import Path

            from raydense.core.ray_actors import keep_title

            if keep:
                keep_title("Actor.work")
            return Path("/proc/self/cmdline").read_bytes().rstrip(b"\0").decode()

    named = Actor.remote().work.options(name="sample stage 3 unit 12")  # type: ignore[attr-defined]
    assert ray.get(named.remote(False)) == "ray::sample stage 3 unit 12"
    assert ray.get(named.remote(True)) == "ray::Actor.work"


@pytest.mark.parametrize("name", ["ActorDiedError", "ActorUnavailableError", "OutOfMemoryError", "NodeDiedError"])
def test_what_ray_says_of_a_dead_process_is_a_death(name: str) -> None:
    import ray.exceptions

    assert issubclass(getattr(ray.exceptions, name), DEATHS)


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), ValueError("CUDA error")]
)
def test_only_a_failed_device_ends_the_process(error: Exception) -> None:
    @ended_by_device_faults
    def work() -> None:
        raise error

    with pytest.raises(type(error), match=str(error)):
        work()

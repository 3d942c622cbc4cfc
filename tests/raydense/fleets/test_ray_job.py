"""What Ray's list of jobs says of a run. A real submission: `test_jobs.py`; a private run: `test_watched_run.py`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from raydense.records.run_dir import JOB_VARIABLE

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
ABOUT = {"job_name": "one", "preset": "tiny", "directory": "s3://bucket/one"}
RECORD = {"status": "RUNNING", "entrypoint": "raydense train", "runtime_env_json": "{}", "driver_exit_code": None}


@pytest.fixture
def submitted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The key of the record that Ray keeps of a submission; this process is its entry point."""
    from ray.experimental.internal_kv import _internal_kv_put

    key = "_ray_internal_job_info_sub-1"  # as a head of Ray 2.60 has it
    _internal_kv_put(key, json.dumps({**RECORD, "metadata": request.param}).encode(), namespace="job")
    given = {"job_submission_id": "sub-1", "job_name": "sub-1"}
    monkeypatch.setenv(JOB_VARIABLE, json.dumps({"runtime_env": {}, "metadata": given}))
    return key


@pytest.mark.parametrize(
    ("submitted", "shown"),
    [
        (None, ABOUT),
        ({}, ABOUT),
        ({"asked_by": "me", "preset": "mine"}, {**ABOUT, "asked_by": "me", "preset": "mine"}),
    ],
    indirect=["submitted"],
)
def test_a_submitted_job_gets_what_its_submission_did_not_give(submitted: str, shown: dict[str, Any]) -> None:
    from ray.dashboard.modules.job.common import JobInfo
    from ray.experimental.internal_kv import _internal_kv_get

    from raydense.fleets.ray_job import tell_job

    tell_job(ABOUT)
    record = json.loads(_internal_kv_get(submitted, namespace="job"))
    assert record == {**RECORD, "metadata": shown}
    assert JobInfo.from_json(record).metadata == shown  # Ray reads it


@pytest.mark.parametrize("variable", [None, "{}", '{"metadata": {}}', '{"metadata": {"job_submission_id": "gone"}}'])
def test_nothing_is_written_where_there_is_no_such_job(variable: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.experimental.internal_kv import _internal_kv_exists

    from raydense.fleets.ray_job import tell_job

    monkeypatch.delenv(JOB_VARIABLE, raising=False)
    if variable is not None:
        monkeypatch.setenv(JOB_VARIABLE, variable)
    tell_job(ABOUT)
    assert not _internal_kv_exists("_ray_internal_job_info_gone", namespace="job")


@pytest.mark.parametrize("submitted", [{}], indirect=True)
@pytest.mark.parametrize(
    "gone",
    [
        "ray._private.ray_constants.KV_NAMESPACE_JOB",
        "ray.dashboard.modules.job.common.JobInfoStorageClient.JOB_DATA_KEY",
    ],
)
def test_a_ray_that_keeps_its_jobs_elsewhere_costs_the_entry_and_not_the_run(
    submitted: str, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.experimental.internal_kv import _internal_kv_get

    from raydense.fleets.ray_job import tell_job

    monkeypatch.delattr(gone)
    tell_job(ABOUT)
    assert json.loads(_internal_kv_get(submitted, namespace="job")) == {**RECORD, "metadata": {}}

"""A run at `s3://`, on an S3 server that is no simulation: written, stopped, continued, and refused to a wrong key."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from machines.bucket import READER, Bucket
from machines.cluster import Cluster
from machines.runs import Run, Runs

pytestmark = [pytest.mark.hosts, pytest.mark.ray, pytest.mark.timeout(1500)]

RUN = "/one"
FIRST_STAGE = f"runs{RUN}/checkpoints/stage-0001/manifest.json"


@dataclass
class AtS3:
    """A run that was stopped after its first stage, and the one that continued it."""

    project: Path
    stopped: Run
    resumed: Run


@pytest.fixture(scope="module")
def bucket(cluster: Cluster) -> Bucket:
    return Bucket(cluster)


@pytest.fixture(scope="module")
def at_s3(cluster: Cluster, runs: Runs, bucket: Bucket) -> AtS3:
    project = runs.project("at-s3", pace_s=1.0, stage={"count": 6})  # more than it does while it is told to stop
    wanted = {"out": bucket.uri(RUN), "variables": bucket.variables()}
    stopped = runs.begin(project, **wanted)
    stopped.until(lambda: FIRST_STAGE in bucket.names(), "the first stage's checkpoint is in the bucket")
    cluster.job("stop", stopped.job_id)
    stopped.job.wait(120)
    stopped.pace(0)
    resumed = runs.resume(project, **wanted)
    resumed.finish()
    bucket.bring(RUN, project / "run")
    return AtS3(project, stopped, resumed)


def test_a_run_stopped_and_continued_at_s3_has_the_bytes_of_one_process(runs: Runs, at_s3: AtS3) -> None:
    assert "stopping after this step or unit" in at_s3.stopped.said
    assert re.search(r"continuing from stage-000[1-5]", at_s3.resumed.said)
    at_s3.resumed.assert_same(runs.calm(at_s3.project))


def test_the_address_is_shown_and_the_key_is_not(bucket: Bucket, at_s3: AtS3) -> None:
    for run in (at_s3.stopped, at_s3.resumed):
        assert f"run directory: {bucket.uri(RUN)}" in run.said
        assert bucket.secret not in run.said
    assert f" {bucket.uri('/one/lora/pytorch_lora_weights.safetensors')}\n" in at_s3.resumed.said


@pytest.mark.parametrize(
    ("bucket_name", "who", "said"),
    [
        ("none", "owner", "cannot be written (Bucket 'none' not found."),
        ("runs", READER, "cannot be written (When creating key 'two/' in bucket 'runs': AWS Error ACCESS_DENIED"),
        (
            "runs",
            "stranger",
            "cannot be reached (When listing objects under key 'two/' in bucket 'runs': AWS Error ",
        ),
    ],
)
def test_a_place_that_is_refused_is_one_line_before_any_work(
    at_s3: AtS3, runs: Runs, bucket: Bucket, bucket_name: str, who: str, said: str
) -> None:
    uri = bucket.uri("/two", bucket_name)
    arguments = f"{at_s3.project}/config.yaml --out {uri}"
    refused = runs.locally(at_s3.project, arguments, check=False, **bucket.variables(who))
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert f"--out={uri} {said}" in refused.stderr
    assert not {name for name in bucket.names() if "/two/" in name}


def test_a_run_is_not_continued_where_it_may_only_be_read(
    at_s3: AtS3, cluster: Cluster, runs: Runs, bucket: Bucket
) -> None:
    arguments = f"--resume {bucket.uri(RUN)}"
    refused = runs.locally(at_s3.project, arguments, check=False, **bucket.variables(READER))
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "cannot be written" in refused.stderr
    assert not cluster.client.run("ls -d /tmp/raydense-run-*", check=False).stdout

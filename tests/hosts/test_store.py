"""A run at `s3://` on a real S3 server, on a host of its own: SeaweedFS, whose package brings its program."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from machines.cluster import ADDRESSES, Cluster
from machines.host import Host, wait_until
from machines.runs import RESULT, SHARED, Runs

pytestmark = [pytest.mark.hosts, pytest.mark.ray, pytest.mark.timeout(900)]

PORT = 8333
ENDPOINT = f"http://{ADDRESSES['store']}:{PORT}"
KEYS = {"accessKey": "raydense", "secretKey": "0123456789abcdef"}
IDENTITIES = {
    "identities": [{"name": "raydense", "credentials": [KEYS], "actions": ["Admin", "Read", "Write", "List"]}]
}
CREDENTIALS = f"[default]\naws_access_key_id={KEYS['accessKey']}\naws_secret_access_key={KEYS['secretKey']}\n"
CREATE = "from pyarrow.fs import S3FileSystem; S3FileSystem(allow_bucket_creation=True).create_dir('bucket')"
PULL = """
from pyarrow.fs import FileSystem, LocalFileSystem, copy_files
remote, root = FileSystem.from_uri("s3://bucket/runs/one")
copy_files(root, "{target}", source_filesystem=remote, destination_filesystem=LocalFileSystem())
"""


@pytest.fixture(scope="module")
def store(cluster: Cluster) -> Iterator[Host]:
    """The server; the head and the client have its keys, as an instance's role gives them on AWS."""
    host = cluster.add_host("store")
    host.write("identities.json", json.dumps(IDENTITIES))
    flags = f"-ip={host.address} -ip.bind={host.address} -master.volumeSizeLimitMB=64 -volume.max=8"
    host.run("mkdir data")
    host.start(f"exec weed server -dir=data -s3 -s3.port={PORT} -s3.config=identities.json {flags} > weed.log 2>&1")
    for name in ("head", "client"):
        cluster.hosts[name].write(".aws/credentials", CREDENTIALS)
    create = f"python -c {CREATE!r}".replace("'bucket'", '"bucket"')
    wait_until(
        lambda: cluster.client.run(create, check=False, AWS_ENDPOINT_URL=ENDPOINT).returncode == 0, 120, "a bucket"
    )
    yield host
    for name in ("head", "client"):
        cluster.hosts[name].run("rm .aws/credentials")


def test_a_run_at_s3_is_the_run_in_a_directory(cluster: Cluster, runs: Runs, store: Host, tmp_path: Path) -> None:
    project = runs.project("stored")
    run = runs.begin(project, out="s3://bucket/runs/one", variables={"AWS_ENDPOINT_URL": ENDPOINT})
    assert "run directory: s3://bucket/runs/one" in run.finish()
    target = f"{SHARED}/stored/pulled"
    cluster.client.run(f"python -c '{PULL.format(target=target)}'", AWS_ENDPOINT_URL=ENDPOINT)
    calm = runs.calm(project)
    for name in RESULT:
        assert (calm.parent / "pulled" / name).read_bytes() == (calm / name).read_bytes(), name


def test_a_store_without_its_keys_is_one_line(cluster: Cluster, runs: Runs, store: Host) -> None:
    project = runs.project("keyless")
    command = f"cd {project} && python -m raydense.cli train --local config.yaml --out s3://bucket/runs/two"
    keys = {"AWS_ACCESS_KEY_ID": "raydense", "AWS_SECRET_ACCESS_KEY": "wrong"}
    refused = cluster.client.run(command, check=False, AWS_ENDPOINT_URL=ENDPOINT, **keys)
    assert refused.returncode == 2
    (line,) = refused.stderr.strip().splitlines()
    assert "s3://bucket/runs/two cannot be reached" in line and "wrong" not in line

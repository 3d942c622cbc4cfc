"""What Ray's list of jobs says of a run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from raydense.records.run_dir import JOB_VARIABLE


def tell_job(about: Mapping[str, str]) -> None:
    """Adds to the metadata of the job whose entry point this process is; what its submission gave stays.

    Ray takes metadata at a submission only, but lists what lies in its head's store. The job's supervisor writes there
    before the entry point begins and after it has ended, so that the two never meet. Where a Ray keeps no such record,
    or has these private names no more, nothing is added.
    """
    try:
        from ray._private.ray_constants import KV_NAMESPACE_JOB
        from ray.dashboard.modules.job.common import JOB_ID_METADATA_KEY, JobInfoStorageClient
        from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

        job_key = JobInfoStorageClient.JOB_DATA_KEY
    except (ImportError, AttributeError):
        return
    given = json.loads(os.environ.get(JOB_VARIABLE, "{}")).get("metadata", {})
    if (submission := given.get(JOB_ID_METADATA_KEY)) is None:
        return
    key = job_key.format(job_id=submission).encode()
    if record := _internal_kv_get(key, namespace=KV_NAMESPACE_JOB):
        info = json.loads(record)
        info["metadata"] = {**about, **(info.get("metadata") or {})}
        _internal_kv_put(key, json.dumps(info).encode(), overwrite=True, namespace=KV_NAMESPACE_JOB)

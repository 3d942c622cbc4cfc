"""A bucket in a real S3 server, SeaweedFS, on a host of its own."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

from machines.cluster import ADDRESSES, Cluster
from machines.host import wait_until

HOST, PORT, NAME = "store", 8333, "runs"
OWNER, READER = "owner", "reader"
SERVER = f"weed server -dir=data -ip={ADDRESSES[HOST]} -ip.bind=0.0.0.0 -volume.max=10 -s3 -s3.config=keys.json"
CLIENT = """
import sys
from pyarrow.fs import FileSelector, FileSystem, copy_files

remote, root = FileSystem.from_uri(sys.argv[2])
if sys.argv[1] == "make":
    remote.create_dir(root)
elif sys.argv[1] == "list":
    print(*(info.path for info in remote.get_file_info(FileSelector(root, recursive=True)) if info.is_file))
else:
    copy_files(root, sys.argv[3], source_filesystem=remote)
"""


class Bucket:
    """Made by its constructor; it ends with the cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._client, self.secret = cluster.client, secrets.token_hex(16)
        host = cluster.add_host(HOST)
        rights = {OWNER: ["Admin", "Read", "List", "Tagging", "Write"], READER: ["Read", "List"]}
        keys = [
            {"name": who, "credentials": [{"accessKey": who, "secretKey": self.secret}], "actions": actions}
            for who, actions in rights.items()
        ]
        host.write("keys.json", json.dumps({"identities": keys}))
        host.run(f"mkdir data; setsid {SERVER} > server.log 2>&1 &")
        self._client.write("s3.py", CLIENT)
        wait_until(self._make, 120, "the S3 server")

    def uri(self, below: str = "", bucket: str = NAME) -> str:
        """With where the server is, that is not AWS's."""
        return f"s3://{bucket}{below}?endpoint_override=http://{ADDRESSES[HOST]}:{PORT}"

    def variables(self, who: str = OWNER) -> dict[str, str]:
        """As users of S3 set them."""
        return {"AWS_ACCESS_KEY_ID": who, "AWS_SECRET_ACCESS_KEY": self.secret, "AWS_EC2_METADATA_DISABLED": "true"}

    def names(self) -> set[str]:
        """Of the files in it."""
        return set(self._run("list", self.uri()).split())

    def bring(self, below: str, place: Path) -> None:
        """Copies what lies there to a directory on the client."""
        self._run("copy", self.uri(below), str(place))

    def _make(self) -> bool:
        line = self._line("make", f"{self.uri()}&allow_bucket_creation=true")
        return not self._client.run(line, check=False, **self.variables()).returncode

    def _run(self, *arguments: str) -> str:
        return self._client.run(self._line(*arguments), **self.variables()).stdout

    @staticmethod
    def _line(*arguments: str) -> str:
        return f"python s3.py {' '.join(map(repr, arguments))}"

# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""Fetches some files of a package's source distribution: `fetch.py PACKAGE==VERSION SHA256 FOLDER FILE...`.

The index is that of uv or pip, if the environment names one. What does not have the checksum is not unpacked.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pathlib
import sys
import tarfile
import urllib.parse
import urllib.request

INDEX = os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("PIP_INDEX_URL") or "https://pypi.org/simple"
LISTING = "application/vnd.pypi.simple.v1+json"
BYTES_MAX = 256 << 20


def read(url: str, accept: str = "*/*") -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept}), timeout=180) as reply:
        data = reply.read(BYTES_MAX + 1)
    if len(data) > BYTES_MAX:
        raise SystemExit(f"{url} is longer than {BYTES_MAX} bytes")
    return data


def distribution(package: str, version: str) -> bytes:
    page = f"{INDEX.rstrip('/')}/{package}/"
    files = json.loads(read(page, LISTING))["files"]
    urls = [file["url"] for file in files if file["filename"] == f"{package}-{version}.tar.gz"]
    if not urls:
        raise SystemExit(f"{page} has no source distribution of {version}")
    return read(urllib.parse.urljoin(page, urls[0]))


def main(requirement: str, sha256: str, folder: str, *wanted: str) -> None:
    package, version = requirement.split("==")
    data = distribution(package, version)
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise SystemExit(f"the source distribution of {requirement} has the checksum {found}, not {sha256}")
    top = f"{package}-{version}"
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for name in wanted:
            file = archive.extractfile(f"{top}/{name}")
            if file is None:
                raise SystemExit(f"{requirement} has no file {name}")
            path = pathlib.Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.read())


if __name__ == "__main__":
    main(*sys.argv[1:])

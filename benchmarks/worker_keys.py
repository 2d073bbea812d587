"""Questions to the workers of a cluster itself, which answer to its key only."""

from __future__ import annotations

import urllib.request
from typing import ClassVar

from ps_sglang.launch import Cluster


class _WorkerKeys(urllib.request.BaseHandler):
    """Adds a cluster's key to what urllib sends to one of its workers."""

    known: ClassVar[dict[str, str]] = {}

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        if (authorization := self.known.get(request.host)) is not None:
            request.add_unredirected_header("Authorization", authorization)
        return request


def let_in(cluster: Cluster, *urls: str) -> None:
    """From now on `urllib.request.urlopen` has the key for a cluster's workers, also at `urls`."""
    for url in (*(worker.url for worker in cluster.workers), *urls):
        _WorkerKeys.known[url.removeprefix("http://")] = cluster.key.authorization
    urllib.request.install_opener(urllib.request.build_opener(_WorkerKeys))

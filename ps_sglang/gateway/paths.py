"""Paths of routes: each is registered as it is, and most once more below a decoder's name."""

from __future__ import annotations

from typing import Final

from aiohttp import web

OF_ONE_DECODER: Final = "/models/{model}"
"""What stands before a path that is for one decoder."""


def registered_path(request: web.Request) -> str | None:
    """The path that a request's route is registered with, without OF_ONE_DECODER.

    None where no route is.
    """
    resource = request.match_info.route.resource
    return None if resource is None else resource.canonical.removeprefix(OF_ONE_DECODER)

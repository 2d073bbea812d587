"""`python -m ps_sglang.gateway --config FILE`: serve a cluster until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import uvloop

from ps_sglang.errors import UsageError
from ps_sglang.gateway.access.tls import Certificate
from ps_sglang.gateway.app import build_app
from ps_sglang.gateway.config import ConfigError, GatewayConfig, is_loopback
from ps_sglang.gateway.dispatch.background import cancel
from ps_sglang.gateway.gc_control import collect_in_pauses
from ps_sglang.gateway.listener import HttpListener
from ps_sglang.gateway.server import runner, serve_peers
from ps_sglang.gateway.state import GATEWAY, Gateway
from ps_sglang.gateway.telemetry import log
from ps_sglang.open_files import raise_limit

_LOOK_SECONDS: Final = 0.1


async def serve(config: GatewayConfig) -> None:
    """Serve until a signal comes; prints `ready http://host:port` (or https) once it listens.

    Where admins have a port of their own, `admin http://host:port` comes before. In a log of JSON
    these are the `message` of a line.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    certificate = None
    if config.tls_cert is not None and config.tls_key is not None:
        certificate = Certificate(Path(config.tls_cert), Path(config.tls_key))
    app = runner(build_app(config))
    await app.setup()
    gateway = app.app[GATEWAY]
    pool = gateway.pool
    garbage = asyncio.create_task(collect_in_pauses(pool.requests))
    tls = None if certificate is None else certificate.context
    descriptors = gateway.descriptors
    listener = HttpListener(app, descriptors, tls, is_shared=config.processes > 1)
    for_admins = HttpListener(app, descriptors, tls, for_admins=True)
    if config.api_keys is None and not is_loopback(config.host):
        logging.getLogger("ps_sglang.gateway").warning(
            "there are no keys: whoever reaches %s may use this cluster", config.host
        )
    try:
        await serve_peers(app, gateway)
        shared_port = config.port if gateway.follower is None else await gateway.follower.port()
        port = await listener.start(config.host, shared_port)
        if gateway.follower is None:
            gateway.owner.listens(port)
        if config.admin_port is not None and gateway.follower is None:
            host = config.admin_host or config.host
            admin_port = await for_admins.start(host, config.admin_port)
            print(log.line_of(config.log_format, f"admin {_url(config, host, admin_port)}"))
        ready = f"ready {_url(config, config.host, port)}"
        print(log.line_of(config.log_format, ready), flush=True)
        await stop.wait()
        await _drain(gateway)
    finally:
        await cancel(garbage)
        listener.stop()
        for_admins.stop()
        await app.cleanup()


async def _drain(gateway: Gateway) -> None:
    """Let requests end, for as long as the configuration gives them. New ones are served meanwhile:
    a load balancer notices only after a while that this gateway is no longer ready."""
    gateway.draining.set()
    with suppress(TimeoutError):
        async with asyncio.timeout(gateway.config.drain_s):
            # Requests are counted with their workers, who tell nobody of their end.
            while gateway.pool.requests()[0]:  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_SECONDS)


def _url(config: GatewayConfig, host: str, port: int) -> str:
    host = f"[{host}]" if ":" in host else host
    scheme = "http" if config.tls_cert is None else "https"
    return f"{scheme}://{host}:{port}"


def main() -> None:
    """Entry point; exits with 0 on a signal, with a message if it cannot serve."""
    parser = argparse.ArgumentParser(prog="python -m ps_sglang.gateway", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="a GatewayConfig as JSON")
    arguments = parser.parse_args()
    raise_limit()
    try:
        config = GatewayConfig.load(arguments.config)
        log.configure(config.log_format)
        uvloop.run(serve(config))
    except (ConfigError, UsageError, OSError) as error:
        sys.exit(f"gateway: {error}")


if __name__ == "__main__":
    main()

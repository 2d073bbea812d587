"""`python -m ps_sglang.gateway --config FILE`: serve a cluster until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path

import uvloop

from ps_sglang.errors import UsageError
from ps_sglang.gateway.access.tls import Certificate
from ps_sglang.gateway.app import build_app
from ps_sglang.gateway.config import ConfigError, GatewayConfig, is_loopback
from ps_sglang.gateway.dispatch.background import cancel
from ps_sglang.gateway.gc_control import collect_in_pauses
from ps_sglang.gateway.listener import HttpListener
from ps_sglang.gateway.server import runner
from ps_sglang.gateway.state import GATEWAY
from ps_sglang.gateway.telemetry import log
from ps_sglang.open_files import raise_limit


async def serve(config: GatewayConfig) -> None:
    """Serve until a signal comes; prints `ready http://host:port` (or https) once it listens.

    Where admins have a port of their own, `admin http://host:port` comes before.
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
    pool = app.app[GATEWAY].pool
    garbage = asyncio.create_task(collect_in_pauses(pool.requests))
    tls = None if certificate is None else certificate.context
    descriptors = app.app[GATEWAY].descriptors
    listener = HttpListener(app, descriptors, tls)
    for_admins = HttpListener(app, descriptors, tls, for_admins=True)
    if config.api_keys is None and not is_loopback(config.host):
        logging.getLogger("ps_sglang.gateway").warning(
            "there are no keys: whoever reaches %s may use this cluster", config.host
        )
    try:
        port = await listener.start(config.host, config.port)
        if config.admin_port is not None:
            host = config.admin_host or config.host
            admin_port = await for_admins.start(host, config.admin_port)
            print(f"admin {_url(config, host, admin_port)}")
        print(f"ready {_url(config, config.host, port)}", flush=True)
        await stop.wait()
    finally:
        await cancel(garbage)
        listener.stop()
        for_admins.stop()
        await app.cleanup()


def _url(config: GatewayConfig, host: str, port: int) -> str:
    host = f"[{host}]" if ":" in host else host
    scheme = "http" if config.tls_cert is None else "https"
    return f"{scheme}://{host}:{port}"


def main() -> None:
    """Entry point; exits with 0 on a signal, with a message if it cannot serve."""
    parser = argparse.ArgumentParser(prog="python -m ps_sglang.gateway", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="a GatewayConfig as JSON")
    arguments = parser.parse_args()
    log.configure()
    raise_limit()
    try:
        uvloop.run(serve(GatewayConfig.load(arguments.config)))
    except (ConfigError, UsageError, OSError) as error:
        sys.exit(f"gateway: {error}")


if __name__ == "__main__":
    main()

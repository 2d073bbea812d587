"""The gateway behind HTTPS: its certificate, a new one, and clients that speak something else."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ps_sglang.gateway import listener
from ps_sglang.gateway.access import file_watch
from ps_sglang.gateway.access.tls import Certificate
from ps_sglang.gateway.state import GATEWAY
from ps_sglang.gateway_http import Credentials, GatewayUnreachable, call
from tests.gateway.gateway_setup import Setup, running
from tests.support.certificates import write_certificate


@dataclass
class Encrypted:
    gateway: Setup
    port: int
    cert: Path
    key: Path

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    async def served(self, cert: Path) -> bool:
        """Whether a client that trusts `cert` alone gets an answer."""
        context = ssl.create_default_context(cafile=cert)
        url, headers = self.url + "/v1/models", {"Connection": "close"}
        try:
            async with self.gateway.http.get(url, ssl=context, headers=headers) as response:
                return response.status == 200
        except OSError:
            return False


@pytest.fixture
async def encrypted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Encrypted]:
    monkeypatch.setattr(file_watch, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(listener, "HEAD_SECONDS", 0.3)
    cert, key = write_certificate(tmp_path, "one")
    certificate = Certificate(cert, key)
    async with running() as gateway:
        descriptors = gateway.app[GATEWAY].descriptors
        made = listener.HttpListener(gateway.runner, descriptors, certificate.context)
        yield Encrypted(gateway, await made.start("127.0.0.1", 0), cert, key)
        made.stop()


async def test_a_stream_comes_through(encrypted: Encrypted) -> None:
    context = ssl.create_default_context(cafile=encrypted.cert)
    body = {"model": "a", "prompt": "x", "stream": True}
    async with encrypted.gateway.http.post(
        encrypted.url + "/v1/completions", json=body, ssl=context
    ) as response:
        assert (await response.text()).endswith("data: [DONE]\n\n")


async def test_a_new_certificate_is_taken_and_a_broken_one_is_not(
    encrypted: Encrypted, tmp_path: Path
) -> None:
    old = tmp_path / "old.pem"
    old.write_bytes(encrypted.cert.read_bytes())
    new_cert, new_key = write_certificate(tmp_path, "two")
    assert await encrypted.served(old)
    encrypted.cert.write_text("broken")
    assert await encrypted.served(old), "the one from before"
    encrypted.cert.write_bytes(new_cert.read_bytes())
    encrypted.key.write_bytes(new_key.read_bytes())
    assert await encrypted.served(new_cert)
    assert not await encrypted.served(old)


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01", b""])
async def test_who_speaks_no_tls_is_ended_and_holds_nothing(
    encrypted: Encrypted, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """One that says nothing at all, too, after the time that it has for a request's head."""
    counted, gone = listener.HttpListener.gone, asyncio.Event()

    def note(*arguments: Any) -> None:
        counted(*arguments)
        gone.set()

    monkeypatch.setattr(listener.HttpListener, "gone", note)
    reader, writer = await asyncio.open_connection("127.0.0.1", encrypted.port)
    writer.write(sent)
    said = await reader.read()
    assert b"HTTP" not in said
    writer.close()
    await gone.wait()
    assert encrypted.gateway.app[GATEWAY].descriptors.clients == 0
    assert await encrypted.served(encrypted.cert)


async def test_the_launcher_knows_its_gateways_certificate(
    encrypted: Encrypted, tmp_path: Path
) -> None:
    """By the certificate itself, whoever has issued it and whatever address it is for."""
    issuer = write_certificate(tmp_path, "issuer")
    for made, place in zip(
        write_certificate(tmp_path, "issued", issuer=issuer),
        (encrypted.cert, encrypted.key),
        strict=True,
    ):
        place.write_bytes(made.read_bytes())
    other, _ = write_certificate(tmp_path, "other")
    url = encrypted.url.replace("127.0.0.1", "localhost") + "/v1/models"

    async def models(certificate: Path | None) -> object:
        credentials = Credentials(None, certificate)
        return await asyncio.to_thread(call, url, timeout_s=10, credentials=credentials)

    assert await models(encrypted.cert)
    for wrong in (other, None):
        with pytest.raises(GatewayUnreachable, match="CERTIFICATE_VERIFY_FAILED"):
            await models(wrong)

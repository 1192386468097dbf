"""The health command, as a container's probe runs it: against a plain server, TLS, mutual TLS, and nobody."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import trustme
from conftest import PATIENCE, Running, StartServer, fake_models, make_settings

from server.health import status
from translator import cli


async def ask(running: Running, timeout: float = PATIENCE) -> str:
    settings = running.server.settings.model_copy(update={"port": running.server.port})
    return await asyncio.to_thread(status, settings, timeout)


async def test_serving_then_not_serving(start_server: StartServer) -> None:
    models = fake_models()
    models["fake", "zh-en"].hold()
    running = await start_server(models, started=False)
    starting = asyncio.create_task(running.server.start())
    await models["fake", "zh-en"].started()
    assert await ask(running) == "NOT_SERVING"
    models["fake", "zh-en"].release()
    await starting
    assert await ask(running) == "SERVING"


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
async def test_a_server_on_all_interfaces_is_asked_on_this_machine(start_server: StartServer, host: str) -> None:
    running = await start_server(host=host)
    assert await ask(running) == "SERVING"


@pytest.mark.parametrize("name", ["comments.example", "*.example", "127.0.0.1"])
@pytest.mark.parametrize("mutual", [False, True])
async def test_tls_needs_no_flag_of_its_own(start_server: StartServer, tmp_path: Path, name: str, mutual: bool) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert(name)
    certificate, key, ca = tmp_path / "certificate.pem", tmp_path / "key.pem", tmp_path / "ca.pem"
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    ca.write_bytes(authority.cert_pem.bytes())
    running = await start_server(
        tls_certificate=certificate, tls_private_key=key, tls_client_ca=ca if mutual else None, auth_token="secret"
    )
    assert await ask(running) == "SERVING"


def test_nobody_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert status(make_settings(port=1), 0.2).startswith("no answer from 127.0.0.1:1")
    with pytest.raises(SystemExit) as end:
        cli.main(["health", "--port", "1", "--timeout", "0.2"])
    assert end.value.code == 1
    assert "127.0.0.1:1" in capsys.readouterr().out

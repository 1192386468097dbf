"""The life of the server process: bind, load, serve, drain."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
from pathlib import Path
from time import monotonic
from typing import Any

import grpc
import structlog
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from server import logs
from server.health import address_of
from server.interceptors import CallInterceptor
from server.metrics import Metrics
from server.servicer import TranslationServicer
from translator import __version__, snapshot
from translator.allocator import keep_freed_memory
from translator.config import Settings
from translator.errors import ConfigError
from translator.model import Model
from translator.service import Translator
from translator.v1 import translation_pb2 as pb
from translator.v1 import translation_pb2_grpc as pb_grpc

log = structlog.get_logger("server")

SERVICE = pb.DESCRIPTOR.services_by_name["TranslationService"].full_name
# How often the health service looks whether the workers still succeed, in seconds.
HEALTH_INTERVAL = 1.0
# When stopping: calls that are on their way are served for so long, then refused for so long, in seconds; either
# ends sooner when none has come for QUIET. A busy machine may take a while to bring a waiting call to its handler.
SERVE_LATE, REFUSE_LATE, QUIET = 3.0, 0.5, 0.2


class Server:
    """One server. ``start`` binds and loads, ``stop`` drains; used by ``run`` and by tests.

    Args:
        models: loaded models by (family, pair), for tests; by default those that ``settings`` name are loaded.
    """

    def __init__(self, settings: Settings, models: dict[tuple[str, str], Model] | None = None) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.translator = Translator(settings, models, self.metrics)
        self.metrics.watch(self.translator)
        self.port = 0
        self.metrics_port = 0
        self._health = health_aio.HealthServicer()
        self._servicer = TranslationServicer(self.translator, settings)
        keepalive_ms = int(settings.keepalive_seconds * 1000)
        self._calls = CallInterceptor(self.metrics, settings.auth_token)
        self._server = grpc.aio.server(
            interceptors=[self._calls],
            options=[
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", settings.max_message_bytes),
                ("grpc.keepalive_time_ms", keepalive_ms),
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                ("grpc.http2.max_ping_strikes", 5),
                # A second server on the same port would silently take half of the calls.
                ("grpc.so_reuseport", 0),
            ],
        )
        self._watch: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._exporter: tuple[object, object] | None = None

    async def start(self) -> None:
        """Bind the ports, answer NOT_SERVING while the models load, then SERVING.

        Raises:
            ConfigError: a port is taken, a TLS file cannot be read, or the cache file cannot be written.
            ModelError: a model cannot be loaded.
        """
        settings = self.settings
        if settings.cache_file:
            if settings.cache_ttl_seconds:
                raise ConfigError("cache_file and cache_ttl_seconds exclude each other: the file keeps no ages")
            snapshot.check(settings.cache_file)
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        pb_grpc.add_TranslationServiceServicer_to_server(self._servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if settings.reflection:
            names = (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
            pool: Any = _Symbols()
            reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), self._server, pool)
        address = address_of(settings.host, settings.port)
        try:
            credentials = _credentials(settings)
            if credentials:
                self.port = self._server.add_secure_port(address, credentials)
            else:
                self.port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise ConfigError(
                f"host, port: cannot listen on {address}; is the port taken, or the address not this machine's?"
            ) from error
        if settings.metrics_port >= 0:
            try:
                httpd, _ = self._exporter = self.metrics.serve(settings.metrics_host, settings.metrics_port)
            except OSError as error:
                raise ConfigError(
                    f"metrics_host, metrics_port: cannot listen on {settings.metrics_host}:"
                    f"{settings.metrics_port}: {error.strerror}"
                ) from error
            self.metrics_port = httpd.server_port
        await self._server.start()
        await self.translator.start()
        await self._load_cache()
        self._watch = asyncio.create_task(self._watch_health())
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, grace: float | None = None) -> None:
        """Say NOT_SERVING, refuse new calls, finish what was accepted, then stop.

        Args:
            grace: seconds that calls in flight have; by default the settings' ``drain_seconds``. Who calls while the
                server is stopping waits for that stop.
        """
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(self.settings.drain_seconds if grace is None else grace))
        # grpc's own stop must run once and to its end: cut off or called twice, it takes the process with it.
        await asyncio.shield(self._stopping)

    async def _stop(self, grace: float) -> None:
        if self._watch:
            self._watch.cancel()
        await self._health.enter_graceful_shutdown()
        self._servicer.drain()
        end = monotonic() + grace
        # grpc cancels what has arrived but has not reached a handler, and clients do not try again after CANCELLED.
        # So the backlog is let in first; who comes after it is told to go elsewhere.
        await self._quiet(min(grace, SERVE_LATE))
        self._calls.refuse()
        await self._quiet(min(end - monotonic(), REFUSE_LATE))
        await self._server.stop(max(0.0, end - monotonic()))
        await self.translator.close(drain=False)
        await self._save_cache()
        if self._exporter:
            httpd = self._exporter[0]
            httpd.shutdown()  # type: ignore[attr-defined]
            httpd.server_close()  # type: ignore[attr-defined]
            self._exporter = None

    async def _load_cache(self) -> None:
        path = self.settings.cache_file
        if path:
            try:
                log.info("cache loaded", path=str(path), sentences=await self.translator.load_cache(path))
            except (OSError, ValueError) as error:
                log.warning("cache file not read; starting empty", path=str(path), error=str(error))

    async def _save_cache(self) -> None:
        path = self.settings.cache_file
        if path and self._watch:  # a start that failed must not replace the file by an empty one
            try:
                log.info("cache saved", path=str(path), sentences=await self.translator.save_cache(path))
            except OSError as error:
                log.error("cache file not written", path=str(path), error=str(error))

    async def _quiet(self, seconds: float) -> None:
        """Return when no call has come for a moment, at the latest after ``seconds``."""
        end = monotonic() + seconds
        accepted = -1
        while accepted != self._calls.accepted and monotonic() < end:
            accepted = self._calls.accepted
            await asyncio.sleep(QUIET)

    async def _set_health(self, status: Any) -> None:
        for name in ("", SERVICE):
            await self._health.set(name, status)

    async def _watch_health(self) -> None:
        """Follow the workers: NOT_SERVING while they keep failing, and give them something to succeed with."""
        serving = True
        while True:
            await asyncio.sleep(HEALTH_INTERVAL)
            if not self.translator.ready:
                await self.translator.probe()
            if self.translator.ready != serving:
                serving = self.translator.ready
                status = health_pb2.HealthCheckResponse
                await self._set_health(status.SERVING if serving else status.NOT_SERVING)
                log.warning("health changed", serving=serving)


class _Symbols:
    """The default descriptor pool, which also finds methods by name: ghz asks for "package.Service.Method"."""

    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:
        """The file that defines a message, a service or a method; KeyError when there is none."""
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            return self._pool.FindMethodByName(symbol).containing_service.file


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """TLS from the settings, or None.

    Raises:
        ConfigError: one of the pair is missing, or a file cannot be read.
    """
    if bool(settings.tls_certificate) != bool(settings.tls_private_key):
        raise ConfigError("tls_certificate and tls_private_key belong together; give both or neither")
    if not settings.tls_certificate or not settings.tls_private_key:
        if settings.tls_client_ca:
            raise ConfigError("tls_client_ca needs tls_certificate and tls_private_key")
        return None
    key, certificate = (
        _read("tls_private_key", settings.tls_private_key),
        _read("tls_certificate", settings.tls_certificate),
    )
    ca = _read("tls_client_ca", settings.tls_client_ca) if settings.tls_client_ca else None
    # Looked at here because grpc says no more than that it could not listen.
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.tls_certificate, settings.tls_private_key, password="")
    except ssl.SSLError as error:
        raise ConfigError(
            f"tls_certificate, tls_private_key: {settings.tls_certificate} and {settings.tls_private_key} are not a "
            f"PEM certificate and its unencrypted key: {error.reason or error}"
        ) from error
    if settings.tls_client_ca:
        try:
            context.load_verify_locations(settings.tls_client_ca)
        except ssl.SSLError as error:
            raise ConfigError(f"tls_client_ca: {settings.tls_client_ca} holds no PEM certificate") from error
    return grpc.ssl_server_credentials([(key, certificate)], ca, require_client_auth=ca is not None)


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{name}: cannot read {path}: {error.strerror}") from error


async def _serve(settings: Settings) -> None:
    started = monotonic()
    server = Server(settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            log.error("second signal: stopping at once")
            os._exit(1)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    starting = asyncio.create_task(server.start())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await server.stop(0)
        return
    try:
        await starting
    except Exception:
        await server.stop(0)
        raise
    seconds = round(monotonic() - started, 2)
    models = [model.description for model in server.translator.models.values()]
    log.info(
        "serving",
        version=__version__,
        address=f"{settings.host}:{server.port}",
        metrics_port=server.metrics_port if settings.metrics_port >= 0 else None,
        models=[f"{m.name}/{m.pair} {m.engine} {m.compute_type} {m.device}" for m in models],
        seconds=seconds,
    )
    if settings.log_format != "json":
        print(_hint(settings, server.port), flush=True)
    await stop.wait()
    log.info("draining", seconds=settings.drain_seconds, in_model=server.translator.batcher.in_model)
    await server.stop()
    log.info("stopped")


def _hint(settings: Settings, port: int) -> str:
    """What to type next."""
    host = "localhost" if settings.host in ("127.0.0.1", "0.0.0.0", "::") else settings.host
    plain = "" if settings.tls_certificate else "-plaintext "
    request = '{"contents": ["这家店的奶茶绝了😭"], "target_language_code": "en"}'
    make, folder = "", ""
    if (Path(__file__).parent.parent / "Makefile").exists():
        folder = ".tools/"
        make = (
            "  make client                     # a small Python client, docs/client.py\n"
            "  make tools                      # installs grpcurl and ghz (needs Go), then:\n"
        )
    return (
        f"\nServing on {host}:{port}. In another terminal, type:\n\n"
        f"{make}  {folder}grpcurl {plain}-d '{request}' \\\n    {host}:{port} {SERVICE}/TranslateText\n\n"
        "Ctrl-C drains and stops.\n"
    )


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit status.

    Raises:
        ConfigError, ModelError: the server could not start.
    """
    keep_freed_memory()
    logs.configure(settings)
    asyncio.run(_serve(settings))
    return 0

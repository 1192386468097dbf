"""The client side of the health service, for containers: their probes run a command and read its exit status."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from translator.config import Settings

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def address_of(host: str, port: int) -> str:
    """As gRPC writes it: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def status(settings: Settings, timeout: float) -> str:
    """Ask the server that these settings start, on this machine.

    Returns:
        ``SERVING``, ``NOT_SERVING`` ..., or why there is no answer.
    """
    host = _EVERYWHERE.get(settings.host, settings.host)
    address = address_of(host, settings.port)
    try:
        with _channel(settings, host, address, timeout) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout, wait_for_ready=True)
            return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    except grpc.RpcError as error:
        return f"no answer from {address}: {error.code().name}"
    except OSError as error:
        return f"no answer from {address}: {error}"


def _channel(settings: Settings, host: str, address: str, timeout: float) -> grpc.Channel:
    # A proxy that the environment names is not for this machine's own ports.
    options: list[tuple[str, object]] = [("grpc.enable_http_proxy", 0)]
    if not settings.tls_certificate or not settings.tls_private_key:
        return grpc.insecure_channel(address, options=options)
    # Whoever shows the server's own certificate is the server: it is all that needs to be trusted, whatever name it
    # was issued for. It is shown in turn, which is enough for mutual TLS where one authority signs both sides.
    name = _name_in(settings.tls_certificate, (host, settings.port), timeout)
    certificate = settings.tls_certificate.read_bytes()
    credentials = grpc.ssl_channel_credentials(certificate, settings.tls_private_key.read_bytes(), certificate)
    return grpc.secure_channel(address, credentials, options=[*options, ("grpc.ssl_target_name_override", name)])


def _name_in(certificate: Path, address: tuple[str, int], timeout: float) -> str:
    """A name for which the server's certificate is valid. Python reads certificates in a handshake only."""
    context = ssl.create_default_context(cafile=str(certificate))
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(address, timeout) as plain, context.wrap_socket(plain) as connection:
        found: Any = connection.getpeercert() or {}
    names = [str(value) for _, value in found.get("subjectAltName", ())]
    return names[0].replace("*", "any") if names else address[0]

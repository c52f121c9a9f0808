"""One HTTP request over a pool of connections, blocking or in asyncio, within a deadline.

It is httpcore, the lower half of httpx, that speaks HTTP. It looks at no proxy of the environment
(a model server is asked directly), follows no redirect, and can be given a network of one's own:
that is how a blocking request too ends at its deadline, however slowly the server trickles.
"""

import asyncio
import dataclasses
import math
import ssl
import time
from collections.abc import Iterable
from typing import Any

import httpcore

from serve.client_calls import ClientError, Deadline

# Idle connections are given up before servers and proxies close them (many after 5 seconds): a
# request on a connection that just then is closed would be lost.
IDLE_SECONDS = 4.0
IDLE_CONNECTIONS = 32

HEADERS = [("Accept", "application/json"), ("Content-Type", "application/json")]

# NetworkError: no connection, or a broken one; ProtocolError: no HTTP, or an answer cut off.
FAILURES = (httpcore.NetworkError, httpcore.ProtocolError)


@dataclasses.dataclass(frozen=True)
class Tls:
    """The files, all PEM, of an encrypted connection.

    Args:
        root_certificate: whom to trust; by default whom the machine or gRPC trusts.
        certificate: the client's own, for a server that asks for it.
        key: of `certificate`.
        server_name: name in the server's certificate, if it is not the host of the address.
    """

    root_certificate: str | None = None
    certificate: str | None = None
    key: str | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("a client certificate and its key go together")


class BlockingHttp:
    """Sends requests, each by blocking; any number of threads may do so at once."""

    def __init__(self, tls: Tls | None) -> None:
        self._server_name = tls.server_name if tls else None
        self._is_closed = False
        self._pool = httpcore.ConnectionPool(
            ssl_context=_ssl_context(tls),
            max_connections=None,
            max_keepalive_connections=IDLE_CONNECTIONS,
            keepalive_expiry=IDLE_SECONDS,
            network_backend=_NetworkUntil(),
        )

    async def send(
        self, method: str, url: str, body: bytes | None, deadline: Deadline
    ) -> tuple[int, bytes]:
        """The status and the body of the answer.

        Raises:
            ClientError: UNAVAILABLE if nothing was sent; DEADLINE_EXCEEDED; else UNKNOWN.
        """
        deadline.remaining(url)
        # _NetworkUntil takes these for moments
        timeouts = dict.fromkeys(("connect", "read", "write"), deadline.moment)
        try:
            response = self._pool.request(
                method,
                url,
                headers=HEADERS,
                content=body,
                extensions={"timeout": timeouts, "sni_hostname": self._server_name},
            )
        except (httpcore.TimeoutException, *FAILURES) as error:
            raise _to_client_error(url, error, deadline) from None
        finally:
            if self._is_closed:  # an abandoned request has outlived the client
                self._pool.close()
        return response.status, response.content

    async def close(self) -> None:
        self._is_closed = True
        self._pool.close()


class AsyncHttp:
    """The same in asyncio."""

    def __init__(self, tls: Tls | None) -> None:
        self._server_name = tls.server_name if tls else None
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=_ssl_context(tls),
            max_connections=None,
            max_keepalive_connections=IDLE_CONNECTIONS,
            keepalive_expiry=IDLE_SECONDS,
        )

    async def send(
        self, method: str, url: str, body: bytes | None, deadline: Deadline
    ) -> tuple[int, bytes]:
        try:
            async with asyncio.timeout(deadline.remaining(url)):
                response = await self._pool.request(
                    method,
                    url,
                    headers=HEADERS,
                    content=body,
                    extensions={"sni_hostname": self._server_name},
                )
        except (TimeoutError, *FAILURES) as error:
            raise _to_client_error(url, error, deadline) from None
        return response.status, response.content

    async def close(self) -> None:
        await self._pool.aclose()


class _StreamUntil(httpcore.NetworkStream):
    """A connection whose time-outs are moments of time.monotonic()."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _seconds_until(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # in pieces, as each of them may take the whole time
        for start in range(0, len(buffer), 65536):
            seconds = _seconds_until(timeout, httpcore.WriteTimeout)
            self._stream.write(buffer[start : start + 65536], seconds)

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        seconds = _seconds_until(timeout, httpcore.ConnectTimeout)
        return _StreamUntil(self._stream.start_tls(ssl_context, server_hostname, seconds))

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _NetworkUntil(httpcore.NetworkBackend):
    """The usual network, but for the meaning of its time-outs."""

    def __init__(self) -> None:
        self._network = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        seconds = _seconds_until(timeout, httpcore.ConnectTimeout)
        return _StreamUntil(
            self._network.connect_tcp(host, port, seconds, local_address, socket_options)
        )


def _seconds_until(moment: float | None, timeout: type[httpcore.TimeoutException]) -> float | None:
    if moment is None or moment == math.inf:
        return None
    seconds = moment - time.monotonic()
    if seconds <= 0:
        raise timeout("the deadline is over")
    return seconds


def _to_client_error(url: str, error: Exception, deadline: Deadline) -> ClientError:
    if isinstance(error, httpcore.TimeoutException | TimeoutError):
        return deadline.error(url)
    reason = str(error) or type(error).__name__
    is_untrusted = bool(error.args) and isinstance(error.args[0], ssl.SSLError)
    if isinstance(error, httpcore.ConnectError) and not is_untrusted:
        code = "UNAVAILABLE"  # and nothing was sent
    else:
        code = "UNKNOWN"  # the server may have done its work
    return ClientError(code, reason, f"no answer from {url}: {reason}")


def _ssl_context(tls: Tls | None) -> ssl.SSLContext | None:
    if tls is None:
        return None  # httpcore makes one when it first meets https
    context = ssl.create_default_context(cafile=tls.root_certificate)
    if tls.certificate is not None:
        context.load_cert_chain(tls.certificate, tls.key)
    return context

"""Closed-loop load on a server, from a process of its own: `python load.py < JOB.json`.

The job is {"kind": "grpc" | "rest", "address": HOST:PORT, "target": gRPC method or HTTP path,
"requests": [base64 of a request's bytes, ...], "clients": N, "seconds": S, "warm_up": S}. Each
client sends a request, waits for the answer and sends its next. The requests are bytes made
before, and the answers are not parsed, so that the load itself takes little of the machine. Prints
{"count", "seconds", "milliseconds": of each answered request, "errors": [...], "cpu_seconds"}.
"""

from __future__ import annotations

import base64
import http.client
import json
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any

import grpc

CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
]


class Client:
    """One client: what it measured after the warm-up."""

    def __init__(self, send: Callable[[bytes], None], requests: list[bytes], first: int) -> None:
        self.send = send
        self.requests = requests
        self.next = first
        self.milliseconds: list[float] = []
        self.errors: list[str] = []

    def run(self, start: float, stop: float) -> None:
        """Ask until `stop`; what began before `start` does not count."""
        while (began := time.perf_counter()) < stop and len(self.errors) < 10:
            request = self.requests[self.next % len(self.requests)]
            self.next += 1
            try:
                self.send(request)
            except Exception as error:
                self.errors.append(" ".join(str(error).split())[:300])
                continue
            ended = time.perf_counter()
            if began >= start and ended <= stop:
                self.milliseconds.append((ended - began) * 1000)


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job; see the module."""
    requests = [base64.b64decode(text) for text in job["requests"]]
    with ExitStack() as stack:
        senders = [_sender(job, stack) for _ in range(job["clients"])]
        step = max(1, len(requests) // len(senders))
        clients = [Client(send, requests, row * step) for row, send in enumerate(senders)]
        start = time.perf_counter() + job["warm_up"]
        stop = start + job["seconds"]
        threads = [threading.Thread(target=client.run, args=(start, stop)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    milliseconds = [taken for client in clients for taken in client.milliseconds]
    return {
        "count": len(milliseconds),
        "seconds": job["seconds"],
        "milliseconds": milliseconds,
        "errors": [error for client in clients for error in client.errors],
        "cpu_seconds": time.process_time(),
    }


def _sender(job: dict[str, Any], stack: ExitStack) -> Callable[[bytes], None]:
    if job["kind"] == "grpc":
        channel = stack.enter_context(grpc.insecure_channel(job["address"], CHANNEL_OPTIONS))
        # without serialisers: bytes go and come as they are
        return channel.unary_unary(job["target"])
    connection = stack.enter_context(closing(http.client.HTTPConnection(job["address"])))

    def send(body: bytes) -> None:
        connection.request("POST", job["target"], body)
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise OSError(f"{answer.status}: {content[:200]!r}")

    return send


if __name__ == "__main__":
    print(json.dumps(measure(json.load(sys.stdin))))

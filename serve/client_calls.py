"""What every call of a client does, however it is sent: deadline, repeats, many in flight.

It stands here once, as coroutines, for the blocking clients and for those of asyncio. What a
blocking client awaits never suspends but blocks, so that `run_blocking` gets through a coroutine
in one step, in the thread of the caller and without an event loop.
"""

import asyncio
import collections
import concurrent.futures
import dataclasses
import itertools
import math
import random
import threading
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
)
from typing import Any, Protocol, TypeVar

Result = TypeVar("Result")
Job = Callable[[], Coroutine[Any, Any, Result]]


class ClientError(Exception):
    """No answer, or an answer that is an error. `str()` is one line that says all.

    Attributes:
        code: canonical name: "NOT_FOUND", "INVALID_ARGUMENT", "UNAVAILABLE" ... (from REST the
            commonest one of its HTTP status; "UNKNOWN" when a connection broke in mid-call).
        message: what the server said, or what is wrong with the call.
        text: the line that `str()` gives, but for the rows.
        rows: which rows of the call failed, from 0 on, if it was cut into several requests.
    """

    def __init__(
        self, code: str, message: str, text: str | None = None, rows: range | None = None
    ) -> None:
        super().__init__(code, message, text, rows)  # all of them, or it could not be pickled
        self.code = code
        self.message = message
        self.rows = rows
        self.text = " ".join((text or message).split())

    def __str__(self) -> str:
        if self.rows is None:
            return self.text
        return f"rows {self.rows.start} to {self.rows.stop - 1}: {self.text}"

    def of_rows(self, rows: range) -> "ClientError":
        """The same error, of these rows of the call."""
        return ClientError(self.code, self.message, self.text, rows)


@dataclasses.dataclass(frozen=True)
class Retries:
    """How a request is sent again that was UNAVAILABLE: HTTP 503, no connection, gRPC's code.

    No other error is repeated. A pause is drawn from the upper half of what it may be, so that
    many clients do not come back at once.

    Args:
        attempts: how often a request is sent at most, the first time included.
        first_pause: seconds before the first repeat, at most; each further pause doubles.
        longest_pause: seconds that no pause exceeds.
    """

    attempts: int = 4
    first_pause: float = 0.2
    longest_pause: float = 5.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first_pause < 0 or self.longest_pause < 0:
            raise ValueError(f"attempts start at 1 and pauses at 0, got {self}")

    def pause(self, repeats: int) -> float:
        """Seconds to wait after so many repeats."""
        longest = min(self.longest_pause, self.first_pause * 2.0 ** min(repeats, 64))
        return longest * random.uniform(0.5, 1)


class Deadline:
    """The moment when a call has to be over, all its requests and repeats included.

    Args:
        timeout: seconds from now; `math.inf` is no limit.
    """

    def __init__(self, timeout: float) -> None:
        if not timeout > 0:
            raise ValueError(f"a timeout is a number of seconds over 0, not {timeout}")
        self.timeout = timeout
        self.moment = time.monotonic() + timeout  # of time.monotonic()

    def remaining(self, where: str) -> float | None:
        """Seconds that are left, None if there is no limit.

        Raises:
            ClientError: DEADLINE_EXCEEDED, there are none.
        """
        if self.moment == math.inf:
            return None
        seconds = self.moment - time.monotonic()
        if seconds <= 0:
            raise self.error(where)
        return seconds

    def error(self, where: str) -> ClientError:
        """What to raise when it is over."""
        message = f"no answer within {self.timeout:g} seconds"
        return ClientError("DEADLINE_EXCEEDED", message, f"{where}: {message}")


class Way(Protocol):
    """How a client waits: it blocks its thread, or it suspends."""

    async def sleep(self, seconds: float) -> None: ...

    def start(self, job: Job[Result]) -> Any: ...

    async def result(self, started: Any) -> Any: ...

    async def abandon(self, started: Iterable[Any]) -> None: ...


class BlockingWay:
    """Waits by blocking. A job that is started gets a thread.

    The threads are daemons: one that still waits for a server does not hold up the end of the
    program.
    """

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def start(self, job: Job[Result]) -> "concurrent.futures.Future[Result]":
        future: concurrent.futures.Future[Result] = concurrent.futures.Future()

        def work() -> None:
            try:
                future.set_result(run_blocking(job()))
            except BaseException as error:  # whoever asks for the result gets it
                future.set_exception(error)

        threading.Thread(target=work, name="client", daemon=True).start()
        return future

    async def result(self, started: "concurrent.futures.Future[Result]") -> Result:
        return started.result()

    async def abandon(self, started: Iterable[Any]) -> None:
        """Nothing can stop a thread: its request ends by itself, by its deadline at the latest."""


class AsyncioWay:
    """Waits in an event loop. A job that is started is a task."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def start(self, job: Job[Result]) -> "asyncio.Task[Result]":
        return asyncio.create_task(job())

    async def result(self, started: "asyncio.Task[Result]") -> Result:
        return await started

    async def abandon(self, started: Iterable["asyncio.Task"]) -> None:
        tasks = list(started)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def run_blocking(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Gets through a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("a blocking client has awaited what suspends")


def iterate_blocking(results: AsyncGenerator[Result, None]) -> Iterator[Result]:
    """An asynchronous generator that never suspends, as one of the usual kind."""
    try:
        while True:
            try:
                yield run_blocking(results.__anext__())
            except StopAsyncIteration:
                return
    finally:
        run_blocking(results.aclose())


async def send_repeatedly(
    send: Callable[[], Awaitable[Result]], *, deadline: Deadline, retries: Retries, way: Way
) -> Result:
    """Sends a request, and again while the server is UNAVAILABLE and there is time for it."""
    for repeats in itertools.count():
        try:
            return await send()
        except ClientError as error:
            if error.code != "UNAVAILABLE" or repeats + 1 >= retries.attempts:
                raise
            pause = retries.pause(repeats)
            if time.monotonic() + pause >= deadline.moment:
                raise  # it says more than that the time is over
        await way.sleep(pause)
    raise AssertionError("count() has no end")


async def in_order(
    jobs: AsyncIterator[Job[Result]], *, max_in_flight: int, way: Way
) -> AsyncGenerator[Result, None]:
    """The results of jobs in their order, several of them at work at a time.

    A job is only taken from `jobs` when there is room for it, so there may be any number. When
    one fails, its error comes in its place and those after it are abandoned.
    """
    started: collections.deque[Any] = collections.deque()
    try:
        async for job in jobs:
            if max_in_flight == 1:
                yield await job()
                continue
            started.append(way.start(job))
            if len(started) >= max_in_flight:
                yield await way.result(started.popleft())
        while started:
            yield await way.result(started.popleft())
    finally:
        await way.abandon(started)

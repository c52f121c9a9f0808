"""The calls of a client, whichever the wire: signatures kept, long lists cut, answers joined."""

import contextlib
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from typing import Any

import numpy as np

from serve.client_calls import (
    ClientError,
    Deadline,
    Job,
    Retries,
    Way,
    in_order,
    send_repeatedly,
)
from serve.client_data import (
    Metadata,
    Signature,
    VersionState,
    check_rows,
    cut,
    join,
    num_rows,
    rows_to_columns,
    to_columns,
)
from serve.client_wire import Choice, Wire

# How long signatures are believed that a new version of the model may change.
SIGNATURE_SECONDS = 60.0


class ModelCalls:
    """What ModelClient and AsyncModelClient do, as coroutines; their arguments are told there.

    Signatures are kept for each version or label. Those of a version never change. Those of the
    newest, or of a label, change when the model is swapped: they are asked for again after
    SIGNATURE_SECONDS, after an error or an answer that may come of it, and (gRPC) as soon as
    another version answers. So at most one call fails because of a swap, and none if the new
    version takes what the old one took.
    """

    def __init__(
        self,
        wire: Wire,
        way: Way,
        timeout: float,
        retries: Retries,
        batch_size: int | None,
        max_in_flight: int,
    ) -> None:
        Deadline(timeout)  # refuses what is no time
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size is 1 or more, or None, not {batch_size}")
        if max_in_flight < 1:
            raise ValueError(f"max_in_flight is 1 or more, not {max_in_flight}")
        self._wire = wire
        self._way = way
        self._timeout = timeout
        self._retries = retries
        self._batch_size = batch_size
        self._max_in_flight = max_in_flight
        self._kept: dict[Choice, tuple[float, Metadata]] = {}
        self._is_closed = False

    async def predict(
        self, inputs: Any, signature_name: str, choice: Choice, timeout: float | None
    ) -> dict[str, np.ndarray]:
        deadline = self._deadline(timeout)
        signature = await self._signature(choice, signature_name, deadline)
        columns = to_columns(inputs, signature)
        count = num_rows(columns) if signature.has_rows else None

        async def ask(rows: range) -> dict[str, np.ndarray]:
            part = cut(columns, rows)
            outputs = await self._predict_once(part, signature_name, choice, deadline)
            check_rows(outputs, len(rows))
            return outputs

        if count is None or len(self._parts(count)) == 1:
            return await self._predict_once(columns, signature_name, choice, deadline)
        return join(await self._in_parts(count, ask))

    async def predict_rows(
        self,
        rows: AsyncIterator[Any],
        signature_name: str,
        choice: Choice,
        timeout: float | None,
    ) -> AsyncGenerator[dict[str, Any], None]:
        async def ask(batch: list[Any], start: int) -> dict[str, np.ndarray]:
            deadline = self._deadline(timeout)
            try:
                signature = await self._signature(choice, signature_name, deadline)
                columns = rows_to_columns(batch, signature)
                outputs = await self._predict_once(columns, signature_name, choice, deadline)
                check_rows(outputs, len(batch))
            except ClientError as error:
                raise error.of_rows(range(start, start + len(batch))) from None
            return outputs

        async def jobs() -> AsyncIterator[Job[dict[str, np.ndarray]]]:
            batch, start = [], 0
            async for row in rows:
                batch.append(row)
                if len(batch) == (self._batch_size or len(batch)):
                    yield _bound(ask, batch, start)
                    batch, start = [], start + len(batch)
            if batch:
                yield _bound(ask, batch, start)

        results = in_order(jobs(), max_in_flight=self._max_in_flight, way=self._way)
        async with contextlib.aclosing(results):
            async for outputs in results:
                for index in range(len(next(iter(outputs.values())))):
                    yield {name: array[index] for name, array in outputs.items()}

    async def classify(
        self,
        examples: Sequence[Mapping[str, Any]],
        context: Mapping[str, Any] | None,
        signature_name: str,
        choice: Choice,
        timeout: float | None,
    ) -> dict[str, np.ndarray]:
        send = self._wire.classify
        return await self._ask_examples(send, examples, context, signature_name, choice, timeout)

    async def regress(
        self,
        examples: Sequence[Mapping[str, Any]],
        context: Mapping[str, Any] | None,
        signature_name: str,
        choice: Choice,
        timeout: float | None,
    ) -> np.ndarray:
        send = self._wire.regress
        found = await self._ask_examples(send, examples, context, signature_name, choice, timeout)
        return found["values"]

    async def metadata(self, choice: Choice, timeout: float | None) -> Metadata:
        deadline = self._deadline(timeout)
        metadata = await self._send(lambda: self._wire.metadata(choice, deadline), deadline)
        self._kept[choice] = (time.monotonic(), metadata)
        return metadata

    async def status(self, version: int | None, timeout: float | None) -> list[VersionState]:
        deadline = self._deadline(timeout)
        return await self._send(lambda: self._wire.status(version, deadline), deadline)

    async def close(self) -> None:
        self._is_closed = True
        await self._wire.close()

    def _deadline(self, timeout: float | None) -> Deadline:
        if self._is_closed:
            raise ValueError("the client is closed")
        return Deadline(self._timeout if timeout is None else timeout)

    async def _send(self, send: Callable[[], Any], deadline: Deadline) -> Any:
        return await send_repeatedly(send, deadline=deadline, retries=self._retries, way=self._way)

    async def _signature(
        self, choice: Choice, signature_name: str, deadline: Deadline
    ) -> Signature:
        fetched, metadata = self._kept.get(choice, (0.0, None))
        is_old = choice.version is None and time.monotonic() - fetched > SIGNATURE_SECONDS
        if metadata is None or is_old:
            metadata = await self._send(lambda: self._wire.metadata(choice, deadline), deadline)
            self._kept[choice] = (time.monotonic(), metadata)
        try:
            return metadata.signature(signature_name)
        except ClientError:
            self._kept.pop(choice, None)
            raise

    async def _predict_once(
        self, columns: Mapping[str, Any], signature_name: str, choice: Choice, deadline: Deadline
    ) -> dict[str, np.ndarray]:
        """One request, and its repeats."""
        signature = await self._signature(choice, signature_name, deadline)
        try:
            answer = await self._send(
                lambda: self._wire.predict(choice, columns, signature_name, signature, deadline),
                deadline,
            )
        except ClientError:
            self._kept.pop(choice, None)  # perhaps the model was swapped for one of other types
            raise
        version = self._wire.answered_version(answer)
        kept = self._kept.get(choice)
        if version is not None and kept is not None and kept[1].version != version:
            self._kept.pop(choice, None)
        try:
            return self._wire.read_outputs(answer, signature)
        except ClientError:
            # The answer is good, but it may be that of a newer version: once more with its types.
            self._kept.pop(choice, None)
            signature = await self._signature(choice, signature_name, deadline)
            return self._wire.read_outputs(answer, signature)

    async def _ask_examples(
        self,
        send: Callable[..., Any],
        examples: Sequence[Mapping[str, Any]],
        context: Mapping[str, Any] | None,
        signature_name: str,
        choice: Choice,
        timeout: float | None,
    ) -> dict[str, np.ndarray]:
        deadline = self._deadline(timeout)

        async def ask(rows: range) -> dict[str, np.ndarray]:
            part = examples[rows.start : rows.stop]
            outputs = await self._send(
                lambda: send(choice, part, context or {}, signature_name, deadline), deadline
            )
            check_rows(outputs, len(rows))
            return outputs

        if len(self._parts(len(examples))) == 1:
            return await ask(range(len(examples)))
        return join(await self._in_parts(len(examples), ask))

    def _parts(self, count: int) -> list[range]:
        """The rows of each request; one request if there are none."""
        size = self._batch_size or max(count, 1)
        return [range(start, min(start + size, count)) for start in range(0, max(count, 1), size)]

    async def _in_parts(
        self, count: int, ask: Callable[[range], Any]
    ) -> list[dict[str, np.ndarray]]:
        """What `ask` gives for all parts of a call, several at a time."""

        async def ask_part(rows: range) -> dict[str, np.ndarray]:
            try:
                return await ask(rows)
            except ClientError as error:
                raise error.of_rows(rows) from None

        async def jobs() -> AsyncIterator[Job[dict[str, np.ndarray]]]:
            for rows in self._parts(count):
                yield _bound(ask_part, rows)

        results = in_order(jobs(), max_in_flight=self._max_in_flight, way=self._way)
        async with contextlib.aclosing(results):
            return [outputs async for outputs in results]


def _bound(function: Callable[..., Any], *arguments: Any) -> Job[Any]:
    return lambda: function(*arguments)


async def as_async(rows: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
    """Either kind of iterable as the asynchronous one."""
    if isinstance(rows, AsyncIterable):
        async for row in rows:
            yield row
    else:
        for row in rows:
            yield row

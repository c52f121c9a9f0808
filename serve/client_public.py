"""The methods of the clients, blocking and in asyncio."""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from serve.client_calls import iterate_blocking, run_blocking
from serve.client_data import Metadata, VersionState
from serve.client_model import ModelCalls, as_async
from serve.client_wire import Choice
from serve.names import DEFAULT_SIGNATURE


class ModelClient:
    """Asks one model and waits for the answers: RestClient or GrpcClient. Threads may share it.

    All methods raise ClientError if there is no answer, or one that is an error. In all of them
    `version` or `label` choose whom to ask (else the newest version answers), and `timeout` is
    for the whole call, in seconds; that of the client if None.
    """

    def __init__(self, calls: ModelCalls) -> None:
        self._calls = calls

    def predict(
        self,
        inputs: Mapping[str, Any] | Sequence[Any] | np.ndarray,
        *,
        signature_name: str = DEFAULT_SIGNATURE,
        version: int | None = None,
        label: str = "",
        timeout: float | None = None,
    ) -> dict[str, np.ndarray]:
        """Predicts a batch.

        More than `batch_size` rows go in several requests if the signature has a batch dimension
        everywhere; if one of them fails, so does the call, and the error names its rows. They may
        be answered by two versions if the model is swapped meanwhile: name one to avoid that.

        Args:
            inputs: name -> array or nested lists, or the bare value of the only input.
            signature_name: which signature to run.

        Returns:
            The outputs by name, in the types of the signature. Strings are `str` in object
            arrays; `bytes` if they are no UTF-8, or if the name ends in "_bytes". (JSON tells
            only the first size of an output that is empty.)
        """
        choice = Choice(version, label)
        return run_blocking(self._calls.predict(inputs, signature_name, choice, timeout))

    def predict_rows(
        self,
        rows: Iterable[Any],
        *,
        signature_name: str = DEFAULT_SIGNATURE,
        version: int | None = None,
        label: str = "",
        timeout: float | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Predicts any number of rows, and gives the answer of each in its place.

        Rows are only taken as requests have room for them: `batch_size` in one (each by itself if
        that is None), `max_in_flight` requests at a time. `timeout` is for each request here, its
        repeats included.

        Args:
            rows: values of the only input, or {name: value} of one row.
        """
        choice = Choice(version, label)
        answers = self._calls.predict_rows(as_async(rows), signature_name, choice, timeout)
        return iterate_blocking(answers)

    def classify(
        self,
        examples: Sequence[Mapping[str, Any]],
        *,
        context: Mapping[str, Any] | None = None,
        signature_name: str = DEFAULT_SIGNATURE,
        version: int | None = None,
        label: str = "",
        timeout: float | None = None,
    ) -> dict[str, np.ndarray]:
        """Classifies examples of named features.

        Args:
            examples: feature -> value or list; integers, decimals (2.0, not 2, for a feature of
                floats), strings or bytes.
            context: features that are put in front of each example.

        Returns:
            "classes", `str` (batch, classes), and "scores", float32 (batch, classes).
        """
        choice = Choice(version, label)
        return run_blocking(
            self._calls.classify(examples, context, signature_name, choice, timeout)
        )

    def regress(
        self,
        examples: Sequence[Mapping[str, Any]],
        *,
        context: Mapping[str, Any] | None = None,
        signature_name: str = DEFAULT_SIGNATURE,
        version: int | None = None,
        label: str = "",
        timeout: float | None = None,
    ) -> np.ndarray:
        """The values of examples, float32 (batch,); the arguments are those of `classify`."""
        choice = Choice(version, label)
        return run_blocking(self._calls.regress(examples, context, signature_name, choice, timeout))

    def status(
        self, *, version: int | None = None, timeout: float | None = None
    ) -> list[VersionState]:
        """The versions of the model that the server has, or had, and their states."""
        return run_blocking(self._calls.status(version, timeout))

    def metadata(
        self, *, version: int | None = None, label: str = "", timeout: float | None = None
    ) -> Metadata:
        """What the model takes and gives, asked for anew."""
        return run_blocking(self._calls.metadata(Choice(version, label), timeout))

    def close(self) -> None:
        """Ends the connections."""
        run_blocking(self._calls.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class AsyncModelClient:
    """ModelClient for asyncio: AsyncRestClient or AsyncGrpcClient. Use it in one event loop."""

    def __init__(self, calls: ModelCalls) -> None:
        self._calls = calls

    async def predict(
        self,
        inputs: Mapping[str, Any] | Sequence[Any] | np.ndarray,
        *,
        signature_name: str = DEFAULT_SIGNATURE,
        version: int | None = None,
        label: str = "",
        timeout: float | None = None,
    ) -> dict[str, np.ndarray]:
        """See ModelClient.predict."""
        choice = Choice(version, label)
        return await self._calls.predict(inputs, signature_name, choice, timeout)

    def predict_rows(
        self,
        rows: Iterable[Any] | AsyncIterable[Any],
        *,
        signature_name: str = DEFAULT_SIGNATURE,
        version: int | None = None,
        label: str = "",
        timeout: float | None = None,
    ) -> AsyncIterator[dict[str, Any]]:
        """See ModelClient.predict_rows; to be gone through by `async for`."""
        choice = Choice(version, label)
        return self._calls.predict_rows(as_async(rows), signature_name, choice, timeout)

    async def classify(
        self,
        examples: Sequence[Mapping[str, Any]],
        *,
        context: Mapping[str, Any] | None = None,
        signature_name: str = DEFAULT_SIGNATURE,
        version: int | None = None,
        label: str = "",
        timeout: float | None = None,
    ) -> dict[str, np.ndarray]:
        """See ModelClient.classify."""
        choice = Choice(version, label)
        return await self._calls.classify(examples, context, signature_name, choice, timeout)

    async def regress(
        self,
        examples: Sequence[Mapping[str, Any]],
        *,
        context: Mapping[str, Any] | None = None,
        signature_name: str = DEFAULT_SIGNATURE,
        version: int | None = None,
        label: str = "",
        timeout: float | None = None,
    ) -> np.ndarray:
        """See ModelClient.regress."""
        choice = Choice(version, label)
        return await self._calls.regress(examples, context, signature_name, choice, timeout)

    async def status(
        self, *, version: int | None = None, timeout: float | None = None
    ) -> list[VersionState]:
        """See ModelClient.status."""
        return await self._calls.status(version, timeout)

    async def metadata(
        self, *, version: int | None = None, label: str = "", timeout: float | None = None
    ) -> Metadata:
        """See ModelClient.metadata."""
        return await self._calls.metadata(Choice(version, label), timeout)

    async def close(self) -> None:
        """Ends the connections."""
        await self._calls.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

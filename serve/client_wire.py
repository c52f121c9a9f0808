"""What ModelCalls wants of REST and of gRPC."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from serve.client_calls import Deadline
from serve.client_data import Metadata, Signature, VersionState


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which version is asked: its number, or its label; the newest if neither is given."""

    version: int | None
    label: str

    def __post_init__(self) -> None:
        if self.version is not None and self.label:
            raise ValueError("give a version or a label, not both")
        if self.version is not None and not 0 <= self.version < 2**63:
            raise ValueError(f"a version is a number from 0 on, not {self.version}")


class Wire(Protocol):
    """REST or gRPC: each method sends one request."""

    model: str

    async def metadata(self, choice: Choice, deadline: Deadline) -> Metadata: ...

    async def status(self, version: int | None, deadline: Deadline) -> list[VersionState]: ...

    async def predict(
        self,
        choice: Choice,
        columns: Mapping[str, Any],
        signature_name: str,
        signature: Signature,
        deadline: Deadline,
    ) -> Any: ...

    def read_outputs(self, answer: Any, signature: Signature) -> dict[str, np.ndarray]: ...

    def answered_version(self, answer: Any) -> int | None: ...

    async def classify(
        self,
        choice: Choice,
        examples: Sequence[Mapping[str, Any]],
        context: Mapping[str, Any],
        signature_name: str,
        deadline: Deadline,
    ) -> dict[str, np.ndarray]: ...

    async def regress(
        self,
        choice: Choice,
        examples: Sequence[Mapping[str, Any]],
        context: Mapping[str, Any],
        signature_name: str,
        deadline: Deadline,
    ) -> dict[str, np.ndarray]: ...

    async def close(self) -> None: ...

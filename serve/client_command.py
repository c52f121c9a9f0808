"""The command `python -m serve.client`: texts in, JSON lines out."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from serve.client_calls import ClientError, Retries
from serve.client_data import Signature, TensorType, to_json
from serve.client_grpc import GrpcClient
from serve.client_http import Tls
from serve.client_public import ModelClient
from serve.client_rest import RestClient
from serve.command_line import OneLineParser
from serve.names import DEFAULT_SIGNATURE

EPILOG = """\
One line of JSON is printed for each text:

  python -m serve.client --rest 127.0.0.1:8501 --model news "text one" "text two"
  python -m serve.client --grpc 127.0.0.1:8500 --model news "text one"

Texts from a file or from stdin, one a line; the answers come in the same order, while it reads
(--batch_size 1 --max_in_flight 1 answers each line before it reads the next one):

  python -m serve.client --rest 127.0.0.1:8501 --model news --file texts.txt > answers.jsonl
  zcat texts.gz | python -m serve.client --grpc 127.0.0.1:8500 --model news --file -

A model with several inputs wants each by its name; repeat them for more answers. In a file, each
line is then an object: {"text_a": "a sentence", "text_b": "another"}

  python -m serve.client --rest 127.0.0.1:8501 --model pairs \\
      --input text_a="a sentence" --input text_b="another"

What the server has, and what the model takes and gives:

  python -m serve.client --rest 127.0.0.1:8501 --model news --status
  python -m serve.client --rest 127.0.0.1:8501 --model news --metadata

The exit status is 0, or 2 after an error, which is one line on stderr.
"""

INTERRUPTED, BROKEN_PIPE = 130, 141  # what a shell shows when a signal ends a command


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the answers as JSON lines; gives the exit status."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its errors come as answers too
    parser = _parser()
    flags = _parse_flags(parser, arguments)
    try:
        with contextlib.closing(_client(parser, flags)) as client:
            for answer in _answers(client, flags):
                print(json.dumps(to_json(answer), ensure_ascii=False), flush=True)
    except BrokenPipeError:  # as of "| head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except ClientError as error:
        print(f"serve.client: {_described(error, flags.file)}", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        print(f"serve.client: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="serve.client",
        description="Asks a model server and prints its answers.",
        epilog=EPILOG,
    )
    server = parser.add_mutually_exclusive_group(required=True)
    server.add_argument("--rest", metavar="HOST:PORT", help="ask by REST; https://HOST:PORT too")
    server.add_argument("--grpc", metavar="HOST:PORT", help="ask by gRPC")
    parser.add_argument("--model", required=True, help="name of the model")
    version = parser.add_mutually_exclusive_group()
    version.add_argument("--version", type=int, help="which version to ask; else the newest")
    version.add_argument("--label", default="", help="the same by its label, as 'stable'")
    parser.add_argument(
        "--signature", default=DEFAULT_SIGNATURE, help=f"which to run ({DEFAULT_SIGNATURE})"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="until an answer must be there, repeats included; for each request of a --file (60)",
    )
    parser.add_argument(
        "--attempts", type=int, default=4, help="how often to send what is UNAVAILABLE (4)"
    )
    parser.add_argument("--batch_size", type=int, default=32, help="texts in one request (32)")
    parser.add_argument("--max_in_flight", type=int, default=4, help="requests at a time (4)")
    tls = parser.add_argument_group("encryption (PEM files; REST wants an https:// address too)")
    tls.add_argument("--tls", action="store_true", help="encrypt gRPC; implied by what follows")
    tls.add_argument("--tls_root", metavar="FILE", help="the certificate that signed the server's")
    tls.add_argument("--tls_certificate", metavar="FILE", help="a certificate of the client")
    tls.add_argument("--tls_key", metavar="FILE", help="its key")
    tls.add_argument("--tls_server_name", metavar="NAME", help="the name in the server's, if other")
    asked = parser.add_argument_group("what to ask, one of them")
    asked.add_argument("texts", nargs="*", help="texts, for a model with one input")
    asked.add_argument(
        "--input", action="append", default=[], metavar="NAME=VALUE", help="value of a named input"
    )
    asked.add_argument("--file", metavar="PATH", help="file of texts, one a line; - is stdin")
    asked.add_argument("--status", action="store_true", help="the versions and their states")
    asked.add_argument("--metadata", action="store_true", help="the signatures")
    return parser


def _parse_flags(parser: OneLineParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    flags = parser.parse_args(arguments)
    asked = (flags.texts, flags.input, flags.file, flags.status, flags.metadata)
    if sum(map(bool, asked)) != 1:
        parser.error("give one of: texts, --input NAME=VALUE, --file, --status, --metadata")
    if any("=" not in pair for pair in flags.input):
        parser.error("--input must be NAME=VALUE")
    if flags.version is not None and not 0 <= flags.version < 2**63:
        parser.error(f"--version is a number from 0 on, not {flags.version}")
    return flags


def _client(parser: OneLineParser, flags: argparse.Namespace) -> ModelClient:
    files = {
        "root_certificate": flags.tls_root,
        "certificate": flags.tls_certificate,
        "key": flags.tls_key,
        "server_name": flags.tls_server_name,
    }
    is_encrypted = flags.tls or any(files.values())
    if is_encrypted and flags.rest and not flags.rest.startswith("https://"):
        parser.error("--tls of REST wants an address that begins with https://")
    if flags.file == "-" and sys.stdin.isatty():  # each line that is typed is answered at once
        flags.batch_size = flags.max_in_flight = 1
    try:
        options: dict[str, Any] = {
            "timeout": flags.timeout,
            "retries": Retries(flags.attempts),
            "batch_size": flags.batch_size,
            "max_in_flight": flags.max_in_flight,
            "tls": Tls(**files) if is_encrypted else None,
        }
        if flags.rest:
            return RestClient(flags.rest, flags.model, **options)
        return GrpcClient(flags.grpc, flags.model, **options)
    except ValueError as error:
        parser.error(str(error))


def _answers(client: ModelClient, flags: argparse.Namespace) -> Iterator[Mapping[str, Any]]:
    """What to print, line by line."""
    choice = {"version": flags.version, "label": flags.label}
    if flags.status:
        for state in client.status(version=flags.version):
            yield vars(state)
        return
    metadata = client.metadata(**choice)
    if flags.metadata:
        for name, signature in metadata.signatures.items():
            yield {
                "signature": name,
                "version": metadata.version,
                "method": signature.method,
                "inputs": {key: vars(kind) for key, kind in signature.inputs.items()},
                "outputs": {key: vars(kind) for key, kind in signature.outputs.items()},
            }
        return
    signature = metadata.signature(flags.signature)
    choice["signature_name"] = flags.signature
    if flags.file:
        with _opened(flags.file) as file:
            rows = (_read_line(line, signature) for line in file)
            yield from client.predict_rows(rows, **choice)
    else:
        columns = _columns(flags, signature.inputs)
        yield from _rows(client.predict(columns, **choice))


def _opened(path: str) -> contextlib.AbstractContextManager[BinaryIO]:
    return contextlib.nullcontext(sys.stdin.buffer) if path == "-" else open(path, "rb")


def _read_line(line: bytes, signature: Signature) -> Any:
    """A text, or JSON for inputs that are no strings or several; no UTF-8 stays bytes."""
    line = line.removesuffix(b"\n").removesuffix(b"\r")
    types = signature.inputs
    if len(types) == 1:
        [(name, kind)] = types.items()
        try:
            return _parse_value(name, line.decode(), kind)
        except UnicodeDecodeError:
            return line
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict) or row.keys() != types.keys():
        names = ", ".join(types)
        raise ClientError(
            "INVALID_ARGUMENT", f"each line must be a JSON object of {names}, not {line[:80]!r}"
        )
    return row


def _columns(flags: argparse.Namespace, types: Mapping[str, TensorType]) -> dict[str, list[Any]]:
    """The inputs of the command line, one list a name."""
    names = ", ".join(types)
    if flags.texts:
        if len(types) != 1:
            message = f"the model takes {names}: give each as --input NAME=VALUE"
            raise ClientError("INVALID_ARGUMENT", message)
        pairs: Iterable[tuple[str, str]] = ((names, text) for text in flags.texts)
    else:
        pairs = (tuple(pair.split("=", 1)) for pair in flags.input)
    columns: dict[str, list[Any]] = {}
    for name, text in pairs:
        if name not in types:
            message = f"the model has no input {name}, it takes {names}"
            raise ClientError("INVALID_ARGUMENT", message)
        columns.setdefault(name, []).append(_parse_value(name, text, types[name]))
    return columns


def _parse_value(name: str, text: str, kind: TensorType) -> Any:
    """A string as it stands, anything else as JSON: 1.5 or [1, 2]."""
    if kind.dtype == "string":
        return text
    try:
        return json.loads(text)
    except ValueError:
        message = f"input {name} is of type {kind.dtype}, not {text!r}"
        raise ClientError("INVALID_ARGUMENT", message) from None


def _rows(outputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """One answer a row; a single answer if the outputs have no common batch size."""
    sizes = {array.shape[:1] for array in outputs.values()}
    if len(sizes) != 1 or sizes == {()}:
        return [dict(outputs)]
    [(batch_size,)] = sizes
    return [{name: array[row] for name, array in outputs.items()} for row in range(batch_size)]


def _described(error: ClientError, file: str | None) -> str:
    """An error in one line; for a file it tells the lines, from 1 on."""
    if file is None or error.rows is None:
        return str(error)
    name = "stdin" if file == "-" else file
    first, last = error.rows.start + 1, error.rows.stop
    lines = f"line {first}" if first == last else f"lines {first} to {last}"
    return f"{name}, {lines}: {ClientError(error.code, error.message, error.text)}"

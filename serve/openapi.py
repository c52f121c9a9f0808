"""Writes an OpenAPI document for the REST side of one exported model.

`python -m serve.openapi --help` tells of the command.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serve.client_calls import ClientError, Deadline, run_blocking
from serve.client_data import Metadata, read_signatures
from serve.client_http import BlockingHttp
from serve.client_rest import RestClient, model_url
from serve.command_line import OneLineParser
from serve.openapi_document import build_document

EPILOG = """\
From a SavedModel (or the folder of its versions, of which the newest is taken), which is read but
not loaded; or from a server that runs, whose answers are then in the document as examples:

  python -m serve.openapi /models/news --model news --output openapi.json
  python -m serve.openapi http://127.0.0.1:8501 --model news --label stable > openapi.json
"""
LOCAL_SERVER = "http://127.0.0.1:8501"
TIMEOUT = 60.0  # seconds for all that is asked of a server


def read_saved_model(path: Path, model: str) -> Metadata:
    """What the metadata of a SavedModel would be if it was served; it is not loaded.

    Args:
        path: of a SavedModel, or of the folder of its versions.
        model: the name under which it is to be served.

    Raises:
        ValueError: there is no SavedModel, or none for serving in it.
    """
    from google.protobuf import json_format
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    version, folder = _newest(path)
    try:
        saved_model = saved_model_pb2.SavedModel.FromString(
            (folder / "saved_model.pb").read_bytes()
        )
    except DecodeError as error:
        raise ValueError(f"{folder / 'saved_model.pb'} is broken: {error}") from None
    for graph in saved_model.meta_graphs:
        if "serve" in graph.meta_info_def.tags:
            documents = {
                name: json_format.MessageToDict(signature, preserving_proto_field_name=True)
                for name, signature in graph.signature_def.items()
            }
            return Metadata(model, version, read_signatures(documents))
    raise ValueError(f'{folder} has no graph tagged "serve"')


def _newest(path: Path) -> tuple[int, Path]:
    """The version to be served, and its folder."""
    from serve.version_folders import find_versions, version_number  # they bring protobuf

    if (path / "saved_model.pb").is_file():
        version = version_number(path.resolve().name)
        return 1 if version is None else version, path
    versions = find_versions(path) if path.is_dir() else {}
    for version, folder in sorted(versions.items(), reverse=True):
        if (folder / "saved_model.pb").is_file():
            return version, folder
    raise ValueError(f"{path} is no SavedModel, and no folder of versions of one")


def add_answers(document: dict[str, Any], server: str) -> None:
    """Puts a server's answers to the examples of the document into it."""
    http = BlockingHttp(None)
    deadline = Deadline(TIMEOUT)
    for path, item in document["paths"].items():
        if "{" in path or "post" not in item:
            continue
        content = item["post"]["requestBody"]["content"]["application/json"]
        answers = {}
        for name, example in content["examples"].items():
            body = json.dumps(example["value"]).encode()
            status, answer = run_blocking(http.send("POST", server + path, body, deadline))
            if status == 200:
                answers[name] = {"summary": example["summary"], "value": json.loads(answer)}
        item["post"]["responses"]["200"]["content"]["application/json"]["examples"] = answers
    run_blocking(http.close())


# --- the command ---------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the document; gives the exit status."""
    flags = _parse_flags(arguments)
    try:
        text = json.dumps(_document(flags), indent=2, ensure_ascii=False) + "\n"
        if flags.output is None:
            print(text, end="")
        else:
            flags.output.write_text(text, encoding="utf-8")
    except (ClientError, OSError, ValueError) as error:
        print(f"serve.openapi: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _parse_flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="serve.openapi",
        description="Writes the OpenAPI 3.1 document of an exported model.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "source",
        metavar="SAVED_MODEL_OR_URL",
        help="folder of a SavedModel or of its versions, or http://HOST:PORT of a server",
    )
    parser.add_argument("--model", required=True, help="name under which it is served")
    parser.add_argument(
        "--label",
        action="append",
        default=[],
        help="a version label that the server has; may be repeated",
    )
    parser.add_argument(
        "--server", metavar="URL", help=f"address to be in the document ({LOCAL_SERVER})"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="by default it is printed")
    return parser.parse_args(arguments)


def _document(flags: argparse.Namespace) -> dict[str, Any]:
    if "://" not in flags.source:
        metadata = read_saved_model(Path(flags.source), flags.model)
        return build_document(metadata, server=flags.server or LOCAL_SERVER, labels=flags.label)
    address = flags.source.rstrip("/")
    model_url(address, flags.model)  # refuses what is no address
    with RestClient(address, flags.model, timeout=TIMEOUT) as client:
        metadata = client.metadata()
    document = build_document(metadata, server=flags.server or address, labels=flags.label)
    add_answers(document, address)
    return document


if __name__ == "__main__":
    sys.exit(main())

"""Repeat the probes of an export's certificate: `python -m kbert.verify --help`.

Exit status 0: all answers are the certificate's; 1: they are not; 2: bad input.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kbert.command import finish
from kbert.errors import InputError
from serve.command_line import OneLineParser

if TYPE_CHECKING:
    from kbert.answers import Answers, Comparison
    from kbert.certificate import Certificate

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

EPILOG = """\
A run, a folder of versions, or one SavedModel, against the certificate that is in it:

  python -m kbert.verify runs/news
  python -m kbert.verify runs/news/export/news
  python -m kbert.verify runs/news/export/news/1

A live server, by REST or by gRPC, against the certificate of the export that it serves:

  python -m kbert.verify http://127.0.0.1:8501/v1/models/news --certificate runs/news
  python -m kbert.verify grpc://127.0.0.1:8500/news --certificate runs/news
"""
MAX_SHOWN = 48  # characters of a probe text


def main(arguments: Sequence[str] | None = None) -> int:
    """Verify what the command line names; the exit status."""
    options = _parse(arguments)
    return finish(
        "kbert.verify",
        lambda: verify(options.target, certificate=options.certificate, bound=options.bound),
        debug=options.debug,
    )


def verify(target: str, *, certificate: str | None = None, bound: float | None = None) -> int:
    """Ask a model the probes of a certificate, print how its answers compare.

    Args:
        target: Folder of a SavedModel, of its versions or of a run; or
            http://HOST:PORT/v1/models/NAME, or grpc://HOST:PORT/NAME.
        certificate: A parity.json, or a folder as above; by default the one in the target.
        bound: Largest difference allowed; by default the certificate's.

    Returns:
        0 if all answers are the certificate's within the bound, else 1.

    Raises:
        InputError: there is no certificate or no model, or the model does not answer.
    """
    # not needed for --help
    from kbert.certificate import find_certificate, read_certificate

    if certificate is None and _is_url(target):
        raise InputError(
            f"{target}: a server does not show its certificate; name the export it serves, or its "
            "parity.json, by --certificate."
        )
    expected = read_certificate(find_certificate(Path(certificate or target)))
    bound = expected.bound if bound is None else bound
    answers = _ask(target, expected)
    compared = {
        source: expected.compare(answers, source, bound=bound) for source in expected.answers
    }
    return _report(expected, compared, bound)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="kbert.verify",
        description="Repeats the probes of an export's certificate and compares the answers.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "target",
        metavar="PATH_OR_URL",
        help="folder of a SavedModel, of its versions or of a run; "
        "http://HOST:PORT/v1/models/NAME; or grpc://HOST:PORT/NAME",
    )
    parser.add_argument(
        "--certificate",
        metavar="PATH",
        help="a parity.json, or a folder that has one; by default the one in PATH_OR_URL",
    )
    parser.add_argument(
        "--bound",
        type=float,
        help="largest difference allowed (the certificate's: 1e-05 in float32)",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(arguments)
    if options.bound is not None and not 0 <= options.bound < math.inf:
        parser.error(f"--bound must be a number from 0 on, not {options.bound}")
    return options


def _is_url(target: str) -> bool:
    return "://" in target


def _ask(target: str, certificate: Certificate) -> Answers:
    """What the target answers to the probes of a certificate."""
    if _is_url(target):
        return _ask_server(target, certificate)
    from kbert.certificate import find_saved_model
    from kbert.foreign_graphs import refuse_acting_graph
    from kbert.fresh_process import ProcessError, saved_model_answers

    folder = find_saved_model(Path(target))
    refuse_acting_graph(folder)
    try:
        return saved_model_answers(folder, certificate.inputs, signature=certificate.signature)
    except ProcessError as error:
        raise InputError(f"{folder}: it does not load and answer: {error}") from None


def _ask_server(url: str, certificate: Certificate) -> Answers:
    from kbert.answers import Answers, without_padding
    from kbert.fresh_process import PREPROCESS
    from serve.client import ClientError, predict_grpc, predict_rest

    parts = urllib.parse.urlsplit(url)
    name = urllib.parse.unquote(parts.path.strip("/"))
    is_rest = parts.scheme in ("http", "https") and "/v1/models/" in parts.path
    if not is_rest and (parts.scheme != "grpc" or not name):
        raise InputError(
            f"{url}: an address is http://HOST:PORT/v1/models/NAME or grpc://HOST:PORT/NAME."
        )
    found = {}
    for signature in (certificate.signature, PREPROCESS):
        try:
            if is_rest:
                found[signature] = predict_rest(
                    url.rstrip("/"), certificate.inputs, signature_name=signature
                )
            else:
                found[signature] = predict_grpc(
                    parts.netloc, name, certificate.inputs, signature_name=signature
                )
        except ClientError as error:
            raise InputError(str(error)) from None
    return Answers(without_padding(found[PREPROCESS]), found[certificate.signature])


def _report(certificate: Certificate, compared: dict[str, Comparison], bound: float) -> int:
    """Print the table and the verdict; the exit status."""
    print(_line("ids", "values", *compared, "probe"))
    rows = zip(*certificate.inputs.values(), strict=True)
    for row, texts in enumerate(rows):
        ids = all(found.same_ids[row] for found in compared.values())
        values = all(found.same_values[row] for found in compared.values())
        figures = [f"{found.rows[row]:.2e}" for found in compared.values()]
        shown = " | ".join(_shortened(text) for text in texts)
        print(_line(_verdict(ids), _verdict(values), *figures, shown))
    if "huggingface" not in compared:
        print(f"HuggingFace did not answer at the export: {certificate.huggingface}")
    if certificate.tf_serving is not None:
        print(f"the export loads in TF Serving {certificate.tf_serving} and later")
    problems = [
        f"; compared with {source}, {problem}"
        for source, found in compared.items()
        if (problem := certificate.problem_of(found, bound))
    ]
    largest = max(found.rows.max() for found in compared.values())
    verdict = f"MISSED{problems[0]}" if problems else "holds"
    count = len(next(iter(compared.values())).rows)
    print(f"{count} probes, largest difference {largest:.2e}, bound {bound:g}: {verdict}")
    return 1 if problems else 0


def _line(ids: str, values: str, *rest: str) -> str:
    *figures, probe = rest
    return f"{ids:<7}{values:<8}" + "".join(f"{text:<13}" for text in figures) + probe


def _verdict(is_same: bool) -> str:
    return "same" if is_same else "DIFFER"


def _shortened(text: str) -> str:
    """A text in quotes, its invisible characters as escapes, at most MAX_SHOWN of it."""
    return repr(text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "...")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    sys.exit(main())

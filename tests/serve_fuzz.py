"""Ten minutes of nonsense by REST: what `make serve-fuzz` runs.

Half of the time hypothesis makes up methods, paths, headers and bodies, from nearly right to
hopeless; the other half schemathesis takes the OpenAPI file of the model apart. Every request must
be answered in time, none by a 5xx, and neither an answer nor the server's log may show a
traceback. Meanwhile a well-behaved client must get its answers within their deadline.

Exit status: 0 when all that holds, 1 when not.
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks" / "serving"), str(ROOT)]

import psutil  # noqa: E402
from demo_model import demo_export  # noqa: E402
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from systems import NAME, Served, model_server  # noqa: E402

DEADLINE = 10.0  # seconds for any answer
EXAMPLES = 500  # a turn of hypothesis

# TRACE and QUERY are left out: libevent, and so this server, answers methods that it does not know
# by 501, which is a 5xx but no failure. The answers of :classify are not held against their schema:
# schemathesis 4.32 rewrites its prefixItems to the lists of older drafts, and then refuses them.
# (The checks are not named by --checks, since that would undo what is said of :classify.)
SCHEMATHESIS = """\
[checks]
enabled = false
not_a_server_error.enabled = true
status_code_conformance.enabled = true
response_schema_conformance.enabled = true

[phases.coverage]
unexpected-methods = ["get", "put", "post", "delete", "options", "patch"]

[[operations]]
include-path-regex = ":classify$"
checks.response_schema_conformance.enabled = false
"""

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=30)
    | st.just({"b64": "aGVsbG8="})
    | st.just({"b64": "***"}),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["text", "inputs", "b64", "x"]), inner, max_size=3)
    ),
    max_leaves=12,
)
documents = st.fixed_dictionaries(
    {},
    optional={
        "signature_name": st.sampled_from(["", "serving_default", "preprocess", "classify", "x"])
        | json_values,
        "instances": st.lists(st.text(max_size=60), max_size=4) | json_values,
        "inputs": json_values | st.fixed_dictionaries({"text": json_values}),
        "examples": st.lists(st.dictionaries(st.text(max_size=5), json_values, max_size=3))
        | json_values,
        "context": json_values,
    },
)

texts = st.lists(st.text(max_size=60), min_size=1, max_size=4)
right_documents = (
    st.fixed_dictionaries({"instances": texts})
    | st.fixed_dictionaries({"instances": st.lists(st.fixed_dictionaries({"text": st.text()}))})
    | st.fixed_dictionaries({"inputs": texts | st.fixed_dictionaries({"text": texts})})
    | st.fixed_dictionaries({"examples": st.lists(st.fixed_dictionaries({"text": st.text()}))})
)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """JSON whole or hurt, or any bytes."""
    text = json.dumps(draw(right_documents | documents), ensure_ascii=draw(st.booleans()))
    whole = text.encode("utf-8", "surrogatepass")
    kind = draw(st.sampled_from(["whole", "whole", "cut", "changed", "any", "deep"]))
    if kind == "cut":
        return whole[: draw(st.integers(0, len(whole)))]
    if kind == "changed":
        place = draw(st.integers(0, len(whole)))
        return whole[:place] + draw(st.binary(max_size=5)) + whole[place:]
    if kind == "deep":
        bracket = draw(st.sampled_from([b"[", b'{"a":']))
        return b'{"instances":' + bracket * draw(st.integers(1, 100_000))
    return whole if kind == "whole" else draw(st.binary(max_size=200))


names = st.sampled_from([NAME, NAME, NAME, "..", "a%2Fb", "%00", "%", "%ZZ", "none"]) | st.text(
    st.characters(min_codepoint=33, max_codepoint=126), max_size=10
)
middles = st.sampled_from(
    ["", "", "/versions/1", "/versions/99", f"/versions/{2**63}", "/versions/x", "/labels/stable",
     "/labels/%2e", "/versions/" + "9" * 5000]
)  # fmt: skip
VERBS = (":predict", ":predict", ":classify", ":regress", ":PREDICT", ":x")
endings = st.sampled_from([*VERBS, "", "/metadata", "/", "?a=b"])
right_paths = st.sampled_from([f"/v1/models/{NAME}{verb}" for verb in (":predict", ":classify")])
paths = (
    right_paths
    | st.builds("/v1/models/{}{}{}".format, names, middles, endings)
    | st.sampled_from(
        ["/", "/v1", "/v1/", "/v1/models", "/v1/models/", "//v1/models", "/monitoring", "*"]
    )
)
methods = st.sampled_from(["POST", "POST", "POST", "GET", "PUT", "DELETE", "HEAD", "OPTIONS", "X"])
encodings = st.sampled_from([None, None, "gzip", "gzip but is not", "br"])


class Watch:
    """A client that behaves, beside the others."""

    def __init__(self, rest: Served) -> None:
        self.rest = rest
        self.milliseconds: list[float] = []
        self.problems: list[str] = []

    def run(self, stop: threading.Event) -> None:
        """Ask until told to stop."""
        body = json.dumps({"instances": ["Shares fell."]}).encode()
        while not stop.wait(0.1):
            began = time.perf_counter()
            try:
                status, _ = call(self.rest.address, "POST", self.rest.target, {}, body)
                if status != 200:
                    self.problems.append(f"answered {status}")
            except OSError as error:
                self.problems.append(repr(error))
            self.milliseconds.append((time.perf_counter() - began) * 1000)


def main() -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10, help="in all (default: 10)")
    options = parser.parse_args()
    exported = demo_export()
    with tempfile.TemporaryFile("w+") as log:
        with model_server(exported.parent, log=log) as (_, rest, pid):
            server = psutil.Process(pid)
            with watching(rest) as watch:
                counts = by_hypothesis(rest, options.minutes * 30)
                before = server.memory_info().rss
                status = by_schemathesis(exported, rest, options.minutes * 30)
            after = server.memory_info().rss
        log.seek(0)
        tracebacks = log.read().count("Traceback")
    answers = dict(sorted(counts.items()))
    mega = 2**20
    print(
        f"hypothesis: {counts.total()} requests, answers by status {answers}\n"
        f"schemathesis: exit status {status}\n"
        f"the client beside them: {len(watch.milliseconds)} answers, the slowest in "
        f"{max(watch.milliseconds):.0f} ms, problems: {watch.problems[:3]}\n"
        f"the server: {tracebacks} tracebacks in its log, memory {before / mega:.0f} MB after the "
        f"first half, {after / mega:.0f} MB at the end"
    )
    return 1 if status or tracebacks or watch.problems else 0


@contextmanager
def watching(rest: Served) -> Iterator[Watch]:
    """A client at work until the block ends."""
    stop, watch = threading.Event(), Watch(rest)
    thread = threading.Thread(target=watch.run, args=(stop,))
    thread.start()
    try:
        yield watch
    finally:
        stop.set()
        thread.join()


def by_hypothesis(rest: Served, seconds: float) -> Counter[int]:
    """Turns of made-up requests until the time is over."""
    counts: Counter[int] = Counter()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(methods, paths, encodings, bodies())
    def check(method: str, path: str, encoding: str | None, body: bytes) -> None:
        headers = {"Content-Encoding": encoding.split()[0]} if encoding else {}
        if encoding == "gzip":
            body = gzip.compress(body, compresslevel=1)
        status, answer = call(rest.address, method, path, headers, body)
        counts[status] += 1
        assert status < 500, f"{method} {path}: {status} {answer[:300]!r}"
        assert b"Traceback" not in answer
        if status >= 400 and method not in ("HEAD", "X"):  # no body; no HTTP
            # libevent's page for what is no URI, else an error of the API
            assert answer.startswith(b"<HTML>") or list(json.loads(answer)) == ["error"]

    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        check()
    return counts


def by_schemathesis(exported: Path, rest: Served, seconds: float) -> int:
    """Its command, on the file that serve.openapi writes; its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "openapi.json"
        words = ["-m", "serve.openapi", str(exported), "--model", NAME, "--output", str(file)]
        subprocess.run([sys.executable, *words], cwd=ROOT, check=True)
        (Path(folder) / "schemathesis.toml").write_text(SCHEMATHESIS)
        words = ["-m", "schemathesis.cli", "run", str(file), f"--url=http://{rest.address}"]
        # One worker: in Python 3.11.7 and before, threads that parse code (as hypothesis does to
        # show a lambda) upset each other, "AST constructor recursion depth mismatch".
        words += ["--workers=1", "--max-examples=2000", f"--request-timeout={DEADLINE}"]
        words += [f"--max-time={seconds:.0f}"]
        return subprocess.run([sys.executable, *words], cwd=folder).returncode


def call(
    address: str, method: str, path: str, headers: dict[str, str], body: bytes
) -> tuple[int, bytes]:
    """One request over a connection of its own: status and body of the answer."""
    connection = http.client.HTTPConnection(address, timeout=DEADLINE)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())

"""What `rest_protocol` takes for granted of uvicorn. That it works is tested in `test_abuse`."""

import asyncio
import inspect

import pytest
import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from serve.rest_protocol import BoundedProtocol, PipelineFlow

# what is overridden: its arguments, and what its text in uvicorn has to have in it
METHODS = {
    "connection_made": ("transport", ["self.connections.add(self)", "self.flow = FlowControl("]),
    "connection_lost": ("exc", ["self.connections.discard(self)"]),
    "data_received": (
        "data",
        [
            "except httptools.HttpParserError:",
            "self.send_400_response(",
            "except httptools.HttpParserUpgrade:",
            "if self._should_upgrade():",
            "self.handle_websocket_upgrade()",
        ],
    ),
    "on_header": ("name value", ["self.headers.append((name, value))"]),
    "on_body": ("body", ["self.cycle.body += body"]),
    "on_message_complete": ("", ["self.cycle.more_body = False"]),
    "eof_received": ("", ["pass"]),
    "send_400_response": ("msg", ["self.transport.close()"]),
    "_should_upgrade": ("", []),
    "handle_websocket_upgrade": ("", []),
    "shutdown": ("", ["self.cycle.response_complete", "self.cycle.keep_alive = False"]),
}
# what is not overridden, and has to go on like this
CALLS = {
    "on_message_begin": ["self.headers = []", '"state": self.app_state.copy()'],
    "on_headers_complete": [
        'self.scope["method"] = ',
        "if self.parser.should_upgrade() and self._should_upgrade():\n            return",
        "self.flow.pause_reading()",
        "self.pipeline.appendleft(",
    ],
    "on_response_complete": [
        "self.flow.resume_reading()",
        "self.timeout_keep_alive_task = self.loop.call_later(",
    ],
    "_unset_keepalive_if_required": ["self.timeout_keep_alive_task = None"],
}
OURS = {"_close_after_answers", "_end_if_late", "_is_working", "_look_after"}


def functions(of: type) -> set[str]:
    return {name for name, value in vars(of).items() if inspect.isfunction(value)}


def test_nothing_else_is_overridden():
    assert functions(BoundedProtocol) == {"__init__", *METHODS, *OURS}
    assert not OURS & set(dir(HttpToolsProtocol))
    assert functions(PipelineFlow) == {"__init__", "resume_reading"}


@pytest.mark.parametrize("name", METHODS)
def test_overridden_methods(name: str):
    arguments, parts = METHODS[name]
    method = getattr(HttpToolsProtocol, name)
    assert list(inspect.signature(method).parameters) == ["self", *arguments.split()]
    for part in parts:
        assert part in inspect.getsource(method)


@pytest.mark.parametrize("name", CALLS)
def test_methods_that_are_left(name: str):
    source = inspect.getsource(getattr(HttpToolsProtocol, name))
    for part in CALLS[name]:
        assert part in source


def test_attributes():
    """Those that are read or set here."""
    config = uvicorn.Config(lambda: None, interface="asgi3", log_config=None, ws="none")
    loop = asyncio.new_event_loop()
    protocol = HttpToolsProtocol(config, ServerState(), {}, loop)
    names = (
        "app_state cycle flow headers loop parser pipeline scope timeout_keep_alive_task transport"
    )
    assert set(names.split()) <= set(vars(protocol))
    assert list(inspect.signature(FlowControl).parameters) == ["transport"]
    loop.close()

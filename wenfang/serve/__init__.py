"""serve: an engine behind OpenAI's HTTP interface, for programs on this machine.

`create_app` builds the FastAPI application, `claim_port` reserves an address before anything heavy is loaded,
`run_server` answers until interrupted. It knows requests, streams and errors; it never touches weights, and pages
for people belong to `studio`.
"""

from wenfang.serve.app import create_app, create_app_for
from wenfang.serve.callers import Allowance
from wenfang.serve.dispatch import Dispatcher, Generation
from wenfang.serve.errors import EngineFailure, Overloaded
from wenfang.serve.keys import load_keys, new_key
from wenfang.serve.listen import claim_port, run_server, url_of
from wenfang.serve.metrics import Metrics
from wenfang.serve.pool import ModelPool, Source

__all__ = [
    "Allowance",
    "Dispatcher",
    "EngineFailure",
    "Generation",
    "Metrics",
    "ModelPool",
    "Overloaded",
    "Source",
    "claim_port",
    "create_app",
    "create_app_for",
    "load_keys",
    "new_key",
    "run_server",
    "url_of",
]

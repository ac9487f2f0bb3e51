"""Requests made up from our own description, good and bad, against the server: schemathesis judges every answer.

All of schemathesis' checks run, but `positive_data_acceptance`, by which every body that fits the schema is accepted,
in a form of our own: such a body may be refused for one of the reasons in `BEYOND_A_SCHEMA`, and for no other.
"""

import re
from collections.abc import Iterator

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case, CheckContext, Response
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.generation import GenerationMode
from serve.fakes import FakeEngine, live

from wenfang.serve import Allowance, create_app, load_keys, new_key
from wenfang.serve.openapi import document
from wenfang.serve.routes import ROUTES

load_all_checks()
schema = schemathesis.openapi.from_dict(document(ROUTES, ["fake-poet"], locked=True))
# A schema could forbid NUL only by a pattern for each text; `test_bad_requests` sends it.
schema.config.generation.update(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE], allow_x00=False)

BEYOND_A_SCHEMA = (
    r"'(messages|input)\[\d+\]\.",  # Turns that do not follow from one another.
    r"`messages\[\d+\]\.role`",  # A role that the model's chat template does not know.
    r"it is empty",  # No token is left to go on from.
    r"context|vocabulary|a token twice",  # Longer than the model reads, or a token that it has not.
    r"knows no tool calls|puts no mark|fill-in-the-middle",  # The model cannot.
    r"'(tools|tool_choice|top_logprobs|stream_options|best_of|suffix|return_tokens_as_token_ids)'",  # Beside another.
    r"'(response_format|text\.format|structured_outputs)'",  # A grammar that cannot be kept.
    r"either 'prompt' or 'messages'|'(add_special_tokens|system)'",
    r"`mirostat_tau`|`xtc_probability`|`stop`",  # Excludes another.
)


@schemathesis.check
def described_bodies_are_accepted(ctx: CheckContext, response: Response, case: Case) -> None:
    """The second half of `positive_data_acceptance`, with the reasons for an exception."""
    if case.meta and case.meta.generation.mode.is_positive and response.status_code == 400:
        message = response.json()["error"]["message"]
        assert any(re.search(reason, message) for reason in BEYOND_A_SCHEMA), message


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    key = new_key(path, "me", Allowance())
    with live(create_app(FakeEngine(), keys=load_keys(path))) as url:
        yield url, {"Authorization": f"Bearer {key}"}


@schema.parametrize()
@settings(max_examples=5, derandomize=True, suppress_health_check=list(HealthCheck))
def test_the_server_keeps_to_its_description(case, locked) -> None:
    url, headers = locked
    left_out = [check for check in CHECKS.get_all() if check.__name__ == "positive_data_acceptance"]
    case.call_and_validate(base_url=url, headers=headers, excluded_checks=left_out)


def test_the_description_names_every_route_and_is_a_page_too(url: str) -> None:
    described = httpx.get(f"{url}/openapi.json").json()
    listed = {(method.upper(), path) for path, methods in described["paths"].items() for method in methods}
    assert listed == {(route.method, route.path.replace(":path", "")) for route in ROUTES}
    shown = httpx.get(f"{url}/docs")
    assert shown.headers["content-type"].startswith("text/html")
    assert all(path in shown.text for _, path in listed)
    assert "<script" not in shown.text
    assert "//" not in shown.text.replace("http://127.0.0.1", "")


@pytest.mark.parametrize("path", ["/v1/nothing", "/api/nothing", "/nothing"])
def test_what_is_not_described_is_not_there(url: str, path: str) -> None:
    answer = httpx.get(url + path)
    assert answer.status_code == 404
    assert f"no endpoint {path}" in answer.json()["error"]["message"]

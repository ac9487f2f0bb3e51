"""What every route needs, and what a route is."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response
from pydantic import BaseModel

from wenfang.serve.limits import Limits
from wenfang.serve.metrics import Metrics
from wenfang.serve.models import Models


@dataclass(frozen=True)
class Desk:
    """The parts that answer requests."""

    models: Models
    limits: Limits
    metrics: Metrics
    locked: bool
    """Whether keys are asked for."""


@dataclass(frozen=True)
class Route:
    """One endpoint: `handle(desk, request, body)` answers it, with a body of type `asks` where it has one."""

    method: str
    path: str
    about: str
    handle: Callable[[Desk, Request, Any], Awaitable[Response]]
    asks: type[BaseModel] | None = None
    media_types: tuple[str, ...] = ("application/json",)
    refuses: tuple[int, ...] = ()
    """Statuses besides those that any request may get."""
    page: bool = False
    """Whether browsers and monitors ask for it, whose query parameters change nothing and are let pass."""

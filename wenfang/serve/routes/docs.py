"""The description of the interface: `/openapi.json` for programs, `/docs` for people."""

from fastapi import Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from wenfang.serve.desk import Desk, Route
from wenfang.serve.openapi import document, page


def described_by(routes: tuple[Route, ...]) -> tuple[Route, ...]:
    """The two routes that describe these and themselves."""

    async def openapi(desk: Desk, request: Request, _: None) -> Response:
        return JSONResponse(document(everything, desk.models.names(), locked=desk.locked))

    async def docs(desk: Desk, request: Request, _: None) -> Response:
        return HTMLResponse(page(document(everything, desk.models.names(), locked=desk.locked)))

    everything = (
        *routes,
        Route("GET", "/openapi.json", "This description.", openapi, page=True),
        Route("GET", "/docs", "This description, for people.", docs, media_types=("text/html",), page=True),
    )
    return everything

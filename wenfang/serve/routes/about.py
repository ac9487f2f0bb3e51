"""What the server says about itself: models, health, metrics."""

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from wenfang.core.errors import WenfangError
from wenfang.serve.desk import Desk, Route


async def models(desk: Desk, request: Request, _: None) -> Response:
    """The models on offer."""
    data = [desk.models.describe(name) for name in desk.models.names()]
    return JSONResponse({"object": "list", "data": data})


async def one_model(desk: Desk, request: Request, _: None) -> Response:
    """One of them."""
    return JSONResponse(desk.models.describe(request.path_params["model"]))


async def health(desk: Desk, request: Request, _: None) -> Response:
    """Whether the models in memory answer; a token written a moment ago is proof enough."""
    for served in desk.models.loaded():
        try:
            await served.dispatcher.probe()
        except WenfangError as error:
            return JSONResponse({"status": "failing", "model": served.name, "error": str(error)}, 503)
    return JSONResponse({"status": "ok", "model": desk.models.names()[0]})


async def metrics(desk: Desk, request: Request, _: None) -> Response:
    """Figures for Prometheus."""
    return Response(desk.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


ROUTES = (
    Route("GET", "/v1/models", "The models on offer.", models),
    Route("GET", "/v1/models/{model:path}", "One model.", one_model, refuses=(404,)),
    Route("GET", "/health", "Whether the model answers.", health, refuses=(503,), page=True),
    Route("GET", "/metrics", "Figures for Prometheus.", metrics, media_types=("text/plain",), page=True),
)

"""What is asked over HTTP, and what is answered: searches, embeddings, pictures, its own state."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Annotated, Any

import msgspec
import numpy as np
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi import Path as InPath
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.staticfiles import StaticFiles

from app.output import one_line
from app.serving.batches import Answer, BusyError, Question
from app.serving.meters import Meters
from app.serving.server import AGAIN_S, Server, Settings
from indexing import Where
from matvit import Encoder, count_macs
from retrieval import Retriever, Wish

SETTINGS = "MATVIT_SERVE"
"""Environment variable that tells worker processes what to serve."""

TOKEN = "MATVIT_TOKEN"  # noqa: S105 -- the name of the variable that holds it
"""Environment variable with the token that requests must bear."""

MOST_HITS = 100
PAGE = "/page"
"""Where files of one's own are, such as a page that encodes in the browser."""

_OPEN_PATHS = ("/health",)


class AskedVector(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A query that was embedded elsewhere.

    Attributes:
        vector: Its embedding.
        fingerprint: Of the encoder that made it.
    """

    vector: list[float]
    fingerprint: str


def make_app(
    settings: Settings, token: str | None = None, retriever: Retriever | None = None
) -> FastAPI:
    """Make the application.

    Args:
        settings: What to serve.
        token: What requests must bear; None for nothing.
        retriever: What is served, if it is open already.
    """
    server = Server(settings, retriever)

    @asynccontextmanager
    async def alive(_: FastAPI) -> AsyncIterator[None]:
        await server.start()
        try:
            yield
        finally:
            await server.stop()

    app = FastAPI(
        title="MatViT Retrieval",
        version="1",
        lifespan=alive,
        description="Search for images with an encoder whose size follows the load.",
    )
    app.state.server = server
    _add_middleware(app, server.meters, token)
    _add_questions(app, server)
    _add_facts(app, server)
    if settings.page is not None:
        app.mount(PAGE, StaticFiles(directory=settings.page, html=True), name="page")
    return app


def from_environment() -> FastAPI:
    """Make the application of a worker process."""
    settings = msgspec.json.decode(os.environ[SETTINGS], type=Settings)
    return make_app(settings, os.environ.get(TOKEN) or None)


def _is_open(path: str) -> bool:
    """Say whether a path is there for everybody: a page has to come before its token can."""
    return path in _OPEN_PATHS or path.startswith(f"{PAGE}/")


def _add_middleware(app: FastAPI, meters: Meters, token: str | None) -> None:
    """Count every request, and turn away those that do not bear the token."""

    @app.middleware("http")
    async def around(
        request: Request, answer: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        start = perf_counter()
        given = request.headers.get("authorization", "")
        if (
            token is not None
            and not _is_open(request.url.path)
            and not secrets.compare_digest(given.encode(), f"Bearer {token}".encode())
        ):
            said = {"detail": "a token is wanted: Authorization: Bearer TOKEN"}
            response: Response = JSONResponse(said, 401, {"WWW-Authenticate": "Bearer"})
        else:
            response = await answer(request)
        route = request.scope.get("route")
        path = getattr(route, "path", "other")  # as declared, or every id would be a path
        meters.requests.labels(path, response.status_code).inc()
        meters.total.labels(path).observe(perf_counter() - start)
        return response

    @app.exception_handler(BusyError)
    async def busy(_: Request, __: Exception) -> JSONResponse:
        said = {"detail": "too many are waiting; come again"}
        return JSONResponse(said, 503, {"Retry-After": str(AGAIN_S)})


_FILE = {"schema": {"type": "string", "format": "binary"}}
_IMAGES = {"image/*": _FILE, "application/octet-stream": _FILE}
_VECTOR = {
    "schema": {
        "type": "object",
        "required": ["vector", "fingerprint"],
        "additionalProperties": False,
        "properties": {
            "vector": {"type": "array", "items": {"type": "number"}},
            "fingerprint": {"type": "string"},
        },
    }
}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "It cannot be read, or not be answered; `detail` says why."},
    413: {"description": "It is too large."},
    503: {"description": "Too many are waiting; see Retry-After."},
    504: {"description": "It took too long."},
}

SizeQuery = Annotated[
    str | None, Query(description="S, M, L, XL, or per block as in 4xS,2xXL; else by the load.")
]
FloorQuery = Annotated[str | None, Query(description="The smallest submodel to be asked with.")]
ImageId = Annotated[int, InPath(ge=0, le=2**63 - 1, description="Of an image.")]
InsideQuery = Annotated[
    list[str] | None, Query(alias="in", description="Patterns; only images that one of them names.")
]
OutsideQuery = Annotated[list[str] | None, Query(description="Patterns of what is left out.")]
LabelQuery = Annotated[list[str] | None, Query(description="Classes; only images of one of them.")]
HitsQuery = Annotated[int, Query(ge=1, le=MOST_HITS, description="Hits wanted.")]


def _takes(content: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": content}}


def _add_questions(app: FastAPI, server: Server) -> None:
    """Declare what is embedded and searched."""

    @app.post(
        "/search",
        responses=_REFUSALS,
        openapi_extra=_takes({**_IMAGES, "application/json": _VECTOR}),
    )
    async def search(
        request: Request,
        k: HitsQuery = 10,
        submodel: SizeQuery = None,
        at_least: FloorQuery = None,
        inside: InsideQuery = None,
        exclude: OutsideQuery = None,
        label: LabelQuery = None,
    ) -> JSONResponse:
        """Find the images most similar to an image, or to a vector made of it elsewhere."""
        only, without, classes = (tuple(each or ()) for each in (inside, exclude, label))
        try:
            where = Where(inside=only, outside=without, labels=classes)
            server.answering().retriever.index.where(where)
        except ValueError as error:
            raise HTTPException(400, one_line(error)) from error
        question = await _question(server, request, k, submodel, at_least, Wish(where=where))
        answer = await _answer(server, question)
        followed = question.pixels is not None and question.submodel is None
        said = answer.hits.to_dict() | {
            "generation": answer.generation,
            "followed_load": followed and server.settings.slo_ms is not None,
        }
        return JSONResponse(said)

    @app.post("/encode", responses=_REFUSALS, openapi_extra=_takes(_IMAGES))
    async def encode(
        request: Request, submodel: SizeQuery = None, at_least: FloorQuery = None
    ) -> JSONResponse:
        """Embed an image: a vector of length one, and the fingerprint of the encoder."""
        question = await _question(server, request, 0, submodel, at_least)
        answer = await _answer(server, question)
        encoder = server.answering().retriever.encoder
        return JSONResponse({
            "vector": answer.vector.tolist(),
            "fingerprint": encoder.fingerprint,
            "submodel": answer.hits.submodel,
            "macs": answer.hits.macs,
            "encode_ms": answer.hits.encode_ms,
        })  # fmt: skip


_CAREFUL = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox"}


def _add_facts(app: FastAPI, server: Server) -> None:
    """Declare what is there to look at: pictures, and the server's own state."""

    @app.get(
        "/images/{id}",
        responses={200: {"content": {"image/*": {}}}, 404: {"description": "There is none."}},
        response_class=Response,
    )
    async def image(id: ImageId) -> Response:  # noqa: A002
        """Return the file of an image of the index."""
        index = server.answering().retriever.index
        try:
            data = await run_in_threadpool(index.image_bytes, id)
        except (KeyError, OSError, ValueError) as error:
            raise HTTPException(404, one_line(error)) from error
        return Response(data, media_type=_media_type(data), headers=_CAREFUL)

    @app.get("/health", responses={503: {"description": "Not ready yet."}})
    async def health() -> dict[str, Any]:
        """Say that it answers, and with what."""
        batches = server.answering()
        encoder = batches.retriever.encoder
        return {
            "status": "ready",
            "images": len(batches.retriever.index),
            "generation": batches.generation,
            "encoder": encoder.name,
            "fingerprint": encoder.fingerprint,
            "sizes": [str(size) for size in batches.sizes],
        }

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Everything that this process counts, for Prometheus."""
        return Response(server.meters.text(), media_type="text/plain; version=0.0.4")


async def _question(
    server: Server,
    request: Request,
    k: int,
    submodel: str | None,
    at_least: str | None,
    wish: Wish = Wish(),
) -> Question:
    """Read what is asked.

    Raises:
        HTTPException: If it cannot be read; the detail says why.
    """
    encoder = server.answering().retriever.encoder
    data = await _body(request, server.settings.most_bytes)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        chosen = None if submodel is None else encoder.submodel(submodel)
        floor = 0
        if at_least is not None:
            floor = count_macs(encoder.config, encoder.submodel(at_least))
        if kind == "application/json":
            vector = _vector(data, encoder)
            return Question(pixels=None, vector=vector, k=k, wish=wish)
        with server.meters.decode.time():
            pixels = await run_in_threadpool(encoder.preprocess.pixels, data)
    except ValueError as error:
        raise HTTPException(400, one_line(error)) from error
    return Question(pixels=pixels, k=k, submodel=chosen, at_least=floor, wish=wish)


async def _body(request: Request, most: int) -> bytes:
    """Read what was uploaded, and no more than that.

    Raises:
        HTTPException: If it is too large, or nothing.
    """
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > most:
            raise HTTPException(413, f"more than {most:,} bytes; send a smaller image")
    if not data:
        raise HTTPException(400, "no image; send the bytes of its file as the body")
    return bytes(data)


def _vector(data: bytes, encoder: Encoder) -> np.ndarray:
    """Read a vector that was made elsewhere.

    Raises:
        ValueError: If it is none of this encoder's.
    """
    asked = msgspec.json.decode(data, type=AskedVector)
    if asked.fingerprint != encoder.fingerprint:
        raise ValueError(
            f"the vector is of encoder {asked.fingerprint!r}, the index of {encoder.fingerprint}; "
            "ask with a submodel of the index's own"
        )
    vector, dim = np.array(asked.vector), encoder.config.embed_dim
    largest = np.abs(vector).max() if vector.shape == (dim,) else 0.0
    if not 0 < largest < np.inf:
        raise ValueError(f"expected {dim} numbers that have a direction, got {len(vector)}")
    vector = vector / largest  # or squares of large numbers would overflow
    return (vector / np.linalg.norm(vector)).astype(np.float32)


async def _answer(server: Server, question: Question) -> Answer:
    """Ask, and wait no longer than a question may.

    Raises:
        HTTPException: If it took too long.
    """
    limit = server.settings.limit_s
    try:
        return await asyncio.wait_for(server.answering().ask(question), limit)
    except TimeoutError as error:
        raise HTTPException(504, f"no answer within {limit:g} s; come again") from error


def _media_type(data: bytes) -> str:
    """What kind of image a file begins as; the name of a file says nothing."""
    for start, kind in (
        (b"\xff\xd8\xff", "jpeg"), (b"\x89PNG", "png"), (b"GIF8", "gif"), (b"BM", "bmp"),
        (b"II*\0", "tiff"), (b"MM\0*", "tiff"),
    ):  # fmt: skip
        if data.startswith(start):
            return f"image/{kind}"
    if data[8:12] == b"WEBP":
        return "image/webp"
    return "application/octet-stream"

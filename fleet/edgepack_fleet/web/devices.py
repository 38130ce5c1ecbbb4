"""The device listener: the only door a stranger may knock at: enrolment, renewal, links."""

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from edgepack import messages
from edgepack.messages import CertRequest, EnrollPending, EnrollReply, EnrollRequest
from edgepack_fleet.service import Service
from edgepack_fleet.web.blobs import blob_response
from edgepack_fleet.web.problems import install, problem

__all__ = ["device_app"]

MAX_BODY = 64 * 1024


def device_app(service: Service) -> Starlette:
    """Return the application of the device listener."""

    def ca(_request: Request) -> Response:
        return PlainTextResponse(service.pki.ca_pem)

    def image_root(_request: Request) -> Response:
        data = service.images.metadata("1.root.json")
        if data is None:
            return problem(404, "nothing has been published yet", reason="no_root")
        return Response(data, media_type="application/json")

    def challenge(_request: Request) -> Response:
        answer = messages.Challenge(challenge=service.renewals.challenge())
        return Response(messages.encode(answer), media_type="application/json")

    async def renew(request: Request) -> Response:
        body = await _body(request)
        if body is None:
            return problem(413, f"at most {MAX_BODY} bytes are read", reason="too_long")
        wanted = messages.decode(body, CertRequest)
        reply = await run_in_threadpool(service.renewals.over_https, wanted)
        return Response(messages.encode(reply), media_type="application/json")

    async def enroll(request: Request) -> Response:
        body = await _body(request)
        if body is None:
            return problem(413, f"at most {MAX_BODY} bytes are read", reason="too_long")
        wanted = messages.decode(body, EnrollRequest)
        reply = await run_in_threadpool(service.enrolment.enroll, wanted)
        service.poke()
        return _enrolled(reply)

    async def blob(request: Request) -> Response:
        sha256 = request.path_params["sha256"]
        await run_in_threadpool(service.links.check, sha256, request.query_params)
        return await blob_response(service.content, sha256, request.headers.get("range"))

    app = Starlette(
        routes=[
            Route("/enroll/ca", ca),
            Route("/enroll/image-root", image_root),
            Route("/enroll", enroll, methods=["POST"]),
            Route("/blobs/{sha256}", blob),
            Route("/renew", challenge, methods=["GET"]),
            Route("/renew", renew, methods=["POST"]),
        ]
    )
    install(app)
    return app


def _enrolled(reply: EnrollReply | EnrollPending) -> Response:
    """Return the answer to who has enrolled, or has to wait for a person (202)."""
    body, status, headers = messages.encode(reply), 200, {}
    if isinstance(reply, EnrollPending):
        status, headers = 202, {"Retry-After": str(reply.retry_s)}
    return Response(body, status, headers, media_type="application/json")


async def _body(request: Request) -> bytes | None:
    """Return the body; None as soon as it is longer than we read."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY:
            return None
    return body

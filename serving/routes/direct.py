"""The short way to a handler for the plain case; FastAPI's own way answers everything else, in its own words.

FastAPI matches a path against each route and solves the dependencies of each request, which takes the event loop longer
than all else it does for a short text. For a handler that takes one JSON body, and else only what is read from the
request, nothing is left to solve once the server has started.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, get_type_hints

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.routes.inputs import check_values

JSON = b"application/json"


class _Handler(NamedTuple):
    """A handler, its body and its other arguments.

    Args:
        route: whose it is.
        body: the name of the argument that is the body.
        given: by the names of the other arguments, what gives them.
    """

    route: APIRoute
    body: str
    given: Mapping[str, Callable[[Request], Any]]


class Direct:
    """ASGI middleware, to be added before any other, so that it is the innermost.

    It takes a POST request with a JSON body that fits to its handler. Everything else, and all that is wrong with a
    body, goes on to ``app``, which reads the same body again; but a body with too many values goes no further.

    Args:
        app: what answers everything else.
        owner: the application; its error handlers answer what a handler raises.
        routes: those that fit are taken; the path of each is exact.
    """

    def __init__(self, app: ASGIApp, *, owner: FastAPI, routes: Iterable[APIRoute]) -> None:
        self.app = app
        self.owner = owner
        routes = [route for route in routes if route.body_field is not None]
        self._bodies = {route.path: route for route in routes}
        found = {route.path: _handler(route) for route in routes}
        self._handlers = {path: handler for path, handler in found.items() if handler is not None}
        self._guarded: ASGIApp | None = None

    @property
    def paths(self) -> list[str]:
        """The paths that are taken."""
        return list(self._handlers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._takes(scope):
            await self.app(scope, receive, send)
            return
        if self._guarded is None:  # handlers may be registered until the first request
            handlers: Any = self.owner.exception_handlers
            self._guarded = ExceptionMiddleware(self._answer, handlers)
        await self._guarded(scope, receive, send)

    def _takes(self, scope: Scope) -> bool:
        return (
            scope["type"] == "http"
            and scope["method"] == "POST"
            and scope["path"] in self._bodies
            and not self.owner.dependency_overrides
            and not scope.get("root_path")
            # At least whatever FastAPI reads as JSON; it refuses the rest.
            and b"json" in _media_type(scope).lower()
        )

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        messages = [await receive()]
        while messages[-1]["type"] == "http.request" and messages[-1].get("more_body", False):
            messages.append(await receive())
        body = b"".join(message.get("body", b"") for message in messages)
        scope["route"] = self._bodies[scope["path"]]
        await check_values(body, self.owner.state.settings.max_values)
        handler = self._handlers.get(scope["path"])
        if handler is None or _media_type(scope) != JSON:
            await self.app(scope, _again(messages, receive), send)
            return
        route, name, given = handler
        field = route.body_field
        assert field is not None
        try:
            value, errors = field.validate(from_json(body), {}, loc=("body",))
        except ValueError:
            value = None
        if value is None or errors or messages[-1]["type"] != "http.request":
            await self.app(scope, _again(messages, receive), send)
            return
        scope["endpoint"] = route.endpoint
        request = Request(scope, receive, send)
        arguments = {argument: give(request) for argument, give in given.items()}
        response: Response = await route.endpoint(**{name: value}, **arguments)
        await response(scope, receive, send)


def _handler(route: APIRoute) -> _Handler | None:
    """What is called for a route, or None if more must be known of a request than its body."""
    known = route.dependant
    simple = all(
        one.name and not one.dependencies and set(inspect.signature(one.call).parameters) == {one.request_param_name}
        for one in known.dependencies
        if one.call is not None
    )
    arguments = {one.name for one in known.dependencies} | {one.name for one in known.body_params}
    arguments |= {known.request_param_name} - {None}
    if not (
        simple
        and route.methods == {"POST"}
        and len(known.body_params) == 1
        and not route._embed_body_fields
        and not route.param_convertors
        and inspect.iscoroutinefunction(route.endpoint)
        and set(inspect.signature(route.endpoint).parameters) == arguments
        and not any(inspect.iscoroutinefunction(one.call) or inspect.isgeneratorfunction(one.call)
                    for one in known.dependencies)
        and _is_response(get_type_hints(route.endpoint).get("return"))
    ):  # fmt: skip
        return None
    given: dict[str, Callable[[Request], Any]] = {
        str(one.name): one.call for one in known.dependencies if one.call is not None
    }
    if known.request_param_name:
        given[known.request_param_name] = _itself
    return _Handler(route, known.body_params[0].name, given)


def _is_response(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Response)


def _itself(request: Request) -> Request:
    return request


def _media_type(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"content-type":
            return bytes(value).partition(b";")[0]
    return b""


def _again(messages: list[Message], receive: Receive) -> Receive:
    """``messages`` once more, then whatever comes."""
    left = iter(messages)

    async def replay() -> Message:
        message = next(left, None)
        return await receive() if message is None else message

    return replay

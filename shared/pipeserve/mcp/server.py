"""The MCP server itself: which requests it answers, and from what. It knows no transport."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any, TypeVar

from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import NotificationOptions, Server
from mcp.server.models import InitializationOptions
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ToolsListChanged
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ListToolsResult,
    PaginatedRequestParams,
    ReadResourceRequestParams,
    ReadResourceResult,
    SetLevelRequestParams,
    Tool,
)

from pipeserve.client import AsyncClient, UnexpectedReplyError
from pipeserve.errors import NotFoundError, PipeserveError
from pipeserve.mcp import job_calls, resources
from pipeserve.mcp.call import PipelineCall
from pipeserve.mcp.deployed import DeployedPipeline
from pipeserve.mcp.failures import describe, failed
from pipeserve.mcp.log_levels import LogLevels
from pipeserve.mcp.reporter import Reporter
from pipeserve.mcp.schemas import output_schema
from pipeserve.mcp.tools import CANCEL, STATUS, SUBMIT, tools_of

_T = TypeVar("_T")
_Context = ServerRequestContext[Any, Any]
INSTRUCTIONS = (
    "Each call of the pipeline's tool is a job of a running service. What a job left can be read as a resource: "
    "job://ID, job://ID/result, job://ID/logs, job://ID/explain."
)


class Leaving:
    """Whether this process is about to end: then calls end too, and their jobs go on."""

    def __init__(self) -> None:
        self.begun = False

    def begin(self) -> None:
        """From now on an ending call cancels no job."""
        self.begun = True


class PipelineServer(Server[dict[str, Any]]):
    """Shows what the service behind ``client`` serves. ``jobs``: with the tools for jobs."""

    def __init__(self, client: AsyncClient, leaving: Leaving, *, jobs: bool) -> None:
        self._client = client
        self._leaving = leaving
        self._jobs = jobs
        self._levels = LogLevels()
        self._changes = InMemorySubscriptionBus()
        self._known: str | None = None
        super().__init__(
            "pipeserve",
            version=version("pipeserve"),
            instructions=INSTRUCTIONS,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            on_list_resources=self._list_resources,
            on_list_resource_templates=self._list_templates,
            on_read_resource=self._read_resource,
            on_subscriptions_listen=ListenHandler(self._changes),
        )
        # Not as an argument: the SDK warns there that logging goes out of the protocol. Today's clients have it.
        self.add_request_handler("logging/setLevel", SetLevelRequestParams, self._levels.set)

    def create_initialization_options(
        self,
        notification_options: NotificationOptions | None = None,
        experimental_capabilities: dict[str, dict[str, Any]] | None = None,
        extensions: dict[str, dict[str, Any]] | None = None,
    ) -> InitializationOptions:
        """What a client is told at first; here also that the tools may change."""
        options = notification_options or NotificationOptions(tools_changed=True)
        return super().create_initialization_options(options, experimental_capabilities, extensions)

    async def _deployed(self, context: _Context) -> DeployedPipeline:
        """What is served now. Where it is another deployment than last time, clients are told to list tools again."""
        info = await self._client.info()
        try:
            pipeline = DeployedPipeline.of(info)
        except (KeyError, TypeError) as error:
            raise UnexpectedReplyError(f"/info is not as a pipeserve service tells it ({error})") from None
        known, self._known = self._known, pipeline.deployment_id
        if known is not None and known != pipeline.deployment_id:
            await context.session.send_tool_list_changed()
            await self._changes.publish(ToolsListChanged())
        return pipeline

    async def _list_tools(self, context: _Context, params: PaginatedRequestParams | None) -> ListToolsResult:
        pipeline = await _answered(self._deployed(context))
        return ListToolsResult(tools=tools_of(pipeline, jobs=self._jobs))

    async def _call_tool(self, context: _Context, params: CallToolRequestParams) -> CallToolResult:
        try:
            pipeline = await self._deployed(context)
        except PipeserveError as error:
            return failed(error)
        call = self._handlers(context, pipeline).get(params.name)
        if call is None:
            names = ", ".join(tool.name for tool in self._tools(pipeline))
            raise MCPError(INVALID_PARAMS, f"there is no tool {params.name!r} now; there is {names}")
        return await call(params.arguments or {})

    def _tools(self, pipeline: DeployedPipeline) -> list[Tool]:
        return tools_of(pipeline, jobs=self._jobs)

    def _handlers(
        self, context: _Context, pipeline: DeployedPipeline
    ) -> dict[str, Callable[[dict[str, Any]], Awaitable[CallToolResult]]]:
        """What each tool does, by the tool's name."""
        name = pipeline.tool_name
        reporter = Reporter(context, pipeline.total_steps, self._levels.wanted(context))
        schema = output_schema(pipeline.output_schema)
        call = PipelineCall(self._client, reporter, schema, lambda: self._leaving.begun)
        if not self._jobs:
            return {name: call.run}
        return {
            name: call.run,
            name + SUBMIT: lambda arguments: job_calls.submit(self._client, arguments),
            name + STATUS: lambda arguments: job_calls.status(self._client, arguments),
            name + CANCEL: lambda arguments: job_calls.cancel(self._client, arguments),
        }

    async def _list_resources(self, context: _Context, params: PaginatedRequestParams | None) -> ListResourcesResult:
        return ListResourcesResult(resources=await _answered(resources.newest_jobs(self._client)))

    async def _list_templates(
        self, context: _Context, params: PaginatedRequestParams | None
    ) -> ListResourceTemplatesResult:
        return ListResourceTemplatesResult(resource_templates=resources.TEMPLATES)

    async def _read_resource(self, context: _Context, params: ReadResourceRequestParams) -> ReadResourceResult:
        try:
            return await _answered(resources.read(self._client, str(params.uri)))
        except ValueError as error:
            raise MCPError(INVALID_PARAMS, str(error)) from None


async def _answered(asked: Awaitable[_T]) -> _T:
    """What the service answered; its refusal as the protocol's error."""
    try:
        return await asked
    except NotFoundError as error:
        raise MCPError(INVALID_PARAMS, describe(error)) from None
    except PipeserveError as error:
        raise MCPError(INTERNAL_ERROR, describe(error)) from None

"""Shows a served pipeline to agents, as a tool of the Model Context Protocol. The only room that imports its SDK.

An MCP client (an editor, a chat program, an agent) asks for tools and calls them. Each call becomes a job of the
running service, followed to its end. So this process keeps nothing: it may end at any time, and the job goes on.
"""

from pipeserve.mcp.http import serve_http
from pipeserve.mcp.stdio import serve_stdio

__all__ = ["serve_http", "serve_stdio"]

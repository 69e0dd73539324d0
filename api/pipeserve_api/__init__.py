"""The HTTP service: the front end of one deployment.

Start it with ``python -m pipeserve_api`` (or ``pipeserve api``), or make the ASGI application yourself with
:func:`pipeserve_api.app.create_app`.
"""

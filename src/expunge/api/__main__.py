"""`python -m expunge.api`: uvicorn with this service's app and limits. Takes uvicorn's own options, like `--port`."""

import sys

import uvicorn

OPTIONS = (
    "expunge.api.app:create_app",
    "--factory",
    "--http",
    "expunge.api.connections:BoundedProtocol",
    # Of the request line and all headers together, bytes.
    "--h11-max-incomplete-event-size",
    "32768",
    "--no-server-header",
)

if __name__ == "__main__":
    uvicorn.main([*OPTIONS, *sys.argv[1:]])

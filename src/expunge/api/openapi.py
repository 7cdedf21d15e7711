"""The service's description of itself: OpenAPI with problems on every route, and pages to read it without a network."""

import base64
import hashlib
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from expunge.api import links
from expunge.api.problems import Problem, documented

TITLE = "Expunge"
DESCRIPTION = """\
Machine unlearning as a service for contrastive encoders.

**Data owners** upload data sets, let a model owner train on them, ask a model to forget them and
audit what happened. **Model owners** train models, follow the jobs that make them forget, and
compare the methods for it.
**Operators** give out keys.

Every call but health, methods, signing keys and this description needs
`Authorization: Bearer xpk_…`. Errors are `application/problem+json` (RFC 9457) with a stable `type`;
what belongs to another party is 404. Lists come in pages (`cursor`, `limit`). Long work answers 202
with `Location`; where it says so, `Prefer: wait=N` waits for the end. Whatever creates something
takes an `Idempotency-Key`, so that it can be repeated. Times are ISO 8601 in UTC.
"""
TAGS = [
    {"name": "service", "description": "Health."},
    {"name": "methods", "description": "Unlearning methods, their parameters and bounds."},
    {"name": "parties", "description": "Who takes part, and keys."},
    {"name": "datasets", "description": "Images of one owner: uploaded in shards, then sealed."},
    {"name": "models", "description": "Encoders, their policy and pre-training."},
    {"name": "checkpoints", "description": "Weights of a model through its life."},
    {"name": "requests", "description": "Removal requests and their progress."},
    {"name": "estimates", "description": "Time and cost of a removal, by method."},
    {"name": "jobs", "description": "Training runs of a model owner's models."},
    {"name": "workers", "description": "Who works, and what there is to do."},
    {"name": "delegations", "description": "Auditors who act for an owner, for a time."},
    {"name": "encodings", "description": "Outputs of both encoders, to audit at home."},
    {"name": "audits", "description": "What became of the owner's samples, black box."},
    {"name": "alerts", "description": "Later heads that seem to know forgotten samples again."},
    {"name": "certificates", "description": "Papers about what was done, signed, and the keys."},
    {
        "name": "log",
        "description": "What happened, sealed so that nobody can rewrite it unnoticed.",
    },
    {
        "name": "comparisons",
        "description": "Which method to use: measured side by side, white box.",
    },
]
ASSETS = "/docs/assets"


def install(app: FastAPI) -> None:
    """Serve /docs from bundled files and give /openapi.json its problems."""
    bundled = Path(str(files("fastapi_offline"))) / "static"
    app.mount(ASSETS, StaticFiles(directory=bundled), name="docs-assets")

    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title=TITLE,
        swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{ASSETS}/favicon.png",
        # Without this the page sends the description to a validator on the internet.
        swagger_ui_parameters={"validatorUrl": None, "tryItOutEnabled": True},
    )
    page.headers["Content-Security-Policy"] = _policy(bytes(page.body).decode())

    @app.get("/docs", include_in_schema=False)
    async def show_docs() -> HTMLResponse:
        return page

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = describe(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def _policy(page: str) -> str:
    """What the page may run and load: its own inline script and what this service serves."""
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts]
    allowed = " ".join(f"'sha256-{each}'" for each in hashes)
    return (
        f"default-src 'none'; script-src 'self' {allowed}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
        "form-action 'none'"
    )


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document."""
    document = get_openapi(
        title=TITLE,
        version=app.version,
        description=DESCRIPTION,
        tags=TAGS,
        routes=app.routes,
    )
    schemas = document["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= problem.pop("$defs")
    schemas["Problem"] = problem
    for path in document["paths"].values():
        for operation in path.values():
            responses = operation["responses"]
            if "422" in responses:
                responses |= _as_text(documented(422))
            if operation.get("security"):
                responses |= _as_text(documented(401, 403, 429, 503))
            if "requestBody" in operation:
                responses |= _as_text(documented(408, 413))
    links.add(document)
    return document


def _as_text(responses: dict[int | str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {str(status): response for status, response in responses.items()}

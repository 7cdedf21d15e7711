"""Links of the description: what an answer's id is good for, from the call that makes something to all calls about it.

Reads the finished document; never touches routes.
"""

import re
from typing import Any

MADE: dict[str, str] = {
    "create_party": "party_id",
    "create_key": "key_id",
    "rotate_key": "key_id",
    "create_dataset": "dataset_id",
    "create_model": "model_id",
    "upload_checkpoint": "checkpoint_id",
    "complete_checkpoint": "checkpoint_id",
    "start_pretraining": "job_id",
    "create_request": "request_id",
    "create_delegation": "delegation_id",
    "create_audit": "audit_id",
    "create_encoding": "encoding_id",
    "create_encoding_of_views": "encoding_id",
    "create_comparison": "comparison_id",
}
"""Operation to the parameter that the `id` of its answer is, in the paths of others."""
LISTED: dict[str, str] = {
    "list_parties": "party_id",
    "list_keys": "key_id",
    "list_datasets": "dataset_id",
    "list_models": "model_id",
    "list_checkpoints": "checkpoint_id",
    "list_requests": "request_id",
    "list_jobs": "job_id",
    "list_audits": "audit_id",
    "list_encodings": "encoding_id",
    "list_comparisons": "comparison_id",
    "list_delegations": "delegation_id",
    "list_alerts": "alert_id",
}
"""The same for the first item of a list."""

_PARAMETER = re.compile(r"{(\w+)}")


def add(document: dict[str, Any]) -> None:
    """Give the successful answers of MADE and LISTED their links, in place."""
    about: dict[str, list[str]] = {}
    operations: dict[str, dict[str, Any]] = {}
    for path, item in document["paths"].items():
        parameters = _PARAMETER.findall(path)
        for operation in item.values():
            operations[operation["operationId"]] = operation
            if len(parameters) == 1:
                about.setdefault(parameters[0], []).append(operation["operationId"])
    for given, pointer in ((MADE, "#/id"), (LISTED, "#/items/0/id")):
        for name, parameter in given.items():
            links = {
                target: {
                    "operationId": target,
                    "parameters": {parameter: f"$response.body{pointer}"},
                }
                for target in about.get(parameter, ())
            }
            responses = operations[name]["responses"]
            for status in ("200", "201", "202"):
                if status in responses and links:
                    responses[status]["links"] = links

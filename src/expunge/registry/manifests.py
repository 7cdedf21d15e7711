"""Run manifests as training jobs left them. Never makes one."""

from expunge.evidence.manifest import Manifest
from expunge.registry.errors import Conflict
from expunge.registry.tables import Job


def find(job: Job) -> Manifest | None:
    """The manifest of a job's run; none where nothing was run, or by a version that wrote none."""
    recorded = (job.metrics or {}).get("manifest")
    return None if recorded is None else Manifest.model_validate(recorded)


def of(job: Job) -> Manifest:
    """The manifest of a job's run.

    Raises:
        Conflict: there is none.
    """
    manifest = find(job)
    if manifest is None:
        raise Conflict(
            f"Job {job.id} is {job.state} and has left no manifest: a run writes it at its end.",
            state=job.state,
        )
    return manifest

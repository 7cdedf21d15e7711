"""The Python SDK and the `expunge` command line: both speak HTTP and nothing else."""

from expunge.client.problems import ProblemError, UnreachableError
from expunge.client.sdk import Client

__all__ = ["Client", "ProblemError", "UnreachableError"]

"""What a check found, how bad it is, and what to do about it."""

from dataclasses import dataclass
from enum import StrEnum


class Check(StrEnum):
    """What was looked at."""

    SCHEMA = "schema"
    """Can this program run on the database's schema?"""
    RULES = "rules"
    """Do the rows keep the rules of requests, jobs, checkpoints and heads?"""
    QUEUE = "queue"
    """Is somebody there who announces jobs and takes them back?"""
    OBJECTS = "objects"
    """Is every object there that a row names, whole and of its size?"""
    ORPHANS = "orphans"
    """Is every object named by a row?"""
    LOG = "log"
    """Is the log what was sealed, and is it sealed?"""
    SIGNING_KEY = "signing-key"
    """Is this process's signing key the service's?"""
    BACKUPS = "backups"
    """Is there one, and is it known how long they are kept?"""


ADVICE = {
    Check.SCHEMA: "migrate with `expunge migrate`, or run the newer program",
    Check.RULES: "stop the workers, keep a copy of the database, and report it: no operation of the "
    "service makes this",
    Check.QUEUE: "start a dispatcher (`python -m expunge.worker dispatch`) and workers",
    Check.OBJECTS: "put the objects back from a backup (`restore --objects-only`); what no backup has "
    "its owner has to upload or train again",
    Check.ORPHANS: "nothing: the dispatcher's sweep removes them once their grace is over",
    Check.LOG: "find out who could write to the database; a backup taken before shows what changed",
    Check.SIGNING_KEY: "set EXPUNGE_SIGNING_KEY_FILE to the key in use, or rotate to this one",
    Check.BACKUPS: "back up with `expunge backup`, and set "
    "EXPUNGE_BACKUP_RETENTION_DAYS to how long backups are kept",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be."""

    check: Check
    words: str
    broken: bool = True
    """False: worth knowing; it passes, or is an operator's to decide."""

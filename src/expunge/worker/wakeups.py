"""The Celery side: which queue a kind of job goes to, and the message that wakes a worker.

A message says "look for work" and nothing else; losing or repeating one changes nothing.
"""

from celery import Celery

from expunge.registry.settings import Settings
from expunge.registry.tables import JobKind

LOOK_FOR_WORK = "expunge.look_for_work"
QUEUES: dict[JobKind, str] = {
    JobKind.SEAL: "intake",
    JobKind.VERIFY: "intake",
    JobKind.PRETRAIN: "train",
    JobKind.UNLEARN: "train",
    JobKind.COMPARE: "train",
    JobKind.AUDIT: "audit",
    JobKind.REVIEW: "audit",
    JobKind.ENCODE: "audit",
}
ROLES: dict[str, tuple[str, ...]] = {
    "train": ("train",),
    "interactive": ("audit", "intake"),
}
"""What a worker process listens to: one that trains, one that answers quickly."""
REDIS_TIMEOUT_SECONDS = 5


def kinds_of(role: str) -> list[JobKind]:
    """The kinds of job that a worker of this role does."""
    return [kind for kind, queue in QUEUES.items() if queue in ROLES[role]]


def make_celery(settings: Settings) -> Celery:
    """The Celery application: messages are acknowledged on receipt, results are not kept."""
    app = Celery("expunge", broker=settings.redis_url)
    app.conf.update(
        task_ignore_result=True,
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "socket_connect_timeout": REDIS_TIMEOUT_SECONDS,
            # Celery's own default waits for ever on a Redis that hangs.
            "socket_timeout": REDIS_TIMEOUT_SECONDS,
            # A dispatcher that cannot reach Redis says so at once and tries again itself.
            "max_retries": 1,
            "interval_start": 0,
        },
        task_create_missing_queues=True,
        worker_enable_remote_control=False,
    )
    return app


def wake(app: Celery, kind: JobKind) -> None:
    """Tell some worker of the right role to look for work.

    Raises:
        kombu.exceptions.OperationalError: Redis cannot be reached.
    """
    app.send_task(LOOK_FOR_WORK, queue=QUEUES[kind], retry=False)

"""Connections to PostgreSQL. Never holds a connection across calls."""

from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session, sessionmaker

Sessions = sessionmaker[Session]

LOCK_TIMEOUT = "10s"
STATEMENT_TIMEOUT = "60s"


def connect(url: str, *, pool_size: int = 10) -> Engine:
    """An engine whose connections give up on locks and statements instead of hanging."""
    return create_engine(
        url,
        pool_size=pool_size,
        max_overflow=10,
        pool_pre_ping=True,
        connect_args={
            "options": f"-c lock_timeout={LOCK_TIMEOUT} -c statement_timeout={STATEMENT_TIMEOUT} "
            "-c timezone=UTC",
            "connect_timeout": 10,
        },
    )


def sessions(engine: Engine) -> Sessions:
    """A factory of sessions whose objects stay readable after commit."""
    return sessionmaker(engine, expire_on_commit=False)

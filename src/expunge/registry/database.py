"""Connections to PostgreSQL. Never holds a connection across calls."""

import time
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.orm import Session, sessionmaker

Sessions = sessionmaker[Session]

LOCK_TIMEOUT = "10s"
STATEMENT_TIMEOUT = "60s"
IDLE_TIMEOUT = "60s"
"""Of a transaction in which nothing happens: what it has locked is free again."""
TRUSTED_SECONDS = 1.0
"""A connection that was used so recently is not asked whether it lives before it is used again."""
UNREACHABLE = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
"""A server that is cut off is noticed within some 15 seconds, not after TCP's many minutes."""


def connect(url: str, *, pool_size: int = 10, statement_timeout: str = STATEMENT_TIMEOUT) -> Engine:
    """An engine whose connections give up on locks and statements instead of hanging."""
    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=10,
        # Parameters of a failed statement may be secrets: lease tokens, hashes of keys.
        hide_parameters=True,
        connect_args={
            "options": f"-c lock_timeout={LOCK_TIMEOUT} -c statement_timeout={statement_timeout} "
            f"-c idle_in_transaction_session_timeout={IDLE_TIMEOUT} "
            "-c timezone=UTC",
            "connect_timeout": 10,
            **UNREACHABLE,
        },
    )
    _ask_the_rested(engine)
    return engine


def _ask_the_rested(engine: Engine) -> None:
    """Replace connections that the server has closed, as SQLAlchemy's pre-ping does, but ask only those that rested."""

    def rest(_: Any, record: Any) -> None:
        record.info["rests_since"] = time.monotonic()

    def ask(connection: Any, record: Any, _: Any) -> None:
        if time.monotonic() - record.info.get("rests_since", 0) < TRUSTED_SECONDS:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise InvalidatePoolError from error

    event.listen(engine, "connect", rest)
    event.listen(engine, "checkin", rest)
    event.listen(engine, "checkout", ask)


def readings(engine: Engine) -> Sessions:
    """A factory of sessions that write nothing: each statement stands alone, which saves two round trips."""
    return sessions(engine.execution_options(isolation_level="AUTOCOMMIT"))


def sessions(engine: Engine) -> Sessions:
    """A factory of sessions whose objects stay readable after commit."""
    return sessionmaker(engine, expire_on_commit=False)

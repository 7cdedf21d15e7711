"""Settings of every service process, read from EXPUNGE_* environment variables. Nothing reads them at import time."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """One value object, built once by a process's entry point and passed on."""

    model_config = SettingsConfigDict(env_prefix="EXPUNGE_", frozen=True)

    database_url: str = Field(description="SQLAlchemy URL of the PostgreSQL database.")
    redis_url: str = Field(
        default="redis://127.0.0.1:6379/0", description="Celery broker: carries wake-ups only."
    )
    object_store: str = Field(
        description="Where objects live: file:///absolute/directory or s3://bucket."
    )
    s3_endpoint: str = Field(default="", description="S3 endpoint, e.g. http://127.0.0.1:9000.")
    s3_access_key: str = ""
    s3_secret_key: SecretStr = SecretStr("")
    work_dir: Path = Field(
        default=Path("/var/tmp/expunge"),  # noqa: S108 - a default that operators override
        description="Scratch space of this process: uploads in flight, training files.",
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"

    max_shard_bytes: int = Field(default=4 * 2**30, gt=0, description="Largest accepted shard.")
    max_checkpoint_bytes: int = Field(default=8 * 2**30, gt=0)
    lease_seconds: float = Field(
        default=30, gt=0, description="A job whose worker is silent for longer is given away."
    )
    max_attempts: int = Field(
        default=3, ge=1, description="How often a job is started before it fails for good."
    )
    job_time_limit_seconds: float = Field(default=24 * 3600, gt=0)
    republish_seconds: float = Field(
        default=20, gt=0, description="A queued job unclaimed for longer is announced again."
    )

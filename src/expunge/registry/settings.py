"""Settings of every service process, from EXPUNGE_* environment variables and files of the same names.

Nothing reads them at import time.
"""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

from expunge.registry.labels import ListedLabels

SECRETS_DIR = "EXPUNGE_SECRETS_DIR"
"""Names a folder of files such as `expunge_database_url`; what the environment sets comes first."""


class Settings(BaseSettings):
    """One value object, built once by a process's entry point and passed on."""

    model_config = SettingsConfigDict(
        # Values may be secrets: what is wrong with one is said without it.
        env_prefix="EXPUNGE_",
        frozen=True,
        hide_input_in_errors=True,
    )

    # Passwords are in the addresses: they are not shown where settings are.
    database_url: str = Field(repr=False, description="SQLAlchemy URL of the PostgreSQL database.")
    redis_url: str = Field(
        default="redis://127.0.0.1:6379/0",
        repr=False,
        description="Celery broker: carries wake-ups, and counts calls.",
    )
    object_store: str = Field(
        description="Where objects live: file:///absolute/directory or s3://bucket."
    )
    s3_endpoint: str = Field(default="", description="S3 endpoint, e.g. http://127.0.0.1:9000.")
    s3_access_key: str = Field(default="", repr=False)
    s3_secret_key: SecretStr = SecretStr("")
    s3_region: str = Field(default="us-east-1", description="Region that calls are signed for.")
    s3_addressing: Literal["path", "virtual"] = Field(
        default="path", description="Where the bucket is named: in the path, or in the host's name."
    )
    s3_public_endpoint: str = Field(
        default="",
        description="The S3 endpoint as owners reach it, who then send shards and parts of "
        "checkpoints to the store themselves; empty: all goes through the service.",
    )
    s3_ca_file: str = Field(
        default="",
        description="Certificates (PEM) that an https endpoint may be signed by; empty: the system's.",
    )
    s3_sse: Annotated[str, Field(pattern=r"^(none|s3|kms:.+)$")] = Field(
        default="none",
        description="Encryption by the server: none, s3 (its own key), or kms:KEY.",
    )
    direct_upload_seconds: float = Field(
        default=3600,
        ge=1,
        le=7 * 24 * 3600,
        description="So long an owner may send a shard, or a checkpoint in parts, to the S3 store "
        "and complete it.",
    )
    work_dir: Path = Field(
        default=Path("/var/tmp/expunge"),  # noqa: S108 - a default that operators override
        description="Scratch space of this process: uploads in flight, training files.",
    )
    signing_key_file: str = Field(
        default="",
        description="Private key (PEM, mode 0600) that signs tree heads, certificates and receipts of "
        "encodings; empty: nothing is signed.",
    )
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = Field(
        default="auto",
        description="auto, cpu, cuda, or one device of several: cuda:1. One job runs on it at a time.",
    )
    worker_labels: Annotated[ListedLabels, NoDecode] = Field(
        default=(),
        description="What this worker offers beyond the kind of its device, e.g. a100,zone-3: models "
        "may ask for it.",
    )

    metrics_token: SecretStr = Field(
        default=SecretStr(""),
        description="Bearer token that reads the api's /metrics; empty: an operator's key does.",
    )
    metrics_listen: Annotated[str, Field(pattern=r"^(\S+:\d+)?$")] = Field(
        default="",
        description="Where a worker or dispatcher serves its metrics, e.g. 127.0.0.1:9101; empty: "
        "nowhere.",
    )
    otlp_endpoint: Annotated[str, Field(pattern=r"^(https?://\S+)?$")] = Field(
        default="",
        description="OpenTelemetry collector (OTLP over HTTP), e.g. http://127.0.0.1:4318; empty: "
        "no traces.",
    )

    max_shard_bytes: int = Field(default=4 * 2**30, gt=0, description="Largest accepted shard.")
    max_checkpoint_bytes: int = Field(default=8 * 2**30, gt=0)
    lease_seconds: float = Field(
        default=30, gt=0, description="A job whose worker is silent for longer is given away."
    )
    max_attempts: int = Field(
        default=3,
        ge=1,
        description="So many crashes in a row that got no further end a job.",
    )
    retry_seconds: float = Field(
        default=2,
        gt=0,
        description="Wait before a crashed job's second attempt; doubles with every further one.",
    )
    job_time_limit_seconds: float = Field(
        default=24 * 3600, gt=0, description="Of a training job, all its attempts together."
    )
    snapshot_seconds: float = Field(
        default=30,
        gt=0,
        description="Between two snapshots of a training run, at least; longer where one takes long.",
    )
    training_niceness: int = Field(
        default=10,
        ge=0,
        le=19,
        description="How far training processes give way to api and audits on the same cores (nice).",
    )
    stop_grace_seconds: float = Field(
        default=10,
        gt=0,
        description="A stopped worker's training process may take this long to write its snapshot.",
    )
    outage_patience_seconds: float = Field(
        default=600,
        gt=0,
        description="How long a worker holds a result while a store is away before it gives up.",
    )
    max_outages: int = Field(
        default=30, ge=1, description="How often a job waits for a store before it fails for good."
    )
    object_grace_seconds: float = Field(
        default=3600, ge=0, description="An upload that nothing names is removed after this time."
    )
    object_sweep_seconds: float = Field(
        default=900, gt=0, description="Between two sweeps of the object store by a dispatcher."
    )
    backup_retention_days: float = Field(
        default=0,
        ge=0,
        description="Backups are removed after so long, and owners are told; 0: not said, kept.",
    )
    idempotency_hours: float = Field(
        default=24, gt=0, description="How long an Idempotency-Key is remembered."
    )
    audit_budget_per_day: int = Field(
        default=200,
        ge=1,
        description="Audits and encodings of one request in a day (UTC), by all who may ask.",
    )
    audit_sample_views_per_day: int = Field(
        default=2_000_000, ge=1, description="Views of samples in them, together."
    )
    reads_per_minute: int = Field(
        default=30_000, ge=0, description="Calls of one key that only read; 0: no limit."
    )
    writes_per_minute: int = Field(default=6_000, ge=0, description="That make or change.")
    audits_per_minute: int = Field(default=1_200, ge=0, description="That ask the encoders.")
    key_calls_per_minute: int = Field(default=600, ge=0, description="About keys and parties.")
    failed_keys_per_minute: int = Field(
        default=600,
        ge=0,
        description="Unknown keys from one address before it has to wait; 0: no limit.",
    )
    open_calls_per_key: int = Field(
        default=200,
        ge=0,
        description="Event streams, waiting calls, uploads and their checks of one key that an api "
        "process has open at once; 0: no limit.",
    )
    stored_bytes_per_party: int = Field(
        default=256 * 2**30,
        ge=0,
        description="Shards, announced direct uploads and uploaded checkpoints of one party, "
        "together; 0: no limit.",
    )
    body_stall_seconds: float = Field(
        default=30, gt=0, description="For which the body of a call may pause before it is cut off."
    )
    body_bytes_per_second: float = Field(
        default=4096, gt=0, description="A body that comes more slowly, pauses aside, is cut off."
    )
    review_requests: int = Field(
        default=1000,
        ge=0,
        description="How many past requests, the newest ones, are audited again under a new head.",
    )
    price_per_device_hour: float = Field(
        default=0, ge=0, description="For estimates of cost; 0: none is given."
    )
    currency: str = Field(default="EUR", max_length=8)
    republish_seconds: float = Field(
        default=20, gt=0, description="A queued job unclaimed for longer is announced again."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What is passed in, then the environment, then the files of the folder that it names, if any."""
        del dotenv_settings, file_secret_settings
        folder = os.environ.get(SECRETS_DIR)
        if not folder:
            return init_settings, env_settings
        if not Path(folder).is_dir():
            raise ValueError(f"{SECRETS_DIR} names {folder}, which is no folder")
        return init_settings, env_settings, SecretsSettingsSource(settings_cls, folder)

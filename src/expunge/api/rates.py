"""How often a key may call, and an address try keys, in a minute: counted in Redis for all api processes together.

Processes draw their calls from Redis in portions, so that most calls cost no message. Without Redis each
process counts for itself: the service goes on, and its limits hold per process.
"""

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from expunge.registry.errors import DomainError
from expunge.registry.settings import Settings
from expunge.registry.tables import Scope

if TYPE_CHECKING:
    from redis import Redis

WINDOW_SECONDS = 60
PORTIONS = 50
"""A process takes at most so many parts of a minute's calls at once, and fewer as they run out."""
TIMEOUT_SECONDS = 0.25
AWAY_SECONDS = 5
"""How long a Redis that failed is not asked again."""
MAX_ACCOUNTS = 100_000
MAX_KNOWN_KEYS = 10_000
FAILED = "failed"
"""Kind of what is counted by address: keys that are none."""
SOCKET_SCHEME = "redis+socket://"
IPV6_PREFIX = 64
"""Bits that one subscriber holds: whoever has an address there has all of them."""

# KEYS[1]: the window's counter; ARGV: quota, largest portion, seconds to live.
# Answers what is granted and what is left after it.
DRAW = """
local left = tonumber(ARGV[1]) - tonumber(redis.call('GET', KEYS[1]) or '0')
if left <= 0 then return {0, 0} end
local grant = math.max(1, math.min(tonumber(ARGV[2]), math.floor(left / 8)))
redis.call('INCRBY', KEYS[1], grant)
redis.call('EXPIRE', KEYS[1], ARGV[3])
return {grant, left - grant}
"""

log = structlog.get_logger(__name__)


class TooManyCalls(DomainError):
    """More calls than a minute takes."""

    slug, title, status = "too-many-calls", "Too many calls", 429


@dataclass(frozen=True, slots=True)
class Share:
    """What is left of a minute's calls."""

    kind: str
    quota: int
    left: int
    seconds: int
    """Until the minute is over."""

    def headers(self) -> list[tuple[bytes, bytes]]:
        """As the IETF's draft on RateLimit header fields writes it."""
        policy = f'"{self.kind}";q={self.quota};w={WINDOW_SECONDS}'
        state = f'"{self.kind}";r={self.left};t={self.seconds}'
        return [(b"ratelimit-policy", policy.encode()), (b"ratelimit", state.encode())]


@dataclass(slots=True)
class _Account:
    """One caller's calls of one kind in this minute, as this process knows them."""

    held: int = 0
    """Drawn and not spent."""
    spent: int = 0
    left: int = 0
    """In Redis, when it was last asked."""
    exhausted: bool = False


class RateLimits:
    """Counts for all threads of a process; a quota of 0 is none."""

    def __init__(
        self,
        redis_url: str,
        quotas: Mapping[str, int],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._redis_url = redis_url
        self._quotas = quotas
        self._clock = clock
        self._guard = threading.Lock()
        self._window = 0
        self._accounts: dict[tuple[str, str], _Account] = {}
        self._known: OrderedDict[str, None] = OrderedDict()
        self._redis: Redis | None = None
        self._away_until = 0.0

    @classmethod
    def of(cls, settings: Settings) -> "RateLimits":
        """As the operator set them."""
        quotas = {
            Scope.READ: settings.reads_per_minute,
            Scope.WRITE: settings.writes_per_minute,
            Scope.AUDIT: settings.audits_per_minute,
            Scope.KEYS: settings.key_calls_per_minute,
            FAILED: settings.failed_keys_per_minute,
        }
        return cls(settings.redis_url, quotas)

    def close(self) -> None:
        """Close the connections to Redis."""
        if self._redis is not None:
            self._redis.close()

    def require_redis(self) -> None:
        """Ask Redis for a sign of life.

        Raises:
            RedisError, OSError, ValueError: it does not answer, or is none.
        """
        self._client().ping()

    def spend(self, kind: str, who: str) -> Share | None:
        """Count one call; what is left, or nothing where there is no limit.

        Raises:
            TooManyCalls: none is left in this minute.
        """
        quota = self._quotas[kind]
        if not quota:
            return None
        now = self._clock()
        window = int(now // WINDOW_SECONDS)
        seconds = WINDOW_SECONDS - int(now % WINDOW_SECONDS)
        while True:
            with self._guard:
                account = self._account(window, kind, who)
                if account.exhausted:
                    raise self._refusal(kind, quota, seconds)
                if account.held > 0:
                    account.held -= 1
                    account.spent += 1
                    return Share(kind, quota, account.held + account.left, seconds)
            # Another thread may spend what this one draws: then it draws again.
            self._draw(account, kind, who, window, quota)

    def require_tries(self, address: str, key_digest: str) -> None:
        """Refuse a key that this process has not met from an address that has tried too many that are none.

        Raises:
            TooManyCalls: it is so.
        """
        now = self._clock()
        with self._guard:
            account = self._account(int(now // WINDOW_SECONDS), FAILED, address)
            refused = account.exhausted and key_digest not in self._known
        if refused:
            seconds = WINDOW_SECONDS - int(now % WINDOW_SECONDS)
            raise self._refusal(FAILED, self._quotas[FAILED], seconds)

    def meet(self, key_digest: str) -> None:
        """Remember a live key: others at its address cannot lock it out."""
        with self._guard:
            self._known[key_digest] = None
            self._known.move_to_end(key_digest)
            if len(self._known) > MAX_KNOWN_KEYS:
                self._known.popitem(last=False)

    def _account(self, window: int, kind: str, who: str) -> _Account:
        # A thread may come late with the minute before; a clock that was set back begins anew.
        another = window > self._window or window < self._window - 1
        if another:
            self._window = window
        if another or len(self._accounts) >= MAX_ACCOUNTS:
            self._accounts.clear()
        return self._accounts.setdefault((kind, who), _Account())

    def _draw(self, account: _Account, kind: str, who: str, window: int, quota: int) -> None:
        answer = self._ask(f"expunge:calls:{kind}:{who}:{window}", quota)
        with self._guard:
            if answer is None:
                granted, account.left = quota - account.spent - account.held, 0
            else:
                granted, account.left = answer
            account.held += max(granted, 0)
            account.exhausted = account.held <= 0

    def _ask(self, counter: str, quota: int) -> tuple[int, int] | None:
        """What Redis grants and has left; nothing while it is away."""
        # Imported here: the api starts without it.
        from redis import RedisError  # noqa: PLC0415

        with self._guard:
            now = time.monotonic()
            if now < self._away_until:
                return None
        portion = max(1, quota // PORTIONS)
        try:
            answer = self._client().eval(DRAW, 1, counter, quota, portion, 2 * WINDOW_SECONDS)
        # The last of an address that is Celery's alone, such as that of another kind of broker.
        except (RedisError, OSError, ValueError) as error:
            with self._guard:
                self._away_until = time.monotonic() + AWAY_SECONDS
            log.warning("calls are counted per process: no Redis", error=type(error).__name__)
            return None
        granted, left = answer
        return int(granted), int(left)

    def _client(self) -> "Redis":
        with self._guard:
            if self._redis is None:
                self._redis = _connect(self._redis_url)
            return self._redis

    @staticmethod
    def _refusal(kind: str, quota: int, seconds: int) -> TooManyCalls:
        counted = "keys that are none" if kind == FAILED else f"{kind} calls"
        return TooManyCalls(
            f"At most {quota:,} {counted} a minute are taken; go on in {seconds} seconds.",
            kind=kind,
            allowed={"calls": quota, "seconds": WINDOW_SECONDS},
            retry_after_seconds=seconds,
        )


def _connect(url: str) -> "Redis":
    from redis import Redis  # noqa: PLC0415 - see above
    from redis.backoff import NoBackoff  # noqa: PLC0415
    from redis.retry import Retry  # noqa: PLC0415

    if url.startswith(SOCKET_SCHEME):
        # Celery's words for a socket and its database are its own.
        url = f"unix://{url.removeprefix(SOCKET_SCHEME)}".replace("virtual_host=", "db=")
    return Redis.from_url(
        url,
        socket_connect_timeout=TIMEOUT_SECONDS,
        socket_timeout=TIMEOUT_SECONDS,
        # A caller waits for it: what fails is counted here instead.
        retry=Retry(NoBackoff(), 0),
    )


def address_of(host: str | None) -> str:
    """Whom an address counts as: an IPv6 one as its network of 64 bits; `local` where there is none."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return host or "local"
    if isinstance(address, ipaddress.IPv6Address):
        # As a socket of both versions tells of callers by IPv4, who would all be in one network.
        address = address.ipv4_mapped or address
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(ipaddress.ip_network((address, IPV6_PREFIX), strict=False))

"""The calls about the sealed log: own rows, tree heads, proofs, the service's own check. Checks nothing itself."""

from collections.abc import Iterator
from typing import Any

from expunge.client.calls import Calls, get, pages
from expunge.client.resources import Resource
from expunge.evidence.chain import ROW_MEMBERS, Row
from expunge.evidence.heads import Head
from expunge.evidence.merkle import BadProof
from expunge.evidence.succession import KnownKey


class LogRow(Resource):
    """One complete row of the log; `path` is its inclusion proof where one was asked for."""

    seq: int
    at: str
    actor: str
    subject_id: str
    event: str
    detail: dict[str, Any]
    salt: str
    sealed: bool
    position: int | None = None
    leaf_hash: str | None = None
    path: list[str] | None = None

    def evidence(self) -> Row:
        """The row as it is hashed."""
        return Row(**{name: getattr(self, name) for name in ROW_MEMBERS})


class TreeHead(Resource):
    """What the log was when it had `size` sealed rows; `envelope` is the signed statement of it."""

    size: int
    root_hash: str
    chain_hash: str
    at: str
    signed: bool
    envelope: dict[str, Any] | None = None

    def stated(self) -> Head:
        """The head as it is signed."""
        root, chain = bytes.fromhex(self.root_hash), bytes.fromhex(self.chain_hash)
        return Head(self.size, root, chain, self.at)


class LogProof(Resource):
    """That a row is part of the log as a tree head states it."""

    row: LogRow
    head: TreeHead


class BrokenLink(Resource):
    """The first link of the log that does not hold."""

    kind: str
    seq: int | None = None
    position: int | None = None
    size: int | None = None
    detail: str = ""


class LogCheck(Resource):
    """What the service found when it checked the rows at `start` to `end - 1`."""

    ok: bool
    size: int
    start: int
    end: int
    next: int | None = None
    unsigned_heads: int
    broken: BrokenLink | None = None


class LogCalls(Calls):
    """Read, prove, check."""

    def log_rows(self, subject: str | None = None, *, size: int | None = None) -> Iterator[LogRow]:
        """What the caller did and what happened to their own; with `size`, proven under that tree head."""
        wanted = {"subject": subject, "size": size}
        params = {name: value for name, value in wanted.items() if value is not None}
        return pages(self._transport, "/log", LogRow.model_validate, params)

    def log_head(self, size: int | None = None) -> TreeHead:
        """The newest tree head, or that of a size."""
        params = None if size is None else {"size": size}
        return TreeHead.model_validate(get(self._transport, "/log/head", params))

    def log_proof(self, seq: int, *, size: int | None = None) -> LogProof:
        """The proof that an own row is part of the newest tree head, or of the one of a size."""
        params = None if size is None else {"size": size}
        return LogProof.model_validate(get(self._transport, f"/log/{seq}/proof", params))

    def log_consistency(self, first: int, second: int) -> list[bytes]:
        """The proof that the log of `second` rows begins with that of `first` rows.

        Raises:
            BadProof: what the service answers is none.
        """
        answer = get(self._transport, "/log/consistency", {"first": first, "second": second})
        try:
            return [bytes.fromhex(each) for each in answer["path"]]
        except (ValueError, TypeError, KeyError) as error:
            raise BadProof("the proof that the log only grew consists of no hashes") from error

    def log_check(self) -> Iterator[LogCheck]:
        """The service's own check of the whole log, part after part, until one is broken."""
        start: int | None = 0
        while start is not None:
            part = LogCheck.model_validate(get(self._transport, "/log/verify", {"start": start}))
            yield part
            start = part.next

    def signing_keys(self) -> list[KnownKey]:
        """The keys that the service signs with, in the order of their succession. Needs no key."""
        items = get(self._transport, "/signing-keys")["items"]
        return [KnownKey.model_validate(each) for each in items]

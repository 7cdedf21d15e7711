"""The calls about parties, for operators, and keys."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from expunge.client import resources as r
from expunge.client.calls import Calls, create, pages
from expunge.client.problems import LostSecretError
from expunge.client.transport import Body


class ListedKey(r.Resource):
    """A key without its secret; `last_used_at` is exact to the minute, `replaces` the key it was rotated from."""

    id: str
    party_id: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    replaces: str | None


class PartyCalls(Calls):
    """Who takes part, and keys."""

    def create_party(
        self, name: str, role: r.Role, *, idempotency_key: str | None = None
    ) -> r.Party:
        """Create a party."""
        body = Body(json={"name": name, "role": role})
        return r.Party.model_validate(create(self._transport, "/parties", body, idempotency_key))

    def parties(self) -> Iterator[r.Party]:
        """All parties."""
        return pages(self._transport, "/parties", r.Party.model_validate)

    def create_key(
        self,
        party_id: str,
        expires_in_days: int | None = None,
        *,
        scopes: Sequence[r.Scope] | None = None,
        idempotency_key: str | None = None,
    ) -> r.Key:
        """Create a key for a party, for all that the party may do or for some `scopes` of it.

        Its secret is in this answer only.

        Raises:
            LostSecretError: the key is there, but the answer with its secret was lost.
        """
        body: dict[str, Any] = {}
        if expires_in_days is not None:
            body["expires_in_days"] = expires_in_days
        if scopes is not None:
            body["scopes"] = list(scopes)
        return self._issued(f"/parties/{party_id}/keys", body, idempotency_key)

    def rotate_key(
        self, key_id: str, *, overlap_hours: int = 24, idempotency_key: str | None = None
    ) -> r.Key:
        """Replace an own key; the old secret works for `overlap_hours` more.

        Raises:
            LostSecretError: the new key is there, but the answer with its secret was lost.
        """
        body = {"overlap_hours": overlap_hours}
        return self._issued(f"/keys/{key_id}/rotate", body, idempotency_key)

    def keys(self, party_id: str | None = None) -> Iterator[ListedKey]:
        """Own keys, everybody's for an operator, newest first; those of one party if it is named."""
        chosen = {} if party_id is None else {"party_id": party_id}
        return pages(self._transport, "/keys", ListedKey.model_validate, chosen)

    def revoke_key(self, key_id: str) -> None:
        """Make an own key useless from now on, as an operator anybody's."""
        self._transport.send("DELETE", f"/keys/{key_id}", repeatable=True)

    def _issued(self, path: str, body: dict[str, Any], idempotency_key: str | None) -> r.Key:
        answer = create(self._transport, path, Body(json=body), idempotency_key)
        if answer["secret"] is None:
            raise LostSecretError(
                f"Key {answer['id']} was made by an earlier call, whose answer alone had its "
                "secret; revoke it and create another one."
            )
        return r.Key.model_validate(answer)

"""The calls about parties and keys, for operators."""

from collections.abc import Iterator

from expunge.client import resources as r
from expunge.client.calls import Calls, create, pages
from expunge.client.problems import LostSecretError
from expunge.client.transport import Body


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
        idempotency_key: str | None = None,
    ) -> r.Key:
        """Create a key for a party; its secret is in this answer only.

        Raises:
            LostSecretError: the key is there, but the answer with its secret was lost.
        """
        body = {} if expires_in_days is None else {"expires_in_days": expires_in_days}
        path = f"/parties/{party_id}/keys"
        answer = create(self._transport, path, Body(json=body), idempotency_key)
        if answer["secret"] is None:
            raise LostSecretError(
                f"Key {answer['id']} was made by an earlier call, whose answer alone had its "
                "secret; revoke it and create another one."
            )
        return r.Key.model_validate(answer)

    def revoke_key(self, key_id: str) -> None:
        """Make a key useless from now on."""
        self._transport.send("DELETE", f"/keys/{key_id}", repeatable=True)

"""An audit computed at home from outputs that the service signed for, placed among its retained samples' quantiles.

Trusts the service for the outputs and the quantiles, and for no other number.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from expunge.client.encodings import Encoding, Receipt
from expunge.client.problems import DoubtError
from expunge.client.reports import Audit
from expunge.client.resources import RemovalRequest
from expunge.evidence.audit import AuditReport, Level, NullQuantiles, audit, bounds_of_all, place
from expunge.evidence.encoding import PAYLOAD_TYPE, SIDES, BadEncoding, Encoded, check
from expunge.evidence.pictures.bundle import Bundle
from expunge.evidence.protocol import views_seed
from expunge.evidence.signing import BadSignature, PublicKey, signed_by, verify
from expunge.evidence.succession import KnownKey, follow

if TYPE_CHECKING:
    from expunge.client.sdk import Client


@dataclass(frozen=True)
class LocalAudit:
    """Own numbers, and where they lie among draws of samples that the model kept.

    report: own statistics, computed here; its verdict is not: it needs samples of others. places:
    per level and statistic, bounds of the p-value; p: bounds of one for all of them together
    (Bonferroni); None where the service gives no quantiles. signed_by: id of the key that signed
    the outputs' receipt, None where nobody's key was asked for.
    """

    encoding: Encoding
    encoded: Encoded
    report: AuditReport
    places: dict[Level, dict[str, list[float]]] | None
    p: list[float] | None
    signed_by: str | None

    @property
    def bundle(self) -> Bundle:
        """What `evidence.pictures` draws the heat maps from; without thumbnails."""
        return Bundle(dict(self.report.matrices.items()), None, tuple(self.report.matrix_keys))

    @property
    def sentence(self) -> str:
        """What an owner may conclude from it."""
        n = self.report.n_own
        if self.p is None:
            return (
                f"The forgetting scores of your {n} images are computed here; the model keeps too "
                "few samples of others to hold them against."
            )
        low, high = self.p
        return (
            f"Among draws of {n} samples that the model kept, as the service describes them, yours "
            f"would come about with a probability between {low:.3g} and {high:.3g} if the model had "
            "not been made to forget them."
        )


def audit_at_home(
    client: "Client",
    request_id: str,
    *,
    dataset_ids: Sequence[str] | None = None,
    sample_keys: Sequence[str] | None = None,
    draw: Mapping[str, int] | None = None,
    views: int,
    seed: int | None,
    matrix_size: int,
    keys: Sequence[PublicKey] = (),
) -> LocalAudit:
    """See `Client.audit_at_home`."""
    if seed is None:
        seed = views_seed(client.request(request_id).model_id)
    asked: dict[str, Any] = {
        "dataset_ids": dataset_ids,
        "sample_keys": sample_keys,
        "draw": draw,
        "views": views,
        "seed": seed,
    }
    home = outputs_at_home(client, request_id, asked, keys)
    encoded = home.encoded
    report = audit(encoded.levels, encoded.keys, seed=seed, matrix_size=matrix_size)
    asked_of_service = client.audit(request_id, matrix_size=matrix_size, **asked)
    quantiles = _quantiles(asked_of_service)
    places = None if quantiles is None else place(report, quantiles)
    bounds = None if places is None else bounds_of_all(places)
    return LocalAudit(home.encoding, encoded, report, places, bounds, home.signed_by)


@dataclass(frozen=True)
class HomeOutputs:
    """Outputs that fit their receipt, the receipt's statement, and whose key signed it, if one was asked for."""

    encoding: Encoding
    encoded: Encoded
    statement: Mapping[str, Any]
    signed_by: str | None


def outputs_at_home(
    client: "Client", request_id: str, asked: Mapping[str, Any], keys: Sequence[PublicKey]
) -> HomeOutputs:
    """Both encoders' outputs on what is asked about, checked; `asked` as `Client.encode` takes it.

    Raises:
        DoubtError: the encoding failed, or what came does not fit its receipt, the question, the
            request's weights or the keys.
    """
    encoding = client.encode(request_id, **asked)
    receipt = encoding.receipt
    if encoding.state != "succeeded" or receipt is None:
        raise DoubtError(f"the encoding {encoding.state}: {encoding.reason}")
    _check_weights(receipt, client.request(request_id))
    key_id = _signer(receipt, _followed(keys, client.signing_keys()) if keys else ())
    try:
        encoded = check(receipt.statement, client.encoding_outputs(encoding.id))
    except BadEncoding as error:
        raise DoubtError(str(error)) from error
    _check_asked(receipt.statement, encoded, request_id, asked)
    return HomeOutputs(encoding, encoded, receipt.statement, key_id)


def _check_weights(receipt: Receipt, request: RemovalRequest) -> None:
    result = request.result
    said = [receipt.statement[side]["digest"] for side in SIDES]
    if result is None or said != [result.before_digest, result.digest]:
        raise DoubtError("the receipt names other weights than the request's result does")


def _check_asked(
    statement: Mapping[str, Any], encoded: Encoded, request_id: str, asked: Mapping[str, Any]
) -> None:
    """A receipt stays true for ever; it must not be that of an earlier question."""
    said = (statement.get("request_id"), encoded.views, encoded.seed)
    if said != (request_id, asked["views"], asked["seed"]):
        raise DoubtError("the receipt is for another question: request, views or seed")
    names, drawn, told = asked["sample_keys"], asked["draw"], set(encoded.keys)
    more = drawn is not None and len(told) > drawn["samples"]
    # Behind a data set's id or not: the service names samples so only where there are several.
    wanted = [{name, name.partition("/")[2]} for name in names or ()]
    other = names is not None and not told <= set().union(*wanted)
    fewer = drawn is None and any(told.isdisjoint(each) for each in wanted)
    if more or other or fewer:
        raise DoubtError("the receipt is for other samples than were asked about")


def _followed(keys: Sequence[PublicKey], known: Sequence[KnownKey]) -> list[PublicKey]:
    """The keys, and those that each introduced to follow it."""
    trusted = list(keys)
    for key in keys:
        if key.id in {each.key_id for each in known}:
            try:
                trusted += follow(key, known)
            except BadSignature as error:
                raise DoubtError(f"signing keys: {error}") from error
    return trusted


def _signer(receipt: Receipt, keys: Sequence[PublicKey]) -> str | None:
    if not keys:
        return None
    if receipt.envelope is None:
        raise DoubtError("the service did not sign the receipt")
    try:
        payload = verify(receipt.envelope, keys, PAYLOAD_TYPE)
    except BadSignature as error:
        raise DoubtError(f"the receipt is not signed as it should be: {error}") from error
    if json.loads(payload) != receipt.statement:
        raise DoubtError("what was signed is not what the receipt says")
    return signed_by(receipt.envelope)


def _quantiles(done: Audit) -> NullQuantiles | None:
    if done.state != "succeeded" or done.report is None:
        raise DoubtError(f"the service's audit {done.state}: {done.reason}")
    found = done.report.model_dump().get("null_quantiles")
    return None if found is None else NullQuantiles(**found)

"""The keys that signatures of this service are checked with: public, so that nobody needs an account to check."""

from fastapi import APIRouter

from expunge.api.schemas import signing_keys as schemas
from expunge.api.service import CurrentService
from expunge.registry import signing_keys

router = APIRouter(tags=["certificates"])


@router.get("/signing-keys", summary="List signing keys")
def list_signing_keys(service: CurrentService) -> schemas.SigningKeys:
    """The key in use and all before it, each introduced by the one before. Keep the first that you see."""
    with service.sessions() as session:
        return schemas.SigningKeys.of(signing_keys.every(session))

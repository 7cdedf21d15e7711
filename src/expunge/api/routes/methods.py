"""What can be asked for: the unlearning methods."""

from fastapi import APIRouter

from expunge.api.schemas import methods as schemas
from expunge.unlearning.catalog import METHODS

router = APIRouter(tags=["methods"])


@router.get("/methods", summary="List unlearning methods")
def list_methods() -> schemas.Methods:
    """Every method with the frameworks it is for and a JSON schema of its parameters."""
    return schemas.Methods(items=[schemas.Method.of(each) for each in METHODS.values()])

"""The object store is a directory on a disk that fills up: uploads are asked to come again, results wait."""

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.faults.disk import Disk
from tests.faults.rig import Rig
from tests.faults.users import Cast


@pytest.fixture(scope="module")
def small() -> Iterator[Rig]:
    with (
        tempfile.TemporaryDirectory(prefix="expunge-faults-") as folder,
        Rig(Path(folder), trainers=1, directory_store=True) as rig,
    ):
        if rig.store_disk is None:
            pytest.skip("only root may mount the small disk that this fills")
        yield rig


def test_uploads_and_results_wait_until_the_stores_disk_has_room(
    small: Rig, weights: Path, tmp_path: Path
) -> None:
    disk = small.store_disk
    assert isinstance(disk, Disk)
    with Cast(small, tmp_path, owners=1) as cast, ThreadPoolExecutor(1) as users:
        owner = cast.owners[0]
        removal = cast.removal(weights, seconds=0.5)
        small.eventually(small.training, "the files are there and the job trains")
        disk.fill()
        try:
            upload = users.submit(cast.dataset, owner, "late", 8)
            small.eventually(lambda: 503 in owner.statuses, "the upload is asked to come again")
            small.eventually(
                lambda: small.job(removal.job_id)["state"] == "evaluating" and not small.training(),
                "the result is to be stored",
            )
            assert not upload.done()
        finally:
            disk.free()
        job = small.until_ended(removal.job_id)
        assert (job["state"], job["attempt"], job["failure"]) == ("succeeded", 1, None)
        upload.result()
        cast.until_sealed(owner)
        assert owner.get(f"/datasets/{upload.result()}")["state"] == "sealed"
        small.check_at_rest()

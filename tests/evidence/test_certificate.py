"""What a certificate takes over from an audit's report."""

import json

import numpy as np
import pytest
from tests.evidence.simulated import names, reference, simulated

from expunge.evidence.audit import Reference, audit
from expunge.evidence.certificate import Audit, report_digest

KEPT = reference(80, np.random.default_rng(0))


@pytest.mark.parametrize("retained", [None, KEPT])
def test_an_audits_report_is_told_without_its_samples(retained: Reference | None) -> None:
    own = {"encoder": simulated(8, np.random.default_rng(1), forgotten=0.6)}
    report = audit(own, names(8), retained)
    document = json.loads(json.dumps(report.to_dict()))
    told = Audit.of(document, audit_id="aud_1", kind="protocol", created_at="now")
    score = report.levels["encoder"].own.forgetting_score
    assert (told.verdict, told.samples) == (report.verdict.code, 8)
    assert told.forgetting_score["encoder"].mean == pytest.approx(score.mean)
    assert (told.p is None) is (retained is None)
    assert told.report_sha256 == report_digest(document)
    assert not any(name in told.model_dump_json() for name in names(8))


def test_the_digest_is_that_of_all_of_the_report_whatever_the_seeds() -> None:
    report = {"seed": 2**63 - 1, "n_own": 8, "protocol": {"seeds": [2**62]}}
    assert report_digest(report) == report_digest(json.loads(json.dumps(report)))
    for change in ({"n_own": 9}, {"seed": 2**63 - 2}, {"protocol": {"seeds": [2**62 + 1]}}):
        assert report_digest(report | change) != report_digest(report)

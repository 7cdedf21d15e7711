"""All rules that the rows keep at every moment, whatever runs."""

from collections.abc import Callable, Iterable

from expunge.registry.fsck import lives, results
from expunge.registry.fsck.records import Records

Rule = Callable[[Records], Iterable[str]]

OF_PARTS: tuple[Rule, ...] = (
    lives.every_life_is_a_legal_path,
    lives.attempts_are_counted_and_never_overlap,
    lives.ends_have_reasons,
    lives.a_request_goes_with_its_job,
    results.a_job_has_one_result,
    results.what_was_asked_is_forgotten,
    results.nothing_is_forgotten_twice,
    results.lineage_is_a_chain,
    results.heads_can_be_used,
)
"""Each yields what breaks it, in words; what it goes through can be given to it a part at a time."""
RULES = (*OF_PARTS, lives.a_worker_runs_one_job_and_a_model_one_training)
"""The last one is for all jobs together."""

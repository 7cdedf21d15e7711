"""What a worker keeps between jobs stays within its limit."""

from collections.abc import Callable

from expunge.worker.warmth import Warm


def loader(value: str, loads: list[str]) -> Callable[[], str]:
    def load() -> str:
        loads.append(value)
        return value

    return load


def test_what_was_used_longest_ago_goes_first_and_is_loaded_again() -> None:
    loads: list[str] = []
    warm: Warm[str, str] = Warm("test", 2)
    for key in ("a", "b", "a", "c", "a", "b"):
        assert warm.get_or_load(key, loader(key, loads)) == key
    assert loads == ["a", "b", "c", "b"]


def test_the_weights_together_stay_within_the_limit() -> None:
    loads: list[str] = []
    warm: Warm[str, str] = Warm("test", 10, len)
    for value in ("aaaa", "bbbb", "cccc", "bbbb", "aaaa"):
        warm.get_or_load(value, loader(value, loads))
    assert loads == ["aaaa", "bbbb", "cccc", "aaaa"]


def test_what_is_too_heavy_alone_is_not_kept_and_drives_nothing_out() -> None:
    loads: list[str] = []
    warm: Warm[str, str] = Warm("test", 10, len)
    for value in ("aaaa", "x" * 11, "x" * 11, "aaaa"):
        assert warm.get_or_load(value, loader(value, loads)) == value
    assert loads == ["aaaa", "x" * 11, "x" * 11]

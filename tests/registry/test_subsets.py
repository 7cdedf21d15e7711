"""Which samples a question is about."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from expunge.evidence.subset import draw
from expunge.formats.shards import SampleRecord
from expunge.registry.datasets import encode_index, read_page
from expunge.registry.errors import Invalid
from expunge.registry.objects import DirectoryStore, ObjectDamaged, put_bytes
from expunge.registry.subsets import Draw, Indexes, Subset, choose, drawn, require_known
from expunge.registry.tables import Dataset

FIRST, SECOND = (f"dst_{digit * 32}" for digit in "12")


class Counting(DirectoryStore):
    """Counts how often an object is read."""

    reads = 0

    def stream(self, key: str) -> Iterator[bytes]:
        self.reads += 1
        return super().stream(key)


@pytest.fixture
def store(tmp_path: Path) -> Counting:
    return Counting(tmp_path / "objects")


def dataset(store: DirectoryStore, folder: Path, dataset_id: str, keys: Sequence[str]) -> Dataset:
    records = [
        SampleRecord(
            key, "a.tar", "png", 0, 1, hashlib.sha256(key.encode()).hexdigest(), 1, 1, None, None
        )
        for key in keys
    ]
    data, _ = encode_index(records)
    return Dataset(id=dataset_id, index_key=put_bytes(store, data, folder), samples=len(keys))


@pytest.fixture
def both(store: Counting, tmp_path: Path) -> list[Dataset]:
    """Two data sets that share a key; the second one is given first."""
    second = dataset(store, tmp_path, SECOND, ["a", "z"])
    return [second, dataset(store, tmp_path, FIRST, ["b", "a", f"{SECOND}/odd"])]


def names(subset: Subset, datasets: Sequence[Dataset], store: DirectoryStore) -> list[str]:
    return [each.name for each in choose(subset, datasets, Indexes(store))]


def test_nothing_of_a_damaged_index_is_shown_and_none_is_read_to_its_end(
    store: Counting, tmp_path: Path
) -> None:
    """A byte of a digest, so that every line still reads as a sample's."""
    row = dataset(store, tmp_path, FIRST, [f"{number:06d}" for number in range(20_000)])
    key = str(row.index_key)
    assert [each["key"] for each in read_page(store, key, 2, 2)] == ["000002", "000003"]
    assert [each["key"] for each in read_page(store, key, 19_999, 2)] == ["019999"]
    assert read_page(store, key, 20_000, 2) == []
    path = tmp_path / "objects" / key
    whole = path.read_bytes()
    place = whole.rindex(b'"sha256":"') + len(b'"sha256":"')
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    for start in (0, 19_999):
        with pytest.raises(ObjectDamaged):
            read_page(store, key, start, 1)
    with pytest.raises(ObjectDamaged):
        list(Indexes(store, kept_records=1).records(row))


def test_samples_come_in_order_of_data_set_and_index(store: Counting, both: list[Dataset]) -> None:
    everything = [f"{FIRST}/b", f"{FIRST}/a", f"{FIRST}/{SECOND}/odd", f"{SECOND}/a", f"{SECOND}/z"]
    assert names(Subset((FIRST, SECOND)), both, store) == everything
    assert names(Subset((SECOND,)), both[:1], store) == ["a", "z"]


def test_keys_choose_samples_of_the_data_set_that_they_name(
    store: Counting, both: list[Dataset]
) -> None:
    keys = (f"{SECOND}/a", f"{FIRST}/b", f"{FIRST}/{SECOND}/odd")
    found = names(Subset((FIRST, SECOND), keys), both, store)
    assert found == [f"{FIRST}/b", f"{FIRST}/{SECOND}/odd", f"{SECOND}/a"]
    assert names(Subset((FIRST,), (f"{SECOND}/odd", "a")), both[1:], store) == [
        "a",
        f"{SECOND}/odd",
    ]
    assert names(Subset((SECOND,), (f"{SECOND}/z", "z")), both[:1], store) == ["z"]


def test_keys_of_no_sample_are_refused_by_name(store: Counting, both: list[Dataset]) -> None:
    indexes = Indexes(store)
    require_known(Subset((FIRST, SECOND), (f"{SECOND}/a",)), both, indexes)
    with pytest.raises(Invalid, match="a key is `dst_…/key`") as refused:
        require_known(Subset((FIRST, SECOND), ("a", f"{SECOND}/b")), both, indexes)
    assert refused.value.extensions["sample_keys"] == ["a", f"{SECOND}/b"]
    with pytest.raises(Invalid, match="and 5 more"):
        require_known(Subset((SECOND,), tuple(f"k{n}" for n in range(25))), both[:1], indexes)


def test_a_draw_is_made_of_what_the_keys_leave(store: Counting, both: list[Dataset]) -> None:
    subset = Subset((FIRST, SECOND), (f"{FIRST}/a", f"{FIRST}/b", f"{SECOND}/z"), Draw(2, 11))
    left = choose(Subset(subset.dataset_ids, subset.sample_keys), both, Indexes(store))
    expected = [each.name for each in draw(left, 2, "11")]
    assert names(subset, both, store) == expected
    assert Subset.of(subset.to_params()) == subset
    assert [
        subset.count(5),
        Subset((FIRST,)).count(3),
        Subset((FIRST,), None, Draw(9, 0)).count(3),
    ] == [*(2, 3, 3)]


def test_small_indexes_are_read_once_and_large_ones_are_not_kept(
    store: Counting, both: list[Dataset]
) -> None:
    indexes = Indexes(store, kept_records=4)
    for _ in range(3):
        assert len(list(indexes.records(both[1]))) == 3
    assert store.reads == 1
    # Together they are too many: the one used longest ago goes.
    list(indexes.records(both[0]))
    list(indexes.records(both[1]))
    assert store.reads == 3
    streaming = Indexes(store, kept_records=2)
    for _ in range(2):
        assert len(drawn([both[1]], streaming, 10, "seed")) == 3
    assert store.reads == 5


def test_a_damaged_index_is_not_believed(store: Counting, tmp_path: Path) -> None:
    found = dataset(store, tmp_path, FIRST, ["a", "b"])
    path = tmp_path / "objects" / str(found.index_key)
    path.write_bytes(path.read_bytes().replace(b'"key":"a"', b'"key":"c"'))
    with pytest.raises(ObjectDamaged):
        Indexes(store).records(found)

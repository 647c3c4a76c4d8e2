"""Rows keyed by content: whatever items come and go, each has a row that was written for it."""

from __future__ import annotations

import random
from itertools import cycle, islice

import numpy as np
import pytest

from teachclip.errors import StoreError
from teachclip.store.array_store import ArraySpec, ArrayStore
from teachclip.store.manifest import KEY_BYTES
from teachclip.store.row_plan import KeyPlaces, as_bytes, plan_rows, row_keys
from teachclip.store.scratch import blocks
from teachclip.store.stored_items import StoredItems

ARRAYS = {"value": ArraySpec("int64", ())}


def open_for(path, items, per_shard=4):
    return ArrayStore.open_or_create(
        path, provenance={"a": 1}, arrays=ARRAYS, keys=row_keys(items), rows_per_shard=per_shard
    )


def write(store, shards, items):
    """Write the value of each row, which its key stands for."""
    value = {key: item for item, key in zip(items, as_bytes(row_keys(items)), strict=True)}
    for shard in shards:
        keys = as_bytes(store.keys_of(store.shard_rows(shard)))
        store.write_shard(shard, {"value": np.array([value[key] for key in keys], dtype=np.int64)})


@pytest.mark.parametrize("seed", range(30))
def test_every_item_has_its_row_whatever_came_and_went(tmp_path, seed):
    rng = random.Random(seed)
    for _ in range(8):
        items = rng.sample(range(40), rng.randint(1, 20))
        items += rng.choices(items, k=rng.randint(0, 3))  # some twice
        store = open_for(tmp_path, items, per_shard=rng.randint(1, 6))
        written = int(store.holds(row_keys(items)).sum())
        missing = store.missing_shards()
        assert written + sum(len(store.shard_rows(shard)) for shard in missing) >= len(set(items))
        interrupted = rng.random() < 0.4
        write(store, rng.sample(missing, len(missing) // 2) if interrupted else missing, items)
        if rng.random() < 0.3 and store.shards:
            store.discard(rng.randrange(store.shards))
            continue
        if not interrupted:
            again = ArrayStore.open(tmp_path)
            assert StoredItems.of(again, row_keys(items)).read("value", slice(None)).tolist() == items
            assert again.verify() == []


def test_new_items_get_rows_behind_and_change_no_shard(tmp_path):
    items = list(range(10))
    store = open_for(tmp_path, items)
    write(store, range(3), items)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*-0*")}
    store = open_for(tmp_path, [3, 20, 21, 5])
    assert store.rows == 12 and store.missing_shards() == [3] and list(store.shard_rows(3)) == [10, 11]
    assert before.items() <= {path.name: path.read_bytes() for path in tmp_path.glob("*-0*")}.items()
    assert [store.shard_of(row) for row in (0, 3, 4, 9, 10, 11)] == [0, 0, 1, 2, 3, 3]


def test_nothing_is_planned_where_all_is_there_or_planned():
    keys = row_keys(range(6))
    assert plan_rows(keys, [4, 2], [], keys[[5, 0]], 4) is None
    assert plan_rows(keys, [4, 2], [1], keys, 4) is None
    plan = plan_rows(keys, [4, 2], [1], keys[:5], 4)
    assert plan is not None and plan.sizes == (4, 1) and (plan.new, plan.kept, plan.removed) == (1, 4, 0)


def test_a_store_without_keys_is_not_taken_for_one_with(tmp_path):
    ArrayStore.open_or_create(tmp_path, provenance={"a": 1}, arrays=ARRAYS, rows=3, rows_per_shard=4)
    with pytest.raises(StoreError, match="does not say what its rows are of"):
        open_for(tmp_path, range(3))


@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "swap"])
def test_damaged_keys_are_named(tmp_path, damage):
    store = open_for(tmp_path / "a", range(5))
    write(store, range(2), range(5))
    (path,) = (tmp_path / "a").glob("keys-*.npy")
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        content[-1] ^= 1 if damage == "flip" else 0
        path.write_bytes(content[:-20] if damage == "cut" else content)
    if damage == "swap":
        other = open_for(tmp_path / "b", range(5, 10))
        path.write_bytes(next((tmp_path / "b").glob("keys-*.npy")).read_bytes())
        assert other.rows == 5
    with pytest.raises(StoreError, match=rf"{path.name} is damaged .*delete {tmp_path / 'a'} and run"):
        ArrayStore.open(tmp_path / "a")
    assert [path.name in problem for problem in store.verify()] == [True]


def test_a_shard_of_other_rows_is_noticed(tmp_path):
    for name, items in {"a": range(5), "b": range(5, 10)}.items():
        write(open_for(tmp_path / name, items), range(2), items)
    for path in (tmp_path / "b").glob("*-00000.*"):
        (tmp_path / "a" / path.name).write_bytes(path.read_bytes())
    (problem,) = ArrayStore.open(tmp_path / "a").verify()
    assert "shard-00000.json is damaged (it is of other rows than manifest.json says)" in problem


def test_an_array_may_be_called_keys(tmp_path):
    arrays = {"keys": ArraySpec("int64", ()), "keys_mask": ArraySpec("int64", ())}
    for number, items in enumerate((range(4), range(6), range(9))):
        options = {"provenance": {"a": 1}, "arrays": arrays, "keys": row_keys(items), "rows_per_shard": 4}
        store = ArrayStore.open_or_create(tmp_path, **options)
        assert store.missing_shards() == [number], "the files of an array are not taken for old keys of rows"
        rows = np.array(store.shard_rows(number))
        store.write_shard(number, {"keys": rows, "keys_mask": rows})
    assert store.read("keys", [0, 5]).tolist() == [0, 5] and not store.verify()


def test_a_writer_that_was_killed_while_it_planned_leaves_nothing_behind(tmp_path):
    write(open_for(tmp_path, range(4)), [0], range(4))
    stale = [tmp_path / name for name in ("keys.npy.0123abcd.tmp", "manifest.json.0123abcd.tmp")]
    for path in stale:
        path.write_bytes(b"half")
    open_for(tmp_path, range(6))
    assert not any(path.exists() for path in stale)


def test_places_of_keys_are_those_of_a_dictionary():
    state = np.random.RandomState(0)
    keys = state.randint(0, 3, (400, KEY_BYTES)).astype(np.uint8)
    keys[:, 2:-2] = 0  # so that keys repeat, and many end in zeros
    wanted = np.concatenate([keys[::3], np.full((1, KEY_BYTES), 7, np.uint8)])
    places = {key: place for place, key in enumerate(as_bytes(keys))}
    assert len(places) < 300
    expected = [places.get(key, -1) for key in as_bytes(wanted)]
    assert KeyPlaces(keys).find(wanted).tolist() == expected and expected[-1] == -1
    assert KeyPlaces(keys[:0]).find(wanted[:2]).tolist() == [-1, -1] and not len(KeyPlaces(keys).find(keys[:0]))


def plan_of_dictionaries(keys, sizes, missing, wanted, rows_per_shard):
    """Plan rows as `plan_rows` does, by sets and dictionaries of all keys."""
    gone = set(missing)
    rows, ends = as_bytes(keys), np.cumsum(sizes, dtype=np.int64).tolist()
    shards = [rows[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    written = {key for number, shard in enumerate(shards) if number not in gone for key in shard}
    planned = {key for number in gone for key in shards[number]}
    items = dict.fromkeys(as_bytes(wanted))
    new = [key for key in items if key not in written]
    if planned.issuperset(new) and items.keys() >= planned:
        return None
    while len(shards) - 1 in gone:
        gone.remove(len(shards) - 1)
        shards.pop()
    pool = iter(new)
    for number in sorted(gone):
        size = len(shards[number])
        taken = list(islice(pool, size))
        shards[number] = taken + list(islice(cycle(items), size - len(taken)))
    rest = list(pool)
    shards += [rest[start : start + rows_per_shard] for start in range(0, len(rest), rows_per_shard)]
    sizes = tuple(map(len, shards))
    return [key for shard in shards for key in shard], sizes, len(new), len(items) - len(new), len(written - {*items})


@pytest.mark.parametrize("seed", range(200))
def test_rows_are_planned_as_dictionaries_would(monkeypatch, seed):
    rng = random.Random(seed)
    monkeypatch.setattr("teachclip.store.scratch.IN_MEMORY", rng.choice([0, 2**20]))
    monkeypatch.setattr(blocks, "__defaults__", (rng.choice([1, 3, 2**14]),))
    sizes = [rng.randint(1, 5) for _ in range(rng.randint(0, 5))]
    keys = row_keys(rng.choices(range(25), k=sum(sizes)))
    missing = [shard for shard in range(len(sizes)) if rng.random() < 0.4]
    wanted = row_keys(rng.choices(range(25), k=rng.randint(0, 30)))
    per_shard = rng.randint(1, 6)
    plan = plan_rows(keys, sizes, missing, wanted, per_shard)
    expected = plan_of_dictionaries(keys, sizes, missing, wanted, per_shard)
    assert (plan and (as_bytes(plan.keys), *plan[1:])) == expected

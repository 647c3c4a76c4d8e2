import sys

import numpy as np
import pytest

from teachclip.errors import DataError, StoreError
from teachclip.search.engines import Rows, open_engine

DIM = 8


@pytest.fixture(params=["lance", "milvus"])
def engine(request, tmp_path):
    engine = open_engine(request.param, tmp_path / "vectors", dim=DIM, collection="teachclip_test")
    yield engine
    engine.close()


def some_rows(videos, parts=3, seed=0):
    vectors = np.random.RandomState(seed).standard_normal((videos * parts, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = [f"{video:016x}" for video in range(videos) for _ in range(parts)]
    return Rows([f"{name}-{k % parts}" for k, name in enumerate(names)], names, vectors)


def test_search_gives_cosines_of_the_nearest_rows_first(engine):
    rows = some_rows(40)
    engine.add(rows)
    query = rows.vectors[7] + 0.3 * rows.vectors[50]
    cosines = rows.vectors @ (query / np.linalg.norm(query))
    found = engine.search(query, 10)
    assert [row for row, _ in found] == [rows.ids[place] for place in np.argsort(-cosines)[:10]]
    assert [score for _, score in found] == pytest.approx(np.sort(cosines)[::-1][:10].tolist(), abs=1e-5)


def test_only_rows_of_some_videos_are_searched_and_read(engine):
    rows = some_rows(20)
    engine.add(rows)
    videos = [f"{video:016x}" for video in (3, 11)]
    found = engine.search(rows.vectors[0], 100, videos)
    assert sorted(row for row, _ in found) == sorted(f"{video}-{k}" for video in videos for k in range(3))
    assert engine.search(rows.vectors[0], 5, []) == []
    read = {row: vector for part in engine.read(videos) for row, vector in zip(part.ids, part.vectors, strict=True)}
    assert set(read) == {row for row, _ in found}
    for row, vector in read.items():
        assert vector == pytest.approx(rows.vectors[rows.ids.index(row)], abs=1e-6)
    assert sum(len(part.ids) for part in engine.read()) == 60


def test_deleted_videos_are_gone_at_once_and_after_tidying(engine):
    rows = some_rows(20)
    engine.add(rows)
    engine.delete([f"{video:016x}" for video in range(19)] + ["f" * 16])
    for _ in range(2):
        assert {row for row, _ in engine.search(rows.vectors[0], 100)} == {f"{19:016x}-{k}" for k in range(3)}
        assert engine.tune()
    engine.delete([f"{19:016x}"])
    engine.add(some_rows(2, seed=1))
    assert sum(len(part.ids) for part in engine.read()) == 6


def test_rows_are_there_when_the_engine_is_opened_again(engine, tmp_path, request):
    engine.add(some_rows(5))
    engine.close()
    name = request.node.callspec.params["engine"]
    again = open_engine(name, tmp_path / "vectors", dim=DIM, collection="teachclip_test")
    assert len(again.search(np.eye(DIM, dtype=np.float32)[0], 100)) == 15
    again.delete(None)
    again.close()
    anew = open_engine(name, tmp_path / "vectors", dim=DIM, collection="teachclip_test")
    assert list(anew.read()) == [] or sum(len(part.ids) for part in anew.read()) == 0
    anew.close()


def test_another_open_engine_sees_what_is_added(tmp_path):
    writer, reader = (open_engine("lance", tmp_path / "vectors", dim=DIM, collection="x") for _ in range(2))
    assert reader.search(np.eye(DIM, dtype=np.float32)[0], 10) == []
    writer.add(some_rows(2))
    assert len(reader.search(np.eye(DIM, dtype=np.float32)[0], 10)) == 6
    writer.tune()
    assert len(reader.search(np.eye(DIM, dtype=np.float32)[0], 10)) == 6


def test_unknown_and_missing_engines_are_refused_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"engine 'lanse' is unknown; did you mean lance\?; there are: lance, milvus"):
        open_engine("lanse", tmp_path, dim=DIM, collection="x")
    for package, engine, extra in (("lancedb", "lance", "search"), ("pymilvus", "milvus", "milvus")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(DataError, match=rf"pip install 'teachclip\[{extra}\]'"):
            open_engine(engine, tmp_path / "x", dim=DIM, collection="x")


def test_a_damaged_table_is_one_line(tmp_path):
    engine = open_engine("lance", tmp_path / "vectors", dim=DIM, collection="x")
    engine.add(some_rows(5))
    for file in (tmp_path / "vectors").rglob("*.lance"):
        if file.is_file():
            file.write_bytes(b"damaged")
    fresh = open_engine("lance", tmp_path / "vectors", dim=DIM, collection="x")
    with pytest.raises(StoreError, match="vectors cannot be searched") as error:
        fresh.search(np.eye(DIM, dtype=np.float32)[0], 10)
    assert "\n" not in str(error.value)


def test_many_rows_get_an_approximate_structure_that_also_finds_what_is_added_later(tmp_path, monkeypatch):
    monkeypatch.setattr("teachclip.search.engines.lance.INDEXED_FROM", 1000)
    engine, reader = (open_engine("lance", tmp_path / "vectors", dim=DIM, collection="x") for _ in range(2))
    rows = some_rows(500)
    engine.add(rows)
    assert engine.tune() == "approximate (ivf_sq)"
    query = np.eye(DIM, dtype=np.float32)[0]
    nearest = {rows.ids[place] for place in np.argsort(-(rows.vectors @ query))[:10]}
    for opened in (engine, reader):
        found = opened.search(query, 10)
        assert len(nearest & {row for row, _ in found}) >= 9
        scores = {row: float(rows.vectors[rows.ids.index(row)] @ query) for row, _ in found}
        assert dict(found) == pytest.approx(scores, abs=1e-5), "scores are of whole vectors, not of shortened ones"
    engine.add(Rows([f"{'f' * 16}-0"], ["f" * 16], query[None]))
    assert reader.search(query, 10)[0] == (f"{'f' * 16}-0", pytest.approx(1, abs=1e-5))
    engine.tune()
    assert reader.search(query, 10, ["f" * 16]) == [(f"{'f' * 16}-0", pytest.approx(1, abs=1e-5))]
    engine.delete([f"{video:016x}" for video in range(400)])
    assert engine.tune() == "exact" and len(reader.search(query, 1000)) == 301


def test_a_narrow_filter_and_a_wide_limit_lose_no_rows_of_an_approximate_structure(tmp_path):
    engine = open_engine("lance", tmp_path / "vectors", dim=DIM, collection="x")
    rows = some_rows(1000)
    engine.add(rows)
    engine.restructure("ivf_sq")  # 55 parts of the space; `tune` joins parts as small as these, not larger ones
    for number in range(0, 1000, 50):
        video = f"{number:016x}"
        found = engine.search(rows.vectors[-1 - number], 100, [video])
        assert sorted(row for row, _ in found) == [f"{video}-{part}" for part in range(3)]
    assert len(engine.search(rows.vectors[0], 2900)) == 2900
    engine.close()

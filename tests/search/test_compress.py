import json
import shutil

import numpy as np
import pytest
from indexing import update
from tiny_models import tiny_student
from video_files import write_video

from teachclip import VideoIndex
from teachclip.cli import compress
from teachclip.errors import DataError, StoreError
from teachclip.search import update as updating
from teachclip.search.compressed import CompressedEngine, chosen_rung, use_rung
from teachclip.search.compression import (
    Rung,
    encode,
    hamming,
    highest,
    nearest,
    packed_signs,
    principal_components,
    rung_named,
    rungs,
)
from teachclip.search.compression_measure import found_videos, measure, measure_index
from teachclip.search.compression_queries import read_queries, trained_prefixes
from teachclip.search.engines import Rows, open_engine
from teachclip.search.queries import StudentQueries
from teachclip.search.update import Wanted

DIM = 36  # its bits do not fill a word
TEXTS = ["a red circle", "a blue square over sea", "a circle over a red sea"]


def some_vectors(rows, dim=DIM, seed=0):
    """Vectors whose dimensions are correlated and have other sizes and means."""
    state = np.random.RandomState(seed)
    sizes = 0.8 ** np.arange(dim)
    made = (state.standard_normal((rows, dim)) * sizes) @ state.standard_normal((dim, dim))
    made += state.standard_normal(dim)
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


def opened(index):
    return VideoIndex.open(index, queries=StudentQueries(tiny_student()))


# Maths


def test_principal_components_are_those_of_numpys_svd():
    vectors = some_vectors(20_000)  # more than a block
    basis, centre = principal_components(vectors, 7)
    _, _, expected = np.linalg.svd(vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64), False)
    assert np.abs((basis * expected[:7]).sum(axis=1)) == pytest.approx(np.ones(7), abs=1e-5)
    assert centre == pytest.approx(vectors.mean(axis=0), abs=1e-6)


def test_bytes_are_off_by_half_a_level_at_most():
    vectors = some_vectors(20_000)
    codes = encode(Rung("int8", DIM, "int8"), vectors)
    error = np.abs(codes.decoded() - vectors)
    assert codes.matrix.dtype == np.int8 and codes.matrix.min() == -128 and codes.matrix.max() == 127
    assert (error <= codes.step / 2 + 1e-6).all()
    assert error.max() > codes.step.min() / 4  # the bound is not idle
    constant = encode(Rung("int8", 3, "int8"), np.full((4, 3), 0.5, np.float32))
    assert constant.decoded() == pytest.approx(0.5)


@pytest.mark.parametrize("dim", [1, 8, 36, 64, 100, 128])
def test_hamming_counts_the_signs_that_differ(dim):
    vectors, query = some_vectors(200, dim), some_vectors(1, dim, seed=1)[0]
    expected = ((vectors > 0) != (query > 0)).sum(axis=1)
    assert hamming(packed_signs(vectors), packed_signs(query[None])[0]).tolist() == expected.tolist()
    scores = encode(Rung("binary", dim, "binary"), vectors).scores(query)
    assert scores == pytest.approx(1 - 2 * expected / dim)


@pytest.mark.parametrize(
    "rung", [rung for rung in rungs(DIM) if rung.numbers != "binary"], ids=lambda rung: rung.name
)
def test_scores_are_dot_products_with_what_the_codes_stand_for(rung):
    vectors, query = some_vectors(300), some_vectors(1, seed=1)[0]
    codes = encode(rung, vectors)
    assert codes.scores(query) == pytest.approx(codes.decoded() @ query, abs=1e-5)
    places = np.array([7, 200, 3])
    assert codes.scores(query, places) == pytest.approx(codes.scores(query)[places])
    assert codes.bytes_per_row == rung.dims * {"float32": 4, "float16": 2, "int8": 1}[rung.numbers]
    whole = encode(Rung("pca", DIM, pca=True), vectors)
    assert whole.scores(query) == pytest.approx(vectors @ query, abs=1e-5)


def test_a_prefix_is_normalised_again():
    vectors, query = some_vectors(300), some_vectors(1, seed=1)[0]
    rows, asked = vectors[:, :12], query[:12] / np.linalg.norm(query[:12])
    cosines = rows @ asked / np.linalg.norm(rows, axis=1)
    assert encode(rung_named("prefix12", DIM), vectors).scores(query) == pytest.approx(cosines, abs=1e-5)
    codes = encode(rung_named("prefix12+int8", DIM), vectors)
    assert codes.scores(query) == pytest.approx(cosines, abs=0.02) and codes.bytes_per_row == 12
    names = [rung.name for rung in rungs(DIM, [36, 12, 24])]
    assert names == [*(rung.name for rung in rungs(DIM)), "prefix24", "prefix24+int8", "prefix12", "prefix12+int8"]
    for name in ("prefix36", "prefix0", "prefix", "prefix12+binary"):
        with pytest.raises(DataError, match="is unknown"):
            rung_named(name, DIM)


def test_prefixes_that_a_student_was_trained_for_are_found(student_folder, tmp_path):
    assert trained_prefixes(str(student_folder)) == trained_prefixes(str(tmp_path)) == []
    student = tiny_student()
    student.config.matryoshka = [16, 8]
    student.save_pretrained(tmp_path)
    assert trained_prefixes(str(tmp_path)) == [16, 8]
    vectors = some_vectors(20)
    ids = np.array([f"{k:016x}-0" for k in range(20)], "S32")
    measured = measure(Exact(ids, vectors), ids, vectors, vectors[:3], None, [16, 8])
    assert [row["rung"] for row in measured][-4:] == ["prefix16", "prefix16+int8", "prefix8", "prefix8+int8"]


class Exact:
    """An engine in memory."""

    def __init__(self, ids, vectors):
        self.ids, self.vectors = ids.astype(str), vectors

    def search(self, vector, limit, videos=None):
        scores = self.vectors @ vector
        return [(self.ids[place], float(scores[place])) for place in np.argsort(-scores)[:limit]]

    def read(self, videos=None):
        names = [row.partition("-")[0] for row in self.ids]
        places = [place for place, name in enumerate(names) if videos is None or name in videos]
        yield Rows([self.ids[p] for p in places], [names[p] for p in places], self.vectors[places])


def test_the_highest_are_those_of_a_stable_sort():
    scores = np.random.RandomState(0).randint(0, 20, 500).astype(np.float32)
    for count in (1, 7, 499, 500, 600):
        assert highest(scores, count).tolist() == np.argsort(-scores, kind="stable")[:count].tolist()


def test_rescoring_all_rows_is_exact_and_rescoring_some_helps():
    vectors, queries = some_vectors(400), some_vectors(20, seed=1)
    exact = [np.argsort(-(vectors @ query))[:10].tolist() for query in queries]

    def found(best):
        codes = encode(Rung("binary", DIM, "binary", best=best), vectors)
        return [nearest(codes, query, 10, lambda places: vectors[places]) for query in queries]

    for query, (places, scores), truth in zip(queries, found(400), exact, strict=True):
        assert places.tolist() == truth
        assert scores == pytest.approx(vectors[places] @ query, abs=1e-6)

    def agreement(best):
        return sum(
            len(set(places.tolist()) & set(truth)) for (places, _), truth in zip(found(best), exact, strict=True)
        )

    assert agreement(0) < agreement(40) < agreement(400) == 200


# Searching


@pytest.fixture
def copied(made_index, tmp_path):
    """A copy of the index, of the same library."""
    return shutil.copytree(made_index, tmp_path / "index")


@pytest.fixture
def engine(tmp_path):
    engine = open_engine("lance", tmp_path / "vectors", dim=DIM, collection="")
    yield engine
    engine.close()


def test_rows_of_some_videos_and_the_measured_search(engine):
    vectors = some_vectors(300)
    names = [f"{k // 3:016x}" for k in range(300)]
    rows = Rows([f"{name}-{k % 3}" for k, name in enumerate(names)], names, vectors)
    engine.add(rows)
    ids = np.array(rows.ids, "S32")
    query = some_vectors(1, seed=1)[0]
    compressed = CompressedEngine(engine, ids, encode(rung_named("binary+40", DIM), vectors))
    chosen = [names[150], names[3], "f" * 16]
    found, expected = (dict(each.search(query, 100, chosen)) for each in (compressed, engine))
    assert list(found) == list(expected) and len(found) == 6
    assert list(found.values()) == pytest.approx(list(expected.values()), abs=1e-5)
    assert compressed.search(query, 10, []) == []
    row = vectors[17]
    assert compressed.search(row, 1)[0] == ("0000000000000005-2", pytest.approx(1, abs=1e-5))
    engine.delete([names[17]])  # as an update may, while a search goes on
    assert compressed.search(row, 1)[0][0] == engine.search(row, 1)[0][0] != rows.ids[17]


def test_measured_numbers_are_what_they_say(engine):
    vectors, queries = some_vectors(300), some_vectors(25, seed=1)
    names = [f"{k // 3:016x}" for k in range(300)]
    rows = Rows([f"{name}-{k % 3}" for k, name in enumerate(names)], names, vectors)
    engine.add(rows)
    exact = [list(dict.fromkeys(names[k] for k in np.argsort(-(vectors @ query)))) for query in queries]
    right = [order[number % 3] for number, order in enumerate(exact)]  # of three, one is first
    measured = {row["rung"]: row for row in measure(engine, np.array(rows.ids, "S32"), vectors, queries, right)}
    assert measured["float32"]["found"] == [order[:10] for order in exact]
    assert measured["float32"]["recall_at_1"] == 36 and measured["float32"]["recall_at_5"] == 100
    assert measured["float32"]["same"] == 100 > measured["binary+40"]["same"] > measured["binary"]["same"]
    assert measured["binary"]["bytes_per_row"] == 8 and measured["pca9+int8"]["bytes_per_row"] == 9
    for row in measured.values():
        same = [len({*found} & {*order[:10]}) for found, order in zip(row["found"], exact, strict=True)]
        assert row["same"] == pytest.approx(10 * np.mean(same))
        first = [found[0] == video for found, video in zip(row["found"], right, strict=True)]
        assert row["recall_at_1"] == pytest.approx(100 * np.mean(first)) and row["ms"] > 0


def test_every_rung_is_searched_as_it_was_measured_and_can_be_undone(copied):
    with opened(copied) as videos:
        before = [[(found.video.id, found.score) for found in videos.search(text)] for text in TEXTS]
        measured = measure_index(videos, TEXTS, None)["measured"]
        whole, changed = ("float32", "binary+40", "binary+100"), ("int8", "binary", "pca8+int8")
        for row in measured:
            use_rung(copied, row["rung"])  # an index that is open follows
            assert [[found.video.id for found in videos.search(text)] for text in TEXTS] == row["found"]
            scores = [found.score for text in TEXTS for found in videos.search(text)]
            same = np.abs(np.subtract(scores, [score for one in before for _, score in one])).max() < 1e-6
            assert same or row["rung"] not in whole, row["rung"]
            assert not same or row["rung"] not in changed, row["rung"]
        film = videos.search(TEXTS[0], within="film.mp4", parts=None)
        assert [found.path.rpartition("/")[2] for found in film] == ["film.mp4"] and len(film[0].parts) > 1
        use_rung(copied, "float32")
        assert [[(found.video.id, found.score) for found in videos.search(text)] for text in TEXTS] == before
    assert not list(copied.glob("generation-*/compress*"))


def test_the_arrays_follow_the_index(index, library, monkeypatch):
    use_rung(index, "pca8+int8")
    with opened(index) as videos:
        write_video(library / "new.mp4", frames=20, seed=77)
        monkeypatch.setattr(updating, "rebuild", lambda generation: False)  # as if killed before
        update(index)
        assert "new" in names(videos) and not isinstance(videos._searched()[1], CompressedEngine)
        monkeypatch.undo()
        update(index)
        searched = videos._searched()[1]
        assert isinstance(searched, CompressedEngine) and "new" in names(videos)
        assert sorted(searched.ids.astype(str)) == sorted(videos.vectors())
        assert len(list(index.glob("generation-*/compressed-*"))) == 1
        (library / "new.mp4").unlink()
        update(index)
        assert "new" not in names(videos) and len(videos._searched()[1].ids) == len(searched.ids) - 1
        again = list(index.glob("generation-*/compressed-*"))
        update(index)  # nothing has changed
        assert list(index.glob("generation-*/compressed-*")) == again


def names(videos):
    return {found.path.rpartition("/")[2].removesuffix(".mp4") for found in videos.search(TEXTS[0])}


def test_another_way_of_cutting_drops_the_rung_and_says_so(copied, capsys):
    use_rung(copied, "int8")
    update(copied, wanted=Wanted(window=5.0))
    assert "int8 was chosen for the former vectors" in capsys.readouterr().err
    with opened(copied) as videos:
        assert chosen_rung(videos.generation) == "float32" and len(videos.search(TEXTS[0])) == 5


def test_damaged_arrays_are_one_line_with_the_way_out(copied):
    use_rung(copied, "int8")
    (matrix,) = copied.glob("generation-*/compressed-*/matrix.npy")
    matrix.write_bytes(matrix.read_bytes()[:-5])
    with (
        opened(copied) as videos,
        pytest.raises(StoreError, match=r"teachclip compress --index .* --use int8") as error,
    ):
        videos.search(TEXTS[0])
    assert "\n" not in str(error.value)
    use_rung(copied, "int8")
    with opened(copied) as videos:
        assert len(videos.search(TEXTS[0])) == 5


# The command


@pytest.fixture(scope="module")
def measured_index(made_index, tmp_path_factory):
    return shutil.copytree(made_index, tmp_path_factory.mktemp("compress") / "index")


def test_the_command_measures_writes_and_chooses(measured_index, student_folder, tmp_path, capsys):
    table = tmp_path / "queries.tsv"
    lines = [
        "Video ID\tnotes\tQuery",
        "clip0.mp4\tx\ta red circle",
        "film\t\ta blue square",
        "holiday/clip1.mp4\t\tsea",
    ]
    table.write_text("\n".join(lines), encoding="utf-8")
    out = tmp_path / "out"
    arguments = ["--index", str(measured_index), "--queries", str(table), "--out", str(out), "--model"]
    assert compress.main([*arguments, str(student_folder), "--use", "pca16"]) == 0
    printed = capsys.readouterr().out
    assert "R@10" in printed and "| pca16+int8 |" in printed and "3 queries" in printed
    assert (out / "compression.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "compression.md").read_text(encoding="utf-8").strip() == printed.strip()
    report = json.loads((out / "compression.json").read_text(encoding="utf-8"))
    assert report["queries"] == 3 and report["named"] and "found" not in report["measured"][0]
    assert report["measured"][0]["recall_at_5"] == 100  # there are five videos
    with opened(measured_index) as videos:
        assert chosen_rung(videos.generation) == "pca16"
        ids = [videos.video(name).id for name in ("clip0.mp4", "film.mp4", "clip1.mp4")]
        assert read_queries(table, videos, 100) == (["a red circle", "a blue square", "sea"], ids)
    assert compress.main(["--index", str(measured_index), "--use", "float32"]) == 0


def test_queries_without_videos_are_measured_by_agreement(measured_index, student_folder, tmp_path, capsys):
    file = tmp_path / "queries.txt"
    file.write_text("\n".join(f"{text}\n" for text in TEXTS * 10), encoding="utf-8")
    arguments = ["--index", str(measured_index), "--queries", str(file), "--out", str(tmp_path), "--model"]
    assert compress.main([*arguments, str(student_folder), "--most", "4"]) == 0
    printed = capsys.readouterr().out
    assert "R@10" not in printed and "same top 10" in printed and "do not name the right video" in printed
    assert "4 queries" in printed


@pytest.mark.parametrize(
    ("content", "more", "expected"),
    [
        (None, [], "queries.csv cannot be read: No such file"),
        ("", [], "queries.csv is empty"),
        ("caption\n \n", [], "queries.csv: has no queries"),
        ("film,words\na,b\n", [], "has no column of queries (caption, captions, text"),
        ("video,text\nfilm.mp4,a sea\nflim.mp4,a sea\nx,a sea\n", [], "line 3: 'flim.mp4' is no video of"),
        ("video,text\nfilm.mp4,a sea\n,a sea\n", [], "line 3: '' is no video of"),
        (
            "text\na sea\n",
            ["--use", "int9"],
            "rung 'int9' is unknown; did you mean int8?; there are: float32, float16",
        ),
    ],
)
def test_mistakes_are_one_line(made_index, tmp_path, capsys, content, more, expected):
    file = tmp_path / "queries.csv"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    assert compress.main(["--index", str(made_index), "--queries", str(file), *more]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1


def test_nothing_to_do_and_no_index_are_mistakes(made_index, tmp_path, capsys):
    assert compress.main(["--index", str(made_index)]) == 2
    assert "give --queries FILE" in capsys.readouterr().err
    assert compress.main(["--index", str(tmp_path / "none"), "--use", "int8"]) == 2
    assert "there is no index here" in capsys.readouterr().err
    with pytest.raises(DataError, match="there is no index here"):
        use_rung(tmp_path / "none", "int8")


def test_the_best_videos_are_found_although_one_has_all_the_nearest_rows(engine):
    near = some_vectors(1)[0] + 0.01 * some_vectors(200, seed=2)
    far = some_vectors(30, seed=3)
    names = ["0" * 16] * 200 + [f"{k:016x}" for k in range(1, 31)]
    vectors = np.concatenate([near / np.linalg.norm(near, axis=1, keepdims=True), far])
    rows = Rows([f"{name}-{k}" for k, name in enumerate(names)], names, vectors.astype(np.float32))
    engine.add(rows)
    order = np.argsort(np.array(rows.ids, "S32"))
    codes = encode(rung_named("binary+40", DIM), rows.vectors[order])
    compressed = CompressedEngine(engine, np.array(rows.ids, "S32")[order], codes)
    assert found_videos(compressed, some_vectors(1)[0]) == found_videos(engine, some_vectors(1)[0])

import builtins
import csv
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

import teachers.score_files
import teachers.score_tables
from teachclip.data.annotations.records import Caption, Split, Video
from teachclip.errors import DataError, RecipeError
from teachers import load_teacher

FRAMES = 3


def make_split(name="train", videos=("v0", "v1", "v2"), captions=2):
    return Split(
        name,
        tuple(Video(video, Path(f"{video}.mp4")) for video in videos),
        tuple(Caption(f"{video}:{k}", video, f"text {k}") for video in videos for k in range(captions)),
    )


SPLIT = make_split()
CAPTIONS = [caption.id for caption in SPLIT.captions]
VIDEOS = [video.id for video in SPLIT.videos]
MATRIX = np.random.RandomState(0).standard_normal((6, 3)).astype(np.float32)
PAIRS = [(CAPTIONS[i], VIDEOS[j], float(MATRIX[i, j])) for i in range(6) for j in range(3)]


def write_csv(path, pairs, header=("caption_id", "video_id", "score")):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *pairs])
    return path


def write_parquet(path, pairs, names=("caption_id", "video_id", "score"), **types):
    columns = [pyarrow.array([pair[n] for pair in pairs], types.get(name)) for n, name in enumerate(names)]
    pyarrow.parquet.write_table(pyarrow.table(dict(zip(names, columns, strict=True))), path)
    return path


def read(path, *, split=SPLIT, others=(), scratch=None, **options):
    teacher = load_teacher("scores", path, **options)
    return teacher.relevance_of(split, frames=FRAMES, others=others, scratch=scratch)


def video_text(path, **options):
    return read(path, **options).rows(slice(None))["video_text"]


def failure(path, **options):
    with pytest.raises(DataError) as error:
        video_text(path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# Formats


def test_every_format_and_any_order_of_pairs_give_the_same_matrix(tmp_path):
    mixed = [PAIRS[n] for n in np.random.RandomState(1).permutation(len(PAIRS))]
    np.save(tmp_path / "scores.npy", MATRIX)
    for path in (
        write_csv(tmp_path / "scores.csv", mixed),
        write_parquet(tmp_path / "scores.parquet", mixed),
        tmp_path / "scores.npy",
    ):
        np.testing.assert_array_equal(video_text(path), MATRIX)


def test_rows_come_in_the_order_asked_for(tmp_path):
    found = read(write_csv(tmp_path / "scores.csv", PAIRS)).rows(np.array([4, 0, 4]))
    np.testing.assert_array_equal(found["video_text"], MATRIX[[4, 0, 4]])


def test_small_chunks_and_a_matrix_outside_memory_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(teachers.score_tables, "CHUNK", 5)
    monkeypatch.setattr(teachers.score_files, "IN_MEMORY", 0)
    for path in (write_csv(tmp_path / "a.csv", PAIRS), write_parquet(tmp_path / "a.parquet", PAIRS)):
        np.testing.assert_array_equal(video_text(path, scratch=tmp_path), MATRIX)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.csv", "a.parquet"]


def test_parquet_takes_dictionaries_large_text_whole_numbers_and_doubles(tmp_path):
    split = make_split(videos=("0", "1"), captions=1)
    pairs = [("0:0", 0, 1.0), ("0:0", 1, 2.0), ("1:0", 0, 3.0), ("1:0", 1, 4.0)]
    path = write_parquet(
        tmp_path / "a.parquet",
        pairs,
        caption_id=pyarrow.large_string(),
        video_id=pyarrow.int16(),
        score=pyarrow.float64(),
    )
    np.testing.assert_array_equal(video_text(path, split=split), [[1, 2], [3, 4]])


def test_a_matrix_follows_the_ids_beside_it_and_may_hold_other_splits(tmp_path):
    other = make_split("test", videos=("w",), captions=1)
    order, columns = [3, 0, 5, 1, 4, 2], [2, 0, 1]
    whole = np.full((7, 4), 9.0, np.float16)
    whole[:6, :3] = MATRIX[order][:, columns]
    np.save(tmp_path / "scores.npy", whole)
    (tmp_path / "scores.captions.txt").write_text("\n".join([*(CAPTIONS[n] for n in order), "w:0"]) + "\n")
    (tmp_path / "scores.videos.txt").write_text("\ufeff" + "\r\n".join([*(VIDEOS[n] for n in columns), "w"]))
    found = video_text(tmp_path / "scores.npy", others=[other])
    np.testing.assert_array_equal(found, MATRIX.astype(np.float16))
    assert "caption_id 'w:0' is no caption of the train split" in failure(tmp_path / "scores.npy")
    teacher = load_teacher("scores", tmp_path / "scores.npy")
    assert sorted(teacher.files()) == ["scores", "scores.captions", "scores.videos"]


def test_pairs_of_other_splits_are_skipped(tmp_path):
    other = make_split("validation", videos=("w",), captions=1)
    path = write_csv(tmp_path / "a.csv", [*PAIRS, ("w:0", "v0", 5), ("v0:0", "w", 5), ("w:0", "w", 5)])
    np.testing.assert_array_equal(video_text(path, others=[other]), MATRIX)


def test_byte_order_mark_blank_lines_spaces_and_other_columns_do_no_harm(tmp_path):
    lines = ["video_id, score ,note,caption_id", "", *(f"{v}, {s!r} ,x,{c} " for c, v, s in PAIRS), ""]
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    np.testing.assert_array_equal(video_text(tmp_path / "a.csv"), MATRIX)


# Pairs that are not listed


def test_a_pair_that_is_not_listed_gets_the_lowest_score_of_its_caption(tmp_path):
    listed = [pair for pair in PAIRS if pair[:2] != ("v0:1", "v0")]
    found = read(write_csv(tmp_path / "a.csv", listed))
    expected = MATRIX.copy()
    expected[1, 0] = MATRIX[1, 1:].min()
    np.testing.assert_array_equal(found.rows(slice(None))["video_text"], expected)
    assert any("17 of 18 pairs" in line for line in found.notes)
    assert "1 of 6 captions do not list their own video" in found.notes


def test_margin_lowers_what_is_not_listed_and_scale_multiplies_all(tmp_path):
    best = [(caption, caption[:2], 0.5) for caption in CAPTIONS]
    path = write_csv(tmp_path / "a.csv", best)
    assert "lists equal scores only" in failure(path) and "give options.margin" in failure(path)
    found = video_text(path, margin=0.2, scale=100)
    own = SPLIT.caption_videos[:, None] == np.arange(3)
    np.testing.assert_allclose(found, np.where(own, 50, 30), rtol=1e-6)


def test_missing_refuse_takes_whole_matrices_alone(tmp_path):
    path = write_csv(tmp_path / "a.csv", PAIRS[:-1])
    assert "caption 'v2:1' lacks scores of some videos" in failure(path, missing="refuse")
    np.testing.assert_array_equal(video_text(write_csv(tmp_path / "b.csv", PAIRS), missing="refuse"), MATRIX)


# Frames


@pytest.mark.parametrize("ending", ["csv", "parquet", "npy"])
def test_frame_scores_are_brought_to_sum_one(tmp_path, ending):
    weights = np.array([[1, 3, 0]] * 6, np.float32)
    pairs = [(caption, n, weights[k, n]) for k, caption in enumerate(CAPTIONS) for n in (0, 1)]
    names = ("caption_id", "frame", "score")
    path = tmp_path / f"frames.{ending}"
    if ending == "npy":
        np.save(path, weights)
    else:
        write = write_csv if ending == "csv" else write_parquet
        write(path, pairs, names)
    teacher = load_teacher("scores", write_csv(tmp_path / "a.csv", PAIRS), frames=path)
    assert teacher.has_frame_relevance and sorted(teacher.files()) == ["frames", "scores"]
    found = teacher.relevance_of(SPLIT, frames=FRAMES).rows(np.array([5, 2]))
    np.testing.assert_allclose(found["frame_text"], [[0.25, 0.75, 0]] * 2)


def test_without_frame_scores_there_is_no_frame_relevance(tmp_path):
    teacher = load_teacher("scores", write_csv(tmp_path / "a.csv", PAIRS))
    assert not teacher.has_frame_relevance
    assert set(teacher.relevance_of(SPLIT, frames=FRAMES).rows(slice(0, 1))) == {"video_text"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("v0:0", 3, 1.0), "line 8: frame '3' is no number below 3"),
        (("v0:0", 1, -0.5), "frames.csv: caption 'v0:0' has a negative frame score"),
        (("v0:0", 0, 1.0), "line 8: the pair v0:0, 0 is duplicated"),
    ],
)
def test_bad_frame_scores_are_named(tmp_path, change, message):
    pairs = [*((caption, 0, 1.0) for caption in CAPTIONS), change]
    frames = write_csv(tmp_path / "frames.csv", pairs, ("caption_id", "frame", "score"))
    assert message in failure(write_csv(tmp_path / "a.csv", PAIRS), frames=frames)


def test_a_caption_without_frame_scores_is_named(tmp_path):
    frames = write_csv(tmp_path / "frames.csv", [(c, 0, 1) for c in CAPTIONS[:-1]], ("caption_id", "frame", "score"))
    message = failure(write_csv(tmp_path / "a.csv", PAIRS), frames=frames)
    assert "frames.csv: caption 'v2:1' has no relevance on any frame" in message


# Mistakes


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([*PAIRS, ("v0:9", "v0", 1)], "a.csv: line 20: caption_id 'v0:9' is no caption of the train split"),
        ([*PAIRS, ("v0:0", "v9", 1)], "a.csv: line 20: video_id 'v9' is no video of the train split"),
        ([*PAIRS, PAIRS[4]], "a.csv: line 20: the pair v0:1, v1 is duplicated"),
        ([("v0:0", "v0", "nan"), *PAIRS[1:]], "a.csv: line 2: score is nan; allowed: finite"),
        ([*PAIRS[:1], ("v0:0", "v1", "inf")], "a.csv: line 3: score is inf; allowed: finite"),
        ([("v0:0", "v0", "1e39")], "a.csv: line 2: score is inf; allowed: finite"),
        ([("v0:0", "v0", "high")], "a.csv: line 2: score is 'high'; allowed: a number"),
        ([("v0:0", "v0", "")], "a.csv: line 2: score is ''; allowed: a number"),
        ([("v0:0", "v0")], "a.csv: line 2 has 2 values, the header has 3"),
        ([pair for pair in PAIRS if pair[0] != "v1:0"], "a.csv: caption 'v1:0' has no score"),
        ([], "a.csv has a header but no rows"),
    ],
)
def test_wrong_pairs_are_named_with_their_line(tmp_path, pairs, message):
    assert message in failure(write_csv(tmp_path / "a.csv", pairs))


def test_a_pair_that_stands_twice_in_different_chunks_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(teachers.score_tables, "CHUNK", 4)
    path = write_csv(tmp_path / "a.csv", [*PAIRS, PAIRS[0]])
    assert "line 20: the pair v0:0, v0 is duplicated" in failure(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.csv is empty"),
        (b"caption,video_id,score\n", "line 1 has no column 'caption_id'"),
        (b"caption_id;video_id;score\n", "columns must be separated by commas"),
        (b"caption_id,video_id,score,score\n", "has column 'score' twice"),
        (b"caption_id,video_id,score\nv0:0,v\xe9,1\n", "a.csv: line 2 is not UTF-8 (byte 0xe9); save it as UTF-8"),
        ("caption_id,video_id,score\n".encode("utf-16"), "a.csv: line 1 is not UTF-8"),
        (b'caption_id,video_id,score\n"v0:0,v0,1\n', "a.csv: line 2: unexpected end of data"),
    ],
)
def test_files_that_are_no_table_are_one_line(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    assert message in failure(tmp_path / "a.csv")


def test_a_mistake_far_down_is_named_with_its_line(tmp_path):
    lines = ["caption_id,video_id,score", *(f"v0:0,w{n},1" for n in range(30_000))]
    data = "\n".join(lines).encode() + b"\nv0:0,\xff,1\n"
    (tmp_path / "a.csv").write_bytes(data)
    others = [make_split("test", videos=[f"w{n}" for n in range(30_000)], captions=1)]
    assert "line 30002 is not UTF-8" in failure(tmp_path / "a.csv", others=others)


def test_bad_parquet_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not parquet")
    assert "a.parquet cannot be read as parquet" in failure(tmp_path / "a.parquet")
    path = write_parquet(tmp_path / "b.parquet", [*PAIRS, ("v0:9", "v0", 1.0)])
    assert "b.parquet: row 19: caption_id 'v0:9' is no caption" in failure(path)
    path = write_parquet(tmp_path / "c.parquet", [("v0:0", None, 1.0)], video_id=pyarrow.string())
    assert "column 'video_id' holds empty values" in failure(path)
    path = write_parquet(tmp_path / "d.parquet", [("v0:0", "v0", "1")])
    assert "column 'score' holds string; allowed: numbers" in failure(path)
    path = write_parquet(tmp_path / "e.parquet", [("v0:0", "v0", None)], score=pyarrow.float32())
    assert "e.parquet: row 1: score is nan" in failure(path)
    path = write_parquet(tmp_path / "f.parquet", [("v0:0", "v0", 1.0)], ("caption", "video_id", "score"))
    assert "f.parquet has no column 'caption_id'" in failure(path)
    plain = builtins.__import__

    def without(name, *rest, **options):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return plain(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "pip install 'teachclip[parquet]'" in failure(tmp_path / "b.parquet")


def test_bad_matrices_are_one_line(tmp_path):
    path = tmp_path / "a.npy"
    for array, message in (
        (MATRIX[:-1], "has 5 of caption_id, expected 6; list them in"),
        (MATRIX[0], "must be a matrix of floating-point scores, got float32 (3,)"),
        (MATRIX > 0, "must be a matrix of floating-point scores, got bool (6, 3)"),
        (np.where(np.arange(18).reshape(6, 3) == 7, np.nan, MATRIX), "the score of v1:0, v1 is nan"),
    ):
        np.save(path, array)
        assert message in failure(path)
    np.save(path, MATRIX)
    path.write_bytes(path.read_bytes()[:-8])
    assert "a.npy cannot be read" in failure(path)
    np.save(path, np.array([[{}]]), allow_pickle=True)
    assert "a.npy cannot be read" in failure(path)
    np.save(path, MATRIX)
    (tmp_path / "a.videos.txt").write_text("v0\nv1\nv0\n")
    assert "a.videos.txt: line 3: 'v0' is duplicated" in failure(path)
    (tmp_path / "a.videos.txt").write_text("v0\nv1\n")
    assert "a.videos.txt has 2 lines" in failure(path)


def test_options_and_paths_that_cannot_work_are_refused(tmp_path):
    path = write_csv(tmp_path / "a.csv", PAIRS)
    for options, part in (
        ({"missing": "zero"}, "option missing is 'zero': input should be 'lowest' or 'refuse'"),
        ({"margin": -1}, "option margin is -1"),
        ({"scale": 0}, "option scale is 0"),
        ({"topk": 3}, "has no option 'topk'"),
    ):
        with pytest.raises(RecipeError, match=part):
            load_teacher("scores", path, **options)
    for name in ("none.csv", "a.txt"):
        with pytest.raises(DataError, match=name):
            load_teacher("scores", tmp_path / name)


def test_memory_does_not_grow_with_the_pairs(tmp_path, monkeypatch):
    """250,000 pairs as Python objects would take over 30 MB."""
    monkeypatch.setattr(teachers.score_files, "IN_MEMORY", 0)
    monkeypatch.setattr(teachers.score_tables, "CHUNK", 1 << 13)
    split = make_split(videos=[f"v{n}" for n in range(500)], captions=1)
    matrix = np.random.RandomState(0).standard_normal((500, 500)).astype(np.float32)
    ids = [caption.id for caption in split.captions]
    with open(tmp_path / "a.csv", "w") as file:
        file.write("caption_id,video_id,score\n")
        for i in range(500):
            file.writelines(f"{ids[i]},v{j},{matrix[i, j]:.9g}\n" for j in range(500))
    teacher = load_teacher("scores", tmp_path / "a.csv")
    tracemalloc.start()
    found = teacher.relevance_of(split, frames=FRAMES, scratch=tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 15e6
    np.testing.assert_array_equal(found.rows(np.array([7, 499]))["video_text"], matrix[[7, 499]])

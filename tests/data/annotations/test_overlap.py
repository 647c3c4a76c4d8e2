from teachclip.data.annotations.files import Overlap, describe_overlaps, file_facts, overlaps
from teachclip.data.annotations.records import Caption, Catalog, Split, Video


def split(name, *videos):
    return Split(name, videos, tuple(Caption(f"{video.id}:0", video.id, "words") for video in videos))


def catalog_of(folder, **splits):
    """Each split is {video id: (file name, content)}."""
    made = {}
    for name, files in splits.items():
        for file, content in files.values():
            (folder / file).write_bytes(content)
        made[name] = split(name, *(Video(video_id, folder / file) for video_id, (file, _) in files.items()))
    return Catalog(**made)


def found(catalog, folder):
    return overlaps(catalog, file_facts(catalog.videos, folder / "cache.json", progress=False))


def test_files_of_the_same_content_in_two_splits_are_found(tmp_path):
    catalog = catalog_of(
        tmp_path,
        train={"a": ("a.mp4", b"one"), "b": ("b.mp4", b"two"), "c": ("c.mp4", b"one")},
        validation={"d": ("d.mp4", b"three")},
        test={"e": ("e.mp4", b"one"), "f": ("f.mp4", b"three"), "g": ("g.mp4", b"four")},
    )
    first, second = found(catalog, tmp_path)
    assert first == Overlap((("train", "a"), ("train", "c"), ("test", "e")), same_file=False)
    assert first.message == "train 'a', 'c' and test 'e' are files of the same content"
    assert second.videos == (("validation", "d"), ("test", "f"))
    assert describe_overlaps([first, second]) == [
        f"2 files are in more than one split: {first.message} and 1 more",
    ]


def test_equal_files_within_a_split_and_unreadable_ones_do_not_count(tmp_path):
    catalog = catalog_of(
        tmp_path,
        train={"a": ("a.mp4", b"one"), "b": ("b.mp4", b"one"), "c": ("c.mp4", b"gone")},
        test={"d": ("d.mp4", b"two"), "e": ("e.mp4", b"gone")},
    )
    for name in ("c.mp4", "e.mp4"):
        (tmp_path / name).unlink()
    assert found(catalog, tmp_path) == [] and describe_overlaps([]) == []


def test_parts_of_one_file_in_two_splits_are_found(tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(b"film")
    train = [Video(f"film[{second}-{second + 1}]", path, float(second), second + 1.0) for second in range(4)]
    catalog = Catalog(split("train", *train), test=split("test", Video("film[9-]", path, 9.0, None)))
    (only,) = found(catalog, tmp_path)
    assert only.message == "train 'film[0-1]', 'film[1-2]' and 2 more and test 'film[9-]' are segments of one file"
    assert overlaps(catalog, {})[0].same_file  # by the path, where nothing is known of the content
    assert describe_overlaps([only]) == [f"1 file is in more than one split: {only.message}"]

"""The published formats: what is read from sound files, and what is said of damaged ones."""

import json
import os
import pickle

import pytest
from annotation_files import FILES, IDS, LAYOUTS, sentences, write

from teachclip.data.annotations.catalog import load_catalog
from teachclip.data.annotations.records import Segment
from teachclip.data.formats import FORMATS
from teachclip.errors import DataError
from teachclip.registry import resolve

SAME_IDS = [key for key in LAYOUTS if key[0] in ("msvd", "vatex")]


@pytest.fixture
def layout(tmp_path):
    """Write the files of a layout; returns the folder and a function that reads it."""

    def make(key):
        folder = tmp_path / "data"
        folder.mkdir()
        LAYOUTS[key](folder)
        return folder, lambda **lists: resolve("data format", key[0], FORMATS)(annotations=folder, **lists)

    return make


def texts(captions):
    return [caption.text for caption in captions]


def ids(captions):
    return list(dict.fromkeys(caption.video_id for caption in captions))


@pytest.mark.parametrize("key", SAME_IDS, ids="-".join)
def test_lists_and_captions_of_every_layout_of_msvd_and_vatex(layout, key):
    _, read = layout(key)
    found = read()
    for split, captions in zip(IDS, (found.train, found.validation, found.test), strict=True):
        assert ids(captions) == IDS[split]
        assert texts(captions) == [text for name in IDS[split] for text in sentences(name)]
    assert [caption.id for caption in found.train][:2] == ["-vidA_1_9:0", "-vidA_1_9:1"]
    assert not found.segments


def test_the_file_itself_may_be_given_and_own_lists_go_before_published_ones(layout):
    folder, _ = layout(("msvd", "json"))
    own = write(folder.parent, "own.txt", ["vidB_3_12", "vidC_0_4"])
    read = resolve("data format", "msvd", FORMATS)
    found = read(annotations=folder / "captions_msvd.json", train=own)
    assert ids(found.train) == ["vidB_3_12", "vidC_0_4"] and ids(found.validation) == IDS["val"]


def test_two_annotation_files_in_one_folder_are_not_guessed_between(layout):
    folder, read = layout(("msvd", "json"))
    write(folder, "raw-captions.pkl", b"x")
    with pytest.raises(DataError, match=r"raw-captions.pkl and captions_msvd.json; set data.annot"):
        read()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol_are_read(layout, protocol):
    folder, read = layout(("msvd", "pickle"))
    content = {name: [tuple(text.split()) for text in sentences(name)] for names in IDS.values() for name in names}
    write(folder, "raw-captions.pkl", pickle.dumps(content, protocol=protocol))
    assert texts(read().validation) == sentences("vidC_0_4")


def test_pickles_of_python_2_are_read(layout):
    """As Python 2 wrote them: byte strings, here with an accent in UTF-8."""
    folder, read = layout(("msvd", "pickle"))
    names = [name for part in IDS.values() for name in part]
    entries = [f"S'{name}'\n(l(lS'a'\naS'caf\\xc3\\xa9'\naas" for name in names]
    write(folder, "raw-captions.pkl", "(dp0\n" + "".join(entries) + ".")
    assert set(texts(read().train)) == {"a café"}


def test_a_pickle_cannot_run_code_nor_name_any_class(layout, tmp_path, monkeypatch):
    class Dangerous:
        def __reduce__(self):
            return os.system, ("touch executed",)

    monkeypatch.chdir(tmp_path)
    folder, read = layout(("msvd", "pickle"))
    for content in (pickle.dumps(Dangerous()), pickle.dumps({"a": set()}, protocol=2), b"cos\nsystem\n."):
        write(folder, "raw-captions.pkl", content)
        with pytest.raises(
            DataError, match=r"raw-captions\.pkl holds \S+; only dictionaries, lists and text are read"
        ):
            read()
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("key", [key for key in LAYOUTS if key[0] == "vatex"], ids="-".join)
def test_vatex_without_a_validation_list_has_no_validation_split(layout, key):
    folder, read = layout(key)
    for name in ("val_list.txt", "VATEX_val.csv"):
        (folder / name).unlink(missing_ok=True)
    assert read().validation is None


def test_didemo_joins_the_sentences_of_a_video_in_their_order(layout):
    _, read = layout(("didemo", ""))
    found = read()
    assert texts(found.train) == [" ".join(sentences(name)) for name in IDS["train"]]
    assert ids(found.test) == IDS["test"] and len(found.validation) == 1
    assert found.segments["vidD_5_9"] == Segment("vidD_5_9", None, 31.0) and len(found.segments) == 5


def test_didemo_names_may_lack_extensions_or_have_unusual_ones(layout):
    folder, read = layout(("didemo", ""))
    entry = {"description": "a dog", "times": []}
    write(folder, "val_data.json", [{"video": "1@N01_5.m4v", **entry}, {"video": "2@N01.5", **entry}])
    write(folder, "val_list.txt", ["1@N01_5.mov", "2@N01.5"])
    assert ids(read().validation) == ["1@N01_5", "2@N01.5"]


def test_activitynet_paragraphs_and_the_part_that_was_annotated(layout):
    _, read = layout(("activitynet", ""))
    found = read()
    assert ids(found.train) == ["abcdefghi0x", "abcdefghi0y"] and found.validation is None
    assert set(texts(found.train + found.test)) == {"a man stands. he jumps."}
    assert found.segments["abcdefghi1x"] == Segment("v_abcdefghi1x", None, 84.0, ("abcdefghi1x",))
    assert set(found.segments) == {*ids(found.train), *ids(found.test)}


def test_activitynet_ids_with_and_without_prefix_and_own_validation_ids(layout):
    folder, read = layout(("activitynet", ""))
    write(folder, "val_ids.json", ["abcdefghi1x"])
    own = write(folder.parent, "own.json", ["v_unlisted0zz", "unlisted1zz"])
    found = read(validation=own)
    assert ids(found.test) == ["abcdefghi1x"] and ids(found.validation) == ["unlisted0zz", "unlisted1zz"]
    entry = {"duration": 1, "sentences": ["a"]}
    write(folder, "train.json", {"v_v_3456789ab": entry, "v_v_3456789ac": entry})
    write(folder, "train_ids.json", ["v_3456789ab", "v_v_3456789ac"])  # YouTube ids that begin with v_
    assert ids(read().train) == ["v_3456789ab", "v_3456789ac"]


@pytest.mark.parametrize(
    ("format", "name", "content", "reason"),
    [
        ("didemo", "test_list.txt", ["vidD_5_9", "ghost.mp4"], "no caption in test_data.json"),
        ("activitynet", "val_ids.json", ["v_abcdefghi1x", "v_ghost"], "no caption in val_1.json"),
    ],
)
def test_listed_videos_without_caption_count_as_missing(layout, format, name, content, reason):
    folder, read = layout((format, ""))
    write(folder, name, content)
    found = read()
    assert found.excluded["test"] == {"ghost": reason} and len(found.test) == 1
    for video in ids([*found.train, *(found.validation or ()), *found.test]):
        (folder / f"{video}.mp4").write_bytes(b"x")
    options = {"format": format, "videos": folder, "annotations": folder}
    with pytest.raises(DataError, match=rf"1 of \d videos are not below .* or have no caption: ghost \({reason}\);"):
        load_catalog(**options)
    catalog = load_catalog(**options, max_missing=0.5)
    assert catalog.excluded == {"ghost": reason} and catalog.incomplete_splits == {"test": "1 of 2"}


def test_lsmdc_gives_a_clip_several_captions_and_keeps_quotes(layout):
    _, read = layout(("lsmdc", ""))
    found = read()
    assert [caption.id.rpartition(":")[2] for caption in found.train] == ["0", "0", "1"]
    assert ids(found.train)[0] == "0000_Film_00.01.02.003-00.01.04.500" and len(ids(found.train)) == 2
    assert texts(found.test) == texts(found.validation) == ['SOMEONE says "go", and leaves.']


@pytest.mark.parametrize("key", LAYOUTS, ids="-".join)
def test_catalogue_of_every_layout(layout, key, tmp_path):
    """Files lie in sub-folders, with other extensions, and for ActivityNet with v_ or without."""
    folder, read = layout(key)
    found = read()
    names = ids([*found.train, *(found.validation or ()), *(found.test or ())])
    for number, name in enumerate(names):
        stem = f"v_{name}" if key[0] == "activitynet" and number % 2 else name
        path = tmp_path / "videos" / f"part{number % 2}" / f"{stem}{['.mp4', '.avi', '.MKV', '.m4v'][number % 4]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    catalog = load_catalog(format=key[0], videos=tmp_path / "videos", annotations=folder)
    assert [video.id for video in catalog.videos] == names and not catalog.excluded
    assert all(video.id in video.path.name for video in catalog.videos)
    assert (catalog.train.caption_videos[1:] >= catalog.train.caption_videos[:-1]).all()
    ends = {video.end for video in catalog.videos}
    assert ends == {"didemo": {31.0}, "activitynet": {84.0}}.get(key[0], {None})


EACH_FILE = [pytest.param(key, name, id=f"{'-'.join(key)} {name}") for key, names in FILES.items() for name in names]
EACH_TEXT = [case for case in EACH_FILE if not case.values[1].endswith(".pkl")]


@pytest.mark.parametrize(("key", "name"), EACH_FILE)
def test_missing_files_are_named_with_what_was_found(layout, key, name):
    folder, read = layout(key)
    other = next(other for other in FILES[key] if other != name)
    (folder / name).unlink()
    with pytest.raises(DataError, match=r"has no .*; found: ") as caught:
        read()
    assert name in str(caught.value).split("; found")[0] and other in str(caught.value).split("; found")[1]


@pytest.mark.parametrize(("key", "name"), EACH_FILE)
def test_empty_files_are_named(layout, key, name):
    folder, read = layout(key)
    write(folder, name, b"")
    with pytest.raises(DataError, match=f"{name} is empty$"):
        read()


@pytest.mark.parametrize(("key", "name"), EACH_TEXT)
def test_wrong_encoding_is_named_with_its_line(layout, key, name):
    folder, read = layout(key)
    content = (folder / name).read_bytes()
    write(folder, name, content + b"\n\xe9")
    line = content.count(b"\n") + 2
    with pytest.raises(DataError, match=rf"{name}: line {line} is not UTF-8 \(byte 0xe9\)"):
        read()


@pytest.mark.parametrize(("key", "name"), EACH_TEXT)
def test_byte_order_mark_and_line_ends_of_windows_change_nothing(layout, key, name):
    folder, read = layout(key)
    before = read()
    content = (folder / name).read_bytes()
    write(folder, name, b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
    assert read() == before


@pytest.mark.parametrize(("key", "name"), [case for case in EACH_FILE if case.values[1].endswith((".json", ".pkl"))])
def test_files_that_end_early_are_named(layout, key, name):
    folder, read = layout(key)
    content = (folder / name).read_bytes()
    write(folder, name, content[: len(content) // 2])
    with pytest.raises(DataError, match=f"{name}: line .*: broken JSON|{name} is not a pickle or damaged") as caught:
        read()
    assert "\n" not in str(caught.value)


def one(value, **entry):
    """Every listed video with this entry, to make one wrong thing of each."""
    return {**{name: value for names in IDS.values() for name in names}, **entry}


ENTRY = {"duration": 83.2, "sentences": ["a man stands."]}
DIDEMO = {"video": "vidC_0_4.mp4", "description": "a dog", "times": []}
DAMAGE = {
    "msvd-pickle": [
        ("raw-captions.pkl", pickle.dumps([1]), "must hold a dictionary of captions, found a list"),
        ("raw-captions.pkl", pickle.dumps({}), "line 1: video '-vidA_1_9' has no caption in .*raw-captions.pkl"),
        (
            "raw-captions.pkl",
            pickle.dumps(one(["a b"])),
            "'-vidA_1_9': caption 0 must be a list of words, found 'a b'",
        ),
        ("raw-captions.pkl", pickle.dumps(one([[1]])), "caption 0 must be a list of words"),
        ("raw-captions.pkl", pickle.dumps(one("a b")), "must be a list of captions, found 'a b'"),
        ("raw-captions.pkl", pickle.dumps(one([])), "must be a list of captions, found an empty list"),
        ("raw-captions.pkl", pickle.dumps(one([["a"], []])), "'-vidA_1_9': caption 1 is empty"),
        ("raw-captions.pkl", b"S'\\xe9'\n.", "holds text that is not UTF-8"),
        ("raw-captions.pkl", b"<html>not found</html>", "is not a pickle or damaged"),
    ],
    "msvd-json": [
        ("captions_msvd.json", [], "must hold a JSON object, found list"),
        ("captions_msvd.json", one([["a", "b"]]), "'-vidA_1_9': caption 0 must be text, found a list"),
        ("captions_msvd.json", one(["a", " "]), "'-vidA_1_9': caption 1 is empty"),
        ("captions_msvd.json", '{"a": ["x"], "a": ["y"]}', "captions_msvd.json: key 'a' is duplicated"),
        ("train_list.txt", ["vidB_3_12", "ghost"], "train_list.txt: line 2: video 'ghost' has no caption"),
        ("test_list.txt", ["vidB_3_12", "", " vidB_3_12"], "test_list.txt: line 3: video 'vidB_3_12' is duplicated"),
    ],
    "vatex-clip2video": [
        ("vatex_data.json", one({"chCap": ["a"]}), "'-vidA_1_9' has no field 'enCap'; found: chCap"),
        ("vatex_data.json", one({"enCap": "a boy"}), "'-vidA_1_9': enCap must be a list of captions, found 'a boy'"),
        ("vatex_data.json", one({"enCap": [None]}), "enCap: caption 0 must be text, found nothing"),
        ("vatex_data.json", one({"enCap": []}), "enCap must be a list of captions, found an empty list"),
        ("val_list.txt", ["ghost"], "line 1: video 'ghost' has no caption in .*vatex_data.json"),
    ],
    "vatex-ts2net": [
        (
            "ref_captions.json",
            one("a boy"),
            "'-vidA_1_9' must be a list of captions or an object with 'enCap', found 'a",
        ),
        ("ref_captions.json", one([1.5]), "'-vidA_1_9': caption 0 must be text, found 1.5"),
        ("ref_captions.json", [["a"]], "must hold a JSON object, found list"),
    ],
    "vatex-teachclip": [
        ("VATEX_data.json", {"sentences": [{"video_id": "a"}]}, r"sentences\[0\] has no text field 'caption'"),
        ("VATEX_train.csv", ["video", "a"], "VATEX_train.csv: line 1 has no column 'video_id'; found: video"),
        ("VATEX_train.csv", ["video_id", "ghost"], "VATEX_train.csv: line 2: video 'ghost' has no caption"),
        ("VATEX_train.csv", ["video_id", "vidB_3_12", "vidB_3_12"], "line 3: video_id 'vidB_3_12' is duplicated"),
        ("VATEX_test.csv", ["video_id,sentence", "vidD_5_9,"], "line 2: 'sentence' of 'vidD_5_9' is empty"),
    ],
    "didemo-": [
        ("val_data.json", {}, "val_data.json must hold a list of objects, found an object"),
        ("val_data.json", [DIDEMO, {"video": "a"}], r"val_data.json: entry \[1\] has no text field 'description'"),
        ("val_data.json", [{**DIDEMO, "video": 7}], r"entry \[0\] has no text field 'video'"),
        ("val_data.json", [{**DIDEMO, "description": " "}], r"entry \[0\], 'description': caption 0 is empty"),
        ("val_data.json", [{**DIDEMO, "video": "vidB_3_12.avi"}], "video 'vidB_3_12' is also in train_data.json"),
        ("val_list.txt", ["vidC_0_4", "vidC_0_4.avi"], "val_list.txt: line 2: video 'vidC_0_4' is duplicated"),
    ],
    "activitynet-": [
        ("val_1.json", [], "val_1.json must hold a JSON object, found list"),
        ("val_1.json", {"v_abcdefghi1x": ["a"]}, "'v_abcdefghi1x' must be an object with 'sentences' and 'duration'"),
        (
            "val_1.json",
            {"v_abcdefghi1x": {**ENTRY, "sentences": []}},
            "'v_abcdefghi1x': sentences must be a list of cap",
        ),
        (
            "val_1.json",
            {"v_abcdefghi1x": {**ENTRY, "sentences": ["a", 2]}},
            "sentences: caption 1 must be text, found 2",
        ),
        (
            "val_1.json",
            {"abcdefghi1x": ENTRY, "v_abcdefghi1x": ENTRY},
            "'v_abcdefghi1x' is the same video as .*'abcde",
        ),
        ("val_1.json", {"v_abcdefghi0x": ENTRY}, "'v_abcdefghi0x' is the same video as .*train.json"),
        ("val_ids.json", {"a": 1}, "val_ids.json must hold a list of video ids, found an object"),
        ("val_ids.json", [], "val_ids.json must hold a list of video ids, found an empty list"),
        ("val_ids.json", ["v_abcdefghi1x", 5], r"val_ids.json: entry \[1\] must be a video id, found 5"),
        ("val_ids.json", ["v_abcdefghi1x", "abcdefghi1x"], r"entry \[1\]: video 'abcdefghi1x' is duplicated"),
        *(
            ("val_1.json", json.dumps({f"v_abcdefghi1{k}": {**ENTRY, "duration": value} for k in "xy"}), message)
            for value, message in (
                (None, "'v_abcdefghi1x': duration must be a number of seconds above 0, found nothing"),
                ("83", "duration must be .*, found '83'"),
                (True, "duration must be .*, found True"),
                (0, "duration must be .*, found 0"),
                (float("nan"), "duration must be .*, found nan"),
            )
        ),
    ],
    "lsmdc-": [
        ("LSMDC16_annos_val.csv", ["a,b,c,d,e,f"], "line 1 has 1 columns; tabs must separate six: clip_id, start_al"),
        ("LSMDC16_annos_val.csv", ["a\tb\tc\td\te\tf", "a\tb\tf"], "LSMDC16_annos_val.csv: line 2 has 3 columns"),
        ("LSMDC16_annos_val.csv", ["a\tb\tc\td\te\tf\tg"], "line 1 has 7 columns"),
        ("LSMDC16_annos_val.csv", ["a\tb\tc\td\te\t"], "line 1: sentence is empty"),
        ("LSMDC16_annos_val.csv", ["\tb\tc\td\te\tf"], "line 1: clip_id is empty"),
    ],
}


@pytest.mark.parametrize(
    ("key", "name", "content", "message"),
    [
        pytest.param(tuple(key.split("-")), *case, id=f"{key} {case[2][:60]}")
        for key, cases in DAMAGE.items()
        for case in cases
    ],
)
def test_damage_is_named(layout, key, name, content, message):
    folder, read = layout(key)
    write(folder, name, content)
    with pytest.raises(DataError, match=message) as caught:
        read()
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("format", ["didemo", "activitynet", "lsmdc"])
def test_formats_of_several_files_need_their_folder(tmp_path, format):
    path = write(tmp_path, "train.json", "{}")
    with pytest.raises(DataError, match=r"train.json is a file; give the folder that holds"):
        resolve("data format", format, FORMATS)(annotations=path)


@pytest.mark.parametrize("format", ["msvd", "vatex", "msrvtt", "didemo", "activitynet", "lsmdc"])
def test_annotations_that_do_not_exist_are_named(tmp_path, format):
    with pytest.raises(DataError, match=r"nowhere.* cannot be read: No such file|nowhere does not exist"):
        resolve("data format", format, FORMATS)(annotations=tmp_path / "nowhere")

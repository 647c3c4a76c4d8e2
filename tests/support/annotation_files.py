"""Small made-up annotation files in the exact layouts that were published."""

import json
import pickle

IDS = {"train": ["-vidA_1_9", "vidB_3_12"], "val": ["vidC_0_4"], "test": ["vidD_5_9", "vidE_1_2"]}
ALL = [name for names in IDS.values() for name in names]


def sentences(name):
    return [f"{name} sentence {number}" for number in range(2)]


def write(folder, name, content):
    """Write JSON, a list of lines, text or bytes."""
    if isinstance(content, list) and all(isinstance(line, str) for line in content) and not name.endswith(".json"):
        content = "".join(f"{line}\n" for line in content)
    elif not isinstance(content, (str, bytes)):
        content = json.dumps(content, indent=1)
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_lists(folder):
    for split, names in IDS.items():
        write(folder, f"{split}_list.txt", "\n".join(names))  # as CLIP2Video's: no newline at the end


def msvd_pickle(folder):
    captions = {name: [text.split() for text in sentences(name)] for name in ALL}
    write(folder, "raw-captions.pkl", pickle.dumps(captions))
    write_lists(folder)


def msvd_json(folder):
    write(folder, "captions_msvd.json", {name: sentences(name) for name in ALL})
    write_lists(folder)


def vatex_clip2video(folder):
    write(folder, "vatex_data.json", {name: {"enCap": sentences(name), "chCap": []} for name in ALL})
    write_lists(folder)


def vatex_ts2net(folder):
    write(folder, "ref_captions.json", {name: sentences(name) for name in ALL})
    write_lists(folder)


def vatex_teachclip(folder):
    """The captions of val and test stand in their lists, some videos have more than others."""
    turns = [{"video_id": name, "caption": sentences(name)[turn]} for turn in range(2) for name in ALL]
    write(folder, "VATEX_data.json", {"sentences": turns})
    write(folder, "VATEX_train.csv", ["video_id", *IDS["train"]])
    for split in ("val", "test"):
        rows = [f"{name},{text}" for name in IDS[split] for text in sentences(name)]
        write(folder, f"VATEX_{split}.csv", ["video_id,sentence", *rows])


def didemo(folder):
    """Sentences of two videos are mixed; the lists have extensions or not."""
    for split, names in IDS.items():
        rows = [(name, sentences(name)[turn]) for turn in range(2) for name in names]
        entries = [{"video": f"{name}.mp4", "description": text, "times": [[0, 1]]} for name, text in rows]
        write(folder, f"{split}_data.json", entries)
        write(folder, f"{split}_list.txt", [name + ".mp4" * (number % 2) for number, name in enumerate(names)])


def activitynet(folder):
    """Published ids have 11 characters after v_."""
    for number, (split, data) in enumerate((("train", "train"), ("val", "val_1"))):
        names = [f"v_abcdefghi{number}{letter}" for letter in "xy"]
        entry = {
            "duration": 83.2,
            "timestamps": [[0, 20.5], [20.5, 83]],
            "sentences": ["a man stands.", " he jumps."],
        }
        write(folder, f"{split}_ids.json", names)
        write(folder, f"{data}.json", dict.fromkeys([*names, f"v_unlisted{number}zz"], entry))


def lsmdc(folder):
    files = ("LSMDC16_annos_training.csv", "LSMDC16_annos_val.csv", "LSMDC16_challenge_1000_publictect.csv")
    for number, name in enumerate(files):
        clip = f"000{number}_Film_00.01.02.003-00.01.04.500"
        rows = [[clip, "00.01.02.003", "00.01.04.500", "00.01.01.9", "00.01.05.0", 'SOMEONE says "go", and leaves.']]
        if number == 0:  # clips are not unique in training, nor next to each other
            other = clip.replace("00.01.02", "00.02.02")
            rows += [[other, *rows[0][1:5], "He walks away."], [*rows[0][:5], "A door opens."]]
        write(folder, name, ["\t".join(row) for row in rows])


LAYOUTS = {
    ("msvd", "pickle"): msvd_pickle,
    ("msvd", "json"): msvd_json,
    ("vatex", "clip2video"): vatex_clip2video,
    ("vatex", "ts2net"): vatex_ts2net,
    ("vatex", "teachclip"): vatex_teachclip,
    ("didemo", ""): didemo,
    ("activitynet", ""): activitynet,
    ("lsmdc", ""): lsmdc,
}
"""How to write each layout, by format and name."""

FILES = {
    ("msvd", "pickle"): ["raw-captions.pkl", "train_list.txt", "val_list.txt", "test_list.txt"],
    ("msvd", "json"): ["captions_msvd.json", "train_list.txt", "val_list.txt", "test_list.txt"],
    ("vatex", "clip2video"): ["vatex_data.json", "train_list.txt", "test_list.txt"],
    ("vatex", "ts2net"): ["ref_captions.json", "train_list.txt", "test_list.txt"],
    ("vatex", "teachclip"): ["VATEX_data.json", "VATEX_train.csv", "VATEX_test.csv"],
    ("didemo", ""): [f"{split}_{kind}" for split in IDS for kind in ("data.json", "list.txt")],
    ("activitynet", ""): ["train.json", "val_1.json", "train_ids.json", "val_ids.json"],
    ("lsmdc", ""): [
        "LSMDC16_annos_training.csv",
        "LSMDC16_annos_val.csv",
        "LSMDC16_challenge_1000_publictect.csv",
    ],
}
"""The files that each layout needs."""

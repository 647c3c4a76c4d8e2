"""BabyAI: episodes of its bot, what its verifiers say of them, and the folder of the dataset."""

import csv
import hashlib
import importlib
import json
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from teachclip import decode_frames
from teachclip.cli.make_data import main
from teachclip.data.video.sampling import FrameSampling
from teachclip.datasets.babyai import dataset as babyai
from teachclip.datasets.babyai import episodes as episodes_module
from teachclip.datasets.babyai.dataset import BabyAISettings, frame_oracle, make_babyai
from teachclip.datasets.babyai.episodes import COMPOSED, SINGLE, TILE, frames, replay, solve
from teachclip.datasets.babyai.moments import CONNECTIVES, frame_and_truth, frames_and_texts, moments
from teachclip.datasets.babyai.truth import fulfilled, mission_of, oracle_recall_at_1
from teachclip.datasets.folder import read_manifest
from teachclip.errors import DataError
from teachclip.pretraining.clip import ClipSettings
from teachclip.recipe.loading import load_recipe

COLOURS = ("red", "green", "blue", "purple", "yellow", "grey")
TINY_CLIP = ClipSettings(steps=2, batch_size=4, width=64, vision_layers=1, text_layers=1)
SMALL = BabyAISettings(train_videos=6, val_videos=2, test_videos=4, teacher_videos=2, clip_episodes=6, clip=TINY_CLIP)


@pytest.fixture(scope="module")
def episodes():
    """Return solved missions with several clauses."""
    return [episode for seed in range(24) if (episode := solve(seed, COMPOSED))]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("babyai") / "dataset"
    assert make_babyai(folder, SMALL, progress=False)
    return folder


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def rows(folder, name="captions.csv"):
    with open(folder / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_bot_fulfils_the_mission_with_its_last_action_and_not_before(episodes):
    assert len(episodes) > 15
    for episode in episodes:
        mission = mission_of(episode)
        assert fulfilled(episode, [mission]) == {mission: len(episode.actions)}, episode.mission


def test_the_other_word_order_asks_for_the_same(episodes):
    swapped = {"BeforeInstr": "AfterInstr", "AfterInstr": "BeforeInstr", "AndInstr": "AndInstr"}
    kinds = set()
    for episode in episodes:
        name, first, second = mission_of(episode)
        kinds.add(name)
        other = (swapped[name], second, first)
        assert fulfilled(episode, [other]) == {other: len(episode.actions)}
        joint = {"BeforeInstr": ", then ", "AfterInstr": " after you "}.get(name, " and ")
        back = {"BeforeInstr": " after you ", "AfterInstr": ", then "}.get(name, " and ")
        if name != "AndInstr":  # halves hold "and" too
            one, two = episode.mission.split(joint)
            assert episode.reworded == f"{two}{back}{one}"
    assert kinds == set(swapped)


def test_the_halves_of_then_cannot_change_places(episodes):
    """The reverse order is another mission: some episodes do not fulfil it, however long they are watched."""
    ordered = [(e, mission_of(e)) for e in episodes if mission_of(e)[0] in ("BeforeInstr", "AfterInstr")]
    reversed_ = [fulfilled(e, [(name, second, first)]) for e, (name, first, second) in ordered]
    assert sum(not found for found in reversed_) >= len(ordered) / 2


def test_a_mission_about_what_is_not_there_is_not_fulfilled(episodes):
    nothing = [("GoToInstr", (kind, colour, None)) for kind in ("box", "ball", "key") for colour in ("red", "grey")]
    for episode in episodes[:6]:
        level, _ = next(replay(episode))
        there = {(cell.type, cell.color) for cell in level.grid.grid if cell is not None}
        for mission in fulfilled(episode, nothing):
            assert mission[1][:2] in there


def test_frames_are_what_the_agent_sees(episodes):
    episode = episodes[0]
    seen = frames(episode)
    assert seen.shape == (len(episode.actions) + 1, 7 * TILE, 7 * TILE, 3) and seen.dtype == np.uint8
    assert frames(episode, view="full").shape[1:] == (9 * TILE, 9 * TILE, 3)
    assert solve(0, SINGLE).reworded is None


def test_a_moment_shows_what_its_missions_say(episodes):
    """Each kind of mission is checked against the state of the level, not by the verifier that found it."""
    checked = set()
    for episode in episodes[:8]:
        at = {moment.step: moment for moment in moments(episode)}
        before = None
        for step, (level, _) in enumerate(replay(episode)):
            front = level.grid.get(*level.front_pos)
            for kind, texts in at[step].missions.items() if step in at else ():
                checked.add(kind)
                shown = level.carrying if kind == "PickupInstr" else front
                assert kind != "OpenInstr" or front.is_open
                assert kind != "PutNextInstr" or (before is front and level.carrying is None)
                for text in texts:
                    words = text.split(" next to ")[0].split()
                    assert shown.type in words and (shown.color in words or not {*words} & {*COLOURS}), text
            before = level.carrying
    assert checked == {"GoToInstr", "OpenInstr", "PickupInstr", "PutNextInstr"}


def test_what_the_verifier_of_a_whole_episode_calls_fulfilled_is_a_moment(episodes):
    """The last action fulfils the last open clause, whose words are then among the moment's."""
    for episode in episodes[:8]:
        last = moments(episode)[-1]
        assert last.step == len(episode.actions)
        assert any(text in episode.mission for text in last.texts), (episode.mission, last.texts)
        assert np.array_equal(last.frame, frames(episode)[-1])


def test_frames_for_the_clip_are_drawn_by_the_seed_of_the_episode(episodes):
    shown, texts = frames_and_texts(episodes[0], "agent", 40)
    again, same = frames_and_texts(episodes[0], "agent", 40)
    assert shown.shape == (40, 7 * TILE, 7 * TILE, 3) and np.array_equal(shown, again) and texts == same
    whole = {episodes[0].mission, episodes[0].reworded}
    assert whole <= set(texts) and 10 <= sum(text in whole for text in texts) <= 30
    clauses = set(CONNECTIVES.split(episodes[0].mission))
    fulfilling = [moment.frame for moment in moments(episodes[0]) if clauses & set(moment.texts)]
    for frame, text in zip(shown, texts, strict=True):
        assert text not in whole or any(np.array_equal(frame, other) for other in fulfilling)
    single = {text for moment in moments(episodes[0]) for text in moment.texts}
    assert set(texts) <= whole | single
    frame, text, truth = frame_and_truth(episodes[0], "agent")
    assert text in truth and set(truth) <= single and frame.shape == shown.shape[1:]


def test_a_frame_oracle_guesses_among_the_frames_that_fulfil_a_mission():
    truths = [["go to the door", "go to a red door"], ["go to a door"], ["open the door"]]
    found = frame_oracle(["go to a red door", "go to a door", "open the door"], truths)
    assert found == pytest.approx(100 * (1 + 1 / 2 + 1) / 3, abs=0.01)


def test_teachers_have_more_training_videos_and_the_same_others(dataset):
    own, more = rows(dataset), rows(dataset, "teacher_captions.csv")
    assert more[: len(own)] == own
    assert {(row["video"], row["split"]) for row in more[len(own) :]} == {
        ("teacher0.mp4", "train"),
        ("teacher1.mp4", "train"),
    }


def test_an_oracle_guesses_among_the_videos_that_fulfil_a_mission():
    a, b, c = ("GoToInstr", 1), ("GoToInstr", 2), ("GoToInstr", 3)
    found = [{a: 5, b: 2}, {b: 7}, {c: 4, b: 9}]
    assert oracle_recall_at_1([a, b, c], found) == pytest.approx(100 * (1 + 1 / 3 + 1) / 3)
    assert oracle_recall_at_1([a, b, c], found, lengths=[5, 7, 4]) == 100


def test_the_folder_holds_real_videos_captions_in_the_csv_format_and_a_clip(dataset, tmp_path):
    table = rows(dataset)
    assert {row["split"] for row in table} == {"train", "val", "test"}
    videos = {row["video"]: row["split"] for row in table}
    written = {path.name for path in (dataset / "videos").iterdir()}
    assert written == {*videos, "teacher0.mp4", "teacher1.mp4"}
    assert [list(videos.values()).count(split) for split in ("train", "val", "test")] == [6, 2, 4]
    decoded = decode_frames(dataset / "videos" / "test0.mp4", FrameSampling("intervals", 4))
    assert decoded.shape == (4, 3, 112, 112)
    facts = read_manifest(dataset, "BabyAI")["results"]["splits"]["test"]
    assert facts["videos"] == 4 and facts["captions"] == 8
    assert 0 < facts["oracle_recall_at_1"] <= facts["oracle_recall_at_1_at_the_end"] <= 100
    assert (dataset / "clip" / "model.safetensors").exists() and not list(dataset.rglob("*part*"))


def test_no_two_splits_draw_the_same_seed():
    ranges = [
        range(settings.first_seed(stream), settings.first_seed(stream) + 1_000_000)
        for settings in (BabyAISettings(seed=0), BabyAISettings(seed=1))
        for stream in ("train", "val", "test", "clip", "fresh", "teacher")
    ]
    edges = sorted((item.start, item.stop) for item in ranges)
    assert len(edges) == 12 and all(one[1] <= two[0] for one, two in pairwise(edges))


def test_the_same_settings_give_the_same_bytes_in_another_process(dataset, tmp_path):
    code = (
        "import sys; from teachclip.datasets.babyai.episodes import *; import hashlib\n"
        "e = solve(2_000_000, COMPOSED); print(e.mission, hashlib.sha256(frames(e).tobytes()).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    )
    episode = solve(2_000_000, COMPOSED)
    assert done.stdout.split() == [
        *episode.mission.split(),
        hashlib.sha256(frames(episode).tobytes()).hexdigest(),
    ]


def test_missing_files_are_made_again_with_the_same_bytes(dataset, tmp_path, monkeypatch):
    before = content(dataset)
    (dataset / "videos" / "val1.mp4").unlink()
    monkeypatch.setattr(babyai, "pretrain_clip", lambda *args, **options: pytest.fail("the CLIP is there"))
    assert make_babyai(dataset, SMALL, progress=False)
    assert content(dataset) == before
    assert not make_babyai(dataset, SMALL, progress=False)


def test_two_processes_write_the_same_bytes(dataset, tmp_path):
    assert make_babyai(tmp_path / "w", SMALL, workers=2, progress=False)
    assert content(tmp_path / "w") == content(dataset)


def test_without_minigrid_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "minigrid.envs.babyai.core.levelgen", None)
    with pytest.raises(DataError, match=r"BabyAI needs MiniGrid .*pip install 'teachclip\[datasets\]'"):
        importlib.reload(episodes_module)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_videos": 0}, "train_videos is 0; allowed: 1 or more"),
        ({"view": "top"}, "view is 'top'; allowed: agent, full"),
        ({"teacher_videos": -1}, "teacher_videos is -1; allowed: 0 or more"),
        ({"clip_episodes": 47}, "clip_episodes is 47; allowed: 48 or more, as many as the tiny CLIP has in a batch"),
        ({"fewest_actions": 99}, "fewest_actions is 99; allowed: 1 to most_actions, 64"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        BabyAISettings(**change)


def test_another_dataset_in_the_folder_is_refused(dataset):
    with pytest.raises(DataError, match=r"holds another BabyAI dataset \(.*seed = 0 there, 1 now"):
        make_babyai(dataset, BabyAISettings(**{**SMALL.__dict__, "seed": 1}))


def test_the_command_refuses_in_one_line_what_cannot_be(tmp_path, capsys):
    assert main(["babyai", "--out", str(tmp_path / "w"), "--test-videos", "0"]) == 2
    assert capsys.readouterr().err == "error: test_videos is 0; allowed: 1 or more\n"
    assert main(["babyai", "--out", str(tmp_path / "w"), "--workers", "0"]) == 2
    assert main(["babylon"]) == 2
    assert "invalid choice: 'babylon'" in capsys.readouterr().err


def test_the_manifest_says_what_it_was_made_from(dataset):
    settings = json.loads((dataset / "manifest.json").read_text())["settings"]
    assert settings["dataset"]["seed"] == 0 and settings["dataset"]["clip"]["steps"] == 2


@pytest.mark.parametrize("name", ["babyai"])
def test_the_recipes_load(name):
    assert load_recipe(name).text.max_tokens <= babyai.MAX_TOKENS

"""A search whose best videos a teacher orders anew."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import torch
import yaml
from indexing import update
from made_recipe import recipe_sections
from sentence_models import save_llava, save_reranker

from teachclip import distill
from teachclip.cli import search
from teachclip.data.annotations.records import Video
from teachclip.data.frames.live import LiveFrames
from teachclip.errors import DataError
from teachclip.pipeline.rerank import TeacherReranker, open_reranker
from teachclip.scoring.inputs import encode_video_batch
from teachclip.search.index import VideoIndex
from teachclip.search.update import Wanted


@pytest.fixture(scope="module")
def searchable(made_project, filled_stores, tmp_path_factory):
    """A recipe with a trained student, and an index of copies of its films."""
    folder = tmp_path_factory.mktemp("searchable")
    stores = shutil.copytree(filled_stores, folder / "stores")
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_sections(made_project, folder / "run", stores)), encoding="utf-8")
    distill(recipe)
    films = shutil.copytree(made_project / "videos", folder / "films")
    update(folder / "index", [films], Wanted(str(folder / "run" / "student")))
    return recipe, folder / "index", films


def teacher_scores(reranker, text, paths):
    """Score a text and whole files by the teacher, with nothing of an index between."""
    frames, mask = LiveFrames(
        [Video(str(number), path) for number, path in enumerate(paths)], reranker.decoding, {}
    ).read(np.arange(len(paths)))
    batch = {"frames": frames, "frame_mask": mask}
    batch |= {"mean": torch.tensor(reranker.how.mean), "std": torch.tensor(reranker.how.std)}
    ids = torch.tensor(reranker.how.tokenizer([text])["input_ids"])
    with torch.no_grad():
        videos = encode_video_batch(reranker.teacher, batch)
        texts = reranker.teacher.encode_texts(ids, torch.ones_like(ids))
        return reranker.teacher.score(texts, videos)[0].numpy()


def test_the_best_videos_are_in_the_order_of_the_teacher(searchable, tmp_path, monkeypatch):
    recipe, made, films = searchable
    index_folder = shutil.copytree(made, tmp_path / "index")  # in which nothing is kept yet
    reranker = TeacherReranker.of_recipe(recipe, "xpool", device="cpu")
    with VideoIndex.open(index_folder) as index:
        found = index.search("a red circle", limit=6)
        again = reranker.rerank(index, "a red circle", found)
        paths = sorted(films.glob("*.mp4"))
        scores = dict(zip(map(str, paths), teacher_scores(reranker, "a red circle", paths), strict=True))
        assert {one.path for one in again} == {one.path for one in found}
        assert [one.path for one in again] == sorted((one.path for one in found), key=lambda path: -scores[path])
        np.testing.assert_allclose([one.score for one in again], [scores[one.path] for one in again], atol=1e-3)
        # what is kept is not computed again, whatever is searched; what is new is
        encoded = []
        encode = reranker.teacher.encode_videos
        monkeypatch.setattr(
            reranker.teacher, "encode_videos", lambda *batch: encoded.append(len(batch[0])) or encode(*batch)
        )
        reranker.rerank(index, "a blue square", found)
        assert encoded == []
        reranker.rerank(index, "a blue square", index.search("a blue square", limit=9))
        assert 3 <= sum(encoded) < 9
        assert reranker.rerank(index, "a red circle", []) == []


def test_the_command_reranks_by_a_teacher_and_by_a_cross_encoder(searchable, tmp_path, capsys):
    recipe, index_path, films = searchable
    command = [str(index_path), "a red circle", "--json", "--limit", "3"]
    assert search.main([*command, "--rerank", "xpool", "--recipe", str(recipe), "--top", "8"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 3 and found[0]["score"] > found[1]["score"] > found[2]["score"]
    for arguments, part in (
        (
            ["--rerank", "xpool"],
            "--rerank 'xpool': allowed: the label of a teacher, with a --recipe that has it; the folder",
        ),
        (["--rerank", "xpol", "--recipe", str(recipe)], "CrossEncoder; did you mean xpool?"),
    ):
        try:
            assert search.main([*command, *arguments]) == 2
        except SystemExit as error:
            assert error.code == 2
        assert part in capsys.readouterr().err.splitlines()[-1]
    # a CrossEncoder is named by its folder, with the recipe or without
    folder = save_reranker(tmp_path / "reranker", save_llava(tmp_path / "llava"))
    reranker = TeacherReranker.of_recipe(recipe, str(folder), device="cpu")
    with VideoIndex.open(index_path) as index:
        found = index.search("a red circle", limit=5)
        scores = teacher_scores(reranker, "a red circle", [films / os.path.basename(one.path) for one in found])
        wanted = dict(zip([one.path for one in found], scores.tolist(), strict=True))
        for each in (reranker, open_reranker(index, str(folder), device="cpu")):  # the student samples as the recipe
            again = each.rerank(index, "a red circle", found)
            assert [one.path for one in again] == sorted(wanted, key=lambda path: -wanted[path])
            np.testing.assert_allclose([one.score for one in again], sorted(scores.tolist(), reverse=True), atol=1e-4)
        assert len(list(index.generation.folder.glob("rerank-*"))) == 1  # of the teacher; frames are not kept
    command = [str(index_path), "a red circle", "--json"]
    assert search.main([*command, "--rerank", str(folder), "--top", "5"]) == 0
    assert [one["path"] for one in json.loads(capsys.readouterr().out)][:5] == [one.path for one in again]


def test_a_file_that_is_not_the_indexed_one_is_refused(searchable, tmp_path):
    recipe, index_folder, _ = searchable
    reranker = TeacherReranker.of_recipe(recipe, "xpool", device="cpu")
    with VideoIndex.open(index_folder) as index:
        found = index.search("a red circle", limit=2)
        film = shutil.move(found[0].path, tmp_path / "moved.mp4")  # the other tests read it too
        with pytest.raises(DataError, match="No such file"):
            reranker.rerank(index, "a red circle", found)
        shutil.copy(film, found[0].path)
        with pytest.raises(DataError, match="has changed since it was indexed"):
            reranker.rerank(index, "a red circle", found)
        shutil.move(film, found[0].path)

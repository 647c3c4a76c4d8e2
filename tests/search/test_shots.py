import av
import numpy as np
import pytest
from indexing import update

from teachclip import VideoIndex
from teachclip.data.video.cutting import Cutting
from teachclip.data.video.parts import open_parts
from teachclip.data.video.sampling import FrameSampling
from teachclip.data.video.shots import find_shots
from teachclip.data.video.transform import FrameTransform
from teachclip.errors import DataError, VideoError
from teachclip.search.update import Wanted


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Three shots: red for 4 seconds, white for 14, dark blue for 3."""
    path = tmp_path_factory.mktemp("shots") / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for colour, frames in (((200, 0, 0), 40), ((255, 255, 255), 140), ((0, 0, 60), 30)):
            picture = np.full((64, 64, 3), colour, np.uint8)
            for _ in range(frames):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_shots_are_found_and_long_ones_are_cut(film):
    shots = find_shots(film, 21.0)
    assert [edge for shot in shots for edge in shot] == pytest.approx([0, 4, 4, 18, 18, 21], abs=0.11)
    opened = open_parts(str(film), FrameSampling("intervals", 4), FrameTransform(32), Cutting("shots"))
    edges = [edge for part in opened.first.parts for edge in part]
    assert edges == pytest.approx([0, 4, 4, 14, 9, 18, 18, 21], abs=0.11)


def test_an_index_of_shots(film, student_folder, tmp_path):
    update(tmp_path / "index", [film.parent], Wanted(str(student_folder), parts="shots"))
    parts = VideoIndex.open(tmp_path / "index").parts("film.mp4")
    assert len(parts) == 4 and parts[0].end == pytest.approx(4, abs=0.11)


def test_what_has_no_shots_is_refused_in_one_line(film, tmp_path, monkeypatch):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    with pytest.raises(VideoError, match=r"its shots cannot be found") as error:
        find_shots(broken, 3.0)
    assert "\n" not in str(error.value)
    monkeypatch.setitem(__import__("sys").modules, "scenedetect", None)
    with pytest.raises(DataError, match=r"pip install 'teachclip\[shots\]'"):
        find_shots(film, 21.0)

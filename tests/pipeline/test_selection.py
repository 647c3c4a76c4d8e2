import logging
from pathlib import Path

import pytest

from teachclip.data.annotations.records import Split, Video
from teachclip.pipeline.selection import selects_last


@pytest.mark.parametrize(("count", "last"), [(49, True), (50, False)])
def test_under_fifty_videos_nothing_is_selected_and_it_is_said(count, last, caplog):
    videos = tuple(Video(f"video{number:02}", Path(f"video{number:02}.mp4")) for number in range(count))
    with caplog.at_level(logging.WARNING):
        assert selects_last(Split("validation", videos, ())) is last
    assert ("validation has 49 videos, fewer than the 50" in caplog.text) is last

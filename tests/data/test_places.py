"""Which text meets which video in an epoch: pairs stay together, everything else is dealt out."""

from pathlib import Path

import numpy as np
import pytest

from teachclip.data.annotations.records import Caption, Split, Video
from teachclip.data.places import Places


def split(pairs, videos, texts):
    captions = [Caption(f"c{row}", f"v{video}", "c") for row, video in enumerate(pairs)]
    captions += [Caption(f"t{number}", "", "t") for number in range(texts)]
    return Split("train", tuple(Video(f"v{row}", Path()) for row in range(videos)), tuple(captions))


def epoch(places, number):
    every = np.arange(places.count)
    return places.texts(number, every), places.videos(number, every)


def test_captioned_data_is_as_it_was():
    places = Places(split([0, 0, 1, 2], 3, 0), 7)
    texts, videos = epoch(places, 5)
    assert texts.tolist() == [0, 1, 2, 3] and videos.tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize(("videos", "texts"), [(3, 8), (8, 3), (5, 5)])
def test_all_texts_and_videos_are_met_and_the_shorter_list_begins_again(videos, texts):
    places = Places(split([], videos, texts), 0)
    assert places.count == max(videos, texts)
    rows, columns = epoch(places, 0)
    assert set(rows) == set(range(texts)) and set(columns) == set(range(videos))
    for found, count in ((rows, texts), (columns, videos)):
        assert np.ptp(np.bincount(found, minlength=count)) <= 1


def test_each_epoch_lets_other_texts_and_videos_meet_in_the_same_way_every_time():
    places = Places(split([], 40, 40), 1)
    met = [list(zip(*(part.tolist() for part in epoch(places, number)), strict=True)) for number in (0, 1, 0)]
    assert met[0] == met[2] and len(set(met[0]) & set(met[1])) < 8
    assert met[0] != list(zip(*(part.tolist() for part in epoch(Places(places.split, 2), 0)), strict=True))


def test_pairs_stay_pairs_beside_dealt_places():
    places = Places(split([1, 1, 3], 5, 2), 0)
    rows, columns = epoch(places, 3)
    assert places.pairs == 3 and places.count == 6
    assert rows[:3].tolist() == [0, 1, 2] and columns[:3].tolist() == [1, 1, 3]
    assert set(rows[3:]) == {3, 4} and set(columns[3:]) == {0, 2, 4}


def test_captions_serve_as_texts_where_there_are_no_others_and_captioned_videos_likewise():
    rows, columns = epoch(Places(split([0, 1], 4, 0), 0), 0)
    assert rows[:2].tolist() == [0, 1] and set(rows[2:]) <= {0, 1} and set(columns[2:]) == {2, 3}
    rows, columns = epoch(Places(split([0, 1], 2, 3), 0), 0)
    assert set(rows[2:]) == {2, 3, 4} and set(columns[2:]) == {0, 1}

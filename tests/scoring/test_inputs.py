"""Inputs of several sources as one."""

import numpy as np
import torch

from teachclip.data.batches import Tokenized
from teachclip.processes import Processes
from teachclip.scoring.inputs import ALIGNMENT, FeatureInputs, JoinedInputs, PixelInputs, to_device
from teachclip.scoring.token_store import store_tokens
from teachclip.store.row_plan import row_keys


class Numbers:
    """Text i is i words long, video i shows frames of value i; everything is moved by `start`."""

    def __init__(self, start, count):
        self.start, self.text_count, self.video_count = start, count, count

    def texts(self, rows):
        lengths = torch.from_numpy(rows) + self.start + 1
        mask = torch.arange(int(lengths.max()))[None, :] < lengths[:, None]
        return {"input_ids": lengths[:, None] * mask, "attention_mask": mask.long()}

    def videos(self, rows):
        values = (torch.from_numpy(rows) + self.start).float()
        return {"frames": values[:, None, None], "frame_mask": values[:, None] > 1, "mean": torch.ones(3)}


def test_rows_go_on_from_one_part_to_the_next_and_keep_their_order():
    joined, whole = JoinedInputs([Numbers(0, 3), Numbers(3, 4)], [Numbers(0, 3), Numbers(3, 4)]), Numbers(0, 7)
    assert joined.text_count == joined.video_count == 7
    for rows in ([5, 0, 3, 2, 3], [1, 0], [6], [2, 3]):
        for read in ("texts", "videos"):
            found, wanted = (getattr(inputs, read)(np.array(rows)) for inputs in (joined, whole))
            assert found.keys() == wanted.keys()
            for name in wanted:
                assert torch.equal(found[name], wanted[name]), (rows, name)


def test_texts_and_videos_may_be_of_different_parts():
    joined = JoinedInputs([Numbers(0, 3), Numbers(3, 4)], [Numbers(0, 3)])
    assert (joined.text_count, joined.video_count) == (7, 3)


def captions_of(lengths, *, pad_id):
    lengths = np.array(lengths)
    ids = np.where(np.arange(lengths.max()) < lengths[:, None], 7, pad_id).astype(np.int32)
    nothing = torch.zeros(3)
    return PixelInputs(Tokenized(ids, lengths, pad_id=pad_id), None, np.arange(0), nothing, nothing)


def test_shorter_texts_are_filled_up_with_the_padding_of_their_tokenizer():
    joined = JoinedInputs([captions_of([2, 1], pad_id=1), captions_of([4], pad_id=1)], [])
    found = joined.texts(np.array([1, 2, 0]))
    assert found["input_ids"].tolist() == [[7, 1, 1, 1], [7, 7, 7, 7], [7, 7, 1, 1]]
    assert found["attention_mask"].tolist() == [[1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]]


def test_numbers_begin_where_products_repeat_to_the_last_bit():
    numbers = np.random.RandomState(0).standard_normal(5 * 32 + 16).astype(np.float32)
    weight = torch.randn(10, 32, generator=torch.Generator().manual_seed(0))
    found = []
    for start in range(16):  # numpy's arrays begin at any of these places
        numbers[start : start + 160] = np.random.RandomState(1).standard_normal(160)
        batch = {"features": torch.from_numpy(numbers[start : start + 160]).view(5, 32), "rows": torch.arange(5)}
        moved = to_device(batch, "cpu")
        assert moved["features"].data_ptr() % ALIGNMENT == 0 and moved["rows"] is batch["rows"]
        assert torch.equal(moved["features"], batch["features"])
        found.append(moved["features"] @ weight.T)
    assert all(torch.equal(found[0], other) for other in found)


def stored(path, **values):
    values = {name: torch.as_tensor(array) for name, array in values.items()}
    count = len(next(iter(values.values())))
    return store_tokens(
        path,
        keys=row_keys(range(count)),
        encode=lambda rows: {name: array[rows] for name, array in values.items()},
        provenance={},
        batch_size=2,
        rows_per_shard=3,
        processes=Processes(),
        label="features",
    )


def test_features_that_take_more_than_is_kept_are_read_from_the_store_each_time(tmp_path):
    torch.manual_seed(0)
    texts, frames, mask = torch.randn(7, 4), torch.randn(5, 3, 4), torch.rand(5, 3) > 0.5
    stores = stored(tmp_path / "t", features=texts), stored(tmp_path / "v", frame_features=frames, frame_mask=mask)
    assert [store.nbytes for store in stores] == [7 * 4 * 4, 5 * 3 * (4 * 4 + 1)]
    rows = np.array([4, 0, 4, 2])
    for kept_bytes, kept in ((1000, {"features", "frame_features", "frame_mask"}), (112, {"features"}), (0, set())):
        inputs = FeatureInputs(*stores, kept_bytes=kept_bytes)
        assert inputs._kept.keys() == kept and (inputs.text_count, inputs.video_count) == (7, 5)
        assert torch.equal(inputs.texts(rows)["text_features"], texts[rows])
        found = inputs.videos(rows)
        assert torch.equal(found["frame_features"], frames[rows]) and torch.equal(found["frame_mask"], mask[rows])

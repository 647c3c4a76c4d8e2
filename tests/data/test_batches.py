import hashlib
import pickle
import string
import warnings

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from teachclip.data.annotations.records import Caption
from teachclip.data.batches import BatchSampler, Tokenized
from teachclip.errors import DataError, LaunchError

START, END = 0, 1
PINNED = {
    "rows": [7, 1, 0, 6],
    "views": [0, 2, 1, 1, 2, 0, 0, 0, 1, 2, 0, 1],
    "views of -1": [2, 2, 1, 1, 1, 2, 1, 0, 0, 0, 0, 0],
}


@pytest.fixture(scope="module")
def tokenizer():
    """Every letter is a token, one within a word and one at its end."""
    letters = [letter + end for end in ("", "</w>") for letter in string.ascii_lowercase]
    names = ["<|startoftext|>", "<|endoftext|>", *letters]
    return CLIPTokenizer(vocab={name: number for number, name in enumerate(names)}, merges=[])


def captions(*texts):
    return [Caption(f"v:{number}", "v", text) for number, text in enumerate(texts)]


def test_every_epoch_takes_each_pair_once_but_the_last_partial_batch():
    sampler = BatchSampler(pairs=103, batch_size=10, seed=7)
    assert sampler.batches_per_epoch == 10
    epochs = [np.concatenate([sampler.rows(10 * epoch + step) for step in range(10)]) for epoch in range(3)]
    for rows in epochs:
        assert rows.dtype == np.int64 and len(set(rows.tolist())) == 100 and set(rows.tolist()) <= set(range(103))
    assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[1], epochs[2])


def test_batches_depend_on_seed_and_step_alone():
    first, second = BatchSampler(50, 8, seed=1), BatchSampler(50, 8, seed=1)
    late = second.rows(17)
    assert [first.rows(step).tolist() for step in range(18)][17] == late.tolist()
    assert first.rows(0).tolist() != BatchSampler(50, 8, seed=2).rows(0).tolist()
    assert first.rows(0).tolist() != BatchSampler(50, 8, seed=-1).rows(0).tolist()


def test_batches_stay_the_same_in_later_versions():
    assert BatchSampler(12, 4, seed=42).rows(0).tolist() == [4, 1, 0, 11]
    assert BatchSampler(12, 4, seed=42).rows(4).tolist() == [4, 2, 3, 9]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 12])
def test_processes_share_the_global_batch_in_order(count):
    sampler = BatchSampler(40, 12, seed=0)
    for step in (0, 5):
        parts = [sampler.local(step, index, count) for index in range(count)]
        assert {len(part) for part in parts} == {12 // count}
        assert np.concatenate(parts).tolist() == sampler.rows(step).tolist()


def test_batches_that_cannot_be_formed_are_refused():
    with pytest.raises(DataError, match="batch size is 8, but there are only 7 training pairs"):
        BatchSampler(7, 8, 0)
    with pytest.raises(DataError, match="batch size is 1; allowed: at least 2"):
        BatchSampler(7, 1, 0)
    with pytest.raises(LaunchError, match="batch size 6 is not divisible by 4 processes"):
        BatchSampler(7, 6, 0).local(0, 0, 4)


def test_rows_cannot_be_changed_by_mistake():
    with pytest.raises(ValueError, match="read-only"):
        BatchSampler(7, 6, 0).rows(0)[0] = 3


def test_batch_is_cut_to_its_longest_caption(tokenizer):
    tokens = Tokenized.from_captions(captions("a b", "abcdef", "c"), tokenizer, max_tokens=32)
    assert len(tokens) == 3 and tokens.lengths.tolist() == [4, 8, 3]
    assert tokens.input_ids.shape == (3, 8) and tokens.input_ids.dtype == np.int32
    ids, mask = tokens.batch(np.array([2, 0]))
    assert ids.dtype == mask.dtype == torch.int64
    assert ids.tolist() == [[START, 30, END, 0], [START, 28, 29, END]]
    assert mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert tokens.batch([1])[0].tolist() == [tokenizer("abcdef")["input_ids"]]


def test_batches_of_a_fixed_length_are_filled_with_the_padding_token(tokenizer):
    tokens = Tokenized.from_captions(captions("a b", "c"), tokenizer, max_tokens=6, pad_id=9, pad_to=6)
    ids, mask = tokens.batch([1])
    assert ids.tolist() == [[START, 30, END, 9, 9, 9]] and mask.tolist() == [[1, 1, 1, 0, 0, 0]]
    assert tokens.batch([0, 1])[0].shape == (2, 6)


def test_long_caption_is_cut_and_keeps_the_end_of_text_token(tokenizer):
    tokens = Tokenized.from_captions(captions("a b c d e f", "a b"), tokenizer, max_tokens=5)
    ids, mask = tokens.batch([0, 1])
    assert ids.tolist() == [[START, 28, 29, 30, END], [START, 28, 29, END, 0]]
    assert mask.tolist() == [[1] * 5, [1, 1, 1, 1, 0]]


def test_captions_go_through_without_warnings(tokenizer, caplog, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Tokenized.from_captions(captions("word " * 200, "short"), tokenizer, max_tokens=8)
    assert caplog.text == "" and capfd.readouterr().err == ""


def test_captions_with_unknown_tokens_are_counted(tokenizer):
    tokens = Tokenized.from_captions(captions("a dog", "日本", "a 3", "b"), tokenizer, max_tokens=16)
    assert tokens.unknown_count == 2


@pytest.mark.parametrize("pad_to", [None, 12])
def test_captions_are_tokenised_block_by_block_as_all_at_once(tokenizer, monkeypatch, pad_to):
    some = captions("a", "日本 b", "a b c d", "b", "c 3")
    whole = Tokenized.from_captions(some, tokenizer, max_tokens=9, pad_to=pad_to)
    ids, mask = whole.batch(np.arange(5))
    expected = hashlib.sha256(ids.numpy().tobytes() + mask.numpy().tobytes()).hexdigest()
    asked = []

    def in_blocks(texts, **how):
        asked.append(len(texts))
        return tokenizer(texts, **how)

    in_blocks.unk_token_id, in_blocks.eos_token_id = tokenizer.unk_token_id, tokenizer.eos_token_id
    monkeypatch.setattr("teachclip.data.batches.TOKENIZED_AT_ONCE", 2)
    blocks = Tokenized.from_captions(some, in_blocks, max_tokens=9, pad_to=pad_to)
    assert asked == [2, 2, 1] and blocks.unknown_count == whole.unknown_count == 2
    assert np.array_equal(blocks.input_ids, whole.input_ids) and np.array_equal(blocks.lengths, whole.lengths)
    assert blocks.sha256() == whole.sha256() == expected


def test_empty_caption_is_named(tokenizer):
    with pytest.raises(DataError, match="caption 'v:1' of video 'v' is empty"):
        Tokenized.from_captions(captions("a", " \n"), tokenizer, max_tokens=8)


def test_tokens_outside_the_model_vocabulary_are_named(tokenizer):
    made = captions("aa", "a z")
    assert len(Tokenized.from_captions(made, tokenizer, max_tokens=8, vocab_size=54)) == 2
    with pytest.raises(
        DataError, match=r"caption 'v:1' \('a z'\) has token id 53, but the vocabulary of the model is 0 to 52; does"
    ):
        Tokenized.from_captions(made, tokenizer, max_tokens=8, vocab_size=53)


def test_tokens_travel_to_other_processes(tokenizer):
    tokens = pickle.loads(pickle.dumps(Tokenized.from_captions(captions("a b", "c"), tokenizer, max_tokens=8)))
    assert tokens.batch([1])[0].tolist() == [[START, 30, END]]


def test_no_captions_give_no_tokens(tokenizer):
    tokens = Tokenized.from_captions([], tokenizer, max_tokens=8)
    assert len(tokens) == 0 and tokens.batch(np.array([], dtype=np.int64))[0].shape == (0, 0)


def test_every_pair_takes_its_views_in_turn_from_a_view_of_its_own():
    sampler = BatchSampler(pairs=60, batch_size=7, seed=3, views=4)
    seen = {row: [] for row in range(60)}
    for epoch in range(8):
        rows = np.arange(60)
        for row, view in zip(rows, sampler.views_of(epoch * sampler.batches_per_epoch + 2, rows), strict=True):
            seen[row].append(view)
    assert all(sorted(views[:4]) == [0, 1, 2, 3] and views[:4] == views[4:] for views in seen.values())
    assert {views[0] for views in seen.values()} == {0, 1, 2, 3}
    other = BatchSampler(pairs=60, batch_size=7, seed=4, views=4)
    assert not np.array_equal(sampler.views_of(0, rows), other.views_of(0, rows))


def test_the_view_of_a_pair_depends_on_seed_epoch_and_pair_alone():
    whole, other = BatchSampler(60, 8, 3, views=3), BatchSampler(60, 12, 3, views=3)
    rows = whole.rows(9)  # in the second epoch of both
    parts = [whole.views_of(9, whole.local(9, index, 4)) for index in range(4)]
    assert np.array_equal(np.concatenate(parts), whole.views_of(9, rows))
    assert np.array_equal(other.views_of(6, rows), whole.views_of(9, rows))
    assert not np.array_equal(whole.views_of(0, rows), whole.views_of(9, rows))


def test_with_one_view_batches_are_as_they_were():
    plain, one = BatchSampler(60, 8, 3), BatchSampler(60, 8, 3, views=1)
    assert plain == one and not one.views_of(11, one.rows(11)).any()
    assert np.array_equal(plain.rows(11), BatchSampler(60, 8, 3, views=5).rows(11))


def test_the_order_of_pairs_and_their_first_views_are_pinned():
    # numbers of a run depend on these draws: a change would make results that were published before unreachable
    assert BatchSampler(12, 4, seed=0).rows(0).tolist() == PINNED["rows"]
    assert BatchSampler(12, 4, seed=0, views=3).views_of(0, np.arange(12)).tolist() == PINNED["views"]
    assert BatchSampler(12, 4, seed=-1, views=3).views_of(0, np.arange(12)).tolist() == PINNED["views of -1"]


def test_two_pairs_are_the_smallest_batch():
    assert len(BatchSampler(pairs=2, batch_size=2, seed=0).rows(0)) == 2


def test_the_first_caption_with_a_foreign_token_is_named_with_its_own(tokenizer):
    with pytest.raises(DataError, match=r"caption 'v:1' \('c'\) has token id 30"):
        Tokenized.from_captions(captions("a", "c", "z"), tokenizer, max_tokens=8, vocab_size=30)


def test_the_last_token_counts_as_unknown_unless_it_ends_the_text():
    class Words:
        unk_token_id, eos_token_id = 9, 1

        def __call__(self, texts, **_):
            return {"input_ids": [{"whole": [0, 5, 1], "cut": [0, 5, 9], "inner": [0, 9, 1]}[text] for text in texts]}

    tokens = Tokenized.from_captions(captions("whole", "cut", "inner"), Words(), max_tokens=3)
    assert tokens.unknown_count == 2
    Words.unk_token_id = None
    assert Tokenized.from_captions(captions("whole", "cut"), Words(), max_tokens=3).unknown_count == 0

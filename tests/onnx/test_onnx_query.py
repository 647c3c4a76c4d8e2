"""Texts are encoded without torch, by the folder's own file, and tokenised exactly as by the student."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tiny_backbones import FAMILIES, tiny_tokenizer_of
from tiny_models import WORDS

from teachclip import load_onnx
from teachclip.data.video.sampling import FrameSampling
from teachclip.errors import DataError
from teachclip.models.processing import StudentProcessor
from teachclip.models.student import StudentModel
from teachclip.onnx.query import TextTokenizer

BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is blocked")
sys.meta_path.insert(0, Blocked())
"""
ODD = [
    "  A   RED\\tCircle  ",
    "Red CIRCLE over sea",
    "red " * 30,
    "a\\nred\\nsea",
    "blue",
    "a red circle\\u00a0over\\u2003sea",
]
ODD = [text.encode().decode("unicode_escape") for text in ODD]


def python(code: str, *arguments: object, folder: Path, blocked: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCKED.format(blocked=blocked) + code, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})


def test_query_runs_where_torch_and_teachclip_are_not(published: tuple[StudentModel, Path], tmp_path: Path) -> None:
    student, folder = published
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    blocked = ("torch", "transformers", "teachclip", "av", "pebble")
    run = "import runpy; sys.argv[0] = 'query.py'; runpy.run_path('query.py', run_name='__main__')"
    done = python(run, "a red circle", "sea", folder=copy, blocked=blocked)
    assert done.returncode == 0, done.stderr
    vectors = np.array([json.loads(line) for line in done.stdout.splitlines()], dtype=np.float32)
    np.testing.assert_allclose(
        vectors, student.encode_text(["a red circle", "sea"], progress=False), rtol=0, atol=1e-5
    )
    assert np.array_equal(vectors, load_onnx(folder).encode_text(["a red circle", "sea"]))  # JSON loses nothing
    code = (
        "sys.path.insert(0, '.')\nfrom query import encode\n"
        "v = encode('sea'); print(v.shape, v.dtype, encode([]).shape)"
    )
    done = python(code, folder=copy, blocked=blocked)
    assert done.stdout.strip() == "(1, 32) float32 (0, 32)", done.stderr
    for texts, message in (
        (["drum"], "not in the vocabulary: drum"),
        ([" "], "a text that is not empty"),
        ([], "usage"),
    ):
        done = python(run, *texts, folder=copy, blocked=blocked)
        assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1
    (copy / "text.onnx").write_bytes(b"\xff" * 999)
    done = python(run, "sea", folder=copy, blocked=blocked)
    assert done.returncode == 2 and "text.onnx: cannot be loaded" in done.stderr and done.stderr.count("\n") == 1
    (copy / "text.onnx").unlink()
    done = python(run, "sea", folder=copy, blocked=blocked)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "it has no text.onnx" in done.stderr


def test_texts_are_encoded_without_importing_torch(published: tuple[StudentModel, Path]) -> None:
    code = (
        "from teachclip import load_onnx\nprint(load_onnx(sys.argv[1]).encode_text(['a red circle']).shape,"
        " [name for name in ('torch', 'transformers', 'onnx') if name in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = python(code, published[1], folder=root, blocked=("torch", "transformers"))
    assert done.stdout.strip() == "(1, 32) []", done.stderr


def test_the_threads_of_a_server_share_one_student(published: tuple[StudentModel, Path]) -> None:
    loaded, texts = load_onnx(published[1], threads=1), ["a red circle", "sea", "a blue square"]
    alone = {text: load_onnx(published[1], threads=1).encode_text(text) for text in texts}
    with ThreadPoolExecutor(4) as pool:  # the first calls load the tower at the same time
        found = list(pool.map(lambda text: loaded.encode_text(text, progress=False), texts * 20))
    assert all(np.array_equal(vector, alone[text]) for text, vector in zip(texts * 20, found, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["right", "left"])
def test_every_kind_of_tokenizer_cuts_and_pads_as_the_processor(family: str, side: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer_of(family)
    tokenizer.truncation_side = side
    processor = StudentProcessor(
        tokenizer, FrameSampling("intervals", 4), max_tokens=9, pad_to=12 if "siglip" in family else None, pad_id=3
    )
    tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    tokenize = TextTokenizer(
        tmp_path,
        {
            "max_tokens": processor.max_tokens,
            "pad_to": processor.pad_to,
            "pad_id": processor.pad_id,
            "unknown_id": tokenizer.unk_token_id,
            "truncation_side": side,
            "split_special_tokens": False,
        },
    )
    tried = 0
    for texts in (
        [*WORDS],
        *([text] for text in ODD),
        ["a red circle", "sea " * 40],
        [tokenizer.eos_token],
        ["drum é"],
    ):
        try:
            expected = processor(text=texts)
        except DataError as error:
            with pytest.raises(ValueError) as other:
                tokenize(texts)
            assert str(other.value) == str(error)
            continue
        ids, mask = tokenize(texts)
        assert np.array_equal(ids, expected["input_ids"]) and np.array_equal(mask, expected["attention_mask"])
        tried += 1
    assert tried >= 4


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([""], "text 0 is '', expected a text that is not empty"),
        (["sea", "movie.mp4"], "text 1 is 'movie.mp4', the path of a video"),
        (["a drum"], "'a drum': not in the vocabulary: drum"),
        ([3], "text 0 is 3, expected"),
        (["sea \ud800"], "cannot be encoded as UTF-8"),
    ],
)
def test_texts_that_are_none_are_one_line(
    published: tuple[StudentModel, Path], texts: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=message.replace("(", r"\(")) as error:
        load_onnx(published[1]).encode_text(texts)
    assert "\n" not in str(error.value)

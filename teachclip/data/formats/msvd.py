"""MSVD (Chen and Dolan, ACL 2011): 1,970 clips of YouTube videos with 18 to 81 captions each; all of them are used.

- Captions, as `annotations` or in the folder that it names: raw-captions.pkl, a pickled dictionary from video id to
  lists of tokens (CLIP4Clip, X-CLIP, CLIP2Video, TeachCLIP); or captions_msvd.json, an object from video id to a list
  of sentences (X-Pool, Gorti et al., CVPR 2022).
- `train`, `validation`, `test`: train_list.txt, val_list.txt and test_list.txt beside them (1,200, 100 and 670
  videos), or other lists: one video id per line.

A pickle may hold only what a list of captions needs: nothing in it is imported or called.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, NoReturn

from teachclip.data.annotations.records import Annotations
from teachclip.data.formats.published import annotations_file, captions_of, check_texts, list_file, read_ids
from teachclip.data.formats.tables import kind_of, read_object
from teachclip.errors import DataError


def read(
    *, annotations: Path, train: Path | None = None, validation: Path | None = None, test: Path | None = None
) -> Annotations:
    """Read captions and lists. Caption ids are `video:index`. Raises DataError, naming file and line or video."""
    path = annotations_file(annotations, "raw-captions.pkl", "captions_msvd.json")
    is_json = path.suffix.lower() == ".json"
    content = read_object(path) if is_json else _read_pickle(path)
    texts = check_texts if is_json else _join_tokens
    lists = (("train_list.txt", train), ("val_list.txt", validation), ("test_list.txt", test))
    ids = [read_ids(list_file(annotations, name, custom)) for name, custom in lists]
    trained, validated, tested = (captions_of(split, content, path, texts) for split in ids)
    return Annotations(trained, validated, tested)


class _PlainUnpickler(pickle.Unpickler):
    """Reads dictionaries, lists, tuples, text and numbers; everything else in a pickle names a class or function."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise DataError(f"holds {module}.{name}; only dictionaries, lists and text are read")


def _read_pickle(path: Path) -> dict[str, Any]:
    """Return the dictionary of a pickle of Python 2 or 3. Raises DataError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if not data:
        raise DataError(f"{path} is empty")
    try:
        content = _PlainUnpickler(io.BytesIO(data), encoding="utf-8").load()
    except DataError as error:
        raise DataError(f"{path} {error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} holds text that is not UTF-8 (byte {error.object[error.start]:#04x})") from error
    except Exception as error:  # a damaged pickle raises almost anything
        raise DataError(
            f"{path} is not a pickle or damaged: {' '.join(str(error).split()) or type(error).__name__}"
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a dictionary of captions, found {kind_of(content)}")
    return content


def _join_tokens(where: str, value: Any) -> list[str]:
    """Return the captions of a list of lists of tokens."""
    if not isinstance(value, (list, tuple)):
        raise DataError(f"{where} must be a list of captions, found {kind_of(value)}")
    for number, tokens in enumerate(value):
        if not isinstance(tokens, (list, tuple)) or not all(isinstance(token, str) for token in tokens):
            raise DataError(f"{where}: caption {number} must be a list of words, found {kind_of(tokens)}")
    return check_texts(where, [" ".join(tokens) for tokens in value])

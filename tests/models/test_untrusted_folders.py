"""Folders that bring Python code: it never runs unless someone wrote that it may, whatever is piped in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from processes import run_fresh
from tiny_backbones import save_backbone
from tiny_models import tiny_student

from teachclip.errors import CheckpointError
from teachclip.models.student import load_student
from teachers import load_teacher

FILES = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
KINDS = ("AutoConfig", "AutoModel", "AutoProcessor", "AutoImageProcessor", "AutoVideoProcessor")


def arm(folder: Path, *, tokenizer: bool = True, model_type: str | None = None) -> Path:
    """Give a model's folder code that leaves the file `ran` behind. Returns the folder.

    `tokenizer`: its tokenizer can only be loaded by that code.
    """
    (folder / "theirs.py").write_text(
        f"from pathlib import Path\nPath({str(folder / 'ran')!r}).touch()\n"
        "from transformers import CLIPConfig, CLIPTokenizer\n"
        "class Config(CLIPConfig): pass\nclass Theirs(CLIPTokenizer): pass\n"
    )
    for name in FILES:
        content = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        content["auto_map"] = dict.fromkeys(KINDS, "theirs.Config") | {"AutoTokenizer": ["theirs.Theirs"] * 2}
        if tokenizer and name == "tokenizer_config.json":
            content["tokenizer_class"] = "Theirs"
        if model_type and name == "config.json":
            content["model_type"] = model_type
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A student, a CLIP, an encoder that only the code can make, and a student whose tokenizer needs no code."""
    root = tmp_path_factory.mktemp("untrusted")
    for name in ("student", "plain"):
        tiny_student().save_pretrained(root / name)
    save_backbone("clip", root / "clip")
    shutil.copytree(root / "clip", root / "unknown")
    arm(root / "student"), arm(root / "clip"), arm(root / "unknown", model_type="theirs")
    arm(root / "plain", tokenizer=False)
    return [root / name for name in ("student", "clip", "unknown", "plain")]


ROUTES = """
import sys
from pathlib import Path
import teachclip
from transformers import AutoModel
from teachclip.errors import TeachclipError
from teachclip.models.backbone import load_backbone, load_config
from teachclip.models.preprocessing import load_tokenizer
from teachclip.models.student import StudentModel, StudentProcessor
from teachers import load_teacher
routes = {
    "load_student": teachclip.load_student,
    "StudentModel": StudentModel.from_pretrained,
    "StudentProcessor": StudentProcessor.from_pretrained,
    "AutoModel": lambda folder: AutoModel.from_pretrained(folder) if "student" in folder else None,
    "load_backbone": load_backbone,
    "load_tokenizer": load_tokenizer,
    "dual_encoder": lambda folder: load_teacher("dual_encoder", folder),
    "video_encoder": lambda folder: load_teacher("video_encoder", folder),
}
for folder in sys.argv[1:]:
    for name, route in routes.items():
        try:
            route(folder)
            outcome = "loaded"
        except (TeachclipError, ValueError, OSError) as error:
            outcome = f"refused {error}".replace("\\n", " ")
        print(Path(folder).name, name, (Path(folder) / "ran").exists(), outcome, sep="|")
"""


def test_no_route_runs_the_code_of_a_folder_even_if_yes_is_piped_in(folders: list[Path]) -> None:
    done = run_fresh(ROUTES, *folders, stdin="y\n" * 100)
    assert done.returncode == 0, done.stderr
    assert "Do you wish to run" not in done.stdout
    lines = [line.split("|") for line in done.stdout.splitlines()]
    assert len(lines) == 4 * 8
    assert {ran for _, _, ran, _ in lines} == {"False"}
    found = {(folder, route): outcome for folder, route, _, outcome in lines}
    for refused in (("student", "load_student"), ("student", "AutoModel"), ("unknown", "dual_encoder")):
        assert "contains custom code" in found[refused], refused
    assert found["clip", "dual_encoder"] == "loaded"  # with transformers' own tokenizer of CLIP
    assert "model type 'theirs' cannot be loaded" in found["unknown", "load_student"]
    assert found["plain", "load_student"] == found["plain", "StudentProcessor"] == "loaded"


def test_the_code_runs_where_it_is_trusted_explicitly(folders: list[Path]) -> None:
    student, clip, *_ = folders
    with pytest.raises(CheckpointError, match="custom code"):
        load_student(student)
    assert load_student(student, trust_remote_code=True).encode_text("sea", progress=False).shape == (1, 32)
    assert load_teacher("dual_encoder", clip, trust_remote_code=True).preprocessing.max_tokens == 16
    assert (student / "ran").exists() and (clip / "ran").exists()
    for folder in (student, clip):
        (folder / "ran").unlink()


def test_a_saved_student_does_not_repeat_what_a_folder_named_as_its_code(folders: list[Path], tmp_path: Path) -> None:
    load_student(folders[-1]).save_pretrained(tmp_path)
    assert "theirs" not in (tmp_path / "config.json").read_text() + (tmp_path / "processor_config.json").read_text()
    assert not (tmp_path / "theirs.py").exists()

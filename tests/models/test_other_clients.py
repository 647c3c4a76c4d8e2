"""A saved student in the hands of transformers, Sentence Transformers, peft and the hub, in fresh processes too."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from huggingface_hub import HfApi
from processes import run_fresh
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.util.environment import check_version_requirements
from tiny_models import WIDTH, tiny_batch, tiny_processor, tiny_student
from torch.testing import assert_close
from transformers import AutoModel, AutoProcessor, AutoTokenizer, Trainer, TrainingArguments

from teachclip.data.video.sampling import FrameSampling
from teachclip.errors import CheckpointError, DataError
from teachclip.models.student import StudentConfig, StudentModel, load_student
from teachclip.models.student_folder import SENTENCE_TRANSFORMERS

CARD = "# A student\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved student with its card."""
    path = tmp_path_factory.mktemp("saved") / "student"
    student = tiny_student()
    student.card = CARD
    student.save_pretrained(path)
    return path


def interpreter(code: str, *arguments: object) -> str:
    """Run code in an interpreter that has imported nothing yet, outside the project's folder."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {ROOT!r})\n{code}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done.stdout


def fresh(code: str, *arguments: object) -> str:
    """Run code in a process that has imported transformers and Sentence Transformers and nothing of the project."""
    done = run_fresh(f"import sys\nassert 'teachclip' not in sys.modules\n{code}", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


ROOT = str(Path(__file__).parents[2])
CLIENTS = "from transformers import AutoModel, AutoProcessor\nfrom sentence_transformers import SentenceTransformer\n"
FIRST = f"import teachclip\nassert 'transformers' not in sys.modules\n{CLIENTS}options = {{}}\n"
LATER = f"{CLIENTS}import teachclip\nassert 'teachclip.models' not in sys.modules\noptions = {{}}\n"
NEVER = f"{CLIENTS}options = {{'trust_remote_code': True}}\n"


@pytest.mark.parametrize(
    ("run", "imports"), [(interpreter, FIRST), (fresh, LATER), (fresh, NEVER)], ids=["first", "later", "never"]
)
def test_a_fresh_process_loads_a_student_whenever_teachclip_is_imported(
    folder: Path, tmp_path: Path, run: Callable[..., str], imports: str
) -> None:
    code = (
        "processor = AutoProcessor.from_pretrained(sys.argv[1], **options)\n"
        "model = AutoModel.from_pretrained(sys.argv[1], **options)\n"
        "texts = processor(text=['a red circle'], padding=True, truncation=True)\n"
        "print(model.get_text_features(**texts).pooler_output.tolist())\n"
        "client = SentenceTransformer(sys.argv[1], device='cpu', **options)\n"
        "print(client.encode(['a red circle']).tolist())\n"
        "model.save_pretrained(sys.argv[2])\n"
    )
    copy = tmp_path / "copy"
    features, embeddings = map(json.loads, run(imports + code, folder, copy).splitlines()[-2:])
    wanted = tiny_student().encode_text(["a red circle"], progress=False)
    assert_close(torch.nn.functional.normalize(torch.tensor(features), dim=-1), wanted, atol=1e-6, rtol=0)
    assert_close(torch.tensor(embeddings), wanted, atol=1e-6, rtol=0)
    assert sorted(p.name for p in copy.iterdir()) == sorted(p.name for p in folder.iterdir())


def test_a_folder_says_which_package_is_missing(folder: Path) -> None:
    code = (
        "class Blocked:\n"
        "    def find_spec(name, *rest):\n"
        "        if name == 'teachclip': raise ModuleNotFoundError(\"No module named 'teachclip'\")\n"
        "sys.meta_path.insert(0, Blocked)\n"
        "from transformers import AutoModel, AutoProcessor\n"
        "for kind in (AutoModel, AutoProcessor):\n"
        "    try: kind.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "    except ImportError as error: print(error)\n"
    )
    assert fresh(code, folder).count("pip install teachclip") == 2


def test_sentence_transformers_names_the_missing_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "sentence_transformers.util.environment.get_installed_version"
    monkeypatch.setattr(name, lambda package: None)
    requirements = json.loads((folder / "config_sentence_transformers.json").read_text())["requirements"]
    with pytest.raises(ImportError, match=r"teachclip.*not installed"):
        check_version_requirements(requirements, source="student")


def test_a_round_trip_through_sentence_transformers_keeps_all(folder: Path, tmp_path: Path) -> None:
    client = SentenceTransformer(str(folder), device="cpu", prompts={"query": "a "})
    client.save_pretrained(str(tmp_path / "again"))
    again = SentenceTransformer(str(tmp_path / "again"), device="cpu")
    assert again.prompts["query"] == "a "
    assert_close(torch.tensor(again.encode("sea")), torch.tensor(client.encode("sea")), atol=0, rtol=0)
    saved = json.loads((tmp_path / "again" / "config_sentence_transformers.json").read_text())
    assert saved["requirements"] == SENTENCE_TRANSFORMERS["config_sentence_transformers.json"]["requirements"]


# Revisions


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub cache with two revisions of somebody/student; the second lies in a subfolder and has another plan."""
    root = tmp_path_factory.mktemp("hub")
    repository = root / "models--somebody--student"
    (repository / "refs").mkdir(parents=True)
    for number, (name, sub, frames) in enumerate([("main", "", 4), ("v2", "sub", 3)]):
        commit = str(number) * 40
        (repository / "refs" / name).write_text(commit)
        student = tiny_student(seed=number)
        student.processor = tiny_processor(frame_sampling=FrameSampling("intervals", frames))
        student.card = name
        student.save_pretrained(repository / "snapshots" / commit / sub)
    return root


@pytest.mark.parametrize("load", [load_student, StudentModel.from_pretrained, AutoModel.from_pretrained])
def test_weights_processor_and_card_are_of_one_revision(cache: Path, load: Any) -> None:
    where = {"cache_dir": cache, "local_files_only": True}
    first = load("somebody/student", **where)
    second = load("somebody/student", revision="v2", subfolder="sub", token=None, **where)
    assert (first.processor.sampling.count, second.processor.sampling.count) == (4, 3)
    assert (first.card, second.card) == ("main", "v2")
    for found, seed in ((first, 0), (second, 1)):
        assert torch.equal(found.aggregation.hidden.weight, tiny_student(seed=seed).aggregation.hidden.weight)
    plan = AutoProcessor.from_pretrained("somebody/student", revision="v2", subfolder="sub", **where).sampling
    assert plan.count == 3


def test_an_unknown_argument_is_named() -> None:
    with pytest.raises(TypeError, match="no argument 'revison'; did you mean revision"):
        load_student("somebody/student", revison="v2")


# Configurations that others wrote


def test_keys_that_others_write_do_not_keep_a_student_from_loading(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "student")
    path = tmp_path / "student" / "config.json"
    theirs = {"use_cache": False, "pad_token_id": 3, "torchscript": True, "from_the_future": {"a": 1}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **theirs}))
    assert AutoModel.from_pretrained(tmp_path / "student").config.torchscript is True
    load_student(tmp_path / "student").save_pretrained(tmp_path / "again")
    assert load_student(tmp_path / "again").config.pad_token_id == 3


def test_a_key_that_looks_misspelled_in_a_saved_configuration_is_logged(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(folder, tmp_path / "student")
    path = tmp_path / "student" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_frame": 3, "use_cache": True, "problem": "x"}))
    load_student(tmp_path / "student")
    assert "max_frame is unknown and has no effect; did you mean max_frames?" in caplog.text
    assert "problem is" not in caplog.text and "use_cache" not in caplog.text


def test_unknown_options_are_refused_when_a_student_is_built() -> None:
    with pytest.raises(CheckpointError, match="temporal_layer is unknown"):
        StudentConfig(temporal_layer=3)
    with pytest.raises(CheckpointError, match="poling is unknown"):
        tiny_student(poling="mean")


class TextVideoTrainer(Trainer):
    def compute_loss(self, model: Any, inputs: Any, **rest: Any) -> torch.Tensor:
        return -model(**inputs).logits_per_text.diag().mean()


def test_a_checkpoint_of_the_trainer_of_transformers_loads_and_continues(tmp_path: Path) -> None:
    batch = tiny_batch()
    pairs = [{name: tensor[row] for name, tensor in batch.items()} for row in range(3)]
    AcceleratorState._reset_state(True)
    for steps in (1, 2):
        options: dict[str, Any] = {"max_steps": steps, "save_steps": 1, "report_to": [], "use_cpu": True}
        trainer = TextVideoTrainer(tiny_student(), TrainingArguments(str(tmp_path), **options), train_dataset=pairs)
        trainer.train(resume_from_checkpoint=steps > 1)
    AcceleratorState._reset_state(True)  # a process has one; other tests make their own
    trained = load_student(tmp_path / "checkpoint-2")
    assert torch.equal(trained.aggregation.hidden.weight, trainer.model.aggregation.hidden.weight)
    assert trained.encode_text("sea", progress=False).shape == (1, WIDTH)


def test_outputs_are_tuples_where_asked() -> None:
    student, batch = tiny_student(), tiny_batch()
    wanted = student(**batch)
    found = student(**batch, return_dict=False)
    assert isinstance(found, tuple) and torch.equal(found[0], wanted.logits_per_text)
    ids, pixels = ({key: batch[key]} for key in ("input_ids", "pixel_values"))
    for method, inputs in ((student.get_text_features, ids), (student.get_video_features, pixels)):
        assert torch.equal(method(**inputs, return_dict=False)[1], method(**inputs).pooler_output)
    student.config.return_dict = False
    assert isinstance(student(**batch), tuple)


def test_the_call_of_peft_works_and_arguments_of_other_models_are_refused() -> None:
    student, batch = tiny_student(), tiny_batch()
    unused = dict.fromkeys(("inputs_embeds", "output_attentions", "output_hidden_states", "return_dict"))
    assert torch.equal(student(**batch, **unused).logits_per_text, student(**batch).logits_per_text)
    with pytest.raises(DataError, match="no argument 'inputs_embeds'"):
        student(inputs_embeds=torch.ones(1, 2, WIDTH))


def test_weights_of_compiled_modules_load(folder: Path, tmp_path: Path) -> None:
    wanted = load_file(folder / "model.safetensors")
    for name, rename in (
        ("whole", lambda key: f"_orig_mod.{key}"),
        ("part", lambda key: key.replace("backbone.", "backbone._orig_mod.")),
    ):
        shutil.copytree(folder, tmp_path / name)
        renamed = {rename(key): tensor for key, tensor in wanted.items()}
        save_file(renamed, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
        found = load_student(tmp_path / name).state_dict()
        assert all(torch.equal(found[key], tensor) for key, tensor in wanted.items())


# Types of numbers


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"pooling": "mean"}, {"adapters": ["frame", "pooled", "text"]}])
def test_features_have_the_dtype_of_the_model(dtype: torch.dtype, options: dict[str, Any]) -> None:
    student, batch = tiny_student(**options).to(dtype), tiny_batch()
    text = student.get_text_features(batch["input_ids"])
    video = student.get_video_features(batch["pixel_values"].to(dtype), batch["frame_mask"])
    assert {text.pooler_output.dtype, video.pooler_output.dtype, video.last_hidden_state.dtype} == {dtype}


def test_texts_and_videos_match_in_sentence_transformers_in_half_precision(folder: Path) -> None:
    client = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": "float16"})
    video = torch.randint(0, 255, (4, 3, 40, 50), dtype=torch.uint8)
    found = [client.encode([item], convert_to_tensor=True) for item in ("sea", {"video": video})]
    assert {vector.dtype for vector in found} == {torch.float16}
    assert client.similarity(*found).shape == (1, 1)


# One length of texts


def test_tokenizer_processor_and_sentence_transformers_cut_at_the_same_token(folder: Path) -> None:
    text = "a red circle over a blue square over a red sea over a blue sea"
    tokenizer, processor = AutoTokenizer.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    client = SentenceTransformer(str(folder), device="cpu")
    assert client.max_seq_length == 10

    def cuts() -> list[list[int]]:
        own = processor(text=text, padding=True, truncation=True)["input_ids"]
        return [
            tokenizer(text, truncation=True)["input_ids"],
            own[0].tolist(),
            client.preprocess([text])["input_ids"][0].tolist(),
        ]

    for length in (10, 6, 12):
        client.max_seq_length = tokenizer.model_max_length = processor.tokenizer.model_max_length = length
        assert [len(ids) for ids in cuts()] == [length] * 3
        assert cuts()[0] == cuts()[1] == cuts()[2]
    processor.save_pretrained(folder.parent / "twelve")
    assert AutoProcessor.from_pretrained(folder.parent / "twelve").max_tokens == 12
    assert AutoTokenizer.from_pretrained(folder.parent / "twelve").model_max_length == 12
    shorter = SentenceTransformer(str(folder), device="cpu", processor_kwargs={"model_max_length": 5})
    assert len(shorter.preprocess([text])["input_ids"][0]) == shorter.max_seq_length == 5


# Pushing


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that gets what is pushed; `calls` of the class holds the arguments."""

    class Repository:
        repo_id = "somebody/student"

    def upload(self: HfApi, *, folder_path: str, repo_id: str, **rest: Any) -> str:
        assert repo_id == Repository.repo_id
        shutil.copytree(folder_path, tmp_path / "pushed", dirs_exist_ok=True)
        return "address"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **rest: Repository)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    yield tmp_path / "pushed"


def test_pushing_pushes_what_is_saved(folder: Path, hub: Path, tmp_path: Path) -> None:
    student = load_student(folder)
    assert student.push_to_hub("student", private=True) == "address"
    assert sorted(path.name for path in hub.iterdir()) == sorted(path.name for path in folder.iterdir())
    assert (hub / "README.md").read_text() == CARD
    shutil.rmtree(hub)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "private.txt").write_text("mine")
    student.save_pretrained(tmp_path / "out", push_to_hub=True, repo_id="student")
    assert sorted(path.name for path in hub.iterdir()) == sorted(path.name for path in folder.iterdir())

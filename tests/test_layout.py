"""The shape of the project: imports go one way, importing is light, nothing unsafe is opened, modules stay small."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

from teachclip.scorer import TeacherFactories, TeacherTraits

ROOT = Path(__file__).parents[1]
MODULES = sorted([*ROOT.glob("teachclip/**/*.py"), *ROOT.glob("teachers/*.py")])

# Each layer may import itself and those above it.
LAYERS = [
    {"errors", "registry", "processes", "console", "background", "auto_classes", "__init__"},
    {"store"},
    {"recipe"},
    {"data", "models", "losses", "scorer"},
    {"scoring"},
    {"evaluation", "training", "reports", "onnx", "search"},
    {"pipeline"},
    {"pretraining"},
    {"datasets"},
    {"shapes"},
    {"data_check", "diagnosis", "integrations", "server", "texts"},
    {"studies", "demo", "start"},
    {"cli", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


@functools.cache
def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path, *, lazy=True):
    """Yield the modules that a file imports; with `lazy=False` only those imported at its top level."""
    tree = parsed(path)
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(module):
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 and pieces[1] in LEVEL else "__init__"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    relative = path.relative_to(ROOT)
    inside = relative.parts[0]
    own = part(".".join(relative.with_suffix("").parts))
    for module in imported(path):
        if inside == "teachclip":
            assert not module.startswith("teachers"), f"{relative} imports {module}; teachers are found by name"
        if module.startswith("teachclip."):
            allowed = {"errors", "scorer", "models", "registry"} if inside == "teachers" else set()
            found = part(module)
            if inside == "teachers":
                assert found in allowed, f"{relative} imports {module}"
            elif own not in ("__init__",):
                assert LEVEL[found] <= LEVEL[own], f"{relative} imports {module}"


def test_every_part_has_a_layer():
    parts = {
        path.relative_to(ROOT / "teachclip").parts[0].removesuffix(".py")
        for path in MODULES
        if "teachclip" in str(path.relative_to(ROOT).parts[0])
    }
    assert parts <= set(LEVEL), parts - set(LEVEL)


@pytest.mark.parametrize(
    ("package", "homes"),
    [
        ("decord", ["teachclip/data_check/benchmark.py"]),
        ("av", ["teachclip/data/video/"]),
        ("accelerate", ["teachclip/training/", "teachclip/pipeline/"]),
        ("pickle", ["teachclip/models/checkpoints.py", "teachclip/data/formats/msvd.py"]),
        ("minigrid", ["teachclip/datasets/babyai/"]),
        ("fontTools", ["teachclip/datasets/pictograms/"]),
        ("matplotlib", ["teachclip/reports/figures.py"]),
        ("lancedb", ["teachclip/search/engines/lance.py", "teachclip/integrations/lancedb.py"]),
        ("peft", ["teachclip/pipeline/lora.py"]),
        ("pymilvus", ["teachclip/search/engines/milvus.py"]),
        ("scenedetect", ["teachclip/data/video/shots.py"]),
        ("sentence_transformers", ["teachers/sentence_models.py"]),
        ("sqlite3", ["teachclip/search/"]),
        ("onnx", ["teachclip/onnx/"]),
        ("onnxruntime", ["teachclip/onnx/"]),
    ],
)
def test_a_package_is_imported_in_its_home_only(package, homes):
    for path in MODULES:
        names = {module.split(".")[0] for module in imported(path)}
        relative = str(path.relative_to(ROOT))
        assert package not in names or any(relative.startswith(home) for home in homes), relative


MODELS = ["torch", "transformers", "accelerate", "av", "decord", "matplotlib"]


@pytest.mark.parametrize(
    "imports",
    [  # one after the other in one process, and what must not be loaded then
        {
            "import teachclip": [*MODELS, "numpy"],
            "import teachclip.cli.main": MODELS,
            "import teachclip.recipe.loading": MODELS,
            "import teachclip.store.array_store": MODELS,
        },
        {
            "from teachclip import load_student": ["matplotlib", "pebble", "onnx", "onnxruntime"],
            "import teachclip.pipeline.export": ["onnx", "onnxruntime", "onnxscript"],
        },
        {
            "from teachclip import load_onnx": ["torch", "transformers", "onnx", "accelerate", "av", "pebble"],
            "import teachclip.server.app": ["torch", "transformers", "lancedb", "onnx"],
        },
    ],
    ids=["commands", "students", "onnx"],
)
def test_importing_stays_light(imports):
    code = "import sys"
    for statement, heavy in imports.items():
        code += f"\n{statement}\nprint({statement!r}, [name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines() == [f"{statement} []" for statement in imports]


def test_nothing_is_unpickled():
    for path in MODULES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
                owner = getattr(node.func.value, "id", "")
                keywords = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
                assert owner != "pickle", path
                assert owner != "torch" or keywords.get("weights_only") is True, path
                assert owner not in ("np", "numpy") or keywords.get("allow_pickle") is False, path


def test_optional_attributes_of_a_teacher_are_read_in_the_contract_only():
    optional = {*TeacherTraits.__dataclass_fields__, *TeacherFactories.__dataclass_fields__}
    optional |= {"training_logits", "text_adapter", "backbone"}
    for path in MODULES:
        if path.name == "scorer.py" or path.parent.name == "teachers":
            continue
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr"):
                name = getattr(node.args[1], "value", None)
                assert name not in optional, f"{path}:{node.lineno} reads {name}; teachclip/scorer.py does that"


MODULE_LINES, FUNCTION_LINES = 450, 60


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_functions_stay_readable(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MODULE_LINES
    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES
    }
    assert not long


def test_names_of_test_files_are_unique():
    """pytest imports them by their names alone."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []

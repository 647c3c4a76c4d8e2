import subprocess
import sys
from pathlib import Path

import pytest

from teachclip.cli import keys
from teachclip.cli.arguments import command
from teachclip.cli.main import COMMANDS, main
from teachclip.errors import DataError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_screen_and_names_every_option_once(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 100
    assert lines[0].startswith(f"usage: teachclip {command}")
    described = [line.split()[0] for line in lines if line.startswith("  --")]
    assert len(described) == len(set(described))


def test_the_list_of_commands_fits_a_screen(capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 120
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["distil"], "unknown command 'distil'; did you mean distill?"),
        (["distill"], "RECIPE is missing; usage: teachclip distill"),
        (["distill", "shapes_xpool", "--dryrun"], "unknown argument '--dryrun'; did you mean --dry-run?"),
        (["evaluate", "shapes_xpool", "--split", "tests"], "--split: invalid choice: 'tests' (choose from"),
        (["export", "shapes_xpool"], "--out is missing"),
        (["keys", "losess"], "no recipe key begins with 'losess'; did you mean losses"),
        (["distill", "no_such_recipe"], "no_such_recipe.yaml is in none of"),
    ],
)
def test_usage_errors_are_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    assert captured.err.startswith("error: ") and message in captured.err


def test_keys_lists_each_key_once_with_default_and_meaning(capsys):
    assert keys.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines]
    assert len(names) == len(set(names)) and {"seed", "optimizer.lr", "teachers.0.checkpoint"} <= set(names)
    assert keys.main(["optimizer.lr"]) == 0
    assert capsys.readouterr().out == (
        "optimizer.lr  (default 0.0001)  rate of new parameters (temporal transformer, teacher head)\n"
    )


def test_every_command_has_a_tool_and_every_tool_a_command():
    tools = {path.stem for path in (ROOT / "tools").glob("*.py")} - {"_bootstrap"}
    assert tools == {name.replace("-", "_") for name in COMMANDS}


def test_a_tool_runs_from_another_folder_without_installing_anything(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "keys.py"), "seed"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith("seed  (default 42)")


def test_output_that_is_closed_ends_a_command_quietly():
    shell = f"{sys.executable} -m teachclip keys | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 141) and done.stderr == "" and len(done.stdout.splitlines()) == 1


def test_an_error_about_megabytes_of_text_is_cut(capsys):
    @command
    def fails(argv):
        raise DataError(f"a.txt: line 1: video {'x' * 10**6!r} is unknown\nb.txt: is empty")

    assert fails([]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert len(first) < 2100 and first.startswith("error: a.txt: line 1: video 'xxx") and first.endswith("is unknown")
    assert second == "error: b.txt: is empty"

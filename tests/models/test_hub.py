"""A hub that cannot be reached is said to be so at once; what is here needs no hub."""

from __future__ import annotations

import socket

import pytest
from huggingface_hub import constants

from teachclip import load_student
from teachclip.errors import CheckpointError
from teachclip.models.backbone import load_backbone
from teachclip.models.hub import require_reachable


@pytest.fixture
def online(monkeypatch):
    """Let the hub be asked, and count how often; nothing of it answers."""
    asked = []

    def refuse(address, timeout):
        asked.append((address, timeout))
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr("teachclip.models.hub.urllib.request.getproxies", dict)
    return asked


@pytest.mark.parametrize("load", [load_student, load_backbone])
def test_it_is_said_at_once_with_what_to_do(online, load):
    with pytest.raises(CheckpointError) as caught:
        load("openai/clip-vit-base-patch32")
    message = str(caught.value)
    assert message.startswith(
        "openai/clip-vit-base-patch32: there is no such file or folder, and https://huggingface"
    )
    assert "cannot be reached (Name or service not known)" in message
    assert "hf download openai/clip-vit-base-patch32 --local-dir FOLDER" in message and "\n" not in message
    assert online == [(("huggingface.co", 443), 5.0)]


def test_what_is_here_or_cached_asks_nobody(online, tmp_path, monkeypatch):
    require_reachable(tmp_path)
    require_reachable("a/b/c")  # no name of a repository
    require_reachable("some/model", local_files_only=True)
    cached = tmp_path / "models--some--model"
    (cached / "snapshots" / "abc").mkdir(parents=True)
    (cached / "snapshots" / "abc" / "config.json").write_text("{}")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    require_reachable("some/model", cache_dir=tmp_path)
    monkeypatch.setattr("teachclip.models.hub.urllib.request.getproxies", lambda: {"https": "http://proxy"})
    require_reachable("other/model")
    assert online == []


def test_a_hub_that_answers_is_used(online, monkeypatch):
    monkeypatch.setattr(socket, "create_connection", lambda address, timeout: socket.socket())
    require_reachable("some/model")

"""The JSON API: what it finds is what the index finds, and it gives the index's own files alone."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from indexing import update
from PIL import Image
from served import HOSTILE, running
from tiny_models import tiny_student

from teachclip import decode_frames
from teachclip.cli import serve
from teachclip.data.video.sampling import FrameSampling
from teachclip.search.index import VideoIndex
from teachclip.search.update import Wanted
from teachclip.server.network import address_of, is_local

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def client(address):
    with httpx.Client(base_url=address, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def videos(client):
    """The id of each video by the name of its file."""
    return {Path(video["path"]).name: video["id"] for video in client.get("/api/videos").json()}


def test_a_search_finds_what_the_index_finds(client, film_index):
    found = client.get("/api/search", params={"text": "a red circle", "limit": 3}).json()
    with VideoIndex.open(film_index) as index:
        expected = index.search("a red circle", limit=3)
    assert [one["video"]["path"] for one in found["results"]] == [one.path for one in expected]
    np.testing.assert_allclose([one["score"] for one in found["results"]], [one.score for one in expected], atol=1e-6)
    ids = [[part["id"] for part in one["parts"]] for one in found["results"]]
    assert ids == [[part.id for part in one.parts] for one in expected]
    assert found["milliseconds"] > 0


def test_filters_examples_and_what_to_turn_away_from(client, videos):
    def names(**query):
        found = client.get("/api/search", params=query).json()["results"]
        return [Path(one["video"]["path"]).name for one in found]

    assert names(text="a circle", filter="folder=holiday") == ["three.mp4"]
    assert set(names(text="a circle", filter=["length>=5", "path~.mp4"])) == {"two.mp4", "three.mp4", HOSTILE}
    assert names(like=videos["two.mp4"])[0] == "two.mp4"
    assert names(like=f"{videos['three.mp4']}-1")[0] == "three.mp4"
    assert names(text="a circle") != names(text="a circle", minus="a red square")


def test_a_time_line_scores_every_part(client, videos, film_index):
    content = client.get(f"/api/videos/{videos['three.mp4']}", params={"text": "a circle"}).json()
    assert content["video"]["length"] == pytest.approx(16)
    assert [part["start"] for part in content["parts"]] == [0.0, 5.0]
    with VideoIndex.open(film_index) as index:
        (best,) = index.search("a circle", within=videos["three.mp4"])
    assert max(part["score"] for part in content["parts"]) == pytest.approx(best.score, abs=1e-5)
    plain = client.get(f"/api/videos/{videos['three.mp4']}").json()
    assert {part["score"] for part in plain["parts"]} == {None}


def test_a_time_line_shows_each_part_once_though_it_has_several_vectors(films, tmp_path):
    tiny_student(vectors=3).save_pretrained(tmp_path / "student")
    update(tmp_path / "index", [films], Wanted(str(tmp_path / "student")))
    with VideoIndex.open(tmp_path / "index") as index, running(tmp_path / "index") as address:
        video, vector = index.video("three.mp4"), index.query_vector("a circle")
        rows, scores = index.parts(video.id), index.vectors([video.id])
        for query in ({"text": "a circle"}, {}):
            parts = httpx.get(f"{address}/api/videos/{video.id}", params=query, timeout=60).json()["parts"]
            assert [(part["start"], part["end"]) for part in parts] == [(0.0, 10.0), (5.0, 16.0)] and len(rows) == 6
            for part in parts if query else []:
                own = {row.id: float(scores[row.id] @ vector) for row in rows if row.start == part["start"]}
                assert part["id"] == max(own, key=own.get)
                assert part["score"] == pytest.approx(max(own.values()), abs=1e-6)


def test_an_index_says_what_is_in_it(client):
    about = client.get("/api/index").json()
    assert (about["videos"], about["unreadable"], about["incomplete"]) == (5, 1, 0)
    assert {"path", "folder", "length"} <= set(about["columns"]) and about["student"] == "student"


@pytest.mark.parametrize("name", ["three.mp4", "old.avi"])
@pytest.mark.parametrize("seconds", [0.0, 0.3, 2.25, 4.4, 99.0])
def test_a_picture_is_the_frame_that_is_shown_then(client, videos, films, name, seconds):
    answer = client.get(f"/api/videos/{videos[name]}/picture.jpg", params={"seconds": seconds, "width": 128})
    assert answer.headers["content-type"] == "image/jpeg"
    picture = np.asarray(Image.open(io.BytesIO(answer.content))).astype(int)
    path, last = next(films.rglob(name)), {"three.mp4": 159, "old.avi": 49}[name]
    frame = min(int(seconds * 10 + 1e-6), last)
    one = FrameSampling("intervals", 1)

    def away(number):
        shown = decode_frames(path, one, start=number / 10, end=(number + 1) / 10)[0]
        return np.abs(picture - shown.permute(1, 2, 0).numpy().astype(int)).mean()

    assert away(frame) < 0.6 * away(frame - 1 if frame else 1)  # a JPEG is never exact


def test_pictures_are_as_wide_as_asked_and_no_wider_than_the_film(client, videos):
    for width, found in ((64, 64), (640, 128)):
        answer = client.get(f"/api/videos/{videos['one.mp4']}/picture.jpg", params={"width": width})
        assert Image.open(io.BytesIO(answer.content)).width == found


def test_a_file_comes_whole_or_in_ranges(client, videos, films):
    content = (films / "two.mp4").read_bytes()
    address = f"/api/videos/{videos['two.mp4']}/file"
    answer = client.get(address)
    assert answer.content == content and answer.headers["content-type"] == "video/mp4"
    for wanted, part in (("bytes=10-19", content[10:20]), ("bytes=-7", content[-7:]), ("bytes=5-", content[5:])):
        answer = client.get(address, headers={"Range": wanted})
        assert answer.status_code == 206 and answer.content == part
        assert answer.headers["content-range"].endswith(f"/{len(content)}")
    assert client.get(address, headers={"Range": f"bytes={len(content)}-"}).status_code == 416
    answer = client.head(address)
    assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", str(len(content)))


@pytest.mark.parametrize(
    ("path", "status", "part"),
    [
        ("/api/videos/0123456789abcdef", 404, "the index has no video 0123456789abcdef"),
        ("/api/videos/0123456789abcdef/file", 404, "the index has no video"),
        ("/api/videos/0123456789abcdef/picture.jpg", 404, "the index has no video"),
        ("/api/videos/one.mp4/file", 422, "video: "),
        ("/api/videos/%2Fetc%2Fpasswd/file", 404, ""),
        ("/api/videos/..%2F..%2Fetc%2Fpasswd/file", 404, ""),
        ("/..%2f..%2f..%2fetc/passwd", 404, ""),
        ("/%2e%2e/app.py", 404, ""),
        ("/api/search", 400, "nothing to search"),
        ("/api/search?text=%20%20", 400, "nothing to search"),
        ("/api/search?text=a&like=/etc/passwd", 422, "like: "),
        ("/api/search?text=a&like=0123456789abcdef", 400, "0123456789abcdef"),
        ("/api/search?text=a&limit=0", 422, "limit: "),
        ("/api/search?text=a&limit=many", 422, "limit: "),
        ("/api/search?text=a&filter=lenght%3E%3D3", 400, "lenght"),
        ("/api/search?text=a&minus=a", 400, "nothing is left to search"),
        ("/api/nothing", 404, "Not Found"),
    ],
)
def test_mistakes_are_one_line(client, path, status, part):
    answer = client.get(path)
    assert answer.status_code == status, answer.text
    if part:
        message = answer.json()["error"]
        assert part in message and "\n" not in message


def test_other_methods_and_long_texts_are_refused(client):
    assert client.post("/api/search", json={"text": "a"}).status_code == 405
    assert client.get("/api/search", params={"text": "a" * 1001}).status_code == 422


def test_two_hundred_queries_at_once_get_their_own_answers(address, film_index):
    words = ("red", "blue", "circle", "square", "a")
    texts = [" ".join(words[(number >> place) % 5] for place in range(0, 8, 2)) for number in range(200)]
    with VideoIndex.open(film_index) as index:
        expected = {text: index.search(text, limit=2)[0].score for text in set(texts)}
    with httpx.Client(base_url=address, timeout=120, limits=httpx.Limits(max_connections=200)) as client:

        def ask(text):
            return client.get("/api/search", params={"text": text, "limit": 2}).json()["results"][0]["score"]

        with ThreadPoolExecutor(200) as executor:
            scores = list(executor.map(ask, texts))
    np.testing.assert_allclose(scores, [expected[text] for text in texts], atol=1e-5)


def test_answers_forbid_whatever_is_from_elsewhere(client):
    for path in ("/", "/page.js", "/api/index", "/api/nothing"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", client.get("/").text)


def test_other_names_for_this_machine_are_refused(client):
    for name, status in (
        ("evil.example", 400),
        ("localhost:8000", 200),
        ("[::1]:80", 200),
        ("127.0.0.2:80", 200),
        ("10.0.0.1", 400),
    ):
        assert client.get("/api/index", headers={"Host": name}).status_code == status


def test_a_token_is_asked_for_and_kept_in_a_cookie(film_index):
    with running(film_index, token="secret") as address, httpx.Client(base_url=address, timeout=60) as client:
        for path in ("/", "/page.js", "/api/index", "/api/videos/0123456789abcdef/file", "/?token=wrong"):
            answer = client.get(path)
            assert answer.status_code == 401 and "needs its token" in answer.json()["error"]
        assert client.get("/api/index", headers={"Authorization": "Bearer secret"}).status_code == 200
        answer = client.get("/?text=a&token=secret")
        assert answer.status_code == 303 and answer.headers["location"] == "/?text=a"
        assert client.get(f"{address}//evil.example/?token=secret").headers["location"] == "/evil.example/"
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=strict" in cookie
        assert client.get("/api/index", headers={"Host": "nas.local"}).status_code == 200


def test_files_that_went_or_broke_are_said_to_be_so(own_films):
    films, index = own_films
    with running(index) as address, httpx.Client(base_url=address, timeout=60) as client:
        videos = {Path(video["path"]).name: video["id"] for video in client.get("/api/videos").json()}
        (films / "one.mp4").unlink()
        (films / "two.mp4").write_bytes(b"junk" * 100)
        for kind in ("file", "picture.jpg"):
            answer = client.get(f"/api/videos/{videos['one.mp4']}/{kind}")
            assert answer.status_code == 404 and "the file is not there any more" in answer.json()["error"]
        answer = client.get(f"/api/videos/{videos['two.mp4']}/picture.jpg")
        assert answer.status_code == 502 and "no picture can be made" in answer.json()["error"]
        assert client.get("/api/search", params={"text": "a"}).status_code == 200


def test_the_api_describes_itself(client):
    description = client.get("/api/openapi.json").json()
    assert {"/api/search", "/api/videos/{video}", "/api/index"} <= set(description["paths"])
    assert description["components"]["schemas"]["Found"]["properties"]["score"]["type"] == "number"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_what_this_machine_alone_can_reach(host):
    assert is_local(host)


def test_what_others_can_reach():
    assert not any(map(is_local, ("0.0.0.0", "::", "192.168.1.5", "nas.local")))
    assert address_of("::1", 80, None) == "http://[::1]:80/" and address_of("h", 1, "t") == "http://h:1/?token=t"


def test_mistakes_in_serving_are_one_line(film_index, tmp_path, capsys, address):
    taken = address.rpartition(":")[2]
    for arguments, part in (
        ([str(tmp_path)], "there is no index here"),
        ([str(film_index), "--port", taken], f"cannot listen on 127.0.0.1:{taken}: "),
        ([str(film_index), "--token", "a b&c"], "allowed: letters, digits and . _ ~ -"),
        ([str(film_index), "--host", "256.0.0.1"], "cannot listen on 256.0.0.1:8000: "),
    ):
        assert serve.main(arguments) == 2
        errors = capsys.readouterr().err.splitlines()
        assert errors[-1].startswith("error: ") and part in errors[-1]


def test_the_command_serves_until_it_is_interrupted_though_a_film_is_paused(own_films):
    films, film_index = own_films
    padding = 32 << 20  # more than sockets hold
    with open(films / "one.mp4", "ab") as film:
        film.write(padding.to_bytes(4, "big") + b"free")
        film.truncate(film.tell() + padding - 8)
    update(film_index)
    command = [sys.executable, "-m", "teachclip", "serve", str(film_index), "--port", "0", "--host", "0.0.0.0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        line = process.stderr.readline()
        port, token = re.search(r"open http://0\.0\.0\.0:(\d+)/\?token=(\S+)", line).groups()
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            assert client.get("/api/index").status_code == 401
            headers = {"Authorization": f"Bearer {token}"}
            video = client.get("/api/videos", headers=headers).json()[0]["id"]
            assert client.get(f"/api/videos/{video}/picture.jpg", headers=headers).status_code == 200
            sizes = {one["id"]: one["bytes"] for one in client.get("/api/videos", headers=headers).json()}
            with client.stream("GET", f"/api/videos/{max(sizes, key=sizes.get)}/file", headers=headers) as paused:
                assert int(paused.headers["content-length"]) > padding
                process.send_signal(signal.SIGINT)
                assert process.wait(30) == 130 and "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()

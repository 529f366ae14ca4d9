"""The page in Chromium, with a tiny real model: what people do, and what goes wrong."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bert_export import demo_server, javascript
from tests.page import modules, tiny_page

LONG = "the money of the river " * 450 + "he sat on the bank of the river"
TEXTS = [
    ("emoji", "😀😀 sat on the bank 👨\u200d👩\u200d👧 of the river", "bank"),
    ("emoji itself", "the money 😀 of the river", "😀"),
    ("right to left", "بنك ك ب ن بنك", "بنك"),
    ("chinese", "he sat on 北京银行", "北京"),
    ("folded", "a Straße of money", "Straße"),
    ("accents", "e\u0301e\u0301 BANK of money", "BANK"),
    ("long", LONG, "bank"),
]


@pytest.fixture(scope="module")
def chromium() -> str:
    found = javascript.chromium()
    if found is None:
        pytest.skip("Chromium was not found: install chromium or set CHROMIUM_PATH")
    return str(found)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(tiny_page.artifact(), tmp_path / "artifact"))


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with tiny_page.serving(tiny_page.artifact()) as url:
        yield url


def browse(scenario: str, url: str, chromium: str, argument: str = "") -> Any:
    packages = str(tiny_page.packages())
    return modules.run("browse.mjs", scenario, url, packages, chromium, argument)


def assert_scores(
    ranking: list[dict[str, Any]], text: str, start: int, surface: str
) -> None:
    """The page gives what the trained graph gives, best first."""
    expected = tiny_page.scores(text, start, start + len(surface))
    found = {row["id"]: row["score"] for row in ranking}
    assert found.keys() == expected.keys()
    for entity_id, score in expected.items():
        assert found[entity_id] == pytest.approx(score, abs=1e-4)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    shares = np.exp(list(found.values()))
    for row, share in zip(ranking, 100 * shares / shares.sum()):
        assert float(row["share"].removesuffix(" %")) == pytest.approx(share, abs=0.51)


def test_a_users_whole_path(address: str, chromium: str) -> None:
    found = browse("path", address, chromium)
    first, _, third = tiny_page.EXAMPLES
    assert_scores(found["example"], first.text, first.start, "bank")
    assert_scores(found["second"], third.text, third.start, "北京")
    assert_scores(found["typed"], "bank of money", 0, "bank")
    assert found["active"].startswith("WASM is active: SIMD, ")


def test_with_the_keyboard_only(address: str, chromium: str) -> None:
    found = browse("keyboard", address, chromium)
    assert_scores(found["selected"], "river of money", 0, "river")


def test_every_backend_ranks_alike(address: str, chromium: str) -> None:
    found = browse("backends", address, chromium)
    example = tiny_page.EXAMPLES[0]
    assert set(found) == {"cpu", "webgl", "wasm"}
    for backend in found.values():
        assert_scores(backend["ranking"], example.text, example.start, "bank")
    assert "plain JavaScript" in found["cpu"]["active"]
    assert "WebGL 2" in found["webgl"]["active"]


def test_texts_that_trip_pages_over(address: str, chromium: str) -> None:
    found = browse("texts", address, chromium, json.dumps(TEXTS))
    for name, text, surface in TEXTS:
        assert_scores(found[name]["ranking"], text, text.index(surface), surface)
    assert found["right to left"]["direction"] == "rtl"
    assert found["emoji"]["direction"] == "ltr"
    assert len(LONG) > 10_000
    assert "10,381 characters" in found["long"]["hint"]
    assert "around the mention" in found["long"]["notice"]


def test_a_mention_without_word_piece_and_one_of_too_many(
    address: str, chromium: str
) -> None:
    own = [("dropped", "a \u200d\u200d b", "\u200d\u200d")]
    found = browse("texts", address, chromium, json.dumps(own))
    # Nothing bears such a name, so that the model is not asked.
    assert "no entity named" in found["dropped"]["notice"]
    result = modules.run(
        "link.mjs",
        tiny_page.artifact().as_uri() + "/",
        str(tiny_page.packages()),
        given=[
            {"mention": {"text": "a \u200d b", "start": 2, "end": 3}},
            {"mention": {"text": "bank " * 12, "start": 0, "end": 59}},
            {"mention": {"text": "bank", "start": 0, "end": 5}},
        ],
    )
    assert "no word piece" in result[0]["error"]
    assert "has 12 word pieces; the model takes at most 9" in result[1]["error"]
    assert "inside the text" in result[2]["error"]


def test_no_candidate(address: str, chromium: str) -> None:
    found = browse("unknown", address, chromium)
    assert "no entity named “banks”" in found["notice"]
    assert found["near"][0] == "bank"
    assert "the candidates of “bank”" in found["used"]
    assert len(found["ranking"]) == 3


def test_a_missing_shard(artifact: Path, chromium: str) -> None:
    shard = next(artifact.glob("*.bin"))
    with tiny_page.serving(artifact) as url:
        shard.unlink()
        found = browse("wrong", url, chromium)
    assert f"{shard.name} could not be fetched" in found["message"]
    assert "404" in found["message"]
    assert "Copy the whole artifact" in found["advice"]
    assert found["role"] == "alert"


def test_a_truncated_shard(artifact: Path, chromium: str) -> None:
    shard = next(artifact.glob("*.bin"))
    content = shard.read_bytes()
    with tiny_page.serving(artifact) as url:
        shard.write_bytes(content[:-4])
        found = browse("wrong", url, chromium)
    assert f"{shard.name} has {len(content) - 4:,} bytes" in found["message"]
    assert f"expected {len(content):,}" in found["message"]
    assert "truncated" in found["advice"]


def test_a_damaged_shard(artifact: Path, chromium: str) -> None:
    shard = next(artifact.glob("*.bin"))
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    with tiny_page.serving(artifact) as url:
        found = browse("wrong", url, chromium)
    assert f"{shard.name} is not the file" in found["message"]


def test_missing_parts_of_the_page(artifact: Path, chromium: str) -> None:
    (bundle,) = artifact.glob("page/*/tfjs/tf-core.min.js")
    bundle.unlink()
    with tiny_page.serving(artifact) as url:
        found = browse("wrong", url, chromium)
    assert "TensorFlow.js could not be loaded" in found["message"]


def test_retry(address: str, chromium: str) -> None:
    found = browse("retry", address, chromium)
    assert "the server does not answer" in found["message"]
    assert "retry" in found["advice"]


def test_offline_after_a_visit_and_ctrl_c_ends_the_server(chromium: str) -> None:
    # A shell's job in the background, and all that it starts, ignores Ctrl-C.
    code = (
        "import signal, sys; from pathlib import Path;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from bert_export import demo_server;"
        "demo_server.serve(Path(sys.argv[1]), 0)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tiny_page.artifact())],
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            url = line.split(" at ")[1].split()[0]
            found = browse("offline", url, chromium, str(server.pid))
            _, errors = server.communicate(timeout=20)
        finally:
            server.kill()
    assert server.returncode == 0
    assert errors == ""
    assert found["offline"] == found["online"]
    assert len(found["online"]) == 3
    assert found["second"] == 2


def test_a_new_version_does_not_mix_with_the_old(tmp_path: Path, chromium: str) -> None:
    served = tmp_path / "served"
    old = Path(shutil.copytree(tiny_page.artifact(), served))
    new = tiny_page.write(tmp_path / "new", nil_threshold=1.0)

    with demo_server.create_server(old, 0) as server:
        handler: Any = server.RequestHandlerClass
        answer = handler.do_GET

        def switch(self: Any) -> None:
            if self.path == "/switch":
                shutil.rmtree(served)
                shutil.copytree(new, served)
            answer(self)

        handler.do_GET = switch
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/"
            found = browse("versions", url, chromium, f"{url}switch")
        finally:
            server.shutdown()
            thread.join()
    assert found["first"] != found["second"]
    assert found["caches"] == [f"bert_export /page/ {found['second']}"]
    assert not any(found["first"] in kept for kept in found["urls"])
    assert sum(".bin?v=" in kept for kept in found["urls"]) == 1
    assert "None is likely enough (below 1.00)" in found["notice"]


def test_a_phone(address: str, chromium: str) -> None:
    browse("phone", address, chromium)


def test_contrast_in_light_and_dark(address: str, chromium: str) -> None:
    found = browse("colours", address, chromium)
    for ratio, *where in found.values():
        assert ratio >= 4.5, where


def test_node_links_with_the_same_modules() -> None:
    example = tiny_page.EXAMPLES[1]
    (found,) = modules.run(
        "link.mjs",
        tiny_page.artifact().as_uri() + "/",
        str(tiny_page.packages()),
        given=[
            {
                "mention": {
                    "text": example.text,
                    "start": example.start,
                    "end": example.end,
                },
                "lookup": example.surface,
            }
        ],
    )
    expected = tiny_page.scores(example.text, example.start, example.end)
    rows = found["candidates"]
    scores = {row["candidate"]["id"]: row["score"] for row in rows}
    assert scores == pytest.approx(expected, abs=1e-4)
    probabilities = {row["candidate"]["id"]: row["probability"] for row in rows}
    for entity_id, score in expected.items():
        assert probabilities[entity_id] == pytest.approx(
            1 / (1 + np.exp(-score)), abs=1e-5
        )
    assert found["nilProbability"] == pytest.approx(1 - max(probabilities.values()))
    order = list(expected)
    assert [row["priorRank"] for row in rows] == [
        order.index(row["candidate"]["id"]) + 1 for row in rows
    ]


def test_http_is_spoken_well(address: str) -> None:
    host = urllib.parse.urlsplit(address).netloc

    def get(path: str, method: str = "GET", **headers: str) -> Any:
        connection = http.client.HTTPConnection(host, timeout=10)
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        response = connection.getresponse()
        response.content = response.read()  # type: ignore[attr-defined]
        connection.close()
        return response

    assert get("/").getheader("Location") == "/page/"
    index = get("/page/")
    assert index.status == 200
    assert index.getheader("Cross-Origin-Opener-Policy") == "same-origin"
    assert index.getheader("Cross-Origin-Embedder-Policy") == "require-corp"
    assert index.getheader("Cache-Control") == "no-cache"
    (version,) = [p.name for p in tiny_page.artifact().glob("page/*") if p.is_dir()]
    kinds = {
        "linker.mjs": "text/javascript; charset=utf-8",
        "style.css": "text/css; charset=utf-8",
        "page.json": "application/json",
        "tfjs/tfjs-backend-wasm-simd.wasm": "application/wasm",
    }
    for name, kind in kinds.items():
        path = tiny_page.artifact() / "page" / version / name
        plain = get(f"/page/{version}/{name}")
        assert plain.getheader("Content-Type") == kind
        assert plain.content == path.read_bytes()
        assert "immutable" in plain.getheader("Cache-Control")
        small = get(f"/page/{version}/{name}", Accept_Encoding="br, gzip;q=1.0")
        assert small.getheader("Content-Encoding") == "gzip"
        assert len(small.content) < len(plain.content)
        assert small.getheader("ETag") != plain.getheader("ETag")
    shard = get("/group1-shard1of1.bin", Accept_Encoding="gzip")
    assert shard.getheader("Content-Encoding") is None
    again = get("/group1-shard1of1.bin", If_None_Match=shard.getheader("ETag"))
    assert (again.status, again.content) == (304, b"")
    head = get("/group1-shard1of1.bin", "HEAD")
    assert head.content == b""
    assert int(head.getheader("Content-Length")) == len(shard.content)
    for path in (
        "/../conftest.py",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/page/..%2f..%2fsecret",
        "/assets.extra/",
        "/assets.extra",
        "/%00",
        "/%ff",
        "/nothing?<script>",
    ):
        assert get(path).status == 404, path
    assert get("/page/", "POST").status == 501


def test_links_that_leave_the_artifact_are_not_followed(
    artifact: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (artifact / "link.txt").symlink_to(tmp_path / "secret.txt")
    with tiny_page.serving(artifact) as url:
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc)
        connection.request("GET", "/link.txt")
        assert connection.getresponse().status == 404
        connection.close()

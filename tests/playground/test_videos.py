"""/v1/videos as clients of OpenAI's interface use it."""

import io
import time
from collections.abc import Iterator

import httpx
import pytest
from PIL import Image

from mutoscope.data.video.read import read_video
from playground_server import Running

DONE = ("completed", "failed")


def finished(served: Running, name: str) -> dict:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        found = httpx.get(f"{served.http}/v1/videos/{name}").json()
        if found["status"] in DONE:
            return found
        assert 0 <= found["progress"] < 100
        time.sleep(0.05)
    raise AssertionError("the clip was not finished in a minute")


def created(served: Running, **values: object) -> dict:
    answer = httpx.post(f"{served.http}/v1/videos", json=values)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_clip_is_created_followed_fetched_and_deleted(served: Running, tmp_path):
    made = created(served, model="clips", prompt="a circle-orbit, please", size="8x8", seed=3)
    assert made["object"] == "video" and made["status"] in ("queued", "in_progress")
    done = finished(served, made["id"])
    assert (done["status"], done["progress"], done["error"], done["seconds"]) == ("completed", 100, None, "2")
    assert done["created_at"] <= done["completed_at"] < done["expires_at"]
    path = f"{served.http}/v1/videos/{made['id']}"
    video = httpx.get(path + "/content")
    assert video.headers["content-type"] == "video/mp4"
    (tmp_path / "clip.mp4").write_bytes(video.content)
    assert len(read_video(tmp_path / "clip.mp4").frames) == 8
    for variant, form in (("thumbnail", "WEBP"), ("spritesheet", "JPEG")):
        with Image.open(io.BytesIO(httpx.get(path + "/content", params={"variant": variant}).content)) as image:
            assert image.format == form and image.height == 8
    assert httpx.delete(path).json() == {"id": made["id"], "object": "video.deleted", "deleted": True}
    assert httpx.get(path).status_code == 404


def test_clips_are_listed_newest_first_page_by_page(served: Running):
    names = [created(served, model="clips", prompt="", seed=i)["id"] for i in range(3)]
    page = httpx.get(f"{served.http}/v1/videos", params={"limit": 2}).json()
    assert [one["id"] for one in page["data"]] == names[:0:-1] and page["has_more"]
    rest = httpx.get(f"{served.http}/v1/videos", params={"limit": 2, "after": page["last_id"]}).json()
    assert rest["data"][0]["id"] == names[0]
    for name in names:
        finished(served, name)
        httpx.delete(f"{served.http}/v1/videos/{name}")


def test_a_form_with_a_picture_continues_it(served: Running):
    buffer = io.BytesIO()
    Image.new("RGB", (24, 16), (10, 200, 30)).save(buffer, "PNG")
    answer = httpx.post(
        f"{served.http}/v1/videos",
        data={"model": "world", "prompt": "", "num_frames": "4"},
        files={"input_reference": ("first.png", buffer.getvalue(), "image/png")},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    assert finished(served, answer.json()["id"])["status"] == "completed"


def test_a_clip_in_progress_can_be_deleted(served: Running):
    made = created(served, model="world", prompt="square", num_frames=200)
    assert httpx.delete(f"{served.http}/v1/videos/{made['id']}").json()["deleted"]
    assert httpx.get(f"{served.http}/v1/videos/{made['id']}").status_code == 404


def test_what_fails_while_it_is_made_says_why(served: Running):
    made = created(served, model="clips", extra_params={"task": "frame-prediction"})
    done = finished(served, made["id"])
    assert done["status"] == "failed" and done["error"]["message"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model": "clips", "prompt": "a dog"}, "prompt names none"),
        ({"model": "clips", "size": "512x512"}, "generates 8x8"),
        ({"model": "clips", "size": "big"}, "WIDTHxHEIGHT"),
        ({"model": "clips", "seconds": "9"}, "generates 2 seconds"),
        ({"model": "clips", "seconds": "nan"}, "seconds must be"),
        ({"model": "clips", "num_frames": 0}, "num_frames"),
        ({"model": "clips", "colour": "red"}, "colour"),
        ({"model": "world", "extra_params": {"context": "/etc/passwd"}}, "must be uploaded"),
        ({"model": "world", "extra_params": {"actions": "/etc/passwd"}}, "action"),
    ],
)
def test_a_request_that_does_not_fit_is_a_sentence(served: Running, values: dict, said: str):
    answer = httpx.post(f"{served.http}/v1/videos", json=values)
    assert answer.status_code == 400 and said in answer.json()["detail"]


def test_a_model_that_is_not_there_is_not_found(served: Running):
    answer = httpx.post(f"{served.http}/v1/videos", json={"model": "clip"})
    assert answer.status_code == 404 and "did you mean 'clips'" in answer.json()["detail"]


def test_a_body_without_end_is_refused_while_it_arrives(served: Running):
    def endless(head: bytes) -> Iterator[bytes]:
        yield head
        for _ in range(20_000):  # 1.3 GB, of which almost nothing is taken
            yield bytes(2**16)

    part = b'--x\r\nContent-Disposition: form-data; name="input_reference"; filename="a"\r\n\r\n'
    for kind, head in (("application/json", b'{"prompt": "'), ("multipart/form-data; boundary=x", part)):
        headers = {"Content-Type": kind}
        try:
            answer = httpx.post(f"{served.http}/v1/videos", content=endless(head), headers=headers, timeout=60)
        except httpx.WriteError:
            continue  # the server has closed the connection
        assert answer.status_code == 413


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=x"])
def test_a_form_that_is_none_is_a_sentence(served: Running, kind: str):
    answer = httpx.post(f"{served.http}/v1/videos", content=b"--y\r\n", headers={"Content-Type": kind})
    assert answer.status_code in (400, 413) and answer.json()["detail"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"prompt": ' + b'"' + b"x" * 300_000 + b'"}'])
def test_a_body_that_is_no_request_is_a_sentence(served: Running, content: bytes):
    answer = httpx.post(f"{served.http}/v1/videos", content=content)
    assert answer.status_code in (400, 413) and answer.json()["detail"]

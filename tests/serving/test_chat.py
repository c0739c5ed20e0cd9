from __future__ import annotations

import io
import json
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.serving.requests import chat, data_uri, image_part
from unirg.serving.chat import MAX_IMAGES, ChatRequest, Refused, images, parse

CANARY = "DOE^JANE 4711"


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises a size and holds no pixel."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def with_image(url: str) -> ChatRequest:
    request = chat(pictures=())
    request["messages"][0]["content"].append(image_part(url))
    return parse(json.dumps(request).encode())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n": 5}, "n = 1"),
        ({"n": CANARY}, "n = 1"),
        ({"n": True}, "n = 1"),
        ({"n": 0}, "n = 1"),
        ({"stream": True}, "streaming"),
        ({"stream": 0}, "streaming"),
        ({"top_p": 0.5}, "top_p"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 5.5}, "max_tokens"),
        ({"temperature": "0.5"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"seed": "3"}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": CANARY}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"seed": 2**80}, "seed"),
        ({CANARY: 1}, "not served"),
        ({"tools": [CANARY]}, "not served"),
        ({"messages": []}, "messages"),
        ({"messages": CANARY}, "messages"),
        ({"messages": [{"role": CANARY, "content": "a"}]}, "role"),
        ({"messages": [{"role": "user", "content": []}]}, "content"),
        ({"messages": [{"role": "user", "content": [{"type": CANARY}]}]}, "neither"),
        ({"messages": [{"role": "user", "content": [{"text": CANARY}]}]}, "neither"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "text"),
        ({"messages": [{"role": "user", "content": "a", CANARY: "b"}]}, "not served"),
    ],
)
def test_a_wrong_parameter_is_refused_with_its_name_and_never_with_its_value(
    change: dict[str, Any], words: str
) -> None:
    with pytest.raises(Refused) as refused:
        parse(json.dumps(chat() | change).encode())
    assert refused.value.status == 400
    assert words in refused.value.message
    assert CANARY not in json.dumps(refused.value.body())


@pytest.mark.parametrize(
    "neutral",
    [
        {"n": 1, "stream": False, "top_p": 1},
        {"n": None, "stream": None, "top_p": 1.0, "seed": None, "max_tokens": None},
        {"temperature": 1, "seed": -(2**63), "max_tokens": None, "max_completion_tokens": 9},
    ],
)
def test_a_parameter_that_asks_for_what_is_served_is_taken(neutral: dict[str, Any]) -> None:
    asked = parse(json.dumps(chat() | neutral).encode())
    assert asked.temperature == neutral.get("temperature", 0)
    assert asked.token_limit == neutral.get("max_completion_tokens", 512 if "seed" in neutral else 16)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.just(CANARY),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["model", "messages", "role", "content", "type", "text", "image_url", "url", CANARY]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_whatever_is_sent_is_parsed_or_refused_without_an_echo(body: Any) -> None:
    try:
        told = repr(parse(json.dumps(body).encode()))
    except Refused as refused:
        told = refused.message
    assert CANARY not in told


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"model": ' * 1000])
def test_a_body_that_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(Refused):
        parse(body)


def test_a_plain_string_and_a_single_text_part_are_the_same_message() -> None:
    plain = parse(json.dumps(chat(pictures=()) | {"messages": [{"role": "user", "content": "a"}]}).encode())
    assert plain.templated() == [{"role": "user", "content": [{"type": "text", "text": "a"}]}]


def test_an_image_keeps_its_place_among_the_texts() -> None:
    kinds = [
        part["type"] for part in parse(json.dumps(chat(pictures=(1, 2))).encode()).templated()[0]["content"]
    ]
    assert kinds == ["image", "image", "text"]


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "https://example.org/a.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "data:text/html;base64,PGI+",
        "data:image/svg+xml;base64,PHN2Zy8+",
        "data:image/png,notbase64",
        "DATA:IMAGE/PNG;BASE64,AAAA",
        "",
    ],
)
def test_nothing_but_an_image_in_a_data_uri_is_taken(url: str) -> None:
    with pytest.raises(Refused) as refused:
        images(with_image(url))
    assert (refused.value.status, refused.value.code) == (400, "unsupported_image")


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("data:image/png;base64,@@@@", "broken_image"),
        ("data:image/png;base64,", "broken_image"),
        (data_uri(b"no picture at all"), "broken_image"),
        (data_uri(encoded(Image.new("L", (64, 64)))[:60]), "broken_image"),
        (data_uri(encoded(Image.new("L", (64, 64)), "JPEG")), "broken_image"),  # declared as PNG
        (data_uri(encoded(Image.new("L", (64, 64)), "GIF")), "broken_image"),
        (data_uri(png_header(50_000, 50_000)), "image_too_large"),
        (data_uri(png_header(4_000_000, 1)), "image_too_narrow"),
        (data_uri(png_header(0, 0)), "broken_image"),
        (data_uri(encoded(Image.new("I;16", (64, 64)))), "unsupported_image"),
        (data_uri(encoded(Image.new("RGBA", (64, 64)))), "unsupported_image"),
    ],
)
def test_an_image_that_cannot_be_served_is_refused(url: str, code: str) -> None:
    with pytest.raises(Refused) as refused:
        images(with_image(url))
    assert (refused.value.status, refused.value.code) == (400, code)


def test_too_many_images_are_refused() -> None:
    request = chat(pictures=())
    request["messages"][0]["content"] += [image_part("data:image/png;base64,AAAA")] * (MAX_IMAGES + 1)
    with pytest.raises(Refused, match="at most"):
        images(parse(json.dumps(request).encode()))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_png_and_jpeg_in_grey_and_colour_are_decoded(kind: str, mode: str) -> None:
    content = encoded(Image.new(mode, (64, 48)), kind)
    (image,) = images(with_image(data_uri(content, kind.lower())))
    assert (image.size, image.mode) == ((64, 48), "RGB")

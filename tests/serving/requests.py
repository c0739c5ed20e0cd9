"""Requests as a client writes them."""

from __future__ import annotations

import base64
from typing import Any

from tests import toy


def data_uri(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def image_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def chat(
    text: str = "Write the report.", pictures: tuple[int, ...] = (1,), **parameters: Any
) -> dict[str, Any]:
    """A request with one picture for each seed."""
    content = [image_part(data_uri(toy.picture(seed))) for seed in pictures]
    content.append({"type": "text", "text": text})
    return {"model": "toy", "messages": [{"role": "user", "content": content}], "max_tokens": 16} | parameters

"""The OpenAI chat-completions protocol as far as it is served: what is accepted, what is refused, and how.

A refusal is a fixed sentence of ours with a 4xx status. It never repeats a part of the request, because a
request holds a patient's image and history, and a refusal ends in a client's log.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import time
import uuid
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

MAX_BODY = 32 * 2**20
"""Bytes of one request: eight radiographs of 512x512 are under 3 MB."""
MAX_BODIES = 32 * MAX_BODY
"""Bytes of all requests in hand."""
MAX_IMAGES = 8
MAX_PIXELS = 4096 * 4096
MAX_ASPECT = 20
"""Longer side over shorter; no radiograph comes near it, and the image processor fails at 200."""
MAX_TOKENS = 4096
DEFAULT_TOKENS = 512

_DATA_URI = re.compile(r"data:image/(png|jpeg);base64,")
_FIXED = {
    "n": "only n = 1 is served: send the request again for another completion",
    "stream": "streaming is not served: leave `stream` out",
    "top_p": "only top_p = 1 is served",
}
"""Our words for a wrong value of these parameters."""
_BY_TYPE = {
    "extra_forbidden": "holds a parameter that is not served",
    "union_tag_invalid": "is neither a `text` nor an `image_url` part",
    "union_tag_not_found": "is neither a `text` nor an `image_url` part",
}
"""Our words where pydantic's would repeat the request."""


class Refused(Exception):
    """A request that gets no completion; the message is ours and holds nothing of the request."""

    def __init__(self, status: int, code: str, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after_s = status, code, message, retry_after_s

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}


def _too_large() -> Refused:
    return Refused(400, "image_too_large", f"an image has over {MAX_PIXELS} pixels: downscale it")


class _Closed(BaseModel):
    # Strict: "5" and true are no numbers, and a client that sends them means something else.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class TextPart(_Closed):
    type: Literal["text"]
    text: str = Field(repr=False)


class ImageUrl(_Closed):
    url: str = Field(repr=False)
    detail: Literal["auto", "low", "high"] | None = None
    """Accepted for the protocol's sake; the checkpoint's image processor decides the resolution."""


class ImagePart(_Closed):
    type: Literal["image_url"]
    image_url: ImageUrl


def _off(value: bool) -> bool:
    if value:
        raise ValueError
    return value


def _parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Closed):
    role: Literal["system", "user", "assistant"]
    content: Annotated[list[Part], BeforeValidator(_parts), Field(min_length=1, max_length=64)]


class ChatRequest(_Closed):
    """A request that can be served, but for its images, which `images` decodes."""

    model: str = Field(repr=False)
    messages: list[Message] = Field(min_length=1, max_length=64)
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    """The protocol's newer name; it wins."""
    temperature: float = Field(default=0.0, ge=0.0, le=2.0, allow_inf_nan=False)
    """0, the default unlike OpenAI's, is greedy: the same study gives the same report."""
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    """Of sampling; the same seed gives the same text, whatever batch it is in."""
    n: int | None = Field(default=None, ge=1, le=1)
    stream: Annotated[bool, AfterValidator(_off)] | None = None
    top_p: float | None = Field(default=None, ge=1, le=1)

    @property
    def token_limit(self) -> int:
        return self.max_completion_tokens or self.max_tokens or DEFAULT_TOKENS

    @property
    def texts(self) -> list[str]:
        return [part.text for m in self.messages for part in m.content if isinstance(part, TextPart)]

    def templated(self) -> list[dict[str, Any]]:
        """The messages as a chat template takes them: `{"type": "image"}` in each image's place."""
        return [
            {
                "role": message.role,
                "content": [
                    {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"}
                    for part in message.content
                ],
            }
            for message in self.messages
        ]


def parse(body: bytes) -> ChatRequest:
    """Raises: Refused where the body is no request that can be served."""
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False, include_context=False)[0]
    where, kind = problem["loc"], problem["type"]
    if kind == "extra_forbidden":  # the last part is the request's own word
        where = where[:-1]
    name = ".".join(str(part) for part in where) or "the request"
    text = _BY_TYPE.get(kind) or problem["msg"]
    if name in _FIXED:
        raise Refused(400, "invalid_value", _FIXED[name])
    raise Refused(400, "invalid_request", f"{name}: {text}")


def images(request: ChatRequest) -> list[Image.Image]:
    """Decode the request's images, in its order, to RGB.

    Raises:
        Refused: an image is no `data:` URI, not PNG or JPEG, too large, or broken.
    """
    urls = [p.image_url.url for m in request.messages for p in m.content if isinstance(p, ImagePart)]
    if len(urls) > MAX_IMAGES:
        raise Refused(400, "too_many_images", f"at most {MAX_IMAGES} images are served in a request")
    return [_decode(url) for url in urls]


def _decode(url: str) -> Image.Image:
    declared = _DATA_URI.match(url)
    if declared is None:
        raise Refused(
            400,
            "unsupported_image",
            "an image must be a data:image/png;base64 or data:image/jpeg;base64 URI; nothing is fetched",
        )
    try:
        data = base64.b64decode(url[declared.end() :], validate=True)
    except binascii.Error:
        raise Refused(400, "broken_image", "an image is not valid base64") from None
    try:
        image = Image.open(io.BytesIO(data), formats=[declared[1].upper()])
        _check(image)
        return image.convert("RGB")
    except Image.DecompressionBombError:
        raise _too_large() from None
    except (OSError, ValueError, SyntaxError):  # Pillow's, for broken files
        raise Refused(400, "broken_image", f"an image cannot be decoded as {declared[1].upper()}") from None


def _check(image: Image.Image) -> None:
    """Look at the header, before a pixel is decoded."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_large()
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise Refused(400, "image_too_narrow", f"an image is over {MAX_ASPECT} times longer than wide")
    if image.mode not in ("L", "RGB"):
        raise Refused(400, "unsupported_image", "an image must be 8-bit greyscale or RGB")


def completion(
    model: str, digest: str, text: str, finish_reason: str, prompt_tokens: int, completion_tokens: int
) -> dict[str, Any]:
    """The protocol's answer; `system_fingerprint` is the digest of the checkpoint that wrote it."""
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": digest,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": finish_reason,
                "logprobs": None,
            }
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }

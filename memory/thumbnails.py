"""One small picture a chunk, in the folder `thumbs` of a film."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from .whole_file import whole_file

THUMBS = "thumbs"
WIDTH = 96
_QUALITY = 80


def thumbnail_path(film: Path, chunk: int) -> Path:
    """Where the thumbnail of a chunk of the film in this folder lies."""
    return film / THUMBS / f"{chunk:05d}.jpg"


def write_thumbnail(path: Path, picture: Image.Image) -> None:
    """Write a picture 96 pixels wide, as JPEG of about 3 kB; ProjectError where the disk refuses."""
    height = max(1, round(picture.height * WIDTH / picture.width))
    small = picture.convert("RGB").resize((WIDTH, height), Image.Resampling.BICUBIC)
    with whole_file(path) as part:
        small.save(part, format="JPEG", quality=_QUALITY)


def read_thumbnails(film: Path, chunks: Iterable[int]) -> dict[int, Image.Image]:
    """The thumbnails that are there; missing and damaged ones are left out."""
    found = {}
    for chunk in chunks:
        try:
            with Image.open(thumbnail_path(film, chunk)) as picture:
                found[chunk] = picture.convert("RGB")
        except (OSError, UnidentifiedImageError):
            continue
    return found


def as_data_urls(thumbnails: dict[int, Image.Image]) -> dict[int, str]:
    """Thumbnails as text that a page can hold by itself."""
    urls = {}
    for chunk, picture in thumbnails.items():
        data = io.BytesIO()
        picture.save(data, format="JPEG", quality=_QUALITY)
        urls[chunk] = "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")
    return urls

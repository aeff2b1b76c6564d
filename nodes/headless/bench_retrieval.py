"""What trained memory encoders bring back of films that are longer, cut faster or move more than those they were trained on."""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...memory.whole_file import whole_file
from .boot import boot_host
from .encoder_files import ENCODER_FILE, LORA_FILE, EncoderOnDisk, encoders_in, read_encoders, with_small_videos
from .render import check_folder
from .train_encoder import write_json
from .train_films import HISTORY_FRAMES, add_source, captioned_videos, source_settings, video_films
from .workflow import WorkflowError

if TYPE_CHECKING:
    from ...memory.encoder_spec import EncoderSpec
    from ...memory.training.clips import TileCodec
    from ...memory.training.encoder_settings import EncoderTraining
    from ...memory.training.video_films import VideoFilms

FILMS, CLIPS = 8, 2
SHIPPED = "tiny"
ROWS_FILE, TABLE_FILE = "lengths.json", "lengths.md"


class Reader(NamedTuple):
    """An encoder on disk, or two that were trained together, with their LoRA."""

    name: str
    encoders: list[EncoderOnDisk]
    lora: Path
    digest: str

    @property
    def spec(self) -> EncoderSpec:
        """What the first encoder is."""
        return self.encoders[0].spec

    @property
    def beside(self) -> str:
        """What is beside it, in words."""
        from ...memory.training.encoder_chain import beside_in_words

        return ", ".join(beside_in_words(spec, longest) for _, spec, longest in self.encoders[1:])


def add_retrieval(benches: Any) -> None:
    """`longreel bench retrieval`."""
    retrieval = benches.add_parser("retrieval", help="does any frame of a film come back from an encoder's tokens?")
    retrieval.add_argument(
        "--encoder",
        action="append",
        type=Path,
        metavar="FOLDER",
        help="what `longreel train encoder pretrain` or `table` wrote (default: what ships, which went on to stage II); may be given several times",
    )
    retrieval.add_argument(
        "--history-frames",
        action="append",
        type=int,
        metavar="FRAMES",
        help="latent frames of a film, 4 a second, so 80, 240 and 480 are 20, 60 and 120 s (default: "
        f"{HISTORY_FRAMES}); may be given several times",
    )
    add_source(retrieval)
    retrieval.add_argument(
        "--films", type=int, default=FILMS, help=f"of each length, an even number (default: {FILMS})"
    )
    retrieval.add_argument("--seed", type=int, default=0, help="other films (default: 0)")
    retrieval.add_argument("--out", type=Path, metavar="FOLDER", help="rows, table and pictures; a stopped run goes on")
    retrieval.set_defaults(bench=run_retrieval)


def run_retrieval(args: argparse.Namespace) -> int:
    """Measure every encoder at every length, print a table and write the rows after each.

    Raises WorkflowError for arguments that do not fit each other or the encoder.
    """
    if args.films < CLIPS or args.films % CLIPS:
        raise WorkflowError(f"--films needs an even number of 2 or more, got {args.films}. Measure one more.")
    if args.videos is not None and args.out is None:
        raise WorkflowError("--videos needs --out, where what the VAE makes of them is kept, got none. Name a folder.")
    names = [folder.resolve().name for folder in args.encoder or ()]
    if len(set(names)) < len(names):
        raise WorkflowError(
            f"--encoder needs folders of different names, got {', '.join(names)}. Rows and pictures are named after their folders: "
            "rename one."
        )
    source = source_settings(args)
    captioned = captioned_videos(args.videos)
    if args.out is not None:
        check_folder(args.out)
    boot_host("cpu")
    from ...memory.training.retrieval_table import lengths_markdown
    from ..host.build import host_modules
    from .train import tiny_codec

    plans = _plans(args, source)
    modules, out = host_modules(), args.out or Path()
    codec = tiny_codec(modules, out)
    known = _known(args.out)
    lengths = {config.history_frames: config for _, config in plans}
    films = {frames: video_films(captioned, config, modules, out) for frames, config in lengths.items()}
    for reader, config in plans:
        _refuse_seen(reader, config, films[config.history_frames])
    rows: list[dict[str, Any]] = []
    for reader, config in plans:
        videos = films[config.history_frames]
        named = config if videos is None else replace(config, films=videos.name)
        facts = {"encoder": reader.digest, "settings": json.loads(json.dumps(asdict(named)))}
        alike = [row for row in known if all(row[name] == fact for name, fact in facts.items())]
        same = [row for row in alike if len(row["films"]["marked"]) == args.films]
        rows.append(same[0] if same else {**_measured(args, reader, named, codec, videos), **facts})
        if args.out is not None:
            write_json(args.out / ROWS_FILE, rows + [row for row in known if row not in rows])
    table = lengths_markdown(rows)
    if args.out is not None:
        with whole_file(args.out / TABLE_FILE) as part:
            part.write_text(table, encoding="utf-8")
    print(table, end="")
    return 0


def _plans(args: argparse.Namespace, source: dict[str, Any]) -> list[tuple[Reader, EncoderTraining]]:
    """Every encoder with the settings of every length."""
    from ...memory.training.encoder_settings import pretraining_of

    common = {"clips": CLIPS, "seed": args.seed, **source}
    try:
        readers = [_reader(folder) for folder in args.encoder or [None]]
        return [
            (reader, replace(pretraining_of(reader.spec, **common, history_frames=frames), beside=reader.beside))
            for reader in readers
            for frames in args.history_frames or [HISTORY_FRAMES]
        ]
    except ValueError as error:
        raise WorkflowError(str(error)) from error


def _reader(folder: Path | None) -> Reader:
    """The encoder in this folder, or the one that ships."""
    from ...memory.encoder_file import read_spec
    from ...memory.training.encoder_settings import BASES
    from ..host.build import ENCODER_LORA, TINY_ENCODER, TinyWanSpec

    encoders = encoders_in(folder) if folder else [EncoderOnDisk(TINY_ENCODER, read_spec(TINY_ENCODER))]
    lora = folder / LORA_FILE if folder else ENCODER_LORA
    if not encoders or not lora.is_file():
        raise WorkflowError(
            f"--encoder needs a folder with {ENCODER_FILE} and {LORA_FILE}, got {folder}. Name one that `longreel train "
            "encoder` wrote."
        )
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in (*(path for path, *_ in encoders), lora)))
    width = TinyWanSpec().width
    for path, spec, _ in encoders:
        if spec.base == BASES["hunyuan"]:
            raise WorkflowError(
                f"{path} is for {spec.base}, whose frames are asked for at the end of its training alone."
            )
        if spec.width != width:
            raise WorkflowError(f"{path} is for a model of width {spec.width}, the tiny model has {width}.")
    return Reader(folder.resolve().name if folder else SHIPPED, encoders, lora, digest.hexdigest()[:16])


def _refuse_seen(reader: Reader, config: EncoderTraining, videos: VideoFilms | None) -> None:
    """Raises WorkflowError where the encoder was trained on a part of what would be measured."""
    trained = reader.spec.trained
    if videos is None or trained.get("films") != f"{videos.name}, {config.size}":
        return
    frames = min(int(count) for name, count in trained.items() if name.endswith(" frames"))
    if videos.seen_in(frames + config.segment_frames):
        raise WorkflowError(
            f"--history-frames {config.history_frames} needs other videos than those that {reader.name} was trained on, in "
            f"stretches of {frames} latent frames: it has seen a part of what would be measured. Give {frames} or fewer."
        )


def _known(out: Path | None) -> list[dict[str, Any]]:
    """What an earlier run left in this folder."""
    if out is None or not (out / ROWS_FILE).is_file():
        return []
    rows: list[dict[str, Any]] = json.loads((out / ROWS_FILE).read_text(encoding="utf-8"))
    return rows


def _measured(
    args: argparse.Namespace, reader: Reader, config: EncoderTraining, codec: TileCodec, videos: VideoFilms | None
) -> dict[str, Any]:
    """A row, and its pictures in the out folder."""
    import comfy.model_management

    from ...memory.training.retrieval import ask_films
    from ...memory.training.retrieval_table import film_strips, length_name, row_of, table_sheet
    from ...memory.training.storyworld import Size
    from ..host.build import build_tiny_reader, host_modules, shipped_weights

    name = f"{reader.name}, {length_name(config)}"
    print(name, flush=True)
    encoder = with_small_videos(
        read_encoders(reader.encoders), host_modules(), args.out or Path(), config.segment_frames
    )
    model = build_tiny_reader(shipped_weights("wan") or {}, reader.lora)
    comfy.model_management.load_models_gpu([model])
    asked = ask_films(config, host_modules(), model.model.diffusion_model, encoder, codec, args.films // CLIPS, videos)
    if args.out is not None:
        sheet = table_sheet({reader.name: film_strips(asked)}, Size.parse(config.size))
        with whole_file(args.out / f"{name}.png") as part:
            sheet.save(part, format="PNG")
    return row_of(name, config, encoder, asked)

"""Train memory encoders of several kinds alike, and write side by side what stage I taught each of them to bring back."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .encoder_files import save_encoders
from .launched import launched
from .render import INTERRUPTED_EXIT
from .train_encoder import BRANCHES, RETRIEVAL_FILE, add_device, new_pair, prepare, tell_step, write_json
from .train_films import add_history, add_source, captioned_videos, source_settings, video_films
from .workflow import WorkflowError

if TYPE_CHECKING:
    from ...memory.training.clips import TileCodec
    from ...memory.training.encoder_settings import EncoderTraining
    from ...memory.training.processes import Processes
    from ...memory.training.video_films import VideoFilms

STEPS, CLIPS, COOL_DOWN, SIZE = 250, 2, 100, "128x192"
PICTURES_FILE = "retrieved.png"
TABLE, SHEET = "table", "sheet.png"
MEASURED_FILMS = 16


def add_table(stages: Any) -> None:
    """`longreel train encoder table`."""
    table = stages.add_parser(
        "table", help="stage I for every rate and every kind of encoder, side by side: numbers, a table, pictures"
    )
    table.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a folder a row, table and pictures")
    table.add_argument("--steps", type=int, default=STEPS, help=f"of every row (default: {STEPS})")
    table.add_argument("--clips", type=int, default=CLIPS, help=f"films a step (default: {CLIPS})")
    add_source(table, SIZE)
    add_history(table)
    add_device(table)
    table.add_argument("--films", type=int, default=MEASURED_FILMS, help=f"measured (default: {MEASURED_FILMS})")
    table.add_argument("--seed", type=int, default=0, help="other films and other encoders (default: 0)")
    table.add_argument(
        "--row",
        action="append",
        metavar="RATE:BRANCHES",
        help="only this row, such as 2x2x2:both; may be given several times (default: those of the paper)",
    )
    table.set_defaults(train=run_table)


def run_table(args: argparse.Namespace) -> int:
    """Train and measure every row that is not there yet, and write the table anew after each.

    Raises WorkflowError for bad arguments before anything is loaded, ProjectError for a folder that cannot be used.
    """
    configs = _settings(args)
    captioned = captioned_videos(args.videos)
    prepare(args.out, args.device)
    from ..host.build import host_modules
    from .train import tiny_codec

    processes = launched(args.device)
    if processes.count > 1:
        raise WorkflowError(f"A table is made by a single process, got {processes.count}. Start it without accelerate.")
    videos = video_films(captioned, configs[0], host_modules(), args.out)
    if videos is not None:
        configs = tuple(replace(config, films=videos.name) for config in configs)
    codec = tiny_codec(host_modules(), args.out)
    train = partial(_row, args, codec=codec, videos=videos, processes=processes)
    print(f"{len(configs)} rows of {args.steps} steps. Ctrl-C stops it; the same command goes on.")
    rows = []
    try:
        for config in configs:
            rows.append(train(config))
            _write_table(args.out, rows)
    except KeyboardInterrupt:
        print("\nStopped. Give the same command again and it goes on after the last checkpoint.", file=sys.stderr)
        return INTERRUPTED_EXIT
    print((args.out / f"{TABLE}.md").read_text(encoding="utf-8"), end="")
    print(f"table  {args.out / TABLE}.md and .json\npictures  {args.out / SHEET}")
    return 0


def _settings(args: argparse.Namespace) -> tuple[EncoderTraining, ...]:
    from ...memory.training.encoder_settings import EncoderTraining
    from ...memory.training.retrieval_table import ROWS, table_settings

    rows = ROWS if args.row is None else [_parsed(row) for row in args.row]
    if args.films < 1 or args.films % max(2, args.clips):
        raise WorkflowError(
            f"--films needs a multiple of --clips ({args.clips}) and of 2, got {args.films}. Measure more films."
        )
    try:
        base = EncoderTraining(
            steps=args.steps,
            clips=args.clips,
            history_frames=args.history_frames,
            **source_settings(args),
            seed=args.seed,
            cool_down=min(COOL_DOWN, args.steps),
        )
        return table_settings(base, rows)
    except ValueError as error:
        raise WorkflowError(str(error)) from error


def _parsed(row: str) -> tuple[str, str]:
    rate, _, branches = row.partition(":")
    if branches not in BRANCHES:
        raise WorkflowError(f"--row needs RATE:BRANCHES with branches {', '.join(BRANCHES)}, got {row!r}. Name one.")
    return rate, branches


def _row(
    args: argparse.Namespace,
    config: EncoderTraining,
    codec: TileCodec,
    videos: VideoFilms | None,
    processes: Processes,
) -> dict[str, Any]:
    """The row from its folder, or trained and measured now."""
    import peft

    from ...memory.training.encoder_training import train_encoder
    from ...memory.training.retrieval import ask_films
    from ...memory.training.retrieval_table import film_strips, row_name, row_of
    from ...memory.whole_file import whole_file
    from ..host.build import host_modules

    folder = args.out / f"{config.rate}-{config.branches}"
    print(row_name(config), flush=True)
    if (folder / RETRIEVAL_FILE).exists():
        row: dict[str, Any] = json.loads((folder / RETRIEVAL_FILE).read_text(encoding="utf-8"))
        usual = asdict(type(config)())  # a row that is older than a setting was made with its default
        same = json.loads(json.dumps({**usual, **row["settings"]})) == json.loads(json.dumps(asdict(config)))
        if same and len(row["films"]["marked"]) == args.films:
            return row
    network, encoder = new_pair(config)
    train_encoder(config, host_modules(), peft, network, encoder, codec, folder, tell_step, None, videos, processes)
    save_encoders(folder, config, network, encoder)
    asked = ask_films(config, host_modules(), network, encoder, codec, args.films // max(2, config.clips), videos)
    with whole_file(folder / PICTURES_FILE) as part:
        film_strips(asked).save(part, format="PNG")
    row = row_of(row_name(config), config, encoder, asked)
    write_json(folder / RETRIEVAL_FILE, row)
    return row


def _write_table(out: Path, rows: list[dict[str, Any]]) -> None:
    from PIL import Image

    from ...memory.training.retrieval_table import table_markdown, table_sheet
    from ...memory.training.storyworld import Size
    from ...memory.whole_file import whole_file

    write_json(out / f"{TABLE}.json", rows)
    with whole_file(out / f"{TABLE}.md") as part:
        part.write_text(table_markdown(rows), encoding="utf-8")
    strips = {}
    for row in rows:
        settings = row["settings"]
        strips[row["name"]] = Image.open(out / f"{settings['rate']}-{settings['branches']}" / PICTURES_FILE)
    with whole_file(out / SHEET) as part:
        table_sheet(strips, Size.parse(rows[0]["settings"]["size"])).save(part, format="PNG")

"""Recall measurements as rows, paired differences, and Markdown tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from .recall_policies import REFERENCE, WINDOW_AND_SINK, Cell
from .recall_samples import Drift, Sample
from .recall_statistics import mean, mean_interval, share_interval

MEANS = (
    "identity_cosine",
    "identity_psnr",
    "background_psnr",
    "dynamic_degree",
    "control_cosine",
    "averaging_cosine",
    "ceiling_cosine",
    "true_dynamic_degree",
)
SHARES = ("who_is_it", "obedience", "name_swap")
COMPARED = ("identity_cosine", "who_is_it", "dynamic_degree")
MIB = 1 << 20
PARTS = 4
"""Into how many parts a free-running film is cut to see its background change."""


@dataclass(frozen=True)
class RecallReport:
    """Everything that was measured; `header` says by what, on what, with what."""

    header: dict[str, Any]
    samples: Sequence[Sample]
    drifts: Sequence[Drift]

    def _cells(self) -> dict[tuple[Cell, str], list[Sample]]:
        cells: dict[tuple[Cell, str], list[Sample]] = {}
        for sample in self.samples:
            cells.setdefault((Cell(sample.chunks, sample.distance), sample.policy), []).append(sample)
        order = {name: index for index, name in enumerate(self.header["policies"])}
        return dict(sorted(cells.items(), key=lambda item: (item[0][0], order[item[0][1]])))

    def rows(self) -> list[dict[str, Any]]:
        """One row for each film length, distance and policy: means with their intervals."""
        lost = {row["policy"]: row["lost_db"] for row in self.drift_rows()}
        rows = []
        for (cell, policy), samples in self._cells().items():
            row: dict[str, Any] = {"policy": policy, **cell._asdict(), "films": len(samples)}
            for names, interval in ((MEANS, mean_interval), (SHARES, share_interval)):
                for name in names:
                    values = [float(getattr(sample, name)) for sample in samples]
                    row[name], row[f"{name}_interval"] = mean(values), interval(values)
            row["keys_read_fraction"] = mean([sample.keys_read_fraction for sample in samples])
            row["seconds_per_chunk"] = statistics.median(sample.seconds_per_chunk for sample in samples)
            row["peak_bytes"] = max(sample.peak_bytes for sample in samples)
            row["drift_db"] = lost.get(policy)
            rows.append(row)
        return rows

    def differences(self) -> list[dict[str, Any]]:
        """Each policy against full memory with absolute positions, and against window and sink, film by film."""
        cells = self._cells()
        rows = []
        for against in (REFERENCE, WINDOW_AND_SINK):
            for (cell, policy), samples in cells.items():
                reference = {sample.film: sample for sample in cells.get((cell, against), [])}
                pairs = [(sample, reference[sample.film]) for sample in samples if sample.film in reference]
                if policy == against or not pairs:
                    continue
                row: dict[str, Any] = {"policy": policy, "against": against, **cell._asdict(), "films": len(pairs)}
                for name in COMPARED:
                    values = [getattr(ours, name) - getattr(theirs, name) for ours, theirs in pairs]
                    row[name], row[f"{name}_interval"] = mean(values), mean_interval(values)
                rows.append(row)
        return rows

    def drift_rows(self) -> list[dict[str, Any]]:
        """Free-running films: the background's PSNR along them, what the last quarter lost, how much moves and against whom."""
        moves = {(drift.policy, drift.film): mean(drift.dynamic_degree) for drift in self.drifts}
        rows = []
        for policy in self.header["policies"]:
            drifts = [drift for drift in self.drifts if drift.policy == policy]
            if not drifts:
                continue
            own = [moves[policy, drift.film] for drift in drifts]
            against = {}
            for other in (REFERENCE, WINDOW_AND_SINK):
                values = [moves[policy, d.film] - moves[other, d.film] for d in drifts if (other, d.film) in moves]
                if values and other != policy:
                    against[other] = {"dynamic_degree": mean(values), "dynamic_degree_interval": mean_interval(values)}
            films = [drift.background_psnr for drift in drifts]
            part = max(1, len(films[0]) // PARTS)
            lost = [mean(film[:part]) - mean(film[-part:]) for film in films]
            rows.append(
                {
                    "policy": policy,
                    "films": len(films),
                    "chunks": drifts[0].chunks,
                    "background_psnr": [mean(chunk) for chunk in zip(*films, strict=True)],
                    "lost_db": mean(lost),
                    "lost_db_interval": mean_interval(lost),
                    "dynamic_degree": mean(own),
                    "dynamic_degree_interval": mean_interval(own),
                    "against": against,
                }
            )
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        tables = {"rows": self.rows(), "differences": self.differences(), "drift": self.drift_rows()}
        return {**self.header, **tables}

    def markdown(self) -> str:
        """The tables for people."""
        parts = [_facts(self.header)]
        if encoders := self.header.get("encoders"):
            parts.append(_encoder_table(encoders))
        rows = self.rows()
        for chunks in sorted({row["chunks"] for row in rows}):
            parts.append(_recall_table(chunks, [r for r in rows if r["chunks"] == chunks], self.header["chance"]))
        if differences := self.differences():
            parts.append(_difference_table(differences))
        if drift := self.drift_rows():
            parts.append(_drift_table(drift))
        return "\n\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _with_interval(row: dict[str, Any], name: str, sign: str = "") -> str:
    low, high = row[f"{name}_interval"]
    return f"{row[name]:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def _facts(header: dict[str, Any]) -> str:
    settings = header["settings"]
    return (
        f"`{header['command']}`, {header['date']}, commits {', '.join(header['commits'])}; {', '.join(header['machine'].values())}; "
        f"weights {settings['weights']}; chunks of {settings['chunk_frames']} latent frames, {settings['characters']} "
        f"characters, seed {settings['seed']}, {len(settings['levels']) - 1} steps; mean [95 % interval]"
    )


def _encoder_table(encoders: dict[str, dict[str, float]]) -> str:
    head = ("encoder", "tokens a second of film", "milliseconds to encode it", "its weights")
    body = [
        (
            name,
            f"{cost['tokens_per_second']:.0f}",
            f"{cost['milliseconds_per_second']:.1f}",
            f"{cost['bytes'] / MIB:.1f} MiB",
        )
        for name, cost in encoders.items()
    ]
    return _table(head, body)


def _recall_table(chunks: int, rows: list[dict[str, Any]], chance: float) -> str:
    head = "back after|policy|films|identity|PSNR|who is it|name swap|another film's history|background|obeys|moves, px|keys read"
    head += "|s a chunk|memory"
    body = [
        (
            str(row["distance"]),
            row["policy"],
            str(row["films"]),
            _with_interval(row, "identity_cosine"),
            f"{row['identity_psnr']:.1f} dB",
            _with_interval(row, "who_is_it"),
            f"{row['name_swap']:.2f}",
            f"{row['control_cosine']:.2f}",
            f"{row['background_psnr']:.1f} dB",
            f"{row['obedience']:.2f}",
            _with_interval(row, "dynamic_degree"),
            f"{row['keys_read_fraction']:.1%}",
            f"{row['seconds_per_chunk']:.3f}",
            f"{row['peak_bytes'] / MIB:.1f} MiB",
        )
        for row in rows
    ]
    averaging, ceiling, moves = (
        mean([row["averaging_cosine"] for row in rows]),
        mean([row["ceiling_cosine"] for row in rows]),
        mean([row["true_dynamic_degree"] for row in rows]),
    )
    title = (
        f"**Films of {chunks} chunks.** Chance of who is it {chance:.2f}; drawing the average of all looks seen gives "
        f"identity {averaging:.2f}; the true chunk through the VAE gives {ceiling:.2f} and moves {moves:.2f} px."
    )
    return f"{title}\n\n{_table(head.split('|'), body)}"


def _difference_table(rows: list[dict[str, Any]]) -> str:
    body = [
        (
            row["against"],
            str(row["chunks"]),
            str(row["distance"]),
            row["policy"],
            str(row["films"]),
            _with_interval(row, "identity_cosine", "+"),
            _with_interval(row, "who_is_it", "+"),
            _with_interval(row, "dynamic_degree", "+"),
        )
        for row in rows
    ]
    head = ("against", "film", "back after", "policy", "films", "identity", "who is it", "moves, px")
    return f"**Differences, film by film.**\n\n{_table(head, body)}"


def _drift_table(rows: list[dict[str, Any]]) -> str:
    def quarters(values: list[float]) -> list[str]:
        cuts = [len(values) * part // PARTS for part in range(PARTS + 1)]
        return [f"{mean(values[start:stop]):.1f}" for start, stop in pairwise(cuts)]

    others = [name for name in (REFERENCE, WINDOW_AND_SINK) if any(name in row["against"] for row in rows)]
    body = [
        (
            row["policy"],
            str(row["films"]),
            *quarters(row["background_psnr"]),
            _with_interval(row, "lost_db"),
            _with_interval(row, "dynamic_degree"),
            *(
                _with_interval(row["against"][other], "dynamic_degree", "+") if other in row["against"] else ""
                for other in others
            ),
        )
        for row in rows
    ]
    parts = (f"quarter {part + 1}" for part in range(PARTS))
    head = ("policy", "films", *parts, "lost", "moves, px", *(f"moves against {other}" for other in others))
    title = f"**Drift.** Background in dB along films of {rows[0]['chunks'][-1] + 1} chunks that nobody corrects."
    return f"{title}\n\n{_table(head, body)}"

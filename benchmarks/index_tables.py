"""Tables of the README about indexes: kinds, speed, memory, verification, crashes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from table_text import markdown, result, source


def kinds_table() -> str:
    """Every kind against raw FAISS."""
    return _kinds(result("kinds"))


def kinds_gpu_table() -> str:
    """Every kind that runs on a GPU against raw FAISS there."""
    return _kinds(result("kinds_gpu"))


def _kinds(measured: dict[str, Any]) -> str:
    head = [
        "kind", "MB", "opened in, s", "effort", "ann_recall@10", "one query, ms", "raw", "more, µs",
        "of 1,000, ms each", "raw", "ratio",
        "of the fastest",
    ]  # fmt: skip
    parts = []
    for run in measured["runs"]:
        for images in sorted({row["images"] for row in run["rows"]}):
            rows = [row for row in run["rows"] if row["images"] == images]
            parts.append(
                f"\n{images:,} vectors, {run['vectors']}:\n\n"
                + markdown(head, [_kind_row(row) for row in rows])
                + _kinds_in_words(rows)
                + _source(run)
            )
    return "".join(parts).lstrip()


def _kinds_in_words(rows: list[dict[str, Any]]) -> str:
    """Sum up what the layer above FAISS costs."""
    batch = sorted(row["batch_ratio"] for row in rows)
    more = sorted(row["single_overhead_us_of_fastest"] for row in rows if row["nprobe"])
    words = f"\nIn batches {batch[0]:.2f} to {batch[-1]:.2f} times what raw FAISS takes"
    if more:
        words += f"; one query {more[0]:.0f} to {more[-1]:.0f} µs more with the IVF kinds"
    return words + ".\n"


def _kind_row(row: dict[str, Any]) -> list[str]:
    effort = [
        f"nprobe {row['nprobe']}" if row["nprobe"] else "",
        f"efSearch {max(row['ef_search'], 26)}" if row["ef_search"] else "",
        f"rescore {row['rescore']}x" if row["rescore"] > 1 else "",
    ]
    return [
        row["kind"],
        f"{row['bytes'] / 1e6:,.0f}",
        f"{row['open_s']:.2f}",
        ", ".join(filter(None, effort)),
        f"{row['ann_recall@10']:.3f}",
        f"{row['single_ms']:.2f}",
        f"{row['raw_single_ms']:.2f}",
        f"{row['single_overhead_us_of_fastest']:.0f}",
        f"{row['batch_ms_per_query']:.3f}",
        f"{row['raw_batch_ms_per_query']:.3f}",
        f"{row['batch_ratio']:.2f}",
        f"{row['batch_ratio_of_fastest']:.2f}",
    ]


def indexing_table() -> str:
    """Indexing end to end against the encoder alone and against the same by hand."""
    measured = result("indexing")["ways"]
    rows = [
        [way["way"], f"{way['images_per_s']:,.0f}", f"{way['cpu_ms_per_image']:.2f}"]
        for way in measured["ways"]
    ]
    ours, most = measured["ours_of_encoder_alone"], measured["most_that_can_be_reached"]
    split = measured["ours_seconds"]
    shares = ", ".join(
        f"{name} {seconds / split['all']:.1%}" for name, seconds in split.items() if name != "all"
    )
    said = (
        f"\nEnd to end reaches {ours['seconds']:.2f} of the speed of the encoder alone, "
        f"{ours['cpu']:.2f} by CPU seconds; since decoding takes from the same cores, "
        f"{most['cpu']:.2f} is the most there is. Time of the main thread: {shares}."
    )
    if by_hand := measured["ours_of_by_hand"]:
        said += (
            f" Ours is {by_hand['seconds']:.2f} times as fast as timm, a DataLoader and FAISS by "
            f"hand, {by_hand['cpu']:.2f} times by CPU seconds."
        )
    head = [f"{measured['images']:,} images", "images/s", "CPU ms per image"]
    return markdown(head, rows) + said + "\n" + _source(measured)


def decoding_table() -> str:
    """Decoding alone, by each kind of workers."""
    measured = result("indexing")["decoding"]
    rows = [
        [row["decoders"], f"{row['images_per_s']:,.0f}", f"{row['cpu_ms_per_image']:.2f}"]
        for row in measured["rows"]
    ]
    return markdown(["decoders", "images/s", "CPU ms per image"], rows) + _source(measured)


def memory_table() -> str:
    """Peak memory of a build, and what of it is vectors."""
    measured = result("indexing")["memory"]
    rows = [
        [
            f"{row['rows']:,}",
            f"{row['before_mb']:,.0f}",
            f"{row['structure_mb']:,.0f}",
            f"{row['metadata_mb']:,.0f}",
            f"{row['built_mb']:,.0f}",
            f"{row['built_mb'] - row['before_mb'] - row['structure_mb'] - row['metadata_mb']:,.0f}",
            f"{row['opened_mb']:,.0f}",
            f"{row['mapped_mb']:,.0f}",
            f"{row['open_s']:.2f}",
        ]
        for row in measured["rows"]
    ]
    head = [
        "images", "before, MB", "vectors, MB", "names, hashes, sizes, MB", "most in a build, MB",
        "none of these, MB", "most when opened, MB", "mapped from disk, MB", "opened in, s",
    ]  # fmt: skip
    return markdown(head, rows) + _source(measured)


def verify_table() -> str:
    """How long verifying takes."""
    measured = result("verify")
    rows = [
        [
            f"{row['images']:,}",
            str(row["files"]),
            f"{row['bytes'] / 1e6:,.0f}",
            f"{row['sampled']:,}",
            f"{row['verify_s']:.2f}",
            f"{row['open_s']:.2f}",
        ]
        for row in measured["rows"]
    ]
    head = ["images", "files", "MB read", "images that find themselves", "verified in, s",
            "opened in, s"]  # fmt: skip
    return markdown(head, rows) + _source(measured)


def crash_table() -> str:
    """What killed writers left."""
    measured = result("crash")
    names = ["moments", "old", "new", "mixture", "damaged", "different_when_repeated"]
    rows = [
        [row["operation"], *(str(row[name]) for name in names)] for row in measured["operations"]
    ]
    head = ["killed while it did", "times", "old state", "new state", "mixture", "damaged",
            "different when repeated"]  # fmt: skip
    return markdown(head, rows) + _source(measured)


def _source(measured: dict[str, Any]) -> str:
    note = measured.get("note")
    return source(measured) + (f"\n<sub>{note[0].upper()}{note[1:]}.</sub>\n" if note else "")


TABLES: dict[str, Callable[[], str]] = {
    "kinds": kinds_table,
    "kinds_gpu": kinds_gpu_table,
    "indexing": indexing_table,
    "decoding": decoding_table,
    "memory": memory_table,
    "verify": verify_table,
    "crash": crash_table,
}

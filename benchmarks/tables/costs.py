"""Tables of what indexes, the page and training cost, and of what killed writers left."""

from __future__ import annotations

from tables.text import TRAINED, Row, read, rows_of, source, table


def kinds(name: str) -> str:
    """Every kind of search structure against raw FAISS."""
    columns = {
        "kind": "{kind}",
        "MB": "{mb:,.0f}",
        "opened in, s": "{open_s:.2f}",
        "effort": "{effort}",
        "ann_recall@10": "{ann_recall@10:.3f}",
        "one query, ms": "{single_ms:.2f}",
        "raw FAISS": "{raw_single_ms:.2f}",
        "more, µs": "{single_overhead_us_of_fastest:.0f}",
        "of 1,000, ms each": "{batch_ms_per_query:.3f}",
        "raw, ms each": "{raw_batch_ms_per_query:.3f}",
        "ratio": "{batch_ratio:.2f}",
        "of the fastest": "{batch_ratio_of_fastest:.2f}",
    }
    parts = []
    for run in read(name)["runs"]:
        for images in sorted({row["images"] for row in run["rows"]}):
            rows = [_effort(row) for row in run["rows"] if row["images"] == images]
            parts.append(
                f"{images:,} vectors, {run['vectors']}:\n\n"
                f"{table(columns, rows)}\n{_above_faiss(rows)}{source(run)}"
            )
    return "\n".join(parts)


def _effort(row: Row) -> Row:
    said = [
        f"nprobe {row['nprobe']}" if row["nprobe"] else "",
        f"efSearch {max(row['ef_search'], 26)}" if row["ef_search"] else "",
        f"rescore {row['rescore']}x" if row["rescore"] > 1 else "",
    ]
    return {**row, "mb": row["bytes"] / 1e6, "effort": ", ".join(filter(None, said))}


def _above_faiss(rows: list[Row]) -> str:
    """Sum up what the layer above FAISS costs."""
    batch = sorted(row["batch_ratio"] for row in rows)
    more = sorted(row["single_overhead_us_of_fastest"] for row in rows if row["nprobe"])
    words = f"In batches {batch[0]:.2f} to {batch[-1]:.2f} times what raw FAISS takes"
    if more:
        words += f"; one query {more[0]:.0f} to {more[-1]:.0f} µs more with the IVF kinds"
    return words + ".\n"


def indexing() -> str:
    """Indexing end to end against the encoder alone and against the same by hand."""
    result = read("indexing")["ways"]
    columns = {
        f"{result['images']:,} images": "{way}",
        "images/s": "{images_per_s:,.0f}",
        "CPU ms per image": "{cpu_ms_per_image:.2f}",
    }
    split = result["ours_seconds"]
    shares = ", ".join(
        f"{name} {seconds / split['all']:.1%}" for name, seconds in split.items() if name != "all"
    )
    of_encoder, most = result["ours_of_encoder_alone"], result["most_that_can_be_reached"]
    said = (
        f"End to end reaches {of_encoder['seconds']:.2f} of the speed of the encoder alone, "
        f"{of_encoder['cpu']:.2f} by CPU seconds; since decoding takes from the same cores, "
        f"{most['cpu']:.2f} is the most there is. Time of the main thread: {shares}."
    )
    if by_hand := result["ours_of_by_hand"]:
        said += (
            f" Ours is {by_hand['seconds']:.2f} times as fast as timm, a DataLoader and FAISS by "
            f"hand, {by_hand['cpu']:.2f} times by CPU seconds."
        )
    return f"{table(columns, result['ways'])}\n{said}\n{source(result)}"


def decoding() -> str:
    """Decoding alone, by each kind of workers."""
    columns = {
        "decoders": "{decoders}",
        "images/s": "{images_per_s:,.0f}",
        "CPU ms per image": "{cpu_ms_per_image:.2f}",
    }
    result = read("indexing")["decoding"]
    return table(columns, result["rows"]) + source(result)


def memory() -> str:
    """Peak memory of a build, and what of it is vectors."""
    columns = {
        "images": "{rows:,}",
        "before, MB": "{before_mb:,.0f}",
        "vectors, MB": "{structure_mb:,.0f}",
        "names, hashes, sizes, MB": "{metadata_mb:,.0f}",
        "most in a build, MB": "{built_mb:,.0f}",
        "none of these, MB": "{other_mb:,.0f}",
        "most when opened, MB": "{opened_mb:,.0f}",
        "mapped from disk, MB": "{mapped_mb:,.0f}",
        "opened in, s": "{open_s:.2f}",
    }
    result = read("indexing")["memory"]
    explained = ("before_mb", "structure_mb", "metadata_mb")
    rows = [
        {**row, "other_mb": row["built_mb"] - sum(row[part] for part in explained)}
        for row in result["rows"]
    ]
    return table(columns, rows) + source(result)


def verify() -> str:
    """How long verifying takes."""
    columns = {
        "images": "{images:,}",
        "files": "{files}",
        "MB read": "{mb:,.0f}",
        "images that find themselves": "{sampled:,}",
        "verified in, s": "{verify_s:.2f}",
        "opened in, s": "{open_s:.2f}",
    }
    result = read("verify")
    return table(columns, [{**row, "mb": row["bytes"] / 1e6} for row in result["rows"]]) + source(
        result
    )


def crash() -> str:
    """What killed writers left."""
    columns = {
        "killed while it did": "{operation}",
        "times": "{moments}",
        "old state": "{old}",
        "new state": "{new}",
        "mixture": "{mixture}",
        "damaged": "{damaged}",
        "different when repeated": "{different_when_repeated}",
    }
    result = read("crash")
    return table(columns, result["operations"]) + source(result)


def hostile() -> str:
    """What became of indexes that somebody hostile had, or a machine in trouble."""
    columns = {
        "tried": "{tried}",
        "times": "{times}",
        "answered as before": "{answered}",
        "refused in a line": "{refused}",
        "another answer": "{other_answer}",
        "a hang": "{hung}",
        "much memory": "{memory}",
        "called damage": "{called_damage}",
        "a file elsewhere changed": "{elsewhere}",
    }
    return rows_of("hostile", columns)


def bombs() -> str:
    """What small files cost that were made to be dear."""
    columns = {
        "file": "{file}",
        "bytes": "{bytes:,}",
        "threads": "{threads}",
        "outcome": "{outcome}",
        "CPU seconds": "{seconds:.1f}",
        "memory grew by, MB": "{grown_mb:,}",
    }
    return rows_of("bombs", columns)


def cycles() -> str:
    """What an index becomes by many small changes."""
    columns = {
        "cycle": "{cycle}",
        "files": "{files}",
        "bytes on disk": "{bytes:,}",
        "shards": "{shards}",
        "open descriptors": "{descriptors}",
    }
    result = read("cycles")
    most = result["most"]
    words = (
        f"\nAt most, after any of them: {most['files']} files, {most['bytes']:,} bytes, "
        f"{most['descriptors']} descriptors, for {result['images']:,} images.\n"
    )
    return table(columns, result["rows"]) + words + source(result)


def filters() -> str:
    """What is found of the ten nearest that pass a filter."""
    result = read("filters")
    columns = {
        "kind": "{kind}",
        "of the images pass": "{share:.0%}",
        "which": "{which}",
        "recall@10": "{recall:.3f}",
        "ms": "{ms:.1f}",
    }
    rows = [
        {**row, "which": "those farthest from the query" if row["far"] else "drawn at random"}
        for row in result["rows"]
    ]
    words = f"{result['images']:,} synthetic vectors:\n\n"
    return words + table(columns, rows) + source(result)


def runtimes() -> str:
    """What runs an encoder: time, memory, and what is found with it."""
    result = read("runtimes")
    torch = {row["submodel"]: row for row in result["rows"] if row["runtime"] == "torch"}
    found = {}
    for row in result["found"]:
        size, _, rounded = row["submodel"].partition(":")
        found[f"{row['runtime']} {rounded}".strip(), size] = row
    rows = []
    for row in result["rows"]:
        own = torch[row["submodel"]]
        quality = found.get((row["runtime"], row["submodel"]))
        rows.append({
            **row,
            "of_torch": row["ms"] / own["ms"],
            "of_torch_64": row["ms_of_64"] / own["ms_of_64"],
            "overlap": f"{quality['overlap@10']:.3f}" if quality else "",
            "hits": f"{quality['hit_rate@1']:.3f}" if quality else "",
        })  # fmt: skip
    columns = {
        "runtime": "{runtime}",
        "size": "{submodel}",
        "one image, ms": "{ms:.1f}",
        "of torch's": "{of_torch:.2f}",
        "64 images, ms": "{ms_of_64:.0f}",
        "of torch's ": "{of_torch_64:.2f}",
        "loaded in, s": "{load_s:.2f}",
        "memory, MB": "{peak_mb:,.0f}",
        "overlap@10": "{overlap}",
        "hit_rate@1": "{hits}",
    }
    return table(columns, rows) + source(result)


def merging() -> str:
    """How long a query takes that merges tokens, beside S."""
    result = read("merging")
    columns = {
        "encoder": "{encoder}",
        "submodel": "{submodel}",
        "compute of S": "{macs_of_s:.2f}",
        "ONNX, rows, ms": "{onnx rows}",
        "ONNX, matrix": "{onnx matrix}",
        "torch, rows": "{torch rows}",
        "torch, matrix": "{torch matrix}",
    }
    rows: dict[tuple[str, str], Row] = {}
    for row in result["rows"]:
        mine = rows.setdefault((row["encoder"], row["submodel"]), dict(row))
        said = f"{row['cpu_ms']:.1f} ({row['cpu_ms_of_s']:.2f} of S)"
        mine[f"{row['runtime']} {row['form']}"] = said
    return table(columns, rows.values()) + source(result)


def startup(name: str) -> str:
    """What a command costs from the shell."""
    columns = {
        "command": "{command}",
        "median, s": "{seconds:.2f}",
        "fastest, s": "{fastest_s:.2f}",
        "memory, MB": "{peak_mb:,.0f}",
    }
    return rows_of(name, columns)


def serving() -> str:
    """A server under load."""
    columns = {
        "answers by": "{way}",
        "load": "{factor:g} x",
        "p50, ms": "{p50_ms:,.0f}",
        "p95, ms": "{p95_ms:,.0f}",
        "turned away": "{errors:.0%}",
        "mean compute": "{macs_fraction:.0%}",
        "overlap@10": "{overlap@10:.3f}",
    }
    result = read("serving")
    words = (
        f"\nLoads are multiples of the {result['sustained_per_s']:.0f} answers a second that the "
        f"full size sustains; following aims at {result['slo_ms']:g} ms.\n"
    )
    memory = result["memory"]
    words += (
        f"\nOver {memory[-1]['requests']:,} requests more the server's memory went from "
        f"{memory[0]['kilobytes'] / 1000:,.0f} to {memory[-1]['kilobytes'] / 1000:,.0f} MB, its "
        f"descriptors from {memory[0]['descriptors']} to {memory[-1]['descriptors']}.\n"
    )
    return table(columns, result["rows"]) + words + source(result)


def metrics() -> str:
    """How long judging takes."""
    result = read("metrics")
    spent = result["seconds"]
    judged = sum(spent[name] for name in ("hit_rate@1", "recall@10", "overlap@10", "map@r"))
    return (
        f"Judging {result['queries']:,} queries against {result['images']:,} images takes "
        f"{judged:.2f} s for all metrics together (MAP@R looks at {result['ranks_of_map']} ranks), "
        f"beside {spent['search 10'] + spent['search R']:.0f} s of exact search for them; "
        f"memory grows by {result['peak_mb_above_the_index']:.0f} MB.\n{source(result)}"
    )


def page() -> str:
    """What the page costs."""
    result = read("page")
    clicks = result["rows"][0]["interactions"]
    columns = {
        "images": "{images:,}",
        "first view, s": "{first_view_s:.1f}",
        "with a cold server": "{first_view_cold_s:.1f}",
        "a query in the browser, s": "{query_s:.2f}",
        "its work on the server, ms": "{query_server_cpu_ms:.0f}",
        "the bare searches', ms": "{bare_cpu_ms:.0f}",
        "times as much": "{share:.2f}",
        "server MB after 1 query": "{server_mb[0]:,.0f}",
        f"after {clicks}": "{server_mb_after:,.0f}",
        f"after {clicks} more in haste": "{hasty_mb_after:,.0f}",
    }
    rows = [
        {
            **row,
            "query_s": row["query_browser_ms"] / 1000,
            "share": row["query_server_cpu_ms"] / row["bare_cpu_ms"],
            "server_mb_after": row["server_mb"][-1],
            "hasty_mb_after": row["hasty_mb"][-1],
        }
        for row in result["rows"]
    ]
    return table(columns, rows) + source(result)


def recipes() -> str:
    """Ways to train, at equal training compute."""
    result = read("recipes")
    names = [*TRAINED, "3xM,3xL", "3xS,3xXL"]
    rows = []
    for row in sorted(result["rows"], key=lambda row: (row["recipe"], row["seed"])):
        points = {point["submodel"]: point for point in row["points"]}
        if len(points) == 1:  # trained apart: its own full size is one of ours
            points = {row["recipe"].removeprefix("apart "): points["XL"]}
        cells = {name: f"{point['hit_rate@1']:.4f}" for name, point in points.items()}
        own = {f"own {n}": f"{p['symmetric_hit_rate@1']:.4f}" for n, p in points.items()}
        rows.append({**dict.fromkeys([*names, "own S", "own M"], ""), **row, **cells, **own})
    columns = {"recipe": "{recipe}", "seed": "{seed}", "seconds": "{seconds:.0f}"}
    columns |= {name: f"{{{name}}}" for name in names}
    columns |= {"S asks its own": "{own S}", "M asks its own": "{own M}"}
    crossed = ", ".join(
        f"{name.removeprefix('apart ')} {share:.4f}"
        for name, share in result["apart_asking_joint"].items()
    )
    return (
        f"{table(columns, rows)}\nThose trained apart, asking the index of the jointly trained "
        f"one: {crossed}.\n{source(result)}"
    )


def joint_step() -> str:
    """A joint training step against the naive way."""
    columns = {
        "model": "{shape[dim]} x {shape[depth]}, {shape[img]} px",
        "tokens": "{tokens}",
        "ours, ms": "{joint_ms:,.0f}",
        "naive, ms": "{naive_ms:,.0f}",
        "ratio (quartiles)": "{ratio:.2f} ({ratio_quartiles[0]:.2f} to {ratio_quartiles[1]:.2f})",
        "ratio of MACs": "{ratio_of_macs:.2f}",
    }
    result = read("joint_step")
    return table(columns, result["rows"]) + source(result)


def training_split() -> str:
    """Where the time of a training step goes."""
    columns = {"part of a step": "{part}", "ms": "{ms:,.1f}", "share": "{share:.1%}"}
    result = read("training_split")
    spent = result["milliseconds"]
    rows = [{"part": part, "ms": ms, "share": ms / spent["step"]} for part, ms in spent.items()]
    return (
        f"{table(columns, rows)}\nDecoding the {result['images']:,} images once, before the first "
        f"step, took {result['decoding_seconds']:.1f} s.\n{source(result)}"
    )

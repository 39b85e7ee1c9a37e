"""Zero-shot evaluations laid out as the paper's Table 1, and where the paper has none, as a table of that shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from encode_pipeline.latents.spec import digest
from eval.report.cells import Measured, cell_of
from eval.report.evaluations import RETRIEVAL, Evaluation
from eval.report.paired import pairs_of, same_pictures
from eval.report.published import PublishedTable, published
from eval.report.runs import Run
from eval.report.table import Cell, Column, Row, Table, by_group

RANKS = (1, 5, 10)
DIRECTIONS = {"text": "image → text", "image": "text → image"}
"""What is looked for, as the metrics' names begin."""


def zero_shot_tables(runs: Sequence[Evaluation]) -> list[Table]:
    """A table for ImageNet, for each other list of classes, and for each set of pictures with captions.

    With any accuracies come the paper's: last, where none of ours stands beside them.
    """
    paper = published("table1")
    imagenet: list[Evaluation] = []
    others: dict[str | None, list[Evaluation]] = {}
    searched: list[Evaluation] = []
    for run in runs:
        if run.result.task == RETRIEVAL:
            searched.append(run)
        elif run.result.names_sha256 == paper.data["classes_sha256"]:
            imagenet.append(run)
        else:
            others.setdefault(run.result.names_sha256, []).append(run)
    found = [_imagenet(imagenet, paper)] if imagenet else []
    found += [_other_classes(some, paper) for some in others.values()]
    if others and not imagenet:
        found.append(_imagenet([], paper))
    return [*found, *(_retrieval(some, paper) for some in sets_of(searched))]


def sets_of(runs: Sequence[Evaluation]) -> list[list[Evaluation]]:
    """The runs by the pictures that they were asked about: real ones before generated ones."""
    sets: list[list[Evaluation]] = []
    for run in runs:
        home = next((some for some in sets if all(same_pictures(one, run) for one in some)), None)
        if home is None:
            sets.append([run])
        else:
            home.append(run)
    return sorted(sets, key=lambda some: some[0].result.data.generated is not None)


def way_of(run: Evaluation) -> int | None:
    """The paper's (1) or (2) for a model of latents."""
    if not run.reads_latents:
        return None
    return 2 if run.result.way == "direct" else 1


def _imagenet(runs: list[Evaluation], paper: PublishedTable) -> Table:
    sets = sets_of(runs)
    texts = _set_texts(sets, ("IN", "GIN"))
    columns: list[Column] = []
    for kind in ("in", "gin"):
        named = [(name, some) for (name, _), some in zip(texts, sets, strict=True) if name.split()[0] == kind.upper()]
        for name, some in named or [(kind.upper(), [])]:
            key = name.lower().replace(" ", "_")
            for rank in (1, 5):
                place = f"{key}_top{rank}", f"Acc ({name})", f"top-{rank}", f"acc{rank}"
                columns.append(Column(*place, tuple(some), paper=f"{kind}_top{rank}"))
    reasons = {id(run): (*run.reasons, *_unlike_the_paper(run, paper)) for run in runs}
    rows = _rows(runs, columns, reasons, paper)
    values = [(row.name, [row.values.get(column.paper or "") for column in columns]) for row in paper.rows]
    theirs = [Row(name, [None if value is None else Cell(value) for value in some]) for name, some in values]
    about = [f"{name}: {text}" for name, text in texts]
    about += [*_way_texts(runs, paper), *_prompt_texts(runs)]
    if not runs:
        about = ["none of ours was measured on ImageNet", *(f"({way}) {text}" for way, text in paper.ways.items())]
    return Table(
        "imagenet", "ImageNet", about, columns, rows, theirs, paper, pairs_of(sets), by_group(columns) if runs else []
    )


def _other_classes(runs: list[Evaluation], paper: PublishedTable) -> Table:
    sets = sets_of(runs)
    texts = _set_texts(sets, ("real", "generated"))
    columns = []
    for (name, _), some in zip(texts, sets, strict=True):
        key = name.replace(" ", "_")
        columns += [
            Column(f"{key}_top{rank}", f"Acc ({name})", f"top-{rank}", f"acc{rank}", tuple(some)) for rank in (1, 5)
        ]
    classes = runs[0].result.classes
    reason = f"{classes} classes that are not ImageNet's: the paper has no number for them"
    reasons = {id(run): (*run.reasons, reason) for run in runs}
    about = [f"{name}: {text}" for name, text in texts]
    about += [*_way_texts(runs, paper), *_prompt_texts(runs)]
    rows = _rows(runs, columns, reasons, None)
    name = f"classes-{str(runs[0].result.names_sha256)[:8]}"
    return Table(name, f"{classes} classes", about, columns, rows, pairs=pairs_of(sets), charted=by_group(columns))


def _retrieval(runs: list[Evaluation], paper: PublishedTable) -> Table:
    columns = [
        Column(f"{what}_r{rank}", group, f"R@{rank}", f"{what}_retrieval_recall@{rank}", tuple(runs))
        for what, group in DIRECTIONS.items()
        for rank in RANKS
    ]
    reason = "retrieval: the paper has no number for it"
    reasons = {id(run): (*run.reasons, reason) for run in runs}
    first = runs[0].result
    about = [f"{first.n:,} pictures of {first.dataset}, with {first.captions:,} captions"]
    about += _way_texts(runs, paper)
    if first.data.generated:
        about.append(f"generated by {first.data.generated.get('generator')}")
    told = [first.data.generated, first.data.view, [run.result.data.identity for run in runs]]
    name = f"retrieval-{str(runs[0].captions_sha256)[:8]}-{digest(told)[:4]}"
    return Table(name, "Retrieval", about, columns, _rows(runs, columns, reasons, None), charted=by_group(columns))


def _unlike_the_paper(run: Evaluation, paper: PublishedTable) -> list[str]:
    """How an evaluation on ImageNet's classes differs from the paper's."""
    result, found = run.result, []
    if result.n != paper.data["n"]:
        found.append(f"{result.n:,} pictures, where the paper has {paper.data['n']:,}")
    if result.templates is not None and result.templates != paper.data["templates"]:
        found.append(f"{result.templates} templates for the class names, where OpenCLIP has {paper.data['templates']}")
    elif result.templates_sha256 != paper.data["templates_sha256"]:
        found.append("templates for the class names that are not OpenCLIP's")
    return found


def _prompt_texts(runs: Sequence[Evaluation]) -> list[str]:
    """That models were not asked in the same words, if they were not."""
    asked: dict[str, list[str]] = {}
    for run in runs:
        told = f"{run.result.templates} ({str(run.result.templates_sha256)[:8]})"
        asked.setdefault(told, []).append(run.folder.name)
    if len(asked) <= 1:
        return []
    listed = [f"{told} for {', '.join(some)}" for told, some in asked.items()]
    return [f"templates differ: {'; '.join(listed)}"]


def _set_texts(sets: Sequence[Sequence[Evaluation]], names: tuple[str, str]) -> list[tuple[str, str]]:
    """A short name of each set of pictures, and what it is."""
    texts: list[tuple[str, str]] = []
    for name, is_generated in zip(names, (False, True), strict=True):
        some = [one[0] for one in sets if (one[0].result.data.generated is not None) == is_generated]
        readings = [str((run.result.data.generated or {}).get("noise")) for run in some]
        for number, run in enumerate(some, 1):
            told = readings[number - 1] if is_generated and len(set(readings)) == len(some) else str(number)
            text = f"{run.result.n:,} pictures of {run.result.dataset}"
            if made := run.result.data.generated:
                levels = ", ".join(f"t={level['t']:g} σ={level['sigma']:.3f}" for level in made.get("levels", []))
                text += f", generated by {made.get('generator')} from noise at {levels} ({made.get('noise')})"
            texts.append((name if len(some) == 1 else f"{name} {told}", text))
    return texts


def _way_texts(runs: Sequence[Evaluation], paper: PublishedTable) -> list[str]:
    """What the numbers before the names of latent models mean."""
    ways = {way_of(run) for run in runs}
    return [f"({way}) {text}" for way, text in paper.ways.items() if int(way) in ways]


def _rows(
    runs: Sequence[Evaluation],
    columns: Sequence[Column],
    reasons: Mapping[int, tuple[str, ...]],
    paper: PublishedTable | None,
) -> list[Row]:
    """A row a model and way: first those that the paper has too, in its order."""
    by_model: dict[tuple[tuple[str, str], int | None], list[Evaluation]] = {}
    for run in runs:
        by_model.setdefault((run.identity, way_of(run)), []).append(run)
    theirs = {place: paper.row_of(some[0].model, way=place[1]) if paper else None for place, some in by_model.items()}
    models = list(dict.fromkeys(model for model, _ in by_model))
    ranked = list(paper.rows) if paper else []

    def rank(place: tuple[tuple[str, str], int | None]) -> tuple[int, int, int]:
        row = theirs[place]
        return ranked.index(row) if row else len(ranked), models.index(place[0]), place[1] or 0

    rows = []
    for place in sorted(by_model, key=rank):
        row, mine = theirs[place], by_model[place]
        beside = [row.values.get(column.paper or "") if row else None for column in columns]
        cells = [
            cell_of(column, _measured(column, mine), reasons, value)
            for column, value in zip(columns, beside, strict=True)
        ]
        name = (f"({place[1]}) " if place[1] else "") + mine[0].name
        rows.append(Row(name, cells, row.name if row else None))
    return rows


def _measured(column: Column, mine: Sequence[Evaluation]) -> list[tuple[Run, Measured]]:
    """What a model was found to be worth in a column, in per cent."""
    found: list[tuple[Run, Measured]] = []
    for run in mine:
        if any(run is one for one in column.runs) and column.metric in run.result.metrics:
            low, high = run.result.intervals.get(column.metric, (None, None))
            ends = [None if end is None else 100 * end for end in (low, high)]
            found.append((run, Measured(100 * run.result.metrics[column.metric], *ends)))
    return found

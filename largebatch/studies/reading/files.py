"""Which recipe files there are: the paper each cites, its batches, what was published. No torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import rich.table

from largebatch.errors import UserError, suggestion
from largebatch.plan.score import words_of
from largebatch.recipes import config, derive
from largebatch.terminal.columns import kept, shared, widest

CITATION = re.compile(r"([^()]*?),? \(?((?:19|20)\d\d)\)?,? \(?(arXiv:\d{4}\.\d{4,5})")

LONGEST_COMMENT = 4000  # characters that are searched for citations: the search takes their square

Listed = dict[str, Any]


def folder_of(given: Path | None = None) -> Path:
    """Where recipes are looked for: as given, ./configs, or those of the package."""
    places = [given] if given else [Path("configs"), Path(__file__).parents[2] / "configs"]
    for place in places:
        if place.is_dir():
            return place
    if given:
        raise UserError(f"{given} is not a folder of recipes; valid: a folder with .yaml files, such as configs")
    raise UserError(
        "there is no folder configs here or beside the package; name the recipe's file, or a folder with recipes"
    )


def names_in(folder: Path) -> dict[str, Path]:
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in sorted(folder.rglob("*.yaml"))}


def located(name: str) -> Path:
    """The recipe file at this path, or with this name in the listing."""
    if Path(name).is_file():
        return Path(name)
    if (file := listed_as(name)) is not None:
        return file
    known = list(names_in(folder_of()))
    raise UserError(f"{name} is neither a recipe file nor a name in {folder_of()}{suggestion(name, known)}")


def listed_as(name: str) -> Path | None:
    """The file with this name in the listing, or with this path where the recipes are those of the package."""
    return recipe_names().get(name.removesuffix(".yaml").removeprefix("configs/"))


def recipe_names() -> dict[str, Path]:
    """The listing's names and files; none where there is no listing."""
    try:
        return names_in(folder_of())
    except UserError:
        return {}


def listing(folder: Path) -> list[Listed]:
    """A row for each recipe file; what does not read is told in ``error``."""
    rows = [{"name": name, "path": str(path), **_listed(path)} for name, path in names_in(folder).items()]
    if not rows:
        raise UserError(f"{folder} holds no recipes; valid: a folder with .yaml files")
    return rows


def _listed(path: Path) -> Listed:
    try:
        written = config.read(path)
        run = config.load(path)
    except UserError as error:
        return {"error": str(error).removeprefix(f"{path}: ")}
    sizes = sizes_of(written, run)
    return {
        "title": run.title,
        "paper": paper_of(path, run.title),
        "model": model_of(run),
        "data": run.data.name,
        "batch_sizes": sizes,
        "published": published_of(run, best=True),
    }


def model_of(run: config.Run) -> str:
    """'resnet20, depth 44': with the arguments that make it another network."""
    arguments = run.model.arguments
    return ", ".join([run.model.name, *(f"{key} {arguments[key]}" for key in ("depth", "width") if key in arguments)])


def sizes_of(written: Listed, run: config.Run) -> list[int]:
    """The global batches that a recipe speaks of."""
    found = {run.batch.global_batch_size, *(run.lr.table or {}), *(run.expect.by_batch_size if run.expect else {})}
    grown = {size for _, size in derive.growth_of(run)[0]}
    if run.phases is not None:
        found = {laid.batch.global_batch_size for laid in config.of_phases(run)}
    return sorted(found | grown | set(config.rows_of(written["table"]) if "table" in written else ()))


def paper_of(path: Path, title: str | None) -> str:
    """'Goyal et al. 2017, arXiv:1706.02677': what the comment above the recipe cites, that of the title if it can."""
    cited = [
        (
            names,
            f"{names[0]}{'' if len(names) == 1 else ' & ' + names[1] if len(names) == 2 else ' et al.'} {year}, {at}",
        )
        for before, year, at in CITATION.findall(_comment_above(path))
        if (names := _last_names(before))
    ]
    meant = re.search(r"\((\w+)[^()]* (?:19|20)\d\d\)", title or "")
    for names, words in cited:
        if meant is None or meant[1] == names[0]:
            return words
    return meant[0].strip("()") if meant else title or ""


def _comment_above(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    first = next((n for n, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    return " ".join(line.lstrip("# ").strip() for line in lines[:first])[:LONGEST_COMMENT]


def _last_names(text: str) -> list[str]:
    """The authors that a sentence ends with; 'et al.' counts as two more."""
    sentence = re.split(r"[.:;?] |\(", text.replace("et al.", "et al"))[-1].removeprefix("see ")
    names: list[str] = []
    for piece in reversed(re.split(r", and |, | and | & ", sentence)):
        name = piece.strip().removesuffix(" et al")
        if not re.fullmatch(r"[^\W\d_a-z][\w’'-]*", name):
            break
        names[:0] = [name, "", ""] if piece.endswith(" et al") else [name]
    return names


def published_of(run: config.Run, best: bool = False) -> Listed | None:
    """What the paper reports at this run's batch; ``best``: else at the largest batch that it reports."""
    expect, size = run.expect, run.batch.global_batch_size
    if expect is None:
        return None
    own = _stated(expect.model_dump(include={"numbers", "downstream", "top1", "steps"}))
    scores = {key: value for key, value in own.items() if key != "steps"}
    if size not in expect.by_batch_size and best and expect.by_batch_size and not scores:
        size = max(expect.by_batch_size)
    if size in expect.by_batch_size:
        facts = _stated(expect.by_batch_size[size].model_dump())
        if best and not scores.keys() & facts.keys():
            facts = {**scores, **facts}
    elif not expect.by_batch_size or best:
        facts = own
    else:
        return None
    return {"batch_size": size, **facts, "source": expect.source} if facts else None


def _stated(published: Listed) -> Listed:
    return {key: value for key, value in published.items() if value not in (None, {})}


def in_words(published: Listed | None, short: bool = False) -> str:
    if published is None:
        return "–"
    said = []
    if "top1" in published:
        spread = f" ± {published['top1_std']:g}" if "top1_std" in published and not short else ""
        said.append(f"{published['top1']:g}{spread} %")
    for key, number in {**published.get("numbers", {}), **published.get("downstream", {})}.items():
        name, unit = words_of(key)
        said.append(f"{name} {number:g} {unit}".rstrip())
    if "steps" in published:
        said.append(f"{published['steps']:,} steps")
    if "epochs" in published:
        said.append(f"{published['epochs']:g} epochs")
    return f"{', '.join(said[:1] if short else said)} at {published['batch_size']:,}"


GAP = 2
LEAST = {"recipe": 0, "paper": len("arXiv:1810.04805"), "workload": 10, "batch": 8, "published": 10}
"""Columns of the listing, and the signs that each has at least; what is longer goes over several lines. A name never
does, and where there is no room the last columns are left out."""


def table_of(rows: list[Listed], width: int) -> rich.table.Table:
    """In so many columns of a terminal."""
    cells = [_cells(row) for row in rows]
    natural = [max(map(widest, column)) for column in zip(LEAST, *cells, strict=True)]
    least = [natural[0], *list(LEAST.values())[1:]]
    places = kept(least, range(len(least)), width - GAP, GAP)
    room = width - GAP * len(places)
    shares = shared([natural[place] for place in places], [least[place] for place in places], room)
    shown = rich.table.Table(box=None, padding=(0, GAP, 0, 0), width=sum(shares) + GAP * len(places))
    headings = list(LEAST)
    for place, share in zip(places, shares, strict=True):
        shown.add_column(headings[place], overflow="fold", no_wrap=place == 0, width=share)
    if absent := [heading for place, heading in enumerate(headings) if place not in places]:
        shown.caption = f"no room for: {', '.join(absent)}"
    for row, texts in zip(rows, cells, strict=True):
        shown.add_row(*(plain(texts[place]) for place in places), style="red" if "error" in row else None)
    return shown


def _cells(row: Listed) -> tuple[str, ...]:
    if "error" in row:
        return row["name"], row["error"], "does not read", "", ""
    least, most = row["batch_sizes"][0], row["batch_sizes"][-1]
    sizes = f"{least:,}" if least == most else f"{least:,} – {most:,}"
    paper = row["paper"].replace(", arXiv", "\narXiv")
    workload = f"{row['model']}\non {row['data']}"
    published = in_words(row["published"], short=True).replace(" at ", "\nat ")
    return row["name"], paper, workload, sizes, published


def plain(text: str) -> Any:
    from rich.text import Text

    return Text(text)

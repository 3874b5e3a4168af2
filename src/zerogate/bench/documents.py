"""What is written of the tables: files of one, and docs/results.md with the README's results of all."""

from __future__ import annotations

from pathlib import Path

from zerogate.bench import older
from zerogate.bench import table as definitions
from zerogate.bench.figures import plot
from zerogate.bench.records import Records
from zerogate.bench.render import Rendered, render
from zerogate.bench.table import Table
from zerogate.errors import ConfigError, ZerogateError
from zerogate.files import write
from zerogate.report.figures import svg_document
from zerogate.report.text import markdown_table

BEGIN, END = "<!-- results: written by `zerogate bench render` -->", "<!-- end of results -->"
INTRODUCTION = """\
# Results

Written by `zerogate bench render` from the records in benchmarks/results, never by hand. Mean ± standard deviation over n
runs with different seeds. Costs are counted on the networks as compacted; accuracy is that of the last epoch, which no
validation or test image has chosen. Every record has the exact command, commit, device and versions, and its curve.
`zerogate bench TABLE` repeats a table and trains only what is not recorded."""


def rendered(table: Table, results: Path) -> tuple[Rendered, list[str]]:
    """A table from the records under `results`, and a line for each of these that cannot be used."""
    if table.source is not None:
        return older.render(table, results), []
    found = Records(results / "records").find(table.name)
    return render(table, found.records), found.problems


def write_table(table: Rendered, folder: Path, markdown: bool = True) -> list[Path]:
    """Write TABLE.md, .csv, .json and, where it has one, the plot as .svg; the files."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"csv": table.csv(), "json": table.json()} | ({"md": table.markdown() + "\n"} if markdown else {})
    if drawn := _svg(table):
        texts["svg"] = drawn
    written = []
    for suffix, text in texts.items():
        path = folder / f"{table.name}.{suffix}"
        write(path, text.encode())
        written.append(path)
    return written


def _svg(table: Rendered) -> str:
    if table.plot is None:
        return ""
    try:
        figure = plot(table)
    except ModuleNotFoundError as error:
        raise ZerogateError("plots need matplotlib; pip install 'zerogate[train]'") from error
    if figure is None:
        return ""
    return "\n".join(line.rstrip() for line in svg_document(figure).splitlines()) + "\n"


def results_page(tables: list[Rendered], plots: str = "results") -> str:
    """docs/results.md: all tables that have something to show."""
    parts = [INTRODUCTION]
    for table in tables:
        if table.sections:
            parts.append(table.markdown())
            if table.plot is not None:
                parts.append(f"![{table.title}]({plots}/{table.name}.svg)")
    return "\n\n".join(parts) + "\n"


def readme_results(definitions_: list[Table], tables: list[Rendered], docs: str = "docs") -> str:
    """The README's part: of every table that asks for it, the rows and columns that it asks for."""
    parts = []
    for definition, table in zip(definitions_, tables, strict=True):
        wanted = definition.readme
        if wanted is None or not table.sections:
            continue
        text = [f"**{table.title}**"]
        for section in table.sections:
            if section.title not in wanted.get("sections", [section.title]):
                continue
            starts = tuple(wanted.get("rows", [""]))
            keep = [i for i, line in enumerate(section.lines) if line.id.startswith(starts)]
            heads = [i for i, (name, _) in enumerate(section.columns, 1) if name in wanted.get("columns", [name])]
            tail = range(len(section.columns) + 1, len(section.head()))
            columns = [0, *heads, *tail]
            if not keep:
                continue
            if section.title:
                text.append(f"{section.title}:")
            rows = section.rows()
            text.append(
                markdown_table([section.head()[i] for i in columns], [[rows[k][i] for i in columns] for k in keep])
            )
            if wanted.get("facts"):
                text += [fact for fact in section.facts if " runs on " not in fact]
        if table.plot is not None:
            text.append(f"![{table.title}]({docs}/results/{table.name}.svg)")
        commands = ", ".join(f"`{command}`" for command in table.commands)
        text.append(wanted.get("text", f"{commands} repeats it; [all rows]({docs}/results.md)."))
        parts.append("\n\n".join(text))
    return "\n\n".join(parts)


def with_results(readme: str, results: str) -> str:
    """A README with its results between the two marks replaced.

    Raises:
        ConfigError: it lacks the marks.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ConfigError(f"the README has no place for results; put the lines {BEGIN} and {END} where they belong")
    return f"{before}{BEGIN}\n\n{results}\n\n{END}{after}"


def documents(results: Path, docs: Path) -> dict[Path, str]:
    """The texts of docs/results.md and README.md as the records have them."""
    return _documents(results, docs)[0]


def _documents(results: Path, docs: Path) -> tuple[dict[Path, str], list[tuple[Rendered, list[str]]]]:
    """These, and what `rendered` gives of every table."""
    readme = docs.parent / "README.md"
    if not docs.is_dir() or not readme.is_file():
        raise ConfigError(f"docs={docs} is no folder beside a README.md; run this in a clone, or give docs=DIR")
    tables = [definitions.load(name) for name in ORDER]
    found = [rendered(table, results) for table in tables]
    shown = [table for table, _ in found]
    part = readme_results(tables, shown, docs.name)
    return {docs / "results.md": results_page(shown), readme: with_results(readme.read_text(), part)}, found


def write_documents(results: Path, docs: Path) -> list[Path]:
    """Write docs/results.md, the README's results, and for every table that has something its files in docs/results."""
    texts, found = _documents(results, docs)
    written = []
    for table, problems in found:
        for problem in problems:
            print(problem)
        if table.sections:
            written += write_table(table, docs / "results", markdown=False)
    for path, text in texts.items():
        write(path, text.encode())
        written.append(path)
    return written


ORDER = ("lenet", "googlenet", "resnet20", "digits", "latency", "overhead", "zoo", "recipes")
"""Of the tables in documents."""

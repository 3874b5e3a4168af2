"""What is written of the tables: files of one, and docs/results.md with the README's results of all."""

from __future__ import annotations

from pathlib import Path

from zerogate.bench import older
from zerogate.bench import table as tables
from zerogate.bench.figures import plot
from zerogate.bench.records import Records
from zerogate.bench.render import Rendered, Section, render
from zerogate.bench.table import Plain, Table
from zerogate.errors import ConfigError, ZerogateError
from zerogate.files import write
from zerogate.report.figures import svg_document
from zerogate.report.text import markdown_table

ORDER = ("lenet", "googlenet", "resnet20", "digits", "latency", "overhead", "zoo", "recipes")
"""The tables in documents, in this order."""
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
    of_table = Records(results / "records").find(table.name)
    return render(table, of_table.records), of_table.problems


def write_table(table: Rendered, folder: Path, markdown: bool = True) -> list[Path]:
    """Writes TABLE.md, .csv, .json and, where it has one, the plot as .svg.

    Returns:
        The files.
    """
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


def results_page(shown: list[Rendered]) -> str:
    """docs/results.md: all tables that have something to show, and their plots from the folder results."""
    parts = [INTRODUCTION]
    for table in shown:
        if table.sections:
            parts.append(table.markdown())
            if table.plot is not None:
                parts.append(f"![{table.title}](results/{table.name}.svg)")
    return "\n\n".join(parts) + "\n"


def readme_results(definitions: list[Table], shown: list[Rendered], docs: str = "docs") -> str:
    """The README's part: of every table that asks for it, the rows and columns that it asks for.

    `readme` of a table has the keys `sections`, `rows` (how their ids begin) and `columns`, all of them by default, `facts`
    (whether to repeat the sentences below a section), and `text`, which stands below in place of the command.
    """
    parts = []
    for definition, table in zip(definitions, shown, strict=True):
        if definition.readme is None or not table.sections:
            continue
        text = [f"**{table.title}**"]
        for section in table.sections:
            if section.title in definition.readme.get("sections", [section.title]):
                text += _excerpt(section, definition.readme)
        if table.plot is not None:
            text.append(f"![{table.title}]({docs}/results/{table.name}.svg)")
        commands = ", ".join(f"`{command}`" for command in table.commands)
        text.append(definition.readme.get("text", f"{commands} repeats it; [all rows]({docs}/results.md)."))
        parts.append("\n\n".join(text))
    return "\n\n".join(parts)


def _excerpt(section: Section, asked: Plain) -> list[str]:
    """The parts of a section for the README; none where it has no such rows."""
    starts = tuple(asked.get("rows", [""]))
    rows = [row for line, row in zip(section.lines, section.rows(), strict=True) if line.id.startswith(starts)]
    if not rows:
        return []
    names = [name for name, _ in section.columns]
    head = section.head()
    shown = [i for i, name in enumerate(names, 1) if name in asked.get("columns", [name])]
    columns = [0, *shown, *range(len(names) + 1, len(head))]  # the label, columns, then n and goal
    parts = [f"{section.title}:"] if section.title else []
    parts.append(markdown_table([head[i] for i in columns], [[row[i] for i in columns] for row in rows]))
    if asked.get("facts"):
        parts += [fact for fact in section.facts if " runs on " not in fact]
    return parts


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
    """The texts of docs/results.md and README.md as the records have them.

    Raises:
        ConfigError: a folder that only a clone has is missing.
    """
    return _documents(results, docs)[0]


def _documents(results: Path, docs: Path) -> tuple[dict[Path, str], list[tuple[Rendered, list[str]]]]:
    """These texts, and what `rendered` gives of every table."""
    readme = docs.parent / "README.md"
    if not docs.is_dir() or not readme.is_file():
        raise ConfigError(f"docs={docs} is no folder beside a README.md; documents are part of a clone of zerogate, not of "
                          "an installed package: run this in a clone, or give docs=DIR")  # fmt: skip
    check_results(results)
    definitions = [tables.load(name) for name in ORDER]
    pairs = [rendered(table, results) for table in definitions]
    shown = [table for table, _ in pairs]
    part = readme_results(definitions, shown, docs.name)
    return {docs / "results.md": results_page(shown), readme: with_results(readme.read_text(), part)}, pairs


def check_results(results: Path) -> None:
    """Raises `ConfigError` unless the folder of results is there, which is so in a clone alone."""
    if not results.is_dir():
        raise ConfigError(f"results={results} is no folder; records are part of a clone of zerogate, not of an installed "
                          "package: run this in a clone, or give results=DIR")  # fmt: skip


def write_documents(results: Path, docs: Path) -> list[Path]:
    """Writes docs/results.md, the README's results, and for every table that has something its files in docs/results.

    Returns:
        The files.
    """
    texts, pairs = _documents(results, docs)
    written = []
    for table, problems in pairs:
        for problem in problems:
            print(problem)
        if table.sections:
            written += write_table(table, docs / "results", markdown=False)
    for path, text in texts.items():
        write(path, text.encode())
        written.append(path)
    return written

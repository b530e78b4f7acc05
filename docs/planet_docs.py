"""Sphinx extension of this documentation: links from code to the API, equations in docstrings, tables of presets."""

import dataclasses
import importlib
import re
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

import planet_lib
from planet_lib.training.presets import PRESETS, Preset, sources

PACKAGES = ("models", "objectives", "planning", "data", "envs", "testing", "training")
# Documented though in no __all__: what make_env returns, what a training run is configured with, and maths for cells.
EXTRA = (
    "planet_lib.envs.wrappers.StandardEnv",
    "planet_lib.envs.wrappers.PadActions",
    "planet_lib.envs.standard_vector.StandardVectorEnv",
    "planet_lib.envs.rays.RayRenderer",
    "planet_lib.training.presets.MODEL_FIELDS",
    "planet_lib.training.presets.PRESETS",
    "planet_lib.training.presets.add_flags",
    "planet_lib.training.presets.Preset",
    "planet_lib.training.presets.build_agent",
    "planet_lib.training.presets.build_model",
    "planet_lib.training.presets.build_objective",
    "planet_lib.training.presets.get_preset",
    "planet_lib.training.presets.obs_shape_of",
    "planet_lib.training.presets.sources",
    "planet_lib.training.progress.PhaseBar",
    "planet_lib.models.gaussian.kl_divergence",
    "planet_lib.models.gaussian.log_density",
    "planet_lib.models.gaussian.sample",
    "planet_lib.models.kaixhin.rename_kaixhin",
    "planet_lib.training.checkpoint.previous_checkpoint",
)


def documented_names() -> dict[str, str]:
    """Map every way to write a public name (short, by package, where it is defined) to the one it is documented by."""
    names: dict[str, str] = {}

    def add(full: str, thing: Any) -> None:
        names[full] = full
        names.setdefault(full.rpartition(".")[2], full)
        if hasattr(thing, "__qualname__"):
            names[f"{thing.__module__}.{thing.__qualname__}"] = full

    for name in planet_lib.__all__:
        add(f"planet_lib.{name}", getattr(planet_lib, name))
    for package in PACKAGES:
        module = importlib.import_module(f"planet_lib.{package}")
        for name in module.__all__:
            if name in planet_lib.__all__:
                names[f"planet_lib.{package}.{name}"] = f"planet_lib.{name}"
            else:
                add(f"planet_lib.{package}.{name}", getattr(module, name))
    for full in EXTRA:
        module_name, _, name = full.rpartition(".")
        add(full, getattr(importlib.import_module(module_name), name))
    return names


class LinkCode(SphinxTransform):
    """Make a link of every `code` that is exactly a documented name, or a call of it without arguments."""

    default_priority = 500

    def apply(self, **kwargs: Any) -> None:
        """Wrap the literals of one page."""
        names = documented_names()
        for literal in list(self.document.findall(nodes.literal)):
            full = names.get(literal.astext().removesuffix("()"))
            if full is None or _is_inside(literal, nodes.reference, nodes.title, addnodes.pending_xref):
                continue
            target = addnodes.pending_xref(
                "",
                refdomain="py",
                reftype="obj",
                reftarget=full,
                refexplicit=True,
                refwarn=True,
                refdoc=self.env.docname,
            )
            literal.replace_self(target)
            target += literal


def _is_inside(node: nodes.Node, *kinds: type[nodes.Node]) -> bool:
    parent = node.parent
    while parent is not None:
        if isinstance(parent, kinds):
            return True
        parent = parent.parent
    return False


def resolve_definition(app: Sphinx, env: Any, node: Any, contnode: nodes.Element) -> nodes.Element | None:
    """Resolve a type's defining module (`planet_lib.types.State`) to where it is documented (`planet_lib.State`)."""
    full = documented_names().get(node.get("reftarget", ""))
    if full is None or node.get("refdomain") != "py" or full == node["reftarget"]:
        return None
    domain = env.get_domain("py")
    resolved: nodes.Element | None = domain.resolve_xref(
        env, node["refdoc"], app.builder, "obj", full, {**node.attributes, "reftarget": full}, contnode
    )
    return resolved


_EQUATION = re.compile(r"^[\w'\[\], |()+-]+ [=~] ")


def readable(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Prepare a docstring before napoleon reads it.

    Docstrings are written to be read as plain text. A paragraph that is an equation becomes a literal block, and
    characters that mean something only to reStructuredText (`|x|`, `a * b`, `std_`) are escaped.
    """
    paragraphs: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            paragraphs[-1].append(line)
        else:
            paragraphs.append([])
    result: list[str] = []
    in_example = False
    for paragraph in filter(None, paragraphs):
        in_example = (in_example and paragraph[0].startswith(" ")) or paragraph[0].strip() in ("Example:", "Examples:")
        if in_example:
            result += paragraph
        elif _EQUATION.match(paragraph[0]) and not paragraph[-1].endswith("."):
            equations = [part.rstrip(";") for line in paragraph for part in line.replace("`", "").split(";  ")]
            result += [".. code-block:: text", "", *(f"    {line}" for line in equations)]
        else:
            result += [_escape(line) for line in paragraph]
        result.append("")
    if what in ("property", "attribute") and result:
        result[0] = f": {result[0]}"  # or napoleon takes what stands before a colon for the type
    lines[:] = result


def _escape(line: str) -> str:
    """Escape what is markup only by accident; leave code, emphasis and the names of `*args` alone."""
    if re.match(r"^\s*\*{1,2}\w+:", line):
        return line
    line = re.sub(r"(?<=: )([A-Z])\.$", r"\1\\.", line)  # "action_dim: A." is no list that begins with A
    parts = re.split(r"(`[^`]*`|\*\*[^*\s][^*]*\*\*|(?<![\w*])\*[^*\s](?:[^*]*[^*\s])?\*(?![\w*]))", line)
    for index in range(0, len(parts), 2):
        parts[index] = re.sub(r"([*|])", r"\\\1", parts[index])
        parts[index] = re.sub(r"(?<=\w)_(?=\W|$)", r"\\_", parts[index])
    return "".join(parts)


def skip_fields(app: Sphinx, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the fields of NamedTuples, whose own docstrings say only "Alias for field number 0"."""
    return True if type(thing).__name__ == "_tuplegetter" else None


def hide_protocol_signature(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """Leave out the `(*args, **kwargs)` that a protocol seems to take: nobody calls one."""
    return ("", "") if what == "class" and getattr(thing, "_is_protocol", False) else None


class PresetTable(Directive):
    """The table of every setting in every preset, read from `planet_lib.training.presets` when the page is built."""

    def run(self) -> list[nodes.Node]:
        """Make the table."""
        rows = []
        for item in dataclasses.fields(Preset):
            values = [getattr(preset, item.name) for preset in PRESETS.values()]
            cells = [
                nodes.strong(text=_shown(value)) if value != values[0] else nodes.Text(_shown(value))
                for value in values
            ]
            rows.append([_flag(item.name), *cells, nodes.Text(item.metadata["help"])])
        return [_table(["flag", *PRESETS, "what it is"], rows)]


class PresetSources(Directive):
    """The table of every setting of one preset with the source of its value."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Make the table."""
        name = self.arguments[0]
        rows = []
        for field, source in sources(name).items():
            word, _, text = source.partition(":")
            cell = nodes.inline()
            cell += [nodes.strong(text=f"{word}:"), nodes.Text(text)]
            rows.append([_flag(field), nodes.Text(_shown(getattr(PRESETS[name], field))), cell])
        return [_table(["flag", name, "source"], rows)]


def _flag(field: str) -> nodes.literal:
    return nodes.literal(text=f"--{field.replace('_', '-')}")


def _shown(value: Any) -> str:
    return f"{value:,}".replace(",", " ") if isinstance(value, int) else f"{value}"


def _table(header: list[str], rows: list[list[nodes.Node]]) -> nodes.table:
    """Build a table of one header line and rows of inline nodes."""
    group = nodes.tgroup(cols=len(header))
    group += [nodes.colspec(colwidth=1) for _ in header]
    body = nodes.tbody()
    head = nodes.thead()
    head += _row([nodes.Text(text) for text in header])
    body += [_row(row) for row in rows]
    group += [head, body]
    table = nodes.table(classes=["presets"])
    table += group
    return table


def _row(cells: list[nodes.Node]) -> nodes.row:
    row = nodes.row()
    for cell in cells:
        paragraph = nodes.paragraph()
        paragraph += cell
        entry = nodes.entry()
        entry += paragraph
        row += entry
    return row


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect all of it."""
    app.add_transform(LinkCode)
    app.add_directive("preset-table", PresetTable)
    app.add_directive("preset-sources", PresetSources)
    app.connect("missing-reference", resolve_definition)
    app.connect("autodoc-process-docstring", readable, priority=400)  # before napoleon, at 500
    app.connect("autodoc-process-signature", hide_protocol_signature)
    app.connect("autodoc-skip-member", skip_fields)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

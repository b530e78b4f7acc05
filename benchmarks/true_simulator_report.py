"""What `true_simulator.py` writes and shows: the rows of results, the tables and the picture made from them.

It knows no planner and no simulator, and reads everything from the CSV. Only whole episodes with the paper's horizon
are reported.

Source of the paper's scores and sizes: Hafner et al. 2019 (arXiv:1811.04551), table 1, "CEM + true simulator", and
appendix A: horizon 12, 1000 candidates, 10 iterations, 100 elites, and the action repeats of the tasks.
"""

import csv
import io
import os
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, str]

NAMED_BY = ["task", "planner", "candidates", "iterations", "elites", "horizon", "settings", "env_steps", "seed"]
COLUMNS = [
    *NAMED_BY,
    *["repeat", "return", "decisions", "rollouts", "physics_steps", "seconds", "steps_per_second", "threads"],
    *["commit", "mujoco", "dm_control", "torch", "date"],
]
STYLES = {  # colour and marker
    "cem": ("#2f6fb5", "o"),
    "cem-warm": ("#2c8c5a", "s"),
    "icem": ("#e07b1a", "^"),
    "mppi": ("#8b4fb0", "D"),
    "shooting": ("#8a8f98", "v"),
}


class Paper(NamedTuple):
    """What the paper reports of a task, and how many physics steps one episode of that takes."""

    score: float
    physics_steps: float


PAPER = {
    "cartpole-swingup": Paper(850, 120e6),
    "reacher-easy": Paper(964, 120e6),
    "cheetah-run": Paper(656, 120e6),
    "finger-spin": Paper(825, 240e6),
    "ball_in_cup-catch": Paper(993, 1200e6),
    "walker-walk": Paper(994, 1200e6),
}


class Rung(NamedTuple):
    """The episodes of one planner at one size in one task: returns by seed."""

    task: str
    planner: str
    size: str
    settings: str
    physics_steps: float  # of one episode
    minutes: float  # of one episode
    returns: dict[int, float]

    @property
    def mean(self) -> float:
        """The mean return over the seeds."""
        return statistics.fmean(self.returns.values())


def key(row: Row) -> tuple[str, ...]:
    """Return what makes a row the same episode as another: all but results, machine and date."""
    return tuple(row[name] for name in NAMED_BY)


def read(path: Path) -> dict[tuple[str, ...], Row]:
    """Return the rows of a file by their key. A last line without its end was torn by a kill, and is left out."""
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    reader = csv.DictReader(io.StringIO(whole))
    if whole and reader.fieldnames != COLUMNS:
        raise ValueError(f"{path} must have the columns {','.join(COLUMNS)}, got {','.join(reader.fieldnames or [])}")
    return {key(row): row for row in reader}


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a row, on the disk when this returns; the first one brings the header, and a torn last line is cut off."""
    if set(row) != set(COLUMNS):
        raise ValueError(f"row must have exactly the columns {','.join(COLUMNS)}, got {','.join(row)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0)
        length = file.read().rfind(b"\n") + 1
        file.truncate(length)
        line = io.StringIO()
        writer = csv.DictWriter(line, COLUMNS, lineterminator="\n")
        if length == 0:
            writer.writeheader()
        writer.writerow(row)
        file.write(line.getvalue().encode())
        file.flush()
        os.fsync(file.fileno())


def rungs_of(rows: Iterable[Row]) -> list[Rung]:
    """Group whole episodes with horizon 12 by all but the seed; in each task those that simulate least come first."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row["env_steps"] == "1000" and row["horizon"] == "12":
            groups.setdefault(key(row)[:-1], []).append(row)
    rungs = []
    for group in groups.values():
        first = group[0]
        elites = f", {first['elites']} elites" if first["elites"] else ""
        rungs.append(
            Rung(
                task=first["task"],
                planner=first["planner"],
                size=f"{first['candidates']} x {first['iterations']}{elites}",
                settings=first["settings"],
                physics_steps=statistics.fmean(float(row["physics_steps"]) for row in group),
                minutes=statistics.fmean(float(row["seconds"]) for row in group) / 60,
                returns={int(row["seed"]): float(row["return"]) for row in group},
            )
        )
    return sorted(rungs, key=lambda rung: (list(PAPER).index(rung.task), rung.physics_steps))


def lines_of(rungs: Sequence[Rung]) -> dict[str, list[Rung]]:
    """Group rungs by planner; one with several settings becomes several, named by those that differ."""
    lines: dict[str, list[Rung]] = {}
    order = list(STYLES)
    for rung in sorted(rungs, key=lambda rung: order.index(rung.planner)):
        others = [set(other.settings.split()) for other in rungs if other.planner == rung.planner]
        differing = [text for text in rung.settings.split() if any(text not in other for other in others)]
        lines.setdefault(" ".join([rung.planner, *differing]), []).append(rung)
    return lines


def largest(rungs: Sequence[Rung], task: str) -> Rung | None:
    """Return plain CEM at the largest size that was played."""
    plain = [rung for rung in rungs if rung.task == task and rung.planner == "cem"]
    return max(plain, key=lambda rung: rung.physics_steps, default=None)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def millions(rung: Rung) -> str:
    """Return the physics steps of one episode, in millions, with three digits."""
    value = rung.physics_steps / 1e6
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def paper_table(rungs: Sequence[Rung]) -> str:
    """Set plain CEM at its largest size beside the paper's row."""
    rows = []
    for task, paper in PAPER.items():
        best = largest(rungs, task)
        if best is None:
            rows.append([task, f"{paper.score:.0f}", *["not run"] * 6])
            continue
        values = best.returns.values()
        ours = f"{best.mean:.0f} ({min(values):.0f} to {max(values):.0f})" if len(values) > 1 else f"{best.mean:.0f}"
        seeds = ", ".join(str(seed) for seed in sorted(best.returns))
        share = f"{millions(best)} ({best.physics_steps / paper.physics_steps:.0%})"
        rows.append(
            [task, f"{paper.score:.0f}", ours, best.size, str(len(values)), seeds, share, f"{best.minutes:.1f}"]
        )
    header = "task,the paper,ours,candidates x iterations,episodes,seeds,million steps (of the paper's),minutes"
    return table(header.split(","), rows)


def reached(line: Sequence[Rung], goal: Rung, share: float) -> str:
    """Return the fewest steps with which a planner earns `share` of the goal's return on the seeds of both."""
    compared = False
    for rung in line:
        both = rung.returns.keys() & goal.returns.keys()
        if not both:
            continue
        compared = True
        if sum(rung.returns[seed] for seed in both) >= share * sum(goal.returns[seed] for seed in both):
            return f"{millions(rung)} ({goal.physics_steps / rung.physics_steps:.1f}x fewer, {len(both)})"
    return "not reached" if compared else "not run"


def reach_table(rungs: Sequence[Rung], share: float) -> str:
    """Show how many steps each planner needs for what plain CEM earns at its largest size."""
    lines = lines_of(rungs)
    rows = []
    for task in PAPER:
        goal = largest(rungs, task)
        if goal is None:
            continue
        of_task = ([rung for rung in line if rung.task == task] for line in lines.values())
        cells = [reached(line, goal, share) for line in of_task]
        rows.append([task, f"{share * goal.mean:.0f}", millions(goal), *cells])
    return table(["task", "return", "plain CEM's million steps", *lines], rows)


def facts(rows: Sequence[Row]) -> str:
    """Return what the rows were made with, as a list."""
    names = ("threads", "commit", "mujoco", "dm_control", "torch")
    return "\n".join(f"{name}: {', '.join(sorted({row[name] for row in rows}))}" for name in names)


def tables(rows: Sequence[Row], *, share: float) -> str:
    """Return both tables and what they were made with, or raise where there is no whole episode."""
    rungs = rungs_of(rows)
    if not rungs:
        raise ValueError("the results must hold an episode of 1000 environment steps planned with horizon 12, got none")
    goal = "the mean return" if share == 1 else f"{share:.0%} of the mean return"
    return (
        f"Plain CEM on the true simulator, mean (least to most) over the seeds:\n\n{paper_table(rungs)}\n\n"
        f"Million simulated physics steps per episode with which a planner first reaches {goal} of plain CEM at its "
        "largest size (how many times fewer, how many seeds both have):\n\n"
        f"{reach_table(rungs, share)}\n\n{facts(rows)}"
    )


def draw(rows: Iterable[Row], path: Path) -> None:
    """Draw the return against the simulated steps: a panel for each task, a line for each planner."""
    # Imported here, so that episodes can be played without matplotlib; the canvas leaves its global state alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 -- only where it draws
    from matplotlib.figure import Figure  # noqa: PLC0415 -- likewise

    rungs = rungs_of(rows)
    if not rungs:
        raise ValueError("the results must hold an episode of 1000 environment steps planned with horizon 12, got none")
    tasks = [task for task in PAPER if any(rung.task == task for rung in rungs)]
    columns = min(3, len(tasks))
    height = -(-len(tasks) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.5 * height + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(height, columns, squeeze=False).flatten()
    lines = lines_of(rungs)
    styles = style_of(lines)
    for panel in panels[len(tasks) :]:
        panel.set_visible(False)
    for panel, task in zip(panels, tasks, strict=False):
        draw_panel(
            panel, {label: [rung for rung in line if rung.task == task] for label, line in lines.items()}, styles
        )
    figure.supxlabel("simulated physics steps per episode")
    figure.supylabel("return")
    handles = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=min(6, len(handles)), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def draw_panel(panel: Any, lines: dict[str, list[Rung]], styles: dict[str, dict[str, str]]) -> None:
    """Draw one task: means, the range over the seeds, and the paper's score."""
    from matplotlib.ticker import NullFormatter  # noqa: PLC0415 -- as above

    for label, line in lines.items():
        if line:
            steps, means = [rung.physics_steps for rung in line], [rung.mean for rung in line]
            least, most = ([end(rung.returns.values()) for rung in line] for end in (min, max))
            panel.plot(steps, means, markersize=4, label=label, **styles[label])
            panel.fill_between(steps, least, most, color=styles[label]["color"], alpha=0.15, linewidth=0)
    rungs = [rung for line in lines.values() for rung in line]
    paper, steps = PAPER[rungs[0].task], [rung.physics_steps for rung in rungs]
    highest = max(paper.score, *(value for rung in rungs for value in rung.returns.values()))
    panel.axhline(paper.score, color="black", linestyle="--", linewidth=1, label="the paper's CEM")
    panel.set(title=rungs[0].task, xscale="log", ylim=(0, 1.08 * highest))
    panel.set_xlim(min(steps) / 2, max(steps) * 2)
    panel.xaxis.set_minor_formatter(NullFormatter())  # labels between the powers of ten would overlap
    panel.grid(alpha=0.3)


def style_of(lines: dict[str, list[Rung]]) -> dict[str, dict[str, str]]:
    """Give each planner its colour and marker, and each further setting of one another dash."""
    dashes = ["-", "--", ":", "-."]
    counts: dict[str, int] = {}
    styles = {}
    for label, (first, *_) in lines.items():
        number = counts.get(first.planner, 0)
        counts[first.planner] = number + 1
        colour, marker = STYLES[first.planner]
        styles[label] = {"color": colour, "marker": marker, "linestyle": dashes[number % len(dashes)]}
    return styles

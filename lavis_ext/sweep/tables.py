"""The sweep's table, on the terminal, as Markdown and as JSON."""

from dataclasses import asdict
from typing import Any

from lavis_ext.common.tables import Table, facts, markdown, table
from lavis_ext.evaluation.table import shown, shown_difference
from lavis_ext.sweep.differences import SEEDS, Difference
from lavis_ext.sweep.folder import Status
from lavis_ext.sweep.grid import SEED, short_keys
from lavis_ext.sweep.results import Choice, Results, RunResult


def result_tables(results: Results) -> list[Table | str]:
    """Parts for the terminal."""
    parts: list[Table | str] = [table(*_rows(results)), "\n".join(notes(results))]
    if unfinished := _unfinished(results):
        parts.append(facts(unfinished, header=("run", "not finished")))
    return parts


def result_markdown(results: Results) -> str:
    """The same as Markdown."""
    rows, header = _rows(results)
    parts = [f"# {results.title}", f"Runs of `{results.config}`."]
    parts += [markdown([[_cell(each) for each in row] for row in rows], header), *notes(results)]
    if unfinished := _unfinished(results):
        cells = [[_cell(each) for each in row] for row in unfinished]
        parts.append(markdown(cells, ("run", "not finished")))
    return "\n\n".join(parts) + "\n"


def result_json(results: Results) -> dict[str, Any]:
    """The same as JSON values; shares are between 0 and 1."""
    return {
        "config": results.config,
        "metric": asdict(results.metric),
        "split": results.split,
        "choices": [
            {
                "values": dict(choice.values),
                "mean": choice.mean,
                "spread": choice.spread,
                "difference": choice.difference and asdict(choice.difference),
                "blind": choice.blind,
                "above_blind": choice.above_blind and asdict(choice.above_blind),
                "runs": [_run_json(run) for run in choice.runs],
            }
            for choice in results.choices
        ],
    }


def notes(results: Results) -> list[str]:
    """What the table's numbers are, and how many runs they are of."""
    lines = [_counted(results)]
    if lacking := [each for each in results.with_status(Status.FINISHED) if each.value is None]:
        lines.append(
            f"{len(lacking)} finished without a finite {results.metric.name} on {results.split}"
        )
    if results.is_search or not results.split:
        return lines
    if any(choice.spread is not None for choice in results.choices):
        lines.append("spread: standard deviation over seeds")
    differences = [each.difference for each in results.choices if each.difference]
    if differences:
        points = ", in percentage points" if results.metric.unit == "share" else ""
        kinds = {each.over for each in differences if each.low is not None}
        over = "images, seeds or both" if len(kinds) > 1 else "".join(kinds)
        intervals = f", with a 95 % interval over {over}" if over else ""
        lines.append(
            f"difference: to {label(results, results.choices[0])}, over the seeds that both "
            f"have{points}{intervals}"
        )
    if has_blind(results):
        lines.append(
            "question only: an answerer trained on the same questions without images; above it: "
            "paired difference with a 95 % interval"
        )
    lines += [
        f"{label(results, choice)}: not above a question-only answerer, which sees no image"
        for choice in results.choices
        if choice.above_blind and not is_above(choice.above_blind)
    ]
    if any(each.over == SEEDS for each in differences):
        lines.append(
            f"over seeds only: the runs have no {results.metric.name} by image, or for other images"
        )
    return lines


def has_blind(results: Results) -> bool:
    """Whether any choice is compared with a question-only answerer."""
    return any(choice.blind is not None for choice in results.choices)


def is_above(difference: Difference) -> bool:
    """Whether a difference, or its interval if it has one, is above 0."""
    return (difference.value if difference.low is None else difference.low) > 0


def label(results: Results, choice: Choice) -> str:
    """A choice in words: its values, with keys where there are several."""
    short = short_keys(results.keys)
    values = {short[key]: shown_value(results, value) for key, value in choice.values.items()}
    if len(values) == 1:
        return next(iter(values.values()))
    return ", ".join(f"{key}={value}" for key, value in values.items()) or "all runs"


def shown_value(results: Results, text: str) -> str:
    """A key's value; numbers that a search drew with four digits."""
    try:
        return f"{float(text):.4g}" if results.is_search else text
    except ValueError:
        return text


def interval(results: Results, difference: Difference) -> str:
    """The interval in words; empty without one."""
    if difference.low is None or difference.high is None:
        return ""
    low, high = (shown_difference(results.metric, e) for e in (difference.low, difference.high))
    return f"{low} to {high}"


def _rows(results: Results) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    short = short_keys(results.keys)
    name = results.metric.name or "metric"
    measured = f"{name}, {results.split}" if results.split else name
    rows: list[tuple[str, ...]] = []
    for choice in results.choices:
        row = tuple(shown_value(results, choice.values[key]) for key in results.keys)
        if results.is_search:
            rows.append((choice.runs[0].run.name, *row, shown(results.metric, choice.mean)))
            continue
        rows.append((*(row or ("all runs",)), *_summary(results, choice)))
    heads = tuple(short[key] for key in results.keys)
    if results.is_search:
        return rows, ("trial", *heads, measured)
    summary: tuple[str, ...] = ("runs", measured, "spread", "difference", "95 % interval", "over")
    if has_blind(results):
        summary = (*summary, "question only", "above it", "95 % interval")
    return rows, (*(heads or ("",)), *summary)


def _summary(results: Results, choice: Choice) -> tuple[str, ...]:
    spread = "-"
    if choice.spread is not None:
        spread = shown_difference(results.metric, choice.spread).removeprefix("+")
    difference = choice.difference
    compared = ("-", "", "")
    if difference is not None:
        value = shown_difference(results.metric, difference.value)
        compared = value, interval(results, difference), difference.over
    beside: tuple[str, ...] = ()
    if has_blind(results):
        beside = shown(results.metric, choice.blind), *_above(results, choice)
    return str(len(choice.reached)), shown(results.metric, choice.mean), spread, *compared, *beside


def _above(results: Results, choice: Choice) -> tuple[str, str]:
    above = choice.above_blind
    if above is None:
        return "-", ""
    return shown_difference(results.metric, above.value), interval(results, above)


def _counted(results: Results) -> str:
    counts = {status: len(results.with_status(status)) for status in Status}
    of = f"{counts[Status.FINISHED]} of {len(results.runs)} runs finished"
    others = [f"{count} {s}" for s, count in counts.items() if count and s != Status.FINISHED]
    return ", ".join([of, *others])


def _unfinished(results: Results) -> list[tuple[str, str]]:
    return [
        (each.run.name, f"{each.status}: {each.error}" if each.error else str(each.status))
        for each in results.runs
        if each.status is not Status.FINISHED
    ]


def _run_json(result: RunResult) -> dict[str, Any]:
    return {
        "name": result.run.name,
        "seed": result.run.values.get(SEED),
        "status": str(result.status),
        "error": result.error,
        "value": result.value,
    }


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")

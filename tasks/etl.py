"""The tasks of `example.ETL`: numbers in, one total out."""

from __future__ import annotations

from typing import Any

from director import task


@task(name="EXTRACT")
def extract(payload: dict[str, Any]) -> list[int | None]:
    """Read the numbers 1 to `count`, and one gap, as real data has."""
    return [*range(1, int(payload["count"]) + 1), None]


@task(name="CLEAN")
def clean(numbers: list[int | None]) -> list[int]:
    """Drop the gaps."""
    return [number for number in numbers if number is not None]


@task(name="SQUARE")
def square(numbers: list[int]) -> list[int]:
    """Square each number."""
    return [number * number for number in numbers]


@task(name="COMBINE")
def combine(branches: list[list[int]]) -> dict[str, int]:
    """Add up each branch of the group; they come in the order of the YAML."""
    numbers, squares = branches
    return {"sum": sum(numbers), "sum_of_squares": sum(squares)}


@task(name="LOAD")
def load(totals: dict[str, int]) -> str:
    """Say what a real one would write to a database."""
    return ", ".join(f"{name} is {total}" for name, total in totals.items())

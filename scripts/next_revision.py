"""Print the number of the next migration: one more than the highest in alembic/versions."""

from pathlib import Path

versions = Path(__file__).parents[1] / "alembic" / "versions"
numbers = [int(number) for number in (path.name.split("_")[0] for path in versions.glob("*.py")) if number.isdecimal()]
print(f"{max(numbers, default=0) + 1:03}")

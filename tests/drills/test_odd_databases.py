"""Databases as odd as operators make them, upgraded from every revision: kept whole, or refused by name, untouched."""

import random

import pytest

from services.storage import ForeignDatabaseError, Storage, migrations
from tests.conftest import DRILL_SCALE
from tests.support.databases import rows_of
from tests.support.odd_databases import CONFLICTS, KEPT, REVISIONS, Oddity, answers, make_odd_database, state

pytestmark = pytest.mark.drill

# The columns that no revision repairs or rewrites.
STABLE = tuple("id prompt model_name duration_seconds sample_rate channels file_path created_at error_message".split())


def choose(seed: int) -> tuple[Oddity, ...]:
    """Return some oddities in some order; in two of three rounds none that has to be refused."""
    random_choice = random.Random(seed)
    kept = random_choice.sample(KEPT, random_choice.randint(2, 6))
    refused = random_choice.sample(CONFLICTS, 2) if seed % 3 == 0 else []
    return tuple(random_choice.sample([*kept, *refused], len(kept) + len(refused)))


@pytest.mark.sampled
@pytest.mark.parametrize("revision", REVISIONS)
@pytest.mark.parametrize("round_", range(max(1, round(20 * DRILL_SCALE))))
def test_an_odd_database_is_kept_whole_or_refused_by_name(empty_database_url: str, revision: str, round_: int) -> None:
    url = empty_database_url
    oddities = make_odd_database(url, revision, choose(1_000 * round_ + REVISIONS.index(revision)))
    before = state(url)
    storage = Storage(url)
    try:
        if any(oddity.until for oddity in oddities):
            named = "|".join(oddity.named for oddity in oddities if oddity.until)
            with pytest.raises(ForeignDatabaseError, match=rf"({named}).*Nothing was changed"):
                migrations.upgrade(storage)
            assert state(url) == before
            return
        answered = answers(url, oddities)
        rows = rows_of(url, "generations", STABLE)
        migrations.upgrade(storage)
        for _ in range(2):
            assert answers(url, oddities) == answered
            assert sorted(row[0] for row in rows_of(url, "generations", STABLE)) == sorted(row[0] for row in rows)
            assert migrations.check(storage) == []
            migrations.downgrade(storage, "001")
            assert answers(url, oddities) == answered
            migrations.upgrade(storage)
        assert migrations.find_differences(storage) == []
    finally:
        storage.dispose()

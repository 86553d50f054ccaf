"""What operators added to a database: kept by every migration, or refused by name with nothing changed."""

import re

import pytest

from services.storage import ForeignDatabaseError, create_generation, get_session, init_db, migrations
from tests.support.factories import a_request
from tests.support.odd_databases import CONFLICTS, KEPT, Oddity, answers, make_odd_database, state
from tests.support.sessions import opened


def each(oddities: tuple[Oddity, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("oddity", oddities, ids=lambda oddity: oddity.name)


@pytest.mark.sampled
@each(KEPT)
@pytest.mark.parametrize("revision", ["original", "001", "005"])
def test_what_an_operator_added_survives_the_upgrade_and_a_downgrade(
    empty_database_url: str, oddity: Oddity, revision: str
) -> None:
    url = empty_database_url
    oddities = make_odd_database(url, revision, (oddity,))
    before = answers(url, oddities)
    init_db(url)
    assert answers(url, oddities) == before
    with opened(url) as storage:
        assert migrations.check(storage) == []
        migrations.downgrade(storage, "005")
        assert answers(url, oddities) == before
        migrations.upgrade(storage)
        assert answers(url, oddities) == before
        assert migrations.find_differences(storage) == []
    if "constraints of the table" not in oddity.name:
        with get_session() as session:
            create_generation(session, **a_request())


@pytest.mark.sampled
@each(CONFLICTS)
@pytest.mark.parametrize("revision", ["original", "001", "004", "006", "007"])
def test_a_name_that_a_coming_revision_needs_is_named_and_nothing_is_changed(
    empty_database_url: str, oddity: Oddity, revision: str
) -> None:
    url = empty_database_url
    oddities = make_odd_database(url, revision, (oddity,))
    if not oddities:
        return  # it belongs to the other database system, or its name is ours here
    before = state(url)
    with pytest.raises(ForeignDatabaseError, match=rf"{re.escape(oddity.named)}.*Nothing was changed"):
        init_db(url)
    assert state(url) == before

"""Alembic's environment: use the connection or engine that is passed or, on the command line, DATABASE_URL.

`-x url=…` replaces DATABASE_URL. See ADR 1.
"""

import logging

from alembic import command, context
from alembic.util import CommandError
from sqlalchemy import Connection, Engine

from services.storage import migrations
from services.storage.engine import Storage
from services.storage.errors import NotInitializedError, StorageError
from services.storage.models import Base
from services.storage.settings import parse_url

WRITING_COMMANDS = (command.upgrade, command.downgrade, command.stamp)


def run(connection: Connection, *, writing: bool = True) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        dont_mutate=not writing,  # without it, check and --autogenerate create the table alembic_version
        **migrations.options(connection),
    )
    with context.begin_transaction(), migrations.reflection():
        context.run_migrations()


def run_as_command() -> None:
    logging.basicConfig(format="%(message)s")
    logging.getLogger("alembic").setLevel(logging.INFO)
    operation = context.config.cmd_opts.cmd[0] if context.config.cmd_opts else None
    storage = Storage(context.get_x_argument(as_dictionary=True).get("url"))
    if operation is command.upgrade:
        storage.backend.create_database(storage.url)
    elif not storage.backend.is_present(storage.url):
        raise NotInitializedError
    if operation not in WRITING_COMMANDS:
        with migrations.connect(storage) as connection:
            run(connection, writing=False)
        return
    with migrations.exclusive(storage, accept_damaged=operation is command.stamp) as connection:
        if operation is command.upgrade:
            migrations.adopt(connection)
        elif migrations.is_empty(connection):
            raise NotInitializedError  # a stamped database without tables would pass for a sound one
        run(connection)


def write_script() -> None:
    """Write the SQL of the revisions for PostgreSQL, for a database of this library or an empty one."""
    url = parse_url(context.get_x_argument(as_dictionary=True).get("url"))
    if url.get_backend_name() != "postgresql":
        raise CommandError(
            "--sql works for PostgreSQL only: on SQLite the revisions rebuild tables from what they read in the "
            "database. Run without --sql, or set DATABASE_URL to a PostgreSQL URL."
        )
    context.configure(
        dialect_name="postgresql",
        dialect_opts={"paramstyle": "named"},  # psycopg's style would double every %
        target_metadata=Base.metadata,
        literal_binds=True,
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()


connection = context.config.attributes.get("connection")
if context.is_offline_mode():
    write_script()
elif isinstance(connection, Engine):  # as pytest-alembic passes it
    with connection.connect() as opened:
        run(opened)
        opened.commit()
elif connection is not None:
    run(connection)
else:
    try:
        run_as_command()
    except StorageError as error:
        raise CommandError(str(error)) from error

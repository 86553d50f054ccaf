"""The settings that a PostgreSQL session needs, whatever the role, the database or the environment sets. See ADR 30.

They are set by statements: PgBouncer refuses `options`, and PGDATESTYLE and PGTZ take precedence over them.
"""

from typing import Any, Final

from sqlalchemy import Connection, Engine, event

# DateStyle and IntervalStyle: psycopg reads no others. TimeZone: the years 1 and 9999 stay in the range of Python's
# datetime. extra_float_digits: with 0, 0.30000000000000004 is read as 0.3. quote_all_identifiers: SQLAlchemy and the
# revisions parse what the server prints. standard_conforming_strings: the revisions contain backslashes.
SETTINGS: Final = {
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "client_encoding": "UTF8",
    "extra_float_digits": "1",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
}
# The first schema of the search path with our tables. A schema that is created later and comes first, as one named like
# the user does, must not take their place, and neither must another program's tables of the same names.
OWN_SCHEMA: Final = """
    SELECT quote_ident(path.name) FROM unnest(current_schemas(false)) WITH ORDINALITY AS path (name, place)
    WHERE 7 = (
        SELECT count(*) FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
        JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = path.name AND c.relkind = 'r' AND NOT a.attisdropped AND (
            c.relname = 'generations'
                AND a.attname IN ('prompt', 'model_name', 'file_path', 'generation_time_seconds')
            OR c.relname = 'prompts' AND a.attname IN ('text', 'used_count', 'first_used_at')
        )
    )
    ORDER BY place LIMIT 1
"""


def apply_to_connection(connection: Any) -> None:
    """Set the settings for the whole session of a new psycopg connection."""
    connection.autocommit = True
    connection.execute(_statement(f"({OWN_SCHEMA})", local=False), prepare=False)
    connection.autocommit = False


def apply_to_transactions(engine: Engine) -> None:
    """Set the settings at the beginning of every transaction: with PgBouncer, the next may have another session.

    Looks for the schema until there is one with our tables, then keeps to that.
    """
    own: dict[str, str] = {}

    @event.listens_for(engine, "begin")
    def apply(connection: Connection) -> None:
        schema = own.get("schema")
        literal = "'" + schema.replace("'", "''") + "'" if schema else f"({OWN_SCHEMA})"
        found = connection.exec_driver_sql(_statement(literal, local=True).replace("%", "%%")).scalar()
        if found:
            own["schema"] = found


def _statement(own_schema: str, *, local: bool) -> str:
    """Return the SELECT that sets everything; its first column is our schema, quoted, or NULL if there is none yet."""
    flag = "true" if local else "false"
    settings = ", ".join(f"set_config('{name}', '{value}', {flag})" for name, value in SETTINGS.items())
    path = f"set_config('search_path', coalesce(own.schema || ', ', '') || current_setting('search_path'), {flag})"
    return f"SELECT own.schema, {settings}, {path} FROM (SELECT {own_schema}) AS own (schema)"

"""Index the words of prompts for search.

Revision ID: 008
Revises: 007

SQLite: an FTS5 table over prompts that triggers keep; its content= stands in double quotes, or datasette and
sqlite-utils do not see it. PostgreSQL: a generated tsvector with a GIN index, of words that prompt_words() makes the
way FTS5's unicode61 does. Both: an index of the prompts in languages written without spaces: those are looked through.

Downgrade drops the index; no row is lost.
"""

from alembic import op

revision: str = "008"
down_revision: str | None = "007"
branch_labels: str | None = None
depends_on: str | None = None

# Thai to Khmer, kana, Han, Hangul. A literal, because a revision never changes; a test compares it with the library's.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0002ffff"
)

SQLITE = (
    """
CREATE VIRTUAL TABLE prompts_fts USING fts5(
    text, content="prompts", content_rowid="id", tokenize="unicode61 remove_diacritics 2"
)
""",
    """
CREATE TRIGGER prompts_fts_insert AFTER INSERT ON prompts BEGIN
    INSERT INTO prompts_fts (rowid, text) VALUES (new.id, new.text);
END
""",
    """
CREATE TRIGGER prompts_fts_delete AFTER DELETE ON prompts BEGIN
    INSERT INTO prompts_fts (prompts_fts, rowid, text) VALUES ('delete', old.id, old.text);
END
""",
    # OF: without it, every re-use of a prompt, which counts in its row, costs 3.3 times as much.
    """
CREATE TRIGGER prompts_fts_update AFTER UPDATE OF id, text ON prompts BEGIN
    INSERT INTO prompts_fts (prompts_fts, rowid, text) VALUES ('delete', old.id, old.text);
    INSERT INTO prompts_fts (rowid, text) VALUES (new.id, new.text);
END
""",
    "INSERT INTO prompts_fts (prompts_fts) VALUES ('rebuild')",
    f"CREATE INDEX idx_prompts_unspaced ON prompts (id) WHERE text GLOB '*[{UNSPACED}]*'",
)

# What lower() leaves alone in a database of locale C: Greek, Cyrillic, and the Latin letters that are not an accent
# away from an ASCII one. The last is sigma as it ends a word.
UPPER = "ÆÐÞØŒŁĐŊΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡΣΤΥΦΧΨΩАБВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯЁЄІЇҐς"
LOWER = UPPER[:-1].lower() + "\N{GREEK SMALL LETTER SIGMA}"

# Everything but letters and digits, by number: what the classes of a regular expression hold depends on the locale.
SEPARATORS = (
    r"\u0001-\u002F\u003A-\u0040\u005B-\u0060\u007B-\u00A9\u00AB-\u00B1\u00B4\u00B6-\u00B8\u00BB\u00BF\u00D7\u00F7"
    r"\u2000-\u206F\u20A0-\u20CF\u2190-\u245F\u2500-\u2775\u2794-\u2BFF\u2E00-\u2E7F\u3000-\u3004\u3008-\u3020\u3030"
    r"\uFE00-\uFE6F\uFF00-\uFF0F\uFF1A-\uFF20\uFF3B-\uFF40\uFF5B-\uFF65\U0001F000-\U0001FAFF"
)

POSTGRESQL = (
    # Its own text search configuration would fold no accents, and read 'lo-fi', 'C#m/E' or '4/4' as hyphenated words,
    # files and hosts. Accents go from Latin letters only, as in FTS5. The first 10,000 characters, all that a prompt
    # may have: a tsvector holds 1 MB.
    rf"""
CREATE OR REPLACE FUNCTION prompt_words(prompt text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN regexp_replace(
    translate(
        lower(CASE WHEN octet_length(prompt) = char_length(prompt) THEN left(prompt, 10000) ELSE normalize(
            regexp_replace(normalize(left(prompt, 10000), NFD), '([A-Za-z])[\u0300-\u036F]+', '\1', 'g'), NFC) END),
        '{UPPER}', '{LOWER}'
    ),
    '[{SEPARATORS}]+', ' ', 'g'
)
""",
    """
ALTER TABLE prompts ADD COLUMN words tsvector
    GENERATED ALWAYS AS (to_tsvector('simple'::regconfig, prompt_words(text))) STORED
""",
    "CREATE INDEX idx_prompts_words ON prompts USING gin (words)",
    f"CREATE INDEX idx_prompts_unspaced ON prompts (id) WHERE text ~ '[{UNSPACED}]'",
)


def upgrade() -> None:
    connection = op.get_bind()
    for statement in SQLITE if op.get_context().dialect.name == "sqlite" else POSTGRESQL:
        connection.exec_driver_sql(statement)


def downgrade() -> None:
    op.execute("DROP INDEX idx_prompts_unspaced")
    if op.get_context().dialect.name == "sqlite":
        for event in ("insert", "delete", "update"):
            op.execute(f"DROP TRIGGER prompts_fts_{event}")
        op.execute("DROP TABLE prompts_fts")
    else:
        op.execute("DROP INDEX idx_prompts_words")
        op.execute("ALTER TABLE prompts DROP COLUMN words")
        op.execute("DROP FUNCTION prompt_words(text)")

"""Create the full-text search index of prompts.

Revision ID: 008
Revises: 007

SQLite: an FTS5 table over prompts, kept up to date by triggers. Its content= is in double quotes because datasette and
sqlite-utils detect only those. PostgreSQL: a generated tsvector column with a GIN index; prompt_words() splits text as
FTS5's tokenizer unicode61 does. Both: an index of the prompts in languages written without spaces, which searches scan.
See ADR 21.

Downgrade drops the index and loses no row.
"""

from alembic import op

revision: str = "008"
down_revision: str | None = "007"
branch_labels: str | None = None
depends_on: str | None = None

# Thai to Khmer, kana, Han, Hangul. Not imported, because a revision must not change; a test compares it with
# search_query.UNSPACED.
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
    # UPDATE OF: without it, the update of used_count at each reuse of a prompt takes 3.3 times as long.
    """
CREATE TRIGGER prompts_fts_update AFTER UPDATE OF id, text ON prompts BEGIN
    INSERT INTO prompts_fts (prompts_fts, rowid, text) VALUES ('delete', old.id, old.text);
    INSERT INTO prompts_fts (rowid, text) VALUES (new.id, new.text);
END
""",
    "INSERT INTO prompts_fts (prompts_fts) VALUES ('rebuild')",
    f"CREATE INDEX idx_prompts_unspaced ON prompts (id) WHERE text GLOB '*[{UNSPACED}]*'",
)

# Letters that lower() does not change in a database with locale C: Greek, Cyrillic, and Latin letters that do not
# decompose into an ASCII letter and an accent. The last one is the final form of sigma, which maps to sigma.
UPPER = "ÆÐÞØŒŁĐŊΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡΣΤΥΦΧΨΩАБВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯЁЄІЇҐς"
LOWER = UPPER[:-1].lower() + "\N{GREEK SMALL LETTER SIGMA}"

# All characters but letters and digits, as code points: the character classes of regular expressions depend on the
# locale.
SEPARATORS = (
    r"\u0001-\u002F\u003A-\u0040\u005B-\u0060\u007B-\u00A9\u00AB-\u00B1\u00B4\u00B6-\u00B8\u00BB\u00BF\u00D7\u00F7"
    r"\u2000-\u206F\u20A0-\u20CF\u2190-\u245F\u2500-\u2775\u2794-\u2BFF\u2E00-\u2E7F\u3000-\u3004\u3008-\u3020\u3030"
    r"\uFE00-\uFE6F\uFF00-\uFF0F\uFF1A-\uFF20\uFF3B-\uFF40\uFF5B-\uFF65\U0001F000-\U0001FAFF"
)

POSTGRESQL = (
    # PostgreSQL's own parser keeps accents, and reads 'lo-fi', 'C#m/E' and '4/4' as hyphenated words, files and hosts.
    # As in FTS5, accents are removed from Latin letters only. Only the first 10,000 characters are indexed, the longest
    # prompt that the library accepts, because a tsvector is limited to 1 MB.
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

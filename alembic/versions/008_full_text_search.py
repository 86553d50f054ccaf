"""Create the full-text search index of prompts.

Revision ID: 008
Revises: 007

SQLite: an FTS5 table over prompts, kept up to date by triggers. Its content= is in double quotes because datasette and
sqlite-utils detect only those. PostgreSQL: a generated tsvector column with a GIN index. Both hold the words that
services/storage/search_words.py splits a text into: see ADR 26.

Downgrade drops the index and loses no row.
"""

import unicodedata

import sqlalchemy as sa
from alembic import op

revision: str = "008"
down_revision: str | None = "007"
branch_labels: str | None = None
depends_on: str | None = None

# From search_words.py, which explains them. Not imported, because a revision must not change; a test compares them.
SEPARATORS = (
    r"\u0001-\u002F\u003A-\u0040\u005B-\u0060\u007B-\u00BF\u00D7\u00F7\u02C2-\u02C5\u02D2-\u02EB\u02ED"
    r"\u02EF-\u02FF\u0375\u037E\u0384-\u0385\u0387\u03F6\u0482\u0488-\u0489\u055A-\u055F\u0589-\u058F\u05BE\u05C0"
    r"\u05C3\u05C6\u05F3-\u060F\u061B-\u061F\u066A-\u066D\u06D4\u06DD-\u06DE\u06E9\u06FD-\u06FE\u0700-\u070F"
    r"\u0964-\u0965\u0970\u09F2-\u09F3\u09FA-\u09FB\u09FD\u0A76\u0AF0-\u0AF1\u0B70\u0BF3-\u0BFA\u0C77\u0C7F\u0C84"
    r"\u0D4F\u0D79\u0DF4\u0E3F\u0E4F\u0E5A-\u0E5B\u0F01-\u0F17\u0F1A-\u0F1F\u0F34\u0F36\u0F38\u0F3A-\u0F3D\u0F85"
    r"\u0FBE-\u0FC5\u0FC7-\u0FDA\u104A-\u104F\u109E-\u109F\u10FB\u1360-\u1368\u1390-\u1399\u1400\u166D-\u166E"
    r"\u17D4-\u17D6\u17D8-\u17DB\u1800-\u180A\u180E\u1FBD-\u1FC1\u1FCD-\u1FCF\u1FDD-\u1FDF\u1FED-\u1FEF"
    r"\u1FFD-\u20C0\u20DD-\u20E0\u20E2-\u20E4\u2100-\u212E\u213A-\u214D\u214F\u218A-\u24E9\u2500-\u2775"
    r"\u2794-\u2BFF\u2CE5-\u2CEA\u2CF9-\u2CFC\u2CFE-\u2CFF\u2D70\u2E00-\u2E2E\u2E30-\u3004\u3008-\u3020\u3030"
    r"\u3036-\u3037\u303D-\u303F\u309B-\u309C\u30A0\u30FB\u3190-\u319F\u31C0-\u31E3\u3200-\u3247\u3250-\u33FF"
    r"\u4DC0-\u4DFF\uA720-\uA721\uA789-\uA78A\uFB29-\uFE19\uFE30-\uFE6B\uFEFF-\uFFFD\U0001CF50-\U0001D35F"
    r"\U0001EEF0-\U0001FBEF\U000E0001-\U000E01EF"
)
UNSPACED = (
    r"\u0E01-\u0E3A\u0E40-\u0E4E\u0E50-\u0E59\u0E81-\u0EFF\u1000-\u1049\u1050-\u109D\u1780-\u17D3\u17D7\u17DC-\u17FF"
    r"\u3005-\u3007\u3041-\u309A\u309D-\u309F\u30A1-\u30FA\u30FC-\u30FF\u31F0-\u31FF\u3400-\u4DBF\u4E00-\u9FFF"
    r"\uAC00-\uD7AF\uF900-\uFAFF\U00020000-\U0003FFFF"
)
CASED = ((0xC0, 0x17F), (0x391, 0x3A9), (0x400, 0x42F))
RARELY_CASED = (
    *((0x180, 0x24F), (0x370, 0x390), (0x3CF, 0x3FF), (0x460, 0x52F), (0x531, 0x556), (0x10A0, 0x10CD)),
    *((0x13A0, 0x13F5), (0x1C90, 0x1CBF), (0x1E9E, 0x1EFF), (0x2132, 0x2183), (0x2C00, 0x2CFF), (0xA640, 0xA7BF)),
    *((0x10400, 0x10427), (0x104B0, 0x104D3), (0x1E900, 0x1E921)),
)

# Whether the index needs the words of a text because it cannot take them from the text itself: not ASCII, or sharps.
NEEDS_FOLDING = "(length(CAST(text AS BLOB)) <> length(text) OR text GLOB '*[A-Ga-g]#*')"
# The words. ltrim(…, '') trims nothing, but on the connections of the library it returns, for a BLOB, the words of the
# text: with a function that only the library defines, the triggers would make the writes of other programs fail.
FOLDED = "replace(ltrim(CAST(text AS BLOB), ''), '#', ' sharp ')"

SQLITE = (
    "ALTER TABLE prompts ADD COLUMN folded TEXT",
    "ALTER TABLE prompts ADD COLUMN words TEXT GENERATED ALWAYS AS (coalesce(folded, text)) VIRTUAL",
    f"UPDATE prompts SET folded = {FOLDED} WHERE {NEEDS_FOLDING}",
    # ascii: this tokenizer splits at ASCII punctuation only, and so does not depend on SQLite's version of Unicode.
    'CREATE VIRTUAL TABLE prompts_fts USING fts5(words, content="prompts", content_rowid="id", tokenize="ascii")',
    f"""
CREATE TRIGGER prompts_fts_insert AFTER INSERT ON prompts BEGIN
    UPDATE prompts SET folded = {FOLDED}
    WHERE id = new.id AND {NEEDS_FOLDING};
    INSERT INTO prompts_fts (rowid, words) SELECT id, words FROM prompts WHERE id = new.id;
END
""",
    """
CREATE TRIGGER prompts_fts_delete AFTER DELETE ON prompts BEGIN
    INSERT INTO prompts_fts (prompts_fts, rowid, words) VALUES ('delete', old.id, coalesce(old.folded, old.text));
END
""",
    # UPDATE OF: without it, the update of used_count at each reuse of a prompt takes 3.3 times as long.
    f"""
CREATE TRIGGER prompts_fts_update AFTER UPDATE OF id, text ON prompts BEGIN
    INSERT INTO prompts_fts (prompts_fts, rowid, words) VALUES ('delete', old.id, coalesce(old.folded, old.text));
    UPDATE prompts SET folded = CASE WHEN {NEEDS_FOLDING}
        THEN {FOLDED} END
    WHERE id = new.id;
    INSERT INTO prompts_fts (rowid, words) SELECT id, words FROM prompts WHERE id = new.id;
END
""",
    "INSERT INTO prompts_fts (prompts_fts) VALUES ('rebuild')",
)


def lower_arguments(blocks: tuple[tuple[int, int], ...], upper: str = "", lower: str = "") -> str:
    """Return the arguments with which translate() makes lower case; that of lower() depends on the locale."""
    letters = (chr(code) for first, last in blocks for code in range(first, last + 1))
    cased = "".join(c for c in letters if c != c.lower() and unicodedata.is_normalized("NFKD", c))
    return f"'{cased}{upper}', '{cased.lower()}{lower}'"


SIGMA, FINAL_SIGMA = "\N{GREEK SMALL LETTER SIGMA}", "\N{GREEK SMALL LETTER FINAL SIGMA}"
LETTER = f"[^{SEPARATORS}{UNSPACED}]"
RARE = "".join(f"{chr(first)}-{chr(last)}" for first, last in RARELY_CASED)

POSTGRESQL = (
    # What split_words() of search_words.py does, without PostgreSQL's dictionaries, which depend on the locale.
    # OFFSET 0 keeps the planner from computing an expression wherever its result is used. Only the first 10,000
    # characters are indexed, the longest prompt that the library accepts, because a tsvector is limited to 1 MB; and of
    # a word 256, because a lexeme is limited to 2,046 bytes.
    rf"""
CREATE FUNCTION prompt_words(prompt text) RETURNS tsvector
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN (
    SELECT coalesce(string_agg(quote_literal(left(word, 256)) || ':' || place, ' '), '')::tsvector
    FROM (
        SELECT lower(CASE WHEN octet_length(prompt) = char_length(prompt) THEN left(prompt, 10000) ELSE regexp_replace(
            normalize(replace(replace(left(prompt, 10000), '™', ' '), '℠', ' '), NFKD),
            '(^|[\u0001-\u007F])[\u0300-\u036F]+', '\1', 'g'
        ) END COLLATE "C") AS plain OFFSET 0
    ) AS decomposed, LATERAL (
        SELECT CASE WHEN octet_length(plain) = char_length(plain) THEN plain ELSE regexp_replace(normalize(translate(
            CASE WHEN plain ~ '[{RARE}]' THEN translate(plain, {lower_arguments(RARELY_CASED)}) ELSE plain END,
            {lower_arguments(CASED, FINAL_SIGMA, SIGMA)}
        ), NFC), '[{UNSPACED}]', ' \& ', 'g') END AS folded OFFSET 0
    ) AS composed, LATERAL (
        SELECT CASE WHEN folded ~ '[#♯]'
            THEN regexp_replace(folded, '(?<=[a-g])(?<!{LETTER}[a-g])[#♯]', ' sharp ', 'g') ELSE folded END AS spelled
        OFFSET 0
    ) AS with_sharps,
    unnest(string_to_array(btrim(regexp_replace(spelled, '[{SEPARATORS}]+', ' ', 'g'), ' '), ' '))
        WITH ORDINALITY AS words (word, place)
)
""",
    "ALTER TABLE prompts ADD COLUMN words tsvector GENERATED ALWAYS AS (prompt_words(text)) STORED",
    "CREATE INDEX idx_prompts_words ON prompts USING gin (words)",
)


def upgrade() -> None:
    for statement in SQLITE if op.get_context().dialect.name == "sqlite" else POSTGRESQL:
        op.execute(sa.text(statement.replace(":", r"\:")))


def downgrade() -> None:
    if op.get_context().dialect.name == "sqlite":
        for event in ("insert", "delete", "update"):
            op.execute(f"DROP TRIGGER prompts_fts_{event}")
        op.execute("DROP TABLE prompts_fts")
        op.execute("ALTER TABLE prompts DROP COLUMN words")
        op.execute("ALTER TABLE prompts DROP COLUMN folded")
    else:
        op.execute("DROP INDEX idx_prompts_words")
        op.execute("ALTER TABLE prompts DROP COLUMN words")
        op.execute("DROP FUNCTION prompt_words(text)")

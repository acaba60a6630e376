-- The ledger of a PostgreSQL replica: how far it is, table by table where it matters (I3).
-- Lives beside the rows it speaks of, so that both commit in one transaction and are backed up and restored together.
-- The schema "millstream" stands already: the migrations' own table is in it.

CREATE TABLE millstream.replica (
    name              text PRIMARY KEY,
    source            text NOT NULL,
    stream            text NOT NULL,
    history           jsonb NOT NULL,
    cursor            jsonb,
    apply_epoch       bigint NOT NULL DEFAULT 0,
    position          text,
    source_time_us    bigint,
    transactions      bigint NOT NULL DEFAULT 0,
    changes           bigint NOT NULL DEFAULT 0,
    writer_epoch      bigint,
    initialized_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    applied_at        timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 10); -- updated by every batch: room for HOT updates keeps it to a few pages

COMMENT ON SCHEMA millstream IS 'Millstream''s ledger: how far this replica is. Do not change it by hand.';
COMMENT ON TABLE millstream.replica IS 'One row for each replica kept in this database. Updated in the same transaction as the rows it speaks of.';
COMMENT ON COLUMN millstream.replica.name IS 'The replica''s configured name, also the consumer''s name in the queue.';
COMMENT ON COLUMN millstream.replica.source IS 'The source''s configured name, also the stream''s.';
COMMENT ON COLUMN millstream.replica.stream IS 'Random identity of the stream (decimal, 64 bits unsigned): another stream under the same name is not this one.';
COMMENT ON COLUMN millstream.replica.history IS 'The source''s identity: system identifier, timeline lineage, database, slot incarnation.';
COMMENT ON COLUMN millstream.replica.cursor IS 'Place in the log up to which everything is applied. NULL: nothing yet, begin at the first record.';
COMMENT ON COLUMN millstream.replica.apply_epoch IS 'Incarnation of the applier. Every start raises it; every batch checks it, so that of two appliers one is refused (I8).';
COMMENT ON COLUMN millstream.replica.position IS 'Position of the last transaction or progress applied, as text for people; the cursor decides.';
COMMENT ON COLUMN millstream.replica.source_time_us IS 'The source''s clock at that position, microseconds since 1970-01-01 UTC.';
COMMENT ON COLUMN millstream.replica.transactions IS 'Source transactions applied since the first copy began.';
COMMENT ON COLUMN millstream.replica.changes IS 'Changes applied since the first copy began.';
COMMENT ON COLUMN millstream.replica.writer_epoch IS 'Epoch of the log''s writer at the cursor.';
COMMENT ON COLUMN millstream.replica.initialized_at IS 'When the row was made.';
COMMENT ON COLUMN millstream.replica.applied_at IS 'When the row was last updated, by the replica''s clock.';

CREATE TABLE millstream.copied_table (
    replica           text NOT NULL REFERENCES millstream.replica (name) ON DELETE CASCADE,
    table_schema      text NOT NULL,
    table_name        text NOT NULL,
    state             text NOT NULL CHECK (state IN ('pending', 'copying', 'catching_up', 'live')),
    copy_group        integer NOT NULL DEFAULT 0,
    table_version     jsonb,
    key_columns       text[],
    live_after_lsn    pg_lsn,
    rows              bigint NOT NULL DEFAULT 0,
    bytes             bigint NOT NULL DEFAULT 0,
    estimated_rows    bigint,
    estimated_bytes   bigint,
    began_at          timestamptz,
    live_at           timestamptz,
    PRIMARY KEY (replica, table_schema, table_name)
);

COMMENT ON TABLE millstream.copied_table IS 'The replicated tables and how far their first copy is. Only live tables show prefixes of the source''s commit order (I4).';
COMMENT ON COLUMN millstream.copied_table.state IS 'pending: not begun. copying: chunks are being loaded. catching_up: all chunks are loaded, the log is replayed past the last snapshot. live: complete.';
COMMENT ON COLUMN millstream.copied_table.copy_group IS 'Tables of one group become live together, in one transaction.';
COMMENT ON COLUMN millstream.copied_table.table_version IS 'The table''s version that the copy was made under, as the log writes it.';
COMMENT ON COLUMN millstream.copied_table.key_columns IS 'Columns that chunks are cut by, in order. NULL: the table is one chunk.';
COMMENT ON COLUMN millstream.copied_table.live_after_lsn IS 'The table may become live once this position of the source is applied.';
COMMENT ON COLUMN millstream.copied_table.rows IS 'Rows copied so far.';
COMMENT ON COLUMN millstream.copied_table.bytes IS 'Bytes copied so far.';

CREATE TABLE millstream.copy_chunk (
    replica           text NOT NULL,
    table_schema      text NOT NULL,
    table_name        text NOT NULL,
    chunk             integer NOT NULL,
    lower             text[],
    upper             text[],
    state             text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'loaded')),
    snapshot          text,
    insert_lsn        pg_lsn,
    rows              bigint,
    bytes             bigint,
    loaded_at         timestamptz,
    PRIMARY KEY (replica, table_schema, table_name, chunk),
    FOREIGN KEY (replica, table_schema, table_name)
        REFERENCES millstream.copied_table (replica, table_schema, table_name) ON DELETE CASCADE
);

COMMENT ON TABLE millstream.copy_chunk IS 'Pieces of tables being copied. A chunk is stored in the same transaction as its rows; dropped once its table is live.';
COMMENT ON COLUMN millstream.copy_chunk.lower IS 'Key from which the chunk goes, inclusive, as text. NULL: from the first.';
COMMENT ON COLUMN millstream.copy_chunk.upper IS 'Key before which it ends. NULL: to the last.';
COMMENT ON COLUMN millstream.copy_chunk.snapshot IS 'pg_current_snapshot() of the source that the rows were read in: a change whose transaction is visible in it is in the rows already.';
COMMENT ON COLUMN millstream.copy_chunk.insert_lsn IS 'The source''s WAL insert position after the snapshot was taken.';

CREATE TABLE millstream.deferred_ddl (
    replica           text NOT NULL REFERENCES millstream.replica (name) ON DELETE CASCADE,
    ordinal           integer NOT NULL,
    table_schema      text NOT NULL,
    table_name        text NOT NULL,
    kind              text NOT NULL,
    statement         text NOT NULL,
    done              boolean NOT NULL DEFAULT false,
    PRIMARY KEY (replica, ordinal)
);

COMMENT ON TABLE millstream.deferred_ddl IS 'Indexes, unique keys and foreign keys that are built (or put back) when the copy has caught up, in this order.';
COMMENT ON COLUMN millstream.deferred_ddl.kind IS 'index, unique, foreign_key or other.';
COMMENT ON COLUMN millstream.deferred_ddl.statement IS 'The statement, run with an empty search_path.';

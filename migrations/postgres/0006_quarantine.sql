-- Transactions that the replica refuses, and those that were kept aside at an operator's word (millstream quarantine). Values are in quarantined_piece alone.

CREATE TABLE millstream.refused (
    replica           text PRIMARY KEY REFERENCES millstream.replica (name) ON DELETE CASCADE,
    position          text NOT NULL,
    transactions      bigint NOT NULL,
    code              text NOT NULL,
    message           text NOT NULL,
    cannot_be_kept    text,
    refused_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    ordered_at        timestamptz,
    confirmed         boolean NOT NULL DEFAULT false,
    wake              boolean NOT NULL DEFAULT false
);

COMMENT ON TABLE millstream.refused IS 'The source transaction that a replica was halted at last. It stands there still while transactions is what the replica''s row has.';
COMMENT ON COLUMN millstream.refused.position IS 'The transaction, as the halt prints it.';
COMMENT ON COLUMN millstream.refused.transactions IS 'millstream.replica.transactions when it was refused.';
COMMENT ON COLUMN millstream.refused.cannot_be_kept IS 'Why it cannot be kept in quarantine; NULL where it can.';
COMMENT ON COLUMN millstream.refused.ordered_at IS 'When somebody ordered it to be kept in quarantine (millstream quarantine add), should it be refused again.';
COMMENT ON COLUMN millstream.refused.confirmed IS 'It was refused again after that. Only of a transaction that is too large for memory, which is kept as it is read the next time.';
COMMENT ON COLUMN millstream.refused.wake IS 'What stood in its way may be gone (millstream quarantine retry, clear): it is tried at once.';

CREATE TABLE millstream.quarantine (
    replica           text NOT NULL REFERENCES millstream.replica (name) ON DELETE CASCADE,
    ordinal           bigint NOT NULL,
    position          text NOT NULL,
    after_position    text,
    xid               bigint NOT NULL,
    committed_at      timestamptz NOT NULL,
    code              text NOT NULL,
    message           text NOT NULL,
    changes           bigint NOT NULL DEFAULT 0,
    bytes             bigint NOT NULL DEFAULT 0,
    format            smallint NOT NULL,
    state             text NOT NULL DEFAULT 'kept' CHECK (state IN ('kept', 'applied', 'cleared', 'cured', 'dropped')),
    kept_at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at          timestamptz,
    PRIMARY KEY (replica, ordinal),
    UNIQUE (replica, position)
);

COMMENT ON TABLE millstream.quarantine IS 'The account of every source transaction that was kept aside. Its row is made in the replica transaction that moves the ledger past it, and stays.';
COMMENT ON COLUMN millstream.quarantine.ordinal IS 'In commit order.';
COMMENT ON COLUMN millstream.quarantine.after_position IS 'Where the replica stood before it.';
COMMENT ON COLUMN millstream.quarantine.committed_at IS 'By the source''s clock.';
COMMENT ON COLUMN millstream.quarantine.message IS 'Why the replica refused it.';
COMMENT ON COLUMN millstream.quarantine.bytes IS 'Of its changes, as the log has them.';
COMMENT ON COLUMN millstream.quarantine.format IS 'The record format of the log that its changes are written in.';
COMMENT ON COLUMN millstream.quarantine.state IS 'kept: not applied, whole in quarantined_piece. applied: by retry. cleared: what was kept was dropped, never applied. cured: every table of it was copied again since, or is gone. dropped: every table of it is gone.';

CREATE TABLE millstream.quarantined_table (
    replica           text NOT NULL,
    ordinal           bigint NOT NULL,
    source_oid        bigint NOT NULL,
    table_schema      text NOT NULL,
    table_name        text NOT NULL,
    changes           bigint NOT NULL,
    key_columns       text[] NOT NULL,
    whole             text,
    key_count         bigint NOT NULL,
    replica_columns   text[] NOT NULL,
    ended             text CHECK (ended IN ('cured', 'dropped')),
    ended_at          timestamptz,
    PRIMARY KEY (replica, ordinal, source_oid),
    FOREIGN KEY (replica, ordinal) REFERENCES millstream.quarantine (replica, ordinal) ON DELETE CASCADE
);

COMMENT ON TABLE millstream.quarantined_table IS 'The tables that such a transaction changes.';
COMMENT ON COLUMN millstream.quarantined_table.key_columns IS 'The columns that rows are found by, with their types.';
COMMENT ON COLUMN millstream.quarantined_table.whole IS 'Why every row of the table counts as changed; NULL where quarantined_key has the rows.';
COMMENT ON COLUMN millstream.quarantined_table.key_count IS 'Rows of quarantined_key.';
COMMENT ON COLUMN millstream.quarantined_table.replica_columns IS 'The replica''s columns then: number, name and type. A table that has others now is copied again, not retried.';
COMMENT ON COLUMN millstream.quarantined_table.ended IS 'cured: the table was copied again, and has what the transaction did. dropped: it is none of the replica''s any more. NULL: its part stands as the transaction does.';
COMMENT ON COLUMN millstream.quarantined_table.ended_at IS 'When it came to that.';

CREATE TABLE millstream.quarantined_key (
    replica           text NOT NULL,
    ordinal           bigint NOT NULL,
    source_oid        bigint NOT NULL,
    key               bytea[] NOT NULL,
    FOREIGN KEY (replica, ordinal, source_oid)
        REFERENCES millstream.quarantined_table (replica, ordinal, source_oid) ON DELETE CASCADE
);
CREATE INDEX quarantined_key_table ON millstream.quarantined_key (replica, ordinal, source_oid);

COMMENT ON COLUMN millstream.quarantined_key.key IS 'The text of each key column, as the source wrote it.';

CREATE TABLE millstream.quarantined_piece (
    replica           text NOT NULL,
    ordinal           bigint NOT NULL,
    piece             integer NOT NULL,
    changes           bytea NOT NULL,
    PRIMARY KEY (replica, ordinal, piece),
    FOREIGN KEY (replica, ordinal) REFERENCES millstream.quarantine (replica, ordinal) ON DELETE CASCADE
);

COMMENT ON TABLE millstream.quarantined_piece IS 'What is kept: changes with every value, encoded as in the log, cut between changes.';

CREATE TABLE millstream.quarantined_version (
    replica           text NOT NULL,
    ordinal           bigint NOT NULL,
    version           bigint NOT NULL,
    content           jsonb NOT NULL,
    PRIMARY KEY (replica, ordinal, version),
    FOREIGN KEY (replica, ordinal) REFERENCES millstream.quarantine (replica, ordinal) ON DELETE CASCADE
);

COMMENT ON TABLE millstream.quarantined_version IS 'The versions of tables that the changes were made under, as the log writes them.';

-- Tables that leave before their first copy is complete, and whom a copy has been read from.

ALTER TABLE millstream.copied_table DROP CONSTRAINT copied_table_state_check;
ALTER TABLE millstream.copied_table ADD CONSTRAINT copied_table_state_check
    CHECK (state IN ('pending', 'copying', 'catching_up', 'live', 'leaving'));
ALTER TABLE millstream.copied_table ADD COLUMN timeline bigint;
-- Of a live table it is from now on the place where it leaves.
UPDATE millstream.copied_table SET live_after_lsn = NULL WHERE state = 'live';

COMMENT ON COLUMN millstream.copied_table.state IS 'pending: not begun. copying: chunks are being loaded. catching_up: all chunks are loaded, the log is replayed past the last snapshot. live: complete. leaving: not replicated any more and never complete; what the log still holds of it is dropped.';
COMMENT ON COLUMN millstream.copied_table.live_after_lsn IS 'The table may become live once this position of the source is applied; one that leaves is forgotten once it is.';
COMMENT ON COLUMN millstream.copied_table.timeline IS 'The source''s timeline that chunks are read on. A promoted server may lack what another saw: the copy starts again.';
COMMENT ON COLUMN millstream.deferred_ddl.kind IS 'key (a primary key, built when the chunks are loaded), index, unique, foreign_key or other.';

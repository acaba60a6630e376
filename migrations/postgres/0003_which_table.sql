-- Which table a name means, on both sides: names move, and a name alone would send one table's rows into another.

ALTER TABLE millstream.copied_table ADD COLUMN source_oid bigint;
ALTER TABLE millstream.copied_table ADD COLUMN replica_table text;
ALTER TABLE millstream.copied_table ADD COLUMN named_by bigint;
UPDATE millstream.copied_table SET source_oid = (table_version->>'source_oid')::bigint;

COMMENT ON COLUMN millstream.copied_table.source_oid IS 'The source''s number of the table (pg_class.oid). NULL: taken from the next change to a table of this name.';
COMMENT ON COLUMN millstream.copied_table.replica_table IS 'The replica''s numbers of it: pg_database.oid, of copied_table, of the table itself. One that was restored elsewhere has others, and its names count.';
COMMENT ON COLUMN millstream.copied_table.named_by IS 'The version of the table in the log that gave it this name, where it was renamed by hand on both sides: changes of older versions are its own too.';

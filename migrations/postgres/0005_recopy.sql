-- Live tables that are copied again, beside what they show.

ALTER TABLE millstream.copied_table ADD COLUMN recopy_asked_at timestamptz;
ALTER TABLE millstream.copied_table ADD COLUMN shadow text;

COMMENT ON COLUMN millstream.copied_table.recopy_asked_at IS 'When somebody asked for a live table to be copied again (millstream table recopy). NULL: nobody has, or it has begun.';
COMMENT ON COLUMN millstream.copied_table.shadow IS 'Of a table that is copied again: the table of this schema that its rows are collected in, while the table itself shows its old content.';

    -- What 0001_schema_changes.sql made, in the order that fires nothing. A ledger in the same schema stays.
    DECLARE
        gone text;
    BEGIN
        DROP EVENT TRIGGER IF EXISTS millstream_ddl;
        DROP EVENT TRIGGER IF EXISTS millstream_drop;
        DROP EVENT TRIGGER IF EXISTS millstream_rewrite;
        FOR gone IN
            SELECT p.oid::pg_catalog.regprocedure::text FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
            WHERE n.nspname = 'millstream' AND p.proname IN ('facts', 'entries', 'say', 'has_identity', 'wanted', 'take_in', 'look', 'say_enum',
                'note_commands', 'note_drops', 'note_rewrite', 'is_timeout', 'on_event', 'enrol', 'withdraw')
        LOOP
            EXECUTE 'DROP FUNCTION ' || gone;
        END LOOP;
        DROP TABLE IF EXISTS millstream.schema_change, millstream.known_table, millstream.captured, millstream.installed;
        IF EXISTS (SELECT FROM pg_catalog.pg_namespace n WHERE n.nspname = 'millstream'
                   AND NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.relnamespace = n.oid)) THEN
            DROP SCHEMA millstream;
        END IF;
    END;

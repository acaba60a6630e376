-- What a source says of its own schema changes: one row per changed table, in the transaction that changes it (DESIGN decision 7).
--
-- Invariants
-- * Nothing here can make the application's statement fail: every function catches everything it does, and what it could not say it
--   says as kind 'unknown', which is a barrier (I5, I7).
-- * A row is inserted and deleted again in the same statement's wake: the table stays empty, the log has the insert.
-- * `before` is what the last row said of that table (or `init`), `after` what the catalog says now; both under the lock that the
--   application's own statement holds on the table, so the rows of one table form a chain.
-- * Runs as its owner with an empty search_path: what the application put in front of pg_catalog is not seen.

CREATE TABLE millstream.captured (
    publication  name PRIMARY KEY,
    patterns     text[] NOT NULL
);
COMMENT ON TABLE millstream.captured IS 'Which tables each publication is for, as regular expressions over schema, U+001F, table: tables of the configuration, translated by init. One behind a ! excludes; the last that matches decides.';

CREATE TABLE millstream.known_table (
    relation     oid PRIMARY KEY,
    facts        jsonb NOT NULL
);
COMMENT ON TABLE millstream.known_table IS 'What the log last said of each published table. Written by init and by the event triggers.';

CREATE TABLE millstream.schema_change (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind         text NOT NULL,
    relation     oid,
    tag          text NOT NULL,
    before       jsonb,
    after        jsonb,
    note         text
);
COMMENT ON TABLE millstream.schema_change IS 'Always empty: each row is inserted for the log''s sake and deleted at once.';
COMMENT ON COLUMN millstream.schema_change.kind IS 'table: before and after differ. dropped. rewritten: rows changed that the log does not have. type: an enum''s labels. unknown: a barrier.';

-- The facts of one table.
-- Settings as the log's own values are written: a constant in a default must read the same on the replica.
CREATE FUNCTION millstream.facts(relation oid) RETURNS jsonb LANGUAGE sql STABLE SET search_path = ''
    SET datestyle = 'ISO, YMD' SET intervalstyle = 'postgres' SET timezone = 'UTC' SET extra_float_digits = '3' SET bytea_output = 'hex' AS $$
    SELECT pg_catalog.jsonb_build_object(
        'oid', c.oid::bigint, 'schema', n.nspname, 'name', c.relname, 'kind', c.relkind, 'persistence', c.relpersistence,
        'identity', c.relreplident, 'leaf', c.relispartition,
        'columns', (SELECT coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
                'num', a.attnum, 'name', a.attname,
                'type', (SELECT tn.nspname || '.' || t.typname FROM pg_catalog.pg_type t
                         JOIN pg_catalog.pg_namespace tn ON tn.oid = t.typnamespace WHERE t.oid = a.atttypid),
                'declared', pg_catalog.format_type(a.atttypid, a.atttypmod),
                'modifier', a.atttypmod, 'not_null', a.attnotnull,
                'collation', (SELECT pg_catalog.quote_ident(ln.nspname) || '.' || pg_catalog.quote_ident(l.collname) FROM pg_catalog.pg_collation l
                              JOIN pg_catalog.pg_namespace ln ON ln.oid = l.collnamespace
                              JOIN pg_catalog.pg_type ct ON ct.oid = a.atttypid
                              WHERE l.oid = a.attcollation AND a.attcollation <> ct.typcollation),
                'identity', a.attidentity, 'generated', a.attgenerated,
                'default', (SELECT pg_catalog.pg_get_expr(d.adbin, d.adrelid) FROM pg_catalog.pg_attrdef d
                            WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum),
                -- What rows older than the column show: a constant, whatever the default says today. An array of one; its
                -- element's text, so that an array type is no array of arrays.
                'missing', CASE WHEN a.atthasmissing THEN (a.attmissingval::text::text[])[1] END
            ) ORDER BY a.attnum), '[]'::jsonb)
            FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
        'key', (SELECT pg_catalog.jsonb_build_object('name', k.conname, 'columns', (SELECT pg_catalog.jsonb_agg(a.attname ORDER BY o.ordinality)
                    FROM pg_catalog.unnest(k.conkey) WITH ORDINALITY o (num, ordinality)
                    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = o.num), 'deferrable', k.condeferrable)
                FROM pg_catalog.pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'p'),
        'parent', (SELECT pg_catalog.jsonb_build_object('schema', pn.nspname, 'name', p.relname, 'bound', pg_catalog.pg_get_expr(c.relpartbound, c.oid))
                FROM pg_catalog.pg_inherits h JOIN pg_catalog.pg_class p ON p.oid = h.inhparent
                JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace WHERE h.inhrelid = c.oid AND c.relispartition),
        'published', (SELECT coalesce(pg_catalog.jsonb_agg(p.pubname ORDER BY p.pubname), '[]'::jsonb) FROM pg_catalog.pg_publication_rel r
                      JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid JOIN millstream.captured m ON m.publication = p.pubname
                      WHERE r.prrelid = c.oid))
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = relation AND c.relkind = 'r' AND c.relpersistence = 'p'
$$;

-- Hands one row to the log.
CREATE FUNCTION millstream.say(kind text, relation oid, tag text, before jsonb, after jsonb, note text) RETURNS void
    LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    said bigint;
BEGIN
    INSERT INTO millstream.schema_change (kind, relation, tag, before, after, note)
        VALUES (say.kind, say.relation, say.tag, say.before, say.after, say.note) RETURNING id INTO said;
    DELETE FROM millstream.schema_change WHERE id = said;
END $$;

-- True when pgoutput can name a row that is updated: otherwise publishing the table would make the application's own UPDATE fail.
CREATE FUNCTION millstream.has_identity(relation oid) RETURNS boolean LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT c.relreplident = 'f'
        OR c.relreplident = 'd' AND EXISTS (SELECT FROM pg_catalog.pg_index i
                                            WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate AND i.indisvalid)
        OR c.relreplident = 'i' AND EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisreplident AND i.indisvalid)
    FROM pg_catalog.pg_class c WHERE c.oid = relation
$$;

-- Looks at one table and says what has changed. `filled`: it may hold rows that the log does not have.
CREATE FUNCTION millstream.look(relation oid, tag text, filled boolean) RETURNS void LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    old jsonb;
    new jsonb := millstream.facts(relation);
    wanted name;
    full_name text;
    has_rows boolean := false;
BEGIN
    IF new IS NULL OR new ->> 'schema' = 'millstream' THEN
        RETURN;
    END IF;
    SELECT facts INTO old FROM millstream.known_table k WHERE k.relation = look.relation;
    IF old IS NULL THEN
        full_name := (new ->> 'schema') || pg_catalog.chr(31) || (new ->> 'name');
        IF filled THEN
            -- Its rows are not in the log, so it stays out, and `status` names it until `init` copies it.
            EXECUTE pg_catalog.format('SELECT EXISTS (SELECT FROM ONLY %s)', relation::pg_catalog.regclass) INTO has_rows;
        END IF;
        FOR wanted IN
            SELECT publication FROM millstream.captured m
            WHERE (SELECT o.pattern NOT LIKE '!%' FROM pg_catalog.unnest(m.patterns) WITH ORDINALITY o (pattern, n)
                   WHERE full_name ~ pg_catalog.ltrim(o.pattern, '!') ORDER BY o.n DESC LIMIT 1)
              AND EXISTS (SELECT FROM pg_catalog.pg_publication p WHERE p.pubname = m.publication AND NOT p.puballtables)
              AND NOT (new -> 'published') ? m.publication::text
        LOOP
            -- One without a usable identity stays out: `status` names it with the statement that mends it.
            IF millstream.has_identity(relation) AND NOT has_rows THEN
                EXECUTE pg_catalog.format('ALTER PUBLICATION %I ADD TABLE ONLY %s', wanted, relation::pg_catalog.regclass);
            END IF;
        END LOOP;
        new := millstream.facts(relation);
    ELSIF NOT millstream.has_identity(relation) THEN
        EXECUTE pg_catalog.format('ALTER TABLE ONLY %s REPLICA IDENTITY FULL', relation::pg_catalog.regclass);
        new := millstream.facts(relation);
    END IF;
    IF (new -> 'published') = '[]'::jsonb OR new = old THEN
        RETURN;
    END IF;
    PERFORM millstream.say('table', relation, tag, old, new, NULL);
    INSERT INTO millstream.known_table (relation, facts) VALUES (look.relation, new)
        ON CONFLICT ON CONSTRAINT known_table_pkey DO UPDATE SET facts = excluded.facts;
END $$;

CREATE FUNCTION millstream.on_ddl() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
    command record;
    leaf oid;
BEGIN
    -- What this function itself does fires it again.
    IF pg_catalog.current_setting('millstream.looking', true) = 'on' THEN
        RETURN;
    END IF;
    PERFORM pg_catalog.set_config('millstream.looking', 'on', true);
    BEGIN
        FOR command IN SELECT * FROM pg_catalog.pg_event_trigger_ddl_commands() LOOP
            CONTINUE WHEN command.in_extension OR command.schema_name = 'pg_temp' OR command.schema_name = 'millstream';
            IF command.classid = 'pg_catalog.pg_class'::pg_catalog.regclass THEN
                -- A change of a partitioned table is one of all its leaves; one of an index may be one of its table's identity.
                FOR leaf IN
                    WITH RECURSIVE below AS (
                        SELECT coalesce((SELECT i.indrelid FROM pg_catalog.pg_index i WHERE i.indexrelid = command.objid), command.objid) AS oid
                        UNION SELECT i.inhrelid FROM below JOIN pg_catalog.pg_inherits i ON i.inhparent = below.oid)
                    SELECT b.oid FROM below b
                LOOP
                    PERFORM millstream.look(leaf, command.command_tag, command.command_tag NOT IN ('CREATE TABLE'));
                END LOOP;
            ELSIF command.object_type IN ('schema', 'type', 'domain') AND command.command_tag LIKE 'ALTER %' THEN
                FOR leaf IN SELECT k.relation FROM millstream.known_table k LOOP
                    PERFORM millstream.look(leaf, command.command_tag, false);
                END LOOP;
                IF command.object_type = 'type' THEN
                    PERFORM millstream.say_enum(command.objid, command.command_tag);
                END IF;
            END IF;
        END LOOP;
    EXCEPTION WHEN OTHERS THEN
        PERFORM millstream.say('unknown', NULL, tg_tag, NULL, NULL, sqlstate || ' ' || sqlerrm);
    END;
    PERFORM pg_catalog.set_config('millstream.looking', '', true);
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'millstream could not note % in its log: % %', tg_tag, sqlstate, sqlerrm;
END $$;

-- An enum's labels, in order. Added ones only: PostgreSQL renames labels too, and takes none away.
CREATE FUNCTION millstream.say_enum(type oid, tag text) RETURNS void LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    labels jsonb;
BEGIN
    SELECT pg_catalog.jsonb_build_object('schema', n.nspname, 'name', t.typname,
            'labels', pg_catalog.jsonb_agg(e.enumlabel ORDER BY e.enumsortorder))
        INTO labels
        FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace JOIN pg_catalog.pg_enum e ON e.enumtypid = t.oid
        WHERE t.oid = type GROUP BY n.nspname, t.typname;
    IF labels IS NOT NULL THEN
        PERFORM millstream.say('enum', NULL, tag, NULL, labels, NULL);
    END IF;
END $$;

CREATE FUNCTION millstream.on_drop() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
    gone record;
    old jsonb;
BEGIN
    BEGIN
        FOR gone IN SELECT * FROM pg_catalog.pg_event_trigger_dropped_objects() LOOP
            CONTINUE WHEN gone.classid <> 'pg_catalog.pg_class'::pg_catalog.regclass;
            IF gone.object_type = 'table' THEN
                DELETE FROM millstream.known_table k WHERE k.relation = gone.objid RETURNING k.facts INTO old;
                IF FOUND THEN
                    PERFORM millstream.say('dropped', gone.objid, tg_tag, old, NULL, NULL);
                END IF;
            ELSIF gone.object_type = 'table column' AND NOT tg_tag LIKE 'ALTER TABLE%' THEN
                PERFORM millstream.look(gone.objid, tg_tag, false);
            END IF;
        END LOOP;
    EXCEPTION WHEN OTHERS THEN
        PERFORM millstream.say('unknown', NULL, tg_tag, NULL, NULL, sqlstate || ' ' || sqlerrm);
    END;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'millstream could not note % in its log: % %', tg_tag, sqlstate, sqlerrm;
END $$;

CREATE FUNCTION millstream.on_rewrite() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
    rewritten oid := pg_catalog.pg_event_trigger_table_rewrite_oid();
BEGIN
    BEGIN
        -- 2: a default, 4: a column's type. Another persistence (1) or access method (8) leaves every value as it is.
        IF pg_catalog.pg_event_trigger_table_rewrite_reason() & 6 <> 0
            AND EXISTS (SELECT FROM millstream.known_table k WHERE k.relation = rewritten) THEN
            PERFORM millstream.say('rewritten', rewritten, tg_tag, NULL, millstream.facts(rewritten),
                'reason ' || pg_catalog.pg_event_trigger_table_rewrite_reason());
        END IF;
    EXCEPTION WHEN OTHERS THEN
        PERFORM millstream.say('unknown', rewritten, tg_tag, NULL, NULL, sqlstate || ' ' || sqlerrm);
    END;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'millstream could not note % in its log: % %', tg_tag, sqlstate, sqlerrm;
END $$;

CREATE EVENT TRIGGER millstream_ddl ON ddl_command_end EXECUTE FUNCTION millstream.on_ddl();
CREATE EVENT TRIGGER millstream_drop ON sql_drop EXECUTE FUNCTION millstream.on_drop();
CREATE EVENT TRIGGER millstream_rewrite ON table_rewrite EXECUTE FUNCTION millstream.on_rewrite();
ALTER EVENT TRIGGER millstream_ddl ENABLE ALWAYS;
ALTER EVENT TRIGGER millstream_drop ENABLE ALWAYS;
ALTER EVENT TRIGGER millstream_rewrite ENABLE ALWAYS;

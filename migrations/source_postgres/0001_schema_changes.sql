-- What a source says of its own schema changes: one row per changed table, in the transaction that changes it (DESIGN decision 7).
--
-- Invariants
-- * No error here can make the application's statement fail (being published can: SET UNLOGGED is refused): every function catches everything it does, and what it could not say it
--   says as kind 'unknown', which is a barrier (I5, I7).
-- * A row is inserted and deleted again in the same statement's wake: the table stays empty, the log has the insert.
-- * `before` is what the last row said of that table (or `init`), `after` what the catalog says now; both under the lock that the
--   application's own statement holds on the table, so the rows of one table form a chain.
-- * Runs as its owner with an empty search_path: what the application put in front of pg_catalog is not seen.
-- * Needs no guard against itself: what a function here does to a table fires the triggers again, they find and say it, and nothing is
--   left to say. A setting would be such a guard, and any session could set it.
-- * A REPEATABLE READ transaction that began before another change of the same table cannot know what that table looked like: unknown.

-- Its functions run with its owner's rights: nobody else may put a function of the same name beside them.
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_namespace n WHERE n.nspname = 'millstream' AND n.nspowner <> current_user::pg_catalog.regrole) THEN
        RAISE EXCEPTION 'schema millstream belongs to %; schema changes are carried from one of %''s own',
            (SELECT n.nspowner::pg_catalog.regrole FROM pg_catalog.pg_namespace n WHERE n.nspname = 'millstream'), current_user;
    END IF;
END $$;
CREATE SCHEMA IF NOT EXISTS millstream;

-- What `check` compares: which Millstream's script this is, and what its functions, tables and triggers looked like then.
CREATE TABLE millstream.installed (
    version      text NOT NULL,
    fingerprint  text NOT NULL
);

CREATE TABLE millstream.captured (
    publication  name PRIMARY KEY,
    patterns     text[] NOT NULL,
    entry        oid
);
COMMENT ON TABLE millstream.captured IS 'Which tables each publication is for, as regular expressions over schema, U+001F, table: tables of the configuration, translated by init. One behind a ! excludes; the last that matches decides.';

COMMENT ON COLUMN millstream.captured.entry IS 'The row of pg_publication_rel by which millstream.schema_change is published.';

CREATE TABLE millstream.known_table (
    relation     oid PRIMARY KEY,
    facts        jsonb NOT NULL,
    entries      jsonb NOT NULL
);
COMMENT ON TABLE millstream.known_table IS 'What the log last said of each published table. Written by init and by the event triggers.';

COMMENT ON COLUMN millstream.known_table.entries IS 'Publication to row of pg_publication_rel, as init or the triggers made it: a table with another row was taken out meanwhile.';

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
COMMENT ON COLUMN millstream.schema_change.kind IS 'table: before and after differ. dropped. rewritten: rows changed that the log does not have. enum: its labels. unknown: a barrier.';

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
                -- A replica that does not have the enum can make it.
                'enum', (SELECT pg_catalog.jsonb_build_object('schema', en.nspname, 'name', et.typname, 'labels',
                             (SELECT pg_catalog.jsonb_agg(e.enumlabel ORDER BY e.enumsortorder) FROM pg_catalog.pg_enum e WHERE e.enumtypid = et.oid))
                         FROM pg_catalog.pg_type t JOIN pg_catalog.pg_type et ON et.typtype = 'e' AND et.oid IN (t.oid, t.typelem)
                         JOIN pg_catalog.pg_namespace en ON en.oid = et.typnamespace WHERE t.oid = a.atttypid),
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
        'parent', (SELECT pg_catalog.jsonb_build_object('oid', p.oid::bigint, 'schema', pn.nspname, 'name', p.relname,
                    'bound', pg_catalog.pg_get_expr(c.relpartbound, c.oid), 'partition_by', pg_catalog.pg_get_partkeydef(p.oid), 'leaf', p.relispartition)
                FROM pg_catalog.pg_inherits h JOIN pg_catalog.pg_class p ON p.oid = h.inhparent
                JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace WHERE h.inhrelid = c.oid AND c.relispartition),
        'published', (SELECT coalesce(pg_catalog.jsonb_agg(p.pubname ORDER BY p.pubname), '[]'::jsonb) FROM pg_catalog.pg_publication_rel r
                      JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid JOIN millstream.captured m ON m.publication = p.pubname
                      WHERE r.prrelid = c.oid))
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = relation AND c.relkind = 'r' AND c.relpersistence = 'p'
$$;

-- By which rows a table is published.
CREATE FUNCTION millstream.entries(relation oid) RETURNS jsonb LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT coalesce(pg_catalog.jsonb_object_agg(p.pubname, r.oid::bigint), '{}') FROM pg_catalog.pg_publication_rel r
    JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid JOIN millstream.captured m ON m.publication = p.pubname
    WHERE r.prrelid = relation
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

-- What patterns say of a table; of a leaf that none names, what they say of its nearest ancestor that one does.
CREATE FUNCTION millstream.wanted(relation oid, patterns text[]) RETURNS boolean LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT coalesce((
        SELECT v.included FROM (
            SELECT t.n, (SELECT o.pattern NOT LIKE '!%' FROM pg_catalog.unnest(patterns) WITH ORDINALITY o (pattern, n)
                         WHERE s.nspname || pg_catalog.chr(31) || c.relname ~ pg_catalog.ltrim(o.pattern, '!')
                         ORDER BY o.n DESC LIMIT 1) AS included
            FROM (SELECT 0::bigint AS n, relation AS oid
                  UNION ALL SELECT a.n, a.relid::oid FROM pg_catalog.pg_partition_ancestors(relation) WITH ORDINALITY a (relid, n)) t
            JOIN pg_catalog.pg_class c ON c.oid = t.oid JOIN pg_catalog.pg_namespace s ON s.oid = c.relnamespace) v
        WHERE v.included IS NOT NULL ORDER BY v.n LIMIT 1), false)
$$;

-- Publishes a table that is new or has become publishable, wherever a pattern names it. One that stays out is named by `status`, with what
-- mends it: it has no usable identity, it has rows that are not in the log, or the owner of this function may not publish it.
CREATE FUNCTION millstream.take_in(relation oid, filled boolean) RETURNS void LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    publication name;
    has_rows boolean := false;
BEGIN
    FOR publication IN
        SELECT m.publication FROM millstream.captured m JOIN pg_catalog.pg_publication p ON p.pubname = m.publication
        WHERE NOT p.puballtables AND millstream.wanted(relation, m.patterns) AND millstream.has_identity(relation)
          AND NOT EXISTS (SELECT FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid = relation)
    LOOP
        IF filled THEN
            EXECUTE pg_catalog.format('SELECT EXISTS (SELECT FROM ONLY %s)', relation::pg_catalog.regclass) INTO has_rows;
        END IF;
        CONTINUE WHEN has_rows;
        BEGIN
            EXECUTE pg_catalog.format('ALTER PUBLICATION %I ADD TABLE ONLY %s', publication, relation::pg_catalog.regclass);
        EXCEPTION WHEN insufficient_privilege THEN
            NULL;
        END;
    END LOOP;
END $$;

-- Looks at one table and says what has changed. `filled`: it may hold rows that the log does not have.
CREATE FUNCTION millstream.look(relation oid, tag text, filled boolean) RETURNS void LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    old jsonb;
    new jsonb;
    note text;
BEGIN
    IF millstream.facts(relation) IS NULL OR relation::pg_catalog.regclass::text LIKE 'millstream.%' THEN
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM millstream.known_table k WHERE k.relation = look.relation) THEN
        -- Of ours, so that the application's own UPDATE and DELETE go on.
        IF NOT millstream.has_identity(relation) AND millstream.facts(relation) -> 'published' <> '[]'::jsonb THEN
            EXECUTE pg_catalog.format('ALTER TABLE ONLY %s REPLICA IDENTITY FULL', relation::pg_catalog.regclass);
        END IF;
    ELSE
        PERFORM millstream.take_in(relation, filled);
    END IF;
    -- Another transaction's word of this table comes first.
    SELECT k.facts INTO old FROM millstream.known_table k WHERE k.relation = look.relation FOR UPDATE;
    new := millstream.facts(relation);
    IF new -> 'published' = '[]'::jsonb OR new = old THEN
        RETURN;
    END IF;
    IF new ->> 'identity' = 'f' AND old ->> 'identity' <> 'f' AND new -> 'key' = 'null'::jsonb THEN
        note := 'the table lost its key and is REPLICA IDENTITY FULL now';
    END IF;
    PERFORM millstream.say('table', relation, tag, old, new, note);
    INSERT INTO millstream.known_table (relation, facts, entries) VALUES (look.relation, new, millstream.entries(look.relation))
        ON CONFLICT ON CONSTRAINT known_table_pkey DO UPDATE SET facts = excluded.facts;
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

CREATE FUNCTION millstream.note_commands() RETURNS void LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    command record;
    leaf oid;
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
                -- One that was detached is not below it any more.
                UNION SELECT k.relation FROM millstream.known_table k WHERE (k.facts #>> '{parent,oid}')::bigint = command.objid::bigint
                ORDER BY 1
            LOOP
                PERFORM millstream.look(leaf, command.command_tag, command.command_tag <> 'CREATE TABLE');
            END LOOP;
        ELSIF command.object_type IN ('schema', 'type', 'domain') AND command.command_tag LIKE 'ALTER %' THEN
            FOR leaf IN SELECT k.relation FROM millstream.known_table k ORDER BY k.relation LOOP
                PERFORM millstream.look(leaf, command.command_tag, false);
            END LOOP;
            IF command.object_type = 'type' THEN
                PERFORM millstream.say_enum(command.objid, command.command_tag);
            END IF;
        END IF;
    END LOOP;
END $$;

CREATE FUNCTION millstream.note_drops(tag text) RETURNS void LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    gone record;
    old jsonb;
    leaf oid;
BEGIN
    FOR gone IN SELECT * FROM pg_catalog.pg_event_trigger_dropped_objects() LOOP
        CONTINUE WHEN gone.classid <> 'pg_catalog.pg_class'::pg_catalog.regclass;
        IF gone.object_type = 'table' THEN
            DELETE FROM millstream.known_table k WHERE k.relation = gone.objid RETURNING k.facts INTO old;
            IF FOUND THEN
                PERFORM millstream.say('dropped', gone.objid, tag, old, NULL, NULL);
            END IF;
        ELSIF gone.object_type = 'table column' AND tag NOT LIKE 'ALTER TABLE%' THEN
            PERFORM millstream.look(gone.objid, tag, false);
        ELSIF gone.object_type = 'index' AND tag NOT LIKE 'ALTER TABLE%' THEN
            -- Whose it was is not to be known any more; it may have been a replica identity.
            FOR leaf IN SELECT k.relation FROM millstream.known_table k WHERE k.facts ->> 'identity' = 'i' ORDER BY k.relation LOOP
                PERFORM millstream.look(leaf, tag, false);
            END LOOP;
        END IF;
    END LOOP;
END $$;

CREATE FUNCTION millstream.note_rewrite(tag text) RETURNS void LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    rewritten oid := pg_catalog.pg_event_trigger_table_rewrite_oid();
    reason int := pg_catalog.pg_event_trigger_table_rewrite_reason();
BEGIN
    -- 2: a default, 4: a column's type. Another persistence (1) or access method (8) leaves every value as it is.
    IF reason & 6 <> 0 AND EXISTS (SELECT FROM millstream.known_table k WHERE k.relation = rewritten) THEN
        PERFORM millstream.say('rewritten', rewritten, tag, NULL, millstream.facts(rewritten), 'reason ' || reason);
    END IF;
END $$;

-- A cancel that statement_timeout sent, and not somebody: the time that is spent here is not to make the statement fail.
CREATE FUNCTION millstream.is_timeout() RETURNS boolean LANGUAGE sql SET search_path = '' AS $$
    SELECT s.setting::bigint > 0
       AND pg_catalog.clock_timestamp() - pg_catalog.statement_timestamp() >= pg_catalog.make_interval(secs => s.setting::bigint / 1000.0)
    FROM pg_catalog.pg_settings s WHERE s.name = 'statement_timeout'
$$;

-- The one way in: whatever fails behind it becomes a barrier in the log, and if that cannot be written either, a warning (I7).
CREATE FUNCTION millstream.on_event() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
    BEGIN
        CASE tg_event
            WHEN 'ddl_command_end' THEN PERFORM millstream.note_commands();
            WHEN 'sql_drop' THEN PERFORM millstream.note_drops(tg_tag);
            WHEN 'table_rewrite' THEN PERFORM millstream.note_rewrite(tg_tag);
        END CASE;
    EXCEPTION WHEN query_canceled OR assert_failure OR OTHERS THEN
        IF sqlstate = '57014' AND NOT millstream.is_timeout() THEN
            RAISE;
        END IF;
        PERFORM millstream.say('unknown', NULL, tg_tag, NULL, NULL, sqlstate || ' ' || sqlerrm);
    END;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'millstream could not note % in its log: % %', tg_tag, sqlstate, sqlerrm;
END $$;

-- Begins, or goes on, to carry the schema changes of a publication's tables and of new ones that the patterns name. True when something changed.
-- The one who asks must own the publication; what is done, is done with the rights of the one who installed this.
CREATE FUNCTION millstream.enrol(publication name, patterns text[]) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
    published oid[];
    one oid;
    before jsonb := (SELECT pg_catalog.jsonb_object_agg(k.relation, pg_catalog.jsonb_build_array(k.facts, k.entries)) FROM millstream.known_table k);
    changed boolean := false;
BEGIN
    IF NOT coalesce((SELECT pg_catalog.pg_has_role(session_user, p.pubowner, 'MEMBER') FROM pg_catalog.pg_publication p WHERE p.pubname = enrol.publication), false) THEN
        RAISE insufficient_privilege USING MESSAGE = pg_catalog.format('%s owns no publication %s', session_user, publication);
    END IF;
    INSERT INTO millstream.captured AS c (publication, patterns) VALUES (enrol.publication, enrol.patterns)
        ON CONFLICT ON CONSTRAINT captured_pkey DO UPDATE SET patterns = excluded.patterns WHERE c.patterns <> excluded.patterns
        RETURNING true INTO changed;
    published := ARRAY(SELECT r.prrelid FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
                       WHERE p.pubname = enrol.publication AND r.prrelid <> 'millstream.schema_change'::pg_catalog.regclass ORDER BY 1);
    -- No change of theirs slips in between what is read here and the first that the triggers say.
    FOREACH one IN ARRAY published LOOP
        EXECUTE pg_catalog.format('LOCK TABLE ONLY %s IN ACCESS SHARE MODE', one::pg_catalog.regclass);
    END LOOP;
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
                   WHERE p.pubname = enrol.publication AND r.prrelid = 'millstream.schema_change'::pg_catalog.regclass) THEN
        EXECUTE pg_catalog.format('ALTER PUBLICATION %I ADD TABLE ONLY millstream.schema_change', publication);
        UPDATE millstream.captured c SET entry = NULL WHERE c.publication = enrol.publication;
        -- A publication that was made anew: what an earlier one of the name had is over.
        UPDATE millstream.known_table k SET entries = k.entries - enrol.publication::text WHERE k.entries ? enrol.publication::text;
        changed := true;
    END IF;
    UPDATE millstream.captured c SET entry = (SELECT r.oid FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
            WHERE p.pubname = enrol.publication AND r.prrelid = 'millstream.schema_change'::pg_catalog.regclass)
        WHERE c.publication = enrol.publication AND c.entry IS NULL;
    FOREACH one IN ARRAY published LOOP
        IF EXISTS (SELECT FROM millstream.known_table k WHERE k.relation = one) THEN
            -- What the triggers missed is said now.
            PERFORM millstream.look(one, 'init', false);
            -- What is known stays so: a row that somebody else made in its place is an alteration.
            UPDATE millstream.known_table k SET entries = millstream.entries(one) || k.entries WHERE k.relation = one;
        ELSE
            INSERT INTO millstream.known_table SELECT one, f.facts, millstream.entries(one) FROM millstream.facts(one) f (facts) WHERE f.facts IS NOT NULL;
        END IF;
    END LOOP;
    DELETE FROM millstream.known_table k WHERE NOT EXISTS (
        SELECT FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
        JOIN millstream.captured m ON m.publication = p.pubname WHERE r.prrelid = k.relation);
    -- What init takes out of one publication and another keeps: whatever else is known as published and is not, somebody took out.
    UPDATE millstream.known_table k SET facts = pg_catalog.jsonb_set(k.facts, '{published}', coalesce(millstream.facts(k.relation) -> 'published', '[]')),
            entries = k.entries - enrol.publication::text
        WHERE (k.facts -> 'published' ? enrol.publication::text OR k.entries ? enrol.publication::text) AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
            WHERE p.pubname = enrol.publication AND r.prrelid = k.relation);
    RETURN coalesce(changed, false) OR before IS DISTINCT FROM (
        SELECT pg_catalog.jsonb_object_agg(k.relation, pg_catalog.jsonb_build_array(k.facts, k.entries)) FROM millstream.known_table k);
END $$;

-- Ends it for a publication; the last one out removes everything that this script made. True when it did.
CREATE FUNCTION millstream.withdraw(publication name) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_publication p WHERE p.pubname = withdraw.publication AND NOT pg_catalog.pg_has_role(session_user, p.pubowner, 'MEMBER')) THEN
        RAISE insufficient_privilege USING MESSAGE = pg_catalog.format('%s does not own publication %s', session_user, publication);
    END IF;
    DELETE FROM millstream.captured c WHERE c.publication = withdraw.publication;
    IF EXISTS (SELECT FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
               WHERE p.pubname = withdraw.publication AND r.prrelid = 'millstream.schema_change'::pg_catalog.regclass) THEN
        EXECUTE pg_catalog.format('ALTER PUBLICATION %I DROP TABLE millstream.schema_change', publication);
    END IF;
    IF EXISTS (SELECT FROM millstream.captured c JOIN pg_catalog.pg_publication p ON p.pubname = c.publication) THEN
        UPDATE millstream.known_table k SET entries = k.entries - withdraw.publication::text WHERE k.entries ? withdraw.publication::text;
        RETURN false;
    END IF;
{remove}
    RETURN true;
END $$;

REVOKE EXECUTE ON FUNCTION millstream.enrol(name, text[]), millstream.withdraw(name) FROM PUBLIC;

CREATE EVENT TRIGGER millstream_ddl ON ddl_command_end EXECUTE FUNCTION millstream.on_event();
CREATE EVENT TRIGGER millstream_drop ON sql_drop EXECUTE FUNCTION millstream.on_event();
CREATE EVENT TRIGGER millstream_rewrite ON table_rewrite EXECUTE FUNCTION millstream.on_event();
ALTER EVENT TRIGGER millstream_ddl ENABLE ALWAYS;
ALTER EVENT TRIGGER millstream_drop ENABLE ALWAYS;
ALTER EVENT TRIGGER millstream_rewrite ENABLE ALWAYS;

-- What the mover keeps on the two shards of a move, beside shard-config/sql/catalog.sql. Run by a superuser; safe to repeat. Clients get no right on any table.
-- Replicated with a move's rows: what the target shows of it, it has applied, and all that was committed before.
CREATE TABLE IF NOT EXISTS shard_catalog.mark (
    id bigint PRIMARY KEY,
    n bigint NOT NULL,
    at timestamptz NOT NULL
);
-- Tables with rows in motion. While one is named here it keeps its shape.
CREATE TABLE IF NOT EXISTS shard_catalog.guarded (
    move_id bigint NOT NULL,
    relation oid NOT NULL,
    key_column name NOT NULL,
    PRIMARY KEY (move_id, relation)
);
-- One row. Who defines tables has it locked to the end of his transaction; a move that begins to guard tables changes it. So the
-- move waits for definitions under way, and a REPEATABLE READ transaction whose snapshot is older than the guards is found out.
CREATE TABLE IF NOT EXISTS shard_catalog.guards (
    only_row bool PRIMARY KEY DEFAULT true CHECK (only_row),
    n bigint NOT NULL DEFAULT 0
);
INSERT INTO shard_catalog.guards DEFAULT VALUES ON CONFLICT DO NOTHING;

-- For a guard that has not got the lock of its move, or sees the fence: waits for the lock and returns, or refuses the write.
CREATE OR REPLACE FUNCTION shard_catalog.wait_or_refuse(p_move int, p_op text, p_relation oid, p_table text, p_depth int)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_fenced boolean := EXISTS (SELECT FROM shard_catalog.fence WHERE move_id = p_move);
    v_timeout CONSTANT text := current_setting('lock_timeout');
BEGIN
    IF NOT v_fenced THEN
        PERFORM set_config('lock_timeout', '2s', true);
        BEGIN
            PERFORM pg_advisory_xact_lock_shared(1936224870, p_move);
        EXCEPTION WHEN lock_not_available THEN
            v_fenced := true;
        END;
        PERFORM set_config('lock_timeout', v_timeout, true);
        IF NOT v_fenced AND NOT EXISTS (SELECT FROM shard_catalog.fence WHERE move_id = p_move) THEN
            RETURN;
        END IF;
    END IF;
    -- A change of a row that is the same on every shard comes to copies, too, by a foreign key that acts on it: that is no
    -- matter of where the rows are, and does not pass by trying again.
    IF p_op <> 'INSERT' AND p_depth > 1 AND EXISTS (
        SELECT FROM pg_constraint c WHERE c.conrelid = p_relation AND c.contype = 'f'
           AND (c.confdeltype IN ('c', 'n', 'd') OR c.confupdtype IN ('c', 'n', 'd'))
           AND NOT EXISTS (SELECT FROM shard_catalog.guarded g WHERE g.move_id = p_move AND g.relation = c.confrelid)) THEN
        RAISE EXCEPTION 'a foreign key of % would change rows that are being moved', p_table
            USING ERRCODE = 'object_in_use',
                  DETAIL = format('Nothing was written. Move %s.', p_move),
                  HINT = format('Wait for the move to end: shardctl watch %s.', p_move);
    END IF;
    RAISE EXCEPTION 'this shard does not take writes of these rows of %: they are being moved to another shard', p_table
        USING ERRCODE = 'serialization_failure',
              DETAIL = format('Nothing was written. Move %s.', p_move),
              HINT = 'Try the transaction again; the proxy knows where the rows are.';
END
$$;
REVOKE ALL ON FUNCTION shard_catalog.wait_or_refuse(int, text, oid, text, int) FROM PUBLIC;

-- BEFORE each row that belongs to the scope of move TG_ARGV[0] (the trigger's WHEN says which), ENABLE ALWAYS.
--
-- The fence is a committed row plus the move's advisory lock. The lock is taken shared here and held to the end of the
-- transaction; the mover takes it exclusively, so nobody who wrote before is still running, and leaves it to a prepared
-- transaction until every snapshot is younger than the row. A REPEATABLE READ transaction that cannot see the row
-- therefore meets the lock (H1).
--
-- Every row that is written passes here. SET search_path would cost as much as the rest, so all is named with its schema.
CREATE OR REPLACE FUNCTION shard_catalog.guard() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    v_move CONSTANT pg_catalog.int4 := TG_ARGV[0];
    v_locked pg_catalog.bool;
BEGIN
    -- Replication of the move itself, and the mover's clean-up, which says so in the same way. Needs a superuser.
    IF NOT pg_catalog.pg_replication_origin_session_is_setup() THEN
        v_locked := pg_catalog.pg_try_advisory_xact_lock_shared(1936224870, v_move);
        -- A statement of its own: its snapshot must be from after the lock. Within the one above it would be from before, and miss
        -- a fence that was made, and whose lock was taken and released, in between.
        IF NOT v_locked OR EXISTS (SELECT FROM shard_catalog.fence WHERE move_id OPERATOR(pg_catalog.=) v_move) THEN
            PERFORM shard_catalog.wait_or_refuse(v_move, TG_OP, TG_RELID, TG_TABLE_NAME, pg_catalog.pg_trigger_depth());
        END IF;
    END IF;
    IF TG_OP OPERATOR(pg_catalog.=) 'DELETE' THEN
        RETURN OLD;
    END IF;
    RETURN NEW;
END
$$;

-- Whoever may have it fired by a table of theirs holds the lock of a move (H10).
REVOKE ALL ON FUNCTION shard_catalog.guard() FROM PUBLIC;

-- A TRUNCATE would be replicated without the row filter, or not at all (H3).
CREATE OR REPLACE FUNCTION shard_catalog.refuse_truncate() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'TRUNCATE of % is refused: move % has rows of it under way', TG_TABLE_NAME, TG_ARGV[0]
        USING ERRCODE = 'object_in_use',
              HINT = format('Use DELETE, or wait for the move: shardctl watch %s.', TG_ARGV[0]);
END
$$;

-- Definitions stay as they are on both shards while rows move between them; a table that comes into being meanwhile
-- would have rows that nobody moves. Partitions are refused with their tables.
CREATE OR REPLACE FUNCTION shard_catalog.refuse_ddl() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_move bigint;
    v_what text;
    v_known boolean;
BEGIN
    IF current_setting('shard_catalog.mover', true) = 'on'
        AND (SELECT rolsuper FROM pg_roles WHERE rolname = session_user) THEN
        RETURN;
    END IF;
    -- Temporary tables come and go, and are nobody's matter.
    IF tg_event = 'sql_drop' THEN
        v_known := NOT EXISTS (SELECT FROM pg_event_trigger_dropped_objects() d
            WHERE d.classid = 'pg_class'::regclass AND d.object_type IN ('table', 'table column') AND NOT d.is_temporary);
    ELSE
        v_known := NOT EXISTS (SELECT FROM pg_event_trigger_ddl_commands() d
            WHERE d.classid = 'pg_class'::regclass AND d.schema_name IS DISTINCT FROM 'pg_temp'
              AND d.command_tag IN ('ALTER TABLE', 'CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO'));
    END IF;
    IF v_known THEN
        RETURN;
    END IF;
    BEGIN
        PERFORM FROM shard_catalog.guards FOR SHARE;
        v_known := FOUND;
    EXCEPTION WHEN serialization_failure THEN
        v_known := false;
    END;
    IF NOT v_known THEN
        RAISE EXCEPTION '% is refused: the transaction is older than a move of rows between shards, and cannot see which tables it is about', tg_tag
            USING ERRCODE = 'serialization_failure', HINT = 'Try the transaction again.';
    END IF;
    IF tg_event = 'sql_drop' THEN
        SELECT g.move_id, d.object_identity INTO v_move, v_what
          FROM pg_event_trigger_dropped_objects() d
          JOIN shard_catalog.guarded g ON d.classid = 'pg_class'::regclass AND d.objid = g.relation LIMIT 1;
    ELSE
        SELECT g.move_id, d.object_identity INTO v_move, v_what
          FROM pg_event_trigger_ddl_commands() d
          JOIN shard_catalog.guarded g ON d.objid = g.relation
               OR EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = d.objid AND a.attname = g.key_column
                             AND a.attnum > 0 AND NOT a.attisdropped)
         WHERE d.classid = 'pg_class'::regclass AND d.schema_name IS DISTINCT FROM 'pg_temp'
           AND d.command_tag IN ('ALTER TABLE', 'CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO') LIMIT 1;
    END IF;
    IF v_move IS NOT NULL THEN
        RAISE EXCEPTION '% of % is refused: move % has rows of sharded tables under way', tg_tag, v_what, v_move
            USING ERRCODE = 'object_in_use',
                  HINT = format('Wait for the move to end: shardctl watch %s.', v_move);
    END IF;
END
$$;
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'shard_move_ddl') THEN
        CREATE EVENT TRIGGER shard_move_ddl ON ddl_command_end EXECUTE FUNCTION shard_catalog.refuse_ddl();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'shard_move_drop') THEN
        CREATE EVENT TRIGGER shard_move_drop ON sql_drop EXECUTE FUNCTION shard_catalog.refuse_ddl();
    END IF;
END
$$;

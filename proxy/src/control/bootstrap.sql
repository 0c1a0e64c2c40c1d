-- What the proxy keeps on every shard. Run by the control user (a superuser: event triggers need one) in one
-- transaction, after shard-config/sql/catalog.sql, when shard_catalog.installed does not name this version. Clients get no right
-- on any table here.
CREATE TABLE IF NOT EXISTS shard_catalog.installed (version int NOT NULL);

-- One row a committed DDL statement. Rows, and not a counter: a counter's row lock would serialise all DDL and be
-- held by prepared transactions. Proxies compare count and sum: every half second, and at once when they are notified.
CREATE TABLE IF NOT EXISTS shard_catalog.schema_change (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    changed_at timestamptz NOT NULL DEFAULT now()
);

CREATE OR REPLACE FUNCTION shard_catalog.note_schema_change() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF tg_event = 'sql_drop' THEN
        IF NOT EXISTS (SELECT FROM pg_event_trigger_dropped_objects() WHERE NOT is_temporary) THEN
            RETURN;
        END IF;
    ELSIF tg_tag IN ('COMMENT', 'GRANT', 'REVOKE', 'SECURITY LABEL') OR NOT EXISTS (
        SELECT FROM pg_event_trigger_ddl_commands() WHERE schema_name IS DISTINCT FROM 'pg_temp'
    ) THEN
        RETURN;
    END IF;
    INSERT INTO shard_catalog.schema_change DEFAULT VALUES;
    -- PREPARE TRANSACTION refuses a transaction that did a NOTIFY (H18), and a proxy's DDL on all shards is prepared.
    -- Its connections say who they are, and it notifies after the commit. Who prepares DDL by hand sets this, too.
    IF current_setting('shard_proxy.session', true) IS DISTINCT FROM 'on' THEN
        PERFORM pg_notify('shard_catalog', '');
    END IF;
END
$$;
DROP EVENT TRIGGER IF EXISTS shard_catalog_ddl;
DROP EVENT TRIGGER IF EXISTS shard_catalog_drop;
CREATE EVENT TRIGGER shard_catalog_ddl ON ddl_command_end EXECUTE FUNCTION shard_catalog.note_schema_change();
CREATE EVENT TRIGGER shard_catalog_drop ON sql_drop EXECUTE FUNCTION shard_catalog.note_schema_change();

-- The next value of an identity column, for who may insert into its table: as PostgreSQL draws it for them, whoever has
-- rights on the sequence.
CREATE OR REPLACE FUNCTION shard_catalog.next_identity(p_table text, p_column text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT has_any_column_privilege(session_user, p_table, 'INSERT') THEN
        RAISE EXCEPTION 'permission denied for table %', p_table USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN nextval(s.oid) FROM pg_class s
    JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = s.oid AND d.deptype = 'i'
        AND d.refclassid = 'pg_class'::regclass AND d.refobjid = p_table::regclass
    JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid AND a.attname = p_column
    WHERE s.relkind = 'S';
END
$$;

-- Unique over all shards without asking anybody, and in the order of time: RFC 9562, version 7.
CREATE OR REPLACE FUNCTION shard_catalog.uuidv7() RETURNS uuid
LANGUAGE sql VOLATILE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT encode(
        set_bit(set_bit(
            overlay(uuid_send(gen_random_uuid()) PLACING
                substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6),
            52, 1), 53, 1), 'hex')::uuid
$$;

-- On every shard: the process ids of the backends that work for a proxy. Each of them holds an advisory lock for as long as it
-- lives, since an application_name is the client's to set.
CREATE OR REPLACE FUNCTION shard_catalog.backends_of(p_backend_tag text) RETURNS SETOF int
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT l.pid FROM pg_locks l
    WHERE l.locktype = 'advisory' AND l.classid = 1936224868 AND l.objid = p_backend_tag::bigint::oid AND l.objsubid = 2
        AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()) AND l.granted
$$;

-- Transactions over several shards. The row of the first participant's own transaction is the decision: there after
-- its COMMIT, or never. An 'abort' row is a tombstone put there by recovery, which makes that COMMIT impossible.
CREATE TABLE IF NOT EXISTS shard_catalog.decision (
    gid text PRIMARY KEY,
    xid xid8 NOT NULL,
    outcome text NOT NULL CHECK (outcome IN ('commit', 'abort')),
    participants int[] NOT NULL,
    decided_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Written by each prepared transaction itself: tells 'committed already' from 'lost with a failover' (H4).
CREATE TABLE IF NOT EXISTS shard_catalog.applied (
    gid text PRIMARY KEY,
    owner name NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- The gid ends in ':' and the full xid of the transaction that may decide it, so nobody can decide for another
-- (H16).
CREATE OR REPLACE FUNCTION shard_catalog.decide(p_gid text, p_participants int[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF p_gid NOT LIKE '%:' || pg_current_xact_id()::text THEN
        RAISE EXCEPTION 'gid % does not belong to this transaction', p_gid USING ERRCODE = 'insufficient_privilege';
    END IF;
    INSERT INTO shard_catalog.decision (gid, xid, outcome, participants)
    VALUES (p_gid, pg_current_xact_id(), 'commit', p_participants);
END
$$;

CREATE OR REPLACE FUNCTION shard_catalog.apply(p_gid text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO shard_catalog.applied (gid, owner) VALUES (p_gid, session_user)
$$;

-- On the default shard: which backends work for one client, noted by the proxies while somebody has waited long for a
-- lock. Unlogged, because it is true for seconds only.
CREATE UNLOGGED TABLE IF NOT EXISTS shard_catalog.open_transaction (
    proxy text NOT NULL,
    client bigint NOT NULL,
    shard int NOT NULL,
    pid int NOT NULL,
    noted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (proxy, client, shard, pid)
);

DELETE FROM shard_catalog.installed;
INSERT INTO shard_catalog.installed VALUES (9);

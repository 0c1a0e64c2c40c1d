-- What proxies and the mover both know of the catalog, on every shard: a proxy makes it when it starts, and shardctl where no
-- proxy has been yet. Run by a superuser, in one transaction; safe to repeat. Clients get no right on any table here.
CREATE SCHEMA IF NOT EXISTS shard_catalog;
-- USAGE, so that the functions that clients need can be named by their roles.
GRANT USAGE ON SCHEMA shard_catalog TO PUBLIC;

-- The shard map; kept on the catalog's shard. The highest epoch counts. `overrides`: [[hash of a key, shard], ...], tenants
-- that live elsewhere than their bucket. `id` keeps two maps of one epoch apart (H6).
CREATE TABLE IF NOT EXISTS shard_catalog.map (
    epoch bigint PRIMARY KEY,
    buckets int NOT NULL,
    ranges jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    overrides jsonb NOT NULL DEFAULT '[]',
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    reason text
);

-- One row, whose version rises with every transaction that changes map or motion. moves_at_once: moves that a shard may have a part
-- in while they copy and compare; further ones wait for their turn, whoever runs them.
-- What is said below to be on the catalog's shard begins on the default shard, and is moved by `shardctl catalog --to`. generation
-- rises with each such move. A shard that the catalog has left, or is about to come to, has moved_to: look there, if
-- moved_generation is more than the one that was followed to get here. So whoever starts at any of them ends at the same one,
-- at every moment of a move, and also when it breaks off (H6).
CREATE TABLE IF NOT EXISTS shard_catalog.control (
    only_row bool PRIMARY KEY DEFAULT true CHECK (only_row),
    version bigint NOT NULL,
    generation bigint NOT NULL DEFAULT 1,
    moved_to int,
    moved_generation bigint,
    moves_at_once int NOT NULL DEFAULT 4 CHECK (moves_at_once BETWEEN 1 AND 64)
);
INSERT INTO shard_catalog.control (version) VALUES (1) ON CONFLICT DO NOTHING;

-- Says that map or motion was changed; returns the version that proxies have to acknowledge.
CREATE OR REPLACE FUNCTION shard_catalog.bump() RETURNS bigint
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT pg_notify('shard_catalog', '');
    UPDATE shard_catalog.control SET version = version + 1 RETURNING version
$$;
REVOKE ALL ON FUNCTION shard_catalog.bump() FROM PUBLIC;

-- On the catalog's shard: what moves now, and how proxies have to serve it. `scope`: {"ranges": [[first bucket, last bucket],
-- ...], "hashes": [hash of a key, ...]}.
-- copying: rows are on both shards, the source owns them. holding: the same, and what has not touched the scope waits before
-- it does. flipped: the target owns them. Who owns is what the map says: a move that is taken back is held while the target owns.
CREATE TABLE IF NOT EXISTS shard_catalog.motion (
    move_id bigint PRIMARY KEY,
    scope jsonb NOT NULL,
    source int NOT NULL,
    target int NOT NULL CHECK (target <> source),
    stage text NOT NULL CHECK (stage IN ('copying', 'holding', 'flipped')),
    since timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- On the catalog's shard: the mover's own record of every move, and what happened to it.
CREATE TABLE IF NOT EXISTS shard_catalog.move (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    scope jsonb NOT NULL,
    source int NOT NULL,
    target int NOT NULL CHECK (target <> source),
    phase text NOT NULL,
    planned_epoch bigint NOT NULL,
    detail jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE IF NOT EXISTS shard_catalog.move_event (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    move_id bigint NOT NULL REFERENCES shard_catalog.move ON DELETE CASCADE,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    phase text NOT NULL,
    text text NOT NULL
);
CREATE INDEX IF NOT EXISTS move_event_of ON shard_catalog.move_event (move_id, id);

-- On the catalog's shard: one row a running proxy process. Who changes map or motion waits for all whose lease runs.
-- version: every worker serves by it. drained: whatever was routed under an older version has ended, but for what provably
-- touched nothing that moves. note: who is waited for. backend_tag: see backends_of. shards: the numbers of those that it knows:
-- what is for all shards goes to each of these, and whatever began when it knew fewer has ended; NULL: of a proxy that is older
-- than this column.
CREATE TABLE IF NOT EXISTS shard_catalog.proxy (
    id text PRIMARY KEY,
    name text NOT NULL,
    address text NOT NULL,
    backend_tag text NOT NULL,
    lease_until timestamptz NOT NULL,
    version bigint NOT NULL,
    drained bigint NOT NULL,
    epoch bigint NOT NULL,
    held int NOT NULL DEFAULT 0,
    note text,
    shards int[]
);

-- On every shard that a move concerns: who owns the scope since which epoch. Written before the catalog's map (H6).
-- flipped: it became true, the map says so, too. Before that the row may be of an attempt that came to nothing. A proxy that does
-- not hear of the catalog, and a mover that finds an older map, believe such rows.
CREATE TABLE IF NOT EXISTS shard_catalog.ownership (
    move_id bigint NOT NULL,
    epoch bigint NOT NULL,
    epoch_id uuid NOT NULL,
    scope jsonb NOT NULL,
    owner int NOT NULL,
    noted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    flipped bool NOT NULL DEFAULT false,
    PRIMARY KEY (move_id, epoch)
);

-- On a shard that must not be written: the scopes that it has given away, or is about to (H1). mask: number of buckets - 1, so
-- that a shard can say a scope's hashes without asking anybody.
CREATE TABLE IF NOT EXISTS shard_catalog.fence (
    move_id bigint PRIMARY KEY,
    scope jsonb NOT NULL,
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    mask bigint
);

-- Columns that tables of older versions lack. Looked for first: ALTER TABLE would lock all readers and writers out, of leases too,
-- even if there was nothing to add.
DO $$
DECLARE
    lacking record;
BEGIN
    FOR lacking IN
        SELECT wanted.* FROM (VALUES
            ('shard_catalog.map', 'overrides', 'jsonb NOT NULL DEFAULT ''[]'''),
            ('shard_catalog.map', 'id', 'uuid NOT NULL DEFAULT gen_random_uuid()'),
            ('shard_catalog.map', 'reason', 'text'),
            ('shard_catalog.proxy', 'shards', 'int[]'),
            ('shard_catalog.control', 'generation', 'bigint NOT NULL DEFAULT 1'),
            ('shard_catalog.control', 'moved_to', 'int'),
            ('shard_catalog.control', 'moved_generation', 'bigint'),
            ('shard_catalog.control', 'moves_at_once', 'int NOT NULL DEFAULT 4 CHECK (moves_at_once BETWEEN 1 AND 64)'),
            ('shard_catalog.ownership', 'flipped', 'bool NOT NULL DEFAULT false'),
            ('shard_catalog.fence', 'mask', 'bigint')) wanted (relation, attribute, definition)
        WHERE NOT EXISTS (
            SELECT FROM pg_catalog.pg_attribute a
            WHERE a.attrelid = wanted.relation::pg_catalog.regclass AND a.attname = wanted.attribute AND NOT a.attisdropped)
    LOOP
        EXECUTE pg_catalog.format('ALTER TABLE %s ADD COLUMN IF NOT EXISTS %I %s', lacking.relation, lacking.attribute, lacking.definition);
    END LOOP;
END
$$;

-- The hashes h of keys that are not this shard's although rows of them may be here: (h & mask) BETWEEN low AND high.
-- For the relays of an outbox: a row whose key is among them is published by the shard that owns it (H12).
CREATE OR REPLACE FUNCTION shard_catalog.not_owned() RETURNS TABLE (mask bigint, low bigint, high bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT f.mask, (r ->> 0)::bigint, (r ->> 1)::bigint
      FROM shard_catalog.fence f, jsonb_array_elements(coalesce(f.scope -> 'ranges', '[]')) r
    UNION ALL
    SELECT -1, h::bigint, h::bigint
      FROM shard_catalog.fence f, jsonb_array_elements_text(coalesce(f.scope -> 'hashes', '[]')) h
$$;

-- Nobody who has not heard of it changes a catalog that has been moved, or is only the copy of one.
CREATE OR REPLACE FUNCTION shard_catalog.refuse_moved() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_shard int;
BEGIN
    SELECT moved_to INTO v_shard FROM shard_catalog.control WHERE moved_to IS NOT NULL;
    IF FOUND THEN
        RAISE EXCEPTION 'the shard catalog is on shard % now', v_shard
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Ask there.';
    END IF;
    RETURN NULL;
END
$$;
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['map', 'motion', 'move', 'proxy'] LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_trigger
                       WHERE tgrelid = pg_catalog.format('shard_catalog.%I', name)::pg_catalog.regclass AND tgname = 'shard_catalog_moved') THEN
            EXECUTE pg_catalog.format('CREATE TRIGGER shard_catalog_moved BEFORE INSERT OR UPDATE OR DELETE ON shard_catalog.%I
                EXECUTE FUNCTION shard_catalog.refuse_moved()', name);
        END IF;
    END LOOP;
END
$$;

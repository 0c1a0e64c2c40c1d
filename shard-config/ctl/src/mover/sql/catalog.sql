-- The mover's part of the catalog, on the default shard. A proxy makes these when it starts (proxy/src/control/bootstrap.sql,
-- where they are explained); a cluster whose proxies are not up yet gets them here. The same definitions, for either may
-- come first.
CREATE SCHEMA IF NOT EXISTS shard_catalog;
CREATE TABLE IF NOT EXISTS shard_catalog.map (
    epoch bigint PRIMARY KEY,
    buckets int NOT NULL,
    ranges jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE shard_catalog.map ADD COLUMN IF NOT EXISTS overrides jsonb NOT NULL DEFAULT '[]';
ALTER TABLE shard_catalog.map ADD COLUMN IF NOT EXISTS id uuid NOT NULL DEFAULT gen_random_uuid();
ALTER TABLE shard_catalog.map ADD COLUMN IF NOT EXISTS reason text;
-- One row: grows in every transaction that changes the map or a motion.
CREATE TABLE IF NOT EXISTS shard_catalog.control (
    only_row bool PRIMARY KEY DEFAULT true CHECK (only_row),
    version bigint NOT NULL
);
INSERT INTO shard_catalog.control (version) VALUES (1) ON CONFLICT DO NOTHING;
-- What proxies must obey.
CREATE TABLE IF NOT EXISTS shard_catalog.motion (
    move_id bigint PRIMARY KEY,
    scope jsonb NOT NULL,
    source int NOT NULL,
    target int NOT NULL,
    stage text NOT NULL CHECK (stage IN ('copying', 'holding', 'flipped')),
    since timestamptz NOT NULL DEFAULT clock_timestamp()
);
-- The mover's own record.
CREATE TABLE IF NOT EXISTS shard_catalog.move (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    scope jsonb NOT NULL,
    source int NOT NULL,
    target int NOT NULL,
    phase text NOT NULL,
    planned_epoch bigint NOT NULL,
    detail jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE IF NOT EXISTS shard_catalog.move_event (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    move_id bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    phase text NOT NULL,
    text text NOT NULL
);
CREATE INDEX IF NOT EXISTS move_event_move ON shard_catalog.move_event (move_id, id);
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
    note text
);

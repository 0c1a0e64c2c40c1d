-- The verbs of shardctl for those who live in psql, on the shard that keeps the map. Each writes down what is wanted;
-- `shardctl serve` does it. Only a superuser may call them until EXECUTE is granted.

CREATE TABLE IF NOT EXISTS shard_catalog.request (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    asked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    asked_by name NOT NULL DEFAULT session_user,
    goal jsonb NOT NULL,
    -- asked -> running -> done | failed
    state text NOT NULL DEFAULT 'asked' CHECK (state IN ('asked', 'running', 'done', 'failed')),
    -- The moves that were made of it, or its plan, or the error.
    answer jsonb,
    ended_at timestamptz
);

-- An error on a shard that does not keep the catalog.
CREATE OR REPLACE FUNCTION shard_catalog.insist_on_catalog() RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM shard_catalog.map) THEN
        RAISE EXCEPTION 'this shard does not keep the shard map' USING HINT = 'Ask on the default shard.';
    END IF;
    IF EXISTS (SELECT FROM shard_catalog.control WHERE moved_to IS NOT NULL) THEN
        RAISE EXCEPTION 'the shard catalog is on shard % now', (SELECT moved_to FROM shard_catalog.control)
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Ask there.';
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION shard_catalog.ask(p_goal jsonb, p_how jsonb) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_id bigint;
BEGIN
    PERFORM shard_catalog.insist_on_catalog();
    IF (p_how ->> 'finish')::boolean AND NOT (p_how ->> 'auto')::boolean THEN
        RAISE EXCEPTION 'finish needs auto' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO shard_catalog.request (goal) VALUES (p_goal || p_how) RETURNING id INTO v_id;
    PERFORM pg_notify('shard_catalog', '');
    RETURN v_id;
END
$$;

-- auto: cut over when both sides are equal. finish: and close the window. dry_run: make the plan, show it in
-- shard_catalog.requests, do nothing. The answer is the number of the request.
CREATE OR REPLACE FUNCTION shard_catalog.move_buckets(first int, last int, target int, auto boolean DEFAULT false,
    finish boolean DEFAULT false, dry_run boolean DEFAULT false) RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT shard_catalog.ask(jsonb_build_object('verb', 'move', 'first', first, 'last', last, 'target', target),
        jsonb_build_object('auto', auto, 'finish', finish, 'dry_run', dry_run))
$$;
-- Any set of buckets: move_buckets('0-9,40-49,77', 3).
CREATE OR REPLACE FUNCTION shard_catalog.move_buckets(buckets text, target int, auto boolean DEFAULT false,
    finish boolean DEFAULT false, dry_run boolean DEFAULT false) RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT shard_catalog.ask(jsonb_build_object('verb', 'move', 'buckets', buckets, 'target', target),
        jsonb_build_object('auto', auto, 'finish', finish, 'dry_run', dry_run))
$$;
CREATE OR REPLACE FUNCTION shard_catalog.drain(shard int, auto boolean DEFAULT true, finish boolean DEFAULT false,
    dry_run boolean DEFAULT false) RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT shard_catalog.ask(jsonb_build_object('verb', 'drain', 'shard', shard),
        jsonb_build_object('auto', auto, 'finish', finish, 'dry_run', dry_run))
$$;
-- measure: buckets, rows, bytes, or (with dry_run) load. weights: {"3": 2}, those of the configuration for the others.
CREATE OR REPLACE FUNCTION shard_catalog.rebalance(measure text DEFAULT 'buckets', tolerance int DEFAULT 5,
    weights jsonb DEFAULT '{}', auto boolean DEFAULT true, finish boolean DEFAULT false, dry_run boolean DEFAULT false)
    RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT shard_catalog.ask(
        jsonb_build_object('verb', 'rebalance', 'measure', measure, 'tolerance', tolerance, 'weights', weights),
        jsonb_build_object('auto', auto, 'finish', finish, 'dry_run', dry_run))
$$;
CREATE OR REPLACE FUNCTION shard_catalog.isolate(tenant text, target int, auto boolean DEFAULT false,
    finish boolean DEFAULT false, dry_run boolean DEFAULT false) RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT shard_catalog.ask(jsonb_build_object('verb', 'isolate', 'tenant', tenant, 'target', target),
        jsonb_build_object('auto', auto, 'finish', finish, 'dry_run', dry_run))
$$;
-- Tenants of other types, as they are written in the statement.
CREATE OR REPLACE FUNCTION shard_catalog.isolate(tenant uuid, target int, auto boolean DEFAULT false,
    finish boolean DEFAULT false, dry_run boolean DEFAULT false) RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT shard_catalog.isolate(tenant::text, target, auto, finish, dry_run)
$$;
CREATE OR REPLACE FUNCTION shard_catalog.isolate(tenant bigint, target int, auto boolean DEFAULT false,
    finish boolean DEFAULT false, dry_run boolean DEFAULT false) RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT shard_catalog.isolate(tenant::text, target, auto, finish, dry_run)
$$;

-- What only looks is asked for in the same way: {"status": exit status of the verb, "report": what --json prints} is the answer, and
-- "failed" its state when that status is not 0.
CREATE OR REPLACE FUNCTION shard_catalog.diff(move bigint) RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT shard_catalog.ask(jsonb_build_object('verb', 'diff', 'move', move), '{}')
$$;
-- measure: size, or rate (rows written a second, counted for so long).
CREATE OR REPLACE FUNCTION shard_catalog.tenants(top int DEFAULT 20, measure text DEFAULT 'size', seconds int DEFAULT NULL) RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT shard_catalog.ask(jsonb_build_object('verb', 'tenants', 'top', top, 'measure', measure, 'seconds', seconds), '{}')
$$;
CREATE OR REPLACE FUNCTION shard_catalog.servers() RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT shard_catalog.ask('{"verb": "servers"}', '{}')
$$;
CREATE OR REPLACE FUNCTION shard_catalog.reload(dry_run boolean DEFAULT false) RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT shard_catalog.ask('{"verb": "reload"}', jsonb_build_object('dry_run', dry_run))
$$;

-- Which buckets and tenants changed owner between two epochs of the map.
CREATE OR REPLACE FUNCTION shard_catalog.map_diff(before bigint, after bigint)
    RETURNS TABLE (what text, from_shard int, to_shard int)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_missing bigint;
BEGIN
    PERFORM shard_catalog.insist_on_catalog();
    SELECT min(e) INTO v_missing FROM unnest(ARRAY[before, after]) e
     WHERE NOT EXISTS (SELECT FROM shard_catalog.map m WHERE m.epoch = e);
    IF v_missing IS NOT NULL THEN
        RAISE EXCEPTION 'there is no epoch % of the map', v_missing USING ERRCODE = 'invalid_parameter_value',
            HINT = 'SELECT epoch, created_at, reason FROM shard_catalog.map ORDER BY epoch lists them.';
    END IF;
    RETURN QUERY
    WITH owner AS (
        SELECT m.epoch, b AS bucket, (r ->> 2)::int AS shard FROM shard_catalog.map m
         CROSS JOIN jsonb_array_elements(m.ranges) r CROSS JOIN generate_series((r ->> 0)::int, (r ->> 1)::int) b
         WHERE m.epoch IN (before, after)
    ), pinned AS (
        SELECT m.epoch, (o ->> 0)::bigint AS hash, (o ->> 1)::int AS shard FROM shard_catalog.map m
         CROSS JOIN jsonb_array_elements(m.overrides) o WHERE m.epoch IN (before, after)
    ), tenant AS (
        -- Two's complement, as `&` in the bucket function: of negative hashes, too.
        SELECT m.epoch, p.hash, coalesce(
                   (SELECT q.shard FROM pinned q WHERE q.epoch = m.epoch AND q.hash = p.hash),
                   (SELECT o.shard FROM owner o WHERE o.epoch = m.epoch AND o.bucket = p.hash & (m.buckets - 1))) AS shard
          FROM (SELECT DISTINCT hash FROM pinned) p JOIN shard_catalog.map m ON m.epoch IN (before, after)
    ), moved AS (
        SELECT a.bucket, a.shard AS f, b.shard AS t, a.bucket - row_number() OVER (PARTITION BY a.shard, b.shard ORDER BY a.bucket) AS run
          FROM owner a JOIN owner b ON b.bucket = a.bucket AND b.epoch = after
         WHERE a.epoch = before AND a.shard <> b.shard
    ), lines AS (
        SELECT 1 AS part, min(bucket)::bigint AS n, format('buckets %s-%s', min(bucket), max(bucket)) AS line, f, t
          FROM moved GROUP BY f, t, run
        UNION ALL
        SELECT 2, a.hash, format('tenant hash %s', a.hash), a.shard, b.shard
          FROM tenant a JOIN tenant b ON b.hash = a.hash AND b.epoch = after WHERE a.epoch = before AND a.shard <> b.shard
    )
    SELECT line, f, t FROM lines ORDER BY part, n;
END
$$;

-- What happened to a move, oldest first.
CREATE OR REPLACE FUNCTION shard_catalog.history(move bigint) RETURNS TABLE (at timestamptz, phase text, event text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM shard_catalog.insist_on_catalog();
    RETURN QUERY SELECT e.at, e.phase, e.text FROM shard_catalog.move_event e WHERE e.move_id = move ORDER BY e.id;
END
$$;

-- What the verbs on one move write: an entry of its record, and a line of its history. Of limits (throttle) those that are named
-- are set, null for none. Without a text nothing is written, and the limits are the answer.
CREATE OR REPLACE FUNCTION shard_catalog.tell(p_move bigint, p_entries jsonb, p_text text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_phase text;
    v_detail jsonb;
    v_limits jsonb;
    v_text text := p_text;
    v_instead text;
    c_before CONSTANT text[] := '{preflight, announcing, arming, copying, catching_up, verifying, ready, fencing, releasing}';
BEGIN
    SELECT phase, detail, coalesce(nullif(detail -> 'throttle', 'null'), '{}') INTO v_phase, v_detail, v_limits
      FROM shard_catalog.move WHERE id = p_move FOR UPDATE;
    IF v_phase IS NULL THEN
        RAISE EXCEPTION 'there is no move %', p_move USING ERRCODE = 'invalid_parameter_value',
            HINT = 'TABLE shard_catalog.moves lists them.';
    END IF;
    IF p_text IS NULL THEN
        RETURN format('move %s in phase %s: throttle: %s', p_move, v_phase, jsonb_strip_nulls(v_limits));
    END IF;
    IF v_phase IN ('done', 'rolled_back', 'aborted', 'refused') THEN
        RAISE EXCEPTION 'move % is over: %', p_move, v_phase USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    -- As Phase::granted says it.
    v_instead := CASE p_entries ->> 'wish'
        WHEN 'cutover' THEN CASE WHEN v_phase <> ALL (c_before)
            THEN 'the move has flipped already, or is being undone' END
        WHEN 'abort' THEN CASE
            WHEN v_phase IN ('closing', 'cleaning')
                THEN 'the window is closed, and it goes on to its end: plan a move in the other direction'
            WHEN v_phase IN ('returning', 'emptying') THEN 'it has been rolled back, and goes on to its end'
            WHEN v_phase <> ALL (c_before || '{aborting, clearing}'::text[])
                THEN 'the target owns the scope already: use rollback (until finish), or finish' END
        WHEN 'rollback' THEN CASE
            WHEN v_phase IN ('closing', 'cleaning') THEN 'the window is closed: plan a move in the other direction'
            WHEN v_phase = ANY (c_before || '{aborting, clearing}'::text[]) THEN 'nothing has flipped yet: use abort' END
        WHEN 'finish' THEN CASE WHEN v_phase NOT IN ('reversing', 'window', 'back_verifying', 'closing', 'cleaning')
            THEN 'only a move whose window is open can be finished: cut over first' END
    END;
    IF v_instead IS NOT NULL THEN
        RAISE EXCEPTION 'move % is in phase %: %', p_move, v_phase, v_instead USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    IF p_entries ->> 'wish' = 'cutover' AND v_phase = 'ready' AND (v_detail ->> 'lag_bytes')::bigint > (p_entries ->> 'max_lag')::bigint THEN
        RAISE EXCEPTION 'the target of move % is up to % behind, limit %; nothing was changed', p_move,
                pg_size_pretty((v_detail ->> 'lag_bytes')::bigint), pg_size_pretty((p_entries ->> 'max_lag')::bigint)
            USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = 'Wait (lag_bytes in shard_catalog.moves), or ask for more: shard_catalog.cutover(move, max_lag => bytes).';
    END IF;
    IF p_entries ? 'throttle' THEN
        p_entries := p_entries || jsonb_build_object('throttle', jsonb_strip_nulls(v_limits || (p_entries -> 'throttle')));
    END IF;
    IF (v_detail ->> 'paused')::boolean AND p_entries ? 'wish' THEN
        v_text := v_text || '; the pause ends with it';
    END IF;
    UPDATE shard_catalog.move SET detail = detail || p_entries, updated_at = clock_timestamp() WHERE id = p_move;
    INSERT INTO shard_catalog.move_event (move_id, phase, text) VALUES (p_move, v_phase, v_text || ' (' || session_user || ')');
    PERFORM pg_notify('shard_catalog', '');
    RETURN format('move %s in phase %s: %s', p_move, v_phase, v_text);
END
$$;
-- Refused when the target was more than max_lag bytes of WAL behind when it was last looked at. It waits for that limit, too.
CREATE OR REPLACE FUNCTION shard_catalog.cutover(move bigint, max_lag bigint) RETURNS text
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT shard_catalog.tell(move, jsonb_build_object('wish', 'cutover', 'attempts', 0, 'stops', 0, 'paused', false, 'auto', false, 'finish', false,
        'max_lag', max_lag), 'cutover was asked for')
$$;
CREATE OR REPLACE FUNCTION shard_catalog.cutover(move bigint) RETURNS text
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT shard_catalog.cutover(move, 67108864)
$$;
CREATE OR REPLACE FUNCTION shard_catalog.abort(move bigint) RETURNS text
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT shard_catalog.tell(move, '{"wish": "abort", "attempts": 0, "stops": 0, "paused": false, "auto": false, "finish": false}', 'abort was asked for')
$$;
CREATE OR REPLACE FUNCTION shard_catalog.roll_back(move bigint) RETURNS text
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT shard_catalog.tell(move, '{"wish": "rollback", "attempts": 0, "stops": 0, "paused": false, "auto": false, "finish": false}', 'rollback was asked for')
$$;
CREATE OR REPLACE FUNCTION shard_catalog.finish(move bigint) RETURNS text
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT shard_catalog.tell(move, '{"wish": "finish", "attempts": 0, "stops": 0, "paused": false}', 'finish was asked for')
$$;
CREATE OR REPLACE FUNCTION shard_catalog.pause(move bigint) RETURNS text
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT shard_catalog.tell(move, '{"paused": true}', 'paused')
$$;
CREATE OR REPLACE FUNCTION shard_catalog.resume(move bigint) RETURNS text
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT shard_catalog.tell(move, '{"paused": false, "stops": 0}', 'resumed')
$$;
-- Sets limits that are given; the others stay. Without any it says which are set. unthrottle takes them away.
CREATE OR REPLACE FUNCTION shard_catalog.throttle(move bigint, bytes_per_second bigint DEFAULT NULL,
    standby_lag_bytes bigint DEFAULT NULL, latency_ms bigint DEFAULT NULL, parallel int DEFAULT NULL) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_limits jsonb := jsonb_strip_nulls(jsonb_build_object('bytes_per_second', bytes_per_second,
        'standby_lag_bytes', standby_lag_bytes, 'latency_ms', latency_ms, 'parallel', parallel));
BEGIN
    IF parallel > 8 THEN
        RAISE EXCEPTION 'parallel is % at most: %', 8, v_limits USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF least(bytes_per_second, standby_lag_bytes, latency_ms, parallel) < 1 THEN
        RAISE EXCEPTION 'a limit is a number from 1 on: %', v_limits USING ERRCODE = 'invalid_parameter_value',
            HINT = 'shard_catalog.unthrottle(move, name, ...) takes limits away.';
    END IF;
    RETURN shard_catalog.tell(move, jsonb_build_object('throttle', v_limits),
        CASE WHEN v_limits <> '{}' THEN 'throttle: ' || v_limits::text END);
END
$$;
-- Takes away the limits that are named; all of them if none is.
CREATE OR REPLACE FUNCTION shard_catalog.unthrottle(move bigint, VARIADIC limits text[] DEFAULT '{}') RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    c_all CONSTANT text[] := '{bytes_per_second, standby_lag_bytes, latency_ms, parallel}';
    v_gone text[] := CASE WHEN limits = '{}' THEN c_all ELSE limits END;
BEGIN
    IF NOT v_gone <@ c_all THEN
        RAISE EXCEPTION 'not all of these are limits: %', limits USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Limits are ' || array_to_string(c_all, ', ') || '.';
    END IF;
    RETURN shard_catalog.tell(move,
        jsonb_build_object('throttle', (SELECT jsonb_object_agg(name, NULL) FROM unnest(v_gone) name)),
        'no limit any more: ' || array_to_string(v_gone, ', '));
END
$$;

-- How many moves at once each shard may have a part in while they copy and compare; others wait. Without a number it only says it.
CREATE OR REPLACE FUNCTION shard_catalog.moves_at_once(most int DEFAULT NULL) RETURNS int
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    UPDATE shard_catalog.control SET moves_at_once = most WHERE most IS NOT NULL;
    SELECT moves_at_once FROM shard_catalog.control
$$;

CREATE OR REPLACE VIEW shard_catalog.moves AS
SELECT id, source, target, scope, phase, detail ->> 'wish' AS wish, coalesce((detail ->> 'paused')::boolean, false) AS paused,
    coalesce(detail ->> 'waits_for', detail ->> 'throttled', detail ->> 'lag') AS waits_for, detail ->> 'error' AS last_error,
    (detail ->> 'lag_bytes')::bigint AS lag_bytes,
    -- Of the copy; or the pages that its comparison, or a deletion, is through with.
    coalesce(CASE WHEN phase <> 'copying' AND detail -> 'part' ->> 'phase' = phase THEN detail -> 'part' END, detail -> 'progress') AS progress,
    created_at, updated_at
FROM shard_catalog.move ORDER BY id DESC;
CREATE OR REPLACE VIEW shard_catalog.requests AS
SELECT id, asked_at, asked_by, goal, state, answer, ended_at FROM shard_catalog.request ORDER BY id DESC;

REVOKE ALL ON FUNCTION shard_catalog.ask(jsonb, jsonb), shard_catalog.tell(bigint, jsonb, text),
    shard_catalog.map_diff(bigint, bigint), shard_catalog.history(bigint) FROM PUBLIC;

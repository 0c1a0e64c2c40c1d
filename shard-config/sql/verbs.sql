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

CREATE OR REPLACE FUNCTION shard_catalog.ask(p_goal jsonb, p_how jsonb) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_id bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM shard_catalog.map) THEN
        RAISE EXCEPTION 'this shard does not keep the shard map' USING HINT = 'Ask on the default shard.';
    END IF;
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
CREATE OR REPLACE FUNCTION shard_catalog.drain(shard int, auto boolean DEFAULT true, finish boolean DEFAULT false,
    dry_run boolean DEFAULT false) RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT shard_catalog.ask(jsonb_build_object('verb', 'drain', 'shard', shard),
        jsonb_build_object('auto', auto, 'finish', finish, 'dry_run', dry_run))
$$;
-- measure: buckets, rows or bytes. weights: {"3": 2}, those of the configuration for the others.
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

-- What the verbs on one move write: an entry of its record, and a line of its history.
CREATE OR REPLACE FUNCTION shard_catalog.tell(p_move bigint, p_entries jsonb, p_text text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_phase text;
BEGIN
    UPDATE shard_catalog.move SET detail = detail || p_entries, updated_at = clock_timestamp()
     WHERE id = p_move AND phase NOT IN ('done', 'rolled_back', 'aborted', 'refused') RETURNING phase INTO v_phase;
    IF v_phase IS NULL THEN
        SELECT phase INTO v_phase FROM shard_catalog.move WHERE id = p_move;
        IF v_phase IS NULL THEN
            RAISE EXCEPTION 'there is no move %', p_move USING ERRCODE = 'invalid_parameter_value',
                HINT = 'TABLE shard_catalog.moves lists them.';
        END IF;
        RAISE EXCEPTION 'move % is over: %', p_move, v_phase USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    INSERT INTO shard_catalog.move_event (move_id, phase, text) VALUES (p_move, v_phase, p_text || ' (' || session_user || ')');
    PERFORM pg_notify('shard_catalog', '');
    RETURN format('move %s in phase %s: %s', p_move, v_phase, p_text);
END
$$;
CREATE OR REPLACE FUNCTION shard_catalog.cutover(move bigint) RETURNS text
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT shard_catalog.tell(move, '{"wish": "cutover", "attempts": 0, "paused": false}', 'cutover was asked for')
$$;
CREATE OR REPLACE FUNCTION shard_catalog.abort(move bigint) RETURNS text
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT shard_catalog.tell(move, '{"wish": "abort", "attempts": 0, "paused": false}', 'abort was asked for')
$$;
CREATE OR REPLACE FUNCTION shard_catalog.roll_back(move bigint) RETURNS text
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT shard_catalog.tell(move, '{"wish": "rollback", "attempts": 0, "paused": false}', 'rollback was asked for')
$$;
CREATE OR REPLACE FUNCTION shard_catalog.finish(move bigint) RETURNS text
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT shard_catalog.tell(move, '{"wish": "finish", "attempts": 0, "paused": false}', 'finish was asked for')
$$;
CREATE OR REPLACE FUNCTION shard_catalog.pause(move bigint) RETURNS text
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT shard_catalog.tell(move, '{"paused": true}', 'paused')
$$;
CREATE OR REPLACE FUNCTION shard_catalog.resume(move bigint) RETURNS text
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT shard_catalog.tell(move, '{"paused": false}', 'resumed')
$$;
-- NULL: no limit.
CREATE OR REPLACE FUNCTION shard_catalog.throttle(move bigint, bytes_per_second bigint DEFAULT NULL,
    standby_lag_bytes bigint DEFAULT NULL, latency_ms bigint DEFAULT NULL, parallel int DEFAULT NULL) RETURNS text
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT shard_catalog.tell(move, jsonb_build_object('throttle', limits), 'throttle: ' || limits::text)
      FROM jsonb_build_object('bytes_per_second', bytes_per_second, 'standby_lag_bytes', standby_lag_bytes,
          'latency_ms', latency_ms, 'parallel', parallel) AS limits
$$;

CREATE OR REPLACE VIEW shard_catalog.moves AS
SELECT id, source, target, scope, phase, detail ->> 'wish' AS wish, coalesce((detail ->> 'paused')::boolean, false) AS paused,
    coalesce(detail ->> 'waits_for', detail ->> 'throttled', detail ->> 'lag') AS waits_for, detail ->> 'error' AS last_error,
    (detail ->> 'lag_bytes')::bigint AS lag_bytes, detail -> 'progress' AS progress, created_at, updated_at
FROM shard_catalog.move ORDER BY id DESC;
CREATE OR REPLACE VIEW shard_catalog.requests AS
SELECT id, asked_at, asked_by, goal, state, answer, ended_at FROM shard_catalog.request ORDER BY id DESC;

REVOKE ALL ON FUNCTION shard_catalog.ask(jsonb, jsonb), shard_catalog.tell(bigint, jsonb, text) FROM PUBLIC;

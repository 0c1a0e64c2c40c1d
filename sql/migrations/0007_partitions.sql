-- Partitions ahead of a running system: `migrate` calls make_partitions on each shard, and so may anything that runs
-- there on a schedule. Whoever calls it makes tables as its owner and can do nothing else so.

-- Makes the monthly partitions that are missing from last month (an id made just before midnight may be posted after it)
-- to `months_ahead` after this one, and returns their names. Each is made as a table of its own and then attached: that
-- takes only SHARE UPDATE EXCLUSIVE on the parent, where CREATE TABLE ... PARTITION OF would stop payments for its
-- ACCESS EXCLUSIVE lock. It waits for locks only briefly: a caller with other duties must not hang behind a long migration.
CREATE FUNCTION make_partitions(months_ahead int) RETURNS SETOF text
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
    parent text;
    child text;
    month timestamp;
BEGIN
    IF months_ahead IS NULL OR months_ahead NOT BETWEEN 0 AND 120 THEN
        RAISE EXCEPTION 'make_partitions: months_ahead must be between 0 and 120' USING ERRCODE = '22023';
    END IF;
    -- The lock of `migrate`: two callers would make the same table.
    PERFORM pg_advisory_xact_lock(126892148679793);
    FOREACH parent IN ARRAY ARRAY['payments', 'entries'] LOOP
        FOR i IN -1..months_ahead LOOP
            month := date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => i);
            child := parent || to_char(month, '_YYYY_MM');
            CONTINUE WHEN EXISTS (SELECT FROM pg_inherits
                                   WHERE inhparent = parent::regclass AND inhrelid = to_regclass(child));
            EXECUTE format('CREATE TABLE IF NOT EXISTS %I (LIKE %I INCLUDING ALL)', child, parent);
            EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', parent, child,
                           month AT TIME ZONE 'UTC', (month + interval '1 month') AT TIME ZONE 'UTC');
            RETURN NEXT child;
        END LOOP;
    END LOOP;
END $$;

-- The moment from which on payments have no partition any more, by the names of the last ones.
CREATE FUNCTION partitions_until() RETURNS timestamptz
    LANGUAGE sql STABLE SET search_path = public, pg_temp AS $$
    SELECT min(coalesce(last.month + interval '1 month', '-infinity') AT TIME ZONE 'UTC')
      FROM unnest(ARRAY['payments', 'entries']) AS parent
      LEFT JOIN LATERAL (SELECT max(to_date(right(c.relname, 7), 'YYYY_MM'))::timestamp AS month
                           FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                          WHERE i.inhparent = parent::regclass AND c.relname ~ '_\d{4}_\d{2}$') last ON true
$$;
